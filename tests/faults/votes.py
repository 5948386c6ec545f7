"""Faulty histograms of votes, and faulty charges for them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from rapid_dist.audit.subject import Subject
from rapid_dist.data.images import PrivateImages
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.private.votes import charged_histogram, noised_histogram
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


class OneStreamForBothRounds:
    """The second round of votes takes its noise from the stream of the first."""

    def __call__(self, images: PrivateImages, clusters: np.ndarray, **named: Any) -> np.ndarray:
        return noised_histogram(images, clusters, **{**named, "purpose": "prior"})


class WeakSecondRound:
    """Votes among candidates, of which each casts two: for the nearest and for the next."""

    def __call__(self, images: PrivateImages, clusters: np.ndarray, **named: Any) -> np.ndarray:
        once = noised_histogram(images, clusters, **named)
        if named.get("purpose") != "candidates":
            return once
        return once + np.roll(_counts(images, clusters, **named), 1, axis=1)


def counted_before_charge(*arguments: Any, **named: Any) -> tuple[np.ndarray, int]:
    """The histogram is there when the entry is written."""
    early: list[np.ndarray] = []

    def count(*given: Any, **more: Any) -> np.ndarray:
        return early[0]

    class Keeper:
        def begin_attempt(self, after: tuple[int, int] | None = None) -> Any:
            self.attempt = named["keeper"].begin_attempt()
            return self.attempt

        def charge(self, step: int, attempt: int | None = None) -> None:
            named["keeper"].charge(step, attempt)

        def charge_query(self, event: GaussianEvent, purpose: str) -> None:
            images, clusters, query = arguments
            early.append(
                named["histogram"](
                    images, clusters, num_classes=named["num_classes"],
                    num_clusters=named["num_clusters"], noise_multiplier=query.noise_multiplier,
                    key=named["new_key"](), attempt=self.attempt.number, noise=named["noise"],
                    purpose=named["purpose"],
                )
            )  # fmt: skip
            named["keeper"].charge_query(event, purpose)

    return charged_histogram(*arguments, **{**named, "keeper": Keeper(), "histogram": count})


class _Free:
    """A keeper that is not told of queries."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def charge_query(self, event: GaussianEvent, purpose: str) -> None:
        pass


def second_round_for_free(*arguments: Any, **named: Any) -> tuple[np.ndarray, int]:
    """Votes among candidates are thought to come with the prior's."""
    free = named["purpose"] == "candidates"
    keeper = _Free(named["keeper"]) if free else named["keeper"]
    return charged_histogram(*arguments, **{**named, "keeper": keeper})


def charged_at_more_noise(images: Any, clusters: Any, query: GaussianEvent, **named: Any) -> Any:
    """The ledger hears of twice the noise that a second round has."""
    if named["purpose"] != "candidates":
        return charged_histogram(images, clusters, query, **named)

    def count(*given: Any, **more: Any) -> np.ndarray:
        found: np.ndarray = named["histogram"](
            *given, **{**more, "noise_multiplier": query.noise_multiplier}
        )
        return found

    told = replace(query, noise_multiplier=2 * query.noise_multiplier)
    return charged_histogram(images, clusters, told, **{**named, "histogram": count})


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
    Fault(
        name="Both rounds of votes have one noise",
        what_happened="A second query under the key and the stream of the first",
        build=_histogram(OneStreamForBothRounds()),
        caught_by=("noise",),
    ),
    Fault(
        name="A record votes for two candidates",
        what_happened="Private Evolution with the k nearest, priced as one vote",
        build=_histogram(WeakSecondRound()),
        caught_by=("contribution",),
    ),
    Fault(
        name="Votes are counted before they are charged",
        what_happened="A histogram in memory, and a crash before its entry",
        build=lambda subject: replace(subject, charged_histogram=counted_before_charge),
        caught_by=("accounting",),
    ),
    Fault(
        name="A second round of votes comes free",
        what_happened="Refinements thought to be part of the first query",
        build=lambda subject: replace(subject, charged_histogram=second_round_for_free),
        caught_by=("accounting",),
    ),
    Fault(
        name="A second round is charged with more noise than it has",
        what_happened="Two numbers typed by hand into two scripts, as in PrivImage's",
        build=lambda subject: replace(subject, charged_histogram=charged_at_more_noise),
        caught_by=("accounting",),
    ),
]
