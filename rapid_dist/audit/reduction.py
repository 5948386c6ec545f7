"""Check 1 once more, with the sum made as a cluster makes it, and its result compared.

Elsewhere in the audit workers are threads. Here the vectors of two workers go through two real
processes and the product's ``TorchCollective`` over Gloo.
"""

import torch

from rapid_dist.audit.contribution import CHECK, Longest, extreme_images, longest_contribution
from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.audit.subject import Subject
from rapid_dist.audit.workers import ProcessWorkers

WORLD_SIZE = 2
_UNITS: dict[Profile, int] = {"quick": 4, "full": 12}


def check_reduction(subject: Subject, profile: Profile) -> list[CheckResult]:
    """Leaves every unit out in turn, and compares what the two workers hold after a step."""
    units = min(_UNITS[profile], subject.images.spec.num_units)
    own = subject.on(extreme_images(subject.images, units))
    with ProcessWorkers(WORLD_SIZE) as workers:
        found = longest_contribution(own, workers, range(units))
        held = released_everywhere(own, workers)
    apart = sum(not torch.equal(held[0], other) for other in held[1:])
    return [_contribution(found, units), _agreement(apart)]


def released_everywhere(subject: Subject, workers: ProcessWorkers) -> list[torch.Tensor]:
    """The vector of one step, float32 [P], as every rank holds it."""
    key = subject.new_key()
    steps = [subject.step(workers.collective(rank), key) for rank in range(workers.world_size)]
    denoisers = [subject.denoiser() for _ in range(workers.world_size)]
    return workers.run(lambda c: steps[c.rank].noised_gradient(denoisers[c.rank], 0))


def _contribution(found: Longest, units: int) -> CheckResult:
    return CheckResult(
        check=CHECK,
        question="Does no unit move by more than C a sum that was made over processes?",
        statistic=f"longest contribution {found.ratio:.6f} C",
        bound=f"at most {found.bound:.6f} C",
        false_alarm=0.0,
        passed=found.passed,
        detail=f"{units} units left out in turn; {WORLD_SIZE} processes, TorchCollective on Gloo.",
    )


def _agreement(apart: int) -> CheckResult:
    return CheckResult(
        check=CHECK,
        question="Do all processes hold the same bits after a step?",
        statistic=f"{apart} of {WORLD_SIZE} differ from the first",
        bound="none",
        false_alarm=0.0,
        passed=apart == 0,
    )
