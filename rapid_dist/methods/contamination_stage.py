"""Looks for private images among the public ones before anything is trained on private data.

The looking is done on the workers and its result is internal. With policy ``accept`` that is all.
With ``refuse`` and ``drop`` one noised count a public source is charged to the ledger and released;
the decision is made from it and from declared constants, stored once, and never asked for again.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rapid_dist.collective import Collective
from rapid_dist.data.declaration import PublicSource
from rapid_dist.data.images import PrivateImages, PublicImages
from rapid_dist.data.sources import load_private, load_public
from rapid_dist.errors import ReleaseError
from rapid_dist.methods import public_stages
from rapid_dist.methods.context import Report, RunContext
from rapid_dist.methods.seal import read_table
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.private import contamination
from rapid_dist.retrieval.duplicates import Nearest
from rapid_dist.storage import Storage, open_storage

FOUND = "contamination.json"  # In internal/.
DECISION = "contamination/decision.json"  # In the run directory: noised, so public.
PURPOSE = "near-duplicates by public source"  # Of the query behind it, in the ledger.
NOTICE = "Internal: measured on private records without a privacy mechanism. Not for release."
_MEASURES = 3  # Of an image and a source: equal, bits, features.


def sources_of(settings: MethodSettings) -> tuple[PublicSource, ...]:
    """Returns all public sources, in the order in which they are counted."""
    return (*settings.public, *settings.more_references)


@dataclass(frozen=True, kw_only=True)
class ContaminationTask:
    """Compares this rank's private images with all public ones; rank 0 writes what was found."""

    settings: MethodSettings
    public_uri: str
    out_uri: str

    def __call__(self, collective: Collective, report: Report) -> None:
        settings = self.settings
        train, held_out = load_private(settings.private, settings.data_root)
        count = len(train) + len(held_out)
        mine = np.array_split(np.arange(count), collective.world_size)[collective.rank]
        # Of the two parts one after the other, without a copy of both.
        in_train, in_held_out = mine[mine < len(train)], mine[mine >= len(train)] - len(train)
        own = np.concatenate([train.images[in_train], held_out.images[in_held_out]])
        features_of = public_stages.open_extractor(settings, self.public_uri)
        loaded = [self._public(source) for source in sources_of(settings)]
        compared, steps = 0, sum(len(images) for images in loaded)

        def progress(rows: int) -> None:
            nonlocal compared
            compared += rows
            report({"step": compared, "steps": steps})

        found = []
        for public in loaded:
            nearest = contamination.nearest_public(own, public, features_of, collective, progress)
            found.append(_gathered(nearest, mine, count, collective))
        if collective.rank == 0:
            content = self._content(train, held_out, loaded, found)
            internal = open_storage(self.out_uri, private=True).child("internal")
            internal.write(FOUND, json.dumps(content, indent=2, allow_nan=False).encode())

    def _public(self, source: PublicSource) -> PublicImages:
        settings = self.settings
        return load_public(
            [source],
            settings.data_root,
            size=settings.private.size,
            channels=settings.private.channels,
            seed=settings.seed,
        )

    def _content(
        self,
        train: PrivateImages,
        held_out: PrivateImages,
        public: list[PublicImages],
        found: list[Nearest],
    ) -> dict[str, Any]:
        """Counts and quantiles of either part, a source each, and the votes of the units."""
        config, content = self.settings.contamination, {}
        near = np.stack([contamination.near(one, config) for one in found], axis=1)
        for name, rows in (
            ("train", slice(len(train))),
            ("held_out", slice(len(train), len(near))),
        ):
            parts = [
                Nearest(equal=one.equal[rows], bits=one.bits[rows], features=one.features[rows])
                for one in found
            ]
            content[name] = {
                "images": len(near[rows]),
                "sources": [
                    {"source": images.spec.name, "images": len(images), **counts}
                    for images, counts in zip(
                        public, contamination.described(parts, config, near[rows]), strict=True
                    )
                ],
            }
        units = contamination.of_units(near[: len(train)], train.groups, train.spec.num_units)
        return {
            "notice": NOTICE,
            "policy": config.policy,
            "hash_distance": config.hash_distance,
            "feature_distance": config.feature_distance,
            **content,
            "units": {"near": units.sum(axis=0).tolist(), "all": len(units)},
            "votes": contamination.source_votes(units).tolist(),
        }


def run_contamination(
    context: RunContext,
    remade: Sequence[Callable[[RunContext], None]] = (
        public_stages.run_pretrain,
        public_stages.run_contrast,
        public_stages.run_index,
    ),
) -> None:
    """Looks once; then, where the policy says so, asks for the noised counts once and obeys.

    Args:
      remade: the method's public stages, to be made again without the sources that are dropped.
    """
    settings, query = context.settings, context.plan.contamination
    if not context.internal.exists(FOUND):
        task = ContaminationTask(
            settings=settings, public_uri=context.public.uri, out_uri=context.out.uri
        )
        workers, count = context.backend.workers, context.backend.num_workers
        workers.run(task, name="contamination", num_workers=count)
    if query is None:
        context.note(f"near-duplicates of private images: internal/{FOUND}; nothing was charged")
        return
    if not context.out.exists(DECISION):
        found = read_table(context.internal, FOUND, "Delete it: it is looked for again.")
        votes = np.array(found["votes"], np.float64)
        keeper = context.backend.keeper()
        attempt = keeper.begin_attempt().number
        keeper.charge_query(query, PURPOSE)
        noised = contamination.noised_votes(
            votes,
            noise_multiplier=query.noise_multiplier,
            key=SecretKey.generate(),
            attempt=attempt,
            noise=settings.privacy.noise,
        )
        decision = decided(settings, query.noise_multiplier, noised)
        context.out.write(DECISION, json.dumps(decision, indent=2, allow_nan=False).encode())
    _obey(context, remade)


def run_without_index(context: RunContext) -> None:
    """Looks for a method that retrieves nothing: a source that is dropped leaves no index."""
    run_contamination(context, remade=(public_stages.run_pretrain, public_stages.run_contrast))


def decided(settings: MethodSettings, noise: float, noised: np.ndarray) -> dict[str, Any]:
    """Returns what follows from the noised counts and declared constants. All of it is public."""
    config = settings.contamination
    names = [source.source for source in sources_of(settings)]
    return {
        "policy": config.policy,
        "most_units": config.most_units,
        "noise_multiplier": noise,
        "sources": names,
        "noised": noised.tolist(),
        "condemned": np.flatnonzero(noised > config.most_units).tolist(),
    }


def told(context: RunContext) -> dict[str, Any]:
    """Returns what may be said of it in public: the policy, and the decision if there was one."""
    said: dict[str, Any] = {"policy": context.settings.contamination.policy}
    if context.out.exists(DECISION):
        said |= _decision(context.out)
    return said if context.internal.exists(FOUND) else {}


def effective(context: RunContext) -> RunContext:
    """Returns the context with the settings that hold once sources have been dropped."""
    return replace(context, settings=without_dropped(context.settings, context.out))


def without_dropped(settings: MethodSettings, out: Storage) -> MethodSettings:
    """Returns the settings without the sources that this run's decision has dropped, if any."""
    if settings.contamination.policy != "drop" or not out.exists(DECISION):
        return settings
    gone = set(_decision(out)["condemned"])
    kept = [number not in gone for number in range(len(sources_of(settings)))]
    count = len(settings.public)
    pairs = list(zip(sources_of(settings), kept, strict=True))
    return replace(
        settings,
        public=tuple(source for source, keep in pairs[:count] if keep),
        more_references=tuple(source for source, keep in pairs[count:] if keep),
    )


def _decision(out: Storage) -> dict[str, Any]:
    return read_table(out, DECISION, "Restore it from a backup: what it says has been charged.")


def _obey(context: RunContext, remade: Sequence[Callable[[RunContext], None]]) -> None:
    decision = _decision(context.out)
    told = [
        f"{name} {count:.1f}"
        for name, count in zip(decision["sources"], decision["noised"], strict=True)
    ]
    context.note(f"near-duplicates of private images, noised: {', '.join(told)}")
    condemned = decision["condemned"]
    if not condemned:
        return
    said = (
        f"Public sources {', '.join(told[number] for number in condemned)}: noised counts of units "
        f"with near-duplicates, above contamination.most_units={decision['most_units']:g}."
    )
    kept = effective(context)
    if decision["policy"] == "refuse" or not kept.settings.public:
        raise ReleaseError(
            f"{said} Begin a run without them under another --out; this count stays charged."
        )
    context.note(f"{said} The run goes on without them.")
    for run in remade:
        run(kept)


def _gathered(own: Nearest, mine: np.ndarray, count: int, collective: Collective) -> Nearest:
    """Returns every rank's rows in one, on all ranks."""
    flat = torch.zeros(count, _MEASURES)
    rows = np.stack([own.equal.astype(np.float32), own.bits, own.features], axis=1)
    flat[mine] = torch.from_numpy(rows)
    collective.sum_(flat.view(-1))  # Zeros but for one rank each: exact.
    columns = flat.numpy()
    return Nearest(equal=columns[:, 0] > 0, bits=columns[:, 1], features=columns[:, 2])
