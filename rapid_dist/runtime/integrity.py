"""Whether all parts of a run directory are this run's, and the ledger that which it was charged to.

Asked when a command begins, from the seals of the run's folders (``methods/seal.py``): a few small
files. What a file holds is compared with its seal where it is read.
"""

from collections.abc import Sequence
from typing import Any

from rapid_dist.errors import CheckpointError, LedgerError
from rapid_dist.methods import artifacts, contamination_stage
from rapid_dist.methods.context import Stage
from rapid_dist.methods.seal import is_done, read_done, require_whole
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.private.rounds import answered_rounds
from rapid_dist.runtime.run_directory import RunDirectory
from rapid_dist.storage import Storage

# Folders that one run has made and no other may have: of the method, and of nonprivate's.
_NAMES = ("prior", "refined", "answers", "adapted", "private", "samples")
FOLDERS = (*_NAMES, *(f"internal/nonprivate/{name}" for name in ("adapted", "private", "samples")))


def require_own(directory: RunDirectory, ledger: Ledger) -> None:
    """Refuses a directory with another run's results in it, or the ledger of another time or run.

    Raises:
      CheckpointError: names the folder, and whose it is.
      LedgerError: a query that the directory has the answer of is not in the ledger.
    """
    asked = {(e.run, e.attempt) for e in ledger.entries() if e.kind in ("query", "step")}
    _require_asked(directory, ledger)
    for name in FOLDERS:
        storage = directory.storage.child(name)
        if not is_done(storage):
            continue
        facts = read_done(storage)
        if facts.get("of", directory.run) != directory.run:
            raise CheckpointError(
                f"{storage.uri} is of run {facts['of']!r}, but {directory.storage.uri}/run.json "
                f"says {directory.run!r}. Restore the one that was replaced, or use another --out."
            )
        if "attempt" in facts and (directory.run, int(facts["attempt"])) not in asked:
            raise LedgerError(
                f"The ledger of {ledger.dataset!r} lacks the query that {storage.uri} is the "
                f"answer of (run {directory.run!r}, attempt {facts['attempt']}): it was cut off, "
                "or is not the ledger that was charged. Bring that one back."
            )


def _require_asked(directory: RunDirectory, ledger: Ledger) -> None:
    """Looks for what has paid for answers that stand in no finished folder yet."""
    own = [entry for entry in ledger.entries() if entry.run == directory.run]
    steps = {entry.step for entry in own if entry.kind == "step"}
    answers = directory.storage.child("answers")
    unpaid = [f"round {one}" for one in answered_rounds(answers) if one not in steps]
    decided = directory.storage.exists(contamination_stage.DECISION)
    if decided and contamination_stage.PURPOSE not in {entry.note for entry in own}:
        unpaid.append(f"the query behind {contamination_stage.DECISION}")
    if unpaid:
        raise LedgerError(
            f"The ledger of {ledger.dataset!r} lacks {unpaid[0]} of run {directory.run!r}, whose "
            f"answer is in {directory.storage.uri}: it was cut off, or is not the ledger that was "
            "charged. Bring that one back."
        )


def require_own_summary(directory: RunDirectory, summary: dict[str, Any]) -> None:
    """Refuses the summary of another run.

    Raises:
      CheckpointError: says whose it is.
    """
    run = summary.get("privacy", {}).get("run", directory.run)
    if run != directory.run:
        raise CheckpointError(
            f"{directory.storage.uri}/summary.json is of run {run!r}, this directory is of "
            f"{directory.run!r}. Delete it and run the same command again: it is written anew."
        )


def require_public_whole(
    stages: Sequence[Stage], waiting: Sequence[Stage], settings: MethodSettings, public: Storage
) -> None:
    """Looks at what public stages have made before a private one is asked for anything.

    What is torn there would stop the run all the same, but after its next query has been charged.

    Raises:
      CheckpointError: names the file.
    """
    if all(stage.artifact is not None for stage in waiting):
        return
    for stage in stages:
        if stage.artifact is not None and stage not in waiting:
            require_whole(public.child(stage.artifact(settings)))


def is_made(stage: Stage, settings: MethodSettings, public: Storage) -> bool:
    """Whether a stage's result is still in the public store, and the one that was finished there.

    Raises:
      CheckpointError, ShardError: it is another's, or its table of contents was changed.
    """
    assert stage.artifact is not None
    place = public.child(stage.artifact(settings))
    if not is_done(place):
        return False
    if "manifest" in read_done(place):
        artifacts.open_manifest(place)
    return True
