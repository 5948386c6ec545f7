"""Where the artefacts of a run stand, and how they are written and read back.

Public artefacts carry a hash of every setting that shaped them, so that runs with the same public
stages share them and runs with others cannot mix them up. A folder is whole when its ``done.json``
exists, which is written last and holds the hash of every file (``seal.py``).
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rapid_dist.confined import private_folder
from rapid_dist.data.images import Int64Array, PublicImages, UInt8Array, content_hashes
from rapid_dist.data.sources import load_public, split_public
from rapid_dist.diffusion.autoencoder import Autoencoder, load_autoencoder, save_autoencoder
from rapid_dist.diffusion.denoiser import Denoiser, load_denoiser, save_denoiser
from rapid_dist.errors import DataError, RapidError, ShardError
from rapid_dist.methods.seal import DONE as DONE
from rapid_dist.methods.seal import is_done as is_done
from rapid_dist.methods.seal import mark_done as mark_done
from rapid_dist.methods.seal import read_done as read_done
from rapid_dist.methods.seal import read_sealed, remedy, require_manifest, sealed_names
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.public.variants import with_variants
from rapid_dist.retrieval.arrays import pack_arrays, unpack_arrays
from rapid_dist.retrieval.features import ContrastExtractor, load_extractor, save_extractor
from rapid_dist.retrieval.manifest import MANIFEST, Manifest
from rapid_dist.storage import Storage, open_storage, sha256_hex

T = TypeVar("T")


def fingerprint(*parts: Any) -> str:
    """Returns 16 hex digits of a hash over plain values and dataclasses."""
    plain = [asdict(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def public_data_identity(settings: MethodSettings) -> str:
    """Returns a hash of what decides which public images there are, and on which side."""
    sources = [asdict(source) for source in settings.public]
    return fingerprint(
        sources,
        settings.reference_share,
        settings.seed,
        [settings.private.size, settings.private.channels],
    )


def autoencoder_name(settings: MethodSettings) -> str:
    """Returns the folder of the recipe's autoencoder, which it must have."""
    assert settings.autoencoder is not None, "Asked for where latents are diffused."
    shaping = asdict(settings.autoencoder)
    for name in ("licence", "hub"):  # How it may be had changes no weight.
        del shaping[name]
    identity = fingerprint(public_data_identity(settings), shaping, settings.schedule.data_std)
    return f"autoencoder-{identity}"


def pretrain_name(settings: MethodSettings) -> str:
    parts = [public_data_identity(settings), settings.network, settings.schedule, settings.pretrain]
    if settings.autoencoder is not None:  # Names of before know nothing of it.
        parts.append(autoencoder_name(settings))
    return f"denoiser-{fingerprint(*parts)}"


def extractor_name(settings: MethodSettings) -> str:
    identity = fingerprint(
        pretrain_name(settings), settings.contrast, settings.split.query_step, settings.seed
    )
    return f"extractor-{identity}"


def knowledge_base_name(settings: MethodSettings) -> str:
    return knowledge_base_names(settings)[-1]


def knowledge_base_names(settings: MethodSettings) -> list[str]:
    """The folders of a knowledge base: without additions, after each of them, and with its index.

    Every one but the first extends the one before it.
    """
    base = settings.knowledge_base
    embedder = extractor_name(settings) if base.keys == "contrast" else pretrain_name(settings)
    features = extractor_name(settings) if base.features == "contrast" else "pixels"
    identity = fingerprint(
        public_data_identity(settings),
        embedder,
        features,
        settings.split.query_step,
        base.seeds_per_image,
        base.seed,
        base.num_shards,
        base.embed_batch,
        base.variants,
        base.variant_jitter,
    )
    names = [f"knowledge-base-{identity}"]
    for source in settings.more_references:
        names.append(f"knowledge-base-{fingerprint(names[-1], source)}")
    if base.index != "flat":
        shape = [base.index, base.index_lists, base.index_probes, base.index_bytes, base.index_keys]
        if base.index_rerank:  # Names of before know nothing of it.
            shape.append(base.index_rerank)
        names.append(f"knowledge-base-{fingerprint(names[-1], shape, settings.seed)}")
    return names


def load_plain_split(settings: MethodSettings) -> tuple[PublicImages, PublicImages]:
    """Returns (pretrain, reference before it is varied); a pure function of the settings."""
    images = load_public(
        settings.public,
        settings.data_root,
        size=settings.private.size,
        channels=settings.private.channels,
        seed=settings.seed,
    )
    return split_public(images, settings.reference_share)


def load_public_split(settings: MethodSettings) -> tuple[PublicImages, PublicImages]:
    """Returns (pretrain, reference with its variants); a pure function of the settings."""
    pretrain, reference = load_plain_split(settings)
    base = settings.knowledge_base
    return pretrain, with_variants(reference, base.variants, base.variant_jitter, settings.seed)


def load_references(settings: MethodSettings, generation: int) -> PublicImages:
    """Returns the references of a knowledge base, or those that one source adds to it.

    An image that the networks were trained on is never a reference, whatever source it comes from.

    Args:
      generation: 0 for the public data's references, g for those of ``more_references[g - 1]``.
    """
    pretrain, first = load_public_split(settings)
    if generation == 0:
        return first
    base, num_classes = settings.knowledge_base, first.spec.num_classes
    for number, source in enumerate(settings.more_references[:generation], start=1):
        added = load_public(
            [source],
            settings.data_root,
            size=settings.private.size,
            channels=settings.private.channels,
            seed=settings.seed,
        )
        if number == generation:
            break
        num_classes += added.spec.num_classes
    seen = set(content_hashes(pretrain.images))
    fresh = [row for row, one in enumerate(content_hashes(added.images)) if one not in seen]
    if not fresh:
        raise DataError(
            f"data.more_references.{generation - 1} adds nothing: every image of it is among the "
            "pretraining images. Name another source, or a larger count."
        )
    added = added.take(np.array(fresh, np.int64))
    # As in the public data itself, every class of every source is a class of its own.
    spec = replace(added.spec, num_classes=num_classes + added.spec.num_classes)
    offset = PublicImages(images=added.images, labels=added.labels + num_classes, spec=spec)
    return with_variants(offset, base.variants, base.variant_jitter, settings.seed)


def put_folder(
    storage: Storage, write: Callable[[Path], object], *, mark: bool = True, of: str = ""
) -> None:
    """Has ``write`` fill a temporary folder, stores its files and marks the place as whole.

    Without the mark the folder holds what was written and nothing else.

    Args:
      of: the run that the folder belongs to; a public one is its own name's.
    """
    files = {}
    with private_folder() as folder:  # For what is internal as well.
        write(folder)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name, data = path.relative_to(folder).as_posix(), path.read_bytes()
                storage.write(name, data)
                files[name] = sha256_hex(data)
    if mark:
        mark_done(storage, of=of, files=files)


def with_folder(storage: Storage, read: Callable[[Path], T], *, sealed: bool = False) -> T:
    """Fetches the files of a place into a temporary folder and returns what ``read`` makes.

    Args:
      sealed: the place has to be marked as whole; every file is then what it was at that time.
    """
    facts = read_done(storage) if sealed else None
    with private_folder() as folder:
        for name in sealed_names(storage) if sealed else storage.list():
            if name != DONE:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(read_sealed(storage, name, facts or {}))
        try:
            return read(folder)
        except RapidError as error:  # Nobody knows the copy by its name.
            raise type(error)(str(error).replace(str(folder), storage.uri)) from error


def put_denoiser(storage: Storage, denoiser: Denoiser, *, of: str = "") -> None:
    put_folder(storage, lambda folder: save_denoiser(denoiser, folder), of=of)


def get_denoiser(uri: str) -> Denoiser:
    return with_folder(open_storage(uri), load_denoiser, sealed=True)


def put_autoencoder(storage: Storage, autoencoder: Autoencoder) -> None:
    put_folder(storage, lambda folder: save_autoencoder(autoencoder, folder))


def open_autoencoder(settings: MethodSettings, public_uri: str) -> Autoencoder | None:
    """Returns the recipe's autoencoder out of the public store; None where pixels are diffused."""
    if settings.autoencoder is None:
        return None
    place = open_storage(public_uri).child(autoencoder_name(settings))
    return with_folder(place, load_autoencoder, sealed=True)


def put_extractor(storage: Storage, extractor: ContrastExtractor) -> None:
    put_folder(storage, lambda folder: save_extractor(extractor, folder))


def get_extractor(uri: str) -> ContrastExtractor:
    return with_folder(open_storage(uri), load_extractor, sealed=True)


def open_manifest(storage: Storage) -> Manifest:
    """Returns the manifest of a knowledge base; another than it was finished with is refused."""
    try:
        manifest = Manifest.read(storage)
    except ShardError as error:
        if not is_done(storage):
            raise
        raise ShardError(f"{error} {remedy(storage)}") from error
    require_manifest(storage, MANIFEST, manifest.fingerprint)
    return manifest


def put_images(storage: Storage, name: str, images: UInt8Array, labels: Int64Array) -> None:
    """Stores a set of images uint8 [n, C, H, W] with their labels int64 [n]."""
    storage.write(name, pack_arrays({"images": images, "labels": labels}))


def get_images(storage: Storage, name: str) -> tuple[UInt8Array, Int64Array]:
    """Returns what ``put_images`` stored: uint8 [n, C, H, W] and labels int64 [n]."""
    folder, _, file = name.rpartition("/")
    data = read_sealed(storage.child(folder) if folder else storage, file)
    arrays = unpack_arrays(data, f"{storage.uri}/{name}")
    return arrays["images"], arrays["labels"].astype(np.int64)
