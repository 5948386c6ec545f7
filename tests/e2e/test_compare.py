"""A whole comparison, as small as it can be: what it leaves, shares, charges, goes on with."""

import json
import stat
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rapid_dist.config import Recipe, load_recipe
from rapid_dist.errors import BudgetError, RapidError
from rapid_dist.privacy.accounting import epsilons
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import RetrievalEvent
from rapid_dist.runtime.compare import run_compare
from rapid_dist.runtime.compare_piece import PieceJob, run_apart, run_piece

pytestmark = pytest.mark.slow  # A dozen whole runs; unit/test_compare.py has what needs none.

TINY = [
    "data.public.0.count=400",
    "network.widths=[8]",
    "network.norm_groups=4",
    "network.attention=[false]",
    "network.head_width=8",
    "contrast.extractor.width=8",
    "contrast.extractor.dim=8",
    "pretrain.steps=2",
    "pretrain.batch_size=16",
    "contrast.steps=2",
    "contrast.batch_size=16",
    "knowledge_base.clusters=12",
    "adapt.steps=2",
    "adapt.batch_size=16",
    "privacy.expected_batch=16",
    "privacy.steps=2",
    "privacy.noise_multiplier=null",
    "sampling.count=40",
    "sampling.late_intervals=2",
    "sampling.early_intervals=2",
    "evaluation.fidelity_images=40",
    "evaluation.memorisation_images=40",
    "evaluation.classifiers.steps=3",
    "evaluation.classifiers.logistic_iterations=3",
    "evaluation.classifiers.hidden_width=8",
    "runtime.backend=process",
    "compare.methods=[rapid, dpdm, public]",
    "compare.epsilons=[1, 10]",
    "compare.variants={dpdm: {train.multiplicity: 1}}",
]


def _recipe(*more: str) -> Recipe:
    return load_recipe("digits", [*TINY, *more])


class Stops:
    """Runs pieces in this process; refuses those whose names begin in a certain way."""

    def __init__(self, *failing: str) -> None:
        self.failing, self.ran = failing, []  # type: tuple[str, ...], list[str]

    def __call__(self, job: PieceJob) -> None:
        self.ran.append(job.name)
        if job.name.startswith(self.failing):
            raise BudgetError("There is no budget for it.")
        run_piece(job)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Stops]:
    """Of one seed, a piece of which fails."""
    out = tmp_path_factory.mktemp("runs") / "compare"
    runs = Stops("dpdm-10")
    return out, run_compare(_recipe("compare.seeds=1"), str(out), run_one=runs), runs


def test_one_piece_that_fails_is_told_and_ends_no_other(
    first: tuple[Path, dict[str, Any], Stops],
) -> None:
    _, result, runs = first
    assert runs.ran == ["rapid-1-0", "rapid-10-0", "dpdm-1-0", "dpdm-10-0", "public-any-0"]
    states = {one["piece"]: (one["state"], one["reason"]) for one in result["pieces"]}
    assert states.pop("dpdm-10-0") == ("failed", "There is no budget for it.")
    assert set(states.values()) == {("done", "")}
    rows = [(row["row"], row["epsilon"]) for row in result["rows"]]
    assert rows == [("rapid", 1), ("rapid", 10), ("dpdm", 1), ("public", None)]


def test_figures_of_all_kinds_stand_beside_each_other(
    first: tuple[Path, dict[str, Any], Stops],
) -> None:
    out, result, _ = first
    row = result["rows"][0]
    every = {"mean", "best", "picked", "frechet", "kernel_distance", "coverage", "copies"}
    every |= {"total_variation", "agreement", "nfe", "seconds", "rss_gb"}
    assert every <= row["mean"].keys()
    assert row["mean"]["rss_gb"] > 0.1
    assert row["mean"]["epsilon_spent"] <= 1
    quality = json.loads((out / "pieces/rapid-1-0/internal/quality.json").read_text())
    assert row["mean"]["mean"] == quality["samples"]["classifiers"]["mean"]
    assert quality["controls"] == {}
    assert result["extractors"] == ["pixels"]


def test_all_of_it_is_its_owners_alone_and_nothing_is_registered_or_bundled(
    first: tuple[Path, dict[str, Any], Stops],
) -> None:
    out, _, _ = first
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert "Not for release" in (out / "README.txt").read_text()
    for name in (
        "compare.json",
        "compare.html",
        "compare.md",
        "compare.svg",
        "compare-samples.png",
    ):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o600, name
    assert not [path for path in out.rglob("*") if "bundle" in path.parts and path.is_file()]
    assert not [path for path in out.rglob("registry.json") if json.loads(path.read_text())]


def test_every_piece_is_charged_to_the_one_ledger_and_the_total_is_said(
    first: tuple[Path, dict[str, Any], Stops],
) -> None:
    out, result, _ = first
    ledger = Ledger.open(out.parent / "ledger", "digits")
    events = ledger.events()
    assert len({entry.run for entry in ledger.entries() if entry.kind != "note"}) == 3
    cost = result["cost"]
    assert cost["pieces"] == 3
    assert cost["epsilon"] == cost["dataset_epsilon"] == epsilons(events, 1e-4).reported
    assert "The 3 charged pieces of this comparison together cost epsilon" in cost["sentence"]
    page = (out / "compare.html").read_text()
    assert "Internal." in page
    assert "There is no budget for it." in page


def test_public_stages_are_made_once_and_count_for_all_who_use_them(
    first: tuple[Path, dict[str, Any], Stops],
) -> None:
    out, result, _ = first
    (denoiser,) = (out.parent / "public").glob("denoiser-*")
    made = json.loads((denoiser / "made.json").read_text())["seconds"]
    spent = {(row["row"], row["epsilon"]): row["mean"]["public_seconds"] for row in result["rows"]}
    assert spent["rapid", 1] == spent["rapid", 10] >= spent["public", None]
    assert spent["public", None] >= made > 0
    assert spent["dpdm", 1] == 0


def test_the_same_command_goes_on_with_what_is_left(
    first: tuple[Path, dict[str, Any], Stops],
) -> None:
    out, before, _ = first
    again = Stops("rapid-1-", "rapid-10-")
    more = _recipe("compare.methods=[rapid, dpdm]", "compare.epsilons=[1]", "compare.seeds=2")
    result = run_compare(more, str(out), run_one=again)
    assert again.ran == ["rapid-1-1", "dpdm-1-1"]  # Those of the first seed are done.
    rows = {row["row"]: row for row in result["rows"]}
    assert (rows["rapid"]["seeds"], rows["rapid"]["of"]) == (1, 2)
    assert (rows["dpdm"]["seeds"], rows["dpdm"]["spread"]["mean"] is None) == (2, False)
    first_of = {one["piece"]: one["figures"] for one in before["pieces"]}
    both = [one["figures"]["mean"] for one in result["pieces"] if one["row"] == "dpdm"]
    assert both[0] == first_of["dpdm-1-0"]["mean"]
    assert rows["dpdm"]["mean"]["mean"] == pytest.approx(sum(both) / 2)


OTHERS = (
    "compare.methods=[nonprivate, dp_ldm, dp_rdm]", "compare.epsilons=[10]", "compare.seeds=1",
    "privacy.reserve_steps=0",  # Of two steps, two in reserve would be half the budget.
    "compare.variants={"
    "nonprivate: {train.multiplicity: 1}, "
    "dp_ldm: {train.trainable: norm_bias, autoencoder.steps: 2, autoencoder.batch_size: 16,"
    " autoencoder.network.widths: [8, 8]}, "
    "dp_rdm: {private_index.rounds: 2, conditional.steps: 2, conditional.batch_size: 16}}",
)  # fmt: skip


def test_a_ceiling_latents_and_a_private_index_stand_beside_each_other(tmp_path: Path) -> None:
    out, runs = tmp_path / "runs" / "compare", Stops()
    result = run_compare(_recipe(*OTHERS), str(out), run_one=runs)
    assert runs.ran == ["nonprivate-any-0", "dp_ldm-10-0", "dp_rdm-10-0"]
    assert {one["piece"]: (one["state"], one["reason"]) for one in result["pieces"]} == (
        dict.fromkeys(runs.ran, ("done", ""))
    )
    rows = {row["row"]: row for row in result["rows"]}
    assert [(row["promise"], row["epsilon"]) for row in rows.values()] == [
        ("none", None), ("charged", 10), ("charged", 10),
    ]  # fmt: skip
    assert rows["nonprivate"]["mean"]["epsilon_spent"] is None  # It has none, not even 0.
    for name in ("dp_ldm", "dp_rdm"):
        assert 9 < rows[name]["mean"]["epsilon_spent"] <= 10
    for row in rows.values():
        assert row["mean"]["nfe"] > 0
        assert 0 <= row["mean"]["mean"] <= 1
        assert row["mean"]["public_seconds"] >= 0
    assert "1 more trained on the records without any privacy" in result["cost"]["sentence"]
    ledger = Ledger.open(out.parent / "ledger", "digits")
    assert len(ledger.runs()) == result["cost"]["pieces"] == 2
    assert any(isinstance(event, RetrievalEvent) for event in ledger.events())
    weights = [path for path in out.rglob("*.safetensors") if "nonprivate-any-0" in path.parts]
    assert weights
    assert all("internal" in path.parts for path in weights)


def _killed_while_training(ledger: Path, steps: int) -> Any:
    """Runs pieces in processes of their own; kills one when so many steps of it are charged."""

    def run_one(job: PieceJob) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "rapid_dist.runtime.compare_piece"], stdin=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(job)).encode())
        process.stdin.close()
        while process.poll() is None:
            charged = [one for one in ledger.glob("*.json") if b'"kind": "step"' in one.read_bytes()
                       or b'"kind":"step"' in one.read_bytes()]  # fmt: skip
            if len(charged) >= steps:
                process.kill()
            time.sleep(0.02)
        if process.returncode:
            raise RapidError(f"its process ended with {process.returncode}")

    return run_one


def test_a_killed_piece_goes_on_and_done_ones_are_not_run_again(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "compare"
    recipe = _recipe(
        "compare.methods=[public, dpdm]", "compare.epsilons=[10]", "compare.seeds=1",
        "privacy.steps=40", "privacy.reserve_steps=20", "train.checkpoint_every=2",
    )  # fmt: skip
    ledger = out.parent / "ledger" / "digits"
    first = run_compare(recipe, str(out), run_one=_killed_while_training(ledger, 7))
    assert [one["state"] for one in first["pieces"]] == ["done", "failed"]
    begun = json.loads((out / "pieces/dpdm-10-0/run.json").read_text())["run"]
    marked = (out / "pieces/public-any-0/summary.json").stat().st_mtime_ns
    ran: list[str] = []

    def apart(job: PieceJob) -> None:
        ran.append(job.name)
        run_apart(job)

    second = run_compare(recipe, str(out), run_one=apart)
    assert ran == ["dpdm-10-0"]
    assert [one["state"] for one in second["pieces"]] == ["done", "done"]
    assert (out / "pieces/public-any-0/summary.json").stat().st_mtime_ns == marked
    assert json.loads((out / "pieces/dpdm-10-0/run.json").read_text())["run"] == begun
    steps = [one for one in Ledger.open(out.parent / "ledger", "digits").entries()
             if one.kind == "step"]  # fmt: skip
    assert {one.run for one in steps} == {begun}
    assert {one.step for one in steps} == set(range(40))
    assert {one.attempt for one in steps} == {1, 2}
    repeated = len(steps) - 40
    assert 0 <= repeated <= 2  # It went on from its last checkpoint; what it lost is charged again.
    assert second["rows"][-1]["mean"]["epsilon_spent"] <= 10
