"""Named moments of a run, at which a process kills or stops itself, and a log of what it did.

The product has no hooks for this. The seams between its parts are wrapped from outside, in the
process that runs it: in a fork of the killer's, or, on Ray, wherever ``bootstrap/`` is on the path.
A log line is one write to a file that is only ever appended to, so nothing of it is lost by a kill.

    before the entry      the step is about to be charged; nothing of it is on the disk
    in the entry          half of the ledger's entry is in a file without a name
    entry, then noise     charged, and no noise drawn: nothing was released
    noise, then update    the noised sum exists, the weights know nothing of it
    update, then report   the weights are new, nothing of them is on a disk
    in a checkpoint       half of a checkpoint is in a file without a name
    after a checkpoint    named, and nothing was cleared yet
    in the result         half of the finished network's file is without a name
    in an upload          half of the bytes are on the wire to S3
    before the attempt, after the attempt
"""

import functools
import hashlib
import importlib.abc
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SETTING = "RAPID_CHAOS"  # The environment variable that tells a Ray process what to watch.
POINTS = (
    "before the attempt",
    "after the attempt",
    "before the entry",
    "in the entry",
    "entry, then noise",
    "noise, then update",
    "update, then report",
    "in a checkpoint",
    "after a checkpoint",
    "in the result",
)
ON_S3 = ("in an upload",)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What the processes of one command do: where they log, and where one of them falls."""

    log: str
    point: str = ""  # None of POINTS: nobody falls by himself.
    nth: int = 1  # Time that the point is passed, counted in each process.
    number: int = signal.SIGKILL
    mark: str = ""  # Made by whoever falls: nobody else does.

    def setting(self) -> str:
        return json.dumps(asdict(self))


def install(watch: Watch) -> None:
    """Wraps the seams of what this process has imported, and of what it will import."""
    watcher = _Watcher(watch)
    seams: dict[str, Callable[[ModuleType], None]] = {
        "rapid_dist.privacy.keeper": watcher.keeper,
        "rapid_dist.private.step": watcher.step,
        "rapid_dist.private.loop": watcher.loop,
        "rapid_dist.diffusion.ema": watcher.ema,
        "rapid_dist.diffusion.checkpoint": watcher.checkpoint,
        "rapid_dist.storage": watcher.storage,
    }
    for name, wrap in seams.items():
        if name in sys.modules:
            wrap(sys.modules[name])
    waiting = {name: wrap for name, wrap in seams.items() if name not in sys.modules}
    if waiting:
        sys.meta_path.insert(0, _AfterImport(waiting))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function on a module as soon as it has been imported."""

    def __init__(self, waiting: dict[str, Callable[[ModuleType], None]]) -> None:
        self._waiting = waiting

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        wrap = self._waiting.pop(name, None)
        if wrap is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                execute = spec.loader.exec_module

                def run(module: ModuleType, execute: Any = execute, wrap: Any = wrap) -> None:
                    execute(module)
                    wrap(module)

                spec.loader.exec_module = run  # type: ignore[method-assign]
                return spec
        return None


class _Watcher:
    """Wraps one module after the other."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._passed = 0
        self._now: dict[str, Any] = {}  # Attempt, step and rank of the step that is being made.

    def keeper(self, module: Any) -> None:
        charge = module.LedgerKeeper.charge

        @functools.wraps(charge)
        def charged(own: Any, step: int, attempt: int | None = None) -> Any:
            self._pass("before the entry")
            return charge(own, step, attempt)

        module.LedgerKeeper.charge = charged

    def step(self, module: Any) -> None:
        noised_gradient, new_noise = module.PrivateStep.noised_gradient, module.new_noise
        now = self._now

        def watched(own: Any, denoiser: Any, step: int) -> Any:
            now.update(attempt=own.attempt, step=step, rank=own.collective.rank)
            flat = noised_gradient(own, denoiser, step)
            self._log("update", **now, digest=_digest([flat]))
            self._pass("noise, then update")
            return flat

        class Noise:
            """Says that noise is about to be added before it is."""

            def __init__(self, inner: Any) -> None:
                self._inner = inner

            def __getattr__(self, name: str) -> Any:
                return getattr(self._inner, name)

            def release(this, total: Any, step: int) -> Any:
                self._pass("entry, then noise")
                self._log("noise", **now)
                return this._inner.release(total, step)

        module.PrivateStep.noised_gradient = watched
        module.new_noise = lambda *args, **named: Noise(new_noise(*args, **named))

    def loop(self, module: Any) -> None:
        open_attempt = module._open_attempt

        def opened(collective: Any, begin: Any, new_key: Any, first: int, digest: bytes) -> Any:
            self._pass("before the attempt")
            found = open_attempt(collective, begin, new_key, first, digest)
            own = {"attempt": found[0], "first": first, "rank": collective.rank}
            self._log("begin", **own, pid=os.getpid())
            self._pass("after the attempt")
            return found

        module._open_attempt = opened

    def ema(self, module: Any) -> None:
        update = module.Ema.update

        def updated(own: Any) -> None:
            update(own)
            if self._now:  # Not the average of a public loop.
                weights = [*own.average, *own._live]
                self._log("weights", **self._now, digest=_digest(weights))
            self._pass("update, then report")

        module.Ema.update = updated

    def checkpoint(self, module: Any) -> None:
        save = module.Checkpoints.save

        def saved(own: Any, step: int, *args: Any, **named: Any) -> None:
            save(own, step, *args, **named)
            self._log("checkpoint", step=step)

        module.Checkpoints.save = saved

    def storage(self, module: Any) -> None:
        local, bucket = module.LocalStorage, module.S3Storage
        write_temporary, delete, write = local._write_temporary, local.delete, bucket.write

        def written(own: Any, path: Any, data: bytes) -> Any:
            place = str(path)
            for part, point in (
                ("/ledger/", "in the entry"),
                ("/checkpoints/", "in a checkpoint"),
                ("/private/", "in the result"),
            ):
                if part in place and self._is_now(point):
                    half = write_temporary(own, path, data[: len(data) // 2])
                    self._fall()
                    half.unlink()  # Of one that was only stopped.
            return write_temporary(own, path, data)

        def deleted(own: Any, name: str) -> None:
            if "/checkpoints/" in f"{own.uri}/":
                self._pass("after a checkpoint")
            delete(own, name)

        def sent(own: Any, name: str, data: bytes) -> None:
            if "checkpoints/" in f"{own.uri}/" and self._is_now("in an upload"):
                half = _Half(data, self._fall)
                own._client.put_object(Bucket=own._bucket, Key=own._key(name), Body=half)
            else:
                write(own, name, data)

        local._write_temporary, local.delete, bucket.write = written, deleted, sent

    def _pass(self, point: str) -> None:
        if self._is_now(point):
            self._fall()

    def _is_now(self, point: str) -> bool:
        if point != self._watch.point:
            return False
        self._passed += 1
        return self._passed == self._watch.nth

    def _fall(self) -> None:
        try:
            os.close(os.open(self._watch.mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
        self._log("fall", pid=os.getpid(), point=self._watch.point)
        os.kill(os.getpid(), self._watch.number)

    def _log(self, kind: str, **facts: Any) -> None:
        line = json.dumps({"kind": kind, "time": time.time(), **facts}) + "\n"
        descriptor = os.open(self._watch.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def _digest(tensors: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class _Half(io.BytesIO):
    """A body of a request that ends its sender when half of it was read."""

    def __init__(self, data: bytes, fall: Callable[[], None]) -> None:
        super().__init__(data)
        self._half, self._fall = len(data) // 2, fall

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(self._half if size in (None, -1) else size)
        if self.tell() >= self._half:
            self._fall()
        return found


def from_environment() -> None:
    """Watches this process if the environment says so."""
    setting = os.environ.get(SETTING, "")
    if setting.startswith("{"):
        install(Watch(**json.loads(setting)))
