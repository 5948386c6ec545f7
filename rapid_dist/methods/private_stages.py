"""The stages inside the trust boundary: prior, adapt, train.

What they write, noised histogram, adapted and private denoiser, is the output of charged
mechanisms or post-processing of it. Everything else stays in the processes that computed it.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from rapid_dist.collective import Collective
from rapid_dist.data.images import PrivateImages, to_unit
from rapid_dist.data.sources import load_private
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.compute import device_of, precision_on
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.methods import artifacts
from rapid_dist.methods.checks import shape_of
from rapid_dist.methods.clusters import assign_clusters, open_centroids
from rapid_dist.methods.context import Keeper, Report, RunContext, Searcher
from rapid_dist.methods.public_stages import open_embedder
from rapid_dist.methods.seal import read_sealed
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.mechanism import DpSgdConfig
from rapid_dist.private.draws import DrawMaker, FindReferences
from rapid_dist.private.loop import train_private
from rapid_dist.private.memory import keep_freed_memory, solve_micro_batch
from rapid_dist.private.per_example import clipped_sum
from rapid_dist.private.settings import TrainConfig
from rapid_dist.private.step import ClippedSum
from rapid_dist.private.subset import apply_subset, told
from rapid_dist.private.votes import charged_histogram
from rapid_dist.public.adapt import prior_rows
from rapid_dist.public.fit import fit_denoiser
from rapid_dist.retrieval.arrays import pack_arrays
from rapid_dist.retrieval.jitter import jittered
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.prior import TrajectoryPrior, estimate, told_votes
from rapid_dist.storage import open_storage

PRIOR, ADAPTED, PRIVATE, CHECKPOINTS = "prior", "adapted", "private", "checkpoints"
REFINED = "refined"  # The prior after a second round of votes.


def num_classes(settings: MethodSettings) -> int:
    """Classes that the private denoiser tells apart; data without labels are one class."""
    return max(1, settings.private.num_classes)


def open_knowledge_base(settings: MethodSettings, public_uri: str) -> KnowledgeBase:
    """Returns the recipe's knowledge base; a missing or torn one is a ``ShardError``."""
    storage = open_storage(public_uri).child(artifacts.knowledge_base_name(settings))
    return KnowledgeBase(storage, artifacts.open_manifest(storage))


def run_prior(context: RunContext) -> None:
    """Lets every record vote once; the noised histogram leaves, and is charged before."""
    settings, query = context.settings, context.plan.prior
    storage = context.out.child(PRIOR)
    if query is None or artifacts.is_done(storage):
        return
    images, _ = load_private(settings.private, settings.data_root)
    base = open_knowledge_base(settings, context.public.uri)
    say = partial(context.report, "clusters")
    centroids = open_centroids(settings, context.public.uri, base, say)
    clusters, entries = assign_clusters(
        settings, context.public.uri, images, base, partial(context.report, "prior")
    )
    histogram, attempt = charged_histogram(
        images,
        clusters,
        query,
        num_classes=num_classes(settings),
        num_clusters=len(centroids),
        keeper=context.backend.keeper(),
        note="prior histogram",
        noise=settings.privacy.noise,
    )
    context.note(f"prior {told_votes(histogram, query.noise_multiplier, settings.prior)}")
    probabilities = estimate(histogram, query.noise_multiplier, settings.prior)
    if settings.prior.nearest is not None:  # Nobody's cluster, of entries that are left out.
        probabilities = np.pad(probabilities, ((0, 0), (0, 1)))
    storage.write("histogram.npz", pack_arrays({"noised": histogram}))
    storage.write("prior.npz", TrajectoryPrior(entries, probabilities).to_bytes())
    artifacts.mark_done(
        storage, {"attempt": attempt}, of=context.run, names=("histogram.npz", "prior.npz")
    )


def open_prior(out_uri: str) -> TrajectoryPrior:
    """Returns the prior that samples are drawn from: refined, where there was a second round."""
    out = open_storage(out_uri)
    if artifacts.is_done(out.child(REFINED)):
        return TrajectoryPrior.from_bytes(read_sealed(out.child(REFINED), "prior.npz"))
    return first_prior(out_uri)


def first_prior(out_uri: str) -> TrajectoryPrior:
    """Returns what the first round of votes says."""
    return TrajectoryPrior.from_bytes(read_sealed(open_storage(out_uri).child(PRIOR), "prior.npz"))


def uniform_prior(settings: MethodSettings, base: KnowledgeBase) -> TrajectoryPrior:
    """Every entry alike, for every class: what is known without the private data."""
    return TrajectoryPrior(
        np.zeros(len(base), np.int64), np.ones((num_classes(settings), 1), np.float64)
    )


def start_denoiser(settings: MethodSettings, public_uri: str) -> Denoiser:
    """Returns D_pub with a table for the private classes, before any adaptation."""
    place = open_storage(public_uri).child(artifacts.pretrain_name(settings))
    return artifacts.get_denoiser(place.uri).with_classes(num_classes(settings), seed=settings.seed)


@dataclass(frozen=True, kw_only=True)
class AdaptTask:
    """Teaches D_pub the private classes from references that the prior draws."""

    settings: MethodSettings
    public_uri: str
    out_uri: str
    device: str = "cpu"
    run: str = ""  # Whose results these are.

    def __call__(self, collective: Collective, report: Report) -> None:
        settings = self.settings
        denoiser = start_denoiser(settings, self.public_uri).to(self.device)
        base = open_knowledge_base(settings, self.public_uri)
        fit_denoiser(
            denoiser,
            prior_rows(
                first_prior(self.out_uri),
                base.images(np.arange(len(base))),
                settings.schedule,
                denoiser,
                split_step=settings.split.split_step,
                whole_share=settings.adapt.whole_schedule_share,
                jitter=settings.prior.jitter,
            ),
            settings.adapt,
            seed=settings.seed,
            collective=collective,
            checkpoints=Checkpoints(
                open_storage(self.out_uri).child(f"{CHECKPOINTS}/adapt"), of=self.run
            ),
            on_step=report,
        )
        if collective.rank == 0:
            place = open_storage(self.out_uri).child(ADAPTED)
            artifacts.put_denoiser(place, denoiser, of=self.run)


def run_adapt(context: RunContext) -> None:
    """Adapts where there is a prior; without one D_pub only gets its new classes."""
    storage = context.out.child(ADAPTED)
    if artifacts.is_done(storage):
        return
    if context.plan.prior is None or context.settings.adapt.steps == 0:
        start = start_denoiser(context.settings, context.public.uri)
        artifacts.put_denoiser(storage, start, of=context.run)
        return
    task = AdaptTask(
        settings=context.settings,
        public_uri=context.public.uri,
        out_uri=context.out.uri,
        device=context.device,
        run=context.run,
    )
    workers, count = context.backend.workers, context.backend.num_workers
    workers.run(task, name="adapt", num_workers=count, private=False)


def with_micro_batch(
    config: TrainConfig,
    denoiser: Denoiser,
    images: PrivateImages,
    *,
    memory_gb: float,
    share: float,
) -> TrainConfig:
    """Returns the settings with a micro-batch: the one given, or what the memory allows.

    Args:
      memory_gb: what one worker may take of the host's memory.
      share: records that a worker has to expect in a step.
    """
    if config.micro_batch is not None:
        return config
    denoiser.precision = precision_on(device_of(denoiser), config.precision)
    apply_subset(denoiser, config)
    space = denoiser.autoencoder
    micro_batch = solve_micro_batch(
        denoiser,
        config.rows_per_record,
        memory_gb=memory_gb,
        held_bytes=images.images.nbytes  # By the declared number and shape.
        + (0 if space is None else sum(p.nbytes for p in space.parameters())),
        share=share,
    )
    return replace(config, micro_batch=micro_batch)


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """Trains the private denoiser by DP-SGD on one worker of a group."""

    settings: MethodSettings
    mechanism: DpSgdConfig
    public_uri: str
    out_uri: str
    keeper: Keeper
    searcher: Searcher | None = None  # Of a knowledge base that is too large for this process.
    device: str = "cpu"
    memory_gb: float = 1.0
    engine: ClippedSum = clipped_sum
    run: str = ""  # Whose checkpoints and weights these are.

    def __call__(self, collective: Collective, report: Report) -> None:
        settings = self.settings
        images, _ = load_private(settings.private, settings.data_root)
        out = open_storage(self.out_uri)
        denoiser = artifacts.get_denoiser(out.child(ADAPTED).uri).to(self.device)
        keep_freed_memory()
        config = with_micro_batch(
            settings.train,
            denoiser,
            images,
            memory_gb=self.memory_gb,
            share=self.mechanism.expected_batch / collective.world_size,
        )
        train_private(
            denoiser,
            DrawMaker(
                images=images,
                config=config,
                schedule=settings.schedule,
                split_step=settings.split.split_step,
                no_label=denoiser.no_label,
                label_drop=settings.network.label_drop,
                find_references=self.find_references(images, report),
                autoencoder=denoiser.autoencoder,
            ),
            self.mechanism,
            collective=collective,
            keeper=self.keeper,
            checkpoints=Checkpoints(out.child(f"{CHECKPOINTS}/train"), of=self.run),
            on_step=report,
            on_begin=lambda: report({}),
            engine=self.engine,
        )
        if collective.rank == 0:
            artifacts.put_denoiser(out.child(PRIVATE), denoiser, of=self.run)

    def find_references(
        self, images: PrivateImages, report: Report = lambda figures, part="": None
    ) -> FindReferences | None:
        """Returns what finds the surrogates of these images, if the mode wants any.

        Args:
          report: is told how far the search for the images' clusters is.
        """
        if self.settings.train.mode != "surrogate":
            return None
        if self.settings.train.surrogate == "query" and self.searcher is not None:
            return self._by_query(self.searcher)
        base = open_knowledge_base(self.settings, self.public_uri)
        if self.settings.train.surrogate == "query":
            return self._by_query(base)
        return self._by_cluster(base, images, report)

    def _by_query(self, base: Searcher) -> FindReferences:
        """The paper's way: the record's noised state at k asks for its nearest trajectory."""
        embed = open_embedder(self.settings, self.public_uri)
        level = self.settings.schedule.level(self.settings.split.query_step)

        def find(
            records: np.ndarray, clean: torch.Tensor, streams: list[np.random.Generator]
        ) -> torch.Tensor:
            noise = np.stack(
                [s.standard_normal(clean.shape[1:], dtype=np.float32) for s in streams]
            )
            _, ids = base.search(embed(clean + level * torch.from_numpy(noise)), 1)
            # A query that is not finite has no neighbour; one record may not end the run (P3).
            return to_unit(base.images(np.maximum(ids[:, 0], 0)))

        return find

    def _by_cluster(
        self, base: KnowledgeBase, images: PrivateImages, report: Report
    ) -> FindReferences:
        """The prior's way: any entry of the record's own cluster, as sampling will draw it."""
        say = partial(report, part="clusters")
        cluster_of_record, cluster_of_entry = assign_clusters(
            self.settings, self.public_uri, images, base, say
        )
        order = np.argsort(cluster_of_entry, kind="stable")
        sizes = np.bincount(cluster_of_entry, minlength=self.settings.knowledge_base.clusters)
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])

        def find(
            records: np.ndarray, clean: torch.Tensor, streams: list[np.random.Generator]
        ) -> torch.Tensor:
            own = cluster_of_record[records]
            places = [int(s.integers(max(1, sizes[c]))) for s, c in zip(streams, own, strict=True)]
            # A cluster can be empty of entries; its records then meet the next entry in order.
            entries = order[np.minimum(first[own] + places, len(order) - 1)]
            return jittered(to_unit(base.images(entries)), streams, self.settings.prior.jitter)

        return find


def asks_in_training(settings: MethodSettings) -> bool:
    """Whether private records are looked up in the knowledge base while DP-SGD runs."""
    return settings.train.mode == "surrogate" and settings.train.surrogate == "query"


def _private_searcher(context: RunContext) -> Searcher | None:
    if not asks_in_training(context.settings):
        return None
    name = artifacts.knowledge_base_name(context.settings)
    return context.backend.private_searcher(context.public.child(name))


def run_train(context: RunContext) -> None:
    """Trains by DP-SGD; a plan without a step of it makes the adapted denoiser the private one."""
    storage = context.out.child(PRIVATE)
    if artifacts.is_done(storage):
        return
    if context.plan.dp_sgd is None:
        adapted = artifacts.get_denoiser(context.out.child(ADAPTED).uri)
        artifacts.put_denoiser(storage, adapted, of=context.run)
        return
    whole, subset = shape_of(context.settings), context.settings.train
    if subset.trainable != "all" or subset.blocks is not None:
        context.note(told(apply_subset(whole, subset), whole))
    keeper = context.backend.keeper()
    task = TrainTask(
        settings=context.settings,
        mechanism=context.plan.dp_sgd,
        public_uri=context.public.uri,
        out_uri=context.out.uri,
        keeper=keeper,
        searcher=_private_searcher(context),
        device=context.device,
        memory_gb=context.memory_gb,
        engine=context.engine,
        run=context.run,
    )
    context.backend.workers.run(task, name="train", num_workers=context.backend.num_workers)
    if stopped := keeper.stopped():
        context.note(f"train {stopped}")
