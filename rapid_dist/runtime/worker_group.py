"""One group of Ray Train's workers, that is given one task after another.

What Train runs on a worker is a loop that asks the mailbox for the task to do. Train starts the
whole group again after a death: the task that was being done is then done again, by all. Workers
leave when the mailbox says so, or is gone.
"""

import gc
import shutil
import sys
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer  # As ray.train gives it, but typed.

import rapid_dist.errors
from rapid_dist.collective import TorchCollective, UnansweredError
from rapid_dist.errors import RapidError
from rapid_dist.methods.task import Task
from rapid_dist.runtime.beside_driver import Mailbox, place_beside_driver
from rapid_dist.runtime.metrics_log import event, wants_json
from rapid_dist.runtime.signals import Notice

POLL_SEC = 0.25
ROLL_SEC = 10.0  # For all workers to ask for a task, as each does every POLL_SEC.
CLOSE_SEC = 60.0  # For workers without a task to leave; they end with the driver at the latest.
ABORT_SEC = 30.0  # For Train to hear that its controller has ended; where cores are idle, one.
_HANGS = {UnansweredError.__name__, "WorkerHealthCheckTimeoutError"}  # Ray's is not public.
CONTROLLER_FAILURES = 2  # Train's default is no limit: a group that fits nowhere, for ever.
PREEMPTIONS = 100  # Nodes that were taken away; no limit by default as well.
LEAVE_SEC = 120.0  # For the step that is being made, and its checkpoint.


class WorkerGroup:
    """A trainer that lasts until the group is closed, or has failed once too often."""

    def __init__(
        self,
        *,
        num_workers: int,
        threads: int,
        use_gpu: bool,
        max_failures: int,
        labels: Mapping[str, str] | None = None,
        run: str = "",
        hang_minutes: float = 30.0,
        notice: Notice | None = None,
    ) -> None:
        """Starts it.

        Args:
          labels: of nodes that may hold a worker; all nodes by default.
          run: what the workers' logs are of.
          hang_minutes: how long workers wait for one that does not answer.
          notice: whether the driver was told to leave.
        """
        self._run_name = run
        self._notice = notice or Notice()
        self._num_workers = num_workers
        self._mailbox = place_beside_driver(Mailbox, num_workers)
        # Train's own records, of no use to us: a fresh name each time, so that Train never
        # resumes by itself, in a folder that is removed.
        records = tempfile.mkdtemp(prefix="rapid-train-")
        # At the end of the process at the latest: it may be interrupted before it is closed.
        self._remove_records = weakref.finalize(self, shutil.rmtree, records, ignore_errors=True)
        gpus = {"GPU": 1} if use_gpu else {}
        self._trainer = TorchTrainer(
            _served(self._mailbox, threads, wants_json()),
            # Bytes go by Gloo either way; a sum goes by where its vector is.
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo",
                timeout_s=max(1, round(60 * hang_minutes)),
            ),
            scaling_config=ScalingConfig(
                num_workers=num_workers,
                use_gpu=use_gpu,  # Train then makes each worker's device its default.
                resources_per_worker={"CPU": threads, **gpus},
                label_selector=dict(labels) if labels else None,
            ),
            run_config=RunConfig(
                name=f"workers-{uuid.uuid4().hex}",
                storage_path=records,
                failure_config=FailureConfig(
                    max_failures=max_failures,
                    controller_failure_limit=CONTROLLER_FAILURES,
                    max_preemption_failures=PREEMPTIONS,
                ),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        self._outcome: list[Exception] = []
        self._is_idle = True
        # Beside the main thread, because in it ``fit`` takes over Ctrl-C for good and turns an
        # aborted run into exit code 0.
        self._thread = threading.Thread(target=self._fit, name="fit workers", daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:
            self._outcome.append(error)

    def can_serve(self, num_workers: int) -> bool:
        """Whether it is of this size, has never failed, and all its workers answer.

        One that has failed gets no further task: each has all of ``max_failures`` to itself.
        """
        if num_workers != self._num_workers:
            return False
        try:
            ray.get(self._mailbox.call_roll.remote())
            give_up = time.monotonic() + ROLL_SEC
            while self._thread.is_alive() and time.monotonic() < give_up:
                if ray.get(self._mailbox.is_whole.remote()):
                    return True
                self._thread.join(POLL_SEC / 4)
        except RayActorError:
            pass  # No mailbox any more: its workers have left, or are about to.
        return False

    def run(
        self, task: Task, name: str, on_report: Callable[[dict[str, float], str], None]
    ) -> None:
        """Returns when every worker has done the task; hands on what they report."""
        given = ray.put(task)  # In a list below, or Ray would open it for the mailbox.
        self._is_idle = False
        try:
            ray.get(self._mailbox.give.remote([given, self._run_name, name]))
            self._follow(name, on_report)
        except RayActorError as error:
            raise RapidError(
                f"Stage {name} failed: Ray's processes on the driver's node have ended, the "
                "mailbox of its workers among them. Look why there, then run the same command "
                "again to resume."
            ) from error

    def _follow(self, name: str, on_report: Callable[[dict[str, float], str], None]) -> None:
        leaves = Leave(self._notice, self._mailbox)
        while True:
            self._thread.join(POLL_SEC)
            leaves.look()
            is_over = not self._thread.is_alive()  # Asked first: no last report is missed.
            reports, is_done = ray.get(self._mailbox.collect.remote())
            for figures, part in reports:
                on_report(figures, part)
            if is_done:
                self._is_idle = True
                return
            if is_over:
                self._raise_failure(name)

    def _raise_failure(self, name: str) -> None:
        refusal = ray.get(self._mailbox.refusal.remote())
        if refusal is not None:
            kind, message = refusal
            raise getattr(rapid_dist.errors, kind)(message)
        assert self._outcome, "A trainer without error ends when it is closed or refused."
        raise RapidError(_in_one_line(name, self._outcome[0])) from self._outcome[0]

    def close(self) -> None:
        """Ends the workers: those without a task when they have heard of it, others at once."""
        try:
            if self._is_idle and self._thread.is_alive():
                with suppress(RayActorError):
                    ray.get(self._mailbox.end.remote())
                self._thread.join(CLOSE_SEC)
        finally:
            self._abort()
            ray.kill(self._mailbox)
            self._remove_records()

    def _abort(self) -> None:
        """Has ``fit`` return, if it has not.

        A thread that still asks Ray something while Ray is left ends the whole process, with
        status 1 and a line of Ray's own.
        """
        give_up = time.monotonic() + ABORT_SEC
        while self._thread.is_alive() and time.monotonic() < give_up:
            controller = _controller_of(self._thread)
            if controller is not None:
                ray.kill(controller)
            self._thread.join(POLL_SEC)


def _controller_of(thread: threading.Thread) -> Any:
    """Returns the actor that ``fit`` waits for in a thread, once it does; workers end with it.

    It is looked for in the thread's frames, for Train gives nobody a handle.
    """
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        found = frame.f_locals.get("controller")
        if isinstance(found, ActorHandle):  # Other frames may have something else of that name.
            return found
        frame = frame.f_back
    return None


class Leave:
    """Hands a notice that the driver was given on to the workers, and leaves when they have."""

    def __init__(self, notice: Notice, mailbox: Any) -> None:
        self._notice, self._mailbox = notice, mailbox
        self._give_up: float | None = None  # When nobody is waited for any more.

    def look(self) -> None:
        """Raises ``KeyboardInterrupt`` once the workers' checkpoint is written, or late."""
        self._notice.hear()
        if not self._notice.is_given:
            return
        if self._give_up is None:
            self._give_up = time.monotonic() + LEAVE_SEC
            ray.get(self._mailbox.leave.remote())
        if ray.get(self._mailbox.has_left.remote()) or time.monotonic() > self._give_up:
            raise KeyboardInterrupt


def _served(mailbox: Any, threads: int, logs: bool) -> Callable[[], None]:
    """Returns what Ray Train runs on every worker."""

    def serve() -> None:
        torch.set_num_threads(threads)
        with suppress(_GoneError):
            _Server(mailbox, logs).serve()

    return serve


class _GoneError(Exception):
    """The mailbox has been closed, and its driver waits for nothing more."""


class _LeftError(Exception):
    """The driver leaves, and what was done so far is in a checkpoint, if the loop has any."""


def _asked(reference: Any) -> Any:
    """Returns the mailbox's answer. A task's own actors may die as well: that is a failure."""
    try:
        return ray.get(reference)
    except RayActorError:
        raise _GoneError from None


class _Server:
    """One worker of a group, from a start of it to its end."""

    def __init__(self, mailbox: Any, logs: bool) -> None:
        self._mailbox = mailbox
        self._logs = logs
        self._answer: Any = None  # Of the mailbox, to the last report.
        self._was_told = False
        self._collective = TorchCollective()
        self._start = self._known_to_all(self._begin() if self._collective.rank == 0 else 0)

    def _begin(self) -> int:
        try:
            number: int = _asked(self._mailbox.begin.remote())
        except _GoneError:
            return 0  # To be told to the others, who would wait for it.
        return number

    def _known_to_all(self, own: int) -> int:
        return int.from_bytes(self._collective.broadcast_bytes(own.to_bytes(8, "big")), "big")

    def serve(self) -> None:
        """Does task after task, until the mailbox says that it is over."""
        done, rank = 0, self._collective.rank
        while self._start and not _asked(self._mailbox.is_over.remote()):
            order = _asked(self._mailbox.next_after.remote(done, rank))
            if order is None:
                time.sleep(POLL_SEC)
                continue
            done, given = order
            given, run, name = given
            self._log(run, "begins", name)
            self._do(given)
            self._log(run, "done", name)
            del order, given
            gc.collect()  # What a task leaves in cycles takes memory from the next one.
            torch.cuda.empty_cache()
            _asked(self._mailbox.finish.remote(self._start, rank))

    def _log(self, run: str, kind: str, stage: str) -> None:
        """Says in this worker's own log, where that is JSON, which stage it is at."""
        if self._logs:
            event(run, self._collective.rank, kind, stage=stage)

    def _do(self, given: Any) -> None:
        """Does a task, nothing of which is held here afterwards."""
        task: Task = ray.get(given)
        try:
            task(self._collective, self._report)
        except RapidError as error:
            with suppress(_GoneError):
                _asked(self._mailbox.refuse.remote(type(error).__name__, str(error)))
            raise

    def _report(self, figures: dict[str, float], part: str = "") -> Callable[[], None] | None:
        """Posts a report, and waits for nothing: what the mailbox answers is read at the next."""
        if self._collective.rank != 0 or not figures:
            return None
        before, self._answer = self._answer, self._mailbox.post.remote(figures, part)
        if part:
            return None
        if before is not None and ray.wait([before], timeout=0)[0] and _asked(before):
            if self._was_told:  # This loop has no checkpoints.
                self._leave()
            self._was_told = True
            return self._leave
        # A node that is about to be taken away: Train starts the group again elsewhere when it is.
        # Until then every step may be the last.
        return _go_on if is_preempted() else None

    def _leave(self) -> None:
        _asked(self._mailbox.left.remote())
        raise _LeftError


def is_preempted() -> bool:
    """Whether Ray has said that a node of this group will be taken away.

    ``ray.train.get_preemption_info`` says the same, and has all ranks wait for each other to do so.
    """
    return get_train_context().preemption_context.preemption_info is not None


def _go_on() -> None:
    pass


def _in_one_line(name: str, failure: Exception) -> str:
    """Returns what went wrong without any message of the loop's own, which may be private (P9)."""
    failures: dict[int, Exception] = getattr(failure, "worker_failures", {})
    kinds = sorted({type(error).__name__ for error in failures.values()})
    if kinds and {*kinds} <= _HANGS:  # And none has died, which the others wait for as well.
        return (
            f"Stage {name} failed: a worker did not answer the others, for it hangs or has lost "
            "its network, and runtime.max_failures allows no further start. Look at the nodes, "
            "then run the same command again to resume; runtime.hang_minutes is how long is waited."
        )
    cause = f"its workers raised {', '.join(kinds)}" if kinds else type(failure).__name__
    return (
        f"Stage {name} failed: {cause}, and runtime.max_failures allows no further start. Run the "
        "same command again to resume, with --debug for the traceback."
    )
