"""Faulty books, loops and words: what is charged, when, and what else a run lets out."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from rapid_dist.audit.subject import RUN, Subject, open_keeper
from rapid_dist.data.images import PrivateImages
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows, row_losses
from rapid_dist.privacy.accounting import Epsilons, epsilons
from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdConfig, DpSgdEvent, Event
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.loop import train_private
from rapid_dist.private.settings import TrainConfig
from rapid_dist.private.step import PrivateStep
from rapid_dist.storage import LocalStorage, Storage
from tests.fakes import MemoryStorage
from tests.faults.catalogue import Fault
from tests.faults.steps import PlainStep
from tests.models import CountingKeeper


class ChargedAfterNoise(PlainStep):
    """The entry is written when the noised update exists already."""

    def noised_gradient(self, denoiser: Denoiser, step: int) -> torch.Tensor:
        total = self.local_sum(denoiser, step, self.batch(step))
        self.collective.sum_(total)
        released = self.noised(total, step) / self.divisor(step)
        if self.collective.rank == 0:
            self.charge(step)
        return released


class CollectingKeeper(LedgerKeeper):
    """Writes entries five at a time, to be fast; a crash takes those that wait."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._waiting: list[int] = []

    def charge(self, step: int, attempt: int | None = None) -> None:
        self._waiting.append(step)
        if len(self._waiting) == 5 or step == self._planned_steps - 1:
            for waiting in self._waiting:
                super().charge(waiting, attempt)
            self._waiting.clear()


class ForgetfulKeeper(LedgerKeeper):
    """Knows of the newest attempt alone, as an accountant that starts anew with the process."""

    def spent(self) -> Epsilons:
        newest = self._ledger.newest_attempt(self._run)
        events = [
            entry.event
            for entry in self._ledger.entries()
            if entry.event is not None and entry.attempt == newest
        ]
        return epsilons(events, self._budget.delta)


class GenerousKeeper(LedgerKeeper):
    """Charges, and refuses nothing."""

    def _count_affordable(self) -> None:
        self._affordable = 10**6


def _keeper(kind: type[LedgerKeeper]) -> Callable[[Subject], Subject]:
    def make(
        storage: Storage, dataset: str, mechanism: DpSgdConfig, budget: Budget
    ) -> LedgerKeeper:
        ledger = Ledger.open(storage, dataset)
        return kind(ledger, RUN, budget, mechanism.event(), mechanism.steps)

    return lambda subject: replace(subject, make_keeper=make)


def unsynced_keeper(
    storage: Storage, dataset: str, mechanism: DpSgdConfig, budget: Budget
) -> LedgerKeeper:
    """Entries are written and left to the operating system's cache."""
    cached = LocalStorage(Path(storage.uri), sync=lambda descriptor: None)
    return open_keeper(cached, dataset, mechanism, budget)


@dataclass(frozen=True, kw_only=True)
class Overstated(DpSgdConfig):
    """Tells the ledger of more noise than it adds."""

    def event(self, steps: int = 1) -> DpSgdEvent:
        return replace(super().event(steps), noise_multiplier=1.02 * self.noise_multiplier)


def _overstated(subject: Subject) -> Subject:
    own = {field.name: getattr(subject.mechanism, field.name) for field in fields(DpSgdConfig)}
    return replace(subject, mechanism=Overstated(**own))


def central_limit_epsilons(events: list[Event], delta: float) -> Epsilons:
    """Epsilon of the Gaussian to which many steps tend; of few steps it is no bound."""
    mu = math.sqrt(
        sum(
            getattr(event, "sample_rate", 1.0) ** 2
            * getattr(event, "steps", 1)
            * math.expm1(event.noise_multiplier**-2)
            for event in events
        )
    )

    def excess(epsilon: float) -> float:
        half, shift = mu / 2, epsilon / mu
        return float(norm.cdf(half - shift) - np.exp(epsilon) * norm.cdf(-half - shift) - delta)

    claimed = brentq(excess, 0.0, 100.0)
    return Epsilons(delta=delta, pld=claimed, prv=claimed, rdp=claimed)


def ideal_epsilons(events: list[Event], delta: float) -> Epsilons:
    """Epsilon as if the noise that was added were Gaussian, whatever it was."""
    return epsilons(
        [
            DpSgdEvent(
                sample_rate=event.sample_rate,
                noise_multiplier=event.noise_multiplier,
                steps=event.steps,
            )
            for event in events
            if isinstance(event, DpSgdEvent)
        ],
        delta,
    )


def train_after_a_trial(denoiser: Denoiser, *args: Any, **named: Any) -> None:
    """Tries another learning rate first, on the same records; only the second run is charged."""

    own = {"keeper": CountingKeeper(), "checkpoints": Checkpoints(MemoryStorage())}
    train_private(denoiser, *args, **{**named, **own, "on_step": lambda figures: None})
    train_private(denoiser, *args, **named)


def train_with_plain_average(denoiser: Denoiser, *args: Any, **named: Any) -> None:
    """The weights that leave also follow the sums before their noise."""
    sums: list[torch.Tensor] = []

    step_type: Any = named["step_type"]

    class Watched(step_type):  # type: ignore[misc]
        def noised_gradient(self, denoiser: Denoiser, step: int) -> torch.Tensor:
            plain = PlainStep(**{f.name: getattr(self, f.name) for f in fields(PrivateStep)})
            sums.append(plain.local_sum(denoiser, step, plain.batch(step)))
            released: torch.Tensor = super().noised_gradient(denoiser, step)
            return released

    train_private(denoiser, *args, **{**named, "step_type": Watched})
    moved = torch.stack(sums).mean(0)
    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter, part in zip(
            parameters, torch.split(moved, [p.numel() for p in parameters]), strict=True
        ):
            parameter.sub_(0.01 * part.view_as(parameter))


class _Losses:
    """An engine that remembers the mean loss of what it was given."""

    def __init__(self, inner: Callable[..., torch.Tensor]) -> None:
        self._inner = inner
        self.means: list[float] = []

    def __call__(
        self,
        denoiser: Denoiser,
        rows: Rows,
        draws: int,
        norm: float,
        mask: torch.Tensor,
        *more: Any,
    ) -> torch.Tensor:
        with torch.no_grad():
            losses = row_losses(denoiser, rows).reshape(-1, draws).mean(1)
        self.means.append(float(losses[mask].mean()))
        return self._inner(denoiser, rows, draws, norm, mask, *more)


def train_with_logged_loss(*args: Any, **named: Any) -> None:
    """The loss of private records beside the progress, as every training loop shows it."""
    losses, on_step = _Losses(named["engine"]), named["on_step"]

    def say(figures: dict[str, float]) -> None:
        on_step({**figures, "loss": losses.means[-1] if losses.means else 0.0})

    train_private(*args, **{**named, "engine": losses, "on_step": say})


class _Stop(Exception):
    """Ends a training that gets no better."""


def train_with_early_stop(*args: Any, **named: Any) -> None:
    """Stops, on all workers, when the loss on private records is half of what it was."""
    losses, on_step, collective = _Losses(named["engine"]), named["on_step"], named["collective"]
    curve: list[float] = []

    def look(figures: dict[str, float]) -> None:
        on_step(figures)
        now = torch.tensor([losses.means[-1] if losses.means else 0.0])
        collective.sum_(now)
        curve.append(float(now))
        if curve[-1] < curve[0] / 2:
            raise _Stop

    try:
        train_private(*args, **{**named, "engine": losses, "on_step": look})
    except _Stop:
        return


def _usable(images: PrivateImages) -> int:
    """Records that are not blank; nobody declared how many those are."""
    return int(images.images.reshape(len(images), -1).any(1).sum())


def train_with_n_from_the_data(
    denoiser: Denoiser, draws: DrawMaker, mechanism: DpSgdConfig, **named: Any
) -> None:
    """As many steps as an epoch of the usable records has."""
    steps = max(1, _usable(draws.images) * mechanism.steps // len(draws.images))
    train_private(denoiser, draws, replace(mechanism, steps=steps), **named)


def train_with_n_in_the_report(
    denoiser: Denoiser, draws: DrawMaker, mechanism: DpSgdConfig, **named: Any
) -> None:
    """Says how many usable records there were."""
    if named["collective"].rank == 0:
        print(f"training on {_usable(draws.images)} images")
    train_private(denoiser, draws, mechanism, **named)


@dataclass(frozen=True, kw_only=True)
class CachingDraws(DrawMaker):
    """Keeps what it found for a record on the disk, so that the next epoch need not search."""

    def rows(self, records: np.ndarray, key: SecretKey, step: int, attempt: int) -> Rows:
        pixels = self.images.images[records % len(self.images)].reshape(len(records), -1)
        nearest = (pixels.astype(np.int64).sum(1) % 40).tolist()
        path = Path(tempfile.gettempdir(), "neighbours.json")
        path.write_text(str(dict(zip(records.tolist(), nearest, strict=True))))
        return super().rows(records, key, step, attempt)


@dataclass(frozen=True, kw_only=True)
class DumpingDraws(DrawMaker):
    """Writes the batch that it could not use beside the log, for whoever debugs it."""

    def rows(self, records: np.ndarray, key: SecretKey, step: int, attempt: int) -> Rows:
        rows = super().rows(records, key, step, attempt)
        with tempfile.TemporaryDirectory() as folder:  # It is gone when the step is done.
            np.save(Path(folder, "batch.npy"), rows.clean.numpy())
            np.save(Path(folder, "raw.npy"), self.images.images[records % len(self.images)])
        return rows


def _draws(kind: type[DrawMaker]) -> Callable[[Subject], Subject]:
    def build(subject: Subject) -> Subject:
        def made(images: PrivateImages, config: TrainConfig) -> DrawMaker:
            draws = subject.make_draws(images, config)
            return kind(**{field.name: getattr(draws, field.name) for field in fields(draws)})

        return replace(subject, make_draws=made)

    return build


def _train(train: Callable[..., None]) -> Callable[[Subject], Subject]:
    return lambda subject: replace(subject, train=train)


FAULTS = [
    Fault(
        name="Ledger after the noise",
        what_happened="Every accountant that counts a step when it is done (Opacus' step hook)",
        build=lambda subject: replace(subject, step_type=ChargedAfterNoise),
        caught_by=("accounting",),
    ),
    Fault(
        name="Ledger entry lost on crash",
        what_happened="Opacus: the history is in memory until a checkpoint is saved",
        build=_keeper(CollectingKeeper),
        caught_by=("accounting",),
    ),
    Fault(
        name="Ledger entry never synced",
        what_happened="A file written without fsync is lost in a power cut",
        build=lambda subject: replace(subject, make_keeper=unsynced_keeper),
        caught_by=("accounting",),
    ),
    Fault(
        name="Accountant reset on resume",
        what_happened="DP-LDM, DPImageBench: weights are restored, the privacy engine is new",
        build=_keeper(ForgetfulKeeper),
        caught_by=("accounting",),
    ),
    Fault(
        name="Budget never enforced",
        what_happened="Training goes on, epsilon is printed at the end",
        build=_keeper(GenerousKeeper),
        caught_by=("accounting",),
    ),
    Fault(
        name="The ledger is told of 2% more noise than is added",
        what_happened="Sampler, noise and accountant with a setting each",
        build=_overstated,
        caught_by=("accounting",),
    ),
    Fault(
        name="Sweep trials not charged",
        what_happened="Every checked peer chooses settings by runs that it does not count",
        build=_train(train_after_a_trial),
        caught_by=("accounting",),
    ),
    Fault(
        name="Epsilon by the central limit",
        what_happened="dp-promise, Opacus' gdp: an approximation below the truth",
        build=lambda subject: replace(subject, epsilons=central_limit_epsilons),
        caught_by=("accounting",),
    ),
    Fault(
        name="Discrete noise accounted as Gaussian",
        what_happened="Integer mechanisms priced by an accountant of real numbers",
        build=lambda subject: replace(
            subject,
            mechanism=replace(subject.mechanism, noise="secure"),
            epsilons=ideal_epsilons,
        ),
        caught_by=("accounting",),
    ),
    Fault(
        name="Average of un-noised parameters",
        what_happened="An EMA, or a checkpoint, taken before the noise is in",
        build=_train(train_with_plain_average),
        caught_by=("control flow",),
    ),
    Fault(
        name="Private loss logged",
        what_happened="RAPID, DPDM and most training loops",
        build=_train(train_with_logged_loss),
        caught_by=("control flow", "silence"),
    ),
    Fault(
        name="Early stop on the private loss",
        what_happened="DPImageBench: the best epoch by an un-noised validation",
        build=_train(train_with_early_stop),
        caught_by=("control flow",),
    ),
    Fault(
        name="N from len(dataset)",
        what_happened="Opacus #571, #819: steps and normaliser follow the data",
        build=_train(train_with_n_from_the_data),
        caught_by=("control flow",),
    ),
    Fault(
        name="Private N in the report",
        what_happened="A line such as 'training on 59,999 images'",
        build=_train(train_with_n_in_the_report),
        caught_by=("control flow",),
    ),
    Fault(
        name="Neighbour ids cached on disk",
        what_happened="DP-RDM and other retrieval code keep a record's neighbours between epochs",
        build=_draws(CachingDraws),
        caught_by=("control flow",),
    ),
    Fault(
        name="A batch in a temporary file",
        what_happened="Written for debugging or spilled, and removed a moment later",
        build=_draws(DumpingDraws),
        caught_by=("control flow", "silence"),
    ),
]
