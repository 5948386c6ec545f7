"""The scripts in jobs/: each is one command, with its options and its exit codes."""

import runpy
import sys
from pathlib import Path

import pytest

from rapid_dist.cli.main import main
from rapid_dist.config import load_recipe, to_yaml

Captured = pytest.CaptureFixture[str]

ROOT = Path(__file__).resolve().parents[2]
JOBS = {path.stem: path for path in sorted((ROOT / "jobs").glob("*.py"))}
# A plan that its reserve leaves no step.
POOR = [
    "--set", "privacy.steps=null", "--set", "privacy.noise_multiplier=0.7",
    "--set", "privacy.reserve_steps=5000",
]  # fmt: skip


def _command(job: str) -> str:
    return {"pipeline": "run"}.get(job, job)


def _of_script(job: str, words: list[str], captured: Captured) -> tuple[int, str, str]:
    """Returns how a script ends, and what it says."""
    with pytest.MonkeyPatch.context() as process:
        process.setattr(sys, "argv", [str(JOBS[job]), *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(JOBS[job]), run_name="__main__")
    assert isinstance(end.value.code, int)
    return end.value.code, *captured.readouterr()


def _of_command(name: str, words: list[str], captured: Captured) -> tuple[int, str, str]:
    return main([name, *words]), *captured.readouterr()


def test_there_is_a_script_for_every_command_that_runs_on_a_cluster() -> None:
    assert JOBS.keys() == {
        "audit", "compare", "evaluate", "generate", "index", "pipeline", "pretrain", "release",
        "sweep", "train",
    }  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_a_script_has_the_options_of_its_command(job: str, capsys: Captured) -> None:
    script = _of_script(job, ["--help"], capsys)
    assert script == _of_command(_command(job), ["--help"], capsys)
    assert script[0] == 0
    for option in ("--recipe", "--set", "--out", "--dry-run", "--json"):
        assert option in script[1]


def test_the_help_of_another_command_would_be_noticed(capsys: Captured) -> None:
    script = _of_script("sweep", ["--help"], capsys)
    assert script != _of_command("compare", ["--help"], capsys)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--no-such-option"], "--no-such-option"),
        (["--recipe", "nowhere", "--dry-run"], "nowhere"),
        (["--recipe", "digits", "--set", "privacy.epsilno=1", "--dry-run"], "privacy.epsilno"),
    ],
)
def test_a_script_that_is_told_wrongly_ends_with_2_in_the_line_of_its_command(
    job: str, words: list[str], said: str, capsys: Captured
) -> None:
    code, out, line = _of_script(job, words, capsys)
    assert (code, out, line) == _of_command(_command(job), words, capsys)
    assert (code, out) == (2, "")
    assert said in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("job", "more", "code", "said"),
    [
        *((job, POOR, 3, "reserve_steps=5000 leaves none") for job in ("pipeline", "train")),
        *(
            (job, [*POOR, "--dry-run"], 3, "reserve_steps=5000 leaves none")
            for job in ("audit", "compare", "sweep")
        ),
        ("release", ["--dry-run"], 4, "There is no audit of this run"),
        ("sweep", ["--set", "sweep.space={nothing.such: [1]}"], 2, "sweep.space"),
        ("compare", ["--set", "compare.methods=[none]"], 2, "neither a method"),
    ],
)
def test_a_script_that_refuses_ends_with_the_code_of_its_command(
    job: str, more: list[str], code: int, said: str, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "runs" / "digits"
    if job == "release":  # A run that has begun, and no more.
        out.mkdir(parents=True)
        (out / "config.yaml").write_text(to_yaml(load_recipe("digits")))
    before = sorted(tmp_path.rglob("*"))
    words = ["--recipe", "digits", "--out", str(out), *more]
    found = _of_script(job, words, capsys)
    assert found == _of_command(_command(job), words, capsys)
    assert found[0] == code, found[2]
    assert said in found[2]
    assert sorted(tmp_path.rglob("*")) == before  # Nothing has begun.
