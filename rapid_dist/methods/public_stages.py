"""The stages that see public data only: pretrain, contrast, index.

The loops are frozen dataclasses: they can be sent to a worker as they are, and each opens its own
data there. Rank 0 writes the result.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from rapid_dist.collective import Collective
from rapid_dist.data.images import PublicImages, content_hashes, to_unit
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import ConfigError
from rapid_dist.methods import artifacts
from rapid_dist.methods.autoencode_stage import run_autoencode
from rapid_dist.methods.context import Report, RunContext, Stage
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.public.build import (
    PIXEL_FEATURES,
    ShardTask,
    knowledge_base_spec,
    plan_shards,
    write_manifest,
)
from rapid_dist.public.contrast import train_extractor
from rapid_dist.public.embedding import embedder
from rapid_dist.public.fit import fit_denoiser
from rapid_dist.public.index import write_index
from rapid_dist.public.pretrain import public_rows
from rapid_dist.retrieval.features import ContrastExtractor, pixel_features
from rapid_dist.retrieval.manifest import Manifest
from rapid_dist.retrieval.shard_maker import Embed, Encode, FeaturesOf, as_they_are
from rapid_dist.retrieval.stats import index_line
from rapid_dist.storage import Storage, open_storage


@dataclass(frozen=True, kw_only=True)
class PretrainTask:
    """Trains the public denoiser; conditioned on the public classes."""

    settings: MethodSettings
    public_uri: str
    device: str = "cpu"

    def __call__(self, collective: Collective, report: Report) -> None:
        settings = self.settings
        images, _ = artifacts.load_plain_split(settings)
        autoencoder = artifacts.open_autoencoder(settings, self.public_uri)
        torch.manual_seed(settings.seed)
        denoiser = Denoiser(
            settings.network,
            channels=images.spec.channels,
            size=images.spec.size,
            num_classes=images.spec.num_classes,
            data_std=settings.schedule.data_std,
            autoencoder=autoencoder,
        ).to(self.device)
        place = open_storage(self.public_uri).child(artifacts.pretrain_name(settings))
        fit_denoiser(
            denoiser,
            public_rows(images, settings.schedule, denoiser, settings.schedule.num_steps),
            settings.pretrain,
            seed=settings.seed,
            collective=collective,
            checkpoints=Checkpoints(
                open_storage(self.public_uri).child(
                    f"checkpoints/{artifacts.pretrain_name(settings)}"
                ),
                of=artifacts.pretrain_name(settings),
            ),
            on_step=report,
        )
        if collective.rank == 0:
            artifacts.put_denoiser(place, denoiser)


@dataclass(frozen=True, kw_only=True)
class ContrastTask:
    """Trains the extractor h."""

    settings: MethodSettings
    public_uri: str
    device: str = "cpu"

    def __call__(self, collective: Collective, report: Report) -> None:
        settings = self.settings
        public = open_storage(self.public_uri)
        images, _ = artifacts.load_plain_split(settings)
        torch.manual_seed(settings.seed + 1)
        extractor = ContrastExtractor(
            settings.contrast.extractor, images.spec.channels, images.spec.size
        ).to(self.device)
        denoiser = artifacts.get_denoiser(public.child(artifacts.pretrain_name(settings)).uri)
        name = artifacts.extractor_name(settings)
        train_extractor(
            extractor,
            denoiser.to(self.device).eval(),
            images,
            settings.contrast,
            query_level=settings.schedule.level(settings.split.query_step),
            seed=settings.seed,
            collective=collective,
            checkpoints=Checkpoints(public.child(f"checkpoints/{name}"), of=name),
            on_step=report,
        )
        if collective.rank == 0:
            artifacts.put_extractor(public.child(name), extractor)


def open_embedder(settings: MethodSettings, public_uri: str) -> Embed:
    """Returns the function from states at the query step, float32 [n, c, h, w], to keys [n, D].

    A key is h of the one-evaluation clean estimate, or that estimate's pooled pixels.
    """
    public = open_storage(public_uri)
    denoiser = artifacts.get_denoiser(public.child(artifacts.pretrain_name(settings)).uri).eval()
    extractor = open_key_extractor(settings, public_uri)
    return embedder(denoiser, extractor, settings.schedule.level(settings.split.query_step))


def open_key_extractor(settings: MethodSettings, public_uri: str) -> ContrastExtractor | None:
    """Returns h where keys are made by it; None where they are pixels."""
    if settings.knowledge_base.keys == "pixels":
        return None
    place = open_storage(public_uri).child(artifacts.extractor_name(settings))
    return artifacts.get_extractor(place.uri)


def open_features(settings: MethodSettings, public_uri: str) -> FeaturesOf:
    """Returns the function from clean images, uint8 [n, C, H, W], to features [n, F]."""
    if settings.knowledge_base.features == "pixels":
        return pixel_features
    return open_extractor(settings, public_uri)


def open_extractor(settings: MethodSettings, public_uri: str) -> FeaturesOf:
    """Returns h on clean images: uint8 [n, C, H, W] to unit vectors float32 [n, F]."""
    public = open_storage(public_uri)
    extractor = artifacts.get_extractor(public.child(artifacts.extractor_name(settings)).uri)

    @torch.no_grad()
    def features_of(images: np.ndarray) -> np.ndarray:
        parts = [extractor(part).numpy() for part in torch.split(to_unit(images), 256)]
        return np.concatenate(parts)

    return features_of


@dataclass(frozen=True, kw_only=True)
class _Embedders:
    """Opens the functions that a shard is made by, where it is made."""

    settings: MethodSettings
    public_uri: str

    def __call__(self) -> tuple[Embed, FeaturesOf, Encode]:
        autoencoder = artifacts.open_autoencoder(self.settings, self.public_uri)
        return (
            open_embedder(self.settings, self.public_uri),
            open_features(self.settings, self.public_uri),
            as_they_are if autoencoder is None else autoencoder.encode,
        )


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """Loads the images that one generation of the knowledge base is made from."""

    settings: MethodSettings
    generation: int = 0

    def __call__(self) -> PublicImages:
        return artifacts.load_references(self.settings, self.generation)


def autoencode_stage() -> Stage:
    """Of every method with public networks, in a recipe that diffuses latents (``catalog.py``)."""
    return Stage(name="autoencode", run=_run_first, artifact=artifacts.autoencoder_name)


def _run_first(context: RunContext) -> None:
    if not artifacts.is_done(context.public.child(artifacts.pretrain_name(context.settings))):
        _refuse_few_references(context.settings)  # Before anything is trained.
    run_autoencode(context)


def run_pretrain(context: RunContext) -> None:
    name = artifacts.pretrain_name(context.settings)
    if not artifacts.is_done(context.public.child(name)):
        _refuse_few_references(context.settings)
        run_autoencode(context)  # Again, where a source was dropped.
    _run_once(context, name, "pretrain", PretrainTask)


def run_contrast(context: RunContext) -> None:
    name = artifacts.extractor_name(context.settings)
    _run_once(context, name, "contrast", ContrastTask)


def _refuse_few_references(settings: MethodSettings) -> None:
    """Clusters are made when all public stages are done; too many of them are refused before."""
    privacy, train, base = settings.privacy, settings.train, settings.knowledge_base
    by_cluster = train.mode == "surrogate" and train.surrogate == "cluster"
    if settings.more_references or not (privacy.prior_share or privacy.prior_noise or by_cluster):
        return  # What is added is counted when it is there; and nobody may want clusters.
    _, reference = artifacts.load_plain_split(settings)
    most = len(reference) * base.variants
    if base.clusters > most:
        raise ConfigError(
            f"knowledge_base.clusters is {base.clusters}, but the public data give {most} "
            "references. Lower it, or raise data.reference_share."
        )


def _run_once(
    context: RunContext,
    artifact: str,
    stage: str,
    make_task: Callable[..., PretrainTask | ContrastTask],
) -> None:
    if not artifacts.is_done(context.public.child(artifact)):
        task = make_task(
            settings=context.settings, public_uri=context.public.uri, device=context.device
        )
        workers, count = context.backend.workers, context.backend.num_workers
        workers.run(task, name=stage, num_workers=count, private=False)


def run_index(context: RunContext) -> None:
    """Builds the shards that are missing and writes the manifest.

    A knowledge base to which sources were added, or that has an approximate index, extends the one
    without them: that is made first, if it is not there, and none of its shards is made again.
    """
    names = artifacts.knowledge_base_names(context.settings)
    for generation, name in enumerate(names):
        storage = context.public.child(name)
        if not artifacts.is_done(storage):
            home = names[generation - 1] if generation else ""
            manifest = _build_generation(context, storage, generation, home)
            artifacts.mark_done(storage, {"manifest": manifest.fingerprint})
            shards = len(manifest.shards)
            context.note(f"knowledge base {shards} shards, {index_line(manifest.index)}")


def _build_generation(
    context: RunContext, storage: Storage, generation: int, home: str
) -> Manifest:
    settings = context.settings
    extends = Manifest.read(context.public.child(home)) if home else None
    if extends is not None and generation > len(settings.more_references):
        return write_index(storage, extends, home, settings.knowledge_base, settings.seed)
    reference = _Reference(settings=settings, generation=generation)()
    base = settings.knowledge_base
    spec = knowledge_base_spec(
        base,
        reference,
        query_level=settings.schedule.level(settings.split.query_step),
        embedder=f"{base.keys}:{artifacts.extractor_name(settings)}",
        features=PIXEL_FEATURES
        if base.features == "pixels"
        else f"contrast:{artifacts.extractor_name(settings)}",
    )
    held = [
        digest
        for earlier in range(generation)
        for digest in content_hashes(artifacts.load_references(settings, earlier).images)
    ]
    plans = plan_shards(reference, spec, without=held)
    task = ShardTask(
        storage.uri,
        _Reference(settings=settings, generation=generation),
        _Embedders(settings=settings, public_uri=context.public.uri),
    )
    records = context.backend.build_shards(plans, task)
    return write_manifest(storage, plans, records, reference, extends=extends, home=home)
