"""Private queries leave no trace where they are answered in the process that asks (P9)."""

import logging
from pathlib import Path

import numpy as np
import pytest

from rapid_dist.audit.contained import contained
from rapid_dist.audit.markers import random_markers
from rapid_dist.errors import ConfigError
from rapid_dist.public.build import build_knowledge_base
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.storage import LocalStorage
from tests.knowledge import knowledge_base_spec, pixel_keys, reference_images


def _kinds_left(folder: Path, leak: str = "") -> set[str]:
    """Asks for planted images, then looks for them in all that was written or said."""
    markers = random_markers(40, (1, 8, 8), 4, np.random.default_rng(3))
    queries = pixel_keys(markers.images)
    with contained(folder) as said:
        storage = LocalStorage(folder / "base")
        build_knowledge_base(
            reference_images(), knowledge_base_spec(), lambda s: s.flatten(1).numpy(), storage
        )
        base = KnowledgeBase.open(storage)
        _, ids = base.search(queries, 3, markers.labels)
        base.images(ids.ravel())
        with pytest.raises(ConfigError) as refused:
            base.search(queries[:, :-1], 1)
        with pytest.raises(ConfigError) as unknown:
            base.images(np.array([10**6]))
        if leak == "file":
            (folder / "queries.cache").write_bytes(queries.tobytes())
        elif leak == "log":
            logging.getLogger("search").warning("asked for %s", markers.images[0].ravel().tolist())
        assert "1000000" not in str(unknown.value)
    words = [str(refused.value), str(unknown.value), said.printed, *said.lines]
    texts = [text.encode() for text in words]
    files = [path.read_bytes() for path in said.files().values()]
    return {kind for data in (*texts, *files) for kind in markers.found_in(data)}


def test_a_search_in_process_leaves_nothing_of_its_queries(tmp_path):
    assert _kinds_left(tmp_path) == set()


@pytest.mark.parametrize("leak", ["file", "log"])
def test_the_search_for_traces_would_notice_queries_that_were_kept(tmp_path, leak):
    assert "pixels" in _kinds_left(tmp_path, leak)
