"""One piece of a comparison: one method at one epsilon by one seed, a run directory of its own.

    python -m rapid_dist.runtime.compare_piece < JOB.json

runs the ordinary pipeline in a process of its own: what ends it ends nothing else, and the memory
that it took is its own. It writes what it took, or in one line why it failed, beside the run.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapid_dist.config import parse_recipe
from rapid_dist.errors import RapidError
from rapid_dist.methods.seal import read_table
from rapid_dist.runtime import pipeline
from rapid_dist.runtime.compare_memory import PeakMemory
from rapid_dist.storage import StorageMissing, open_storage

BOOK = "internal/piece.json"  # Of a piece, in its run directory.
MARK = "piece.json"  # Likewise; it is there when the piece is done.
AGAIN = "Delete it and run the same command again: it is written anew."
_BUNDLE = "bundle/"


@dataclass(frozen=True, kw_only=True)
class PieceJob:
    """All that a piece needs, as plain values."""

    name: str
    recipe: Mapping[str, Any]  # A whole recipe's tree.
    out: str


def run_piece(job: PieceJob) -> None:
    """Runs what is left of a piece, and keeps its peaks over all attempts.

    Its bundle goes: it was measured beside others, and nothing of a comparison is for release.
    """
    peak = PeakMemory()
    try:
        with peak:
            pipeline.run(parse_recipe(job.recipe), job.out)
    except RapidError as error:
        _note(job, peak, str(error))
        raise
    except Exception as error:
        # Not its message: an unforeseen error of a private stage may quote what it worked on (P9).
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__} in {place.name} ({place.filename}:{place.lineno})"
        _note(job, peak, reason)
        raise RapidError(reason) from error
    storage = open_storage(job.out)
    for name in storage.list(_BUNDLE):
        storage.delete(name)
    _note(job, peak, "")


def run_apart(job: PieceJob) -> None:
    """Runs a piece in a process of its own; raises RapidError with the reason if it fails."""
    folder = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "rapid_dist.runtime.compare_piece"],
        stdin=subprocess.PIPE,
        stdout=2,  # What is on stdout is the comparison's own.
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C comes to it once, by us.
    )
    try:
        process.communicate(json.dumps(asdict(job)).encode())
    except BaseException:  # Ctrl-C, or SIGTERM that was made one: it closes what it has open.
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    if process.returncode:
        said = read_book(job.out).get("reason") if process.returncode > 0 else ""
        raise RapidError(said or f"its process ended with {process.returncode} and without a word")


def read_book(out: str) -> dict[str, Any]:
    """Returns what a piece has noted: its peaks, and why it failed, if it did."""
    return _read(out, BOOK)


def read_mark(out: str) -> dict[str, Any]:
    """Returns what a piece that is done is known by: its settings' hash and the code it ran by."""
    return _read(out, MARK)


def _read(out: str, name: str) -> dict[str, Any]:
    try:
        return read_table(open_storage(out), name, AGAIN)
    except StorageMissing:
        return {}


def _note(job: PieceJob, peak: PeakMemory, reason: str) -> None:
    before = read_book(job.out).get("peak", {})
    peaks = peak.figures()
    for name, value in peaks.items():
        known = [one for one in (value, before.get(name)) if one is not None]
        peaks[name] = max(known) if known else None
    content = {"name": job.name, "peak": peaks, "reason": reason}
    text = json.dumps(content, indent=2).encode()
    open_storage(job.out, private=True).write(BOOK, text)


def main() -> int:
    """Runs the piece that stdin describes; the reason of a failure is in its book."""
    content = json.loads(sys.stdin.read())
    try:
        run_piece(PieceJob(**content))
    except RapidError as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
