"""What a sweep leaves behind: a page, and nested runs in MLflow, a parent and a child a trial."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rapid_dist.config import Recipe, to_tree
from rapid_dist.release.sweep_page import render_sweep
from rapid_dist.runtime.sweep_book import Trial
from rapid_dist.runtime.tracking import TrackedRun, Tracker
from rapid_dist.runtime.tracking_place import internal_place, server_of, tracking_place
from rapid_dist.storage import Storage

PAGE = "sweep.html"


def write_page(
    home: Storage, result: Mapping[str, Any], trials: Sequence[Trial], winner: int
) -> None:
    """Writes the page where the book lies."""
    page = render_sweep(result, [asdict(trial) for trial in trials], winner)
    home.write(PAGE, page.encode())


def record_sweep(
    out: str, recipe: Recipe, result: Mapping[str, Any], trials: Sequence[Trial], winner: int
) -> None:
    """Tells MLflow of a finished sweep; one whose number of runs is secret, in the internal store.

    It is told at the end, so that a sweep that was cut off and went on is one record.
    """
    place = tracking_place(server_of(recipe.tracking), out)
    experiment = f"{recipe.tracking.experiment}-sweeps"
    if result["promise"] == "repeat_and_select":
        place, experiment = internal_place(place), f"{experiment}-internal"
    price, best = result["price"], result["winner"]
    tags = {
        "promise": result["promise"],
        "dataset": result["dataset"],
        "sentence": price["sentence"],
    }
    tracker = Tracker(place, experiment)
    with tracker.run(result["name"], out=out, key=f"sweep of {out}", tags=tags) as run:
        run.log_params({**to_tree(recipe), "winner": best["point"]})
        run.log_metrics({"privacy.epsilon": price["epsilon"], "score": best["score"]})
        for trial in trials:
            with run.child(f"trial {trial.number:03d}", tags={"state": trial.state}) as child:
                _record_trial(child, trial, chosen=trial.number == winner)


def _record_trial(child: TrackedRun, trial: Trial, *, chosen: bool) -> None:
    child.log_params(trial.point)
    child.set_tags({"chosen": str(chosen).lower(), "reason": trial.reason})
    figures = {
        "score": trial.score,
        "privacy.epsilon": trial.epsilon,
        "privacy.steps": trial.steps,
        "privacy.noise_multiplier": trial.noise_multiplier,
        **{f"seconds.{name}": value for name, value in trial.seconds.items()},
    }
    child.log_metrics({name: float(value) for name, value in figures.items() if value is not None})
