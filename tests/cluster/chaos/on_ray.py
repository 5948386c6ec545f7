"""The small run on Ray: two workers of Ray Train, a keeper beside the driver, and who falls when.

A command is a process of its own here, with a cluster of its own; ``bootstrap/`` on its path has
every process of that cluster watched. After a fall of the driver one worker goes on alone.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tests.cluster.chaos import processes
from tests.cluster.chaos.killer import RANDOM, STARTS, Fault, Result, unclear
from tests.cluster.chaos.points import SETTING, Watch
from tests.cluster.chaos.runs import SmallRun, begun, examine

HERE = Path(__file__).resolve()
ROOT = HERE.parents[3]
WORKERS = 2
PACE_SEC = 0.4  # Of a step, so that a moment can be met.
PATIENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_raylet_start_wait_time_s": "240",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # So long, on a busy machine, may a worker not answer that does not hang.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
}
HANG_MINUTES = 1.0  # Less than a worker needs to start would end groups that are well.
GIVE_UP_SEC = 900.0  # A command that takes longer hangs, even on a busy machine.
GO_ON_SEC = 2.0  # After which who was stopped goes on, unless he is to hang.
LOOK_SEC = 0.2


def _worker(number: str, moment: str, nth: int) -> Fault:
    return Fault(target="worker", signal=number, moment=moment, nth=nth)


def _at_random(target: str, number: str, share: float, moment: str = RANDOM) -> Fault:
    return Fault(target=target, signal=number, moment=moment, share=share)


# Who falls, by what, and when; the most telling first. A worker that is stopped and HANGs is never
# told to go on.
FAULTS = (
    _worker("KILL", "noise, then update", 2),
    Fault(target="keeper", signal="KILL", moment="in the entry", nth=6),
    _at_random("raylet", "KILL", 0.4),
    _at_random("driver", "KILL", 0.5),
    _worker("HANG", "entry, then noise", 4),
    _at_random("driver", "TERM", 0.5),
    _worker("KILL", "in a checkpoint", 2),
    _worker("KILL", "entry, then noise", 5),
    _worker("STOP", "noise, then update", 3),
    _at_random("driver", "STOP", 0.3),
    Fault(target="keeper", signal="STOP", moment="in the entry", nth=3),
    _worker("KILL", "in the result", 1),
    _at_random("raylet", "STOP", 0.6),
    _worker("KILL", "update, then report", 4),
    Fault(target="keeper", signal="KILL", moment="before the entry", nth=5),
    _at_random("driver", "KILL", 0.5, STARTS),
    _worker("KILL", "after the attempt", 1),
    _worker("KILL", "noise, then update", 7),
    _worker("KILL", "entry, then noise", 1),
    _worker("STOP", "in a checkpoint", 2),
    _at_random("driver", "TERM", 0.5, STARTS),
)
# Of a run in a bucket, where the worker of rank 0 sends checkpoints.
FAULTS_ON_S3 = (
    _worker("KILL", "in an upload", 2),
    _worker("STOP", "in an upload", 1),
    Fault(target="keeper", signal="KILL", moment="before the entry", nth=6),
    _worker("KILL", "in an upload", 1),
    _at_random("driver", "KILL", 0.5),
)


def survive_on_ray(
    fault: Fault, folder: Path, *, where: str = "", pace_sec: float = PACE_SEC
) -> Result:
    """As ``killer.survive``, on a cluster that is started for each command.

    Args:
      where: of the run, if it is not in the folder: a bucket's prefix.
    """
    started = time.monotonic()
    run = SmallRun(folder=where or str(folder / "all"), pace_sec=pace_sec)
    log, mark = folder / "log.jsonl", folder / "mark"
    name = "STOP" if fault.signal == "HANG" else fault.signal
    number = getattr(signal, f"SIG{name}")
    watch = Watch(log=str(log))
    if fault.moment not in (RANDOM, STARTS):
        watch = replace(watch, point=fault.moment, nth=fault.nth, number=number, mark=str(mark))
    codes, lines, wrong, happened = [], [], [], False
    for command in range(3):
        said = folder / f"said-{command}.txt"
        first = command == 0
        workers = WORKERS if first or fault.target != "driver" else 1
        driver = _start(run, workers, watch if first else Watch(log=str(log)), said)
        try:
            if first and fault.moment in (RANDOM, STARTS):
                happened = _fell(fault, number, driver, log)
            code = _wait(driver, goes_on=fault.signal == "STOP")
        finally:
            driver.clear()
        if code is None:
            wrong.append(f"a command had not ended after {GIVE_UP_SEC:g} s: {said.read_text()}")
            break
        happened = happened or mark.exists()
        codes.append(code)
        if code > 0:
            lines.append(_own_lines(said.read_text()))
        if code == 0 or (code > 0 and command > 0):
            break
    finding = examine(run, log)
    wrong += unclear(codes, lines) if codes else []
    return Result(
        fault=fault,
        finding=replace(finding, faults=(*finding.faults, *wrong)),
        codes=tuple(codes),
        lines=tuple(lines),
        happened=happened,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True, kw_only=True)
class _Driver:
    """A command, and the processes below it as long as somebody has looked."""

    process: subprocess.Popen[bytes]
    family: processes.Family

    def clear(self) -> None:
        self.process.kill()
        self.process.wait()
        self.family.clear()


def _start(run: SmallRun, workers: int, watch: Watch, said: Path) -> _Driver:
    path = [str(HERE.with_name("bootstrap")), str(ROOT)]
    environment = {
        **os.environ, **PATIENT, SETTING: watch.setting(), "PYTHONPATH": os.pathsep.join(path),
    }  # fmt: skip
    script = str(HERE.with_name("ray_command.py"))
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, script, run.folder, str(workers), str(run.pace_sec)],
            env=environment, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    return _Driver(process=process, family=processes.Family(process.pid))


def _fell(fault: Fault, number: int, driver: _Driver, log: Path) -> bool:
    """Lets a signal come while steps are made, or while the group is still starting."""
    give_up = time.monotonic() + GIVE_UP_SEC
    while driver.process.poll() is None and time.monotonic() < give_up:
        driver.family.look()
        is_up = driver.family.find("raylet/raylet") is not None
        if begun(log) or (is_up and fault.moment == STARTS):
            break
        time.sleep(LOOK_SEC)
    time.sleep((20 if fault.moment == STARTS else 6 * PACE_SEC) * fault.share)
    driver.family.look()
    own = driver.process.pid
    target = own if fault.target == "driver" else driver.family.find("raylet/raylet")
    if target is None or driver.process.poll() is not None:
        return False
    os.kill(target, number)
    if number == signal.SIGSTOP:
        time.sleep(GO_ON_SEC)
        with suppress(ProcessLookupError):
            os.kill(target, signal.SIGCONT)
    else:
        line = json.dumps({"kind": "fall", "time": time.time(), "pid": target})
        with log.open("a") as file:
            file.write(f"{line}\n")
    return True


def _wait(driver: _Driver, *, goes_on: bool) -> int | None:
    """Waits for a command; who has stopped himself goes on a little later, unless he hangs."""
    give_up = time.monotonic() + GIVE_UP_SEC
    stopped: dict[int, float] = {}
    while time.monotonic() < give_up:
        driver.family.look()
        code = driver.process.poll()
        if code is not None:
            return code
        for pid in driver.family.seen if goes_on else ():
            if processes.is_stopped(pid):
                since = stopped.setdefault(pid, time.monotonic())
                if time.monotonic() - since > GO_ON_SEC:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
        time.sleep(LOOK_SEC)
    return None


def _own_lines(text: str) -> str:
    """What the command itself says; Ray's processes write to the same place."""
    own = [line for line in text.splitlines() if line.startswith(("rapid-dist:", "Traceback"))]
    return "\n".join(own) or text[-2000:]
