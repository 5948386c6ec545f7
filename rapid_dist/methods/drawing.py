"""Draws sets of images on all workers: the samples of a run, and the controls beside them."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rapid_dist.collective import Collective
from rapid_dist.diffusion.compute import Precision
from rapid_dist.methods import artifacts
from rapid_dist.methods.context import Report, RunContext
from rapid_dist.methods.private_stages import num_classes
from rapid_dist.release.bundle import Bundle, open_bundle
from rapid_dist.release.generator import BLOCK_ROWS, Generator
from rapid_dist.retrieval.arrays import pack_arrays, unpack_arrays
from rapid_dist.retrieval.stats import diversity
from rapid_dist.storage import Storage, open_storage


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One set of images to draw: what from, and which file they go to."""

    file: str  # An npz below the run directory.
    open_bundle: Callable[[], Bundle]  # Called on every worker that draws.
    references: bool = False  # Not samples, but the public images that they would start from.


@dataclass(frozen=True, kw_only=True)
class GenerateTask:
    """Draws sets of images, one set after the other, each on all workers.

    Every image has its own seed, so a set is the same to the bit for any number of workers. When
    the task returns, on whichever worker, every set is stored; one that was stored before is kept.
    """

    sets: tuple[ImageSet, ...]
    out_uri: str
    count: int  # Of each set.
    num_labels: int  # Classes go round, also where a set cannot know them.
    seed: int
    batch_size: int
    device: str = "cpu"
    precision: Precision = "fp32"
    private: bool = False  # Whether what is drawn is its owner's alone.

    def __call__(self, collective: Collective, report: Report) -> None:
        out = open_storage(self.out_uri, private=self.private)
        waiting = self._waiting(out, collective)
        first, last = self._own_rows(collective)
        drawn, steps = 0, len(waiting) * (last - first)

        def progress(batch: int) -> None:
            nonlocal drawn
            drawn += batch
            report({"step": drawn, "steps": steps, "rows": 1})

        labels = np.arange(first, last) % self.num_labels
        for one in waiting:
            found, nfe = self._drawn(one, labels, first, progress)
            out.write(_part(one.file, collective.rank), pack_arrays(found))
            collective.barrier()
            if collective.rank == 0:
                self._join(out, one.file, collective.world_size, {"nfe": nfe})
        collective.barrier()

    def _own_rows(self, collective: Collective) -> tuple[int, int]:
        """Returns the first and the last but one image of this rank, whole blocks, maybe none."""
        blocks = -(-self.count // BLOCK_ROWS)
        mine = np.array_split(np.arange(blocks), collective.world_size)[collective.rank]
        if not len(mine):
            return 0, 0
        return int(mine[0]) * BLOCK_ROWS, min(self.count, (int(mine[-1]) + 1) * BLOCK_ROWS)

    def _waiting(self, out: Storage, collective: Collective) -> list[ImageSet]:
        """Returns the sets that are not there yet, as rank 0 sees it."""
        if not self.sets:
            return []
        own = bytes(out.exists(facts_file(one.file)) for one in self.sets)
        there = collective.broadcast_bytes(own)
        return [one for one, done in zip(self.sets, there, strict=True) if not done]

    def _drawn(
        self, one: ImageSet, labels: np.ndarray, first: int, on_batch: Callable[[int], None]
    ) -> tuple[dict[str, np.ndarray], float]:
        """Returns this rank's part, and the network evaluations that one image has cost.

        The part has images, labels and, where queries were asked, the entries that answered them.
        """
        bundle = one.open_bundle()
        generator = Generator(bundle, self.device, self.precision)
        found = {"labels": labels}
        if one.references:
            found["images"] = generator.references(labels, seed=self.seed, first_id=first)
            on_batch(len(labels))
        else:
            if bundle.facts.source == "query":
                found["entries"] = np.empty(len(labels), np.int64)
            found["images"] = generator.generate(
                labels,
                seed=self.seed,
                first_id=first,
                batch_size=self.batch_size,
                on_batch=on_batch,
                entered=found.get("entries"),
            )
        # Asserted by nobody, counted by the network itself.
        return found, generator.evaluations_per_image

    def _join(self, out: Storage, file: str, world_size: int, facts: dict[str, Any]) -> None:
        names = [_part(file, rank) for rank in range(world_size)]
        parts = [unpack_arrays(out.read(name), name) for name in names]
        whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        assert len(whole["images"]) == self.count, "Every image is in exactly one part."
        artifacts.put_images(out, file, whole["images"], whole["labels"])
        if "entries" in whole:
            facts = {**facts, "neighbours": asdict(diversity(whole["entries"]))}
        out.write(facts_file(file), json.dumps(facts).encode())  # Last: the set is whole.
        for name in names:
            out.delete(name)


def drawing_of(context: RunContext, sets: tuple[ImageSet, ...]) -> GenerateTask:
    """Returns what draws these sets as the settings say, each as many as there are samples."""
    sampling = context.settings.sampling
    return GenerateTask(
        sets=sets,
        out_uri=context.out.uri,
        count=sampling.count,
        num_labels=num_classes(context.settings),
        seed=sampling.seed,
        batch_size=sampling.batch_size,
        device=context.device,
        precision=sampling.precision,
    )


def open_stored(uri: str) -> Bundle:
    """Opens a bundle where it is stored, after checking every file of it."""
    return artifacts.with_folder(open_storage(uri), open_bundle)


def facts_file(file: str) -> str:
    """Returns where the facts of a set of images stand: beside it, once the set is whole."""
    return f"{file.removesuffix('.npz')}.json"


def _part(file: str, rank: int) -> str:
    return f"{file.removesuffix('.npz')}-part-{rank:04d}.npz"
