"""What a backend runs on its workers.

A process of Ray's imports the module of what it is sent. This one needs no network's library, so a
group of workers is there as soon as torch is.
"""

from collections.abc import Callable
from typing import Protocol

from rapid_dist.collective import Collective


class Report(Protocol):
    """Takes what a loop has to say; ``part`` names what in the loop has a count of its own.

    What it returns, if anything, is to be called when a checkpoint is written: the process, or its
    machine, was told to leave. A report of nothing says that steps begin: from the first one on,
    whoever is told to leave ends the one that he is at.
    """

    def __call__(self, figures: dict[str, float], part: str = "") -> Callable[[], None] | None: ...


Task = Callable[[Collective, Report], None]
