"""What is audited: the product's own parts, each of them a field that a test may replace.

A check builds nothing of its own that the product has: it takes the part from here, so what it
measures is what runs. ``dataclasses.replace(subject, engine=...)`` plants a fault.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from rapid_dist.audit.accountants import steps_of
from rapid_dist.collective import Collective
from rapid_dist.data.images import PrivateImages
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.compute import device_of, precision_on
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.privacy.accounting import Epsilons, epsilons
from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdConfig, Event, GaussianEvent, RetrievalConfig
from rapid_dist.privacy.poisson import PoissonSampler, sampler_for
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.loop import Keeper, OnStep, train_private
from rapid_dist.private.per_example import clipped_sum
from rapid_dist.private.settings import TrainConfig
from rapid_dist.private.step import Charge, ClippedSum, PrivateStep
from rapid_dist.private.subset import apply_subset
from rapid_dist.private.votes import charged_histogram, noised_histogram
from rapid_dist.storage import Storage

RUN = "audit"  # Its name in a ledger; the ledger is a folder of the audit's own.


def not_charged(step: int) -> None:
    """For a step that no ledger needs to know: its data are public stand-ins."""


def say_nothing(figures: dict[str, float]) -> None:
    """For a loop whose progress nobody follows."""


def open_keeper(
    storage: Storage, dataset: str, mechanism: DpSgdConfig | RetrievalConfig, budget: Budget
) -> LedgerKeeper:
    """Returns the product's keeper on a ledger in ``storage``."""
    return LedgerKeeper(
        Ledger.open(storage, dataset), RUN, budget, mechanism.event(), mechanism.steps
    )


@dataclass(frozen=True, kw_only=True)
class VoteRound:
    """One round of votes of a plan."""

    what: str  # What is asked, in a question of the audit.
    purpose: str  # Names the stream of its noise.
    query: GaussianEvent


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The parts under test, and what they are tried on.

    The images stand in for the private ones: of the recipe's declared shape, made from *public*
    images. Nothing private is read, so whatever an audit says may be published.
    """

    make_denoiser: Callable[[], Denoiser]  # A new one, with the same weights at every call.
    make_draws: Callable[[PrivateImages, TrainConfig], DrawMaker]
    images: PrivateImages
    config: TrainConfig
    mechanism: DpSgdConfig  # Of the recipe, planned for as many units as ``images`` holds.
    budget: Budget
    queries: tuple[GaussianEvent, ...] = ()  # All that the recipe's plan asks.
    prior: GaussianEvent | None = None  # The one among them that is the private prior's.
    candidates: GaussianEvent | None = None  # And that of a second round, among candidates.
    reserve_steps: int = 0

    # The product's own, all of them.
    engine: ClippedSum = clipped_sum
    step_type: type[PrivateStep] = PrivateStep
    sampler_type: type[PoissonSampler] | None = None  # None: the one of the mechanism's noise.
    new_key: Callable[[], SecretKey] = SecretKey.generate
    train: Callable[..., None] = train_private
    noised_histogram: Callable[..., np.ndarray] = noised_histogram
    charged_histogram: Callable[..., tuple[np.ndarray, int]] = charged_histogram
    make_keeper: Callable[[Storage, str, DpSgdConfig, Budget], LedgerKeeper] = open_keeper
    make_checkpoints: Callable[[Storage], Checkpoints] = Checkpoints
    epsilons: Callable[..., Epsilons] = epsilons

    @property
    def planned(self) -> tuple[Event, ...]:
        """All that the recipe's plan releases: queries, steps, and the reserve."""
        steps = steps_of(self.mechanism, self.mechanism.steps + self.reserve_steps)
        return (*self.queries, steps)

    @property
    def votes(self) -> tuple[VoteRound, ...]:
        """The rounds of votes that the plan has, in order."""
        rounds = (
            ("the prior's histogram", "prior", self.prior),
            ("the histogram of votes among candidates", "candidates", self.candidates),
        )
        return tuple(
            VoteRound(what=what, purpose=purpose, query=query)
            for what, purpose, query in rounds
            if query is not None
        )

    def denoiser(self) -> Denoiser:
        """A new denoiser as the loop has it: its precision, and the recipe's subset trainable."""
        denoiser = self.make_denoiser()
        denoiser.precision = precision_on(device_of(denoiser), self.config.precision)
        apply_subset(denoiser, self.config)
        return denoiser

    def on(self, images: PrivateImages) -> "Subject":
        """The same parts on other stand-ins; the expected batch keeps its share of them."""
        units = images.spec.num_units
        mechanism = replace(
            self.mechanism,
            num_records=units,
            expected_batch=self.mechanism.sample_rate * units,
        )
        return replace(self, images=images, mechanism=mechanism)

    def sampler(
        self, key: SecretKey, attempt: int = 1, *, rate: float | None = None
    ) -> PoissonSampler:
        """The sampler of one attempt, as the loop makes it; at another ``rate`` if one is given."""
        mechanism = self.mechanism
        sampler_type = self.sampler_type or sampler_for(mechanism.noise)
        rate = mechanism.sample_rate if rate is None else rate
        return sampler_type(key, mechanism.num_records, rate, attempt)

    def step(
        self,
        collective: Collective,
        key: SecretKey,
        *,
        attempt: int = 1,
        charge: Charge = not_charged,
        sampler: PoissonSampler | None = None,
        draws: DrawMaker | None = None,
    ) -> PrivateStep:
        """The step of one worker, put together as the loop does it."""
        return self.step_type(
            mechanism=self.mechanism,
            draws=draws or self.make_draws(self.images, self.config),
            sampler=sampler or self.sampler(key, attempt),
            key=key,
            attempt=attempt,
            collective=collective,
            charge=charge,
            engine=self.engine,
        )

    def run(
        self,
        collective: Collective,
        keeper: Keeper,
        storage: Storage,
        *,
        denoiser: nn.Module | None = None,
        on_step: OnStep = say_nothing,
    ) -> nn.Module:
        """Trains with the product's loop on these parts; returns the trained denoiser."""
        trained = denoiser or self.make_denoiser()
        self.train(
            trained,
            self.make_draws(self.images, self.config),
            self.mechanism,
            collective=collective,
            keeper=keeper,
            checkpoints=self.make_checkpoints(storage),
            on_step=on_step,
            engine=self.engine,
            step_type=self.step_type,
            sampler_type=self.sampler_type,
            new_key=self.new_key,
        )
        return trained
