"""The stage after training: the bundle, and samples drawn from it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from rapid_dist.data.images import from_unit, to_unit
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.sampler import sample
from rapid_dist.diffusion.seeds import churn_for, normal_for
from rapid_dist.errors import CheckpointError
from rapid_dist.methods import artifacts
from rapid_dist.methods.context import RunContext, Searcher
from rapid_dist.methods.drawing import ImageSet, drawing_of, facts_file, open_stored
from rapid_dist.methods.private_stages import (
    PRIVATE,
    open_knowledge_base,
    open_prior,
    uniform_prior,
)
from rapid_dist.methods.public_stages import open_embedder, open_key_extractor
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.release.bundle import Bundle, BundleFacts, References, write_bundle
from rapid_dist.release.checksums import CHECKSUMS
from rapid_dist.release.generator import BLOCK_ROWS
from rapid_dist.release.query import EarlySteps, Knowledge, PublicHalf, QueryFacts
from rapid_dist.retrieval.jitter import JitterConfig
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.prior import TrajectoryPrior
from rapid_dist.retrieval.searcher import keys_of
from rapid_dist.storage import Storage, open_storage, sha256_hex

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
    query = None
    if source == "query":
        query = QueryFacts(
            query_step=settings.split.query_step,
            intervals=sampling.early_intervals,
            keys=settings.knowledge_base.keys,
            top_m=sampling.top_m,
        )
    return BundleFacts(
        name=settings.name,
        method=settings.method,
        class_names=class_names(settings),
        schedule=settings.schedule,
        source="query" if query else "prior" if late else "noise",
        from_step=settings.split.split_step if late else top,
        intervals=sampling.late_intervals
        if late
        else sampling.late_intervals + sampling.early_intervals,
        solver=sampling.solver,
        guidance=sampling.guidance,
        churn=sampling.churn,
        jitter=JitterConfig() if query else settings.prior.jitter,
        query=query,
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


def public_half(settings: MethodSettings, public_uri: str) -> PublicHalf:
    """Returns what sampling by query needs of the public stages: networks, images and keys."""
    base = open_knowledge_base(settings, public_uri)
    manifest, public = base.manifest, open_storage(public_uri)
    entries = np.arange(len(base), dtype=np.int64)
    place = public.child(artifacts.knowledge_base_name(settings))
    knowledge = Knowledge(
        images=base.reference_images,
        image_of_entry=base.image_of(entries),
        keys=keys_of(place, manifest, entries),
        centre=np.array(manifest.key_centre, np.float32),
        scale=np.array([manifest.key_scale], np.float32),
    )
    denoiser = artifacts.get_denoiser(public.child(artifacts.pretrain_name(settings)).uri)
    extractor = open_key_extractor(settings, public_uri)
    return PublicHalf(denoiser=denoiser, extractor=extractor, knowledge=knowledge)


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
    release_and_draw(context, partial(_bundle, context))


def _bundle(context: RunContext) -> Bundle:
    settings = context.settings
    source = settings.sampling.source
    denoiser = artifacts.get_denoiser(context.out.child(PRIVATE).uri)
    facts = bundle_facts(settings, source, context.privacy(), context.versions)
    if source == "query":
        half = public_half(settings, context.public.uri)
        return Bundle(facts=facts, denoiser=denoiser, public=half)
    base = prior = None
    if source != "noise":
        base = open_knowledge_base(settings, context.public.uri)
        prior = open_prior(context.out.uri) if source == "prior" else uniform_prior(settings, base)
    return make_bundle(settings, denoiser, facts, prior, base)


def require_own_bundle(out: Storage) -> None:
    """Refuses another bundle than the one that the samples were drawn from.

    Raises:
      CheckpointError: it was replaced by one that is whole in itself.
    """
    expected = artifacts.read_done(out.child(SAMPLES)).get("bundle")
    if expected is None:  # Drawn without one, or by a version that did not note it.
        return
    found = sha256_hex(out.child(BUNDLE).read(CHECKSUMS))
    if found != expected:
        raise CheckpointError(
            f"{out.uri}/{BUNDLE} is not the bundle that the samples were drawn from: its "
            f"{CHECKSUMS} has SHA-256 {found[:16]}, then it was {str(expected)[:16]}. Restore it; "
            f"or delete {SAMPLES}/{artifacts.DONE} and stages/generate.json to make both again."
        )


def release_and_draw(context: RunContext, bundle_of: Callable[[], Bundle]) -> None:
    """Writes what ``bundle_of`` puts together, then draws the samples from what was written."""
    storage = context.out.child(SAMPLES)
    if artifacts.is_done(storage):
        return
    bundle = bundle_of()
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
    facts = json.loads(context.out.read(facts_file(samples.file)))
    facts["bundle"] = sha256_hex(context.out.child(BUNDLE).read(CHECKSUMS))
    name = SAMPLES_FILE.rpartition("/")[2]
    artifacts.mark_done(storage, facts, of=context.run, names=(name,))


@dataclass(frozen=True, kw_only=True)
class QueryPath:
    """How samples come about that are drawn by query; each [n, C, H, W]."""

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

    For showing the way of a sample, whatever the run's source is: with an exact searcher these are
    the samples that a bundle of source "query" draws. No step is computed and thrown away. Sample i
    depends on (seed, i, label i) alone.
    """
    schedule, split, sampling = settings.schedule, settings.split, settings.sampling
    base = open_knowledge_base(settings, public_uri)
    place = open_storage(public_uri).child(artifacts.pretrain_name(settings))
    public = artifacts.get_denoiser(place.uri).eval()
    early = EarlySteps(
        denoiser=public,
        embed=open_embedder(settings, public_uri),
        search=searcher.search,
        levels=schedule.path(schedule.num_steps, split.query_step, sampling.early_intervals),
        solver=sampling.solver,
        top_m=sampling.top_m,
    )
    late = schedule.path(split.split_step, 0, sampling.late_intervals)
    shape = (denoiser.channels, denoiser.size, denoiser.size)
    denoiser.eval().evaluations = 0
    parts: list[tuple[np.ndarray, ...]] = []
    embedded = 0
    for start in range(0, len(labels), BLOCK_ROWS):
        ids = np.arange(start, start + BLOCK_ROWS)  # Whole blocks: arithmetic of one shape.
        at_query, entries = early.queried(seed, ids)
        embedded += BLOCK_ROWS
        references = base.images(entries)
        # The sample's own noise, as in training: two samples that retrieve one trajectory with
        # its noise would be one picture.
        noise = normal_for(seed, ids, shape, purpose="state")
        surrogate = denoiser.encode(to_unit(references)) + late[0] * noise
        own = torch.zeros(BLOCK_ROWS, dtype=torch.int64)
        count = min(BLOCK_ROWS, len(labels) - start)
        own[:count] = torch.from_numpy(labels[start : start + count])
        clean = sample(
            denoiser,
            surrogate,
            own,
            late,
            solver=sampling.solver,
            guidance=sampling.guidance,
            churn=sampling.churn,
            fresh=churn_for(seed, ids, shape),
        )
        parts.append(
            (
                from_unit(denoiser.decode(at_query / (1 + early.levels[-1])))[:count],
                references[:count],
                from_unit(denoiser.decode(surrogate / (1 + late[0])))[:count],
                from_unit(denoiser.decode(clean))[:count],
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
