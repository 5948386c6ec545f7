"""The ledger: every release ever made from one private data set, in order, for good.

One file an entry, ``<root>/<data set>/000000000042.json``, canonical JSON, each with the hash of
the one before. Entries are only ever created, never replaced, so that

- an entry is durable before ``append`` returns, and what it pays for happens only then;
- two writers cannot take one number: the second sees what the first wrote before it goes on,
  and is *fenced* if that is a newer attempt at its own run;
- a removed, changed or foreign entry breaks the chain, and is named. (The last entries could be
  cut off unseen: compare ``head`` with the one kept in the registry, see ``verify``.)
"""

import json
import re
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from rapid_dist.errors import ConfigError, LedgerError
from rapid_dist.installed import code_version
from rapid_dist.privacy.mechanism import (
    DiscreteDpSgdEvent,
    DiscreteGaussianEvent,
    DiscreteRetrievalEvent,
    DpSgdEvent,
    Event,
    GaussianEvent,
    RetrievalEvent,
)
from rapid_dist.storage import AlreadyExists, Storage, open_storage, sha256_hex

Kind = Literal["attempt", "step", "query", "note"]

_RELEASES = ("step", "query")  # The kinds that have an event.
_NAME = re.compile(r"\d{12}\.json")
_TYPES = {"index": int, "attempt": int, "run": str, "note": str, "previous": str, "hash": str}
_READERS = 16  # Threads that read many entries at once; on S3 one by one would take minutes.
_EVENTS: dict[str, type[Event]] = {
    "gaussian": GaussianEvent,
    "dp_sgd": DpSgdEvent,
    "discrete_gaussian": DiscreteGaussianEvent,
    "discrete_dp_sgd": DiscreteDpSgdEvent,
    "retrieval": RetrievalEvent,
    "discrete_retrieval": DiscreteRetrievalEvent,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of the ledger. All of it is public."""

    dataset: str
    index: int
    kind: Kind
    run: str
    attempt: int  # 0 in a note that belongs to none.
    step: int | None
    event: Event | None  # What was released; None where nothing was.
    note: str
    code: str  # Version and hash of the package that wrote the entry.
    time: float  # Seconds since 1970. A step has its attempt's: its own would tell its batch (P9).
    writer: str  # Random name of the writing process: tells its own entries from others'.
    previous: str  # Hash of the entry before.
    hash: str


class Ledger:
    """An open ledger. Holds what it has verified, and reads only what is new."""

    def __init__(self, storage: Storage, dataset: str, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._dataset = dataset
        self._clock = clock
        self._writer = secrets.token_hex(8)
        self._entries: list[Entry] = []
        self._newest_attempt: dict[str, int] = {}
        self._began: dict[str, float] = {}  # When a run's newest attempt began.
        self.refresh()

    @classmethod
    def open(
        cls, root: Storage | Path | str, dataset: str, *, clock: Callable[[], float] = time.time
    ) -> "Ledger":
        """Opens the data set's ledger under ``root``, verified; an absent one is empty."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", dataset):
            raise ConfigError(
                f"A ledger cannot be named {dataset!r}. Use letters, digits, '_', '-' and '.'."
            )
        storage = open_storage(root) if isinstance(root, str | Path) else root
        return cls(storage.child(dataset), dataset, clock)

    @property
    def dataset(self) -> str:
        return self._dataset

    @property
    def uri(self) -> str:
        return self._storage.uri

    @property
    def head(self) -> str:
        """The hash of the last entry: it stands for the whole ledger."""
        return self._entries[-1].hash if self._entries else _genesis(self._dataset)

    def entries(self) -> list[Entry]:
        """Returns all entries known since the last ``refresh`` or ``append``."""
        return list(self._entries)

    def runs(self) -> list[str]:
        """Returns the runs that released something, in order of appearance."""
        return list(dict.fromkeys(e.run for e in self._entries if e.event is not None))

    def events(self, run: str | None = None) -> list[Event]:
        """Returns what one run, or with None all runs together, have released."""
        return [
            entry.event
            for entry in self._entries
            if entry.event is not None and run in (None, entry.run)
        ]

    def newest_attempt(self, run: str) -> int:
        """Returns the number of the run's newest attempt, 0 before the first."""
        return self._newest_attempt.get(run, 0)

    def begin_attempt(self, run: str, note: str = "") -> int:
        """Starts the run's next attempt; every older attempt can append no more.

        Raises LedgerError if the store cannot keep a ledger: it replaces what exists.
        """
        while True:
            attempt = self.newest_attempt(run) + 1
            try:
                entry = self.append("attempt", run, attempt=attempt, note=note)
                break
            except LedgerError:
                if self.newest_attempt(run) < attempt:
                    raise
        self._require_create_if_absent(entry)
        return entry.attempt

    def append(
        self,
        kind: Kind,
        run: str,
        *,
        attempt: int,
        step: int | None = None,
        event: Event | None = None,
        note: str = "",
    ) -> Entry:
        """Adds an entry, durable on return.

        Raises LedgerError, and adds nothing, if a newer attempt of the same run has begun.
        """
        assert (event is not None) == (kind in _RELEASES), "A release has its event."
        while True:
            self._refuse_if_fenced(kind, run, attempt)
            entry = _sealed(
                dataset=self._dataset,
                index=len(self._entries),
                kind=kind,
                run=run,
                attempt=attempt,
                step=step,
                event=event,
                note=note,
                code=code_version(),
                time=self._time(kind, run),
                writer=self._writer,
                previous=self.head,
            )
            name, data = _name(entry.index), _encode(entry)
            try:
                self._storage.create(name, data)
            except AlreadyExists:
                # A retried upload may meet its own first try; `writer` makes them equal only then.
                if self._storage.read(name) != data:
                    self.refresh()
                    self._require_listed(entry.index)
                    continue
            self._admit(entry)
            return entry

    def refresh(self) -> None:
        """Reads and verifies the entries that others have appended."""
        names = self._names()
        for index, name in enumerate(names):
            if not _NAME.fullmatch(name):
                raise self._error(name, "is not a ledger entry. Move it elsewhere")
            if name != _name(index):
                raise self._error(_name(index), "is missing, but later ones exist")
        if len(names) < len(self._entries):
            raise self._error(_name(len(names)), "was there before and is gone")
        new = names[len(self._entries) :]
        with ThreadPoolExecutor(_READERS) as readers:
            for name, data in zip(new, readers.map(self._storage.read, new), strict=True):
                self._admit(self._checked(name, data))

    def verify(self, known_head: str | None = None) -> None:
        """Reads everything again; raises LedgerError that names the first wrong entry.

        Args:
          known_head: a head written down earlier, as in a model's tags; it must still be here.
        """
        self._entries.clear()
        self._newest_attempt.clear()
        self._began.clear()
        self.refresh()
        heads = {_genesis(self._dataset)} | {entry.hash for entry in self._entries}
        if known_head is not None and known_head not in heads:
            raise LedgerError(
                f"The ledger of {self._dataset!r} at {self._storage.uri} does not hold the head "
                f"{known_head[:16]}: entries were cut off, or it is another ledger. Bring back the "
                "one that has it."
            )

    def _names(self) -> list[str]:
        """Lists the entries, and once more where one seems to be missing.

        A folder is not read in one moment: an entry that another writer makes meanwhile may be
        passed over, and a later one of his be seen. Who looks again finds both.
        """
        names = self._storage.list()
        if names != [_name(index) for index in range(len(names))]:
            names = self._storage.list()
        return names

    def _require_listed(self, index: int) -> None:
        """Refuses a store that says of a name that it is taken, and does not list it."""
        if len(self._entries) <= index:
            raise LedgerError(
                f"The store of the ledger at {self._storage.uri} holds {_name(index)} and does not "
                "list it, so what was charged cannot be known. Set runtime.ledger_dir to another "
                "store."
            )

    def _require_create_if_absent(self, entry: Entry) -> None:
        """Tries to create what was just created, of its own bytes, so nothing can be lost by it.

        Look-alikes of S3 may ignore the condition that nothing be there. On such a store a writer
        that has not seen another's last entry would replace it, and with it what it paid for.
        """
        try:
            self._storage.create(_name(entry.index), _encode(entry))
        except AlreadyExists:
            return
        raise LedgerError(
            f"The store of the ledger at {self._storage.uri} replaces what exists instead of "
            "refusing it (If-None-Match is ignored), so entries could be lost. Set "
            "runtime.ledger_dir to another store."
        )

    def _refuse_if_fenced(self, kind: Kind, run: str, attempt: int) -> None:
        newest = self.newest_attempt(run)
        if newest > attempt or (kind == "attempt" and newest == attempt):
            raise LedgerError(
                f"Attempt {attempt} of run {run!r} is fenced: attempt {newest} has begun on the "
                f"ledger of {self._dataset!r}. Stop this process."
            )

    def _admit(self, entry: Entry) -> None:
        self._entries.append(entry)
        if entry.kind == "attempt":
            self._newest_attempt[entry.run] = entry.attempt
            self._began[entry.run] = entry.time

    def _time(self, kind: Kind, run: str) -> float:
        return self._began[run] if kind == "step" and run in self._began else self._clock()

    def _checked(self, name: str, data: bytes) -> Entry:
        """Returns the entry stored under ``name``, if it is whole and the next in the chain."""
        try:
            entry = _decode(data)
            canonical = _encode(entry) == data
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._error(name, f"is torn or not an entry ({error})") from error
        if entry.dataset != self._dataset:
            raise self._error(name, f"belongs to the data set {entry.dataset!r}")
        if entry.index != len(self._entries):
            raise self._error(name, f"says it is number {entry.index}")
        if not canonical or entry.hash != _hash(entry):
            raise self._error(name, "was changed: its content does not give its hash")
        if entry.previous != self.head:
            raise self._error(name, "does not follow the entry before it")
        if entry.kind == "attempt" and entry.attempt <= self.newest_attempt(entry.run):
            raise self._error(name, f"repeats attempt {entry.attempt} of {entry.run!r}")
        return entry

    def _error(self, name: str, what: str) -> LedgerError:
        return LedgerError(
            f"Ledger entry {name} of {self._dataset!r} at {self._storage.uri} {what}. "
            "No epsilon can be claimed from this ledger. Restore it from a backup, do not repair "
            "it by hand."
        )


def _genesis(dataset: str) -> str:
    return sha256_hex(f"rapid-dist ledger of {dataset}".encode())


def _name(index: int) -> str:
    return f"{index:012d}.json"


def _sealed(**values: Any) -> Entry:
    return Entry(**values, hash=_hash(Entry(**values, hash="")))


def _hash(entry: Entry) -> str:
    content = _plain(entry)
    del content["hash"]
    return sha256_hex(_canonical(content))


def _encode(entry: Entry) -> bytes:
    return _canonical(_plain(entry)) + b"\n"


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _plain(entry: Entry) -> dict[str, Any]:
    content = asdict(entry)
    if entry.event is not None:
        mechanism = next(n for n, kind in _EVENTS.items() if type(entry.event) is kind)
        content["event"] = {"mechanism": mechanism, **asdict(entry.event)}
    return content


def _decode(data: bytes) -> Entry:
    content = json.loads(data)
    if set(content) != {field.name for field in fields(Entry)}:
        raise ValueError("unknown or missing fields")
    if content["kind"] not in get_args(Kind):
        raise ValueError(f"unknown kind {content['kind']!r}")
    if odd := [name for name, kind in _TYPES.items() if type(content[name]) is not kind]:
        raise ValueError(f"{odd[0]} is {content[odd[0]]!r}")
    event = content["event"]
    if (event is not None) != (content["kind"] in _RELEASES):
        raise ValueError("a release without its event, or an event without a release")
    if event is not None:
        content["event"] = _EVENTS[event.pop("mechanism")](**event)
    return Entry(**content)
