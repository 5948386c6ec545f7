"""Faulty secrets."""

from dataclasses import replace

from rapid_dist.audit.subject import Subject
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from tests.faults.catalogue import Fault


class FixedSeed:
    """The key is a constant of the code or of the recipe: anybody can subtract the noise."""

    def __call__(self) -> SecretKey:
        return SecretKey(bytes(KEY_BYTES))


class SeedFromTheConfig:
    """Seeds 0, 1, 2: one a rank or a run, out of so few that all can be tried."""

    def __init__(self) -> None:
        self._drawn = 0

    def __call__(self) -> SecretKey:
        self._drawn = (self._drawn + 1) % 2
        return SecretKey(self._drawn.to_bytes(KEY_BYTES, "big"))


def _fixed(subject: Subject) -> Subject:
    return replace(subject, new_key=FixedSeed())


def _few(subject: Subject) -> Subject:
    return replace(subject, new_key=SeedFromTheConfig())


FAULTS = [
    Fault(
        name="A fixed seed",
        what_happened="DPDM: rank + seed of the config; DPImageBench: torch.manual_seed(0)",
        build=_fixed,
        caught_by=("noise", "sampling"),
    ),
    Fault(
        name="Seeds out of a small set",
        what_happened="Seeds 0, 1, 2 of a sweep: its runs share their noise",
        build=_few,
        caught_by=("noise",),
    ),
]
