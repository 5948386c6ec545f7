"""One command of the small run on Ray: run by on_ray.py, which says where and on how many workers.

Arguments: the run's folder, the number of workers, the seconds that each step takes longer.
"""

import sys

from tests.cluster.chaos.on_ray import HANG_MINUTES
from tests.cluster.chaos.runs import SmallRun, as_command

MOST_FAILURES = 3


def main(folder: str, num_workers: int, pace_sec: float) -> int:
    run = SmallRun(folder=folder, pace_sec=pace_sec)

    def train() -> None:
        from rapid_dist.runtime.cluster import session
        from rapid_dist.runtime.keeper_client import keep_beside_driver
        from rapid_dist.runtime.needs import Needs
        from rapid_dist.runtime.signals import Notice, stop_on_sigterm
        from rapid_dist.runtime.train_workers import RayWorkers

        notice = Notice()
        with session(Needs(cpus=num_workers)), stop_on_sigterm(notice):
            workers = RayWorkers(
                threads=1,
                max_failures=MOST_FAILURES,
                on_report=lambda *said: None,
                hang_minutes=HANG_MINUTES,
                notice=notice,
            )
            task = run.task(keep_beside_driver(run.make_keeper))
            workers.run(task, name="train", num_workers=num_workers)

    return as_command(run, train)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
