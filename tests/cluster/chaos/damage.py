"""Files of a run that were torn, changed, replaced or put back, and how the same command goes on.

    snapshots = Snapshots(folder)      # one small run, kept at three moments
    outcome = try_row(row, snapshots, folder)

A row damages a copy of a snapshot and gives the run's command again. Either the run finishes, with
every repeated step charged, or it stops with one line that names the file; then nothing is lost:
the ledger is as it was, and with the file put back the same command finishes.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rapid_dist.config import Recipe, load_recipe
from rapid_dist.errors import RapidError
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.private.per_example import clipped_sum
from rapid_dist.runtime import pipeline

TINY = [
    "data.public.0.count=120",
    "network.widths=[8]",
    "network.attention=[false]",
    "network.head_width=8",
    "network.norm_groups=4",
    "contrast.extractor.width=8",
    "contrast.extractor.dim=8",
    "pretrain.steps=2",
    "pretrain.batch_size=16",
    "contrast.steps=1",
    "contrast.batch_size=8",
    "knowledge_base.clusters=5",
    "knowledge_base.num_shards=2",
    "adapt.steps=2",
    "adapt.batch_size=16",
    "privacy.steps=4",
    "privacy.expected_batch=16",
    "train.checkpoint_every=1",
    "sampling.count=20",
    "sampling.late_intervals=2",
    "sampling.early_intervals=2",
    "evaluation.classifiers.steps=2",
    "evaluation.classifiers.logistic_iterations=2",
    "runtime.backend=process",
    "tracking.register_models=false",
]
PLANNED, BEFORE_CRASH = 4, 3  # Steps of DP-SGD; those made when the run was killed.
LOST = 1  # The step in which it was killed is charged beside its computation, and made again.
DATASET = "digits"
Moment = Literal["public", "training", "drawn"]
GO_ON: dict[Moment, str | None] = {"public": "train", "training": "train", "drawn": None}
Damage = Callable[["Place"], None]


class _Killed(Exception):
    """What ends the run of a snapshot."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A copy of a snapshot: the run directory, and what lies beside it."""

    root: Path
    recipe: Recipe

    @property
    def out(self) -> Path:
        return self.root / "run"

    @property
    def public(self) -> Path:
        return self.root / "public"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger" / DATASET

    def found(self, pattern: str) -> Path:
        """Returns the one file, or the last in order, that a pattern below the root names."""
        return sorted(path for path in self.root.glob(pattern) if path.is_file())[-1]


class Snapshots:
    """One run, at three moments: before private records, in the midst of training, and drawn."""

    def __init__(self, folder: Path) -> None:
        self.recipe = load_recipe("digits", TINY)
        self._folder = folder
        live = Place(root=folder / "live", recipe=self.recipe)
        pipeline.run(self.recipe, str(live.out), command="pretrain")
        pipeline.run(self.recipe, str(live.out), command="index")
        self._keep("public")
        calls = 0

        def until_killed(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > BEFORE_CRASH:
                raise _Killed
            return clipped_sum(*arguments, **named)

        try:
            pipeline.run(self.recipe, str(live.out), command="train", engine=until_killed)
        except _Killed:
            self._keep("training")
        pipeline.run(self.recipe, str(live.out), command="train")
        pipeline.run(self.recipe, str(live.out), command="generate")
        self._keep("drawn")

    def _keep(self, moment: Moment) -> None:
        shutil.copytree(self._folder / "live", self._folder / moment)

    def copy(self, moment: Moment, root: Path) -> Place:
        """Returns a copy to damage."""
        shutil.copytree(self._folder / moment, root)
        return Place(root=root, recipe=self.recipe)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One damage to one file, and what has to come of it."""

    kind: str
    point: str
    moment: Moment
    damage: Damage = field(repr=False, compare=False)
    stops: str | None = None  # What the line has to name; None = the run finishes.
    repeats: int = 0  # Steps that are charged more often than without the damage.
    remedy: Damage | None = field(default=None, repr=False, compare=False)  # Other than restoring.

    @property
    def name(self) -> str:
        return f"{self.kind} {self.point} ({self.moment})"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a row."""

    stopped: str = ""  # The line; "" where the run has finished.


def try_row(row: Row, snapshots: Snapshots, folder: Path) -> Outcome:
    """Damages a copy and gives the command again; an ``AssertionError`` says what was broken."""
    place = snapshots.copy(row.moment, folder / "damaged")
    whole = folder / "whole"
    shutil.copytree(place.root, whole)
    charged = _charged(place)
    row.damage(place)
    before = _files(place.ledger)
    said = _go_on(place, row.moment)
    if row.stops is None:
        assert said == "", said
        _require_paid(place, row, charged)
        return Outcome()
    assert said, f"{row.name}: silently accepted."
    _require_clear(said, row.stops)
    _require_nothing_charged(before, _files(place.ledger))
    if row.remedy is not None:
        row.remedy(place)
    else:
        for part in ("run", "public", "ledger"):  # Not MLflow's file, which this process has open.
            shutil.rmtree(place.root / part, ignore_errors=True)
            if (whole / part).exists():
                shutil.copytree(whole / part, place.root / part)
    # A remedy takes away what a stage has made, so all stages have their turn again.
    again = _go_on(place, row.moment if row.remedy is None else "drawn")
    assert again == "", f"After the remedy: {again}"
    _require_paid(place, row, charged)
    return Outcome(stopped=said)


def _go_on(place: Place, moment: Moment) -> str:
    """Gives the command again; returns the line of its refusal, or nothing."""
    try:
        pipeline.run(place.recipe, str(place.out), command=GO_ON[moment])
    except RapidError as error:
        return str(error)
    return ""


def _require_clear(line: str, named: str) -> None:
    assert "\n" not in line, line
    assert named in line, f"{named!r} is not named: {line}"
    remedies = ("Restore", "restore", "Delete", "Remove", "Bring", "another --out", "again", "Plan")
    assert any(word in line for word in remedies), f"No remedy: {line}"


def _charged(place: Place) -> int:
    if not place.ledger.exists():
        return 0
    return sum(e.kind == "step" for e in Ledger.open(place.root / "ledger", DATASET).entries())


def _require_paid(place: Place, row: Row, before: int) -> None:
    """Every planned step is charged, what was repeated once more, and the books verify."""
    ledger = Ledger.open(place.root / "ledger", DATASET)
    ledger.verify()
    steps = [entry.step for entry in ledger.entries() if entry.kind == "step"]
    assert set(steps) == set(range(PLANNED))
    lost = 0 if row.moment == "public" else LOST
    assert len(steps) == PLANNED + lost + row.repeats, (before, steps)


def _require_nothing_charged(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """A refusal may have begun an attempt, which costs nothing; no entry is another than it was."""
    assert {name: after.get(name) for name in before} == before
    new = [data for name, data in after.items() if name not in before]
    assert all(b'"kind":"attempt"' in data for data in new), "A refusal has charged."


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# What can happen to a file.


def torn(pattern: str) -> Damage:
    """The last third of a file is gone."""

    def damage(place: Place) -> None:
        path = place.found(pattern)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])

    return damage


def flipped(pattern: str, at: float = 0.7, old: bytes = b"", new: bytes = b"") -> Damage:
    """One bit of a file is another, at a place or within the first occurrence of some bytes."""

    def damage(place: Place) -> None:
        path = place.found(pattern)
        data = bytearray(path.read_bytes())
        if old:
            assert old in data
            path.write_bytes(bytes(data).replace(old, new, 1))
            return
        data[int(len(data) * at)] ^= 1
        path.write_bytes(bytes(data))

    return damage


def empty(pattern: str) -> Damage:
    def damage(place: Place) -> None:
        place.found(pattern).write_bytes(b"")

    return damage


def gone(*patterns: str) -> Damage:
    def damage(place: Place) -> None:
        for pattern in patterns:
            for path in list(place.root.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def replaced(pattern: str, by: str) -> Damage:
    """A file has the content of another one of the run: the first that ``by`` names."""

    def damage(place: Place) -> None:
        other = min(path for path in place.root.glob(by) if path.is_file())
        path = place.found(pattern)
        assert other.read_bytes() != path.read_bytes()
        path.write_bytes(other.read_bytes())

    return damage


def all_of(*damages: Damage) -> Damage:
    def damage(place: Place) -> None:
        for one in damages:
            one(place)

    return damage
