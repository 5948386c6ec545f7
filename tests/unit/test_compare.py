"""What a comparison holds equal, how it is drawn, and how memory is looked at."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapid_dist.cli.main import main
from rapid_dist.config import Recipe, load_recipe
from rapid_dist.errors import BudgetError, CheckpointError, ConfigError
from rapid_dist.methods import artifacts
from rapid_dist.methods.compare_settings import CompareConfig
from rapid_dist.privacy.accounting import epsilons, upper_bound
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdEvent
from rapid_dist.privacy.statement import rounded_up
from rapid_dist.runtime.compare import run_compare
from rapid_dist.runtime.compare_memory import PeakMemory, tree_rss
from rapid_dist.runtime.compare_piece import PieceJob
from rapid_dist.runtime.compare_plan import prepare_compare
from rapid_dist.runtime.compare_results import _cost, _one_of_each
from rapid_dist.runtime.stage_times import MADE
from rapid_dist.storage import open_storage


def _recipe(*more: str) -> Recipe:
    return load_recipe("digits", ["privacy.steps=3", "runtime.backend=process", *more])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"methods": ()}, "at least one row"),
        ({"methods": ("rapid", "rapid")}, "each once"),
        ({"methods": ("Rapid!",)}, "lower case"),
        ({"seeds": 0}, "at least 1"),
        ({"epsilons": (1.0, -1.0)}, "positive"),
        ({"variants": {"x": {"evaluation.neighbors": 3}}}, "all rows of a comparison share"),
        ({"variants": {"x": {"privacy.epsilon": 50}}}, "all rows of a comparison share"),
        ({"variants": {"x": {"privacy": {"steps": 3}}}}, "all rows of a comparison share"),
        ({"variants": {"x": {"data.private.limit": 3}}}, "all rows of a comparison share"),
        ({"epsilons": (1.0,), "budgets": {2.0: {}}}, "does not"),
        ({"epsilons": (1.0,), "budgets": {1.0: {"method": "dpdm"}}}, "one at all budgets"),
        ({"epsilons": (1.0,), "variants": {"x": {"at": {"2": {}}}}}, r"x\.at has 2, which"),
        ({"epsilons": (1.0,), "variants": {"x": {"at": {1: {"seed": 3}}}}}, "all rows of a comp"),
        ({"epsilons": (1.0,), "variants": {"x": {"at": {1: {"method": "dpdm"}}}}}, "one at all"),
        ({"variants": {"x": {"at": "soon"}}}, "must have settings for each epsilon"),
    ],
)
def test_what_would_make_rows_unequal_is_refused(settings: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        CompareConfig(**settings)


def test_what_is_a_rows_own_may_be_changed() -> None:
    own = {"data.public.0.count": 3, "train.mode": "late", "privacy.steps": 3, "method": "dpdm"}
    assert CompareConfig(variants={"x": own}).variants["x"] == own


def test_pieces_share_data_budget_seed_and_evaluation_and_differ_in_their_method(
    tmp_path: Path,
) -> None:
    prepared = prepare_compare(
        _recipe(
            "compare.methods=[rapid, steep, dpdm, public, nonprivate]",
            "compare.variants={steep: {split.split_step: 300}, dpdm: {train.multiplicity: 2}}",
            "compare.epsilons=[1, 10]",
            "compare.budgets={1: {privacy.expected_batch: 64}}",
            "compare.seeds=2",
            "compare.first_seed=5",
        ),
        str(tmp_path / "c"),
    )
    pieces = {piece.name: piece.prepared.recipe for piece in prepared.pieces}
    assert list(pieces)[:8] == [
        "rapid-1-5", "rapid-10-5", "steep-1-5", "steep-10-5", "dpdm-1-5", "dpdm-10-5",
        "public-any-5", "nonprivate-any-5",
    ]  # fmt: skip
    assert len(pieces) == 16
    for name, recipe in pieces.items():
        row, budget, seed = name.split("-")
        assert recipe.sampling.seed == recipe.evaluation.seed == int(seed)
        assert recipe.privacy.epsilon == float(budget.replace("any", "10"))
        assert recipe.privacy.expected_batch == (64 if budget == "1" else 512)
        assert recipe.data == pieces["rapid-1-5"].data
        assert recipe.evaluation.classifiers == pieces["rapid-1-5"].evaluation.classifiers
        assert recipe.evaluation.classifiers.validation_share == 0.1
        assert recipe.split.split_step == (300 if row == "steep" else 600)
        assert not recipe.tracking.register_models
    assert (pieces["dpdm-1-5"].train.mode, pieces["dpdm-1-5"].train.multiplicity) == ("full", 2)
    assert pieces["steep-1-5"].method == "rapid"
    described = prepared.described()["pieces"]
    assert described[0]["plan"]["dp_sgd"]["steps"] == 3
    assert {one["promise"] for one in described} == {"charged", "public", "none"}
    rows = {one["piece"]: one["private_rows"] for one in described}
    assert [rows[f"{name}-5"] for name in ("rapid-1", "rapid-10", "dpdm-10")] == [192, 1536, 3072]
    assert [rows["nonprivate-any-5"], rows["public-any-5"]] == [1536, None]


def test_a_row_may_have_settings_of_its_own_at_an_epsilon(tmp_path: Path) -> None:
    prepared = prepare_compare(
        _recipe(
            "compare.methods=[rapid, dpdm, nonprivate]",
            "compare.variants={dpdm: {train.multiplicity: 2, at: {1: {privacy.steps: 2}}},"
            " nonprivate: {at: {10: {train.multiplicity: 3}}}}",
            "compare.epsilons=[1, 10]",
            "compare.seeds=1",
        ),
        str(tmp_path / "c"),
    )
    found = {
        piece.name: (piece.prepared.recipe.privacy.steps, piece.prepared.recipe.train.multiplicity)
        for piece in prepared.pieces
    }
    assert found == {
        "rapid-1-0": (3, 1), "rapid-10-0": (3, 1), "dpdm-1-0": (2, 2), "dpdm-10-0": (3, 2),
        "nonprivate-any-0": (3, 1),
    }  # fmt: skip


def test_a_piece_is_done_wherever_its_data_lie_and_however_it_is_run(tmp_path: Path) -> None:
    def identity(*more: str) -> str:
        recipe = _recipe("compare.methods=[public]", "compare.seeds=1", *more)
        (piece,) = prepare_compare(recipe, str(tmp_path)).pieces
        return piece.identity

    own = identity()
    assert identity(f"data.root={tmp_path}") == own
    assert identity("runtime.workers=3", "tracking.experiment=other") == own
    assert identity("sampling.count=7") != own
    assert identity("data.reference_share=0.3") != own


def test_a_dry_run_shows_a_line_a_piece_with_its_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["compare.methods=[rapid, dp_rdm, public]", "privacy.steps=3", "compare.seeds=1"]
    arguments = [part for one in sets for part in ("--set", one)]
    assert (
        main(["compare", "-r", "digits", *arguments, "-o", str(tmp_path / "c"), "--dry-run"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: line for line in lines if "-10-0" in line or "-any-0" in line}
    assert "prior noise" in found["rapid-10-0"]
    assert "3 steps of 512 x 1, noise" in found["rapid-10-0"]
    assert "16 rounds of 32 neighbours, noise" in found["dp_rdm-10-0"]
    assert found["public-any-0"].endswith("public, public")
    assert "pieces     3" in lines
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_total_on_which_no_accountants_agree_is_bounded(tmp_path: Path) -> None:
    """A comparison of many pieces is charged more than PLD and PRV can follow."""
    delta = 1e-4  # Of the recipe.
    spent = [DpSgdEvent(sample_rate=0.5, noise_multiplier=0.3, steps=600)]
    with pytest.raises(BudgetError, match="accountants disagree"):
        epsilons(spent, delta)
    bound = upper_bound(spent, delta)
    few = [replace(spent[0], steps=2)]
    assert epsilons(few, delta).rdp == upper_bound(few, delta) >= epsilons(few, delta).pld
    assert 1_000 < bound < 10_000
    ledger = Ledger.open(tmp_path / "ledger", "digits")
    ledger.append("query", "other", attempt=ledger.begin_attempt("other"), event=spent[0])
    prepared = prepare_compare(_recipe("compare.methods=[public]"), str(tmp_path / "c"))
    for whole in (False, True):
        cost = _cost(prepared.recipe, prepared.places, (), whole=whole)
        assert f"at most {rounded_up(bound)}: bounds by Rényi divergences" in cost["sentence"]
        assert "epsilon" not in cost


def test_a_row_that_is_no_method_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Row 'dpmd' at epsilon 10: It is neither a method"):
        prepare_compare(_recipe("compare.methods=[dpmd]"), str(tmp_path))
    with pytest.raises(ConfigError, match=r"Row 'x' at epsilon 10: .*split\.split_step"):
        prepare_compare(
            _recipe("compare.methods=[x]", "compare.variants={x: {split.split_step: 900}}"),
            str(tmp_path),
        )


QUALITY: dict[str, Any] = {
    "extractor": "pixels",
    "fidelity_label": "FID-like, not FID",
    "fidelity_images": 20,
    "samples": {
        "classifiers": {"logistic": 0.1, "mlp": 0.2, "cnn": 0.3, "mean": 0.2, "best": 0.3},
        "fidelity": {"frechet_distance": 2.0, "coverage": 0.5},
        "memorisation": {"median_ratio": 1.1, "exact_copies": 0},
    },
}


def _pretend(job: PieceJob) -> None:
    """Leaves what a piece leaves that has run; that of the second seed fails."""
    if job.name.endswith("-1"):
        raise BudgetError("There is no budget for it.")
    storage = open_storage(job.out)
    artifacts.put_images(
        storage, "samples/samples.npz", np.zeros((20, 1, 8, 8), np.uint8), np.arange(20) % 10
    )
    summary = {
        "quality": QUALITY["samples"],
        "seconds": {"pretrain": 5.0, "contamination": 7.0, "generate": 2.0, "evaluate": 9.0},
        "sampling": {"nfe": 4},
        "privacy": {"epsilon": 0.0},
    }
    storage.write("summary.json", json.dumps(summary).encode())
    storage.write("internal/quality.json", json.dumps(QUALITY).encode())


def test_a_failed_piece_is_told_and_tried_again_and_all_is_its_owners_alone(tmp_path: Path) -> None:
    out, asked = tmp_path / "c", []

    def run_one(job: PieceJob) -> None:
        asked.append(job.name)
        _pretend(job)

    recipe = _recipe("compare.methods=[public]", "compare.seeds=3", "compare.epsilons=[1, 10]")
    said: list[str] = []

    def looked_at(job: PieceJob) -> None:
        if (out / "compare.md").exists():
            said.append((out / "compare.md").read_text())
        run_one(job)

    result = run_compare(recipe, str(out), run_one=looked_at)
    assert len(said) == 2
    assert all("So far the charged pieces of this comparison, 0, together" in one for one in said)
    assert asked == ["public-any-0", "public-any-1", "public-any-2"]
    assert [one["state"] for one in result["pieces"]] == ["done", "failed", "done"]
    (row,) = result["rows"]
    assert (row["seeds"], row["of"], row["mean"]["seconds"]) == (2, 3, 2.0)
    assert row["mean"]["public_seconds"] is None  # Nobody has noted it.
    assert result["cost"]["sentence"].startswith("No piece of this comparison was charged")
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    for name in ("compare.json", "compare.html", "compare.svg", "compare-samples.png"):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o600
    page = (out / "compare.html").read_text()
    assert "There is no budget for it." in page
    assert "What was held equal" in page
    assert "sampling.source=noise" in page  # Of the method, where the row says nothing.
    again = run_compare(recipe, str(out), run_one=run_one)
    assert asked[3:] == ["public-any-1"]
    assert again["rows"] == result["rows"]


def test_a_torn_file_of_a_piece_is_named_with_what_to_do(tmp_path: Path) -> None:
    recipe, out = _recipe("compare.methods=[public]"), tmp_path / "c"
    run_compare(recipe, str(out), run_one=_pretend)
    for name in ("piece.json", "summary.json", "internal/quality.json"):
        file = out / "pieces" / "public-any-0" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:9])
        with pytest.raises(CheckpointError, match=f"public-any-0/{name} is torn. Delete it"):
            run_compare(recipe, str(out), run_one=_pretend)
        file.write_bytes(whole)
    run_compare(recipe, str(out), run_one=_pretend)


def test_a_public_stage_takes_as_long_as_it_took_whoever_made_it(
    tmp_path: Path,
) -> None:
    recipe = _recipe("compare.methods=[public]", "compare.seeds=1")
    out = str(tmp_path / "c")
    (piece,) = prepare_compare(recipe, out).pieces
    public = open_storage(piece.prepared.places.public)
    made = public.child(artifacts.pretrain_name(piece.prepared.settings))
    made.write(MADE, b'{"seconds": 11.5}')
    (row,) = run_compare(recipe, out, run_one=_pretend)["rows"]
    assert (row["mean"]["public_seconds"], row["mean"]["seconds"]) == (11.5, 2.0)
    made.write(MADE, b'{"sec')
    with pytest.raises(CheckpointError, match=f"{MADE} is torn. Delete it"):
        run_compare(recipe, out, run_one=_pretend)


def test_a_row_of_samples_shows_the_classes_in_turn() -> None:
    labels = np.array([2, 0, 0, 1, 2, 1, 0])
    assert labels[_one_of_each(labels, 3)].tolist() == [0, 1, 2, 0, 1, 2, 0]


def _process(proc: Path, pid: int, pages: int, *children: int) -> None:
    (proc / str(pid) / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
    (proc / str(pid) / "statm").write_text(f"900 {pages} 1 1 0 1 0\n")
    listed = " ".join(str(child) for child in children)
    (proc / str(pid) / "task" / str(pid) / "children").write_text(listed)


def test_memory_is_that_of_a_process_and_all_below_it(tmp_path: Path) -> None:
    _process(tmp_path, 1, 100, 2, 3)
    _process(tmp_path, 2, 10, 4)
    _process(tmp_path, 4, 1)  # Process 3 has ended between the two looks.
    page = os.sysconf("SC_PAGE_SIZE")
    assert tree_rss(1, tmp_path) == {1: 100 * page, 2: 10 * page, 4: page}
    assert tree_rss(77, tmp_path) == {}


def test_a_process_that_is_seen_once_may_be_a_copy_and_does_not_count(tmp_path: Path) -> None:
    own, page = os.getpid(), os.sysconf("SC_PAGE_SIZE") / 2**30
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text("VmHWM:\t1 kB\n")
    peak = PeakMemory(tmp_path)

    def gb_after(pages: int, *children: int) -> float | None:
        _process(tmp_path, own, pages, *children)
        peak.look()
        return peak.figures()["rss_gb"]

    _process(tmp_path, 2, 500_000)
    assert gb_after(400_000) == pytest.approx(0, abs=1e-3)
    assert gb_after(400_000, 2) == pytest.approx(400_000 * page, abs=1e-3)
    assert gb_after(400_000) == pytest.approx(400_000 * page, abs=1e-3)
    assert gb_after(400_000, 2) == pytest.approx(400_000 * page, abs=1e-3)
    assert gb_after(400_000, 2) == pytest.approx(900_000 * page, abs=1e-3)


def test_a_peak_is_seen_after_it_is_over() -> None:
    # In a process of its own: this one may have freed memory of other tests at hand.
    code = (
        "import os, time\nimport numpy as np\n"
        "from rapid_dist.runtime.compare_memory import LOOK_SEC, PeakMemory, tree_rss\n"
        "before = tree_rss(os.getpid())[os.getpid()] / 2**30\n"
        "with PeakMemory() as peak:\n"
        "    held = np.ones(300_000_000, np.uint8)\n"
        "    time.sleep(4 * LOOK_SEC)\n"
        "    del held\n"
        "assert peak.figures()['rss_gb'] > before + 0.2\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_small_piece_of_a_large_parent_is_small() -> None:
    code = (
        "import resource, subprocess, sys\n"
        "held = bytearray(b'1') * 900_000_000\n"
        "ask = 'from rapid_dist.runtime.compare_memory import PeakMemory\\n'\n"
        "ask += 'import resource\\nprint(PeakMemory().figures()[\"rss_gb\"])\\n'\n"
        "ask += 'print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)'\n"
        "subprocess.run([sys.executable, '-c', ask], check=True)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    own, inherited = map(float, told.stdout.split())
    assert own < 0.7 < inherited  # The second figure is what must not be asked for.
