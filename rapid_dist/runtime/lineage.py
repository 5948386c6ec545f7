"""Where a model comes from, by hash: public shards, networks, prior, weights, ledger, bundle.

Everything here is public or left the private stages through a charged mechanism, so it may be
hashed. Private data is not: of it there is the declared name and nothing else, for the hash of an
image tells whoever has that image that it was there (P1, P9).
"""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from rapid_dist import __version__
from rapid_dist.methods import artifacts, dp_rdm, private_stages, sampling_stages
from rapid_dist.methods.catalog import has_stage
from rapid_dist.methods.context import RunContext
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.dataset_total import has_secret
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.retrieval.manifest import MANIFEST, Manifest
from rapid_dist.storage import Storage, sha256_hex

LINEAGE = "lineage.json"
# Of the run directory: what it has released, and what was made of that.
OWN_FOLDERS = (
    private_stages.PRIOR,
    private_stages.ADAPTED,
    private_stages.REFINED,
    private_stages.PRIVATE,
    dp_rdm.ANSWERS,
)


def lineage_of(context: RunContext, ledger: Ledger, run: str) -> dict[str, Any]:
    """Returns lineage.json: what the run was made of, every part by its SHA-256."""
    settings = context.settings
    return {
        "format": 1,
        "code": __version__,
        "run": run,
        "method": settings.method,
        "private": {"name": settings.private.name},
        "public": _sources(settings) if has_stage(settings, "pretrain") else [],
        "knowledge_base": _knowledge_base(context),
        "artifacts": {**_public_parts(context), **_own_parts(context.out)},
        "ledger": {
            "dataset": ledger.dataset,
            "head": ledger.head,
            "entries": None if has_secret(ledger) else len(ledger.entries()),
        },
    }


def lineage_bytes(lineage: dict[str, Any]) -> bytes:
    """Returns the file: the same bytes for the same lineage."""
    return json.dumps(lineage, indent=1, sort_keys=True).encode() + b"\n"


def lineage_tags(lineage: dict[str, Any]) -> dict[str, str]:
    """Returns what a run and a model version say of where they come from."""
    base = lineage["knowledge_base"]
    found = {
        "lineage.sha256": sha256_hex(lineage_bytes(lineage)),
        "lineage.run": lineage["run"],
        "lineage.dataset": lineage["private"]["name"],
        "lineage.ledger_head": lineage["ledger"]["head"],
        "lineage.knowledge_base": base.get("manifest", ""),
        "lineage.shards": str(len(base.get("shards", []))) if base else "",
    }
    return {name: value for name, value in found.items() if value}


def _sources(settings: MethodSettings) -> list[dict[str, Any]]:
    """The public data sets by what was asked of them; their content is in the shards' hashes."""
    return [
        {
            "source": source.source,
            "settings": artifacts.fingerprint(source),
            "path": source.path,
            "count": source.count,
            "licence": source.licence,
        }
        for source in (*settings.public, *settings.more_references)
    ]


def _knowledge_base(context: RunContext) -> dict[str, Any]:
    if not has_stage(context.settings, "index"):
        return {}
    name = artifacts.knowledge_base_name(context.settings)
    place = context.public.child(name)
    manifest = Manifest.read(place)
    return {
        "folder": name,
        "manifest": sha256_hex(place.read(MANIFEST)),
        "references": manifest.public_fingerprint,  # Of all their pixels and classes.
        "images": manifest.num_images,
        "entries": manifest.num_entries,
        "shards": [
            {"folder": shard.home or name, "name": shard.name, "sha256": shard.sha256}
            for shard in manifest.shards
        ],
        "index": None if manifest.index is None else asdict(manifest.index),
    }


def _public_parts(context: RunContext) -> dict[str, Any]:
    settings = context.settings
    names = {
        part: name_of(settings)
        for part, stage, name_of in (
            ("autoencoder", "autoencode", artifacts.autoencoder_name),
            ("public denoiser", "pretrain", artifacts.pretrain_name),
            ("extractor", "contrast", artifacts.extractor_name),
            ("conditioned generator", "condition", dp_rdm.conditioned_name),
        )
        if has_stage(settings, stage)
    }
    return {
        part: {"folder": name, "sha256": folder_hash(context.public.child(name))}
        for part, name in names.items()
        if artifacts.is_done(context.public.child(name))
    }


def _own_parts(out: Storage) -> dict[str, Any]:
    parts = {
        name: {"folder": name, "sha256": folder_hash(out.child(name))}
        for name in OWN_FOLDERS
        if artifacts.is_done(out.child(name))
    }
    bundle = out.child(sampling_stages.BUNDLE)
    if bundle.exists("checksums.json"):
        digest = sha256_hex(bundle.read("checksums.json"))  # As in a model's tag bundle.sha256.
        parts["bundle"] = {"folder": sampling_stages.BUNDLE, "sha256": digest}
    return parts


def folder_hash(storage: Storage) -> str:
    """Returns one SHA-256 over the names and contents of all files of a folder."""
    whole = hashlib.sha256()
    for name in storage.list():
        whole.update(f"{name}\0{sha256_hex(storage.read(name))}\n".encode())
    return whole.hexdigest()
