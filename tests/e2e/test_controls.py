"""Methods without private training, and one without privacy: what comes out, and what may not."""

import hashlib
import json
import stat
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from rapid_dist.config import Recipe, load_recipe
from rapid_dist.retrieval.arrays import unpack_arrays
from rapid_dist.runtime import pipeline, releasing
from rapid_dist.runtime.run_directory import open_ledger
from tests.e2e.test_run import TINY

Found = dict[str, tuple[Path, dict[str, Any]]]
RUNS = {
    "references": (),
    "public_from_references": ("sampling.source=uniform", "privacy.prior_share=0"),
    "nonprivate": (),
    "dpdm": ("train.start=public", "train.multiplicity=3"),
}


def _recipe(method: str, folder: Path, *more: str) -> Recipe:
    place = f"runtime.public_dir={folder}/public"
    rows = ("runtime.backend=process", "evaluation.class_balance=false", place)
    return load_recipe("digits", [*TINY, f"method={method}", *rows, *RUNS[method], *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    return {
        method: (folder / method, pipeline.run(_recipe(method, folder), str(folder / method)))
        for method in RUNS
    }


def _samples(out: Path) -> np.ndarray:
    return unpack_arrays((out / "samples/samples.npz").read_bytes(), "samples")["images"]


def test_every_control_is_measured_as_a_method_is(found: Found) -> None:
    for method, (_, summary) in found.items():
        assert summary["method"] == method
        assert summary["quality"]["num_images"] == 100
        assert 0 <= summary["quality"]["classifiers"]["mean"] <= 1


def test_a_control_costs_what_it_reads(found: Found, folder: Path) -> None:
    ledger = open_ledger(_recipe("references", folder), str(folder / "references"))
    privacy = found["public_from_references"][1]["privacy"]
    assert (privacy["epsilon"], privacy["promise"]) == (0.0, "public")
    assert ledger.events(privacy["run"]) == []
    privacy = found["references"][1]["privacy"]
    assert (privacy["steps"], privacy["queries"]) == (0, 1)
    assert 9.5 < privacy["epsilon"] <= 10  # The whole budget: nothing is trained beside it.


def test_references_are_images_of_the_knowledge_base_and_cost_no_evaluation(found: Found) -> None:
    out, summary = found["references"]
    images = {one.tobytes() for one in _samples(out)}
    shards = (out.parent / "public").rglob("*.npz")
    held = [unpack_arrays(path.read_bytes(), path.name) for path in shards]
    public = {one.tobytes() for shard in held if "images" in shard for one in shard["images"]}
    assert images <= public
    assert summary["sampling"]["nfe"] == 0
    drawn = {one.tobytes() for one in _samples(found["public_from_references"][0])}
    assert not drawn & public  # The twin: what the network has drawn is no reference.


def test_what_is_a_control_is_neither_registered_nor_released(found: Found, folder: Path) -> None:
    for method in ("public_from_references", "references", "nonprivate"):
        out, summary = found[method]
        assert summary["registry"] == {}
        with pytest.raises(releasing.Refused) as caught:
            releasing.check(_recipe(method, folder), str(out), date.today())
        assert "method_may_leave" in caught.value.reasons
    out, summary = found["dpdm"]  # The twin: a method with a promise lacks other things.
    assert summary["registry"]["version"] == 1
    with pytest.raises(releasing.Refused) as caught:
        releasing.check(_recipe("dpdm", folder), str(out), date.today())
    assert "method_may_leave" not in caught.value.reasons


def test_a_run_without_privacy_claims_and_charges_nothing(found: Found, folder: Path) -> None:
    _, summary = found["nonprivate"]
    privacy = summary["privacy"]
    assert privacy["epsilon"] is None
    assert privacy["promise"] == "none"
    assert privacy["sentence"].startswith("No privacy:")
    ledger = open_ledger(_recipe("nonprivate", folder), str(folder / "nonprivate"))
    assert privacy["run"] not in {entry.run for entry in ledger.entries()}


def _outside(folder: Path) -> Iterator[Path]:
    """Files of all runs and stores that are in no folder which only its owner can open."""
    for path in folder.rglob("*"):
        closed = any(stat.S_IMODE(up.stat().st_mode) == 0o700 for up in path.parents if up > folder)
        if path.is_file() and not closed:
            yield path


def test_all_of_a_run_without_privacy_is_internal(found: Found) -> None:
    out, _ = found["nonprivate"]
    inside = out / "internal"
    assert stat.S_IMODE(inside.stat().st_mode) == 0o700
    assert (inside / "nonprivate/private/unet/diffusion_pytorch_model.safetensors").is_file()
    assert (inside / "nonprivate/samples.png").is_file()
    kinds = {path: stat.S_IMODE(path.stat().st_mode) for path in inside.rglob("*")}
    assert {mode for path, mode in kinds.items() if path.is_file()} == {0o600}
    assert {mode for path, mode in kinds.items() if path.is_dir()} == {0o700}
    outside = {
        path.relative_to(out).parts[0] for path in out.rglob("*") if inside not in path.parents
    }
    assert outside == {
        "config.yaml", "run.json", "stages", "metrics.jsonl", "summary.json", "lineage.json",
        "run.lock", "internal",
    }  # fmt: skip
    assert stat.S_IMODE((out / "summary.json").stat().st_mode) == 0o600


def _holding(folder: Path, parts: list[bytes], *, internal: bool) -> set[str]:
    """The files that hold one of these byte strings."""
    paths = folder.rglob("*") if internal else _outside(folder)
    return {
        path.relative_to(folder).as_posix()
        for path in paths
        if path.is_file() and any(part in path.read_bytes() for part in parts)
    }


def test_no_weight_and_no_sample_of_it_is_anywhere_else(found: Found) -> None:
    out, _ = found["nonprivate"]
    weights = out / "internal/nonprivate/private/unet/diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    images = _samples(out / "internal/nonprivate")
    parts = [content[len(content) // 2 :][:256], hashlib.sha256(content).hexdigest().encode()]
    parts += [one.tobytes() for one in images[:5]]
    assert _holding(out.parent, parts, internal=False) == set()
    here = _holding(out.parent, parts, internal=True)  # The twin: the search finds what is there.
    assert {name.split("/")[1] for name in here} == {"internal"}
    assert len(here) >= 2


def test_the_search_would_notice_a_method_that_writes_its_weights_in_the_open(
    found: Found,
) -> None:
    out, _ = found["dpdm"]
    weights = out / "private/unet/diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    assert _holding(out.parent, [content[len(content) // 2 :][:256]], internal=False)


def test_private_stages_without_privacy_tell_how_far_they_are(found: Found) -> None:
    out, _ = found["nonprivate"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    own = [line for line in lines if line["stage"] != "pretrain"]
    assert {line["stage"].split()[0] for line in own} == {"train", "generate", "evaluate"}
    assert {key for line in own for key in line} == {"stage", "step", "steps", "rows"}


def test_mlflow_is_told_no_picture_of_it(found: Found) -> None:
    out, summary = found["nonprivate"]
    told: dict[tuple[str, bool], set[str]] = {}
    for store in ("mlflow", "mlflow-internal"):
        client = MlflowClient(tracking_uri=f"sqlite:///{out.parent}/{store}.db")
        experiments = [one.experiment_id for one in client.search_experiments()]
        for run in client.search_runs(experiments):
            if run.data.tags.get("mlflow.runName") == "digits":
                mine = summary["privacy"]["run"] in str(run.data.tags)
                names = {one.path for one in client.list_artifacts(run.info.run_id)}
                told.setdefault((store, mine), set()).update(names)
    assert told["mlflow", True] == {
        "config.yaml", "lineage.json", "metrics.jsonl", "summary.json"
    }  # fmt: skip
    assert told["mlflow-internal", True] == {"quality.json"}
    assert "report.html" in told["mlflow-internal", False]  # The twin: others send their page.


@pytest.mark.slow
def test_new_samples_of_a_run_without_privacy_keep_its_weights(found: Found, folder: Path) -> None:
    out, before = found["nonprivate"]
    weights = out / "internal/nonprivate/private/unet/diffusion_pytorch_model.safetensors"
    made = weights.stat().st_mtime_ns
    again = pipeline.run(_recipe("nonprivate", folder, "sampling.count=64"), str(out))
    assert again["quality"]["num_images"] == 64
    assert weights.stat().st_mtime_ns == made
    assert len(_samples(out / "internal/nonprivate")) == 64
    assert again["seconds"]["train"] == before["seconds"]["train"]


def test_dpdm_from_public_weights_looks_for_private_images_among_the_public_ones(
    found: Found,
) -> None:
    out, summary = found["dpdm"]
    assert {"pretrain", "contamination", "train"} <= summary["seconds"].keys()
    assert summary["contamination"] == {"policy": "accept"}
    lineage = json.loads((out / "lineage.json").read_text())
    assert {"public denoiser", "extractor"} <= lineage["artifacts"].keys()
    assert lineage["knowledge_base"] == {}
    assert [one["source"] for one in lineage["public"]] == ["letters"]
