"""The manifest: what a knowledge base is made of, and the hash of every part.

It is written last, so a knowledge base without one is unfinished. Shards cover consecutive
ranges of content hashes and list their images in hash order; entry ids count through them.
So an id depends on the reference images and the seeds alone, not on the number of shards.

A knowledge base may extend another: it then lists that one's shards first, where they are, and
its own after them. Ids of the first stay what they were, and no shard is written again.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from rapid_dist.errors import ConfigError, ShardError
from rapid_dist.retrieval.shard import Shard, key_frame, key_moments
from rapid_dist.retrieval.trajectory import noise_check
from rapid_dist.storage import Storage, StorageMissing, open_storage

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
    home: str = ""  # The folder beside this knowledge base that holds it, if another's does.

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
        return _json(_told(self))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> "ShardRecord":
        found = _object(data, name, cls)
        return cls(**{**found, "key_sums": tuple(found["key_sums"])})


@dataclass(frozen=True, kw_only=True)
class IndexRecord:
    """An approximate index' trained part, one for all shards, and what it was measured to find."""

    name: str
    sha256: str
    kind: str
    lists: int
    probes: int
    code_bytes: int  # Of one entry; those of its key where that is stored whole.
    recall: dict[str, float]  # Share of the true 1 and 10 nearest that are found: "1", "10".
    recall_queries: int  # Entries that were asked for, not counted among their own neighbours.
    rerank: int = 0  # Candidates a neighbour that are ranked by their whole keys.


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The table of contents of a finished knowledge base."""

    spec: KnowledgeBaseSpec
    public_fingerprint: str  # Of the reference images.
    noise_check: str
    key_centre: tuple[float, ...]  # Keys and queries are searched as (x - centre) * scale.
    key_scale: float
    shards: tuple[ShardRecord, ...]  # In order of ids.
    index: IndexRecord | None = None  # None = flat, which is exact and has nothing to train.

    @classmethod
    def of(
        cls,
        spec: KnowledgeBaseSpec,
        records: Sequence[ShardRecord],
        public_fingerprint: str,
        extends: "Manifest | None" = None,
        home: str = "",
    ) -> "Manifest":
        """Puts finished shards together, ``records`` in the order of their plans.

        Args:
          extends: the knowledge base whose shards come first.
          home: the name of the folder that it lies in, beside the new one.
        """
        if extends is not None:
            if replace(extends.spec, num_shards=spec.num_shards) != spec:
                raise ConfigError(
                    f"The knowledge base in {home} was built with other settings or networks than "
                    "the entries that would join it. Build all of it anew."
                )
            earlier = [replace(record, home=record.home or home) for record in extends.shards]
            records = [*earlier, *records]
            both = f"{extends.public_fingerprint}+{public_fingerprint}"
            public_fingerprint = hashlib.sha256(both.encode()).hexdigest()
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
        place = storage if not record.home else _beside(storage, record.home)
        try:
            data = place.read(record.name)
        except StorageMissing as error:
            raise ShardError(
                f"Shard {record.name} is missing from {place.uri}. "
                "Delete done.json there and run the same command again: only this shard is made."
            ) from error
        return Shard.open(data, record.sha256, record.name)

    def open_index(self, storage: Storage) -> bytes:
        """Reads the trained index that this manifest lists, and no other (P16)."""
        assert self.index is not None
        try:
            data = storage.read(self.index.name)
        except StorageMissing as error:
            raise ShardError(
                f"Index {self.index.name} is missing from {storage.uri}. Delete {MANIFEST} there "
                "and build the knowledge base again: finished shards are kept."
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if found != self.index.sha256:
            raise ShardError(
                f"Index {self.index.name} has SHA-256 {found[:16]}, the manifest says "
                f"{self.index.sha256[:16]}. Delete {MANIFEST} in {storage.uri} and build again."
            )
        return data

    @property
    def vector_bytes(self) -> int:
        """What the searched vectors take in memory, all shards together."""
        whole = self.key_dim * np.dtype(np.float32).itemsize
        return self.num_entries * (whole if self.index is None else self.index.code_bytes)

    def to_bytes(self) -> bytes:
        told = {"format": _FORMAT} | _told(self)
        if self.index is not None:
            told["index"] = _told(self.index)
        return _json(told | {"shards": [_told(record) for record in self.shards]})

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
        found = _object(data, f"{storage.uri}/{MANIFEST}", cls, "format")
        if found.pop("format") != _FORMAT:
            raise ShardError(f"{storage.uri}/{MANIFEST} has another format than {_FORMAT}.")
        if found["noise_check"] != noise_check():
            raise ShardError(
                f"{storage.uri} was built where NumPy draws other noise than here "
                f"({np.__version__}). Use the NumPy that built it, or build it again."
            )
        try:
            return cls(**_parts(found))
        except (TypeError, KeyError, ValueError) as error:
            raise ShardError(
                f"{storage.uri}/{MANIFEST} was changed ({type(error).__name__}). Build the "
                "knowledge base again."
            ) from error


def _parts(found: dict[str, Any]) -> dict[str, Any]:
    """The fields of a manifest, from what JSON makes of them."""
    shards = [{**record, "key_sums": tuple(record["key_sums"])} for record in found["shards"]]
    index = found.get("index")
    return {
        **found,
        "spec": KnowledgeBaseSpec(**{**found["spec"], "seeds": tuple(found["spec"]["seeds"])}),
        "key_centre": tuple(found["key_centre"]),
        "shards": tuple(ShardRecord(**record) for record in shards),
        "index": None if index is None else IndexRecord(**index),
    }


def _beside(storage: Storage, folder: str) -> Storage:
    parent = storage.uri.rpartition("/")[0]
    return open_storage(f"{parent}/{folder}")


def _told(record: ShardRecord | IndexRecord | Manifest) -> dict[str, Any]:
    """All fields but those at their default, which older files do not know of."""
    content = asdict(record)
    for one in fields(record):
        if one.default is not MISSING and getattr(record, one.name) == one.default:
            del content[one.name]
    return content


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


def _object(data: bytes, name: str, kind: type, *more: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ShardError(f"{name} is torn ({error}). Build the knowledge base again.") from error
    known = {one.name for one in fields(kind)}
    needed = {one.name for one in fields(kind) if one.default is MISSING} | set(more)
    if not isinstance(found, dict) or not needed <= found.keys() <= known | set(more):
        raise ShardError(f"{name} was written by something else. Build the knowledge base again.")
    return found
