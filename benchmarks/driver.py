"""What the driver of a run does in each step of training, with up to thousands of fake workers.

    python benchmarks/driver.py

Workers are calls of the mailbox's own methods, without Ray between: the time is that of the driver
and of the mailbox, in one process. In a step rank 0 reports, and the driver takes that report,
shows it, keeps it and sets the metrics. At the end of a task every worker says that it is done and
asks for the next one; one that waits asks every quarter of a second: the share of that is told too.
"""

import argparse
import io
import time

from common import table, write
from rich.console import Console

from rapid_dist.runtime.beside_driver import Mailbox
from rapid_dist.runtime.figures import Figures
from rapid_dist.runtime.metrics import StageMeter
from rapid_dist.runtime.progress import Progress
from rapid_dist.runtime.worker_group import POLL_SEC


class Memory:
    """A storage of which one file is written now and then."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def read(self, name: str) -> bytes:
        from rapid_dist.storage import StorageMissing

        if name not in self.files:
            raise StorageMissing(name)
        return self.files[name]

    def write(self, name: str, data: bytes) -> None:
        self.files[name] = data


class Silent:
    """A meter whose numbers go nowhere."""

    def set(self, name: str, value: float, tags: dict[str, str]) -> None:
        self.last = (name, value, tags)

    def observe(self, name: str, value: float, tags: dict[str, str]) -> None:
        self.last = (name, value, tags)


def measure(workers: int, steps: int) -> dict[str, float]:
    """Returns microseconds: of a step, and of all workers' asking once while they wait."""
    mailbox = Mailbox(workers)
    progress = Progress(Console(file=io.StringIO(), force_terminal=False))
    figures = Figures(
        Memory(),  # type: ignore[arg-type]
        progress,
        observe=StageMeter(meter=Silent()).on_report,
    )
    start = mailbox.begin()
    mailbox.give(["a task"])
    for rank in range(workers):
        mailbox.next_after(0, rank)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        mailbox.post({"step": step, "steps": steps, "rows": 1024}, "")
        for report, _ in mailbox.collect()[0]:
            figures.on_report("train", report)
    of_steps = time.perf_counter() - began
    began = time.perf_counter()
    for rank in range(workers):
        mailbox.finish(start, rank)
    for rank in range(workers):
        mailbox.is_over()
        mailbox.next_after(1, rank)
    asking = time.perf_counter() - began
    return {
        "workers": workers,
        "step_microseconds": 1e6 * of_steps / steps,
        "asking_microseconds": 1e6 * asking,
        "asking_share": asking / POLL_SEC,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", default="1,10,100,1000,10000")
    parser.add_argument("--steps", type=int, default=5000)
    asked = parser.parse_args()
    rows = [measure(int(count), asked.steps) for count in asked.workers.split(",")]
    print(table(rows, list(rows[0])))
    write("driver", {"rows": rows})


if __name__ == "__main__":
    main()
