"""What the private stages do with a record that has no answer."""

import numpy as np
import pytest
import torch

from rapid_dist.config import load_recipe, method_settings
from rapid_dist.errors import ConfigError
from rapid_dist.methods import private_stages
from rapid_dist.private.draws import FindReferences
from rapid_dist.public.build import build_knowledge_base
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from tests.fakes import MemoryStorage
from tests.knowledge import embedders, knowledge_base_spec, reference_images
from tests.models import mechanism


def _base() -> KnowledgeBase:
    storage = MemoryStorage()
    build_knowledge_base(reference_images(), knowledge_base_spec(), embedders()[0], storage)
    return KnowledgeBase.open(storage)


def _by_query(base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch) -> FindReferences:
    monkeypatch.setattr(private_stages, "open_embedder", lambda settings, uri: embedders()[0])
    task = private_stages.TrainTask(
        settings=method_settings(load_recipe("digits")),
        mechanism=mechanism(),
        public_uri="",
        out_uri="",
        keeper=None,
    )
    return task._by_query(base)


def _find(find: FindReferences, clean: torch.Tensor) -> torch.Tensor:
    rows = np.arange(len(clean))
    return find(rows, clean, [np.random.default_rng(row) for row in rows])


def test_a_record_whose_query_is_not_finite_neither_ends_the_run_nor_moves_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = _by_query(_base(), monkeypatch)
    clean = torch.rand((4, 1, 8, 8))
    whole = _find(find, clean)
    broken = clean.clone()
    broken[2] = torch.nan
    found = _find(find, broken)
    assert found[2].isfinite().all()
    assert torch.equal(found[[0, 1, 3]], whole[[0, 1, 3]])


def test_an_unanswered_search_does_not_say_what_the_others_have_found() -> None:
    base = _base()
    with pytest.raises(ConfigError, match="Entry ids must be in 0") as caught:
        base.images(np.array([-1, 77, 41]))
    for neighbour in ("77", "41"):
        assert neighbour not in str(caught.value)
