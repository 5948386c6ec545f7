"""One minute that tells whether a cluster can do what a run will ask of it, and what to fix.

ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
    python cluster/smoke.py --storage s3://bucket/runs --workers 2

Exit code 0: nothing to fix. 1: something is, and the line after it says how. 2: nothing was tried.
"""

import argparse
import sys

from rapid_dist.errors import RapidError
from rapid_dist.runtime.cluster import session
from rapid_dist.runtime.cluster_smoke import SUM_SEC, look
from rapid_dist.runtime.needs import Needs
from rapid_dist.runtime.placement_roles import Role


def options() -> argparse.ArgumentParser:
    """Returns what reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--storage", required=True, help="where runs will be: s3:// or a folder")
    parser.add_argument("--workers", type=int, default=2, help="as runtime.workers will be")
    parser.add_argument("--threads", type=int, default=1, help="as runtime.threads_per_worker")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--label", metavar="A=B", help="of the workers' nodes: worker_labels")
    parser.add_argument("--scale-minutes", type=float, default=0, help="for nodes to be added")
    parser.add_argument("--seconds", type=float, default=SUM_SEC, help="to wait for the first sum")
    return parser


def main() -> int:
    asked = options().parse_args()
    gpus = 1 if asked.device == "cuda" else 0
    labels = dict([asked.label.split("=", 1)]) if asked.label else {}
    workers = Role(
        name="training", count=asked.workers, cpus=asked.threads, gpus=gpus, labels=labels
    )
    needs = Needs(cpus=asked.workers * asked.threads, gpus=asked.workers * gpus)
    try:
        with session(needs, roles=((workers,),), scale_minutes=asked.scale_minutes):
            checks = look(
                asked.storage,
                workers=asked.workers,
                threads=asked.threads,
                device=asked.device,
                labels=labels,
                seconds=asked.seconds,
            )
            # Before Ray is left, which is not sure to end well where something is wrong.
            for check in checks:
                print(check.told())
            wrong = sum(bool(check.remedy) for check in checks)
            told = (
                f"{wrong} of {len(checks)} to fix"
                if wrong
                else f"all {len(checks)} checks are well"
            )
            print(told, flush=True)
    except RapidError as error:
        print(f"smoke: {error}", file=sys.stderr)
        return error.exit_code
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
