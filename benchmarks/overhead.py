"""What of a private step is not forward, backward and update; and two workers against two threads.

    python benchmarks/overhead.py

``share`` is that of everything else in a step: the records' draws, all-reduce, noise, and waiting
for ledger or batch, which threads look after beside the sum. ``bytes / P`` is what one worker hands
to the all-reduce in a step, over the number of trained values: 4 is one vector of float32, of which
a ring sends less than twice.
"""

import argparse
from pathlib import Path
from typing import Any

from output import RESULTS, merged, table, write_json
from step_parts import BESIDE, OVERHEAD, PARTS, Setting, interleaved, with_workers

COLUMNS = [
    "network", "K", "batch", "workers", "threads", "step seconds", *PARTS, "share", *BESIDE,
    "rows per second", "bytes / P",
]  # fmt: skip
NAMES_ROW = ("network", "K", "batch", "workers", "threads")


def row_of(setting: Setting, found: dict[str, float]) -> dict[str, Any]:
    return {
        "network": setting.network,
        "K": setting.draws,
        "batch": setting.batch,
        "workers": setting.workers,
        "threads": setting.threads,
        "step seconds": found["step"],
        **{part: found[part] for part in (*PARTS, *BESIDE)},
        "share": sum(found[part] for part in OVERHEAD) / found["step"],
        "rows per second": round(found["rows per second"]),
        "bytes / P": found["reduced bytes"] / found["values"],
    }


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["digits", "mnist"])
    parser.add_argument("--draws", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--batch", type=int, default=256, help="records expected in a step")
    parser.add_argument("--add", action="store_true", help="keep the file's other rows")
    parser.add_argument("--micro-batch", type=int, help="by default 64, with more draws 16")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--noise", default="fast", choices=["fast", "secure"])
    parser.add_argument("--one-worker", action="store_true", help="leave out the pairs of workers")
    parser.add_argument("--small", action="store_true", help="rehearse on narrow networks")
    parser.add_argument("--out", type=Path, default=RESULTS / "overhead.json")
    return parser


def report(options: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        for draws in options.draws:
            base = Setting(
                network=name, draws=draws, batch=options.batch, small=options.small,
                micro_batch=options.micro_batch or 64 // min(draws, 4), steps=options.steps,
                device=options.device, precision=options.precision, noise=options.noise,
            )  # fmt: skip
            pairs = [(1, 1)] if options.one_worker else [(1, 1), (1, 2), (2, 1)]
            settings = {f"{w} {t}": with_workers(base, w, t) for w, t in pairs}
            found = interleaved(settings, options.repeats)
            rows += [row_of(settings[key], found[key]) for key in settings]
            if not options.one_worker:
                rows[-1]["2 x 1 / 1 x 2"] = (
                    found["2 1"]["rows per second"] / found["1 2"]["rows per second"]
                )
    kept = merged(options.out, rows, NAMES_ROW) if options.add else rows
    write_json(options.out, {"rows": kept, "small": options.small, "noise": options.noise})
    print(table(rows, [*COLUMNS, "2 x 1 / 1 x 2"]))


if __name__ == "__main__":
    report(arguments().parse_args())
