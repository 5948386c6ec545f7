"""The commands of docs/operations.md are run as far as they can be without a cloud: dry."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rapid_dist.audit.result import CheckResult
from rapid_dist.cli.main import main
from rapid_dist.config import Recipe, load_recipe
from rapid_dist.privacy.accounting import plan
from rapid_dist.runtime.audit import audit_content

ROOT = Path(__file__).resolve().parents[2]
RELEASING = "Releasing"
TEXT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
DRY = ("run", "pretrain", "index", "train", "evaluate", "sweep", "compare")
TINY = [
    "data.public.0.count=600", "network.widths=[16, 16]", "pretrain.steps=4", "contrast.steps=2",
    "knowledge_base.clusters=20", "adapt.steps=2", "privacy.steps=4", "privacy.expected_batch=32",
    "sampling.count=40", "sampling.late_intervals=3", "sampling.early_intervals=2",
    "evaluation.classifiers.steps=5", "evaluation.classifiers.logistic_iterations=5",
    "evaluation.controls=false", "runtime.backend=process",
]  # fmt: skip


def blocks(text: str, kind: str = "") -> list[str]:
    """Returns what stands in the fences of a kind; commands stand in those of none."""
    fences = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [block for named, block in fences if named == kind]


def lines(text: str) -> Iterator[str]:
    """Yields the commands of all blocks, a line each, without comments."""
    for block in blocks(text):
        begun = ""
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            begun = " ".join([begun, re.sub(r"(^|\s)#.*$", "", line).strip()]).strip()
            if begun and begun.count("'") % 2 == 0:  # A quoted text may go on in the next line.
                yield begun
                begun = ""
        assert not begun


def _ours(text: str) -> list[list[str]]:
    """Returns the command lines of `rapid-dist`, but patterns of its use and elided values."""
    found = []
    for line in lines(text):
        if re.match(r"(\.venv/bin/)?rapid-dist ", line) and "[" not in line.split("--set")[0]:
            words = shlex.split(line)[1:]
            if "..." not in line:
                found.append(words)
    return found


COMMANDS = _ours(TEXT)
SUBMITTED = [words for words in COMMANDS if words[0] == "submit" and "--follow" not in words]
RUN_HERE = [words for words in COMMANDS if words[0] in DRY]
SCRIPTS = [shlex.split(line) for line in lines(TEXT) if line.startswith("ray job submit")]


def test_the_document_has_commands_of_every_kind() -> None:
    assert len(SUBMITTED) >= 2
    assert len(RUN_HERE) >= 3
    assert len(SCRIPTS) >= 3
    assert _ours("```\nrapid-dist run \\\n  --recipe digits  # here\n```") == [
        ["run", "--recipe", "digits"]
    ]


@pytest.mark.parametrize("words", SUBMITTED, ids=lambda words: " ".join(words)[:60])
def test_every_job_of_the_document_would_be_sent(words, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)  # Where the run's own recipe has been fetched to.
    shutil.copyfile(ROOT / "rapid_dist" / "recipes" / "mnist.yaml", tmp_path / "mnist.yaml")
    assert main(["submit", "--dry-run", "--working-dir", str(ROOT), *words[1:]]) == 0
    assert "rapid_dist/cli/main.py" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("words", RUN_HERE, ids=lambda words: " ".join(words)[:60])
def test_every_run_of_the_document_can_be_planned(words, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # Where somebody's autoencoder is.
    (tmp_path / "vae").mkdir()
    somebodys = {"latent_channels": 4, "block_out_channels": [32, 64]}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(somebodys))
    assert main([*words, "--dry-run"]) == 0


def _section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def _audit(recipe: Recipe) -> None:
    """Leaves what the command would: its checks, minutes of them, are tests/e2e/test_audit.py's."""
    passed = CheckResult(
        check="noise", question="?", statistic="1.0", bound="1", false_alarm=0, passed=True
    )
    content = audit_content(recipe, plan(recipe.privacy, recipe.num_units), "quick", [passed])
    Path("runs/digits/audit.json").write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own.
def test_the_release_of_the_document_is_made_by_its_commands(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [
        [word.replace("~", str(tmp_path)) for word in words] for words in _ours(_section(RELEASING))
    ]
    kinds = ["audit", "release", "release keygen", "release", "release verify", "release list"]
    assert [" ".join(w for w in words[:2] if w[0] != "-") for words in commands][:6] == kinds
    (tmp_path / "keys").mkdir(mode=0o700)
    changes = [word for change in TINY for word in ("--set", change)]
    assert main(["run", "--recipe", "digits", *changes, "--out", "runs/digits"]) == 0
    _audit(load_recipe("runs/digits/config.yaml"))
    (drawn,) = blocks(_section("MLflow"), "python")[1:]  # The first one is an administrator's.
    told = f"{drawn}\nassert images.shape == (3, 1, 8, 8), images.shape"
    subprocess.run([sys.executable, "-c", told], check=True)
    for words in commands[1:-1]:
        assert main(words) == 0, capsys.readouterr().err
    head = json.loads((tmp_path / "runs" / "digits" / "summary.json").read_text())
    head = head["privacy"]["ledger_head"]
    for line in lines(_section("The ledger")):
        assert main(shlex.split(line.replace("3f9c...", head))[1:]) == 0, capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/mlflow.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (draw,) = _ours(_section("Released models"))
    assert main(draw) == 0, capsys.readouterr().err
    assert len(list(tmp_path.glob("generated/*/images.npz"))) == 1
    assert main(commands[-1]) == 0, capsys.readouterr().err
    facts = json.loads((tmp_path / "runs" / "digits" / "release.json").read_text())
    assert facts["name"] == "rapid-dist-digits"
    assert main(commands[3]) == 4  # What was withdrawn is not released again.
    assert "withdrawn" in capsys.readouterr().err


@pytest.mark.parametrize("words", SCRIPTS, ids=lambda words: " ".join(words)[:60])
def test_every_script_that_rays_own_command_is_given_is_there(words) -> None:
    own, script = words[: words.index("--")], words[words.index("--") + 1 :]
    assert script[0] == "python"
    assert (ROOT / script[1]).exists()
    assert own[own.index("--working-dir") + 1] == "."
    assert "--address" in own


def test_every_other_program_that_is_named_by_its_path_is_there() -> None:
    named = {
        word
        for line in lines(TEXT)
        for word in line.split()
        if re.match(r"(cluster|jobs|benchmarks)/[\w./-]+$", word)
    }
    assert "cluster/up.sh" in named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    assert os.access(ROOT / "cluster" / "up.sh", os.X_OK)
