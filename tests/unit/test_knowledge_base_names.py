"""A knowledge base grows: each addition and its index have a folder, and what was there stays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapid_dist.config import load_recipe, method_settings
from rapid_dist.data.images import content_hashes
from rapid_dist.methods import artifacts, public_stages
from rapid_dist.methods.index_stats import HISTOGRAM, STATS, write_stats
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.public.build import ShardPlan, ShardTask
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.manifest import ShardRecord
from rapid_dist.storage import LocalStorage
from tests.untrained import TINY, UntrainedRun

MORE = "data.more_references=[{source: letters, count: 150}]"


def _settings(*changes: str) -> MethodSettings:
    return method_settings(load_recipe("digits", [*TINY, *changes]))


def test_additions_and_an_index_leave_every_name_as_it_was() -> None:
    plain, grown = _settings(), _settings(MORE)
    approximate = _settings(MORE, "knowledge_base.index=ivf_flat")
    names = [artifacts.knowledge_base_names(one) for one in (plain, grown, approximate)]
    assert [len(one) for one in names] == [1, 2, 3]
    assert names[2][:2] == names[1]
    assert names[1][:1] == names[0]
    assert artifacts.extractor_name(grown) == artifacts.extractor_name(plain)
    assert artifacts.pretrain_name(grown) == artifacts.pretrain_name(plain)


def test_added_sources_bring_classes_of_their_own() -> None:
    settings = _settings(MORE)
    first, added = (artifacts.load_references(settings, g) for g in (0, 1))
    assert added.labels.min() >= first.spec.num_classes
    assert added.spec.num_classes > first.spec.num_classes
    pretrain, _ = artifacts.load_public_split(settings)
    seen = set(content_hashes(pretrain.images))
    assert len(added) > 60
    assert not seen & set(content_hashes(added.images))  # What the networks saw is no reference.


class _Here:
    """A backend that builds shards in this process and counts what it was asked for."""

    workers: Any = None
    num_workers = 1

    def __init__(self) -> None:
        self.built: list[int] = []

    def build_shards(self, plans: list[ShardPlan], task: ShardTask) -> list[ShardRecord]:
        self.built.append(len(plans))
        return [task.build(plan) for plan in plans]


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> LocalStorage:
    """Untrained networks, under the names of trained ones; no knowledge base."""
    run = UntrainedRun(tmp_path_factory.mktemp("run"))
    for name in run.public.list(artifacts.knowledge_base_name(run.settings)):
        run.public.delete(name)
    return run.public


def _index(public: LocalStorage, settings: MethodSettings, tmp_path: Path) -> _Here:
    backend = _Here()
    context = UntrainedRun.__new__(UntrainedRun)
    context.settings, context.recipe = settings, load_recipe("digits", TINY)
    context.public, context.out = public, LocalStorage(tmp_path)
    public_stages.run_index(replace(context.context([]), backend=backend))
    return backend


def test_an_addition_builds_its_own_shards_and_no_other(
    public: LocalStorage, tmp_path: Path
) -> None:
    plain, grown = _settings(), _settings(MORE)
    approximate = _settings(
        MORE, "knowledge_base.index=ivf_flat", "knowledge_base.index_lists=4",
        "knowledge_base.index_probes=4",
    )  # fmt: skip
    assert len(_index(public, plain, tmp_path).built) == 1
    before = {name: public.read(name) for name in public.list()}
    assert len(_index(public, grown, tmp_path).built) == 1
    assert _index(public, approximate, tmp_path).built == []  # An index is no shard.
    assert {name: public.read(name) for name in before} == before
    bases = [
        KnowledgeBase.open(public.child(artifacts.knowledge_base_name(one)))
        for one in (plain, grown, approximate)
    ]
    assert len(bases[0]) < len(bases[1]) == len(bases[2])
    ids = np.arange(len(bases[0]))
    np.testing.assert_array_equal(bases[2].images(ids), bases[0].images(ids))
    images = bases[1].reference_images
    assert len(set(content_hashes(images))) == len(images)  # None is there twice.
    queries = np.random.default_rng(0).normal(size=(9, bases[0].manifest.key_dim))
    exact, probed = (base.search(queries.astype(np.float32), 3) for base in bases[1:])
    np.testing.assert_array_equal(probed[1], exact[1])  # All four lists were looked into.
    assert _index(public, grown, tmp_path).built == []  # Done before.


def test_the_stats_of_a_recipe_are_written_beside_its_run(
    public: LocalStorage, tmp_path: Path
) -> None:
    settings, out = _settings(MORE), LocalStorage(tmp_path)
    _index(public, settings, tmp_path)
    stats = write_stats(settings, public, out)
    assert stats.inherited_shards > 0
    assert {STATS, HISTOGRAM} <= set(out.list())
