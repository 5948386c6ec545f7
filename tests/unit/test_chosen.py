"""Which run of a sweep may leave, by what the ledger says of it."""

from pathlib import Path

import pytest

from rapid_dist.errors import LedgerError
from rapid_dist.privacy.dataset_total import declare, declare_fixed
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.privacy.selection import Candidate, RunsConfig
from rapid_dist.runtime.chosen import note_chosen, score_run, trial_fault

EVENT = GaussianEvent(noise_multiplier=2.0)
PRICE = {"promise": "per_trial", "epsilon": 9.0, "sentence": "Two trials, composed."}


def _charged(ledger: Ledger, run: str, *, scored: bool = True) -> None:
    for name in (run, score_run(run)) if scored else (run,):
        ledger.append("query", name, attempt=ledger.begin_attempt(name), event=EVENT)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger.open(tmp_path, "scans")
    for run in ("won", "lost"):
        _charged(ledger, run)
    _charged(ledger, "plain", scored=False)
    note_chosen(ledger, "won", "scans-sweep-1", PRICE)
    return ledger


def test_the_chosen_run_leaves_with_its_price_and_a_run_of_its_own_without(ledger: Ledger) -> None:
    assert trial_fault(ledger, "won", PRICE) == ""
    assert trial_fault(ledger, "plain", {}) == ""


def test_a_trial_that_lost_stays_whatever_its_directory_says(ledger: Ledger) -> None:
    for selection in ({}, PRICE):  # Somebody has copied the chosen one's price.
        assert "has not chosen it" in trial_fault(ledger, "lost", selection)


def test_the_chosen_run_stays_where_its_price_is_missing(ledger: Ledger) -> None:
    assert "lacks selection.json" in trial_fault(ledger, "won", {})


def test_a_run_of_a_secret_sweep_stays_before_it_has_a_score(ledger: Ledger) -> None:
    possible = [Candidate(training=(EVENT,), score=(EVENT,))]
    declare(ledger, "scans-sweep-2", RunsConfig(mean=4.0), possible)
    _charged(ledger, "scans-sweep-2-0a1b", scored=False)
    assert "has not chosen it" in trial_fault(ledger, "scans-sweep-2-0a1b", PRICE)


def test_a_choice_is_noted_once(ledger: Ledger) -> None:
    before = len(ledger.entries())
    note_chosen(ledger, "won", "scans-sweep-1", PRICE)
    assert len(ledger.entries()) == before


def test_a_price_that_was_changed_is_not_the_ledgers(ledger: Ledger) -> None:
    assert "was changed" in trial_fault(ledger, "won", {**PRICE, "epsilon": 1.0})


def test_a_recipe_that_was_chosen_on_private_data_is_not_trained_anew(ledger: Ledger) -> None:
    note_chosen(ledger, "scans-sweep-4-0a1b-cafe", "scans-sweep-4", PRICE)
    assert "has chosen this recipe" in trial_fault(ledger, "scans-7777-cafe", {})
    assert trial_fault(ledger, "scans-7777-beef", {}) == ""


def test_a_trial_that_was_never_scored_is_known_by_the_name_of_its_sweep(ledger: Ledger) -> None:
    declare_fixed(ledger, "scans-sweep-3", "per_trial")
    _charged(ledger, "scans-sweep-3-0a1b", scored=False)
    assert "has not chosen it" in trial_fault(ledger, "scans-sweep-3-0a1b", {})


def test_a_sweep_chooses_once_whoever_else_drives_it(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="has chosen 'won' already, and its price is that of one"):
        note_chosen(ledger, "lost", "scans-sweep-1", PRICE)
    # A second driver that had not yet seen the first one's choice.
    note = ledger.entries()[-1].note.replace("won", "lost")
    ledger.append("note", "scans-sweep-1", attempt=0, note=note)
    assert "has not chosen it" in trial_fault(ledger, "lost", PRICE)
    assert trial_fault(ledger, "won", PRICE) == ""


def test_whoever_notes_a_choice_second_is_told_although_he_had_not_seen_the_first(
    tmp_path: Path,
) -> None:
    first, second = (Ledger.open(tmp_path, "scans") for _ in range(2))
    note_chosen(first, "won", "scans-sweep-1", PRICE)
    with pytest.raises(LedgerError, match="'lost' stays"):
        note_chosen(second, "lost", "scans-sweep-1", PRICE)
