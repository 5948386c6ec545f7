"""Answers that a run directory holds are on its ledger, or nothing more is asked."""

from pathlib import Path

import pytest

from rapid_dist.config import load_recipe
from rapid_dist.errors import LedgerError
from rapid_dist.methods.contamination_stage import DECISION, PURPOSE
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import GaussianEvent, RetrievalEvent
from rapid_dist.runtime.integrity import require_own
from rapid_dist.runtime.run_directory import RunDirectory

ROUND = RetrievalEvent(sample_rate=0.5, noise_multiplier=2.0, steps=1)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(load_recipe("digits"), str(tmp_path / "run"))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "ledger", "digits")


def test_a_round_whose_answer_is_there_must_have_been_charged(
    directory: RunDirectory, ledger: Ledger
) -> None:
    ledger.begin_attempt(directory.run)
    for step in (0, 1):
        ledger.append("step", directory.run, attempt=1, step=step, event=ROUND)
        directory.storage.write(f"answers/round-{step:06d}.npz", b"")
    require_own(directory, ledger)
    directory.storage.write("answers/round-000002.npz", b"")
    with pytest.raises(LedgerError, match=r"lacks round 2 of run .*Bring that one back"):
        require_own(directory, ledger)
    ledger.append("step", "another", attempt=1, step=2, event=ROUND)
    with pytest.raises(LedgerError, match="lacks round 2"):
        require_own(directory, ledger)


def test_a_decision_about_near_duplicates_must_have_been_charged(
    directory: RunDirectory, ledger: Ledger
) -> None:
    directory.storage.write(DECISION, b"{}")
    with pytest.raises(LedgerError, match="lacks the query behind contamination/decision"):
        require_own(directory, ledger)
    attempt, event = ledger.begin_attempt(directory.run), GaussianEvent(noise_multiplier=20.0)
    ledger.append("query", directory.run, attempt=attempt, event=event, note=PURPOSE)
    require_own(directory, ledger)
