"""Part of benchmarks/knowledge_base.py: what retrieval adds to a private step of a recipe.

On one worker of one thread. Networks are untrained and images random: neither changes what a step
or a search costs. What is done once a run, before its first step, is told beside the shares.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import faiss
import numpy as np
import torch
from knowledge_base_searching import Row, interleaved, put_base, row, surface_keys, whole_index
from noise import open_step

from rapid_dist.config import load_recipe, method_settings
from rapid_dist.data.images import ImageSpec, PrivateImages, to_unit
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.methods.context import Keeper
from rapid_dist.methods.private_stages import TrainTask
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import DpSgdConfig
from rapid_dist.public.embedding import clean_estimate
from rapid_dist.public.index import default_lists
from rapid_dist.retrieval.features import ContrastExtractor
from rapid_dist.retrieval.inverted import InvertedIndex, InvertedShape, train
from rapid_dist.retrieval.knowledge_base import KnowledgeBase, KnowledgeBaseConfig
from rapid_dist.retrieval.manifest import Manifest
from rapid_dist.retrieval.searcher import read_parts
from rapid_dist.retrieval.vectors import VectorIndex
from rapid_dist.storage import LocalStorage

BAR = 0.01


def share_of_a_step(folder: Path, options: argparse.Namespace) -> list[Row]:
    """The recipe's own way to its surrogates, and the paper's: a query of every record."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    settings = _settings(options)
    source, dim = settings.private, settings.contrast.extractor.dim
    keys = surface_keys(options.step_entries, dim, seed=1)
    storage = put_base(
        folder / "base", keys, 8, size=source.size, channels=source.channels, featured=True
    )
    images = _images(settings)
    batch = int(settings.privacy.expected_batch or 0)
    clean = to_unit(images.images[:batch])
    start = time.perf_counter()
    by_cluster = _task(settings, folder / "public")._by_cluster(
        KnowledgeBase.open(storage), images, lambda figures, part="": None
    )
    prepared = time.perf_counter() - start
    manifest, flat = whole_index(storage)
    queries = manifest.framed(surface_keys(batch, dim, seed=2))
    inverted, recall = _inverted(storage, manifest, flat, queries)
    denoiser = Denoiser(
        settings.network, channels=source.channels, size=source.size,
        num_classes=source.num_classes, data_std=settings.schedule.data_std,
    )  # fmt: skip
    extractor = ContrastExtractor(settings.contrast.extractor, source.channels, source.size)
    extractor.freeze()
    step = open_step(options.recipe, "fast", SecretKey.generate())
    level = settings.schedule.level(settings.split.query_step)
    streams = [np.random.default_rng(record) for record in range(batch)]
    pieces = [slice(at, at + _piece(settings)) for at in range(0, batch, _piece(settings))]
    records = np.arange(batch)

    @torch.no_grad()
    def embed() -> None:
        for piece in pieces:
            extractor(clean_estimate(denoiser, clean[piece], level))

    ways: dict[str, Callable[[], object]] = {
        "step": lambda: step.noised_gradient(denoiser, 1),
        "cluster": lambda: [by_cluster(records[p], clean[p], streams[p]) for p in pieces],
        "flat": lambda: [flat.search(queries[p], 1) for p in pieces],
        "inverted": lambda: [inverted.search(queries[p], 1) for p in pieces],
        "embed": embed,
    }
    spent = interleaved(ways, options.repeats)
    shape = f"{batch:,} records by {_piece(settings)}, {options.step_entries:,} x {dim}"
    told = {
        "cluster": f"by cluster, as the recipe does: {shape}; once a run, for "
        f"{len(images):,} records and all entries, {prepared:.0f} s",
        "flat": f"a query of every record instead, exact; making the queries takes "
        f"{spent['embed']:.2f} s more",
        "inverted": f"the same by inverted lists, recall@1 {recall:.3f}",
    }
    rows = []
    for way, detail in told.items():
        share = spent[way] / (spent["step"] + spent[way])
        seconds = f"{spent[way]:.3f} s beside a step of {spent['step']:.2f} s"
        figure = f"retrieval's share of a private step, {options.recipe}, {way}"
        met = share <= BAR
        rows.append(row(figure, share, f"<= {BAR}", met, f"{detail}; {seconds}"))
    return rows


def _piece(settings: MethodSettings) -> int:
    """Records that training makes rows of at once."""
    return settings.train.micro_batch or 64


def _settings(options: argparse.Namespace) -> MethodSettings:
    """The recipe's, with clusters that take no time to find: to look into them costs the same."""
    clusters = min(load_recipe(options.recipe).knowledge_base.clusters, options.step_entries)
    fast = {"clusters": clusters, "kmeans_images": clusters, "kmeans_iterations": 1,
            "features": "pixels"}  # fmt: skip
    said = [f"knowledge_base.{name}={value}" for name, value in fast.items()]
    return method_settings(load_recipe(options.recipe, said))


def _images(settings: MethodSettings) -> PrivateImages:
    source, rng = settings.private, np.random.default_rng(0)
    shape = (source.num_records, source.channels, source.size, source.size)
    spec = ImageSpec(
        name="random", num_records=source.num_records, channels=source.channels,
        size=source.size, num_classes=source.num_classes, licence="none",
    )  # fmt: skip
    return PrivateImages(
        images=rng.integers(0, 256, shape, dtype=np.uint8),
        labels=rng.integers(0, max(1, source.num_classes), source.num_records),
        groups=None,
        spec=spec,
    )


def _task(settings: MethodSettings, public: Path) -> TrainTask:
    """What looks for surrogates in training. It is asked for those alone, and trains nothing."""
    return TrainTask(
        settings=settings, mechanism=cast(DpSgdConfig, None), keeper=cast(Keeper, None),
        public_uri=str(public), out_uri=str(public),
    )  # fmt: skip


def _inverted(
    storage: LocalStorage, manifest: Manifest, flat: VectorIndex, queries: np.ndarray
) -> tuple[InvertedIndex, float]:
    """Returns an index as ``rapid-dist index`` would make it, and its recall@1 of these queries."""
    config = KnowledgeBaseConfig(index="ivf_flat")
    rows = np.random.default_rng(0).permutation(len(flat))[: config.index_keys]
    lists = max(1, min(default_lists(len(flat)), len(rows) // 8))
    trained = train(flat._vectors[np.sort(rows)], InvertedShape(kind="ivf_flat", lists=lists), 0)
    parts = read_parts(storage, manifest, range(len(manifest.shards)))
    index = InvertedIndex(trained, config.index_probes, parts)
    found, true = index.search(queries, 1)[1], flat.search(queries, 1)[1]
    return index, float((found == true).mean())
