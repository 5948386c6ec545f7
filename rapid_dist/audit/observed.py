"""A run of the product's loop, with everything that can be seen of it from outside.

The parts under test are the subject's; around them stand watchers that change nothing: of the
releases, of the optimizer, of the messages between workers, of the keeper, of the ledger's files
and of what is written and printed.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from rapid_dist.audit.contained import Contained, contained
from rapid_dist.audit.subject import Subject
from rapid_dist.audit.workers import ThreadWorkers
from rapid_dist.collective import Collective
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import RapidError
from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.step import PrivateStep
from rapid_dist.storage import LocalStorage

Canned = Callable[[torch.Tensor, int], torch.Tensor]  # (what would be released, step) -> instead


class Crash(Exception):
    """Ends a run after a step, before its checkpoint."""


@dataclass(kw_only=True)
class Observed:
    """What was seen of one go at a run, on rank 0 unless it says otherwise."""

    released: list[tuple[int, int]] = field(default_factory=list)  # (attempt, step), in order.
    updates: int = 0  # Of the optimizer, however it came by its gradient.
    looks: int = 0  # How often it was looked whether an entry was durable.
    late: int = 0  # Sums that were made, or released, before their entry was durable.
    messages: list[list[tuple[str, int]]] = field(default_factory=list)  # Of every rank.
    asked: list[tuple[Any, ...]] = field(default_factory=list)  # Of the keeper.
    figures: list[dict[str, float]] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)  # At the end.
    refusal: str = ""  # By which the product ended it.
    said: Contained | None = None


class DurableFolder:
    """The ledger's folder, and which of its files have been synced to the disk."""

    def __init__(self, root: Path, dataset: str) -> None:
        self.storage = LocalStorage(root, sync=self._synced_now)
        self._root, self._dataset = root, dataset
        self._synced: set[int] = set()

    def _synced_now(self, descriptor: int) -> None:
        self._synced.add(os.fstat(descriptor).st_ino)

    def durable_steps(self) -> int:
        """Entries of steps that a power cut would leave."""
        return self.durable("step")

    def durable(self, kind: str) -> int:
        """Entries of a kind that a power cut would leave, read from the files themselves."""
        folder = self._root / self._dataset
        if not folder.is_dir() or folder.stat().st_ino not in self._synced:
            return 0
        entries = [p for p in folder.glob("*.json") if p.stat().st_ino in self._synced]
        return sum(json.loads(path.read_bytes())["kind"] == kind for path in entries)

    def ledger(self) -> Ledger:
        """The ledger as somebody else reads it."""
        return Ledger.open(LocalStorage(self._root), self._dataset)


def observe(
    subject: Subject,
    folder: Path,
    budget: Budget,
    *,
    crash_after: int | None = None,
    canned: Canned | None = None,
    workers: ThreadWorkers | None = None,
) -> Observed:
    """Runs the subject's loop once in ``folder``; run again there, it resumes.

    Args:
      crash_after: the step after which the run ends by an error.
      canned: what is released instead of what the mechanism would; the mechanism runs all the same.
    """
    seen, ledger = Observed(), _folder_of(folder, subject)
    before = ledger.durable_steps()
    keeper = subject.make_keeper(
        ledger.storage, subject.images.spec.name, subject.mechanism, budget
    )
    group = workers or ThreadWorkers(1)

    def paid() -> None:
        seen.late += ledger.durable_steps() < before + len(seen.released) + 1

    watched = replace(subject, step_type=_watched(subject.step_type, seen, paid, canned))
    denoisers = [subject.make_denoiser() for _ in range(group.world_size)]

    def task(collective: Collective) -> None:
        def on_step(figures: dict[str, float]) -> None:
            if collective.rank == 0:
                seen.figures.append(dict(figures))
                if len(seen.figures) == crash_after:
                    raise Crash

        rank = collective.rank
        around = _WatchedCollective(collective, paid)
        store = LocalStorage(folder / "checkpoints", sync=lambda descriptor: None)
        watched.run(
            around, WatchedKeeper(keeper, seen), store, denoiser=denoisers[rank], on_step=on_step
        )

    with contained(folder) as said, _counted(seen), contextlib.suppress(Crash):
        try:
            group.run(task)
        except RapidError as error:
            seen.refusal = str(error)
    seen.updates //= group.world_size
    seen.messages, seen.said = group.messages, said
    seen.weights = [tensor.detach().clone() for tensor in denoisers[0].state_dict().values()]
    return seen


def ledger_of(subject: Subject, folder: Path) -> Ledger:
    """Returns the ledger that runs observed in ``folder`` were charged to, read anew."""
    return _folder_of(folder, subject).ledger()


def keeper_of(subject: Subject, folder: Path, budget: Budget) -> LedgerKeeper:
    """Returns a new keeper of that ledger."""
    storage = _folder_of(folder, subject).storage
    return subject.make_keeper(storage, subject.images.spec.name, subject.mechanism, budget)


def _folder_of(folder: Path, subject: Subject) -> DurableFolder:
    return DurableFolder(folder / "ledger", subject.images.spec.name)


@contextlib.contextmanager
def _counted(seen: Observed) -> Iterator[None]:
    """Counts the steps of every optimizer of this process."""

    def count(optimizer: object, args: object, kwargs: object) -> None:
        seen.updates += 1

    handle = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _watched(
    step_type: type[PrivateStep], seen: Observed, paid: Callable[[], None], canned: Canned | None
) -> type[PrivateStep]:
    class Watched(step_type):  # type: ignore[misc, valid-type]
        def noised_gradient(self, denoiser: Denoiser, step: int) -> torch.Tensor:
            released: torch.Tensor = super().noised_gradient(denoiser, step)
            if self.collective.rank == 0:
                paid()
                seen.released.append((self.attempt, step))
            return released if canned is None else canned(released, step)

    return Watched


class _WatchedCollective:
    """Looks whether a step is paid for at the moment in which its sum is made."""

    def __init__(self, inner: Collective, paid: Callable[[], None]) -> None:
        self._inner, self._paid = inner, paid
        self.rank, self.world_size = inner.rank, inner.world_size

    def sum_(self, flat: torch.Tensor) -> None:
        if self.rank == 0:
            self._paid()
        self._inner.sum_(flat)

    def broadcast_bytes(self, payload: bytes) -> bytes:
        return self._inner.broadcast_bytes(payload)

    def least(self, number: int) -> int:
        return self._inner.least(number)

    def barrier(self) -> None:
        self._inner.barrier()


class WatchedKeeper:
    """Notes what the keeper is asked, and by how many arguments."""

    def __init__(self, inner: LedgerKeeper, seen: Observed) -> None:
        self._inner, self._seen = inner, seen

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def asked(*args: Any, **named: Any) -> Any:
            self._seen.asked.append((name, args, tuple(sorted(named.items()))))
            return method(*args, **named)

        return asked

    def begin_attempt(self, after: tuple[int, int] | None = None) -> Any:
        return self.__getattr__("begin_attempt")(after)

    def charge(self, step: int, attempt: int | None = None) -> None:
        self.__getattr__("charge")(step, attempt)

    def stop_short(self, step: int, attempt: int | None = None) -> None:
        self._seen.refusal = "The budget pays for no more."
        self.__getattr__("stop_short")(step, attempt)
