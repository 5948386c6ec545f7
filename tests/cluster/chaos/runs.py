"""The small run that faults happen to, and everything that must be true of it afterwards.

It is the product's: its lock, storage, ledger, keeper, loop, checkpoints, workers and command line,
around a network of one block and twelve images. A run that goes on is the same call again.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import typer

from rapid_dist.cli.main import main
from rapid_dist.collective import Collective
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.errors import RapidError
from rapid_dist.leftovers import TEMPORARY, cleared
from rapid_dist.methods import artifacts
from rapid_dist.methods.context import Report
from rapid_dist.privacy.accounting import affordable_steps, epsilons
from rapid_dist.privacy.keeper import LedgerKeeper, stopped_short
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.loop import train_private
from rapid_dist.runtime.lock import locked
from rapid_dist.runtime.process_workers import ProcessWorkers
from rapid_dist.runtime.signals import Notice, stop_on_sigterm
from rapid_dist.storage import open_storage
from tests.models import draw_maker, mechanism, tiny_denoiser

RUN, DATASET = "run-1", "secret"
STEPS, EVERY, RESERVE = 8, 3, 16
DELTA = 1e-3
Train = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class SmallRun:
    """One run: where it is, and what it is made of."""

    folder: str  # Of the run, with its ledger; a directory or a bucket's prefix.
    reserve: int = RESERVE
    train: Train = train_private  # A planted fault puts another loop here,
    keeper: type[LedgerKeeper] = LedgerKeeper  # or another keeper,
    ledger: str = "ledger"  # or another ledger.
    pace_sec: float = 0.0  # That every step takes longer: as long as one of a larger network.

    @property
    def out(self) -> str:
        return f"{self.folder}/run"

    @property
    def ledger_uri(self) -> str:
        return f"{self.folder}/{self.ledger}"

    @property
    def budget(self) -> Budget:
        """What pays for the planned steps, the reserve, and no more."""
        spent = epsilons([_mechanism().event(STEPS + self.reserve)], DELTA)
        return Budget(epsilon=spent.reported + 1e-4, delta=DELTA)

    def make_keeper(self) -> LedgerKeeper:
        return self.keeper(
            Ledger.open(self.ledger_uri, DATASET),
            RUN,
            self.budget,
            _mechanism().event(),
            planned_steps=STEPS,
            reserve_steps=self.reserve,
        )

    def task(self, keeper: Any) -> "SmallTask":
        return SmallTask(out=self.out, keeper=keeper, train=self.train, pace_sec=self.pace_sec)

    def command(self) -> int:
        """Runs it in this process, as the command line does; returns the exit code."""

        def train() -> None:
            notice = Notice()
            workers = ProcessWorkers(threads=1, on_report=lambda *said: None, notice=notice)
            with stop_on_sigterm(notice):
                workers.run(self.task(self.make_keeper()), name="train", num_workers=1)

        return as_command(self, train)


def as_command(run: SmallRun, train: Callable[[], None]) -> int:
    """Trains unless that is done, with what the product's command has around it."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def command() -> None:
        here = [place for place in (run.out, run.ledger_uri) if "://" not in place]
        with locked(run.out), cleared(here):
            if not artifacts.is_done(open_storage(run.out).child("private")):
                train()

    return main([], app=app)


@dataclass(frozen=True, kw_only=True)
class SmallTask:
    """What every worker does."""

    out: str
    keeper: Any
    train: Train = train_private
    pace_sec: float = 0.0

    def __call__(self, collective: Collective, report: Report) -> None:
        out, denoiser = open_storage(self.out), tiny_denoiser()

        def on_step(figures: dict[str, float]) -> Callable[[], None] | None:
            time.sleep(self.pace_sec)
            return report(figures)

        self.train(
            denoiser,
            draw_maker(checkpoint_every=EVERY),
            _mechanism(),
            collective=collective,
            keeper=self.keeper,
            checkpoints=Checkpoints(out.child("checkpoints/train"), of=RUN),
            on_step=on_step,
            on_begin=lambda: report({}),
        )
        if collective.rank == 0:
            artifacts.put_denoiser(out.child("private"), denoiser, of=RUN)


def _mechanism() -> Any:
    return mechanism(steps=STEPS, noise_multiplier=4.0)


def warm(run: SmallRun) -> None:
    """Asks the accountants once what every fork of this process will ask them."""
    event = _mechanism().event()
    for spent in range(STEPS + 1):
        affordable_steps([event] * spent, run.budget, event, STEPS + run.reserve)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is left of a run after a fault and all that followed."""

    faults: tuple[str, ...]  # What is not as it must be; nothing, if all is well.
    charged: int
    made: int  # Noised updates, as the run's own processes saw them begin.
    repeated: int  # Charged beyond the steps that the result is made of.
    under_counted: int  # Noised updates without an entry of their own.
    finished: bool
    restart_sec: float | None = None  # From a fall to the first step of a later attempt.
    lost_sec: float | None = None  # By a fall: until the run was again where it had been.
    step_sec: float | None = None  # A step, where nobody fell.


@dataclass(kw_only=True)
class _Log:
    fell: float | None = None  # When somebody did,
    fell_in: int = 0  # and in which attempt.
    begun_steps: list[tuple[float, int]] = field(default_factory=list)  # (time, attempt).
    updated: list[tuple[float, int, int]] = field(default_factory=list)  # (time, attempt, step).
    begun: dict[int, int] = field(default_factory=dict)  # Attempt: the step that it begins with.
    noised: Counter[tuple[int, int]] = field(default_factory=Counter)  # (attempt, step), rank 0.
    digests: dict[tuple[str, int, int], set[str]] = field(default_factory=lambda: defaultdict(set))

    @property
    def step_sec(self) -> float | None:
        """Returns the median time from one update of an attempt to the next."""
        pairs = zip(self.updated, self.updated[1:], strict=False)
        took = [b[0] - a[0] for a, b in pairs if a[1] == b[1] and b[2] == a[2] + 1]
        return median(took) if took else None

    @property
    def restart_sec(self) -> float | None:
        """Returns the time from a fall to the first step that a later attempt began."""
        after = [at for at, attempt in self.begun_steps if attempt > self.fell_in]
        return after[0] - self.fell if self.fell is not None and after else None

    @property
    def lost_sec(self) -> float | None:
        """Returns how much later than without a fall the run was at a step that it has made since.

        That is from its attempt's last update to the first one of a later attempt that is as far,
        less the steps by which that is further.
        """
        before = [one for one in self.updated if one[1] <= self.fell_in]
        if self.fell is None or not before or self.step_sec is None:
            return None
        last, _, reached = before[-1]
        after = [one for one in self.updated if one[1] > self.fell_in and one[2] >= reached]
        if not after:
            return None
        return max(0.0, after[0][0] - last - (after[0][2] - reached) * self.step_sec)


def examine(run: SmallRun, log: Path, *, every: int = EVERY) -> Finding:
    """Looks at everything that a run has left, and holds it against what its processes did."""
    faults: list[str] = []
    seen = _read(log)
    ledger = Ledger.open(f"{run.folder}/ledger", DATASET)
    try:
        ledger.verify()
    except RapidError as error:
        faults.append(f"the ledger does not verify: {error}")
    entries = [entry for entry in ledger.entries() if entry.run == RUN and entry.kind == "step"]
    charged = Counter((entry.attempt, entry.step or 0) for entry in entries)
    lacking = seen.noised - charged
    if lacking:
        faults.append(f"noised updates that nobody paid for (attempt, step): {sorted(lacking)}")
    if doubled := [one for one, times in charged.items() if times > 1]:
        faults.append(f"charged twice in one attempt: {doubled}")
    finished = artifacts.is_done(open_storage(run.out).child("private"))
    end = STEPS if stopped_short(ledger, RUN)[0] is None else stopped_short(ledger, RUN)[0]
    assert end is not None
    repeated = len(entries) - end
    faults += _course(charged, seen, end if finished else None, every)
    faults += _files(run)
    apart = [one for one, digests in seen.digests.items() if len(digests) > 1]
    if apart:
        faults.append(f"ranks differ in what they hold (what, attempt, step): {apart}")
    return Finding(
        faults=tuple(faults),
        charged=len(entries),
        made=sum(seen.noised.values()),
        repeated=max(0, repeated),
        under_counted=sum(lacking.values()),
        finished=finished,
        restart_sec=seen.restart_sec,
        lost_sec=seen.lost_sec,
        step_sec=seen.step_sec,
    )


def begun(log: Path) -> bool:
    """Whether a step was begun to be made."""
    return bool(_read(log).noised)


def _read(log: Path) -> _Log:
    found = _Log()
    for line in log.read_text().splitlines() if log.exists() else []:
        entry = json.loads(line)
        at = (entry.get("attempt", 0), entry.get("step", 0))
        if entry["kind"] == "begin" and entry["rank"] == 0:
            found.begun[entry["attempt"]] = entry["first"]
        elif entry["kind"] == "noise" and entry["rank"] == 0:
            found.noised[at] += 1
            found.begun_steps.append((entry["time"], entry["attempt"]))
        elif entry["kind"] == "fall":
            found.fell, found.fell_in = entry["time"], max(found.begun, default=0)
        elif entry["kind"] in ("update", "weights"):
            found.digests[entry["kind"], *at].add(entry["digest"])
            if entry["kind"] == "update" and entry["rank"] == 0:
                found.updated.append((entry["time"], *at))
    return found


def _course(
    charged: Counter[tuple[int, int]], seen: _Log, end: int | None, every: int
) -> list[str]:
    """Holds every attempt's charges against where it began, and all of them against the result.

    What was charged beyond the result's steps must be what the checkpoints say was repeated.
    """
    faults, lost, reached = [], 0, 0
    for attempt, first in sorted(seen.begun.items()):
        own = sorted(step for one, step in charged if one == attempt)
        if own != list(range(first, first + len(own))):
            faults.append(f"attempt {attempt} began at step {first} and was charged {own}")
        made = {step for one, step in seen.noised if one == attempt}
        if len(own) - len(made) > 1:
            faults.append(f"attempt {attempt} was charged {own} and made {sorted(made)}")
        if first > reached:
            faults.append(f"attempt {attempt} begins at {first}, nobody was past {reached}")
        if reached - first > every:
            faults.append(
                f"attempt {attempt} lost {reached - first} steps, between two checkpoints"
            )
        lost += reached - first
        reached = first + len(own)
    unseen = {attempt for attempt, _ in charged} - seen.begun.keys()
    if unseen:
        faults.append(f"attempts {sorted(unseen)} were charged and nobody saw them begin")
    if end is not None:
        if reached != end:
            faults.append(f"the result is of {end} steps, the last attempt came to {reached}")
        if sum(charged.values()) - end != lost:
            faults.append(f"{sum(charged.values())} charges, {end} steps and {lost} repeats")
    return faults


def _files(run: SmallRun) -> list[str]:
    """Every file of a run is whole, and none is left that has no name yet."""
    faults = []
    for place in (run.out, run.ledger_uri):
        storage = open_storage(place)
        for name in storage.list():
            data = storage.read(name)
            try:
                if name.endswith(".json"):
                    json.loads(data)
                elif name.endswith(".safetensors"):
                    _open_tensors(data)
            except Exception as error:
                faults.append(f"{name} is half written: {type(error).__name__}")
        if "://" not in place:
            faults += [f"{path} was left" for path in Path(place).rglob(f"{TEMPORARY}*")]
    return faults


def _open_tensors(data: bytes) -> None:
    from safetensors.torch import load

    load(data)
