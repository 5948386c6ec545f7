"""Kills and stops small runs at moments that a fixed seed chooses, and has them go on."""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.cluster.chaos.points import Watch, install
from tests.cluster.chaos.runs import STEPS, Finding, SmallRun, examine

MOST_COMMANDS = 4  # Of one run: after a fault the second finishes it, or stops with one line.
RANDOM = "a random moment"
STARTS = "while workers start"  # On Ray.
GIVE_UP_SEC = 600.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong once in a run."""

    target: str  # driver, worker, keeper, raylet
    signal: str  # KILL; STOP (and CONT a little later); HANG (STOP for ever); TERM
    moment: str  # One of POINTS, or RANDOM.
    nth: int = 1  # Time that the point is passed.
    share: float = 0.0  # Of the run's time, for RANDOM.

    @property
    def kind(self) -> str:
        return f"{self.signal} of the {self.target}, {self.moment}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run fared that a fault happened to."""

    fault: Fault
    finding: Finding
    codes: tuple[int, ...]  # Of every command; negative: the signal that ended it.
    lines: tuple[str, ...]  # What commands said that ended by themselves and not well.
    happened: bool  # Whether the fault met the run before it was done.
    seconds: float

    @property
    def survived(self) -> bool:
        """The run finished, by the same command again."""
        return not self.finding.faults and self.finding.finished

    @property
    def stopped(self) -> bool:
        """It did not, and said why in one line."""
        return not self.finding.faults and not self.finding.finished and bool(self.lines)


def faults_of(
    moments: tuple[str, ...], signals: tuple[str, ...], count: int, seed: int
) -> list[Fault]:
    """Returns ``count`` faults of the driver, every kind as often as any other."""
    rng = random.Random(seed)
    kinds = [(number, moment) for moment in (*moments, RANDOM) for number in signals]
    faults = []
    for index in range(count):
        number, moment = kinds[index % len(kinds)]
        faults.append(
            Fault(
                target="driver",
                signal=number,
                moment=moment,
                nth=_nth(moment, rng),
                share=rng.random(),
            )
        )
    rng.shuffle(faults)
    return faults


def _nth(moment: str, rng: random.Random) -> int:
    """Which time that a run passes a point is the one: at most as often as it does."""
    most = {
        "before the attempt": 1, "after the attempt": 1, "in a checkpoint": 3, "in the result": 2,
        "in an upload": 3, "after a checkpoint": 1, "in the entry": STEPS,
    }  # fmt: skip
    return rng.randint(1, most.get(moment, STEPS))


def survive(fault: Fault, run: SmallRun, folder: Path, *, usual_sec: float) -> Result:
    """Lets a fault happen to a run, runs the same command until it has ended, and looks at it."""
    started = time.monotonic()
    log, mark = folder / "log.jsonl", folder / "mark"
    number = getattr(signal, f"SIG{fault.signal}")
    watch = Watch(log=str(log))
    if fault.moment != RANDOM:
        watch = Watch(
            log=str(log), point=fault.moment, nth=fault.nth, number=number, mark=str(mark)
        )
    said = folder / "said.txt"
    codes, lines, happened = [], [], False
    for command in range(MOST_COMMANDS):
        first = command == 0
        pid = _fork(run.command, watch if first else Watch(log=str(log)), said)
        if first and fault.moment == RANDOM:
            time.sleep(fault.share * usual_sec)
            happened = _tell(pid, number)
        code = _wait(pid)
        happened = happened or mark.exists()
        codes.append(code)
        if code > 0:
            lines.append(said.read_text())
        if code == 0 or (code > 0 and command > 0):
            break
    finding = examine(run, log)
    return Result(
        fault=fault,
        finding=replace(finding, faults=(*finding.faults, *unclear(codes, lines))),
        codes=tuple(codes),
        lines=tuple(lines),
        happened=happened,
        seconds=time.monotonic() - started,
    )


def overtake(fault: Fault, run: SmallRun, folder: Path) -> Result:
    """Stops a driver at a point, has a second one finish its run, and lets the first one go on."""
    started = time.monotonic()
    log, mark = folder / "log.jsonl", folder / "mark"
    watch = Watch(
        log=str(log), point=fault.moment, nth=fault.nth, number=signal.SIGSTOP, mark=str(mark)
    )
    older = _fork(run.command, watch, folder / "older.txt")
    _, status = os.waitpid(older, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "It ended before it came to its point."
    younger = _wait(_fork(run.command, Watch(log=str(log)), folder / "younger.txt"))
    os.kill(older, signal.SIGCONT)
    codes = [_wait(older), younger]
    said = (folder / "older.txt").read_text()
    finding = examine(run, log)
    wrong = unclear(codes, [said])
    if codes != [1, 0] or "is fenced: attempt 2 has begun" not in said:
        wrong.append(f"the older driver was not fenced: {codes}")
    return Result(
        fault=fault,
        finding=replace(finding, faults=(*finding.faults, *wrong)),
        codes=tuple(codes),
        lines=(said,),
        happened=mark.exists(),
        seconds=time.monotonic() - started,
    )


def unclear(codes: list[int], lines: list[str]) -> list[str]:
    """A command that ends by itself and not well has to say why, in one line, and no more."""
    faults = [
        f"said {text!r}"
        for text in lines
        if len(text.splitlines()) != 1 or not text.startswith("rapid-dist: ")
    ]
    if codes[-1] < 0:
        faults.append(f"the last command was ended by signal {-codes[-1]}")
    return faults


def _fork(run: Callable[[], int], watch: Watch, said: Path) -> int:
    """Starts a command as a process of its own, imports done; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        install(watch)
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _tell(pid: int, number: int) -> bool:
    """Sends a signal to a process that may have ended; whether it had not."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _wait(pid: int) -> int:
    """Waits for a process; lets one that was stopped go on. Returns its exit code, or -signal."""
    give_up = time.monotonic() + GIVE_UP_SEC
    while time.monotonic() < give_up:
        ended, status = os.waitpid(pid, os.WUNTRACED | os.WNOHANG)
        if ended and os.WIFSTOPPED(status):
            time.sleep(0.05)
            os.kill(pid, signal.SIGCONT)
        elif ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"A command had not ended after {GIVE_UP_SEC:g} s.")


def told(results: list[Result]) -> str:
    """Returns what is wrong with results, for a person."""
    return "\n".join(
        json.dumps(
            {
                "fault": one.fault.kind,
                "nth": one.fault.nth,
                "codes": one.codes,
                "lines": one.lines,
                "faults": one.finding.faults,
            }
        )
        for one in results
        if not (one.survived or one.stopped)
    )
