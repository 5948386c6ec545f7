"""Two loops that lie about what they cost, for the killer to find."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.private.loop import train_private
from rapid_dist.private.step import PrivateStep
from tests.cluster.chaos.killer import Fault, Result, survive
from tests.cluster.chaos.runs import SmallRun


class ChargedAfter(PrivateStep):
    """Charges a step when its noised sum is there: a crash between the two forgets it."""

    def noised_gradient(self, denoiser: Any, step: int) -> torch.Tensor:
        flat = replace(self, charge=lambda step: None).noised_before(denoiser, step)
        self.charge(step)
        return flat

    def noised_before(self, denoiser: Any, step: int) -> torch.Tensor:
        return PrivateStep.noised_gradient(self, denoiser, step)


class Forgetful(LedgerKeeper):
    """Takes a step for paid that an earlier attempt has paid for."""

    def charge(self, step: int, attempt: int | None = None) -> None:
        paid = {entry.step for entry in self._ledger.entries() if entry.kind == "step"}
        if step not in paid:
            super().charge(step, attempt)


def planted(folder: Path) -> dict[str, Result]:
    """Returns how the killer found each of them, by name."""
    runs = {
        "charged after the noise": (
            {"train": partial(train_private, step_type=ChargedAfter)},
            Fault(target="driver", signal="KILL", moment="noise, then update", nth=3),
        ),
        "repeats are not charged": (
            {"keeper": Forgetful},
            Fault(target="driver", signal="KILL", moment="update, then report", nth=5),
        ),
    }
    found = {}
    for number, (name, (parts, fault)) in enumerate(runs.items()):
        own = folder / f"planted-{number}"
        own.mkdir()
        run = SmallRun(folder=str(own / "all"), **parts)
        found[name] = survive(fault, run, own, usual_sec=1.0)
    return found
