"""The prior draws what its probabilities say, each sample by its own seed."""

import numpy as np
import pytest
import scipy.stats

from rapid_dist.errors import ConfigError, ShardError
from rapid_dist.retrieval.arrays import pack_arrays
from rapid_dist.retrieval.prior import (
    PriorConfig,
    TrajectoryPrior,
    normalise,
    told_votes,
    with_nearest,
)

FALSE_ALARM = 1e-6  # Chance that a correct prior fails a test of its draws on a fresh seed.


def _prior() -> TrajectoryPrior:
    clusters = np.array([0, 0, 1, 3, 3, 3, 3, 1, 0, 0])  # Cluster 2 has no entries.
    return TrajectoryPrior(clusters, np.array([[0.5, 0.25, 0.0, 0.25], [0.0, 0.0, 0.0, 1.0]]))


def _p_value(prior: TrajectoryPrior, claimed: np.ndarray) -> float:
    drawn = prior.draw(np.zeros(20_000, np.int64), seed=4, ids=np.arange(20_000))
    counts = np.bincount(drawn, minlength=len(claimed))
    return float(scipy.stats.chisquare(counts, 20_000 * claimed).pvalue)


def test_entries_are_drawn_with_the_stated_probabilities():
    # A cluster's probability, shared evenly by its entries: 0.5 by 4, 0.25 by 2, 0.25 by 4.
    a, b, c = 0.5 / 4, 0.25 / 2, 0.25 / 4
    assert _p_value(_prior(), np.array([a, a, b, c, c, c, c, b, a, a])) > FALSE_ALARM


def test_the_draw_test_would_notice_entries_drawn_evenly():
    assert _p_value(_prior(), np.full(10, 0.1)) < FALSE_ALARM


def test_a_draw_does_not_depend_on_the_batch_it_is_made_in():
    prior, labels, ids = _prior(), np.arange(50) % 2, np.arange(50) + 1_000_000
    whole = prior.draw(labels, 9, ids)
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(prior.draw(labels[order], 9, ids[order]), whole[order])
    one_by_one = [prior.draw(labels[i : i + 1], 9, ids[i : i + 1])[0] for i in range(50)]
    np.testing.assert_array_equal(one_by_one, whole)
    assert not np.array_equal(prior.draw(labels, 10, ids), whole)


def test_a_class_draws_only_from_its_clusters():
    prior = _prior()
    drawn = prior.draw(np.ones(500, np.int64), 0, np.arange(500))
    assert set(prior.cluster_of_entry[drawn]) == {3}


def test_mass_on_a_cluster_without_entries_goes_to_the_others():
    prior = TrajectoryPrior(np.array([0, 1, 1]), np.array([[0.2, 0.2, 0.6], [0.0, 0.0, 1.0]]))
    np.testing.assert_allclose(prior.probabilities, [[0.5, 0.5, 0], [0.5, 0.5, 0]])


def test_normalise_drops_counts_below_the_threshold():
    noised = np.array([[3.0, -1.0, 1.0, 0.4]])
    np.testing.assert_allclose(normalise(noised, 0.5), [[0.75, 0, 0.25, 0]])


def test_normalise_never_gives_weight_to_a_negative_count():
    np.testing.assert_allclose(normalise(np.array([[-2.0, 1.0]]), -5.0), [[0, 1]])


def test_a_class_with_nothing_above_the_threshold_becomes_uniform():
    np.testing.assert_allclose(
        normalise(np.array([[0.1, -3.0], [9.0, 1.0]]), 2), [[0.5] * 2, [1, 0]]
    )


def test_a_cluster_keeps_its_nearest_entries_and_the_others_are_never_drawn():
    clusters = np.array([0, 0, 1, 3, 3, 3, 3, 1, 0, 0])
    distances = np.array([4.0, 1.0, 0.5, 2.0, 2.0, 9.0, 0.0, 7.0, 3.0, 1.0])
    kept = with_nearest(clusters, distances, 4, 2)
    assert kept.tolist() == [4, 0, 1, 3, 4, 4, 3, 1, 4, 0]  # Of the two at 2.0, the first.
    assert with_nearest(clusters, distances, 4, 4).tolist() == clusters.tolist()
    chances = np.array([[0.5, 0.25, 0.0, 0.25, 0.0]])
    a = [0.0, 0.25, 0.125, 0.125, 0.0, 0.0, 0.125, 0.125, 0.0, 0.25]
    drawn = TrajectoryPrior(kept, chances).draw(np.zeros(20_000, np.int64), 4, np.arange(20_000))
    counts, claimed = np.bincount(drawn, minlength=10), np.array(a)
    assert not counts[claimed == 0].any()
    there = claimed > 0
    assert scipy.stats.chisquare(counts[there], 20_000 * claimed[there]).pvalue > FALSE_ALARM


def test_it_is_said_how_many_cells_have_a_count_and_which_classes_have_none():
    config = PriorConfig(threshold=2.0)
    noised = np.array([[9.0, 5.0, 3.9, 0.0], [4.0, 0.0, 0.0, 0.0]])
    assert told_votes(noised, 2.0, config) == "votes above the threshold: 1 to 2 cells a class"
    assert "0 to 1 cells a class; 1 of 2 classes have none" in told_votes(noised, 4.0, config)
    assert "0 to 0" in told_votes(-noised, 1e-9, config)  # A count below zero is none.


def test_a_prior_survives_its_file_and_a_torn_or_other_file_is_refused():
    prior = _prior()
    data = prior.to_bytes()
    opened = TrajectoryPrior.from_bytes(data)
    assert opened.to_bytes() == data
    labels, ids = np.zeros(99, np.int64), np.arange(99)
    np.testing.assert_array_equal(opened.draw(labels, 1, ids), prior.draw(labels, 1, ids))
    with pytest.raises(ShardError, match="The prior"):
        TrajectoryPrior.from_bytes(data[:-30])
    with pytest.raises(ShardError, match="written by something else"):
        TrajectoryPrior.from_bytes(pack_arrays({"other": labels}))


def test_labels_outside_the_prior_are_refused():
    with pytest.raises(ConfigError, match=r"0\.\.1 for this prior, got 2\.\.2"):
        _prior().draw(np.array([2]), 0, np.array([0]))
