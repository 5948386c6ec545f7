"""Which cluster of the knowledge base an image is in: one answer, for the prior and for training.

Clusters are made from public features alone, once, and then read. A private image is compared with
their centroids where it is held; what is said of that is how far it is, in public numbers.
"""

from collections.abc import Callable

import numpy as np

from rapid_dist.data.images import PrivateImages
from rapid_dist.methods import artifacts
from rapid_dist.methods.public_stages import open_features
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.retrieval.arrays import pack_arrays, unpack_arrays
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.vectors import assign, fit_kmeans
from rapid_dist.storage import open_storage

_ROWS_AT_ONCE = 1024  # Images between two reports of progress.


def open_centroids(
    settings: MethodSettings,
    public_uri: str,
    base: KnowledgeBase,
    say: Callable[[dict[str, float]], None] = lambda figures: None,
) -> np.ndarray:
    """Returns the clusters' centroids, made from public features once and then read.

    Args:
      say: is told how many iterations are done, where there are any to make.
    """
    config = settings.knowledge_base
    identity = artifacts.fingerprint(
        artifacts.knowledge_base_name(settings),
        config.clusters,
        config.kmeans_iterations,
        config.kmeans_images,
    )
    storage, name = open_storage(public_uri), f"clusters/{identity}.npz"
    if not storage.exists(name):
        rows = np.random.default_rng(settings.seed).permutation(len(base.features))
        fitted = base.features[np.sort(rows[: config.kmeans_images])]
        steps = config.kmeans_iterations

        def on_iteration(done: int) -> None:
            say({"step": done, "steps": steps})

        found = fit_kmeans(fitted, config.clusters, settings.seed, steps, on_iteration)
        storage.write(name, pack_arrays({"centroids": found}))
    return unpack_arrays(storage.read(name), name)["centroids"]


def nearest_clusters(
    features: Callable[[slice], np.ndarray],
    count: int,
    centroids: np.ndarray,
    on_rows: Callable[[int], None],
) -> np.ndarray:
    """Returns the cluster of each of ``count`` images, int64 [count], saying how far it is.

    Args:
      features: gives those of a slice of the images, float32 [n, F]; each by its image alone.
    """
    parts = [np.empty(0, np.int64)]
    for start in range(0, count, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, count))
        parts.append(assign(features(rows), centroids))
        on_rows(rows.stop - rows.start)
    return np.concatenate(parts)


def assign_clusters(
    settings: MethodSettings,
    public_uri: str,
    images: PrivateImages,
    base: KnowledgeBase,
    say: Callable[[dict[str, float]], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cluster of every image, int64 [N], and of every entry, int64 [E].

    Args:
      say: is told how many rows are done, of the declared N and the public references.
    """
    centroids = open_centroids(settings, public_uri, base)
    features_of = open_features(settings, public_uri)
    declared, references = images.spec.num_records, len(base.features)
    done = 0

    def on_rows(rows: int) -> None:
        nonlocal done
        done += rows
        say({"step": done, "steps": declared + references})

    of_image = nearest_clusters(
        lambda rows: features_of(images.images[rows]), declared, centroids, on_rows
    )
    of_reference = nearest_clusters(
        lambda rows: base.features[rows], references, centroids, on_rows
    )
    return of_image, base.per_entry(of_reference)
