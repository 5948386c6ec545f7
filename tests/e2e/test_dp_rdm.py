"""A whole run of DP-RDM, and one of RAPID with a second round of votes, as small as they can be."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapid_dist.audit.result import failed
from rapid_dist.config import Recipe, load_recipe
from rapid_dist.privacy.keeper import totals
from rapid_dist.privacy.mechanism import GaussianEvent, RetrievalEvent
from rapid_dist.release.generator import Generator
from rapid_dist.release.verify import verify_release
from rapid_dist.runtime import pipeline, releasing
from rapid_dist.runtime.audit import run_audit
from rapid_dist.runtime.run_directory import open_ledger
from tests.e2e.test_run import TINY
from tests.releases import new_key

ROUNDS = 3
RDM = [*TINY, "method=dp_rdm", f"private_index.rounds={ROUNDS}", "conditional.steps=4"]
TWICE = [*TINY, "privacy.candidate_share=0.3", "prior.candidates=4", "prior.features=denoiser"]

# MLflow's own: SQLAlchemy 2.1 deprecates a strategy that MLflow 3.17 maps its tables with.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]


def _recipe(*overrides: str) -> Recipe:
    return load_recipe("digits", [*overrides, "runtime.backend=process"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "rdm"
    return out, pipeline.run(_recipe(*RDM), str(out))


def test_the_price_is_the_ledgers_and_of_rounds_alone(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, summary = finished
    ledger, privacy = open_ledger(_recipe(*RDM), str(out)), summary["privacy"]
    ledger.verify(privacy["ledger_head"])
    assert [type(event) for event in ledger.events()] == [RetrievalEvent] * ROUNDS
    assert privacy["epsilon"] == totals(ledger, 1e-4).runs[privacy["run"]].reported <= 10
    assert (privacy["steps"], privacy["queries"], privacy["neighbors"]) == (ROUNDS, 0, 32)
    assert f"{ROUNDS} rounds of answers" in (out / "report.html").read_text()


def test_the_bundle_has_the_answers_and_draws_the_samples(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = finished
    facts = json.loads((out / "bundle" / "model.json").read_text())
    assert (facts["source"], facts["method"]) == ("answers", "dp_rdm")
    drawn = Generator.open(out / "bundle").generate(np.arange(64) % 10, seed=0)
    with np.load(out / "samples" / "samples.npz") as stored:
        assert np.array_equal(stored["images"][:64], drawn)


def test_running_it_again_asks_nothing_again(finished: tuple[Path, dict[str, Any]]) -> None:
    out, summary = finished
    (out / "summary.json").unlink()
    (out / "stages" / "answers.json").unlink()  # As if it had died before it was marked.
    again = pipeline.run(_recipe(*RDM), str(out))
    assert again["privacy"]["ledger_head"] == summary["privacy"]["ledger_head"]


def test_a_run_passes_its_audit_and_the_gate_and_what_is_released_draws(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = finished
    recipe, today = _recipe(*RDM, "release.synthetic=10"), date.today()
    with pytest.raises(releasing.Refused) as refusal:
        releasing.check(recipe, str(out), today)
    assert list(refusal.value.reasons) == ["audit_passed"]
    audit = run_audit(recipe, str(out), "quick")
    assert failed(audit.results) == [], [one for one in audit.results if not one.passed]
    assert len({one.check for one in audit.results}) == 7
    assert audit.content["mechanism"]["neighbors"] == 32
    assert "rounds of questions to a private index" in (out / "report.html").read_text()
    signer = releasing.Signer(name="A. Officer", key=new_key())
    told = releasing.release(recipe, str(out), signer, today)
    assert told["version"] == 2
    passport = verify_release(out / "release").passport
    assert passport["model"]["starts_from"] == "answers"
    assert (passport["mechanism"]["neighbors"], passport["mechanism"]["steps"]) == (32, ROUNDS)
    assert passport["audit"]["passed"]
    labels = np.arange(20) % 10
    assert np.array_equal(
        Generator.open(out / "release").generate(labels, seed=1),
        Generator.open(out / "bundle").generate(labels, seed=1),
    )


def test_a_second_round_of_votes_is_charged_beside_the_first(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "twice"
    summary = pipeline.run(_recipe(*TWICE), str(out))
    ledger = open_ledger(_recipe(*TWICE), str(out))
    notes = [entry.note for entry in ledger.entries() if isinstance(entry.event, GaussianEvent)]
    assert notes == ["prior histogram", "votes among candidates"]
    assert summary["privacy"]["queries"] == 2
    assert summary["privacy"]["candidates_noise_multiplier"] > 0
    assert 0 < summary["privacy"]["epsilon"] <= 10
    assert (out / "refined" / "prior.npz").is_file()
