"""What a run asks of a cluster. Knows nothing of Ray: a plan says it where there is none."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rapid_dist.runtime.placement_roles import phases

if TYPE_CHECKING:  # A process of Ray's that only looks at a cluster reads no recipe.
    from rapid_dist.config import RuntimeConfig


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a run asks of the cluster at its busiest moment."""

    cpus: int
    memory_gb: float = 0.0
    gpus: int = 0


def needs(runtime: "RuntimeConfig", *, beside: bool | None = None) -> Needs:
    """Returns what the busiest stage asks of a cluster; stages follow one another.

    Args:
      beside: whether searchers stand beside training; by default where they are set to.
    """
    each = phases(runtime, beside=beside)
    return Needs(
        cpus=max(math.ceil(sum(role.count * role.cpus for role in phase)) for phase in each),
        memory_gb=max(sum(role.count * role.memory_gb for role in phase) for phase in each),
        gpus=runtime.workers if runtime.device == "cuda" else 0,
    )
