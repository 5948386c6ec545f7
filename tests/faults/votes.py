"""Faulty histograms of votes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from rapid_dist.audit.subject import Subject
from rapid_dist.data.images import PrivateImages
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.private.votes import noised_histogram
from tests.faults.catalogue import Fault


class TwoVotes:
    """A record votes for its cluster and for the next one, as a soft assignment does."""

    def __call__(self, images: PrivateImages, clusters: np.ndarray, **named: Any) -> np.ndarray:
        own = noised_histogram(images, clusters, **named)
        return own + np.roll(_counts(images, clusters, **named), 1, axis=1)


class SharesOfVotes:
    """The histogram is divided by the number of votes, so each weighs on all the others."""

    def __call__(self, images: PrivateImages, clusters: np.ndarray, **named: Any) -> np.ndarray:
        counts = _counts(images, clusters, **named)
        scaled = counts * len(images) / max(1.0, counts.sum())
        return noised_histogram(images, clusters, **named) + (scaled - counts)


class WeakNoise:
    """The multiplier is 5% below what was accounted."""

    def __call__(self, images: PrivateImages, clusters: np.ndarray, **named: Any) -> np.ndarray:
        weaker = {**named, "noise_multiplier": 0.95 * named["noise_multiplier"]}
        return noised_histogram(images, clusters, **weaker)


class NoiseOfTheSeed:
    """The generator is seeded by the recipe."""

    def __call__(self, images: PrivateImages, clusters: np.ndarray, **named: Any) -> np.ndarray:
        fixed = {**named, "key": SecretKey(bytes(KEY_BYTES))}
        return noised_histogram(images, clusters, **fixed)


class AskedAgainAlike:
    """The stream is keyed by the run and forgets the attempt: asked again, the same noise."""

    def __call__(self, images: PrivateImages, clusters: np.ndarray, **named: Any) -> np.ndarray:
        return noised_histogram(images, clusters, **{**named, "attempt": 1})


class OneNoiseForAllClasses:
    """A row of noise, drawn for one class and added to every class."""

    def __call__(self, images: PrivateImages, clusters: np.ndarray, **named: Any) -> np.ndarray:
        own = noised_histogram(images, clusters, **named)
        counts = _counts(images, clusters, **named)
        return counts + (own - counts)[:1]


def _counts(
    images: PrivateImages, clusters: np.ndarray, *, num_classes: int, num_clusters: int, **_: Any
) -> np.ndarray:
    votes = clusters >= 0
    cells = (images.labels * num_clusters + clusters)[votes]
    return np.bincount(cells, minlength=num_classes * num_clusters).reshape(num_classes, -1)


def _histogram(fault: Callable[..., np.ndarray]) -> Callable[[Subject], Subject]:
    return lambda subject: replace(subject, noised_histogram=fault)


FAULTS = [
    Fault(
        name="A record votes for two clusters",
        what_happened="Soft or k-nearest votes, priced as one",
        build=_histogram(TwoVotes()),
        caught_by=("contribution",),
    ),
    Fault(
        name="Votes are divided by their number",
        what_happened="A histogram normalised before its noise",
        build=_histogram(SharesOfVotes()),
        caught_by=("contribution",),
    ),
    Fault(
        name="Noise of the votes 5% too small",
        what_happened="A multiplier that was priced for another sensitivity",
        build=_histogram(WeakNoise()),
        caught_by=("noise",),
    ),
    Fault(
        name="Noise of the votes from the recipe's seed",
        what_happened="Statistics noised by NumPy's seeded global generator",
        build=_histogram(NoiseOfTheSeed()),
        caught_by=("noise",),
    ),
    Fault(
        name="Votes asked for again have the same noise",
        what_happened="A crash after the query, and a stream without an attempt",
        build=_histogram(AskedAgainAlike()),
        caught_by=("noise",),
    ),
    Fault(
        name="One row of noise for the votes of all classes",
        what_happened="Noise drawn in the shape of a class and broadcast",
        build=_histogram(OneNoiseForAllClasses()),
        caught_by=("noise",),
    ),
]
