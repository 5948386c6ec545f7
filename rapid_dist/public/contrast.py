"""Contrastive training of the feature extractor h (design, section 3, step 2).

Two views of one public image: independent noise at the query step k, then one denoiser evaluation
to the clean estimate. NT-Xent (Chen et al. 2020, Eq. 1) pulls the two together. Public data only;
h is frozen ever after.

Letters: B images, D projection dimensions, tau the temperature.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch.nn import functional

from rapid_dist.collective import Collective
from rapid_dist.data.images import PublicImages, to_unit
from rapid_dist.diffusion.checkpoint import Checkpoints, restore_training_state, training_state
from rapid_dist.diffusion.compute import device_of
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import ConfigError
from rapid_dist.public.embedding import clean_estimate
from rapid_dist.public.fit import OnStep, flat_gradient, step_generator
from rapid_dist.retrieval.features import ContrastExtractor, ExtractorConfig


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """How the extractor is trained."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    steps: int = 200
    batch_size: int = 128
    learning_rate: float = 1e-3
    temperature: float = 0.5
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"contrast.{name} must be at least 1, got {getattr(self, name)}.")
        if self.batch_size < 4:
            raise ConfigError(
                f"contrast.batch_size must be at least 4, got {self.batch_size}: the loss needs "
                "other images to tell apart."
            )
        if self.learning_rate <= 0 or self.temperature <= 0:
            raise ConfigError(
                "contrast.learning_rate and contrast.temperature must be positive, got "
                f"{self.learning_rate} and {self.temperature}."
            )


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """The NT-Xent loss of B pairs; both float32 [B, D] with rows of length 1."""
    both = torch.cat([first, second])
    logits = both @ both.T / temperature
    logits.fill_diagonal_(float("-inf"))
    partner = torch.arange(len(both), device=both.device).roll(len(first))
    return functional.cross_entropy(logits, partner)


def train_extractor(
    extractor: ContrastExtractor,
    denoiser: Denoiser,
    images: PublicImages,
    config: ContrastConfig,
    *,
    query_level: float,
    seed: int,
    collective: Collective,
    checkpoints: Checkpoints | None,
    on_step: OnStep,
) -> None:
    """Trains ``extractor`` in place and freezes it; the denoiser, beside it, is not changed."""
    device = device_of(denoiser)
    parameters = list(extractor.parameters())
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, weight_decay=1e-6)
    first = 0
    found = checkpoints.latest() if checkpoints else None
    if found is not None:
        average = [p.detach().clone() for p in parameters]
        restore_training_state(found.tensors, parameters, average, optimizer)
        first = found.step
    own = max(4, config.batch_size // collective.world_size)
    for step in range(first, config.steps):
        generator = step_generator(seed, step, collective.rank)
        chosen = torch.randint(len(images), (own,), generator=generator)
        clean = denoiser.encode(to_unit(images.images[chosen.numpy()]))
        views = [
            clean_estimate(
                denoiser,
                (clean + query_level * torch.randn(clean.shape, generator=generator)).to(device),
                query_level,
            )
            for _ in range(2)
        ]
        loss = nt_xent(extractor.project(views[0]), extractor.project(views[1]), config.temperature)
        mean_loss = flat_gradient(loss, parameters, collective)
        optimizer.step()
        done = step + 1
        on_step({"step": done, "steps": config.steps, "rows": config.batch_size, "loss": mean_loss})
        due = done % config.checkpoint_every == 0 and done < config.steps
        if checkpoints and due and collective.rank == 0:
            weights = [p.detach() for p in parameters]
            checkpoints.save(done, training_state(parameters, weights, optimizer), {})
    extractor.freeze()
