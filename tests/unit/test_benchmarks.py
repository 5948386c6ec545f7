"""The benchmarks' own arithmetic, and that those for a GPU ask for no cluster."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from rapid_dist.config import Recipe, load_recipe, method_settings, to_tree
from rapid_dist.methods.catalog import check_method
from rapid_dist.release.plots import GAP, ImageSet, samples_png
from rapid_dist.runtime.compare_plan import recipe_of
from rapid_dist.runtime.run_directory import Places

ROOT = Path(__file__).resolve().parents[2]
# What a machine with a GPU may lack; to whoever looks for one of them it is not there.
ABSENT = (
    "ray", "mlflow", "faiss", "pydantic", "opacus", "dp_accounting", "scipy", "sklearn", "boto3",
    "cryptography", "matplotlib", "torchmetrics",
)  # fmt: skip
# The pieces that run the whole loop need Opacus' list of layers, and what the ledger needs.
LOOP = ("ray", "mlflow", "faiss", "pydantic", "matplotlib", "torchmetrics")
WITHOUT = """
import sys
class Without:
    def __init__(self, inner):
        self.inner = inner
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            return None
        return self.inner.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.inner, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def _benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run_without(
    absent: tuple[str, ...], folder: Path, *argv: str
) -> subprocess.CompletedProcess[str]:
    """Runs the pieces where nobody, no process that they start either, finds certain vendors."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(WITHOUT.format(absent=set(absent)))
    path = str(ROOT / "benchmarks" / "gpu" / "run.py")
    env = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, path, *argv], capture_output=True, text=True, env=env)


@pytest.mark.slow
def test_a_gpu_piece_is_rehearsed_where_vendors_are_lacking(tmp_path: Path) -> None:
    done = _run_without(ABSENT, tmp_path, "step-mnist-16", "--rehearse", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "left out, Opacus is not there: opacus hooks" in done.stdout
    found = json.loads((tmp_path / "step-mnist-16.json").read_text())
    assert {row["way"] for row in found["rows"]} == {"plain", "ours", "vmap", "reference"}
    assert all(row["seconds"] > 0 for row in found["rows"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("piece", "absent"),
    [("shapes-cifar", ABSENT), ("shapes-latents", ABSENT), ("parts-mnist-1", LOOP)],
)
def test_a_gpu_piece_of_each_kind_is_rehearsed_where_vendors_are_lacking(
    piece: str, absent: tuple[str, ...], tmp_path: Path
) -> None:
    done = _run_without(absent, tmp_path, piece, "--rehearse", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / f"{piece}.json").read_text())["rows"]


@pytest.mark.slow
def test_a_gpu_piece_of_quality_stops_after_its_minutes_and_goes_on(tmp_path: Path) -> None:
    own = ["quality-mnist-1", "--rehearse", "--out", str(tmp_path), "--runs", str(tmp_path / "r")]
    result, absent = tmp_path / "quality-mnist-1.json", ("ray",)
    cut = _run_without(absent, tmp_path, *own, "--minutes", "0.1")
    assert cut.returncode == 0, cut.stderr
    assert "not whole after" in cut.stdout
    assert not result.exists()
    done = _run_without(absent, tmp_path, *own)
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert [row["epsilon"] for row in found["rows"]] == [1.0] * 3
    assert [row["row"] for row in found["rows"]] == ["rapid", "references", "adapted"]
    assert 0 <= found["rows"][0]["mean"] <= 1
    assert found["minutes"] > 0.1  # Of both calls.


@pytest.mark.slow
def test_a_gpu_piece_of_quality_says_what_is_lacking(tmp_path: Path) -> None:
    lacking = ("opacus", "pydantic", "mlflow")
    done = _run_without(lacking, tmp_path, "quality-cifar10-10", "--rehearse")
    assert done.returncode != 0
    assert "pydantic, opacus, mlflow not installed" in done.stderr


def test_the_gpu_pieces_are_listed_where_vendors_are_lacking(tmp_path: Path) -> None:
    done = _run_without(ABSENT, tmp_path, "--list")
    assert done.returncode == 0, done.stderr
    listed = done.stdout.split()
    assert {"step-cifar-16", "shapes-latents", "parts-mnist-1", "quality-mnist-10"} <= set(listed)


def test_the_list_would_notice_a_vendor_that_is_needed(tmp_path: Path) -> None:
    assert _run_without(("diffusers",), tmp_path, "--list").returncode != 0


@pytest.mark.parametrize("rehearse", [False, True])
def test_every_gpu_piece_of_quality_is_a_comparison_that_can_be_planned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rehearse: bool
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    quality = _benchmark("gpu/quality")
    where = Places(out="runs/c", public="runs/public", ledger="runs/ledger")
    for recipe, epsilon in itertools.product(quality.LARGE, (1.0, 10.0)):
        settings = [
            *quality.LARGE[recipe], *quality.SMALL_BUDGET.get((recipe, epsilon), ()),
            *quality.SAFE, *quality.CLASSIFIERS, *(quality.REHEARSAL if rehearse else ()),
        ]  # fmt: skip
        compared = [
            f"compare.methods={json.dumps(list(quality.ROWS))}", f"compare.epsilons=[{epsilon:g}]",
            f"compare.variants={json.dumps(quality.VARIANTS)}", "compare.seeds=1",
        ]  # fmt: skip
        loaded = load_recipe(recipe, [*settings, *compared, "runtime.backend=process"])
        for row in quality.ROWS:
            check_method(method_settings(recipe_of(loaded, where, row, epsilon, 0)))


def test_a_gpu_piece_has_the_budgets_own_settings_of_the_comparison(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    pieces = _benchmark("gpu/quality").SMALL_BUDGET
    own = dict(one.split("=") for one in pieces[("mnist", 1.0)])
    parts = _benchmark("compare_parts")
    assert {name: yaml.safe_load(one) for name, one in own.items()} == parts.MNIST_BUDGETS[1]


def test_every_row_of_every_part_of_the_comparison_is_a_recipe_of_its_method(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    compare = _benchmark("compare")
    parts = compare.parts()
    assert {"digits", "mnist", "pneumonia", "mnist-10k-prior", "digits-ablations"} <= set(parts)
    options = compare.options_of().parse_args(["--backend", "process"])
    where = Places(out="runs/c", public="runs/public", ledger="runs/ledger")
    for name, part in parts.items():
        recipe = compare.recipe_of(name, part, options)
        draws: dict[float, set[int]] = {epsilon: set() for epsilon in part.epsilons}
        for row in part.rows:
            for epsilon in part.epsilons:
                own = recipe_of(recipe, where, row, epsilon, 0)
                check_method(method_settings(own))
                assert own.data.private.name == ("mnist-10k-14" if "10k" in name else part.recipe)
                if not row.startswith("multiplicity"):  # Which is to see what more of them buy.
                    steps, batch = own.privacy.steps, own.privacy.expected_batch
                    assert steps is not None
                    assert batch is not None
                    draws[epsilon].add(int(steps * batch * own.train.rows_per_record))
        assert all(len(found) == 1 for found in draws.values()), (name, draws)


def test_a_new_row_takes_the_place_of_that_of_its_name(tmp_path: Path) -> None:
    path, output = tmp_path / "rows.json", _benchmark("output")
    old = [{"way": "plain", "K": 1, "seconds": 1.0}, {"way": "ours", "K": 1, "seconds": 2.0}]
    output.write_json(path, {"rows": old})
    found = output.merged(path, [{"way": "ours", "K": 1, "seconds": 3.0}], ("way", "K"))
    assert [row["seconds"] for row in found] == [1.0, 3.0]
    assert output.merged(tmp_path / "none.json", old, ("way", "K")) == old


def test_the_clocked_loop_is_the_real_one_and_its_parts_fill_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    parts = _benchmark("step_parts")
    found = parts.run(
        parts.Setting(network="digits", small=True, batch=8, micro_batch=4, steps=2, draws=2)
    )
    assert sum(found[part] for part in parts.PARTS) == pytest.approx(found["step"], rel=0.5)
    assert found["reduced bytes"] == 4 * found["values"]
    assert min(found[part] for part in ("compute", "rows", *parts.BESIDE)) > 0


def test_a_table_takes_the_place_of_the_one_before_in_a_document() -> None:
    output = _benchmark("output")
    marks = "before\n<!-- one: begin -->{}<!-- one: end -->\nafter\n"
    new = output.in_document(marks.format("\n\nold\n\n"), "one", "| new |")
    assert new == marks.format("\n\n| new |\n\n")
    assert output.in_document(new, "one", "| new |") == new
    with pytest.raises(ValueError, match="has no <!-- two: begin -->"):
        output.in_document(new, "two", "")


def _comparison(*seeds: int, rows: tuple[str, ...] = ("rapid",), **recipe: Any) -> dict[str, Any]:
    pieces = [
        {
            "piece": f"{row}-1-{seed}", "row": row, "method": "rapid", "promise": "charged",
            "epsilon": 1.0, "seed": seed, "state": "done", "figures": {"mean": float(seed)},
            "changes": recipe.get("variants", {}).get(row, {}),
        }
        for row in rows
        for seed in seeds
    ]  # fmt: skip
    settings = to_tree(_compared(*seeds, rows=rows, **recipe))
    cost = {"pieces": len(pieces), "sentence": "It cost much."}
    return {"pieces": pieces, "command": f"seeds {seeds}", "settings": settings, "cost": cost}


def _compared(
    *seeds: int,
    rows: tuple[str, ...] = ("rapid",),
    variants: dict[str, Any] | None = None,
    steps: int = 5,
    workers: int = 1,
) -> Recipe:
    compare = {
        "methods": rows, "seeds": len(seeds), "first_seed": seeds[0], "epsilons": [1.0],
        "variants": variants or {},
    }  # fmt: skip
    return load_recipe(
        "digits",
        [
            f"privacy.steps={steps}",
            f"runtime.workers={workers}",
            f"compare={json.dumps(compare)}",
        ],
    )


def test_a_later_go_of_a_comparison_adds_seeds_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = _benchmark("compare_add")
    first, second = _comparison(0, 1), _comparison(2)
    both = module.added(first, second)
    assert [(one["row"], one["mean"]["mean"], one["seeds"]) for one in both["rows"]] == [
        ("rapid", 1.0, 3)
    ]
    other = _comparison(0, rows=("dpdm",))
    every = module.added(both, other)
    assert every["methods"] == ["rapid", "dpdm"]
    assert [one["command"] for one in every["earlier"]] == ["seeds (0, 1)", "seeds (2,)"]
    assert [one["cost"]["pieces"] for one in every["earlier"]] == [2, 1]
    assert every["cost"]["of"].startswith("the pieces of this command alone")


def test_a_sheet_shows_the_latest_piece_of_each_rows_first_seed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = _benchmark("compare_add")

    def sheet(gray: int, *names: str) -> bytes:
        images = np.full((10 * len(names), 1, 4, 4), gray, np.uint8)
        labels = np.repeat(np.arange(len(names)), 10)
        return samples_png(ImageSet(images=images, labels=labels), names)

    def shown(path: Path) -> dict[str, Any]:
        """Returns the gray of each row's last image."""
        with Image.open(path) as page:
            names, height = json.loads(page.info["rows"]), page.height
            step = (height - GAP) // len(names)
            pixels = page.convert("L")
            return {
                name: pixels.getpixel((page.width - GAP - 9, GAP + place * step + step // 2 - 3))
                for place, name in enumerate(names)
            }

    path = tmp_path / "sheet.png"
    first = _comparison(0, rows=("rapid", "dpdm"))
    module.write_sheet(path, sheet(100, "rapid at 1", "dpdm at 1"), first, None)
    assert shown(path) == {"rapid at 1": 100, "dpdm at 1": 100}
    other_seed = _comparison(1, rows=("rapid",))
    module.write_sheet(path, sheet(50, "rapid at 1"), other_seed, first)
    assert shown(path) == {"rapid at 1": 100, "dpdm at 1": 100}
    both = module.added(first, other_seed)
    anew = _comparison(0, rows=("dpdm", "public"))
    module.write_sheet(path, sheet(200, "dpdm at 1", "public at 1"), anew, both)
    assert shown(path) == {"rapid at 1": 100, "dpdm at 1": 200, "public at 1": 200}


def test_a_go_with_other_settings_does_not_join_a_comparison(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = _benchmark("compare_add")
    earlier = _comparison(0, rows=("rapid", "dpdm"), variants={"dpdm": {"train.multiplicity": 4}})
    del earlier["settings"]["prior"]["nearest"]  # As a file has it that is older than the setting.
    module.require_same(earlier, _compared(1, 2, workers=3))
    with pytest.raises(SystemExit, match="differ in privacy"):
        module.require_same(earlier, _compared(1, steps=6))
    both = ("rapid", "dpdm")
    module.require_same(
        earlier, _compared(1, rows=both, variants={"dpdm": {"train.multiplicity": 4}})
    )
    changed = {"dpdm": {"train.multiplicity": 8}}
    with pytest.raises(SystemExit, match="differ in dpdm at 1"):
        module.require_same(earlier, _compared(1, rows=both, variants=changed))
    with pytest.raises(SystemExit, match="differ in dpdm at 1"):
        module.require_same(earlier, _compared(1, rows=both))
    # All of the row is made anew.
    module.require_same(earlier, _compared(0, rows=("dpdm",), variants=changed))


def test_a_piece_that_failed_does_not_leave_one_of_other_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = _benchmark("compare_add")
    later = _comparison(0, variants={"rapid": {"train.multiplicity": 4}})
    later["pieces"][0] |= {"state": "failed", "figures": {}}
    both = module.added(_comparison(0, 1), later)
    assert [one["state"] for one in both["pieces"]] == ["failed", "done"]


def test_a_piece_that_failed_later_leaves_the_one_that_was_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = _benchmark("compare_add")
    later = _comparison(0, 1)
    later["pieces"][0] |= {"state": "failed", "figures": {}}
    later["pieces"][1]["figures"] = {"mean": 5.0}
    both = module.added(_comparison(0, 1), later)
    assert [one["figures"]["mean"] for one in both["pieces"]] == [0.0, 5.0]
