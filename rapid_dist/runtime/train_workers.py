"""Runs one training loop on a group of workers: Ray Train's, or this process alone.

A loop is a function of (collective, report). On Ray Train it gets a process group and nothing else
of Train: no wrapped model, no rebuilt loader, no DDP hook, for each of those changes what a
private step computes. Checkpoints are the loop's own; after a worker's death all workers start the
loop again, and it resumes from them.

What a loop reports goes to a mailbox on the driver's node, from rank 0, without waiting: a report
is no barrier, so no loop can hang because one rank had nothing to say. Reports are public (P9).
"""

import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer  # As ray.train gives it, but typed.

import rapid_dist.errors
from rapid_dist.collective import SingleProcess, TorchCollective
from rapid_dist.errors import RapidError
from rapid_dist.methods.context import Task
from rapid_dist.runtime.beside_driver import Mailbox, place_beside_driver

POLL_SEC = 0.25
CONTROLLER_FAILURES = 2  # Train's default is no limit: a group that fits nowhere, for ever.


class ProcessWorkers:
    """The group of one: the loop runs here, in this process."""

    def __init__(self, *, threads: int, on_report: Callable[[str, dict[str, float]], None]) -> None:
        self._threads = threads
        self._on_report = on_report

    def run(self, task: Task, *, name: str, num_workers: int) -> None:
        """Runs the loop once; the world has size one whatever ``num_workers`` says."""
        torch.set_num_threads(self._threads)

        def report(figures: dict[str, float], part: str = "") -> None:
            self._on_report(f"{name} {part}".rstrip(), figures)

        task(SingleProcess(), report)


class RayWorkers:
    """Workers of Ray Train V2, one process group for each run of a loop."""

    def __init__(
        self,
        *,
        threads: int,
        max_failures: int,
        on_report: Callable[[str, dict[str, float]], None],
        device: str = "cpu",
    ) -> None:
        self._threads = threads
        self._gpus = {"GPU": 1} if device == "cuda" else {}
        self._max_failures = max_failures
        self._on_report = on_report

    def run(self, task: Task, *, name: str, num_workers: int) -> None:
        """Runs the loop on ``num_workers`` workers until every one of them has returned.

        A worker that dies takes the group down; the group is started again at most
        ``max_failures`` times. A refusal (any ``RapidError``) is final: it is raised here as it
        was raised there, and nothing is tried again.
        """
        mailbox = place_beside_driver(Mailbox)
        # Train's own records, of no use to us: a fresh name each time, so that Train never
        # resumes by itself, in a folder that is removed.
        storage = tempfile.mkdtemp(prefix="rapid-train-")
        trainer = TorchTrainer(
            _loop(task, mailbox, self._threads),
            # Bytes go by Gloo either way; a sum goes by where its vector is.
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if self._gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=num_workers,
                use_gpu=bool(self._gpus),  # Train then makes each worker's device its default.
                resources_per_worker={"CPU": self._threads, **self._gpus},
            ),
            run_config=RunConfig(
                name=f"{name}-{uuid.uuid4().hex}",
                storage_path=storage,
                failure_config=FailureConfig(
                    max_failures=self._max_failures,
                    controller_failure_limit=CONTROLLER_FAILURES,
                ),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            failure = self._watch(trainer, mailbox, name)
            refusal = ray.get(mailbox.refusal.remote())
        finally:
            ray.kill(mailbox)
            shutil.rmtree(storage, ignore_errors=True)
        if refusal is not None:
            kind, message = refusal
            raise getattr(rapid_dist.errors, kind)(message)
        if failure is not None:
            raise RapidError(_in_one_line(name, failure)) from failure

    def _watch(self, trainer: TorchTrainer, mailbox: Any, name: str) -> Exception | None:
        """Hands reports on until the trainer is done; returns what it failed with, if it did.

        ``fit`` runs beside the main thread because in the main thread it takes over Ctrl-C for
        good and turns an aborted run into exit code 0.
        """
        outcome: list[Exception] = []

        def fit() -> None:
            try:
                trainer.fit()
            except Exception as error:
                outcome.append(error)

        thread = threading.Thread(target=fit, name=f"fit {name}", daemon=True)
        thread.start()
        while True:
            thread.join(POLL_SEC)
            finished = not thread.is_alive()  # Asked first, so that no last report is missed.
            for figures, part in ray.get(mailbox.collect.remote()):
                self._on_report(f"{name} {part}".rstrip(), figures)
            if finished:
                return outcome[0] if outcome else None


def _loop(task: Task, mailbox: Any, threads: int) -> Callable[[], None]:
    """Returns what Ray Train runs on every worker."""

    def loop() -> None:
        if ray.get(mailbox.refusal.remote()) is not None:
            return  # Train has started the group again; a refusal does not change by asking twice.
        torch.set_num_threads(threads)
        collective = TorchCollective()

        def report(figures: dict[str, float], part: str = "") -> None:
            if collective.rank == 0:
                mailbox.post.remote(figures, part)

        try:
            task(collective, report)
        except RapidError as error:
            ray.get(mailbox.refuse.remote(type(error).__name__, str(error)))
            raise

    return loop


def _in_one_line(name: str, failure: Exception) -> str:
    """Returns what went wrong without any message of the loop's own, which may be private (P9)."""
    failures: dict[int, Exception] = getattr(failure, "worker_failures", {})
    kinds = sorted({type(error).__name__ for error in failures.values()})
    cause = f"its workers raised {', '.join(kinds)}" if kinds else type(failure).__name__
    return (
        f"Stage {name} failed: {cause}, and runtime.max_failures allows no further start. Run the "
        "same command again to resume, with --debug for the traceback."
    )
