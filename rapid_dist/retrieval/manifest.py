"""The manifest: what a knowledge base is made of, and the hash of every part.

It is written last, so a knowledge base without one is unfinished. Shards cover consecutive
ranges of content hashes and list their images in hash order; entry ids count through them.
So an id depends on the reference images and the seeds alone, not on the number of shards.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from rapid_dist.errors import ConfigError, ShardError
from rapid_dist.retrieval.shard import Shard, key_frame, key_moments
from rapid_dist.retrieval.trajectory import noise_check
from rapid_dist.storage import Storage, StorageMissing

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class KnowledgeBaseSpec:
    """Everything besides the images that shapes the bytes of a knowledge base."""

    channels: int
    size: int
    seeds: tuple[int, ...]  # Seeds of each image.
    query_level: float  # Noise level at the query step k.
    num_shards: int
    embed_batch: int
    embedder: str  # Fingerprint of what makes the keys.
    features: str  # Fingerprint of what makes the clean images' features.

    def __post_init__(self) -> None:
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ConfigError(f"An image's seeds must be distinct, got {self.seeds}.")
        if not self.query_level > 0:
            raise ConfigError(
                f"query_level must be positive, got {self.query_level}. Choose a query step > 0."
            )


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What is known of a finished shard."""

    name: str
    sha256: str
    identity: str  # Hash of all that went into the shard.
    num_images: int
    num_entries: int
    num_bytes: int
    key_sums: tuple[int, ...]  # See shard.key_moments.
    key_squares: int

    @classmethod
    def of(cls, shard: Shard, data: bytes, identity: str) -> "ShardRecord":
        """Describes ``data``, the bytes of ``shard``; the name contains their hash."""
        sha256 = hashlib.sha256(data).hexdigest()
        sums, squares = key_moments(shard.keys)
        return cls(
            name=f"shards/{sha256[:32]}.npz",
            sha256=sha256,
            identity=identity,
            num_images=len(shard.images),
            num_entries=len(shard.keys),
            num_bytes=len(data),
            key_sums=sums,
            key_squares=squares,
        )

    def to_bytes(self) -> bytes:
        return _json(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> "ShardRecord":
        found = _object(data, name, {field.name for field in fields(cls)})
        return cls(**{**found, "key_sums": tuple(found["key_sums"])})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The table of contents of a finished knowledge base."""

    spec: KnowledgeBaseSpec
    public_fingerprint: str  # Of the reference images.
    noise_check: str
    key_centre: tuple[float, ...]  # Keys and queries are searched as (x - centre) * scale.
    key_scale: float
    shards: tuple[ShardRecord, ...]  # In order of ids.

    @classmethod
    def of(
        cls, spec: KnowledgeBaseSpec, records: Sequence[ShardRecord], public_fingerprint: str
    ) -> "Manifest":
        """Puts finished shards together, ``records`` in the order of their plans."""
        dims = {len(record.key_sums) for record in records}
        if len(dims) != 1:
            raise ShardError(f"Shards have keys of {sorted(dims)} dimensions; build them again.")
        sums = tuple(sum(column) for column in zip(*(r.key_sums for r in records), strict=True))
        num_entries = sum(record.num_entries for record in records)
        centre, scale = key_frame(sums, sum(r.key_squares for r in records), num_entries)
        return cls(
            spec=spec,
            public_fingerprint=public_fingerprint,
            noise_check=noise_check(),
            key_centre=centre,
            key_scale=scale,
            shards=tuple(records),
        )

    @property
    def num_entries(self) -> int:
        return sum(record.num_entries for record in self.shards)

    @property
    def num_images(self) -> int:
        return sum(record.num_images for record in self.shards)

    @property
    def key_dim(self) -> int:
        return len(self.key_centre)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, and so of all it lists."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def first_ids(self) -> list[int]:
        """Returns the id of every shard's first entry."""
        counts = [record.num_entries for record in self.shards]
        return [sum(counts[:place]) for place in range(len(counts))]

    def framed(self, vectors: np.ndarray) -> np.ndarray:
        """Embedder's float32 [M, D] -> the centred, scaled float32 [M, D] that are searched."""
        if vectors.ndim != 2 or vectors.shape[1] != self.key_dim:
            raise ConfigError(
                f"Queries must be [Q, {self.key_dim}] for this knowledge base, got "
                f"{vectors.shape}. Embed them with the extractor it was built with."
            )
        centred = vectors.astype(np.float32) - np.array(self.key_centre, np.float32)
        framed: np.ndarray = centred * np.float32(self.key_scale)
        return framed

    def open_shard(self, storage: Storage, record: ShardRecord) -> Shard:
        """Reads a shard that this manifest lists; refuses other bytes than it was written with."""
        try:
            data = storage.read(record.name)
        except StorageMissing as error:
            raise ShardError(
                f"Shard {record.name} is missing from {storage.uri}. "
                "Build the knowledge base again: only this shard is remade."
            ) from error
        return Shard.open(data, record.sha256, record.name)

    def to_bytes(self) -> bytes:
        return _json({"format": _FORMAT} | asdict(self))

    @classmethod
    def read(cls, storage: Storage) -> "Manifest":
        """Reads the manifest of a finished knowledge base."""
        try:
            data = storage.read(MANIFEST)
        except StorageMissing as error:
            raise ShardError(
                f"{storage.uri} holds no finished knowledge base (no {MANIFEST}). "
                "Run `rapid-dist index` to build or finish it."
            ) from error
        names = {"format"} | {field.name for field in fields(cls)}
        found = _object(data, f"{storage.uri}/{MANIFEST}", names)
        if found.pop("format") != _FORMAT:
            raise ShardError(f"{storage.uri}/{MANIFEST} has another format than {_FORMAT}.")
        if found["noise_check"] != noise_check():
            raise ShardError(
                f"{storage.uri} was built where NumPy draws other noise than here "
                f"({np.__version__}). Use the NumPy that built it, or build it again."
            )
        spec = {**found["spec"], "seeds": tuple(found["spec"]["seeds"])}
        shards = [{**record, "key_sums": tuple(record["key_sums"])} for record in found["shards"]]
        found["spec"] = KnowledgeBaseSpec(**spec)
        found["key_centre"] = tuple(found["key_centre"])
        found["shards"] = tuple(ShardRecord(**record) for record in shards)
        return cls(**found)


def _json(content: dict[str, object]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


def _object(data: bytes, name: str, names: set[str]) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ShardError(f"{name} is torn ({error}). Build the knowledge base again.") from error
    if not isinstance(found, dict) or found.keys() != names:
        raise ShardError(f"{name} was written by something else. Build the knowledge base again.")
    return found
