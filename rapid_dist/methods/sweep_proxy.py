"""Public images that play the private part, so that a sweep can choose without spending anything.

A public source, or some of its classes, leaves the public side and stands in for the private data
everywhere: it is trained on, votes for the prior and is held out for the scores. What is left stays
public. Both are written as files of arrays, named by their content, and then read like any other
source; no function here takes a private source but to copy what it *declares*.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rapid_dist.data.declaration import PrivateSource, PublicSource
from rapid_dist.data.groups import SYNTHETIC
from rapid_dist.data.images import PublicImages, content_hashes, hash_share
from rapid_dist.data.sources import load_public, public_classes
from rapid_dist.errors import ConfigError, DataError
from rapid_dist.methods.sweep_settings import ProxyConfig
from rapid_dist.retrieval.arrays import pack_arrays
from rapid_dist.storage import Storage, sha256_hex

NAME = "stand-in"
_HASH_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """Both sides of a sweep on public images, as sources that any recipe can name."""

    private: PrivateSource  # By its type alone: it is public.
    public: PublicSource
    told: str  # Which images play the private part, in words.


def make_proxy(
    config: ProxyConfig,
    declared: PrivateSource,
    public: Sequence[PublicSource],
    root: str | None,
    storage: Storage,
    *,
    seed: int,
) -> Proxy:
    """Splits the public sources and writes both sides to ``storage``, a folder of the sweep's.

    Args:
      declared: the private source; only its shape, its N and its unit are read, never its images.

    Raises:
      ConfigError: there is no such source or class, or nothing would be left on one side.
    """
    if config.source >= len(public):
        raise ConfigError(
            f"sweep.proxy.source is {config.source}, but data.public has {len(public)} sources. "
            f"Use 0 to {len(public) - 1}."
        )
    chosen = public[config.source]
    rest = [source for place, source in enumerate(public) if place != config.source]
    shape = {"size": declared.size, "channels": declared.channels, "seed": seed}
    if not config.classes and not rest:
        raise ConfigError(
            f"data.public holds {chosen.source} alone, so it cannot play the private part and the "
            "public one. Name some of its classes in sweep.proxy.classes."
        )
    images = load_public([chosen], root, **shape)
    names = public_classes(chosen, root, **shape)
    stands_in, left = _split_classes(images, names, config.classes)
    sides = ([left] if left is not None else []) + [load_public([s], root, **shape) for s in rest]
    private = _write_private(config, declared, stands_in, storage)
    what = f"classes {', '.join(config.classes)} of {chosen.source}" if config.classes else (
        f"all of {chosen.source}"
    )  # fmt: skip
    return Proxy(
        private=private,
        public=_write_public(sides, storage),
        told=f"{what}, {private.num_records:,} images",
    )


def _split_classes(
    images: PublicImages, names: tuple[str, ...], classes: tuple[str, ...]
) -> tuple[PublicImages, PublicImages | None]:
    """Returns (what plays the private part, what is left), the classes of each numbered anew."""
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ConfigError(
            f"sweep.proxy.classes has {unknown[0]!r}, which {images.spec.name} lacks. It has "
            f"{', '.join(names[:60])}."
        )
    if not classes:
        return images, None
    ids = np.array([names.index(name) for name in classes])
    taken = np.isin(images.labels, ids)
    if taken.all():
        raise ConfigError(
            f"sweep.proxy.classes names every class of {images.spec.name}. Leave some public."
        )
    inside, outside = images.take(np.flatnonzero(taken)), images.take(np.flatnonzero(~taken))
    place = {int(label): number for number, label in enumerate(ids)}
    inside = inside.replaced(
        inside.images, np.array([place[int(label)] for label in inside.labels], dtype=np.int64)
    )
    labels = np.unique(outside.labels, return_inverse=True)[1].astype(np.int64)
    return inside, outside.replaced(outside.images, labels)


def _write_private(
    config: ProxyConfig, declared: PrivateSource, images: PublicImages, storage: Storage
) -> PrivateSource:
    """Writes at most N images to train on and the held-out ones; which is which goes by content."""
    shares = np.array([hash_share(h, "sweep held-out") for h in content_hashes(images.images)])
    held_out = np.flatnonzero(shares < config.held_out_share)
    train = np.flatnonzero(shares >= config.held_out_share)
    train = np.sort(train[np.argsort(shares[train], kind="stable")][: declared.num_records])
    if len(held_out) == 0 or len(train) == 0:
        raise DataError(
            f"{len(images)} images of {images.spec.name} are too few to play the private part. "
            "Name more classes in sweep.proxy.classes."
        )
    num_classes = len(np.unique(images.labels)) if declared.num_classes else 0
    data = pack_arrays(
        {
            "images": images.images[train],
            "labels": images.labels[train],
            "test_images": images.images[held_out],
            "test_labels": images.labels[held_out],
        }
    )
    path = _store(storage, "private", data)
    grouped = declared.num_groups is not None
    groups = 0
    if declared.num_groups is not None:  # As many images to a group as in the private data.
        groups = max(1, round(declared.num_groups * len(train) / declared.num_records))
    return PrivateSource(
        source="npz",
        name=NAME,
        path=path,
        num_records=len(train),
        num_classes=num_classes,
        size=declared.size,
        channels=declared.channels,
        group_column=SYNTHETIC if grouped else None,
        num_groups=groups if grouped else None,
        licence=images.spec.licence,
    )


def _write_public(sides: Sequence[PublicImages], storage: Storage) -> PublicSource:
    labels, first = [], 0
    for side in sides:
        labels.append(side.labels + first)
        first += int(side.labels.max()) + 1
    images = np.concatenate([side.images for side in sides])
    data = pack_arrays({"images": images, "labels": np.concatenate(labels)})
    licences = dict.fromkeys(side.spec.licence for side in sides)
    return PublicSource(
        source="npz", path=_store(storage, "public", data), licence="; ".join(licences)
    )


def _store(storage: Storage, side: str, data: bytes) -> str:
    """Writes an .npz under a name that says what is in it; returns its address."""
    name = f"{side}-{sha256_hex(data)[:_HASH_DIGITS]}.npz"
    if not storage.exists(name):
        storage.write(name, data)
    return f"{storage.uri.rstrip('/')}/{name}"
