"""Check 6 for a private index: nothing that the rounds write or say holds a private value.

Random images stand in for the private ones; what stands in the index, and how many were in each
round's sample, is written down while it answers. Then every file and word is searched.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from rapid_dist.audit.accountants import pld_epsilon, rounds_of
from rapid_dist.audit.index_observed import observe_index
from rapid_dist.audit.index_subject import IndexSubject
from rapid_dist.audit.markers import Markers, random_markers
from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.audit.silence import LEAST_SHARE, searched
from rapid_dist.data.images import PrivateImages
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.index import PrivateIndex

_UNITS = 40  # Labels in random order are told by 32 of them.
_ROUNDS: dict[Profile, int] = {"quick": 6, "full": 24}


def check_index_silence(subject: IndexSubject, profile: Profile) -> list[CheckResult]:
    """Searches what the product's loop over the rounds leaves behind."""
    rng = subject.new_key().generator("markers")
    spec = replace(subject.images.spec, num_records=_UNITS, num_groups=None)
    markers = random_markers(_UNITS, (spec.channels, spec.size, spec.size), spec.num_classes, rng)
    images = PrivateImages(images=markers.images, labels=markers.labels, spec=spec)
    markers.embeddings = subject.embed(images.images)
    own = replace(subject, index_type=_telling(subject.index_type, markers)).on(images)
    rate = max(own.mechanism.sample_rate, LEAST_SHARE)
    own = replace(own, mechanism=replace(own.mechanism, steps=_ROUNDS[profile], sample_rate=rate))
    delta = own.budget.delta
    spent = pld_epsilon([rounds_of(own.mechanism, own.mechanism.steps)], delta, 1e-3)
    with tempfile.TemporaryDirectory() as folder:
        seen = observe_index(own, Path(folder), Budget(epsilon=2 * spent + 1, delta=delta))
        assert seen.said is not None
        words = {"figures": str(seen.figures), "refusal": seen.refusal}
        return [
            searched(
                "Does the loop over a private index's rounds write and say nothing private?",
                markers,
                seen.said,
                words,
            )
        ]


def _telling(index_type: type[PrivateIndex], markers: Markers) -> type[PrivateIndex]:
    """The index, which now leaves here how many were in each round's sample."""

    class Telling(index_type):  # type: ignore[misc, valid-type]
        def _sums(self, present: np.ndarray, questions: np.ndarray) -> np.ndarray:
            markers.drawn.append(len(present))
            sums: np.ndarray = super()._sums(present, questions)
            return sums

    return Telling
