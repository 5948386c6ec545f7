"""Builds a knowledge base from public reference images, shard by shard.

    plans = plan_shards(reference, spec)
    records = [build_and_store(plan, reference, embed, features_of, storage) for plan in plans]
    manifest = write_manifest(storage, plans, records, reference)

Shards are independent, so the middle line may run anywhere, in any order and more than once.
A shard is known by the hash of all that goes into it: a second run makes only what is missing
or torn. The bytes do not depend on who made them.

Inside one knowledge base an image's shard follows from its content, so one more image would
change the shard that it falls into. Images that are added later therefore get shards of their own:
the new knowledge base ``extends`` the old one, lists its shards where they are, and writes only
what is new. That needs the same networks: where those were trained anew, every key is another one.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rapid_dist.data.images import PublicImages, content_hashes
from rapid_dist.errors import DataError, ShardError
from rapid_dist.retrieval.features import pixel_features
from rapid_dist.retrieval.knowledge_base import KnowledgeBaseConfig
from rapid_dist.retrieval.manifest import MANIFEST, KnowledgeBaseSpec, Manifest, ShardRecord
from rapid_dist.retrieval.shard_maker import (
    Embed,
    Encode,
    FeaturesOf,
    as_they_are,
    build_shard,
)
from rapid_dist.retrieval.trajectory import noise_check
from rapid_dist.storage import Storage, StorageMissing, open_storage, sha256_hex

PIXEL_FEATURES = "pixels-1"  # Fingerprint of pixel_features: bump it when that changes.
_HASH_BITS = 64

Progress = Callable[[int, int], None]  # Shards done, shards in all.


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardPlan:
    """One shard to be made. Small: it names its images by row."""

    place: int  # Among the shards of its knowledge base.
    rows: np.ndarray  # int64 [n], rows of the reference images, ordered by content hash.
    spec: KnowledgeBaseSpec
    identity: str


def knowledge_base_spec(
    config: KnowledgeBaseConfig,
    reference: PublicImages,
    *,
    query_level: float,
    embedder: str,
    features: str = PIXEL_FEATURES,
) -> KnowledgeBaseSpec:
    """Says what will be built, from settings and fingerprints of what makes keys and features."""
    return KnowledgeBaseSpec(
        channels=reference.spec.channels,
        size=reference.spec.size,
        seeds=config.seeds,
        query_level=query_level,
        num_shards=config.num_shards,
        embed_batch=config.embed_batch,
        embedder=embedder,
        features=features,
    )


def plan_shards(
    reference: PublicImages, spec: KnowledgeBaseSpec, *, without: Collection[bytes] = ()
) -> list[ShardPlan]:
    """Deals reference images into shards by ranges of their content hash.

    An image that occurs more than once with one label is kept once. Ranges without images give
    no shard.

    Args:
      without: content hashes of images that the knowledge base holds already.
    """
    if len(reference) == 0:
        raise DataError("There are no reference images. Raise data.reference_share.")
    hashes, held = content_hashes(reference.images), frozenset(without)
    names = sorted(
        {
            (hashes[row], int(label)): row
            for row, label in _last_first(reference)
            if hashes[row] not in held
        }.items()
    )
    rows_of: list[list[int]] = [[] for _ in range(spec.num_shards)]
    for (digest, _), row in names:
        prefix = int.from_bytes(digest[: _HASH_BITS // 8], "big")
        rows_of[prefix * spec.num_shards >> _HASH_BITS].append(row)
    plans: list[ShardPlan] = []
    for rows in rows_of:
        if rows:
            chosen = np.array(rows, np.int64)
            identity = _identity(spec, [hashes[row] for row in rows], reference.labels[chosen])
            plans.append(ShardPlan(place=len(plans), rows=chosen, spec=spec, identity=identity))
    return plans


def build_one_shard(
    plan: ShardPlan,
    reference: PublicImages,
    embed: Embed,
    features_of: FeaturesOf,
    encode: Encode = as_they_are,
) -> tuple[bytes, ShardRecord]:
    """Makes the bytes of one shard; refuses other reference images than it was planned for."""
    if plan.rows.max() >= len(reference):
        raise ShardError(_other_images(plan))
    images, labels = reference.images[plan.rows], reference.labels[plan.rows]
    hashes = content_hashes(images)
    if _identity(plan.spec, hashes, labels) != plan.identity:
        raise ShardError(_other_images(plan))
    shard = build_shard(
        images=images,
        labels=labels,
        hashes=hashes,
        seeds=plan.spec.seeds,
        query_level=plan.spec.query_level,
        embed=embed,
        features_of=features_of,
        batch=plan.spec.embed_batch,
        encode=encode,
    )
    data = shard.to_bytes()
    return data, ShardRecord.of(shard, data, plan.identity)


def write_shard(storage: Storage, data: bytes, record: ShardRecord) -> None:
    """Stores a shard under its hash, then the record that says it is finished."""
    storage.write(record.name, data)  # Whole or not at all; another writer has the same bytes.
    storage.write(_record_name(record.identity), record.to_bytes())


def finished_record(storage: Storage, plan: ShardPlan) -> ShardRecord | None:
    """Returns the record of a shard that is already stored and whole, or None."""
    name = _record_name(plan.identity)
    try:
        record = ShardRecord.from_bytes(storage.read(name), name)
        whole = sha256_hex(storage.read(record.name)) == record.sha256
    except (StorageMissing, ShardError):  # Torn or missing: it is simply made again.
        return None
    return record if whole and record.identity == plan.identity else None


def build_and_store(
    plan: ShardPlan,
    reference: PublicImages,
    embed: Embed,
    features_of: FeaturesOf,
    storage: Storage,
    encode: Encode = as_they_are,
) -> ShardRecord:
    """Makes and stores one shard unless it is already there."""
    record = finished_record(storage, plan)
    if record is None:
        data, record = build_one_shard(plan, reference, embed, features_of, encode)
        write_shard(storage, data, record)
    return record


def write_manifest(
    storage: Storage,
    plans: Sequence[ShardPlan],
    records: Sequence[ShardRecord],
    reference: PublicImages,
    *,
    extends: Manifest | None = None,
    home: str = "",
) -> Manifest:
    """Finishes a knowledge base: writes the manifest, once every planned shard is stored.

    Args:
      extends: the knowledge base in folder ``home`` beside this one, whose shards come first.
    """
    record_of = {record.identity: record for record in records}
    missing = [plan.place for plan in plans if plan.identity not in record_of]
    if missing or not (plans or extends):
        raise ShardError(f"Shards {missing} of {len(plans)} are not built. Run the build again.")
    ordered = [record_of[plan.identity] for plan in plans]
    spec = plans[0].spec if plans or extends is None else extends.spec
    manifest = Manifest.of(spec, ordered, reference.fingerprint, extends, home)
    storage.write(MANIFEST, manifest.to_bytes())
    return manifest


def build_knowledge_base(
    reference: PublicImages,
    spec: KnowledgeBaseSpec,
    embed: Embed,
    storage: Storage,
    *,
    features_of: FeaturesOf = pixel_features,
    encode: Encode = as_they_are,
    progress: Progress | None = None,
) -> Manifest:
    """Builds everything in this process, or finishes what another run began."""
    plans = plan_shards(reference, spec)
    records = []
    for plan in plans:
        records.append(build_and_store(plan, reference, embed, features_of, storage, encode))
        if progress is not None:
            progress(len(records), len(plans))
    return write_manifest(storage, plans, records, reference)


class ShardTask:
    """Makes shards wherever it is sent: it opens images and embedder there, on first use.

    Args:
      storage_uri: where shards go; every worker must reach it.
      load_reference: returns the reference images that the plans were made from.
      load_embedders: returns (embed, features_of) and, where noise is not added to images, encode.
        Both loaders must be picklable.
    """

    def __init__(
        self,
        storage_uri: str,
        load_reference: Callable[[], PublicImages],
        load_embedders: Callable[[], tuple[Embed, FeaturesOf] | tuple[Embed, FeaturesOf, Encode]],
    ) -> None:
        self._storage_uri = storage_uri
        self._load_reference, self._load_embedders = load_reference, load_embedders
        self._opened: tuple[Any, ...] | None = None  # As ``build_one_shard`` takes them.

    def build(self, plan: ShardPlan) -> ShardRecord:
        """Makes and stores one shard unless it is already there."""
        storage = open_storage(self._storage_uri)
        record = finished_record(storage, plan)
        if record is not None:
            return record
        if self._opened is None:
            self._opened = (self._load_reference(), *self._load_embedders())
        data, record = build_one_shard(plan, *self._opened)
        write_shard(storage, data, record)
        return record


def _last_first(reference: PublicImages) -> list[tuple[int, int]]:
    """(row, label) from the last row to the first, so that a dict keeps the first of equals."""
    return list(enumerate(reference.labels.tolist()))[::-1]


def _identity(spec: KnowledgeBaseSpec, hashes: list[bytes], labels: np.ndarray) -> str:
    """Hashes all that shapes a shard's bytes; the number of shards acts through the images."""
    shaping = {name: value for name, value in asdict(spec).items() if name != "num_shards"}
    shaping["noise_check"] = noise_check()
    digest = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode())
    for image_hash, label in zip(hashes, labels.tolist(), strict=True):
        digest.update(image_hash + label.to_bytes(8, "little", signed=True))
    return digest.hexdigest()


def _record_name(identity: str) -> str:
    return f"records/{identity[:32]}.json"


def _other_images(plan: ShardPlan) -> str:
    return (
        f"Shard {plan.place} was planned from other reference images than this worker loaded. "
        "Give every worker the same public files, or plan again."
    )
