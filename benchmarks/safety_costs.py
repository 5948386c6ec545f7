"""What ledger and checkpoints cost of a step, and a killed worker of a checkpoint interval.

Called by chaos.py, which writes what is found to its file and into the document.
"""

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from networks import networks
from output import RESULTS
from step_parts import Setting, run_worker

from rapid_dist.collective import SingleProcess
from rapid_dist.config import load_recipe
from rapid_dist.diffusion.checkpoint import Checkpoints, training_state
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdEvent
from rapid_dist.storage import LocalStorage

STEPS = {"digits": 20, "mnist": 8}  # Of a recipe's own batch and draws, after one that warms up.
SAVES = 9
COLUMNS = {
    "lost": (
        "a worker is killed", "interval seconds", "starting again", "lost seconds",
        "lost intervals",
    ),
    "costs": (
        "recipe", "step seconds", "charge, beside the sum", "charge adds", "checkpoint",
        "checkpoint every", "share", "share if all was waited for", "interval seconds",
    ),
}  # fmt: skip
EVERY = 3  # Steps between two checkpoints of the run whose workers are killed.


def costs() -> list[dict[str, Any]]:
    """Returns what the ledger and the checkpoints add to steps of recipes, on one thread."""
    return [_costs_of(name, steps) for name, steps in STEPS.items()]


def _costs_of(name: str, steps: int) -> dict[str, Any]:
    """Makes a recipe's steps with a ledger on the disk, and saves its checkpoint some times.

    A charge is made by a thread beside the sum. It adds the time that the thread works (for there
    is one core), and what the sum has to wait for it once it is there itself. A checkpoint is
    waited for, syncing included.
    """
    recipe = load_recipe(name)
    every, batch = recipe.train.checkpoint_every, recipe.privacy.expected_batch
    assert batch is not None, "The recipe declares it."
    setting = Setting(
        network=name, batch=round(batch), draws=recipe.train.multiplicity, micro_batch=64,
        steps=steps,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        keeper = _Keeper(Path(folder), setting.steps + 1)
        parts = run_worker(setting, SingleProcess(), Path(folder), keeper)
        saves = _saves(name, Path(folder))
    beside = parts["rows"] + parts["compute"]
    waited = [max(0.0, took - beside) for took in keeper.took[1:]]
    charge = median(keeper.worked[1:]) + sum(waited) / len(waited)
    save = median(saves)
    return {
        "recipe": name,
        "step seconds": parts["step"],
        "charge, beside the sum": median(keeper.took[1:]),
        "charge adds": charge,
        "checkpoint": save,
        "checkpoint every": every,
        "share": (charge + save / every) / parts["step"],
        "share if all was waited for": (median(keeper.took[1:]) + save / every) / parts["step"],
        "interval seconds": every * parts["step"],
    }


class _Keeper:
    """Charges a ledger on the disk; notes how long that takes, and how much of it is work."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._ledger = Ledger.open(folder / "costs", "private")
        self.affordable_steps = steps
        self.took: list[float] = []
        self.worked: list[float] = []

    def begin_attempt(self, after: tuple[int, int] | None = None) -> Any:
        self.number = self._ledger.begin_attempt("run")
        return self

    def charge(self, step: int, attempt: int | None = None) -> None:
        event = DpSgdEvent(sample_rate=0.1, noise_multiplier=1.0, steps=1)
        worked, start = time.thread_time(), time.perf_counter()
        self._ledger.append("step", "run", attempt=self.number, step=step, event=event)
        self.took.append(time.perf_counter() - start)
        self.worked.append(time.thread_time() - worked)


def _saves(name: str, folder: Path) -> list[float]:
    """Returns the seconds of writing a recipe's checkpoint, time after time."""
    parameters = list(networks()[name].open().parameters())
    optimizer = torch.optim.Adam(parameters, foreach=False)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = training_state(parameters, [p.detach() for p in parameters], optimizer)
    checkpoints = Checkpoints(LocalStorage(folder / "checkpoints"))
    took = []
    for step in range(SAVES):
        start = time.perf_counter()
        checkpoints.save(step, state, {})
        took.append(time.perf_counter() - start)
    return took[2:]  # From the third on, each removes an older one.


def usual_intervals() -> dict[str, float]:
    """Returns seconds between two checkpoints of recipes, by the steps of overhead.json."""
    rows = json.loads((RESULTS / "overhead.json").read_text())["rows"]
    found = {}
    for name in STEPS:
        recipe = load_recipe(name)
        wanted = (name, recipe.train.multiplicity, recipe.privacy.expected_batch, 1, 1)
        for row in rows:
            if wanted == tuple(row[c] for c in ("network", "K", "batch", "workers", "threads")):
                found[name] = recipe.train.checkpoint_every * row["step seconds"]
    return found


def lost(paced: list[dict[str, float]], intervals: dict[str, float]) -> list[dict[str, Any]]:
    """Returns what one killed worker costs: seconds, and in checkpoint intervals.

    What is lost is the time by which a run is later at a step than it would have been. It is what
    starting the workers again takes, and the steps since the last checkpoint: of these half an
    interval on average, a whole one at most.

    Args:
      paced: of each worker that was killed, the steps repeated, and seconds lost and of a step.
      intervals: seconds between two checkpoints, by recipe.
    """
    rows, starts = [], []
    for one in paced:
        interval = EVERY * one["step seconds"]
        starts.append(one["lost seconds"] - one["repeated"] * one["step seconds"])
        rows.append(
            {
                "a worker is killed": f"{one['repeated']} of {EVERY} steps repeated, measured",
                "interval seconds": interval,
                "starting again": starts[-1],
                "lost seconds": one["lost seconds"],
                "lost intervals": one["lost seconds"] / interval,
            }
        )
    start = median(starts) if starts else 0.0
    return rows + [
        {
            "a worker is killed": f"recipe {name}, {when}, computed",
            "interval seconds": interval,
            "starting again": start,
            "lost seconds": start + share * interval,
            "lost intervals": share + start / interval,
        }
        for name, interval in (intervals if starts else {}).items()
        for when, share in (("at any moment", 0.5), ("just before a checkpoint", 1.0))
    ]
