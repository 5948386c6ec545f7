"""A whole run with secure noise: by images, by patients, and after a crash in its training."""

import json
from pathlib import Path
from typing import Any

import pytest

from rapid_dist.cli.main import main
from rapid_dist.methods.artifacts import is_done
from rapid_dist.privacy.accounting import epsilons
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import (
    MOST_VALUES,
    UNITS,
    DiscreteDpSgdEvent,
    DiscreteGaussianEvent,
    DpSgdEvent,
    GaussianEvent,
)
from rapid_dist.runtime import pipeline
from rapid_dist.runtime.progress import Progress
from rapid_dist.runtime.run_directory import open_ledger
from rapid_dist.storage import open_storage
from tests.e2e.test_groups import PATIENTS
from tests.e2e.test_run import _recipe

SECURE = [
    "privacy.noise=secure",
    "privacy.reserve_steps=2",
    "train.checkpoint_every=2",
]
DELTA = 1e-4  # Of recipe digits.
EXACT = "discrete Gaussian, drawn exactly and accounted as such"
IDEAL = "ideal Gaussian"

Finished = tuple[Path, dict[str, Any]]
Captured = pytest.CaptureFixture[str]


class _PulledPlug(Progress):
    """Ends the process, as it were, when the third step of training is reported."""

    def update(self, name: str, done: float, total: float) -> None:
        if name == "train" and done == 3:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that was cut off after a step whose checkpoint is not written, and resumed."""
    out = tmp_path_factory.mktemp("runs") / "secure"
    recipe = _recipe("process", *SECURE)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(recipe, str(out), progress=_PulledPlug())
    assert not is_done(open_storage(out).child("private"))
    return out, pipeline.run(recipe, str(out))


def _ledger(out: Path, *more: str) -> Ledger:
    return open_ledger(_recipe("process", *SECURE, *more), str(out))


def test_the_ledger_says_that_all_of_it_was_discrete(finished: Finished) -> None:
    folder = finished[0].parent / "ledger" / "digits"
    entries = [json.loads(path.read_bytes()) for path in sorted(folder.iterdir())]
    events = [entry["event"] for entry in entries if entry["event"] is not None]
    assert [event["mechanism"] for event in events] == ["discrete_gaussian"] + 5 * [
        "discrete_dp_sgd"
    ]
    assert {(event["units"], event["values"]) for event in events} == {(UNITS, MOST_VALUES)}


def test_a_repeated_step_is_charged_again_in_a_new_attempt(finished: Finished) -> None:
    entries = _ledger(finished[0]).entries()
    assert [(entry.attempt, entry.step) for entry in entries if entry.kind == "step"] == [
        (2, 0), (2, 1), (2, 2), (3, 2), (3, 3)
    ]  # fmt: skip


def test_epsilon_pays_for_discreteness_and_meets_the_budget(finished: Finished) -> None:
    out, summary = finished
    events = _ledger(out).events(summary["privacy"]["run"])
    assert summary["privacy"]["epsilon"] == epsilons(events, DELTA).reported <= 10
    ideal = epsilons([_ideal(event) for event in events], DELTA)
    assert 0 < summary["privacy"]["accountants"]["pld"] - ideal.pld < 1e-3
    assert (summary["privacy"]["steps"], summary["privacy"]["queries"]) == (5, 1)


def _ideal(event: GaussianEvent | DpSgdEvent) -> GaussianEvent | DpSgdEvent:
    if isinstance(event, DiscreteDpSgdEvent):
        return DpSgdEvent(
            sample_rate=event.sample_rate, noise_multiplier=event.noise_multiplier, steps=1
        )
    assert isinstance(event, DiscreteGaussianEvent)
    return GaussianEvent(noise_multiplier=event.noise_multiplier)


def test_the_reports_say_which_noise_it_was(finished: Finished) -> None:
    for name in ("report.html", "internal/report.html"):
        page = (finished[0] / name).read_text()
        assert EXACT in page
        assert IDEAL not in page
    assert "noise: secure" in (finished[0] / "config.yaml").read_text()


def test_the_ledger_command_computes_the_same_epsilon(finished: Finished, capsys: Captured) -> None:
    out, summary = finished
    arguments = [part for setting in SECURE for part in ("--set", setting)]
    assert main(["ledger", "show", "-r", "digits", "-o", str(out), "--json", *arguments]) == 0
    shown = capsys.readouterr().out.splitlines()[-1]
    assert str(summary["privacy"]["epsilon"]) in shown
    head = summary["privacy"]["ledger_head"]
    check = ["ledger", "verify", "-r", "digits", "-o", str(out), "--head", head, *arguments]
    assert main(check) == 0


def test_the_same_command_again_releases_nothing_more(finished: Finished) -> None:
    out, summary = finished
    assert pipeline.run(_recipe("process", *SECURE), str(out)) == summary
    assert _ledger(out).head == summary["privacy"]["ledger_head"]


def test_secure_noise_and_patients_go_together(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "patients"
    more = [*SECURE, *PATIENTS, f"runtime.public_dir={finished[0].parent}/public"]
    summary = pipeline.run(_recipe("process", *more), str(out))
    events = _ledger(out, *PATIENTS).events()
    assert [type(event) for event in events] == [DiscreteGaussianEvent] + 4 * [DiscreteDpSgdEvent]
    privacy = summary["privacy"]
    assert (privacy["unit"], privacy["num_units"]) == ("group", 300)
    assert privacy["epsilon"] == epsilons(events, DELTA).reported <= 10
    page = (out / "report.html").read_text()
    assert EXACT in page
    assert "any one synthetic patient with all its images" in page


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_secure_noise_also_works_on_ray_with_two_workers(tmp_path: Path) -> None:
    out = tmp_path / "a"
    summary = pipeline.run(_recipe("ray", *SECURE, "runtime.workers=2"), str(out))
    events = _ledger(out).events(summary["privacy"]["run"])
    assert [type(event) for event in events] == [DiscreteGaussianEvent] + 4 * [DiscreteDpSgdEvent]
    assert summary["privacy"]["epsilon"] == epsilons(events, DELTA).reported
    assert EXACT in (out / "report.html").read_text()
