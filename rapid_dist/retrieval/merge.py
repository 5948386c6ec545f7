"""Exact merge of what several shards found."""

import numpy as np

from rapid_dist.errors import ConfigError

NO_NEIGHBOR = -1  # Id of a place that no entry could fill; its distance is inf.


def merge_neighbors(
    distances: np.ndarray, ids: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k nearest of the neighbors that S shards found for Q queries.

    Exact: if every shard returned its own k nearest, the result is what one index over all
    shards would return. Ties go to the smaller id, so the answer does not depend on how
    the entries were sharded.

    Args:
      distances: float32 [S, Q, K], squared L2, inf where a shard had fewer than K entries.
      ids: int64 [S, Q, K], global entry ids, ``NO_NEIGHBOR`` where the distance is inf.
      k: neighbors to keep, at most K.

    Returns:
      distances float32 [Q, k], ascending, and their ids int64 [Q, k].
    """
    num_shards, num_queries, width = distances.shape
    if k > width:
        raise ConfigError(
            f"Cannot keep k={k} neighbors when each shard returned only {width}. "
            f"Search the shards with k >= {k}."
        )
    flat_distances = distances.transpose(1, 0, 2).reshape(num_queries, num_shards * width)
    flat_ids = ids.transpose(1, 0, 2).reshape(num_queries, num_shards * width)
    order = np.lexsort((flat_ids, flat_distances), axis=1)[:, :k]
    return np.take_along_axis(flat_distances, order, 1), np.take_along_axis(flat_ids, order, 1)
