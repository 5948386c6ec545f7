"""Draws images from a released bundle, with nothing but torch, diffusers and NumPy.

    generator = Generator.open(Path("bundle"))
    images = generator.generate(np.arange(10), seed=0)  # uint8 [10, C, S, S]

Letters: n samples, C channels, S pixels a side.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import torch

from rapid_dist.data.images import Int64Array, UInt8Array, from_unit, to_unit
from rapid_dist.diffusion.compute import Precision, precision_on
from rapid_dist.diffusion.sampler import sample
from rapid_dist.diffusion.seeds import churn_for, generator_for, normal_for
from rapid_dist.errors import ConfigError
from rapid_dist.release.bundle import Bundle, open_bundle
from rapid_dist.release.query import early_steps
from rapid_dist.retrieval.jitter import jittered
from rapid_dist.retrieval.trajectory import noises_of, state_at

# Rows of every network call, always: sums of floats depend on the shape they are made in.
BLOCK_ROWS = 64


class Generator:
    """The released generator; each sample is a pure function of (label, seed, id)."""

    def __init__(self, bundle: Bundle, device: str = "cpu", precision: Precision = "fp32") -> None:
        self._bundle = bundle
        self._device = device
        self._denoiser = bundle.denoiser.to(device).eval()
        self._denoiser.precision = precision_on(torch.device(device), precision)
        self._levels = bundle.facts.levels()
        self._shape = (bundle.denoiser.channels, bundle.denoiser.size, bundle.denoiser.size)
        self._image_shape = bundle.denoiser.image_shape
        self._rows = 0  # That went through the network, padding included.
        self._denoiser.evaluations = 0
        self._early = None
        half, facts = bundle.public, bundle.facts
        if half is not None and facts.query is not None:
            # In float32, as the keys were made that its queries are compared with.
            self._early = early_steps(half, facts.query, facts.early_levels(), facts.solver, device)
            half.denoiser.evaluations = 0

    @classmethod
    def open(cls, directory: Path, device: str = "cpu") -> Self:
        """Opens a bundle folder; refuses one that is not what its checksums say."""
        return cls(open_bundle(directory), device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that labels stand for, in order; empty if it has none."""
        return self._bundle.facts.class_names

    @property
    def evaluations_per_image(self) -> float:
        """Network evaluations that one image has cost so far, counted and not planned."""
        public = self._early.denoiser.evaluations if self._early else 0
        return (self._denoiser.evaluations + public) / self._rows if self._rows else 0.0

    def generate(
        self,
        labels: Int64Array,
        *,
        seed: int,
        first_id: int = 0,
        batch_size: int = 256,
        on_batch: Callable[[int], None] | None = None,
        entered: Int64Array | None = None,
    ) -> UInt8Array:
        """Returns one image for every label, uint8 [n, C, S, S].

        Guarantee: sample i is the same image, to the bit, for any batch size and for any split of
        the ids into calls, since id i always takes row i mod 64 of a block of 64 rows.

        Args:
          labels: int64 [n], classes in order of ``class_names``; zeros if it has none.
          first_id: the id of the first sample; the others follow.
          batch_size: samples between two calls of ``on_batch``, which is told their number.
          entered: int64 [n], is filled with the entry that each sample entered at; left as it is
            where sampling starts from noise.
        """
        labels = self._checked(labels, first_id, batch_size)
        ids = first_id + np.arange(len(labels), dtype=np.int64)
        images = np.empty((len(labels), *self._image_shape), np.uint8)
        for start in range(0, len(labels), batch_size):
            batch = slice(start, min(start + batch_size, len(labels)))
            blocks = ids[batch] // BLOCK_ROWS
            for block in np.unique(blocks):
                rows = start + np.flatnonzero(blocks == block)
                images[rows], entries = self._block(labels[rows], seed, ids[rows])
                if entered is not None and entries is not None:
                    entered[rows] = entries
            if on_batch is not None:
                on_batch(batch.stop - batch.start)
        return images

    def references(self, labels: Int64Array, *, seed: int, first_id: int = 0) -> UInt8Array:
        """Returns the public images that ``generate`` would start from, uint8 [n, C, S, S]."""
        labels = self._checked(labels, first_id, 1)
        ids = first_id + np.arange(len(labels), dtype=np.int64)
        images = np.empty((len(labels), *self._image_shape), np.uint8)
        for block in np.unique(ids // BLOCK_ROWS):
            rows = np.flatnonzero(ids // BLOCK_ROWS == block)
            entries = self._entries(labels[rows], seed, ids[rows])
            if entries is None:
                raise ConfigError(
                    "This generator starts from pure noise; it has no references to show. "
                    "Open one whose source is 'prior' or 'query'."
                )
            images[rows] = from_unit(self._variants(self._images(entries), seed, ids[rows]))
        return images

    def _block(
        self, labels: Int64Array, seed: int, ids: Int64Array
    ) -> tuple[UInt8Array, Int64Array | None]:
        """Draws samples that share one block, each in its own row; the other rows are idle.

        Returns them, and the entries that they entered at, if at any.
        """
        rows = torch.from_numpy(ids % BLOCK_ROWS)
        entries = self._entries(labels, seed, ids)
        state = torch.zeros(BLOCK_ROWS, *self._shape)
        state[rows] = self._entered(entries, seed, ids)
        row_labels = torch.zeros(BLOCK_ROWS, dtype=torch.int64)
        answers = self._bundle.answers
        told = labels if answers is None else answers.draw(labels, seed, ids)
        row_labels[rows] = torch.from_numpy(told)
        facts, own = self._bundle.facts, churn_for(seed, ids, self._shape)

        def fresh(interval: int) -> torch.Tensor:
            noise = torch.zeros(BLOCK_ROWS, *self._shape)
            noise[rows] = own(interval)
            return noise.to(self._device)

        clean = sample(
            self._denoiser,
            state.to(self._device),
            row_labels.to(self._device),
            self._levels,
            solver=facts.solver,
            guidance=facts.guidance,
            churn=facts.churn,
            fresh=fresh,
        )
        self._rows += BLOCK_ROWS
        # The whole block: what a library computes in another shape, it may round otherwise.
        return from_unit(self._denoiser.decode(clean).cpu()[rows]), entries

    def _entries(self, labels: Int64Array, seed: int, ids: Int64Array) -> Int64Array | None:
        """Returns the entry that each sample of one block enters at, int64 [n]; None for noise."""
        if self._early is not None:
            whole = int(ids[0]) // BLOCK_ROWS * BLOCK_ROWS + np.arange(BLOCK_ROWS, dtype=np.int64)
            _, entries = self._early.queried(seed, whole)
            return entries[ids % BLOCK_ROWS]
        prior = self._bundle.prior
        return None if prior is None else prior.draw(labels, seed, ids)

    def _entered(self, entries: Int64Array | None, seed: int, ids: Int64Array) -> torch.Tensor:
        """Returns the states, float32 [n, C, S, S], in which the private model begins."""
        noise = normal_for(seed, ids, self._shape, purpose="state")
        if entries is None:
            return self._levels[0] * noise
        facts, references = self._bundle.facts, self._bundle.references
        if facts.noise == "entry" and references is not None:
            images = references.image_of_entry[entries]
            hashes = [bytes(digest) for digest in references.hashes[images]]
            seeds = references.seed_of_entry[entries].tolist()
            noise = torch.from_numpy(noises_of(hashes, seeds, self._shape))
        rows = torch.from_numpy(ids % BLOCK_ROWS)
        block = torch.zeros(BLOCK_ROWS, *self._image_shape)
        block[rows] = self._variants(self._images(entries), seed, ids)
        clean = self._denoiser.encode(block)[rows]
        return torch.from_numpy(state_at(clean.numpy(), noise.numpy(), self._levels[0]))

    def _images(self, entries: Int64Array) -> UInt8Array:
        """Returns the reference images of entries int64 [n], uint8 [n, C, S, S]."""
        half, references = self._bundle.public, self._bundle.references
        if half is not None:
            return half.knowledge.of_entries(entries)
        assert references is not None, "A bundle has what its source needs."
        found: UInt8Array = references.images[references.image_of_entry[entries]]
        return found

    def _variants(self, images: UInt8Array, seed: int, ids: Int64Array) -> torch.Tensor:
        """Returns each sample's own variant of its reference, float32 [n, C, S, S]."""
        streams = [generator_for(seed, "jitter", sample_id) for sample_id in ids.tolist()]
        return jittered(to_unit(images), streams, self._bundle.facts.jitter)

    def _checked(self, labels: Int64Array, first_id: int, batch_size: int) -> Int64Array:
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ConfigError(
                f"labels must be a list of integers, got {labels.dtype} of shape {labels.shape}. "
                "Give one class index an image."
            )
        last = max(len(self.class_names), 1) - 1
        if len(labels) and not 0 <= labels.min() <= labels.max() <= last:
            raise ConfigError(
                f"labels must be in 0..{last}, got {labels.min()}..{labels.max()}. "
                f"The classes are {', '.join(self.class_names) or 'none: use zeros'}."
            )
        if first_id < 0 or batch_size < 1:
            raise ConfigError(
                f"first_id must be at least 0 and batch_size at least 1, got {first_id} and "
                f"{batch_size}."
            )
        return labels.astype(np.int64)
