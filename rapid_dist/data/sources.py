"""Where images come from, and on which side of the trust boundary they enter.

The only place that tags images. A private source is declared in full (its N, classes, shape)
and is checked against its declaration before anything else may happen; a public source may be
read freely, so only what cannot be read off it is a setting.

    train, held_out = load_private(PrivateSource(source="digits", ...), root=None)
    public = load_public([PublicSource(source="letters", count=20_000)], None, size=8, channels=1)
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rapid_dist.confined import no_core_dumps
from rapid_dist.data import checks
from rapid_dist.data.declaration import PrivateSource, PublicSource
from rapid_dist.data.groups import SYNTHETIC, check_groups_whole, synthetic_groups
from rapid_dist.data.images import (
    ImageSpec,
    Int64Array,
    PrivateImages,
    PublicImages,
    check_shape,
    content_hashes,
    hash_share,
)
from rapid_dist.data.raw import Part, Raw, Request, concatenate
from rapid_dist.data.roots import read_below
from rapid_dist.errors import ConfigError, DataError

__all__ = [
    "PrivateSource",
    "PublicSource",
    "check_disjoint",
    "load_private",
    "load_public",
    "public_classes",
    "split_public",
]

_LIMIT_SEED = 1  # The order in which ``limit`` takes records: public, and the same for every set.


def load_private(
    source: PrivateSource, root: str | Path | None = None
) -> tuple[PrivateImages, PrivateImages]:
    """Returns (train, held out), after checking every declaration.

    A source without a test part is split by a hash of each record's own content (of its group's
    id, where groups are declared): which side a record is on depends on no other record, and
    copies of one image stay together. No group is on both sides, whatever split it.
    """
    no_core_dumps()  # From here on this process holds private records.
    made_up = source.group_column == SYNTHETIC
    request = Request(
        source=source.source,
        root=None,
        size=source.size,
        channels=source.channels,
        resize=source.resize or source.path is None,
        num_classes=source.num_classes,
        path=source.path,
        invert=source.invert,
        margin=source.margin,
        value_range=source.value_range,
        label_column=source.label_column,
        group_column=None if made_up else source.group_column,
    )
    raw = read_below(root, request)
    if source.num_classes not in (0, len(raw.class_names)):
        raise DataError(
            f"{source.name}: num_classes={source.num_classes} is declared, source "
            f"{source.source} has {len(raw.class_names)}. Declare {len(raw.class_names)}, or 0."
        )
    checks.check_class_names(source.name, source.class_names, raw.class_names)
    train, held_out = raw.train, raw.test
    if held_out is None:
        train, held_out = _split_private(raw.train, source.held_out_share)
    if source.limit is not None and source.limit < len(train.images):
        order = np.random.default_rng(_LIMIT_SEED).permutation(len(train.images))
        train = _take(train, np.sort(order[: source.limit]))
    checks.check_count(source.name, "num_records", source.num_records, len(train.images))
    if source.num_groups is not None:
        if made_up:  # Of the train part alone, so that no group is cut.
            train = replace(train, groups=synthetic_groups(len(train.images), source.num_groups))
        check_groups_whole(source.name, train.groups, held_out.groups)
        checks.check_groups(source.name, train.groups, source.num_groups)
    if len(held_out.images) == 0:
        raise DataError(f"{source.name}: no record is held out. Raise held_out_share.")
    licence = source.licence or raw.licence
    return (
        _tag_private(source, train, licence, num_groups=source.num_groups, train=True),
        _tag_private(source, held_out, licence, num_groups=None, train=False),
    )


def load_public(
    sources: Sequence[PublicSource],
    root: str | Path | None = None,
    *,
    size: int,
    channels: int,
    seed: int = 0,
) -> PublicImages:
    """Joins public sources; every class of every source becomes one class of the result."""
    if not sources:
        raise DataError("No public source is given. Name at least one, for example letters.")
    check_shape(size, channels)
    parts: list[Part] = []
    licences: list[str] = []
    num_classes = 0
    for source in sources:
        part, names, licence = _read_public(source, root, size=size, channels=channels, seed=seed)
        parts.append(Part(images=part.images, labels=part.labels + num_classes))
        licences.append(licence)
        num_classes += len(names)
    joined = concatenate(parts)
    name = "-".join(source.source.replace("_", "-") for source in sources)
    spec = ImageSpec(
        name=name,
        num_records=len(joined.images),
        channels=channels,
        size=size,
        num_classes=num_classes,
        licence="; ".join(dict.fromkeys(licences)),
    )
    return PublicImages(images=joined.images, labels=joined.labels, spec=spec)


def public_classes(
    source: PublicSource, root: str | Path | None = None, *, size: int, channels: int, seed: int = 0
) -> tuple[str, ...]:
    """Returns the names of the classes of one public source, in order of ``load_public``'s ids."""
    return _read_public(source, root, size=size, channels=channels, seed=seed)[1]


def split_public(images: PublicImages, reference_share: float) -> tuple[PublicImages, PublicImages]:
    """Returns (pretrain, reference), split by content: copies of an image are on one side."""
    if not 0 < reference_share < 1:
        raise ConfigError(f"reference_share must lie in (0, 1), got {reference_share}.")
    shares = [hash_share(digest, "reference") for digest in content_hashes(images.images)]
    is_reference = np.array(shares) < reference_share
    return images.take(np.flatnonzero(~is_reference)), images.take(np.flatnonzero(is_reference))


def check_disjoint(
    private: PrivateSource, public: Sequence[PublicSource], root: str | Path | None = None
) -> None:
    """Refuses a public source that is, holds, or lies inside the private one."""
    for source in public:
        checks.check_apart((private.source, private.path), (source.source, source.path), root)


def _take(part: Part, indices: Int64Array) -> Part:
    return Part(
        images=part.images[indices],
        labels=part.labels[indices],
        groups=None if part.groups is None else part.groups[indices],
    )


def _split_private(part: Part, held_out_share: float) -> tuple[Part, Part]:
    if part.groups is None:
        digests = content_hashes(part.images)
    else:  # A group stays on one side: it is one person.
        digests = [int(group).to_bytes(8, "big") for group in part.groups]
    is_held_out = np.array([hash_share(d, "held-out") < held_out_share for d in digests])
    return _take(part, np.flatnonzero(~is_held_out)), _take(part, np.flatnonzero(is_held_out))


def _tag_private(
    source: PrivateSource, part: Part, licence: str, *, num_groups: int | None, train: bool
) -> PrivateImages:
    labels = part.labels if source.num_classes else np.zeros_like(part.labels)
    # Only training needs every class: an empty one would be a class that cannot be learnt.
    checks.check_labels(source.name, labels, max(source.num_classes, 1), empty_allowed=not train)
    spec = ImageSpec(
        name=source.name,
        num_records=len(part.images),
        channels=source.channels,
        size=source.size,
        num_classes=source.num_classes,
        licence=licence,
        num_groups=num_groups,
    )
    groups = part.groups
    if groups is not None:
        groups = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    return PrivateImages(images=part.images, labels=labels, groups=groups, spec=spec)


def _read_public(
    source: PublicSource, root: str | Path | None, *, size: int, channels: int, seed: int
) -> tuple[Part, tuple[str, ...], str]:
    """Returns a source's images and labels, the names of its classes, and its licence."""
    request = Request(
        source=source.source,
        root=None,
        size=size,
        channels=channels,
        path=source.path,
        labels=source.labels,
        count=source.count,
        seed=seed,
        invert=source.invert,
        margin=source.margin,
        value_range=source.value_range,
        label_column=source.label_column,
    )
    raw = read_below(root, request)
    part, names = _public_part(raw, source, seed)
    return part, names, source.licence or raw.licence


def _public_part(raw: Raw, source: PublicSource, seed: int) -> tuple[Part, tuple[str, ...]]:
    """Both parts of a public source, less the excluded classes, cut to ``count`` at random."""
    part = raw.train if raw.test is None else concatenate([raw.train, raw.test])
    names = raw.class_names or ("all",)
    unknown = [name for name in source.exclude if name not in names]
    if unknown:
        raise DataError(
            f"Public source {source.source} has no class {unknown[0]!r} to exclude. "
            f"Its classes are {', '.join(names[:20])}."
        )
    checks.check_labels(source.source, part.labels, len(names), empty_allowed=True)
    kept = [label for label, name in enumerate(names) if name not in source.exclude]
    new_label = np.full(len(names), -1, dtype=np.int64)
    new_label[kept] = np.arange(len(kept))
    part = Part(images=part.images, labels=new_label[part.labels])
    part = _take(part, np.flatnonzero(part.labels >= 0))
    if source.count is not None and source.count > len(part.images):
        raise DataError(
            f"Public source {source.source} has {len(part.images)} images, count asks for "
            f"{source.count}. Lower it."
        )
    if source.count is not None and source.count < len(part.images):
        order = np.random.default_rng(seed).permutation(len(part.images))
        part = _take(part, np.sort(order[: source.count]))
    # Classes that are left without an image get no id.
    used, labels = np.unique(part.labels, return_inverse=True)
    if source.labels == "none":
        return Part(images=part.images, labels=np.zeros_like(part.labels)), ("all",)
    names = tuple(names[kept[label]] for label in used)
    return Part(images=part.images, labels=labels.astype(np.int64)), names
