"""Whole runs with the private images planted in a public source: refused, or gone on without it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapid_dist.config import Recipe, load_recipe, method_settings
from rapid_dist.data.images import content_hashes
from rapid_dist.data.sources import load_private
from rapid_dist.errors import ConfigError, ReleaseError
from rapid_dist.methods import artifacts
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.runtime import pipeline
from rapid_dist.runtime.run_directory import open_ledger
from rapid_dist.storage import open_storage
from tests.e2e.test_run import TINY


def _recipe(folder: Path, policy: str, *more: str) -> Recipe:
    """Letters and, under another name, the very digits that are private."""
    planted = f"{{source: npz, path: {folder}/scraped.npz}}"
    return load_recipe(
        "digits",
        [
            *TINY,
            f"data.public=[{{source: letters, count: 600}}, {planted}]",
            f"contamination.policy={policy}",
            "privacy.contamination_noise=20",
            f"runtime.public_dir={folder}/public",
            "runtime.backend=process",
            "evaluation.controls=false",
            *more,
        ],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    train, _ = load_private(method_settings(load_recipe("digits")).private, None)
    np.savez(place / "scraped.npz", images=train.images)
    return place


@pytest.fixture(scope="module")
def dropped(folder: Path) -> tuple[Path, dict[str, Any]]:
    out = folder / "drop"
    return out, pipeline.run(_recipe(folder, "drop"), str(out))


def _private_references(folder: Path, recipe: Recipe, hashes: set[bytes]) -> int:
    settings = method_settings(recipe)
    place = open_storage(folder / "public").child(artifacts.knowledge_base_name(settings))
    held = {bytes(row) for row in KnowledgeBase.open(place).reference_hashes}
    return len(held & hashes)


def test_a_source_of_private_images_is_dropped_and_nothing_of_it_is_released(
    folder: Path, dropped: tuple[Path, dict[str, Any]]
) -> None:
    out, _ = dropped
    decision = json.loads((out / "contamination" / "decision.json").read_text())
    assert decision["condemned"] == [1]
    recipe = _recipe(folder, "drop")
    private = set(content_hashes(load_private(recipe.data.private, None)[0].images))
    with np.load(out / "bundle" / "references.npz") as arrays:
        assert not set(content_hashes(arrays["images"])) & private
    # It would have been: the knowledge base that was there before the decision holds hundreds.
    assert _private_references(folder, recipe, private) > 300


def test_the_counts_are_in_the_ledger_and_in_what_is_claimed(
    folder: Path, dropped: tuple[Path, dict[str, Any]]
) -> None:
    out, summary = dropped
    privacy = summary["privacy"]
    assert (privacy["queries"], privacy["contamination_noise_multiplier"]) == (2, 20.0)
    assert 0 < privacy["epsilon"] <= 10
    entries = open_ledger(_recipe(folder, "drop"), str(out)).entries()
    own = [entry for entry in entries if entry.run == privacy["run"]]
    notes = [entry.note for entry in own if entry.kind == "query"]
    assert notes == ["near-duplicates by public source", "prior histogram"]
    assert "noise multiplier of the counts of near-duplicates" in (out / "report.html").read_text()


def test_a_run_with_a_dropped_source_is_gone_on_with_for_nothing(
    folder: Path, dropped: tuple[Path, dict[str, Any]]
) -> None:
    out, before = dropped
    found = (out / "internal" / "contamination.json").read_bytes()
    again = pipeline.run(_recipe(folder, "drop", "sampling.count=90"), str(out))
    assert again["privacy"]["epsilon"] == before["privacy"]["epsilon"]
    assert again["sampling"]["images"] == 90
    assert (out / "internal" / "contamination.json").read_bytes() == found


def test_refusing_ends_the_run_before_anything_else_is_asked(folder: Path) -> None:
    out = folder / "refuse"
    recipe = _recipe(folder, "refuse")
    for _ in range(2):
        # 1,432 and noise of 20. Below 1500 it is but 2,999 times in 3,000.
        with pytest.raises(ReleaseError, match=r"Public sources npz 1[2-6]\d\d\.\d:"):
            pipeline.run(recipe, str(out))
    events = open_ledger(recipe, str(out)).events(json.loads((out / "run.json").read_text())["run"])
    assert len(events) == 1
    assert not (out / "prior").exists()
    with pytest.raises(ConfigError, match=r"begun with contamination\.policy='refuse'"):
        pipeline.run(_recipe(folder, "drop"), str(out))
