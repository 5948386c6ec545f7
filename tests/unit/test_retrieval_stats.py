"""What is said of a knowledge base is what was planted in it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from rapid_dist.data.images import PublicImages
from rapid_dist.public.build import build_knowledge_base
from rapid_dist.release.distances import histogram_png
from rapid_dist.retrieval.features import pixel_features
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.stats import KnowledgeBaseStats, diversity, index_line, measure
from rapid_dist.storage import LocalStorage
from tests.knowledge import knowledge_base_spec, reference_images


def _embed(states: torch.Tensor) -> np.ndarray:
    """Keys that forget the noise: rounded to the planted images' own values, -1 or 1."""
    return torch.sign(states.mean(dim=(2, 3)).repeat(1, 4) * torch.ones(4)).numpy()


def _stats(folder, reference: PublicImages, embed=_embed) -> KnowledgeBaseStats:
    storage = LocalStorage(folder)
    build_knowledge_base(
        reference, knowledge_base_spec(), embed, storage, features_of=pixel_features
    )
    return measure(KnowledgeBase.open(storage), storage)


def _flat_keys(states: torch.Tensor) -> np.ndarray:
    keys: np.ndarray = states.flatten(1).numpy()
    return keys


def test_counts_sizes_and_balance_are_those_of_the_shards(tmp_path):
    reference = reference_images()
    stats = _stats(tmp_path, reference, _flat_keys)
    assert (stats.entries, stats.images, stats.shards, stats.key_dim) == (180, 90, 5, 64)
    assert stats.vector_bytes == 180 * 64 * 4
    assert stats.class_sizes == {
        label: int(count) for label, count in enumerate(np.bincount(reference.labels))
    }
    assert stats.class_balance == pytest.approx(max(stats.class_sizes.values()) / (90 / 4))
    assert stats.shard_balance >= 1
    assert stats.inherited_shards == 0


def test_no_entry_of_random_images_equals_another_and_planted_copies_do(tmp_path):
    reference = reference_images()
    alone = _stats(tmp_path / "alone", reference, _flat_keys)
    assert (alone.duplicate_images, alone.duplicate_keys) == (0, 0)
    assert len(alone.nearest) == alone.sampled == 180
    copies = reference.replaced(
        np.concatenate([reference.images, reference.images[:7]]),
        np.concatenate([reference.labels, (reference.labels[:7] + 1) % 4]),
    )
    # A copy under another label is the same image: it counts, and is nobody's neighbour.
    planted = _stats(tmp_path / "copies", copies, _flat_keys)
    assert (planted.duplicate_images, planted.duplicate_keys) == (7, 0)
    collapsed = _stats(tmp_path / "collapsed", reference)  # An extractor that tells nothing apart.
    assert collapsed.duplicate_keys > 150


def test_distances_are_to_another_image_and_not_to_the_other_seed_of_ones_own(tmp_path):
    def by_image(states: torch.Tensor) -> np.ndarray:
        return np.zeros((len(states), 3), np.float32) + np.arange(3, dtype=np.float32)

    stats = _stats(tmp_path, reference_images().take(np.array([0])), by_image)
    assert stats.nearest == ()
    assert stats.duplicate_keys == 0


def test_the_lines_name_what_is_there(tmp_path):
    stats = _stats(tmp_path, reference_images(), _flat_keys)
    said = "\n".join(stats.lines())
    for fact in ("180 of 90 images", "4 classes", "flat: exact", "0 images equal"):
        assert fact in said
    assert index_line(None) == "index flat: exact"


def test_a_histogram_is_a_picture_and_differs_where_the_values_do():
    few, many = (
        histogram_png(values, title="t", axis="a") for values in ((), (0.1, 0.2, 0.2, 0.9))
    )
    assert Image.open(io.BytesIO(few)).size == Image.open(io.BytesIO(many)).size == (864, 432)
    assert few != many


def test_diversity_counts_different_answers_and_the_most_used_one():
    even, one = diversity(np.arange(10)), diversity(np.array([3, 3, 3, 5]))
    assert (even.queries, even.unique_rate, even.most_used_share) == (10, 1.0, 0.1)
    assert (one.unique_rate, one.most_used_share) == (0.5, 0.75)
