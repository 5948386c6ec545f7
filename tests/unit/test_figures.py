"""Figures on their way out of the workers: counted, thinned, and none of them private."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rapid_dist.runtime.figures import METRICS, MOST_POINTS, Figures
from rapid_dist.runtime.progress import Progress
from rapid_dist.storage import open_storage


def _kept(folder: Path, reports: list[tuple[str, dict[str, float]]], debug: bool = False) -> str:
    """Reports, and returns what metrics.jsonl holds then."""
    figures = Figures(open_storage(folder), Progress(Console(file=io.StringIO())), debug=debug)
    with figures.of(None):
        for stage, values in reports:
            figures.on_report(stage, values)
    return (folder / METRICS).read_text()


LEAK = {"step": 1, "steps": 1, "rows": 64, "loss": 0.123, "grad_norm": 4.5}


@pytest.mark.parametrize("stage", ["prior", "train", "train clusters", "evaluate"])
def test_a_private_stage_says_how_far_it_is_and_nothing_else(stage: str, tmp_path: Path) -> None:
    kept = json.loads(_kept(tmp_path, [(stage, LEAK)]))
    assert kept == {"stage": stage, "step": 1, "steps": 1, "rows": 64}


def test_the_leak_would_be_seen_in_a_public_stage_and_in_a_debug_run(tmp_path: Path) -> None:
    assert "0.123" in _kept(tmp_path / "public", [("pretrain", LEAK)])
    assert "0.123" in _kept(tmp_path / "debug", [("train", LEAK)], debug=True)


def test_a_long_stage_keeps_a_bounded_curve_with_its_last_point(tmp_path: Path) -> None:
    steps = 7 * MOST_POINTS + 3
    reports = [
        ("pretrain", {"step": s, "steps": steps, "loss": 1 / s}) for s in range(1, steps + 1)
    ]
    lines = _kept(tmp_path, reports).splitlines()
    assert MOST_POINTS <= len(lines) <= MOST_POINTS + 2
    assert json.loads(lines[-1])["step"] == steps


def test_a_resumed_run_keeps_what_was_measured_before(tmp_path: Path) -> None:
    first = _kept(tmp_path, [("pretrain", {"step": 1, "steps": 2})])
    assert _kept(tmp_path, [("pretrain", {"step": 2, "steps": 2})]).startswith(first)
