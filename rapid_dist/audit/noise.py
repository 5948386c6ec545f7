"""Check 2: with nothing learnt, what is released is N(0, (z C / B)^2) and never the same twice.

Every audit draws fresh keys, so the false-alarm chance that a row states is what it says it is.

z = noise_multiplier, C = max_grad_norm, B = expected_batch, W workers.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from torch import nn

from rapid_dist.audit.releases import (
    LoopReleases,
    Nobody,
    everybody,
    loop_releases,
    muted,
    repeated_windows,
    step_release,
    wide_release,
)
from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.audit.statistics import (
    Row,
    correlation_p_value,
    shape_p_value,
    tail_p_value,
    variance_p_value,
)
from rapid_dist.audit.subject import Subject
from rapid_dist.audit.workers import ThreadWorkers
from rapid_dist.privacy.noise import CHUNK

CHECK = "noise"
_STEPS: dict[Profile, int] = {"quick": 2, "full": 16}
_SHAPED = 2**20  # Values at most in one distance from the normal law: it has to sort them.


@dataclass(frozen=True, kw_only=True)
class _Gathered:
    """All releases of one check, float32 [P] each."""

    stddev: float  # That was priced.
    layers: dict[str, slice]
    steps: list[np.ndarray]  # Of one key and attempt, one worker.
    attempt: np.ndarray  # Step 0 of the same key's next attempt.
    run: np.ndarray  # Step 0 of another key.
    batches: dict[str, np.ndarray]  # A step on nobody, and on everybody.
    groups: dict[int, list[np.ndarray]]  # W -> step 0 as every rank holds it.
    survivors: dict[int, np.ndarray]  # The rank of two that was lost -> what the other holds.
    wide: np.ndarray
    loop: LoopReleases

    def by_source(self) -> dict[str, np.ndarray]:
        """Every release on its own: where it came from -> values."""
        return {
            **{f"step {number}": one for number, one in enumerate(self.steps)},
            "next attempt": self.attempt,
            "other run": self.run,
            **self.batches,
            **{f"W={size}": held[0] for size, held in self.groups.items()},
            "wide network": self.wide,
            "loop": np.concatenate(self.loop.first),
            "loop resumed": np.concatenate(self.loop.resumed),
            "loop again": np.concatenate(self.loop.second),
        }


def check_noise(subject: Subject, profile: Profile) -> list[CheckResult]:
    """Mutes the engine and looks at what the step and the loop release then."""
    found = _gather(muted(subject), _STEPS[profile])
    sources = found.by_source()
    pooled = np.concatenate([v for name, v in sources.items() if name != "wide network"])
    return [
        _variance_row(found, sources),
        Row(check=CHECK, share=0.2).verdict(
            "Is it Gaussian around zero, out to its tails?",
            {
                "shape of the steps": shape_p_value(_thinned(pooled), found.stddev),
                "tails of the steps": tail_p_value(pooled, found.stddev),
                "shape in a wide network": shape_p_value(_thinned(found.wide), found.stddev),
                "tails in a wide network": tail_p_value(found.wide, found.stddev),
            },
            "Kolmogorov and Smirnov's distance, and a count beyond 4 stddev.",
        ),
        _independence_row(found),
        _repeats_row(list(sources.values())),
        _agreement_row(found.groups),
        Row(check=CHECK, share=0.2).verdict(
            "Does the whole noise remain when any one worker's share of the sum is lost?",
            {
                f"without rank {rank} of 2": variance_p_value(values, found.stddev)
                for rank, values in found.survivors.items()
            },
        ),
    ]


def _gather(subject: Subject, steps: int) -> _Gathered:
    key, mechanism = subject.new_key(), subject.mechanism
    groups = {
        size: step_release(subject, subject.new_key(), workers=ThreadWorkers(size))
        for size in (2, 4)
    }
    return _Gathered(
        stddev=mechanism.noise_stddev / mechanism.expected_batch,
        layers=_layers(subject.denoiser()),
        steps=[step_release(subject, key, step=step)[0] for step in range(steps)],
        attempt=step_release(subject, key, attempt=2)[0],
        run=step_release(subject, subject.new_key())[0],
        batches={
            "empty batch": step_release(subject, subject.new_key(), sampler=Nobody())[0],
            "full batch": step_release(subject, key, step=steps, sampler=everybody(subject, key))[
                0
            ],
        },
        groups=groups,
        survivors={
            lost: step_release(subject, subject.new_key(), workers=ThreadWorkers(2, lost=lost))[
                1 - lost
            ]
            for lost in (0, 1)
        },
        wide=wide_release(subject),
        loop=loop_releases(subject),
    )


def _layers(network: nn.Module) -> dict[str, slice]:
    """Where every trainable parameter lies in a flat vector."""
    layers, start = {}, 0
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            layers[name] = slice(start, start + parameter.numel())
            start += parameter.numel()
    return layers


def _variance_row(found: _Gathered, sources: dict[str, np.ndarray]) -> CheckResult:
    whole = np.concatenate(list(sources.values())).astype(np.float64)
    p_values = {name: variance_p_value(values, found.stddev) for name, values in sources.items()}
    p_values["all"] = variance_p_value(whole, found.stddev)
    for name, place in found.layers.items():
        values = np.concatenate([step[place] for step in [*found.steps, found.run]])
        p_values[name] = variance_p_value(values, found.stddev)
    measured = float(np.sqrt(np.square(whole).mean()))
    return Row(check=CHECK, share=0.3).verdict(
        "Has the released update the standard deviation that was priced, in every layer?",
        p_values,
        f"Measured {measured / found.stddev:.6f} of z C / B over {whole.size:,} values.",
    )


def _independence_row(found: _Gathered) -> CheckResult:
    loop, wide, first = found.loop, found.wide, found.steps[0]
    pairs = {
        "steps": (first, found.steps[1]),
        "attempts": (first, found.attempt),
        "runs": (first, found.run),
        "groups of workers": (found.groups[2][0], found.groups[4][0]),
        "a repeated step": (loop.first[1], loop.resumed[0]),
        "runs of the loop": (loop.first[0], loop.second[0]),
        "steps of the loop": (loop.second[0], loop.second[1]),
        "chunks 1 and 2": (wide[:CHUNK], wide[CHUNK : 2 * CHUNK]),
        "chunks 2 and 3": (wide[CHUNK : CHUNK + len(wide) - 2 * CHUNK], wide[2 * CHUNK :]),
        "neighbours": (wide[0 : len(wide) - 1 : 2], wide[1::2]),
    }
    names = list(found.layers)
    for name, following in itertools.pairwise(names):
        one, other = (first[found.layers[layer]] for layer in (name, following))
        shorter = min(len(one), len(other))
        pairs[f"{name} and {following}"] = (one[:shorter], other[:shorter])
    return Row(check=CHECK, share=0.2).verdict(
        "Is it independent from step to step, attempt, run, chunk and layer to the next?",
        {
            name: correlation_p_value(one, other, found.stddev)
            for name, (one, other) in pairs.items()
        },
    )


def _repeats_row(releases: list[np.ndarray]) -> CheckResult:
    repeats, width = repeated_windows(releases)
    return CheckResult(
        check=CHECK,
        question="Is no stretch of noise ever released twice?",
        statistic=f"{repeats} stretches of {width} values",
        bound="none",
        false_alarm=1e-9,
        passed=repeats == 0,
        detail="Over all steps, attempts, runs, chunks and layers, at any offset and either sign.",
    )


def _agreement_row(groups: dict[int, list[np.ndarray]]) -> CheckResult:
    apart = sum(
        not np.array_equal(held[0], other) for held in groups.values() for other in held[1:]
    )
    return CheckResult(
        check=CHECK,
        question="Do all workers hold the same bits after a step?",
        statistic=f"{apart} workers differ from the first, at W = 2 and 4",
        bound="none",
        false_alarm=0.0,
        passed=apart == 0,
    )


def _thinned(values: np.ndarray) -> np.ndarray:
    return values[:: -(-len(values) // _SHAPED)]
