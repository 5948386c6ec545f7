"""The stage after training: the bundle, and samples drawn from it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from rapid_dist.collective import Collective
from rapid_dist.data.images import from_unit, to_unit
from rapid_dist.diffusion.compute import Precision
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.sampler import sample
from rapid_dist.diffusion.seeds import generator_for, normal_for
from rapid_dist.methods import artifacts
from rapid_dist.methods.context import Report, RunContext, Searcher
from rapid_dist.methods.private_stages import (
    PRIVATE,
    num_classes,
    open_knowledge_base,
    open_prior,
    uniform_prior,
)
from rapid_dist.methods.public_stages import open_embedder
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.release.bundle import Bundle, BundleFacts, References, open_bundle, write_bundle
from rapid_dist.release.generator import BLOCK_ROWS, Generator
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.merge import NO_NEIGHBOR
from rapid_dist.retrieval.prior import TrajectoryPrior
from rapid_dist.retrieval.stats import diversity
from rapid_dist.storage import Storage, open_storage

BUNDLE, SAMPLES = "bundle", "samples"


def class_names(settings: MethodSettings) -> tuple[str, ...]:
    """Returns the declared names, else numbers; none for data without labels (P1)."""
    declared = settings.private.class_names
    return declared or tuple(str(label) for label in range(settings.private.num_classes))


def bundle_facts(
    settings: MethodSettings, source: str, privacy: dict[str, object], versions: dict[str, str]
) -> BundleFacts:
    """Returns how samples are drawn: from references at v, or from pure noise at the top."""
    sampling, top = settings.sampling, settings.schedule.num_steps
    late = source != "noise"
    return BundleFacts(
        name=settings.name,
        method=settings.method,
        class_names=class_names(settings),
        schedule=settings.schedule,
        source="prior" if late else "noise",
        from_step=settings.split.split_step if late else top,
        intervals=sampling.late_intervals
        if late
        else sampling.late_intervals + sampling.early_intervals,
        solver=sampling.solver,
        guidance=sampling.guidance,
        jitter=settings.prior.jitter,
        privacy=privacy,
        versions=versions,
    )


def references_of(base: KnowledgeBase) -> References:
    """Returns all entries of a knowledge base in the form that a bundle carries."""
    return References(
        images=base.reference_images,
        hashes=base.reference_hashes,
        image_of_entry=base.image_of(np.arange(len(base))),
        seed_of_entry=np.tile(np.array(base.manifest.spec.seeds, np.int64), len(base.features)),
    )


def make_bundle(
    settings: MethodSettings,
    denoiser: Denoiser,
    facts: BundleFacts,
    prior: TrajectoryPrior | None,
    base: KnowledgeBase | None,
) -> Bundle:
    """Returns what ``facts`` says a sample needs, and no reference that no class can draw."""
    if facts.source == "noise" or prior is None or base is None:
        return Bundle(facts=facts, denoiser=denoiser)
    whole = Bundle(facts=facts, denoiser=denoiser, prior=prior, references=references_of(base))
    return whole.pruned()


@dataclass(frozen=True, kw_only=True)
class GenerateTask:
    """Draws one rank's part of the samples; every sample has its own seed."""

    bundle_uri: str
    samples_uri: str
    count: int
    num_labels: int
    seed: int
    batch_size: int
    device: str = "cpu"
    precision: Precision = "fp32"

    def __call__(self, collective: Collective, report: Report) -> None:
        bundle = artifacts.with_folder(open_storage(self.bundle_uri), open_bundle)
        generator = Generator(bundle, self.device, self.precision)
        blocks = -(-self.count // BLOCK_ROWS)
        mine = np.array_split(np.arange(blocks), collective.world_size)[collective.rank]
        first = int(mine[0]) * BLOCK_ROWS if len(mine) else 0
        last = min(self.count, (int(mine[-1]) + 1) * BLOCK_ROWS) if len(mine) else 0
        labels = np.arange(first, last) % self.num_labels
        drawn = 0

        def progress(batch: int) -> None:
            nonlocal drawn
            drawn += batch
            report({"step": drawn, "steps": last - first, "rows": 1})

        images = generator.generate(
            labels, seed=self.seed, first_id=first, batch_size=self.batch_size, on_batch=progress
        )
        artifacts.put_images(
            open_storage(self.samples_uri), f"part-{collective.rank:04d}.npz", images, labels
        )
        if collective.rank == 0:
            # Asserted by nobody, counted by the network itself.
            per_image = generator.evaluations_per_image
            artifacts.mark_done(
                open_storage(self.samples_uri).child("evaluations"), {"nfe": per_image}
            )


def run_generate(context: RunContext) -> None:
    """Writes the bundle, then draws ``sampling.count`` images from it on all workers."""
    settings = context.settings
    storage = context.out.child(SAMPLES)
    if artifacts.is_done(storage):
        return
    if settings.sampling.source == "query":
        _generate_by_query(context, storage)
        return
    denoiser = artifacts.get_denoiser(context.out.child(PRIVATE).uri)
    base = prior = None
    if settings.sampling.source != "noise":
        base = open_knowledge_base(settings, context.public.uri)
        prior = (
            open_prior(context.out.uri)
            if settings.sampling.source == "prior"
            else uniform_prior(settings, base)
        )
    facts = bundle_facts(settings, settings.sampling.source, context.privacy(), context.versions)
    bundle = make_bundle(settings, denoiser, facts, prior, base)
    artifacts.put_folder(
        context.out.child(BUNDLE), lambda folder: write_bundle(bundle, folder), mark=False
    )
    for part in storage.list("part-"):  # Of an attempt with other workers.
        storage.delete(part)
    task = GenerateTask(
        bundle_uri=context.out.child(BUNDLE).uri,
        samples_uri=storage.uri,
        count=settings.sampling.count,
        num_labels=num_classes(settings),
        seed=settings.sampling.seed,
        batch_size=settings.sampling.batch_size,
        device=context.device,
        precision=settings.sampling.precision,
    )
    context.backend.workers.run(task, name="generate", num_workers=context.backend.num_workers)
    parts = [artifacts.get_images(storage, name) for name in storage.list("part-")]
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert len(images) == settings.sampling.count, "Every sample is in exactly one part."
    artifacts.put_images(storage, "samples.npz", images, labels)
    artifacts.mark_done(storage, artifacts.read_done(storage.child("evaluations")))


@dataclass(frozen=True, kw_only=True)
class QueryPath:
    """How samples came about when they were drawn by query; each [n, C, H, W]."""

    query: np.ndarray  # uint8, the public model's clean estimate at k.
    reference: np.ndarray  # uint8, the public image that was retrieved.
    surrogate: np.ndarray  # uint8, its state at v, for looking at.
    sample: np.ndarray  # uint8
    neighbours: np.ndarray  # int64 [n], the entries that were entered.
    nfe: float


def sample_by_query(
    settings: MethodSettings,
    public_uri: str,
    searcher: Searcher,
    denoiser: Denoiser,
    labels: np.ndarray,
    *,
    seed: int,
    on_batch: Callable[[int], None] | None = None,
) -> QueryPath:
    """The paper's sampling: public model from the top to k, query, jump to v, private model to 0.

    No step is computed and thrown away. Sample i depends on (seed, i, label i) alone.
    """
    schedule, split, sampling = settings.schedule, settings.split, settings.sampling
    base = open_knowledge_base(settings, public_uri)
    place = open_storage(public_uri).child(artifacts.pretrain_name(settings))
    public = artifacts.get_denoiser(place.uri).eval()
    embed = open_embedder(settings, public_uri)
    early = schedule.path(schedule.num_steps, split.query_step, sampling.early_intervals)
    late = schedule.path(split.split_step, 0, sampling.late_intervals)
    shape = (denoiser.channels, denoiser.size, denoiser.size)
    denoiser.eval().evaluations = 0
    parts: list[tuple[np.ndarray, ...]] = []
    embedded = 0
    for start in range(0, len(labels), BLOCK_ROWS):
        ids = np.arange(start, start + BLOCK_ROWS)  # Whole blocks: arithmetic of one shape.
        state = early[0] * normal_for(seed, ids, shape, purpose="start")
        none = torch.full((BLOCK_ROWS,), public.no_label)
        at_query = sample(public, state, none, early, solver=sampling.solver)
        _, found = searcher.search(embed(at_query), sampling.top_m)
        embedded += BLOCK_ROWS
        entries = one_of(found, seed, ids)
        references = base.images(entries)
        # The sample's own noise, as in training: two samples that retrieve one trajectory with
        # its noise would be one picture.
        noise = normal_for(seed, ids, shape, purpose="state")
        surrogate = to_unit(references) + late[0] * noise
        own = torch.zeros(BLOCK_ROWS, dtype=torch.int64)
        count = min(BLOCK_ROWS, len(labels) - start)
        own[:count] = torch.from_numpy(labels[start : start + count])
        clean = sample(
            denoiser, surrogate, own, late, solver=sampling.solver, guidance=sampling.guidance
        )
        parts.append(
            (
                from_unit(at_query / (1 + early[-1]))[:count],
                references[:count],
                from_unit(surrogate / (1 + late[0]))[:count],
                from_unit(clean)[:count],
                entries[:count],
            )
        )
        if on_batch is not None:
            on_batch(start + count)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    rows = len(parts) * BLOCK_ROWS
    nfe = (public.evaluations + embedded + denoiser.evaluations) / rows
    return QueryPath(
        query=columns[0],
        reference=columns[1],
        surrogate=columns[2],
        sample=columns[3],
        neighbours=columns[4],
        nfe=nfe,
    )


def one_of(found: np.ndarray, seed: int, ids: np.ndarray) -> np.ndarray:
    """Draws one of the entries that each sample's query found, int64 [n, m] -> int64 [n].

    A pure function of (found[i], seed, ids[i]): no batch matters. Places without an entry are not
    drawn, unless there is no other.
    """
    if found.shape[1] == 1:
        return found[:, 0]
    drawn = np.empty(len(found), np.int64)
    for row, sample_id in enumerate(ids.tolist()):
        usable = max(1, int((found[row] != NO_NEIGHBOR).sum()))
        drawn[row] = found[row, generator_for(seed, "neighbour", sample_id).integers(usable)]
    return drawn


def _generate_by_query(context: RunContext, storage: Storage) -> None:
    settings = context.settings
    labels = np.arange(settings.sampling.count) % num_classes(settings)
    path = sample_by_query(
        settings,
        context.public.uri,
        context.backend.searcher(context.public.child(artifacts.knowledge_base_name(settings))),
        artifacts.get_denoiser(context.out.child(PRIVATE).uri),
        labels,
        seed=settings.sampling.seed,
        on_batch=lambda drawn: context.report("generate", {"step": drawn, "steps": len(labels)}),
    )
    artifacts.put_images(storage, "samples.npz", path.sample, labels)
    spread = asdict(diversity(path.neighbours))
    artifacts.mark_done(storage, {"nfe": path.nfe, "neighbours": spread})
