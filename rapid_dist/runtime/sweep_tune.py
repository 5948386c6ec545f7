"""Runs the trials of a sweep on Ray Tune: the one shape that Tune and Train V2 support together.

A trial is a function that Tune runs in a process of its own; inside, it starts Ray Train's workers
as any run does (or none, with ``sweep.runner: process``). Tune decides how many run at once and,
with ASHA, which go on; it never stops a trial inside a stage, for a trial reports between rungs
alone. What Tune itself keeps of a sweep is pickled, so nothing of it is read again: the book is the
memory, and Tune's own folder is thrown away.
"""

import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from rapid_dist.config import RuntimeConfig
from rapid_dist.errors import ConfigError, RapidError
from rapid_dist.methods.sweep_settings import SweepConfig
from rapid_dist.runtime.needs import needs
from rapid_dist.runtime.sweep_book import Book
from rapid_dist.runtime.sweep_trial import Rung, TrialJob, run_trial

ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Its tables on our stdout, which --json ends.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Files of its own for every trial.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: it must not look like an end.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # A trial that fails reports no score.
}
SHARE = "share"  # What ASHA goes by: whole parts of the training.
_SLIVER = {"memory": 1}  # A byte: Tune wants some resource, and a share of a CPU costs a worker.


def run_on_tune(
    book: Book,
    config: SweepConfig,
    runtime: RuntimeConfig,
    resources: Mapping[str, float],
    on_change: Callable[[], None],
    *,
    beside: bool = False,
) -> None:
    """Runs trials until the book has no more; a connection to Ray is there.

    Args:
      resources: what the cluster has, by Ray's names.
      on_change: called whenever the book has changed.
      beside: whether a trial has searchers beside its training workers.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    at_once = max_concurrent(config, runtime, resources, beside=beside)
    storage = tempfile.mkdtemp(prefix="rapid-tune-")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # It misses files that nobody wants.
    own = config.runner == "process" or runtime.backend == "process"
    asked: dict[str, float] = {"cpu": runtime.threads_per_worker} if own else dict(_SLIVER)
    try:
        tune.Tuner(
            tune.with_resources(_Trainable(), asked),
            tune_config=tune.TuneConfig(
                search_alg=_FromBook(book, on_change),
                scheduler=_scheduler(config),
                metric="score",
                mode="max",
                num_samples=-1,  # The book says when there is none left.
                max_concurrent_trials=at_once,
                trial_dirname_creator=_trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"sweep-{uuid.uuid4().hex}",
                storage_path=storage,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0, fail_fast=False),
            ),
        ).fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def max_concurrent(
    config: SweepConfig,
    runtime: RuntimeConfig,
    resources: Mapping[str, float],
    *,
    beside: bool = False,
) -> int:
    """Returns how many trials the cluster holds at once, by its CPUs, memory and GPUs.

    Asked beforehand, because Ray Train would try for ever to start workers that fit nowhere.

    Raises:
      ConfigError: sweep.concurrent asks for more.
    """
    if config.runner == "process" or runtime.backend == "process":
        cpus, memory, gpus = runtime.threads_per_worker, runtime.memory_gb, 0
    else:
        asked = needs(runtime, beside=beside)
        cpus, memory, gpus = asked.cpus, asked.memory_gb, asked.gpus
    fits = [resources.get("CPU", 0.0) / cpus]
    if memory and "memory" in resources:
        fits.append(resources["memory"] / 2**30 / memory)
    if gpus:
        fits.append(resources.get("GPU", 0.0) / gpus)
    most = max(1, int(min(fits)))
    if config.concurrent is not None and config.concurrent > most:
        raise ConfigError(
            f"sweep.concurrent is {config.concurrent}, the cluster holds {most} at once. Lower it, "
            "or runtime.workers, or add nodes."
        )
    return config.concurrent or most


def describe_failure(error: Exception) -> str:
    """Returns how a trial failed; of an unforeseen error its kind alone, for it may quote (P9)."""
    return str(error) if isinstance(error, RapidError) else type(error).__name__


def _trial_id(trial: Any) -> str:
    """A folder's name; Tune would make it of the whole trial."""
    return str(trial.trial_id)


class _Trainable:
    """What Tune runs. A failure is a report like any other: Tune would print its traceback."""

    __name__ = "trial"

    def __call__(self, config: dict[str, Any]) -> None:
        job: TrialJob = config["job"]
        unit = min(job.fractions)
        try:
            for rung in run_trial(job):
                # The session is that of this call, so it is asked here and nowhere deeper.
                told = json.dumps(asdict(rung))  # As text: Tune flattens what is nested.
                tune.report({"score": rung.score, SHARE: round(rung.fraction / unit), "rung": told})
        except Exception as error:
            tune.report({"failed": describe_failure(error), SHARE: round(1 / unit)})


class _FromBook(Searcher):
    """Tune's view of the book."""

    def __init__(self, book: Book, on_change: Callable[[], None]) -> None:
        super().__init__(metric="score", mode="max")
        self._book, self._on_change = book, on_change
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        job = self._book.next()
        self._on_change()
        if job is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = job.number
        return {"job": job}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        number = self._numbers[trial_id]
        if "failed" in result:
            self._book.failed(number, result["failed"])
        elif "rung" in result:
            self._book.rung(number, Rung(**json.loads(result["rung"])))
        self._on_change()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if result and not error:
            self.on_trial_result(trial_id, result)
        number = self._numbers[trial_id]
        if error:
            self._book.failed(number, "its process died")
        else:
            self._book.stopped(number)
        self._on_change()

    def __getstate__(self) -> dict[str, Any]:
        """What Tune pickles of it to restore a sweep by, which nobody does: nothing."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the book is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: Tune's own state is never read again."""


def _scheduler(config: SweepConfig) -> TrialScheduler:
    if config.scheduler != "asha":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    return AsyncHyperBandScheduler(
        time_attr=SHARE,
        max_t=config.reduction ** (config.rungs - 1),
        grace_period=1,
        reduction_factor=config.reduction,
    )
