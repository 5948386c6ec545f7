"""Check 2 for a private index: on nobody an answer is N(0, (2 z / k)^2), never the same twice.

The index, its noise and the loop around it are the product's own. Every audit draws fresh keys, so
the false-alarm chance that a row states is what it says it is.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from rapid_dist.audit.contribution import extreme_images
from rapid_dist.audit.index_subject import Exactly, IndexSubject
from rapid_dist.audit.noise import CHECK
from rapid_dist.audit.releases import repeated_windows
from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.audit.statistics import (
    Row,
    correlation_p_value,
    shape_p_value,
    tail_p_value,
    variance_p_value,
)
from rapid_dist.privacy.keeper import Attempt
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.noise import CHUNK
from rapid_dist.private.rounds import stored_answers
from rapid_dist.storage import LocalStorage

_VALUES = CHUNK + CHUNK // 4  # Of a wide answer: two chunks of noise, the last one short.
_FEWER = 2**16  # Of those that it is compared with.
_LOOP_VALUES: dict[Profile, int] = {"quick": 2**14, "full": 2**17}
_LOOP_ROUNDS = 3
_UNITS = 4


def check_index_noise(subject: IndexSubject, profile: Profile) -> list[CheckResult]:
    """Asks rounds of nobody, of the index and of the loop around it."""
    units = min(_UNITS, subject.images.spec.num_units)  # Few: what they embed to is wide.
    subject = subject.on(extreme_images(subject.images, units))
    key, stddev = subject.new_key(), subject.answer_stddev
    wide = _silent(subject, _VALUES, key)
    following = _silent(subject, _FEWER, key, step=1)
    again = _silent(subject, _FEWER, key, attempt=2)
    other = _silent(subject, _FEWER, subject.new_key())
    first, resumed, second = _loops(subject, _LOOP_VALUES[profile])
    releases = {
        "a round": wide,
        "next round": following,
        "next attempt": again,
        "other run": other,
        "loop": first.ravel(),
        "loop resumed": resumed[1],  # The one that was lost; the others are those of before.
        "loop again": second.ravel(),
    }
    pooled = np.concatenate(list(releases.values()))
    repeats, width = repeated_windows(list(releases.values()))
    measured = float(np.sqrt(np.square(pooled, dtype=np.float64).mean()))
    classes = subject.num_classes
    each = len(wide) // classes
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]] = {
        "rounds": (wide[:_FEWER], following),
        "attempts": (wide[:_FEWER], again),
        "runs": (wide[:_FEWER], other),
        "chunks": (wide[: len(wide) - CHUNK], wide[CHUNK:]),
        "neighbours": (wide[: len(wide) // 2 * 2 : 2], wide[1::2]),
        "classes": (wide[: each * (classes - 1)], wide[each : each * classes]),
        "rounds of the loop": (first[0], first[1]),
        "a repeated round of the loop": (first[1], resumed[1]),
        "runs of the loop": (first[0], second[0]),
    }
    return [
        Row(check=CHECK, share=0.3).verdict(
            "Has an answer the standard deviation that was priced, 2 z / k?",
            {
                **{name: variance_p_value(values, stddev) for name, values in releases.items()},
                "all": variance_p_value(pooled, stddev),
            },
            f"Measured {measured / stddev:.6f} of 2 z / k over {pooled.size:,} values of rounds on "
            "nobody.",
        ),
        Row(check=CHECK, share=0.3).verdict(
            "Is it Gaussian around zero, out to its tails?",
            {"shape": shape_p_value(wide, stddev), "tails": tail_p_value(pooled, stddev)},
        ),
        Row(check=CHECK, share=0.399).verdict(
            "Is it independent from round to round, class, attempt, run and chunk to the next?",
            {name: correlation_p_value(one, two, stddev) for name, (one, two) in pairs.items()},
        ),
        CheckResult(
            check=CHECK,
            question="Is no stretch of an answer's noise ever released twice?",
            statistic=f"{repeats} stretches of {width} values",
            bound="none",
            false_alarm=1e-9,
            passed=repeats == 0,
            detail="Over rounds, classes, attempts, runs and chunks, at any offset and either "
            "sign.",
        ),
    ]


def _silent(
    subject: IndexSubject, values: int, key: SecretKey, *, step: int = 0, attempt: int = 1
) -> np.ndarray:
    """The answers of a round on nobody, float32 [``values``]."""
    width = -(-values // subject.num_classes)
    nobody = np.zeros((len(subject.images), width), np.float32)
    index = subject.index(nobody, key, attempt=attempt, sampler=Exactly([]))
    found = index.answer(step, np.zeros((subject.num_classes, width), np.float32))
    return found.ravel()[:values]


class _Unlimited:
    """A keeper to whom every round is affordable: what is asked of is public."""

    def __init__(self) -> None:
        self._attempt = 0

    def begin_attempt(self, after: tuple[int, int] | None = None) -> Attempt:
        self._attempt += 1
        return Attempt(number=self._attempt, affordable_steps=_LOOP_ROUNDS)

    def charge(self, step: int, attempt: int | None = None) -> None:
        pass

    def stop_short(self, step: int, attempt: int | None = None) -> None:
        raise AssertionError("Every round is affordable.")


def _loops(subject: IndexSubject, values: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers of a run, of the same after one was lost and asked again, and of another run.

    float32 [T, values] each. Chances to be drawn are so small that nobody is.
    """
    never = replace(
        subject,
        mechanism=replace(subject.mechanism, sample_rate=1e-12, steps=_LOOP_ROUNDS),
    )
    with tempfile.TemporaryDirectory() as folder:
        keeper, place = _Unlimited(), Path(folder, "first")
        first = _asked(never, keeper, place, values)
        lost = sorted(place.glob("*.npz"))[1]
        lost.unlink()
        return (
            first,
            _asked(never, keeper, place, values),
            _asked(never, _Unlimited(), Path(folder, "second"), values),
        )


def _asked(subject: IndexSubject, keeper: _Unlimited, place: Path, values: int) -> np.ndarray:
    classes = subject.num_classes
    width = -(-values // classes)
    storage = LocalStorage(place, sync=lambda descriptor: None)
    subject.ask(
        subject.images,
        np.zeros((len(subject.images), width), np.float32),
        np.zeros((_LOOP_ROUNDS, classes, width), np.float32),
        subject.mechanism,
        num_classes=classes,
        keeper=keeper,
        storage=storage,
        on_round=lambda figures: None,
        index_type=subject.index_type,
        new_key=subject.new_key,
    )
    return stored_answers(storage, _LOOP_ROUNDS).reshape(_LOOP_ROUNDS, -1)[:, :values]
