"""``rapid-dist audit``: the checks of audit/ on a recipe, and a whole tiny run for its silence.

Everything is made of planted or public images; the recipe's private data are not opened.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rapid_dist import __version__
from rapid_dist.audit.markers import Markers, random_markers
from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.audit.silence import Pipeline
from rapid_dist.audit.suite import Checks, IndexSuite, OnCheck, Suite, run_suite, to_json
from rapid_dist.config import Recipe, method_settings, parse_recipe, recipe_hash, to_tree
from rapid_dist.installed import code_hash
from rapid_dist.methods.audit_subject import audit_subject
from rapid_dist.methods.catalog import has_stage, plan_of, require_releasable
from rapid_dist.methods.index_audit import index_subject
from rapid_dist.privacy.accounting import PrivacyPlan
from rapid_dist.private.step import ClippedSum
from rapid_dist.release.report_audit import with_audit
from rapid_dist.runtime import pipeline
from rapid_dist.runtime.recorded_commands import record_audit
from rapid_dist.runtime.results import AUDIT
from rapid_dist.runtime.run_directory import places, require_folder
from rapid_dist.storage import StorageMissing, open_storage

REPORTS = ("report.html", "internal/report.html")
SOURCE = "planted-source"
TINY_RUN = "runs/tiny"
TRAIN, HELD_OUT = 40, 12
_TRACKING = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What came of an audit; ``content`` is audit.json."""

    results: list[CheckResult]
    content: dict[str, Any]
    unrecorded: str = ""  # Why MLflow does not have it, if it should.


def run_audit(
    recipe: Recipe, out: str, profile: Profile, on_check: OnCheck = lambda *_: None
) -> Audit:
    """Runs all checks on a recipe; writes audit.json, and the reports' section, to ``out``.

    Raises:
      ConfigError: the recipe has nothing to try.
    """
    out = places(recipe, out).out
    require_folder(out, "--out")
    require_releasable(method_settings(recipe), "audit")
    solved = plan_of(method_settings(recipe))
    with _suite(recipe, solved, profile) as suite:
        results = run_suite(suite, on_check)
    content = audit_content(recipe, solved, profile, results)
    _write(out, content)
    unrecorded = record_audit(open_storage(out), content)
    return Audit(results=results, content=content, unrecorded=unrecorded)


@contextlib.contextmanager
def _suite(recipe: Recipe, solved: PrivacyPlan, profile: Profile) -> Iterator[Checks]:
    """Yields the checks of the mechanism that the recipe's method rests on."""
    settings, pipeline = method_settings(recipe), planted_pipeline(recipe)
    if has_stage(settings, "answers"):
        subject = index_subject(settings, solved)
        yield IndexSuite(subject=subject, pipeline=pipeline, profile=profile)
        return
    with audit_subject(settings, solved) as trained:
        yield Suite(subject=trained, pipeline=pipeline, profile=profile)


def audit_content(
    recipe: Recipe, solved: PrivacyPlan, profile: Profile, results: Sequence[CheckResult]
) -> dict[str, Any]:
    """Returns audit.json: what was answered, and of which code and which recipe."""
    return {
        "recipe": recipe.name,
        "recipe_hash": recipe_hash(recipe),
        "profile": profile,
        "created": date.today().isoformat(),
        "code": __version__,
        "code_hash": code_hash(),
        "mechanism": None if solved.stepped is None else asdict(solved.stepped),
        "budget": asdict(solved.budget),
        **to_json(results),
    }


def _write(out: str, content: dict[str, Any]) -> None:
    storage = open_storage(out)
    storage.write(AUDIT, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")
    for name in REPORTS:
        with contextlib.suppress(StorageMissing):
            page = with_audit(storage.read(name).decode(), content)
            private = name.startswith("internal/")
            open_storage(out, private=private).write(name, page.encode())


def planted_pipeline(recipe: Recipe) -> Pipeline:
    """Returns a whole run of a tiny form of the recipe, on images that nobody has seen."""
    classes = min(recipe.data.private.num_classes, 4)
    side = recipe.data.private.size
    shape = (recipe.data.private.channels, side, side)
    markers = random_markers(TRAIN + HELD_OUT, shape, classes, np.random.default_rng())

    def run(folder: Path, engine: ClippedSum) -> None:
        _plant(folder / SOURCE, markers, classes)
        with _without_server():
            pipeline.run(tiny_recipe(recipe, folder), str(folder / TINY_RUN), engine=engine)

    def run_broken(folder: Path) -> None:
        _plant(folder / SOURCE, markers, classes)
        torn = next((folder / SOURCE / "train").rglob("*.png"))
        torn.write_bytes(torn.read_bytes()[:40])
        with _without_server():
            pipeline.run(tiny_recipe(recipe, folder), str(folder / TINY_RUN))

    return Pipeline(
        markers=markers,
        run=run,
        run_broken=run_broken,
        source=SOURCE,
        internal=f"{TINY_RUN}/internal",
    )


def tiny_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """Returns the recipe with everything that costs time made small, on the planted images.

    What shapes the course of a run stays: method, mode, retrieval, prior, noise and sampling.
    """
    tree = to_tree(recipe)
    private = recipe.data.private
    tree["name"] = "tiny"
    tree["data"] = {
        "private": {
            "source": "folder",
            "name": "planted",
            "path": str(folder / SOURCE),
            "num_records": TRAIN,
            "num_classes": min(private.num_classes, 4),
            "size": private.size,
            "channels": private.channels,
        },
        "public": [{"source": "letters", "count": 200}],
        "reference_share": recipe.data.reference_share,
    }
    tree["network"] |= {
        "widths": [16], "attention": [recipe.network.attention[-1]], "norm_groups": 4,
        "head_width": 8, "layers_per_block": 1,
    }  # fmt: skip
    for stage in ("pretrain", "contrast", "adapt"):
        tree[stage] |= {"steps": 2, "batch_size": 16}
    if tree["autoencoder"] is not None:
        tree["autoencoder"] |= {"steps": 2, "batch_size": 16}
    tree["knowledge_base"] |= {"clusters": 6, "num_shards": 2, "variants": 1}
    tree["privacy"] |= {
        "unit": "record", "delta": min(recipe.privacy.delta, 0.5 / TRAIN), "steps": 5,
        "expected_batch": TRAIN / 2, "noise_multiplier": None, "reserve_steps": 0,
    }  # fmt: skip
    tree["train"] |= {
        "micro_batch": TRAIN, "images_per_group": 1, "checkpoint_every": 2, "blocks": None
    }  # fmt: skip
    tree["private_index"] |= {"rounds": 3}
    tree["conditional"] |= {"steps": 2, "batch_size": 16}
    tree["sampling"] |= {"count": 24, "late_intervals": 2, "early_intervals": 2}
    # By chance alone a planted run must not be refused, nor lose its only source.
    tree["contamination"] |= {"most_units": 1e6}
    tree["evaluation"] |= {"features": "pixels", "fidelity_images": 24, "memorisation_images": 12}
    tree["evaluation"]["classifiers"] |= {"steps": 2, "logistic_iterations": 2}
    tree["runtime"] = {"backend": "process", "workers": 1}
    tree["tracking"] = {}
    return parse_recipe(tree)


def _plant(source: Path, markers: Markers, classes: int) -> None:
    """Writes the markers as files: train/class/name.png, and a test part."""
    for number, (image, name) in enumerate(zip(markers.images, markers.names, strict=True)):
        part = "train" if number < TRAIN else "test"
        folder = source / part / (f"class-{number % classes}" if classes else "")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        (folder / f"{name}.png").write_bytes(file.getvalue())


@contextlib.contextmanager
def _without_server() -> Iterator[None]:
    """A tiny run is recorded in its own folder, whatever server the shell names."""
    before = os.environ.pop(_TRACKING, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_TRACKING] = before
