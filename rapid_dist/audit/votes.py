"""Checks 1 and 2 for the other mechanism of a run: noised histograms of votes.

Asked of each round of votes that the plan has: the private prior's, and a second one among
generated candidates. Contribution: for every unit in turn, all of whose images lose their vote, the
histogram moves by at most one in L2 norm, wherever its images vote. As in ``contribution.py`` the
noise is frozen by the key and cancels. Noise: with no vote cast, what leaves is N(0, z^2), and
never the same twice.

Clusters are made up, so that votes fall together and apart; the histogram is the product's own.

z = noise multiplier of a round of votes, M clusters, Y classes.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from rapid_dist.audit import contribution
from rapid_dist.audit.contribution import UNITS, Longest, extreme_images
from rapid_dist.audit.noise import CHECK as NOISE
from rapid_dist.audit.releases import muted, repeated_windows, step_release
from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.audit.statistics import (
    Row,
    correlation_p_value,
    shape_p_value,
    tail_p_value,
    variance_p_value,
)
from rapid_dist.audit.subject import Subject, VoteRound
from rapid_dist.data.images import PrivateImages
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.noise import CHUNK

_CLUSTERS = 5
_CELLS = CHUNK + CHUNK // 4  # Of the silent histogram: two chunks of noise, the last one short.
_FEWER = 2**16  # Of those that it is compared with.
_SHARES = (0.06, 0.04)  # Of the noise check's false alarms; noise.py has the rest.


def check_vote_contribution(subject: Subject, profile: Profile) -> list[CheckResult]:
    """Takes every unit's vote away in turn. Nothing to ask of a recipe without votes."""
    return [line for asked in subject.votes for line in _contribution(subject, asked, profile)]


def _contribution(subject: Subject, asked: VoteRound, profile: Profile) -> list[CheckResult]:
    units = min(UNITS[profile], subject.images.spec.num_units)
    images = units_that_vote(subject.images, units)
    owner = np.arange(units) if images.groups is None else images.groups
    places = np.arange(len(images))
    found = {
        name: _longest_vote(subject, asked, images, owner, clusters)
        for name, clusters in {
            "together": np.zeros(len(images), np.int64),
            "apart": places % _CLUSTERS,
            "unevenly apart": np.minimum(places % (2 * _CLUSTERS), _CLUSTERS - 1),
            "one without features": np.where(owner == units - 1, -1, places % _CLUSTERS),
        }.items()
    }
    worst = max(found.values(), key=lambda one: one.ratio if one.ratio == one.ratio else math.inf)
    return [
        CheckResult(
            check=contribution.CHECK,
            question=f"Does no unit move {asked.what} by more than its one vote?",
            statistic=f"longest contribution {worst.ratio:.6f} votes",
            bound=f"at most {worst.bound:.6f} votes",
            false_alarm=0.0,
            passed=worst.passed,
            detail=" ".join(f"Votes {name}: {one.ratio:.6f}." for name, one in found.items())
            + f" {units} units left out in turn.",
        ),
        CheckResult(
            check=contribution.CHECK,
            question=f"Did a unit's vote count in {asked.what}, so that the bound was tried?",
            statistic=f"longest contribution {worst.ratio:.6f} votes",
            bound="at least 0.99 votes",
            false_alarm=0.0,
            passed=worst.ratio >= 0.99,
        ),
    ]


def _longest_vote(
    subject: Subject,
    asked: VoteRound,
    images: PrivateImages,
    owner: np.ndarray,
    clusters: np.ndarray,
) -> Longest:
    key = subject.new_key()
    whole = _histogram(subject, asked, images, clusters, _CLUSTERS, key)
    lengths = [
        float(
            np.linalg.norm(
                whole
                - _histogram(
                    subject, asked, images, np.where(owner == unit, -1, clusters), _CLUSTERS, key
                )
            )
        )
        for unit in range(int(owner.max()) + 1)
    ]
    worst = max(lengths, key=lambda length: math.inf if math.isnan(length) else length)
    rounding = math.sqrt(2) * float(np.finfo(np.float32).eps * np.linalg.norm(whole))
    return Longest(ratio=worst, rounding=rounding if math.isfinite(rounding) else 0.0)


def check_vote_noise(subject: Subject) -> list[CheckResult]:
    """Lets nobody vote. Nothing to ask of a recipe without votes."""
    key = subject.new_key()
    # Under one key: other purposes, other streams.
    others = {"a step of training": step_release(muted(subject), key)[0]} if subject.votes else {}
    results: list[CheckResult] = []
    for asked in subject.votes:
        results += _noise(subject, asked, key, others)
        others |= {asked.what.removeprefix("the "): _silent(subject, asked, _FEWER, key)}
    return results


def _noise(
    subject: Subject, asked: VoteRound, key: SecretKey, others: Mapping[str, np.ndarray]
) -> list[CheckResult]:
    wide = _silent(subject, asked, _CELLS, key)
    again = _silent(subject, asked, _FEWER, key, attempt=2)
    other = _silent(subject, asked, _FEWER, subject.new_key())
    stddev, share = asked.query.noise_multiplier, 1 / len(subject.votes)
    pooled = np.concatenate([wide, again, other])
    repeats, width = repeated_windows([wide, again, other])
    law: Mapping[str, float] = {
        "stddev": variance_p_value(wide, stddev),
        "stddev, asked again": variance_p_value(again, stddev),
        "stddev, other run": variance_p_value(other, stddev),
        "shape": shape_p_value(wide, stddev),
        "tails": tail_p_value(pooled, stddev),
    }
    apart = {
        "asked again": correlation_p_value(wide[:_FEWER], again, stddev),
        "other run": correlation_p_value(wide[:_FEWER], other, stddev),
        "chunks": correlation_p_value(wide[: len(wide) - CHUNK], wide[CHUNK:], stddev),
        "neighbours": correlation_p_value(wide[: len(wide) // 2 * 2 : 2], wide[1::2], stddev),
        **{
            name: correlation_p_value(wide[: len(values)], values[: len(wide)], stddev)
            for name, values in others.items()
        },
    }
    measured = float(np.sqrt(np.square(pooled, dtype=np.float64).mean()))
    return [
        Row(check=NOISE, share=_SHARES[0] * share).verdict(
            f"Has {asked.what} the Gaussian noise that was priced?",
            law,
            f"Measured {measured / stddev:.6f} of z over {pooled.size:,} cells without a vote.",
        ),
        Row(check=NOISE, share=_SHARES[1] * share).verdict(
            f"Is the noise of {asked.what} independent of every other release's?", apart
        ),
        CheckResult(
            check=NOISE,
            question=f"Is no stretch of the noise of {asked.what} ever released twice?",
            statistic=f"{repeats} stretches of {width} cells",
            bound="none",
            false_alarm=1e-9,
            passed=repeats == 0,
        ),
    ]


def _silent(
    subject: Subject, asked: VoteRound, cells: int, key: SecretKey, attempt: int = 1
) -> np.ndarray:
    """A histogram for which nobody voted, float32 [``cells``]."""
    images = subject.images
    clusters = -(-cells // max(1, images.spec.num_classes))
    nobody = np.full(len(images), -1, np.int64)
    found = _histogram(subject, asked, images, nobody, clusters, key, attempt)
    return found.astype(np.float32).ravel()[:cells]


def _histogram(
    subject: Subject,
    asked: VoteRound,
    images: PrivateImages,
    clusters: np.ndarray,
    num_clusters: int,
    key: SecretKey,
    attempt: int = 1,
) -> np.ndarray:
    return subject.noised_histogram(
        images,
        clusters,
        num_classes=max(1, images.spec.num_classes),
        num_clusters=num_clusters,
        noise_multiplier=asked.query.noise_multiplier,
        key=key,
        attempt=attempt,
        noise=subject.mechanism.noise,
        purpose=asked.purpose,
    )


def units_that_vote(images: PrivateImages, units: int) -> PrivateImages:
    """Returns so many units: images, or groups of one to four of them."""
    if images.groups is None:
        return extreme_images(images, units)
    groups = np.repeat(np.arange(units), 1 + np.arange(units) % 4)
    chosen = np.arange(len(groups)) % len(images)
    spec = replace(images.spec, num_records=len(groups), num_groups=units)
    return PrivateImages(
        images=images.images[chosen], labels=images.labels[chosen], groups=groups, spec=spec
    )
