"""`rapid-dist status`: read from a run's directory and ledger, with nothing running."""

import json
from pathlib import Path

import pytest

from rapid_dist.cli.main import main
from rapid_dist.config import load_recipe
from rapid_dist.errors import ConfigError
from rapid_dist.privacy.accounting import epsilons
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdEvent
from rapid_dist.runtime.run_directory import RunDirectory
from rapid_dist.runtime.status import status


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run that was cut off in training, after two charged steps of it."""
    place = tmp_path / "runs" / "digits"
    directory = RunDirectory(load_recipe("digits"), str(place))
    with directory.stage("pretrain"):
        pass
    reports = [("pretrain", 400, 400), ("train", 1, 140), ("train controls", 2, 140)]
    lines = [json.dumps({"stage": s, "step": n, "steps": of}) for s, n, of in reports]
    directory.storage.write("metrics.jsonl", "\n".join(lines).encode())
    ledger = Ledger.open(tmp_path / "runs" / "ledger", "digits")
    attempt = ledger.begin_attempt(directory.run)
    event = DpSgdEvent(sample_rate=0.3, noise_multiplier=2.0, steps=1)
    for step in range(2):
        ledger.append("step", run=directory.run, attempt=attempt, step=step, event=event)
    return place


def test_a_run_that_was_cut_off_says_how_far_it_is_and_what_it_spent(out: Path) -> None:
    found = status(f"{out}/")
    assert not found.complete
    assert [(stage.name, stage.done) for stage in found.stages] == [
        ("pretrain", True),
        ("train", False),
    ]
    assert (found.stages[1].step, found.stages[1].steps) == (2, 140)
    assert (found.attempts, found.charged_steps, found.planned_steps) == (1, 2, 140)
    event = DpSgdEvent(sample_rate=0.3, noise_multiplier=2.0, steps=1)
    assert found.epsilon == epsilons([event, event], 1e-4).reported


def test_the_command_prints_lines_and_ends_with_json(out: Path, capsys) -> None:
    assert main(["status", str(out), "--json"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("train ") and "2/140" in line for line in said)
    assert any("charged    2 steps of 140 planned, in 1 attempts" in line for line in said)
    assert json.loads(said[-1])["charged_steps"] == 2


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        status(str(tmp_path))
    assert main(["status", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
