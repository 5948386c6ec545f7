"""What a run may say of itself once a sweep has chosen it.

A chosen model costs what choosing it cost, and that is what its summary, bundle and tags state. Of
the best of a secret number of runs nothing may be told that depends on that number: not how many
entries the ledger has, and not where on it the run's own stand.
"""

import json
from collections.abc import Mapping
from typing import Any

from rapid_dist.privacy.dataset_total import secret_sweeps
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.selection import SELECTION
from rapid_dist.storage import Storage, StorageMissing

Selection = Mapping[str, Any]  # As in selection.json; empty of a run that nobody chose.
_CHOSEN = "chosen: "  # So begins a sweep's note in the ledger of the run that it has chosen.


def selection_of(run: Storage) -> Selection:
    """Returns the price of the run as a sweep wrote it; nothing of a run that none has chosen."""
    try:
        found: Selection = json.loads(run.read(SELECTION))
    except StorageMissing:
        return {}
    return found


def score_run(run: str) -> str:
    """Returns the name under which the ledger has the scores of a sweep's trial."""
    return f"{run}-score"


def note_chosen(ledger: Ledger, run: str, sweep: str) -> None:
    """Writes to the ledger, once, that a sweep has chosen this run of its own."""
    if not _is_chosen(ledger, run):
        ledger.append("note", sweep, attempt=0, note=f"{_CHOSEN}{run}")


def trial_fault(ledger: Ledger, run: str, selection: Selection) -> str:
    """Returns why a run may not leave that a sweep has tried on private data, or nothing.

    A trial that was not chosen has no claim of its own: its score had a part in choosing another,
    and where the number of runs is secret nothing but the chosen one may be seen. The ledger knows
    trials by their scores and by the name of a secret sweep, and the chosen ones by a note.
    """
    tried = score_run(run) in ledger.runs() or any(one.has(run) for one in secret_sweeps(ledger))
    if not tried or (_is_chosen(ledger, run) and selection):
        return ""
    if _is_chosen(ledger, run):
        return (
            f"The run was chosen by a sweep, and this directory lacks {SELECTION}, the price of "
            "the choice. Release the sweep's folder chosen/."
        )
    return (
        "The run was a trial of a sweep, which has not chosen it: epsilon of the run alone is not "
        "what its choice has cost. Release the sweep's folder chosen/."
    )


def _is_chosen(ledger: Ledger, run: str) -> bool:
    note = f"{_CHOSEN}{run}"
    return any(entry.kind == "note" and entry.note == note for entry in ledger.entries())


def is_secret(selection: Selection) -> bool:
    """Whether the number of runs beside this one is what the price rests on."""
    return selection.get("promise") == "repeat_and_select"


def as_chosen(privacy: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Returns the summary's ``privacy`` of a run, epsilon being that of the choice."""
    if not selection:
        return dict(privacy)
    return {
        **privacy,
        "epsilon": max(float(privacy["epsilon"]), float(selection["epsilon"])),
        "run_epsilon": privacy["epsilon"],
        "selection": dict(selection),
    }


def in_bundle(privacy: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Returns the same as a bundle states it."""
    told = as_chosen(privacy, selection)
    if is_secret(selection):
        del told["dataset_epsilon"]
    return told
