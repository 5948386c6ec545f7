"""Sampling by query from a bundle: the public half, from pure noise to the entry that is entered.

    public/            the public network, in the layout of the private one
    public/extractor.json, public/extractor.safetensors    h, unless keys are pixels
    public/knowledge.npz    the reference images, and the key of every entry

All of it is public. Search is exact and needs no FAISS: the same entries to the bit as the run's
knowledge base gives. The noise of the references' paths does not go along, for a sample enters at a
reference's state with noise of its own.

Letters: R reference images, E entries, D key dimensions, n samples, C channels, S pixels a side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch

from rapid_dist.data.images import Int64Array, UInt8Array
from rapid_dist.diffusion.denoiser import Denoiser, load_denoiser, save_denoiser
from rapid_dist.diffusion.sampler import Solver, sample
from rapid_dist.diffusion.seeds import generator_for, normal_for
from rapid_dist.errors import CheckpointError, ConfigError
from rapid_dist.public.embedding import embedder
from rapid_dist.release.needed import KNOWLEDGE
from rapid_dist.retrieval.arrays import pack_arrays, unpack_arrays
from rapid_dist.retrieval.exact import ExactSearch
from rapid_dist.retrieval.features import ContrastExtractor, load_extractor, save_extractor
from rapid_dist.retrieval.merge import NO_NEIGHBOR
from rapid_dist.retrieval.shard_maker import Embed

# (queries float32 [n, D], m) -> (distances, entries int64), both [n, m].
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class QueryFacts:
    """How a sample's query is made and answered."""

    query_step: int
    intervals: int  # From the top to the query step, by the public model.
    keys: Literal["contrast", "pixels"]
    top_m: int = 1  # One of so many nearest entries is entered.

    def __post_init__(self) -> None:
        if self.keys not in ("contrast", "pixels"):
            raise ConfigError(f"Keys are 'contrast' or 'pixels', got {self.keys!r}.")
        if min(self.query_step, self.intervals, self.top_m) < 1:
            raise ConfigError(
                "query_step, intervals and top_m must be at least 1, got "
                f"{self.query_step}, {self.intervals} and {self.top_m}."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Knowledge:
    """The knowledge base as far as queries need it: each image once, each entry's key."""

    images: UInt8Array  # [R, C, S, S]
    image_of_entry: Int64Array  # [E]
    keys: np.ndarray  # float32 [E, D], centred and scaled, as they are searched.
    centre: np.ndarray  # float32 [D]
    scale: np.ndarray  # float32 [1]

    def __post_init__(self) -> None:
        entries, dim = self.keys.shape
        if len(self.image_of_entry) != entries or self.centre.shape != (dim,):
            raise ConfigError(
                f"A knowledge base of {entries} keys of {dim} dimensions needs as many entries and "
                f"one centre, got {len(self.image_of_entry)} and {self.centre.shape}."
            )
        named = self.image_of_entry
        if entries and not 0 <= named.min() <= named.max() < len(self.images):
            raise ConfigError(
                f"Entries name images {named.min()}..{named.max()}, there are {len(self.images)}."
            )

    def framed(self, vectors: np.ndarray) -> np.ndarray:
        """The embedder's float32 [n, D] -> the centred, scaled float32 [n, D] of a search."""
        framed: np.ndarray = (vectors.astype(np.float32) - self.centre) * self.scale[0]
        return framed

    def of_entries(self, entries: Int64Array) -> UInt8Array:
        """Returns the reference image of each entry int64 [n], uint8 [n, C, S, S]."""
        if len(entries) and entries.min() == NO_NEIGHBOR:
            raise CheckpointError(
                "The public model's estimates are not finite, so no reference answers them. The "
                "bundle's public network is not one that was trained."
            )
        found: UInt8Array = self.images[self.image_of_entry[entries]]
        return found

    def to_bytes(self) -> bytes:
        """Returns an npz without pickle, the same bytes for the same knowledge base."""
        return pack_arrays({name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads ``to_bytes``."""
        return cls(**unpack_arrays(data, KNOWLEDGE))


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicHalf:
    """What sampling by query needs beside the private network."""

    denoiser: Denoiser
    extractor: ContrastExtractor | None  # None where keys are pixels.
    knowledge: Knowledge

    def save(self, folder: Path) -> None:
        """Writes the files of ``public/``."""
        save_denoiser(self.denoiser, folder)
        if self.extractor is not None:
            save_extractor(self.extractor, folder)
        (folder / KNOWLEDGE).write_bytes(self.knowledge.to_bytes())

    @classmethod
    def load(cls, folder: Path, facts: QueryFacts) -> Self:
        """Reads ``save``."""
        return cls(
            denoiser=load_denoiser(folder),
            extractor=load_extractor(folder) if facts.keys == "contrast" else None,
            knowledge=Knowledge.from_bytes((folder / KNOWLEDGE).read_bytes()),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class EarlySteps:
    """From pure noise to the entry that a sample enters at. Rows of a call must be a whole block.

    Row i depends on (seed, ids[i]) alone, for calls of one number of rows.
    """

    denoiser: Denoiser  # The public one.
    embed: Embed
    search: Search
    levels: Sequence[float]  # From the top down to the query step.
    solver: Solver
    top_m: int
    device: str = "cpu"

    def queried(self, seed: int, ids: Int64Array) -> tuple[torch.Tensor, Int64Array]:
        """Returns states at the query step, float32 [n, C, S, S], and entries int64 [n]."""
        shape = (self.denoiser.channels, self.denoiser.size, self.denoiser.size)
        start = self.levels[0] * normal_for(seed, ids, shape, purpose="start")
        no_labels = torch.full((len(ids),), self.denoiser.no_label, device=self.device)
        states = sample(
            self.denoiser, start.to(self.device), no_labels, self.levels, solver=self.solver
        )
        _, found = self.search(self.embed(states), self.top_m)
        return states.cpu(), one_of(found, seed, ids)


def early_steps(
    half: PublicHalf, facts: QueryFacts, levels: Sequence[float], solver: Solver, device: str
) -> EarlySteps:
    """Returns the public half at work on a device; its searches are exact, on the CPU."""
    denoiser = half.denoiser.to(device).eval()
    extractor = None if half.extractor is None else half.extractor.to(device)
    exact = ExactSearch(half.knowledge.keys)
    return EarlySteps(
        denoiser=denoiser,
        embed=embedder(denoiser, extractor, levels[-1]),
        search=lambda vectors, m: exact.search(half.knowledge.framed(vectors), m),
        levels=levels,
        solver=solver,
        top_m=facts.top_m,
        device=device,
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
