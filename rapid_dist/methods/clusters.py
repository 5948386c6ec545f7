"""Which cluster of the knowledge base an image is in: one answer, for the prior and for training.

Clusters are made from public features alone, once, and then read. A private image is compared with
their centroids where it is held; what is said of that is how far it is, in public numbers.
"""

from collections.abc import Callable

import numpy as np

from rapid_dist.data.images import PrivateImages
from rapid_dist.errors import ShardError
from rapid_dist.methods import artifacts
from rapid_dist.methods.public_stages import open_extractor, open_features
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.public.activations import activation_features
from rapid_dist.retrieval.arrays import pack_arrays, unpack_arrays
from rapid_dist.retrieval.features import pixel_features
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.prior import with_nearest
from rapid_dist.retrieval.shard_maker import FeaturesOf
from rapid_dist.retrieval.vectors import assign, fit_kmeans
from rapid_dist.storage import Storage, open_storage

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
    parts = [
        artifacts.knowledge_base_name(settings),
        config.clusters,
        config.kmeans_iterations,
        config.kmeans_images,
    ]
    own = features_name(settings)
    identity = artifacts.fingerprint(*parts, *([own] if own else []))
    storage, name = open_storage(public_uri), f"clusters/{identity}.npz"
    if not storage.exists(name):
        features = reference_features(settings, public_uri, base)
        rows = np.random.default_rng(settings.seed).permutation(len(features))
        fitted = features[np.sort(rows[: config.kmeans_images])]
        steps = config.kmeans_iterations

        def on_iteration(done: int) -> None:
            say({"step": done, "steps": steps})

        found = fit_kmeans(fitted, config.clusters, settings.seed, steps, on_iteration)
        storage.write(name, pack_arrays({"centroids": found, "of": _of_name(name)}))
    return _read(storage, name)["centroids"]


def features_name(settings: MethodSettings) -> str:
    """Returns the identity of the features of votes; none where they are the knowledge base's."""
    kind = settings.prior.features
    if kind == "contrast":
        return f"contrast:{artifacts.extractor_name(settings)}"
    if kind == "denoiser":
        return f"denoiser:{artifacts.pretrain_name(settings)}:{settings.prior.feature_step}"
    return "" if kind == "knowledge_base" else kind


def vote_features(settings: MethodSettings, public_uri: str) -> FeaturesOf:
    """Returns the function from clean images, uint8 [n, C, H, W], to what votes compare, [n, F]."""
    kind = settings.prior.features
    if kind == "pixels":
        return pixel_features
    if kind == "contrast":
        return open_extractor(settings, public_uri)
    if kind == "denoiser":
        place = open_storage(public_uri).child(artifacts.pretrain_name(settings))
        level = settings.schedule.level(settings.prior.feature_step)
        return activation_features(artifacts.get_denoiser(place.uri), level)
    return open_features(settings, public_uri)


def reference_features(
    settings: MethodSettings, public_uri: str, base: KnowledgeBase
) -> np.ndarray:
    """Returns those of every reference image, float32 [R, F]; made once, and then read."""
    own = features_name(settings)
    if not own:
        return base.features
    identity = artifacts.fingerprint(artifacts.knowledge_base_name(settings), own)
    storage, name = open_storage(public_uri), f"clusters/features-{identity}.npz"
    if not storage.exists(name):
        features = vote_features(settings, public_uri)(base.reference_images)
        storage.write(name, pack_arrays({"features": features, "of": _of_name(name)}))
    return _read(storage, name)["features"]


def _of_name(name: str) -> np.ndarray:
    """A file's own name, uint8 [L]: it is a hash of what the file was made from."""
    return np.frombuffer(name.encode(), np.uint8)


def _read(storage: Storage, name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a file that is no other's; those of older versions do not say it."""
    arrays = unpack_arrays(storage.read(name), f"{storage.uri}/{name}")
    own = _of_name(name)
    if not np.array_equal(arrays.get("of", own), own):
        raise ShardError(
            f"{storage.uri}/{name} was made from another knowledge base. Delete it and run the "
            "same command again: it is made again."
        )
    return arrays


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
    say: Callable[[dict[str, float]], object],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cluster of every image, int64 [N], and of every entry, int64 [E].

    Entries that ``prior.nearest`` leaves out are in a cluster behind the last, which is nobody's.

    Args:
      say: is told how many rows are done, of the declared N and the public references.
    """
    centroids = open_centroids(settings, public_uri, base)
    features_of = vote_features(settings, public_uri)
    known = reference_features(settings, public_uri, base)
    declared, references = images.spec.num_records, len(known)
    done = 0

    def on_rows(rows: int) -> None:
        nonlocal done
        done += rows
        say({"step": done, "steps": declared + references})

    of_image = nearest_clusters(
        lambda rows: features_of(images.images[rows]), declared, centroids, on_rows
    )
    of_reference = nearest_clusters(lambda rows: known[rows], references, centroids, on_rows)
    if settings.prior.nearest is not None:
        parts = (
            slice(start, start + _ROWS_AT_ONCE) for start in range(0, references, _ROWS_AT_ONCE)
        )
        apart = [
            np.square(known[part] - centroids[of_reference[part]]).sum(axis=1) for part in parts
        ]
        of_reference = with_nearest(
            of_reference, np.concatenate(apart), len(centroids), settings.prior.nearest
        )
    return of_image, base.per_entry(of_reference)
