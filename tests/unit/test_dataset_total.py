"""The total of a data set: sums of runs; a sweep of a secret number of runs is one mechanism."""

import pytest

from rapid_dist.errors import LedgerError
from rapid_dist.privacy.accounting import epsilons
from rapid_dist.privacy.dataset_total import (
    dataset_epsilons,
    declare,
    declared_sweeps,
    has_secret,
)
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdEvent, GaussianEvent
from rapid_dist.privacy.selection import Candidate, RunsConfig, price_composition, price_selection
from rapid_dist.runtime.results import ledger_of

DELTA = 1e-5
TRAINING = DpSgdEvent(sample_rate=0.1, noise_multiplier=4.0, steps=20)
SCORE = GaussianEvent(noise_multiplier=30.0)
RUN = Candidate(training=(TRAINING,), score=(SCORE, SCORE))
RUNS = RunsConfig(mean=5)
NAME = "digits-sweep-0a1b2c3d"


def _charged(ledger: Ledger, run: str) -> None:
    ledger.begin_attempt(run)
    ledger.append("step", run, attempt=1, step=0, event=TRAINING)
    ledger.begin_attempt(f"{run}-score")
    ledger.append("query", f"{run}-score", attempt=1, event=SCORE)


def _swept(folder, number: int, *, declared: bool = True) -> Ledger:
    ledger = Ledger.open(folder / str(number), "digits")
    if declared:
        declare(ledger, NAME, RUNS, [RUN])
    for place in range(number):
        _charged(ledger, f"{NAME}-{place:08x}-ffff")
    ledger.begin_attempt("later")
    ledger.append("query", "later", attempt=1, event=GaussianEvent(noise_multiplier=3.0))
    return ledger


def test_the_total_is_the_same_whatever_the_secret_number_of_runs(tmp_path) -> None:
    totals = {dataset_epsilons(_swept(tmp_path, number), DELTA) for number in (1, 3, 9)}
    assert len(totals) == 1
    # The twin: composed run by run it tells the number.
    told = {epsilons(_swept(tmp_path / "b", number).events(), DELTA).pld for number in (1, 3, 9)}
    assert len(told) == 3


def test_the_total_counts_the_sweep_and_what_is_beside_it(tmp_path) -> None:
    price = price_selection([RUN], RUNS, DELTA, trial_epsilon=1.0).epsilon
    ledger = Ledger.open(tmp_path, "digits")
    declare(ledger, NAME, RUNS, [RUN])
    assert dataset_epsilons(ledger, DELTA).reported == pytest.approx(price)
    declare(ledger, "digits-sweep-99999999", RUNS, [RUN])
    twice = dataset_epsilons(ledger, DELTA).reported
    _charged(ledger, "other")
    assert price < twice < dataset_epsilons(ledger, DELTA).reported


def test_a_sweep_that_chose_by_scores_counts_each_run_as_the_worst_it_could_be(tmp_path) -> None:
    ledger = Ledger.open(tmp_path, "digits")
    worse = Candidate(training=(DpSgdEvent(sample_rate=0.1, noise_multiplier=1.0, steps=20),))
    declare(ledger, NAME, None, [RUN, worse])
    for place in range(3):
        _charged(ledger, f"{NAME}-{place}")
    assert not has_secret(ledger)
    total = dataset_epsilons(ledger, DELTA).reported
    assert total == pytest.approx(
        price_composition([worse] * 3, DELTA, trial_epsilon=1.0, possible=[RUN, worse]).epsilon
    )
    assert total > 2 * epsilons(ledger.events(), DELTA).reported  # What was realised is less.


def test_without_such_a_sweep_the_total_is_that_of_all_releases(tmp_path) -> None:
    ledger = _swept(tmp_path, 2, declared=False)
    assert dataset_epsilons(ledger, DELTA) == epsilons(ledger.events(), DELTA)
    assert not has_secret(ledger)
    assert len(ledger_of(ledger, "later")) == 2


def test_of_a_ledger_with_a_secret_no_places_are_told(tmp_path) -> None:
    ledger = _swept(tmp_path, 2)
    assert has_secret(ledger)
    assert ledger_of(ledger, "later") == []


def test_a_declaration_is_read_back_whole_and_a_strange_one_refused(tmp_path) -> None:
    ledger = _swept(tmp_path, 1)
    (found,) = declared_sweeps(ledger)
    assert (found.name, found.runs, found.possible) == (NAME, RUNS, (RUN,))
    assert found.has(f"{NAME}-1")
    assert not found.has("digits-sweep-0a1b2c3")
    ledger.append("note", "x", attempt=0, note='{"sweep":"x","runs":{"kind":"dice"}}')
    with pytest.raises(LedgerError, match="cannot read"):
        dataset_epsilons(ledger, DELTA)
