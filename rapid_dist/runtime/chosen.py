"""What a run may say of itself once a sweep has chosen it.

A chosen model costs what choosing it cost, and that is what its summary, bundle and tags state. Of
the best of a secret number of runs nothing may be told that depends on that number: not how many
entries the ledger has, and not where on it the run's own stand.
"""

import json
from collections.abc import Mapping
from typing import Any

from rapid_dist.privacy.selection import SELECTION
from rapid_dist.storage import Storage, StorageMissing

Selection = Mapping[str, Any]  # As in selection.json; empty of a run that nobody chose.


def selection_of(run: Storage) -> Selection:
    """Returns the price of the run as a sweep wrote it; nothing of a run that none has chosen."""
    try:
        found: Selection = json.loads(run.read(SELECTION))
    except StorageMissing:
        return {}
    return found


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
