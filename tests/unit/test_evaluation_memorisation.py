"""Copies of training records are noticed; honest samples are not accused."""

import numpy as np
import pytest

from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.memorisation import CHUNK_ROWS, memorisation, nearest_distances

FALSE_ALARM = 1e-6  # Chance that honest samples are accused on a fresh seed.


def _records(num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, 8)).astype(np.float32)


def test_samples_from_the_same_source_are_not_accused() -> None:
    found = memorisation(_records(400, 0), _records(1_000, 1), _records(400, 2))
    assert found.closer_p_value > FALSE_ALARM
    assert found.median_ratio == pytest.approx(1, abs=0.1)
    assert found.close_share < 0.05
    assert found.exact_copies == 0


def test_samples_that_lean_on_training_records_are_noticed() -> None:
    train = _records(1_000, 1)
    leaning = 0.85 * train[:400] + 0.15 * _records(400, 0)
    found = memorisation(leaning, train, _records(400, 2))
    assert found.closer_p_value < FALSE_ALARM
    assert found.median_ratio < 0.7
    assert found.closer_chance > 0.9
    assert found.close_share > 0.1


def test_a_few_copies_among_many_honest_samples_are_counted() -> None:
    train = _records(1_000, 1) * 100
    samples = _records(400, 0) * 100
    samples[:3] = train[[5, 700, 700]]
    assert memorisation(samples, train, _records(400, 2) * 100).exact_copies == 3


def test_nearest_distances_are_exact_across_chunks() -> None:
    points, others = _records(CHUNK_ROWS + 30, 0), _records(90, 1)
    expected = np.linalg.norm(points[:, None] - others[None], axis=2).min(1)
    np.testing.assert_allclose(nearest_distances(points, others), expected, rtol=1e-5)


def test_an_empty_set_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="held_out is empty"):
        memorisation(_records(4, 0), _records(4, 1), _records(0, 2))
