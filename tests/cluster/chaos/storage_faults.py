"""Faults of disks and buckets, each tried on the part of the product that meets it.

A row is one fault at one point. What may come of it: the work is finished as if nothing had been,
or it stops with one line that names what failed and says how to go on, and then goes on. Whatever
comes, the ledger is whole, no update is made that is not charged, and no file is half there.
"""

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from botocore.config import Config

from rapid_dist.collective import SingleProcess
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.errors import StorageError
from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.loop import train_private
from rapid_dist.storage import (
    AlreadyExists,
    LocalStorage,
    S3Storage,
    Storage,
    StorageMissing,
    s3_client,
)
from tests.cluster.chaos.proxy import FOREVER, Fault, FaultKind, FaultyProxy
from tests.models import draw_maker, mechanism, tiny_denoiser

STEPS, RESERVE = 4, 12
TRIES = 3  # Of a request, by the client of these tests.
ANSWER_SEC = 1.0  # That it waits for an answer where none comes,
PATIENCE_SEC = 60.0  # and where one does: a busy machine is no fault.
OPERATIONS = {
    "create": "PUT", "write": "PUT", "read": "GET", "list": "GET", "exists": "HEAD",
    "delete": "DELETE",
}  # fmt: skip
ONCE: tuple[FaultKind, ...] = ("500", "503", "reset", "stall", "lost answer", "500 after", "late")
LASTING: tuple[FaultKind, ...] = ("500", "503", "reset", "stall")
_ACCOUNT = {"region_name": "us-east-1", "aws_access_key_id": "a", "aws_secret_access_key": "b"}
EVENT = GaussianEvent(noise_multiplier=9.0)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault at one point."""

    kind: str
    point: str
    lasting: bool = False  # Until the client has given up, or else for one request.
    seed: int = 0

    @property
    def name(self) -> str:
        number = f" {self.seed}" if self.seed or self.point == "training" else ""
        return f"{self.kind}{' for good' if self.lasting else ''} at {self.point}{number}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a fault."""

    stopped: str = ""  # The line of the refusal; "" where nothing had to stop.


def rows() -> list[Row]:
    """Returns the table."""
    found = [Row(kind=kind, point=point) for point in OPERATIONS for kind in ONCE]
    found += [Row(kind=kind, point="read") for kind in ("torn body", "half then reset")]
    found += [Row(kind=kind, point=point, lasting=True) for point in OPERATIONS for kind in LASTING]
    found += [Row(kind="lost answer", point="create", lasting=True)]
    for point in ("ledger entry", "checkpoint"):
        found += [Row(kind=kind, point=point) for kind in ONCE]
        found += [Row(kind=kind, point=point, lasting=True) for kind in (*LASTING, "lost answer")]
    found += [Row(kind="a storm", point="training", seed=seed) for seed in range(6)]
    found += [Row(kind="full disk", point="training", seed=seed) for seed in range(14)]
    return found


class Bucket:
    """A bucket with a faulty proxy before it, and a way around it to look."""

    def __init__(self, endpoint: str, proxy: FaultyProxy, name: str) -> None:
        self.proxy = proxy
        direct = s3_client(endpoint_url=endpoint, **_ACCOUNT)
        direct.create_bucket(Bucket=name)
        self._name = name
        self._clients = [direct]
        self.direct = S3Storage(name, "", direct)

    def faulty(self, prefix: str, answer_sec: float = PATIENCE_SEC) -> S3Storage:
        """Returns a storage behind the proxy, by a client of its own.

        Boto allows a client a quota of tries for all requests together; no row uses up another's.
        """
        patience = Config(read_timeout=answer_sec, connect_timeout=PATIENCE_SEC)
        tries = {"total_max_attempts": TRIES}
        own = s3_client(endpoint_url=self.proxy.url, config=patience, retries=tries, **_ACCOUNT)
        self._clients.append(own)
        return S3Storage(self._name, prefix, own)

    def close(self) -> None:
        for client in self._clients:
            client.close()


def try_row(row: Row, bucket: Bucket, folder: Path, ledger_type: type[Ledger] = Ledger) -> Outcome:
    """Lets one fault happen; an ``AssertionError`` says which promise it has broken."""
    if row.kind == "full disk":
        return _on_full_disk(row, folder)
    place = row.name.replace(" ", "-")
    answer_sec = ANSWER_SEC if row.kind == "stall" else PATIENCE_SEC
    faulty, direct = bucket.faulty(place, answer_sec), bucket.direct.child(place)
    if row.point in OPERATIONS:
        return _operation(row, bucket.proxy, faulty, direct)
    if row.point == "ledger entry":
        return _ledger_entry(row, bucket.proxy, ledger_type.open(faulty, "faces"), direct)
    if row.point == "checkpoint":
        return _checkpoint(row, bucket.proxy, faulty, direct)
    return _storm(row, bucket.proxy, faulty, direct)


def _fault(row: Row, method: str, key: str = "") -> Fault:
    kind: Any = row.kind
    seconds = 0.2 if kind == "late" else ANSWER_SEC + 0.3
    return Fault(
        kind=kind, method=method, key=key, times=FOREVER if row.lasting else 1, seconds=seconds
    )


@contextmanager
def _stopping(row: Row, said: list[str]) -> Iterator[None]:
    """Takes the one refusal that a lasting fault may end in, and looks at its line."""
    try:
        yield
    except StorageError as error:
        if not row.lasting:
            raise AssertionError(f"One fault stopped the work: {error}") from error
        said.append(str(error))
        require_clear(said[-1])


def require_clear(line: str) -> None:
    """One line, what failed, why, and what to do."""
    assert "\n" not in line, line
    assert "cannot be" in line, line
    assert "same command" in line, line
    assert "Traceback" not in line, line


def _operation(row: Row, proxy: FaultyProxy, faulty: Storage, direct: Storage) -> Outcome:
    direct.write("there", b"old")
    said: list[str] = []
    found: Any = None
    work: dict[str, Callable[[], Any]] = {
        "create": lambda: faulty.create("new", b"mine"),
        "write": lambda: faulty.write("there", b"new"),
        "read": lambda: faulty.read("there"),
        "list": lambda: faulty.list(),
        "exists": lambda: faulty.exists("there"),
        "delete": lambda: faulty.delete("there"),
    }
    proxy.plan(_fault(row, OPERATIONS[row.point]))
    with _stopping(row, said):
        try:
            found = work[row.point]()
        except AlreadyExists:  # Its own first try: who creates has to look what is there.
            assert row.point == "create"
            assert direct.read("new") == b"mine"
    assert proxy.hits, "The fault was not met."
    proxy.plan()
    if not said:
        expected: dict[str, Any] = {"read": b"old", "list": ["there"], "exists": True}
        assert found == expected.get(row.point)
        after = {"create": ("new", b"mine"), "write": ("there", b"new")}.get(row.point)
        assert after is None or direct.read(after[0]) == after[1]
        assert row.point != "delete" or not direct.exists("there")
    else:
        assert _content(direct, "there") in (b"old", b"new", None)
        assert _content(direct, "new") in (b"mine", None)
    return Outcome(stopped=" ".join(said))


def _content(storage: Storage, name: str) -> bytes | None:
    try:
        return storage.read(name)
    except StorageMissing:
        return None


def _ledger_entry(row: Row, proxy: FaultyProxy, ledger: Ledger, direct: Storage) -> Outcome:
    attempt = ledger.begin_attempt("run")
    said: list[str] = []
    proxy.plan(_fault(row, "PUT", "000000000001"))
    with _stopping(row, said):
        ledger.append("query", "run", attempt=attempt, event=EVENT)
    assert proxy.hits
    proxy.plan()
    held = len(Ledger.open(direct, "faces").events("run"))
    # Charged once; of one that was given up it is unknown, and either way nothing was released.
    assert held in ((0, 1) if said else (1,))
    if row.kind == "lost answer":
        assert held == 1
    # The same process goes on: no entry is lost, none is there twice.
    ledger.append("query", "run", attempt=attempt, event=EVENT)
    whole = Ledger.open(direct, "faces")
    whole.verify(known_head=ledger.head)
    assert len(whole.events("run")) == held + 1
    return Outcome(stopped=" ".join(said))


def _checkpoint(row: Row, proxy: FaultyProxy, faulty: Storage, direct: Storage) -> Outcome:
    checkpoints = Checkpoints(faulty, of="run")
    checkpoints.save(1, {"weight": torch.full((2_000,), 1.0)}, {"attempt": 1})
    said: list[str] = []
    proxy.plan(_fault(row, "PUT", "step-"))
    with _stopping(row, said):
        checkpoints.save(2, {"weight": torch.full((2_000,), 2.0)}, {"attempt": 1})
    assert proxy.hits
    proxy.plan()
    found = Checkpoints(direct, of="run").latest()
    assert found is not None
    assert found.step == 2 if not said else found.step in (1, 2)
    assert torch.equal(found.tensors["weight"], torch.full((2_000,), float(found.step)))
    return Outcome(stopped=" ".join(said))


def _storm(row: Row, proxy: FaultyProxy, faulty: Storage, direct: Storage) -> Outcome:
    """Private training through a storm: some faults pass, one in each storm outlasts the tries."""
    rng = random.Random(row.seed)
    kinds = [kind for kind in ONCE if kind != "stall"]
    storm = [Fault(kind=rng.choice(kinds), skip=rng.randrange(40), seconds=0.1) for _ in range(5)]
    storm.append(
        Fault(
            kind=rng.choice(("500", "reset", "lost answer")), skip=rng.randrange(8, 30), times=TRIES
        )
    )
    said: list[str] = []

    def armed() -> None:
        proxy.plan(*([] if said else storm))

    _train_through(faulty, direct, said, armed)
    assert said or len(Ledger.open(direct, "faces").events("run")) == STEPS
    return Outcome(stopped=" ".join(said[:1]))


class FullDisk:
    """A disk that has no room at one of its syncs, and has some again when it is asked next."""

    def __init__(self, full_at: int) -> None:
        self._left = full_at

    def __call__(self, descriptor: int) -> None:
        self._left -= 1
        if self._left == -1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)


def _on_full_disk(row: Row, folder: Path) -> Outcome:
    place = folder / row.name.replace(" ", "-")
    place.mkdir(parents=True)
    disk = FullDisk(full_at=1 + row.seed)
    said: list[str] = []
    _train_through(LocalStorage(place, sync=disk), LocalStorage(place), said, lambda: None)
    assert said, "The disk was never full."
    assert [path.name for path in place.rglob(".tmp-*")] == []
    return Outcome(stopped=said[0])


def _train_through(
    storage: Storage, direct: Storage, said: list[str], armed: Callable[[], None]
) -> None:
    """Trains, going on as often as a fault stops it; then looks at books and checkpoints."""
    made: list[int] = []  # Updates.
    denoiser = tiny_denoiser()
    for _ in range(5):
        armed()
        try:
            denoiser = _train(storage, made)
            break
        except StorageError as error:
            require_clear(str(error))
            said.append(str(error))
            _require_whole(direct, made)
    else:
        raise AssertionError(f"It never ends: {said}")
    ledger = _require_whole(direct, made)
    assert len(said) or len(made) == STEPS
    assert {entry.step for entry in ledger.entries() if entry.kind == "step"} == set(range(STEPS))
    found = Checkpoints(direct.child("checkpoints"), of="run").latest()
    assert found is not None
    assert found.step == STEPS
    weights = [p.detach() for p in denoiser.parameters()]
    assert all(torch.equal(w, found.tensors[f"average.{n}"]) for n, w in enumerate(weights))


def _train(storage: Storage, made: list[int]) -> Any:
    denoiser, plan = tiny_denoiser(), mechanism(steps=STEPS, noise_multiplier=1.0)
    keeper = LedgerKeeper(
        Ledger.open(storage, "faces"), "run", Budget(epsilon=200.0, delta=1e-3), plan.event(1),
        planned_steps=STEPS, reserve_steps=RESERVE,
    )  # fmt: skip
    train_private(
        denoiser, draw_maker(checkpoint_every=1, ema_decay=0.5), plan,
        collective=SingleProcess(), keeper=keeper,
        checkpoints=Checkpoints(storage.child("checkpoints"), of="run"),
        on_step=lambda figures: made.append(int(figures["step"])),
    )  # fmt: skip
    return denoiser


def _require_whole(direct: Storage, made: list[int]) -> Ledger:
    """The books verify, and hold a charge for every update; every checkpoint is whole."""
    ledger = Ledger.open(direct, "faces")
    ledger.verify()
    charged = [entry.step for entry in ledger.entries() if entry.kind == "step"]
    for step in range(STEPS):
        assert made.count(step + 1) <= charged.count(step), (step, made, charged)
    Checkpoints(direct.child("checkpoints"), of="run").latest()
    return ledger
