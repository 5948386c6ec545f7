"""What the private stages do with a record that has no answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rapid_dist.data.sources import load_private
from rapid_dist.errors import ConfigError
from rapid_dist.methods import private_stages
from rapid_dist.methods.clusters import nearest_clusters
from rapid_dist.private.draws import FindReferences
from rapid_dist.retrieval.vectors import assign
from tests.models import mechanism
from tests.untrained import UntrainedRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> UntrainedRun:
    return UntrainedRun(tmp_path_factory.mktemp("run"))


def _task(run: UntrainedRun, **changes: object) -> private_stages.TrainTask:
    return private_stages.TrainTask(
        settings=replace(run.settings, **changes),
        mechanism=mechanism(),
        public_uri=run.public.uri,
        out_uri=run.out.uri,
        keeper=None,
    )


def _by_query(run: UntrainedRun) -> FindReferences:
    return _task(run)._by_query(run.knowledge_base())


def test_the_search_for_clusters_says_how_far_it_is_and_depends_on_no_slice() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2_500, 3)).astype(np.float32)
    features[7] = np.nan
    centroids = rng.normal(size=(5, 3)).astype(np.float32)
    rows: list[int] = []
    found = nearest_clusters(lambda part: features[part], len(features), centroids, rows.append)
    np.testing.assert_array_equal(found, assign(features, centroids))
    assert found[7] < 0
    assert (sum(rows), len(rows)) == (2_500, 3)
    none = nearest_clusters(lambda part: features[part], 0, centroids, rows.append)
    assert none.shape == (0,)
    assert none.dtype == np.int64


def test_the_search_for_surrogates_clusters_says_how_far_it_is_by_declared_numbers_alone(
    run: UntrainedRun,
) -> None:
    images, _ = load_private(run.settings.private, None)
    entries = len(run.knowledge_base().features)
    said: list[tuple[dict[str, float], str]] = []
    train = replace(run.settings.train, mode="surrogate", surrogate="cluster")
    base = replace(run.settings.knowledge_base, clusters=4)
    _task(run, train=train, knowledge_base=base).find_references(
        images, lambda figures, part="": said.append((figures, part))
    )
    assert {part for _, part in said} == {"clusters"}
    total = run.settings.private.num_records + entries
    assert {figures["steps"] for figures, _ in said} == {total}
    assert [figures["step"] for figures, _ in said] == [1024, 1432, total]
    assert {name for figures, _ in said for name in figures} == {"step", "steps"}


def _find(find: FindReferences, clean: torch.Tensor) -> torch.Tensor:
    rows = np.arange(len(clean))
    return find(rows, clean, [np.random.default_rng(row) for row in rows])


def test_a_record_whose_query_is_not_finite_neither_ends_the_run_nor_moves_another(
    run: UntrainedRun,
) -> None:
    find = _by_query(run)
    clean = torch.rand((4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    whole = _find(find, clean)
    broken = clean.clone()
    broken[2] = torch.nan
    found = _find(find, broken)
    assert found[2].isfinite().all()
    assert torch.equal(found[[0, 1, 3]], whole[[0, 1, 3]])


def test_an_unanswered_search_does_not_say_what_the_others_have_found(run: UntrainedRun) -> None:
    base = run.knowledge_base()
    assert len(base) > 20
    with pytest.raises(ConfigError, match="Entry ids must be in 0") as caught:
        base.images(np.array([-1, 17, 19]))
    for neighbour in ("17", "19"):
        assert neighbour not in str(caught.value)
