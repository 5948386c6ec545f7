"""An index whose candidates a GPU proposes answers to the bit as without; needs faiss-gpu."""

import numpy as np
import pytest

from rapid_dist.retrieval.vectors import VectorIndex, has_gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu(), reason="this FAISS sees no GPU"),
]


@pytest.mark.parametrize("k", [1, 50])
def test_a_gpu_changes_no_bit_of_an_answer(k: int) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50_000, 128)).astype(np.float32)
    vectors[25_000:] = vectors[:25_000] + np.float32(1e-4)
    labels = rng.integers(0, 5, 50_000)
    queries = vectors[:600] + np.float32(0.01)
    expected = VectorIndex(vectors, np.arange(50_000), labels).search(queries, k)
    found = VectorIndex(vectors, np.arange(50_000), labels).to_gpu().search(queries, k)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
