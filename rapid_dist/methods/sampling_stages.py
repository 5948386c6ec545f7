"""The stage after training: the bundle, and samples drawn from it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch

from rapid_dist.data.images import from_unit, to_unit
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.sampler import sample
from rapid_dist.diffusion.seeds import generator_for, normal_for
from rapid_dist.methods import artifacts
from rapid_dist.methods.context import RunContext, Searcher
from rapid_dist.methods.drawing import ImageSet, drawing_of, facts_file, open_stored
from rapid_dist.methods.private_stages import (
    PRIVATE,
    num_classes,
    open_knowledge_base,
    open_prior,
    uniform_prior,
)
from rapid_dist.methods.public_stages import open_embedder
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.release.bundle import Bundle, BundleFacts, References, write_bundle
from rapid_dist.release.generator import BLOCK_ROWS
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.merge import NO_NEIGHBOR
from rapid_dist.retrieval.prior import TrajectoryPrior
from rapid_dist.retrieval.stats import diversity
from rapid_dist.storage import Storage, open_storage

BUNDLE, SAMPLES = "bundle", "samples"
SAMPLES_FILE = f"{SAMPLES}/samples.npz"


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
    samples = ImageSet(
        file=SAMPLES_FILE,
        open_bundle=partial(open_stored, context.out.child(BUNDLE).uri),
    )
    task = drawing_of(context, (samples,))
    workers, count = context.backend.workers, context.backend.num_workers
    workers.run(task, name="generate", num_workers=count, private=False)
    artifacts.mark_done(storage, json.loads(context.out.read(facts_file(samples.file))))


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
