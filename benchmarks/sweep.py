"""A sweep that is killed twice, what a trial on Tune and Train costs, and the regret of the proxy.

    python benchmarks/sweep.py           # 16 trials of the digits recipe: hours on two cores
    python benchmarks/sweep.py --small   # the same course on networks of one block: minutes
    python benchmarks/sweep.py --parts mnist --set data.root=DIR

``killed``: a sweep on private data (promise per_trial), as many trials of one process at once as
there are cores, whose driver is killed twice; every trial's steps must stand on the ledger once,
but for the step that a kill repeats. ``overhead``: seconds a trial beyond its stages, without Ray,
in processes of Tune, and on Train's workers below Tune.
``regret``: the same points, scored on public images and, as only a test bed may, without noise on
the private held-out ones. Regret is the best private score less that of the point the proxy picks.
``secret``: a sweep of promise repeat_and_select; how many runs it had, nobody is told.
``mnist``: split steps at epsilon 1, scored on public images; their private scores are those that
benchmarks/mnist.py has measured.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import scipy.stats
from mnist import AT_1
from output import RESULTS, command, table, write_json

from rapid_dist.config import Recipe, load_recipe
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.runtime.run_directory import places
from rapid_dist.runtime.sweep import run_sweep
from rapid_dist.runtime.sweep_planner import Planner
from rapid_dist.runtime.sweep_trial import build_public, run_trial

SMALL = [
    "data.public.0.count=2000", "network.widths=[8]", "network.attention=[false]",
    "network.head_width=8", "network.norm_groups=4",
    "contrast.extractor.width=8", "contrast.extractor.dim=8",
    "pretrain.steps=40", "contrast.steps=4", "knowledge_base.clusters=40", "adapt.steps=20",
    "sampling.count=300", "sampling.late_intervals=4", "evaluation.classifiers.steps=60",
    "privacy.reserve_steps=3",
]  # fmt: skip
POINTS = {
    "small": "{split.split_step: [150, 300, 450, 600], privacy.steps: [4, 8, 12, 16]}",
    "full": "{split.split_step: [300, 420, 540, 660], privacy.steps: [60, 100, 140, 200]}",
}
PARTS = ("killed", "overhead", "regret", "secret", "mnist")
GRID = ["sweep.search=grid", "sweep.solve=noise_multiplier"]
CODE = """
import sys
from rapid_dist.config import load_recipe
from rapid_dist.runtime.sweep import run_sweep
run_sweep(load_recipe("digits", sys.argv[2:]), sys.argv[1])
"""


def settings(options: argparse.Namespace, *more: str) -> list[str]:
    size = "small" if options.small else "full"
    return [
        *(SMALL if options.small else []), *GRID, f"sweep.space={POINTS[size]}",
        f"sweep.trials={options.trials}", *options.overrides, *more,
    ]  # fmt: skip


def killed(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Kills a sweep after a third and after two thirds of its trials, and lets it end."""
    more = settings(options, "sweep.promise=per_trial", "sweep.runner=process")
    kills, start = [], time.monotonic()
    for share in (1 / 3, 2 / 3):
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(out), *more], stderr=subprocess.DEVNULL
        )
        while process.poll() is None and _ended(out) < options.trials * share:
            time.sleep(0.05)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills.append(_ended(out))
    result = run_sweep(load_recipe("digits", more), str(out))
    entries = Ledger.open(out.parent / "ledger", "digits").entries()
    steps: dict[str, Counter[int]] = {}
    for entry in entries:
        if entry.kind == "step" and entry.step is not None:
            steps.setdefault(entry.run, Counter())[entry.step] += 1
    planned = {t["run"]: t["steps"] for t in result["trials"] if t["state"] == "done"}
    return {
        "trials": Counter(trial["state"] for trial in result["trials"]),
        "killed after": kills,
        "seconds": time.monotonic() - start,
        "runs on the ledger": len(steps),
        "whole": sum(set(steps[run]) == set(range(n)) for run, n in planned.items()),
        "steps made again": sum(c.total() - len(c) for c in steps.values()),
        "price": result["price"]["epsilon"],
    }


def _ended(out: Path) -> int:
    books = [json.loads(path.read_text()) for path in (out / "trials").glob("*.json")]
    return sum(book["state"] != "started" for book in books)


def overhead(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Runs one small sweep in three ways; its seconds a trial, and how many are of no stage."""
    ways = {
        "no Ray": ["runtime.backend=process"],
        "Tune, one process a trial": ["sweep.runner=process", "sweep.concurrent=1"],
        "Tune and Train": ["runtime.workers=1", "sweep.concurrent=1"],
    }
    rows = []
    for way, more in ways.items():
        place = out / way.replace(" ", "-").replace(",", "")
        start = time.monotonic()
        recipe = load_recipe("digits", [*settings(options), f"sweep.trials={options.each}", *more])
        result = run_sweep(recipe, str(place))
        seconds = time.monotonic() - start
        inside = sum(sum(trial["seconds"].values()) for trial in result["trials"])
        rows.append(
            {
                "way": way,
                "trials": len(result["trials"]),
                "seconds": seconds,
                "in stages, a trial": inside / len(result["trials"]),
                "beside them, a trial": (seconds - inside) / len(result["trials"]),
            }
        )
    return {"rows": rows}


def regret(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Scores every point of one sweep on public images and on the private held-out ones."""
    more = settings(options, "runtime.backend=process")
    recipe = load_recipe("digits", more)
    result = run_sweep(recipe, str(out / "proxy"))
    private = _private_scores(recipe, out / "private", result["trials"])
    return _regret(
        {
            "trial": trial["number"],
            **trial["point"],
            "proxy": trial["score"],
            "private": private[trial["number"]],
        }
        for trial in result["trials"]
        if trial["number"] in private
    )


def _regret(found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    rows = list(found)
    picked = max(rows, key=lambda row: row["proxy"])
    best = max(row["private"] for row in rows)
    return {
        "rows": rows,
        "regret": best - picked["private"],
        "best private": best,
        "picked, private": picked["private"],
        "mean private": sum(row["private"] for row in rows) / len(rows),
        "worst private": min(row["private"] for row in rows),
        "rank correlation": float(
            scipy.stats.spearmanr([r["proxy"] for r in rows], [r["private"] for r in rows])[0]
        ),
    }


def _private_scores(recipe: Recipe, out: Path, trials: list[dict[str, Any]]) -> dict[int, float]:
    planner = Planner(
        recipe=recipe, places=places(recipe, str(out / "sweep")), home=str(out), proxy=None
    )
    build_public(planner.public_job(0, {}))
    found = {}
    for trial in trials:
        if trial["state"] == "done":
            job = replace(planner.job(trial["number"], trial["point"]), score_noise=None)
            found[trial["number"]] = list(run_trial(job))[-1].score
            print(f"trial {trial['number']} on private images: {found[trial['number']]:.3f}")
    return found


def secret(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Chooses the best of a secret number of runs; what may be told of it."""
    space = POINTS["small" if options.small else "full"]
    more = [
        *(SMALL if options.small else []), f"sweep.space={space}", "sweep.solve=noise_multiplier",
        "sweep.promise=repeat_and_select", f"sweep.runs.mean={options.mean}",
        "runtime.backend=process", *options.overrides,
    ]  # fmt: skip
    result = run_sweep(load_recipe("digits", more), str(out))
    return {"winner": result["winner"]["point"], "price": result["price"]}


def mnist(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Scores three split steps at epsilon 1 on Kannada's digits."""
    more = [
        *AT_1, *GRID, "train.mode=surrogate", "evaluation.controls=false",
        "sweep.space={split.split_step: [300, 450, 600]}", "runtime.backend=process",
        *options.overrides,
    ]  # fmt: skip
    result = run_sweep(load_recipe("mnist", more), str(out))
    committed = json.loads((RESULTS / "mnist.json").read_text())["rows"]
    private = {
        row["run"]: row["mean"] for row in committed if row["set"] == "samples, from the prior"
    }
    runs = {450: "surrogate-1", 300: "surrogate-1-split-300", 600: "surrogate-1-split-600"}
    return _regret(
        {
            "trial": trial["number"],
            **trial["point"],
            "proxy": trial["score"],
            "private": private[runs[trial["point"]["split.split_step"]]],
            "seconds": sum(trial["seconds"].values()),
        }
        for trial in result["trials"]
        if trial["state"] == "done"
    )


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=["killed", "overhead", "regret", "secret"]
    )
    parser.add_argument("--small", action="store_true", help="rehearse on narrow networks")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--each", type=int, default=3, help="trials of a way of part overhead")
    parser.add_argument("--mean", type=int, default=4, help="runs of part secret, in the mean")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/sweep"))
    parser.add_argument("--fresh", action="store_true", help="remove what is in --out first")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--result", type=Path)
    return parser


def report(options: argparse.Namespace) -> None:
    if options.fresh:
        shutil.rmtree(options.out, ignore_errors=True)
    path = options.result or RESULTS / f"sweep{'-small' if options.small else ''}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    measures: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
        "killed": killed, "overhead": overhead, "regret": regret, "secret": secret, "mnist": mnist,
    }  # fmt: skip
    for part in options.parts:
        found[part] = measures[part](options, options.out.resolve() / part / "sweep")
        rows = found[part].get("rows", [])
        if rows:
            print(table(rows, list(rows[0])))
        print(json.dumps({k: v for k, v in found[part].items() if k != "rows"}, indent=1))
        found.setdefault("commands", {})[part] = command()
    write_json(path, {**found, "small": options.small})


if __name__ == "__main__":
    report(arguments().parse_args())
