"""``rapid-dist compare``: methods side by side on the same data, budget and evaluation.

    DIR/compare.html    the page: figure, table, samples, what was held equal, what it cost
    DIR/compare.json    the same as plain values; DIR/compare.md the table, DIR/compare.svg the
                        figure, DIR/compare-samples.png a row of samples a method
    DIR/pieces/         a run directory for every row, epsilon and seed

Every figure is measured against private records without a mechanism, so the whole folder is an
internal result (P13): its owner's alone, and nothing in it is for release. Every piece is charged
to the data set's one ledger (P8). What a method needs of public data is shared with the runs beside
it by the public store. The same command goes on where the last one stopped; a piece that fails is
told of and ends no other.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rapid_dist.config import Recipe
from rapid_dist.errors import RapidError
from rapid_dist.installed import code_version
from rapid_dist.runtime.compare_piece import MARK, PieceJob, read_mark, run_apart
from rapid_dist.runtime.compare_plan import Piece, PreparedCompare, prepare_compare
from rapid_dist.runtime.compare_results import write_results
from rapid_dist.runtime.lock import locked
from rapid_dist.runtime.progress import Progress
from rapid_dist.runtime.run_directory import INTERNAL, require_writable
from rapid_dist.runtime.signals import stop_on_sigterm
from rapid_dist.storage import open_storage

Runner = Callable[[PieceJob], None]


def run_compare(
    recipe: Recipe,
    out: str,
    *,
    progress: Progress | None = None,
    run_one: Runner = run_apart,
) -> dict[str, Any]:
    """Runs what is left of a comparison, and returns compare.json.

    The first seed of every row comes first, and all results are written anew after each piece.

    Args:
      run_one: runs one piece, or goes on with it; raises RapidError where it fails.
    """
    prepared = prepare_compare(recipe, out)
    _make_own(prepared.places.out)
    require_writable(prepared.places)
    open_storage(prepared.places.out, private=True).write("README.txt", INTERNAL.encode())
    failed: dict[str, str] = {}
    with locked(prepared.places.out), contextlib.ExitStack() as open_things:
        progress = open_things.enter_context(progress or Progress())
        open_things.enter_context(stop_on_sigterm())
        for number, piece in enumerate(prepared.pieces, start=1):
            at = f"{piece.name:<28} {number} of {len(prepared.pieces)}"
            if is_done(piece):
                progress.note(f"{at}  done before")
                continue
            progress.note(at)
            try:
                run_one(piece.job)
                _mark(piece)
            except RapidError as error:
                failed[piece.name] = str(error)
                progress.note(f"{piece.name:<28} failed: {error}")
            _write(prepared, failed, whole=False)
        return _write(prepared, failed, whole=True)


def is_done(piece: Piece) -> bool:
    """Whether the piece has figures of these very settings."""
    return read_mark(piece.out).get("identity") == piece.identity


def _mark(piece: Piece) -> None:
    content = {"piece": piece.name, "identity": piece.identity, "code": code_version()}
    storage = open_storage(piece.out, private=True)
    storage.write(MARK, json.dumps(content, indent=2).encode())


def _write(prepared: PreparedCompare, failed: Mapping[str, str], *, whole: bool) -> dict[str, Any]:
    done = [piece for piece in prepared.pieces if is_done(piece)]
    return write_results(
        prepared.recipe, prepared.places, prepared.pieces, done=done, failed=failed, whole=whole
    )


def _make_own(out: str) -> None:
    """Makes the folder of a comparison its owner's alone; a bucket has a policy of its own."""
    if "://" not in out:
        Path(out).mkdir(parents=True, exist_ok=True)
        os.chmod(out, 0o700)
