"""A second round of votes, among images that the first one has made possible.

Private Evolution (Lin et al., ICLR 2024) has records vote among images of a foundation model; here
they are made by our own model, the public one adapted to the noised first histogram, from entries
that the first prior draws. So they are public, as everything computed from it is. Each record votes
for the nearest candidate of its class, the counts are charged, noised and thresholded like the
first, and the entries behind the winners weigh more in the prior that samples are drawn from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from rapid_dist.data.images import Int64Array, PrivateImages
from rapid_dist.data.sources import load_private
from rapid_dist.methods import artifacts
from rapid_dist.methods.clusters import vote_features
from rapid_dist.methods.context import RunContext
from rapid_dist.methods.drawing import GenerateTask, ImageSet
from rapid_dist.methods.private_stages import (
    ADAPTED,
    REFINED,
    first_prior,
    num_classes,
    open_knowledge_base,
)
from rapid_dist.methods.sampling_stages import bundle_facts, references_of
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.private.votes import charged_histogram
from rapid_dist.release.bundle import Bundle
from rapid_dist.retrieval.arrays import pack_arrays
from rapid_dist.retrieval.prior import (
    TrajectoryPrior,
    cells_above,
    estimate,
    refined,
    told_votes,
)
from rapid_dist.retrieval.shard_maker import FeaturesOf
from rapid_dist.retrieval.vectors import assign
from rapid_dist.storage import open_storage

_FILE = f"{REFINED}/candidates.npz"
_APART = 2**32  # From the seed of samples, so that no sample repeats a candidate.
_ROWS_AT_ONCE = 1024  # Records between two reports of progress.


@dataclass(frozen=True, kw_only=True)
class CandidateSource:
    """What candidates are drawn from, put together on the worker that draws."""

    settings: MethodSettings
    public_uri: str
    out_uri: str

    def __call__(self) -> Bundle:
        return Bundle(
            facts=bundle_facts(self.settings, "prior", {}, {}),
            denoiser=artifacts.get_denoiser(open_storage(self.out_uri).child(ADAPTED).uri),
            prior=first_prior(self.out_uri),
            references=references_of(open_knowledge_base(self.settings, self.public_uri)),
        )


def run_candidates(context: RunContext) -> None:
    """Draws candidates, has every record vote once for one of them, and refines the prior."""
    settings, query = context.settings, context.plan.candidates
    storage = context.out.child(REFINED)
    if query is None or artifacts.is_done(storage):
        return
    classes, each = num_classes(settings), settings.prior.candidates
    _draw(context, classes * each)
    drawn, labels = artifacts.get_images(context.out, _FILE)
    prior = first_prior(context.out.uri)
    entries = entries_behind(prior, labels, settings)
    images, _ = load_private(settings.private, settings.data_root)
    features_of = vote_features(settings, context.public.uri)
    votes = nearest_candidates(
        images, features_of, features_of(drawn), labels, partial(context.report, "candidates votes")
    )
    histogram, attempt = charged_histogram(
        images,
        votes,
        query,
        num_classes=classes,
        num_clusters=each,
        keeper=context.backend.keeper(),
        note="votes among candidates",
        noise=settings.privacy.noise,
        purpose="candidates",
    )
    context.note(f"candidates {told_votes(histogram, query.noise_multiplier, settings.prior)}")
    probabilities = estimate(histogram, query.noise_multiplier, settings.prior)
    behind = np.stack([entries[labels == label] for label in range(classes)])
    # Of a class without a count above the threshold the first round is all that is known.
    heard = cells_above(histogram, query.noise_multiplier, settings.prior) > 0
    better = refined(prior, behind, probabilities, settings.prior.candidate_weight * heard)
    storage.write("histogram.npz", pack_arrays({"noised": histogram}))
    storage.write("prior.npz", better.to_bytes())
    artifacts.mark_done(
        storage, {"attempt": attempt}, of=context.run, names=("histogram.npz", "prior.npz")
    )


def entries_behind(
    prior: TrajectoryPrior, labels: Int64Array, settings: MethodSettings
) -> Int64Array:
    """Returns the entries that the generator has drawn the candidates of these classes from.

    They are a pure function of class, seed and number.
    """
    return prior.draw(labels, settings.seed + _APART, np.arange(len(labels), dtype=np.int64))


def _draw(context: RunContext, count: int) -> None:
    """Draws the candidates on all workers: public, and the same for any number of them."""
    settings = context.settings
    source = CandidateSource(
        settings=settings, public_uri=context.public.uri, out_uri=context.out.uri
    )
    task = GenerateTask(
        sets=(ImageSet(file=_FILE, open_bundle=source),),
        out_uri=context.out.uri,
        count=count,
        num_labels=num_classes(settings),
        seed=settings.seed + _APART,
        batch_size=settings.sampling.batch_size,
        device=context.device,
        precision=settings.sampling.precision,
    )
    workers, workers_count = context.backend.workers, context.backend.num_workers
    workers.run(task, name="candidates", num_workers=workers_count, private=False)


def nearest_candidates(
    images: PrivateImages,
    features_of: FeaturesOf,
    candidates: np.ndarray,
    labels: np.ndarray,
    say: Callable[[dict[str, float]], None],
) -> np.ndarray:
    """Returns each record's nearest candidate of its own class, int64 [N]: its place among those.

    -1 for a record whose features are not finite. Each is a function of that record alone.

    Args:
      candidates: float32 [C, F], features of all candidates.
      labels: int64 [C], their classes.
      say: is told how many of the declared N records are done.
    """
    declared = images.spec.num_records
    votes = np.full(declared, -1, np.int64)
    own = [candidates[labels == label] for label in range(int(labels.max()) + 1)]
    for start in range(0, declared, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, declared))
        features = features_of(images.images[rows])
        # All rows are compared with every class's candidates: how long it takes tells no count.
        nearest = np.stack([assign(features, those) for those in own])
        votes[rows] = nearest[images.labels[rows], np.arange(len(features))]
        say({"step": rows.stop, "steps": declared})
    return votes
