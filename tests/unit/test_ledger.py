"""The ledger: durable, append-only, and unable to be rewritten without notice."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rapid_dist.errors import ConfigError, LedgerError, StorageError
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdEvent, GaussianEvent
from rapid_dist.storage import LocalStorage, Storage, sha256_hex
from tests.fakes import (
    CountingStorage,
    FakeClock,
    LostAnswerStorage,
    MemoryStorage,
    ReplacingStorage,
)

STEP = DpSgdEvent(sample_rate=0.01, noise_multiplier=1.1, steps=1)
QUERY = GaussianEvent(noise_multiplier=20.0)


def _ledger(storage: Storage | Path, dataset: str = "faces") -> Ledger:
    return Ledger.open(storage, dataset, clock=FakeClock())


def _with_three_entries(storage: Storage) -> Ledger:
    ledger = _ledger(storage)
    attempt = ledger.begin_attempt("run-1")
    ledger.append("query", "run-1", attempt=attempt, event=QUERY, note="prior")
    ledger.append("step", "run-1", attempt=attempt, step=0, event=STEP)
    return ledger


def test_a_ledger_opened_again_holds_the_same_entries(tmp_path: Path) -> None:
    ledger = _with_three_entries(LocalStorage(tmp_path))
    again = _ledger(tmp_path)
    assert again.entries() == ledger.entries()
    assert again.head == ledger.head
    assert again.events("run-1") == [QUERY, STEP]
    assert sorted(p.name for p in (tmp_path / "faces").iterdir()) == [
        "000000000000.json",
        "000000000001.json",
        "000000000002.json",
    ]


def test_an_entry_says_what_was_released_when_and_by_which_code() -> None:
    storage = MemoryStorage()
    _with_three_entries(storage)
    entry = json.loads(storage.read("faces/000000000002.json"))
    assert entry.pop("hash") == sha256_hex(
        json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
    )
    assert entry.pop("writer")
    assert entry.pop("code")
    assert entry.pop("previous") == json.loads(storage.read("faces/000000000001.json"))["hash"]
    assert entry == {
        "dataset": "faces",
        "index": 2,
        "kind": "step",
        "run": "run-1",
        "attempt": 1,
        "step": 0,
        "event": {
            "mechanism": "dp_sgd",
            "sample_rate": 0.01,
            "noise_multiplier": 1.1,
            "steps": 1,
        },
        "note": "",
        "time": 1_000_001.0,  # Of the attempt.
    }


def test_the_ledger_does_not_tell_how_long_a_step_took() -> None:
    storage, clock = MemoryStorage(), FakeClock()
    for attempt in (1, 2):
        ledger = Ledger.open(storage, "faces", clock=clock)
        ledger.begin_attempt("run-1")
        for step in (0, 1):
            ledger.append("step", "run-1", attempt=attempt, step=step, event=STEP)
    times = [(entry.kind, entry.time - 1_000_000) for entry in ledger.entries()]
    one, two = [("attempt", 1.0), *[("step", 1.0)] * 2], [("attempt", 2.0), *[("step", 2.0)] * 2]
    assert times == one + two  # A look at the clock for each step would be 2 and 3, 5 and 6.


def test_runs_of_one_data_set_share_its_ledger_and_are_told_apart() -> None:
    ledger = _with_three_entries(MemoryStorage())
    other = ledger.begin_attempt("run-2")
    ledger.append("step", "run-2", attempt=other, step=0, event=STEP)
    assert ledger.runs() == ["run-1", "run-2"]
    assert ledger.events("run-2") == [STEP]
    assert ledger.events() == [QUERY, STEP, STEP]


def test_data_sets_have_ledgers_of_their_own() -> None:
    storage = MemoryStorage()
    _with_three_entries(storage)
    assert _ledger(storage, "scans").entries() == []
    assert _ledger(storage, "scans").head != _ledger(storage, "letters").head


def _edit(**changes: object) -> Callable[[MemoryStorage], None]:
    def tamper(storage: MemoryStorage) -> None:
        name = "faces/000000000001.json"
        entry = json.loads(storage.read(name)) | changes
        storage.write(name, json.dumps(entry, sort_keys=True, separators=(",", ":")).encode())

    return tamper


def _edit_and_seal(storage: MemoryStorage) -> None:
    event = {"mechanism": "gaussian", "noise_multiplier": 40.0}
    _sealed(1, event=event)(storage)


def _sealed(number: int, **changes: object) -> Callable[[MemoryStorage], None]:
    """An entry by somebody who knows how they are made."""

    def tamper(storage: MemoryStorage) -> None:
        name = f"faces/{number:012d}.json"
        entry = json.loads(storage.read(name)) | changes
        del entry["hash"]
        sealed = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
        entry["hash"] = sha256_hex(sealed)
        data = json.dumps(entry, sort_keys=True, separators=(",", ":")) + "\n"
        storage.write(name, data.encode())

    return tamper


def _tear(storage: MemoryStorage) -> None:
    name = "faces/000000000001.json"
    storage.write(name, storage.read(name)[:50])


def _copy_over(storage: MemoryStorage) -> None:
    storage.write("faces/000000000001.json", storage.read("faces/000000000002.json"))


@pytest.mark.parametrize(
    ("tamper", "named", "reason"),
    [
        (lambda s: s.delete("faces/000000000001.json"), "000000000001", "missing"),
        (lambda s: s.delete("faces/000000000000.json"), "000000000000", "missing"),
        (_tear, "000000000001", "torn"),
        (_copy_over, "000000000001", "says it is number 2"),
        (_edit(note="nothing to see"), "000000000001", "was changed"),
        (_edit(event=None), "000000000001", "a release without its event"),
        (_edit(dataset="scans"), "000000000001", "belongs to the data set 'scans'"),
        (_edit(kind="gift"), "000000000001", "unknown kind"),
        (_edit(extra=1), "000000000001", "unknown or missing fields"),
        (_edit_and_seal, "000000000002", "does not follow"),
        (_sealed(2, event=None), "000000000002", "a release without its event"),
        (_sealed(2, kind="note"), "000000000002", "an event without a release"),
        (_sealed(2, attempt="1"), "000000000002", "attempt is '1'"),
        (lambda s: s.write("faces/notes.txt", b""), "notes.txt", "not a ledger entry"),
    ],
)
def test_a_ledger_that_was_tampered_with_names_the_entry(
    tamper: Callable[[MemoryStorage], None], named: str, reason: str
) -> None:
    storage = MemoryStorage()
    ledger = _with_three_entries(storage)
    tamper(storage)
    with pytest.raises(LedgerError, match=f"{named}.*{reason}"):
        _ledger(storage)
    with pytest.raises(LedgerError, match=f"{named}.*{reason}"):
        ledger.verify()


def test_an_untouched_ledger_verifies() -> None:
    ledger = _with_three_entries(MemoryStorage())
    early = ledger.entries()[1].hash
    ledger.verify()
    ledger.verify(known_head=early)
    assert len(ledger.entries()) == 3


def test_entries_cut_off_the_end_are_noticed_by_a_head_written_down_before() -> None:
    storage = MemoryStorage()
    ledger = _with_three_entries(storage)
    head = ledger.head
    storage.delete("faces/000000000002.json")
    _ledger(storage).verify()  # The rest is a whole ledger, just a shorter one.
    with pytest.raises(LedgerError, match="were cut off"):
        _ledger(storage).verify(known_head=head)
    with pytest.raises(LedgerError, match=r"000000000002.*gone"):
        ledger.refresh()


def test_a_ledger_copied_to_another_data_set_is_refused() -> None:
    storage = MemoryStorage()
    _with_three_entries(storage)
    for name in storage.list("faces/"):
        storage.write(name.replace("faces/", "scans/"), storage.read(name))
    with pytest.raises(LedgerError, match=r"000000000000.*belongs to the data set 'faces'"):
        _ledger(storage, "scans")


def test_a_newer_attempt_fences_the_older_writer() -> None:
    storage = MemoryStorage()
    old, new = _ledger(storage), _ledger(storage)
    assert old.begin_attempt("run-1") == 1
    old.append("step", "run-1", attempt=1, step=0, event=STEP)
    assert new.begin_attempt("run-1") == 2
    with pytest.raises(LedgerError, match="Attempt 1 of run 'run-1' is fenced: attempt 2"):
        old.append("step", "run-1", attempt=1, step=1, event=STEP)
    new.append("step", "run-1", attempt=2, step=1, event=STEP)
    kinds = [(entry.kind, entry.attempt) for entry in new.entries()]
    assert kinds == [("attempt", 1), ("step", 1), ("attempt", 2), ("step", 2)]


def test_writers_of_different_runs_do_not_fence_each_other() -> None:
    storage = MemoryStorage()
    one, two = _ledger(storage), _ledger(storage)
    one.begin_attempt("run-1")
    two.begin_attempt("run-2")
    for step in range(3):
        one.append("step", "run-1", attempt=1, step=step, event=STEP)
        two.append("step", "run-2", attempt=1, step=step, event=STEP)
    one.verify()
    assert len(one.entries()) == 8
    assert len(one.events("run-1")) == len(one.events("run-2")) == 3


def test_attempts_begun_at_once_get_different_numbers(tmp_path: Path) -> None:
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda: numbers.append(_ledger(tmp_path).begin_attempt("run")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]


def test_a_store_that_replaces_what_exists_holds_no_ledger() -> None:
    with pytest.raises(LedgerError, match="another store"):
        _ledger(ReplacingStorage()).begin_attempt("run-1")


def test_on_such_a_store_a_charge_could_be_lost() -> None:
    """The fault that the refusal is for: two writers take one number, and one of them pays."""
    storage = ReplacingStorage()
    one, other = _ledger(storage), _ledger(storage)
    for ledger, run in ((one, "run-1"), (other, "run-2")):
        ledger.append("step", run, attempt=1, step=0, event=STEP)
    assert len(_ledger(storage).events()) == 1  # And the chain is whole.


def test_appending_reads_nothing_back() -> None:
    storage = CountingStorage()
    ledger = _with_three_entries(storage)
    looks = storage.looks
    for step in range(1, 20):
        ledger.append("step", "run-1", attempt=1, step=step, event=STEP)
    assert storage.looks == looks


def test_only_new_entries_are_read_when_another_writer_has_appended() -> None:
    storage = CountingStorage()
    ledger = _with_three_entries(storage)
    _ledger(MemoryStorage(storage.files)).begin_attempt("run-2")
    looks = storage.looks
    ledger.append("step", "run-1", attempt=1, step=1, event=STEP)
    assert storage.looks - looks == 3  # The taken entry, the listing, the one new entry.


def test_an_upload_whose_answer_was_lost_is_charged_once() -> None:
    storage = LostAnswerStorage()
    ledger = _with_three_entries(storage)
    assert len(ledger.entries()) == len(storage.files) == 3
    _ledger(storage).verify()


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "with space"])
def test_a_data_set_name_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be named"):
        _ledger(MemoryStorage(), name)


class _PassingOver(MemoryStorage):
    """Lists as a folder does in which another writes: the last but one is passed over, once."""

    def __init__(self, files: dict[str, bytes], prefix: str = "", *, always: bool = False) -> None:
        super().__init__(files, prefix)
        self._looks, self._always = 0, always

    def list(self, prefix: str = "") -> list[str]:
        names = super().list(prefix)
        self._looks += 1
        return names if self._looks > 1 and not self._always else [*names[:-2], *names[-1:]]

    def child(self, prefix: str) -> "_PassingOver":
        return _PassingOver(self.files, f"{self._prefix}{prefix}/", always=self._always)


def test_an_entry_that_was_passed_over_while_another_wrote_is_looked_for_again() -> None:
    storage = MemoryStorage()
    _with_three_entries(storage)
    assert len(_ledger(_PassingOver(storage.files)).entries()) == 3
    with pytest.raises(LedgerError, match=r"000000000001\.json.* is missing, but later"):
        _ledger(_PassingOver(storage.files, always=True))


class _Unlisted(MemoryStorage):
    """Holds what it never lists."""

    def list(self, prefix: str = "") -> list[str]:
        return []

    def child(self, prefix: str) -> "_Unlisted":
        return _Unlisted(self.files, f"{self._prefix}{prefix}/")


def test_a_store_that_does_not_list_what_it_holds_is_refused_and_not_asked_for_ever() -> None:
    storage = MemoryStorage()
    _with_three_entries(storage)
    blind = _ledger(_Unlisted(storage.files))
    with pytest.raises(LedgerError, match=r"holds 000000000000\.json and does not list it"):
        blind.begin_attempt("run-1")


def test_a_ledger_whose_folder_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "faces").symlink_to(tmp_path / "faces")
    with pytest.raises(StorageError, match="cannot be listed"):
        _ledger(tmp_path)
