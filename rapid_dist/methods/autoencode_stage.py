"""The stage before all others where diffusion is in latents: a public autoencoder.

Ours is trained on the pretrain split on all workers; anybody's is fetched, measured on that split
and stored like ours. Nothing private is near: what it is, and the statistics by which it scales,
are functions of public images and settings (P10).
"""

from dataclasses import dataclass

import torch

from rapid_dist.collective import Collective
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.methods import artifacts
from rapid_dist.methods.context import Report, RunContext
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.public.autoencode import make_autoencoder, measure_latents, train_autoencoder
from rapid_dist.storage import open_storage


@dataclass(frozen=True, kw_only=True)
class AutoencodeTask:
    """Trains the autoencoder, or takes the one that is named; rank 0 writes the result."""

    settings: MethodSettings
    public_uri: str
    device: str = "cpu"

    def __call__(self, collective: Collective, report: Report) -> None:
        settings, config = self.settings, self.settings.autoencoder
        assert config is not None, "The stage is there where it is wanted."
        images, _ = artifacts.load_plain_split(settings)
        public, name = open_storage(self.public_uri), artifacts.autoencoder_name(settings)
        torch.manual_seed(settings.seed + 2)
        autoencoder = make_autoencoder(
            config, channels=images.spec.channels, size=images.spec.size
        ).to(self.device)
        if config.source is None:
            train_autoencoder(
                autoencoder,
                images,
                config,
                seed=settings.seed,
                collective=collective,
                checkpoints=Checkpoints(public.child(f"checkpoints/{name}"), of=name),
                on_step=report,
            )
        if collective.rank == 0:
            measure_latents(
                autoencoder,
                images,
                config.statistics_images,
                seed=settings.seed,
                data_std=settings.schedule.data_std,
            )
            artifacts.put_autoencoder(public.child(name), autoencoder)


def run_autoencode(context: RunContext) -> None:
    """Makes the recipe's autoencoder, if it has one and it is not there."""
    if context.settings.autoencoder is None:
        return
    name = artifacts.autoencoder_name(context.settings)
    if not artifacts.is_done(context.public.child(name)):
        task = AutoencodeTask(
            settings=context.settings, public_uri=context.public.uri, device=context.device
        )
        workers, count = context.backend.workers, context.backend.num_workers
        workers.run(task, name="autoencode", num_workers=count, private=False)
