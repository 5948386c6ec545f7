"""What a run may say of itself once a sweep has chosen it.

A chosen model costs what choosing it cost, and that is what its summary, bundle and tags state. Of
the best of a secret number of runs nothing may be told that depends on that number: not how many
entries the ledger has, and not where on it the run's own stand.
"""

import json
from collections.abc import Mapping
from typing import Any

from rapid_dist.errors import LedgerError
from rapid_dist.methods.seal import read_table
from rapid_dist.privacy.dataset_total import SCORE, sweep_of
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.selection import SELECTION
from rapid_dist.storage import Storage, StorageMissing, open_storage, sha256_hex

Selection = Mapping[str, Any]  # As in selection.json; empty of a run that nobody chose.
_CHOSEN = "chosen: "  # So begins a sweep's note in the ledger of the run that it has chosen.


def selection_of(run: Storage) -> Selection:
    """Returns the price of the run as a sweep wrote it; nothing of a run that none has chosen."""
    try:
        return read_table(run, SELECTION, "Restore it from a backup: it is the price of the run.")
    except StorageMissing:
        return {}


def score_run(run: str) -> str:
    """Returns the name under which the ledger has the scores of a sweep's trial."""
    return f"{run}{SCORE}"


def hand_over(trial: str, place: str, selection: Selection) -> None:
    """Copies the chosen trial to a run directory of its own, whose name says nothing of the others.

    It lacks samples and bundle, which made no claim: `rapid-dist run` makes them with the price.

    Args:
      trial: the address of the trial's run directory.
      place: that of the new one.
    """
    run = open_storage(trial)
    plain, own = open_storage(place), open_storage(place, private=True)
    for name in run.list():
        if not name.startswith(("bundle/", "samples/", "stages/generate", "run.lock")):
            (own if name.startswith("internal/") else plain).write(name, run.read(name))
    plain.write(SELECTION, json.dumps(selection, indent=2).encode() + b"\n")


def note_chosen(ledger: Ledger, run: str, sweep: str, selection: Selection) -> None:
    """Writes to the ledger, once, that a sweep has chosen this run of its own, and its price.

    Raises:
      LedgerError: the sweep has chosen another: its price is that of one choice.
    """
    if sweep not in _choices(ledger):
        ledger.append("note", sweep, attempt=0, note=f"{_CHOSEN}{run} price={_digest(selection)}")
    # Looked up afterwards: whose note came second has been told of the first by now.
    first = _parted(_choices(ledger)[sweep])[0]
    if first != run:
        raise LedgerError(
            f"Sweep {sweep!r} has chosen {first!r} already, and its price is that of one choice: "
            f"{run!r} stays. Keep the folder chosen/ of the first."
        )


def trial_fault(ledger: Ledger, run: str, selection: Selection) -> str:
    """Returns why a run may not leave that a sweep has tried on private data, or nothing.

    A trial that was not chosen has no claim of its own: its score had a part in choosing another,
    and where the number of runs is secret nothing but the chosen one may be seen. The chosen one
    leaves at the price that the ledger has of it, and nobody trains its recipe anew at a lower one:
    the settings were chosen by looking.
    """
    chosen = _chosen(ledger)
    if run in chosen:
        if not selection:
            return (
                f"The run was chosen by a sweep, and this directory lacks {SELECTION}, the price "
                "of the choice. Release the sweep's folder chosen/."
            )
        if _digest(selection) != chosen[run]:
            return (
                f"{SELECTION} is not the price that the ledger has of this choice: it was changed. "
                "Bring back the sweep's own."
            )
        return ""
    if sweep_of(ledger, run):
        return (
            "The run was a trial of a sweep, which has not chosen it: epsilon of the run alone is "
            "not what its choice has cost. Release the sweep's folder chosen/."
        )
    recipe = run.rpartition("-")[2]  # So a run's name ends: with the hash of its recipe.
    if any(one.rpartition("-")[2] == recipe for one in chosen):
        return (
            "A sweep has chosen this recipe on the private data, so a model that is trained by it "
            "anew costs more than its own epsilon. Give the sweep's folder chosen/ as --out."
        )
    return ""


def _chosen(ledger: Ledger) -> dict[str, str]:
    """Every chosen run on the ledger, and the digest of its price."""
    return {run: digest for run, _, digest in map(_parted, _choices(ledger).values())}


def _choices(ledger: Ledger) -> dict[str, str]:
    """What every sweep has chosen, and at which price; its first choice counts.

    Two drivers of one sweep in a bucket, which has no lock, may each have come to a choice.
    """
    first: dict[str, str] = {}
    for entry in ledger.entries():
        if entry.kind == "note" and entry.note.startswith(_CHOSEN):
            first.setdefault(entry.run, entry.note.removeprefix(_CHOSEN))
    return first


def _parted(note: str) -> tuple[str, str, str]:
    return note.partition(" price=")


def _digest(selection: Selection) -> str:
    return sha256_hex(json.dumps(selection, sort_keys=True, separators=(",", ":")).encode())


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
