"""Checks a released bundle offline: no network, no registry, no vendor of the training.

    verified = verify_release(Path("bundle"), Path("signer.pub"))

Files against checksums, checksums against the signature, the signature against the signer's key,
the passport against its schema, the bill of materials against the passport, and what the bundle
says in two places against itself.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapid_dist.errors import CheckpointError, ReleaseError
from rapid_dist.installed import hash_of
from rapid_dist.release.checksums import SIGNATURE, verify_checksums
from rapid_dist.release.needed import needed_files
from rapid_dist.release.passport import PAGE, PASSPORT, schema_faults
from rapid_dist.release.sbom import SBOM, sbom_faults
from rapid_dist.release.signing import Signature, check_signature, read_public_key, read_signature

CODE = "code/rapid_dist"
# What model.json says of the claim, and where the passport says it.
_SAID_TWICE = {
    "delta": ("claim", "delta"),
    "relation": ("claim", "relation"),
    "unit": ("claim", "unit"),
    "run": ("ledger", "run"),
}


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A bundle that is whole and signed."""

    checksums: str  # SHA-256, which stands for every file.
    signature: Signature
    key_checked: bool  # Against a key from elsewhere; otherwise anybody may have signed.
    passport: Mapping[str, Any]


def verify_release(directory: Path, key: Path | None = None) -> Verified:
    """Returns what a bundle states, once all of it has been checked.

    Args:
      key: the signer's public key, which must not come from the bundle.

    Raises:
      ReleaseError: it is not a bundle that was released, or not by this key.
    """
    trusted = None if key is None else read_public_key(key)
    if not directory.is_dir():
        raise ReleaseError(f"{directory} is no folder. Give the bundle's.")
    try:
        checksums = verify_checksums(directory)
    except CheckpointError as error:
        raise ReleaseError(str(error)) from None
    signature = _signature_of(directory)
    check_signature(signature, checksums, trusted)
    passport = _passport_of(directory)
    faults = [*_disagreements(directory, passport, signature)]
    if faults:
        raise ReleaseError(f"The bundle {directory} contradicts itself: {'; '.join(faults)}.")
    return Verified(
        checksums=checksums, signature=signature, key_checked=key is not None, passport=passport
    )


def _signature_of(directory: Path) -> Signature:
    path = directory / SIGNATURE
    if path.is_symlink() or not path.is_file():
        raise ReleaseError(
            f"The bundle {directory} is not signed: it has no {SIGNATURE}. Nothing "
            "says that it was released."
        )
    return read_signature(path.read_bytes())


def _passport_of(directory: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((directory / PASSPORT).read_bytes())
    except (OSError, ValueError) as error:
        raise ReleaseError(
            f"The bundle {directory} has no readable {PASSPORT} ({error})."
        ) from None
    faults = schema_faults(content)
    if faults:
        raise ReleaseError(f"{PASSPORT} of {directory} is not complete: {'; '.join(faults)}.")
    return content


def _disagreements(directory: Path, passport: Mapping[str, Any], signature: Signature) -> list[str]:
    """Returns where two files of the bundle say different things; its signer's mistakes."""
    faults = []
    try:
        model = json.loads((directory / "model.json").read_bytes())
        stated = model["privacy"]
        missing = [name for name in needed_files(model) if not (directory / name).is_file()]
        faults += [f"model.json needs {name}, which is not there" for name in missing]
        if model["source"] != passport["model"]["starts_from"]:
            faults.append(f"model.json and {PASSPORT} differ in what sampling starts from")
        claim = passport["claim"]
        if stated["epsilon"] != claim["epsilon"]:
            faults.append(f"model.json and {PASSPORT} differ in epsilon")
        for name, (part, field) in _SAID_TWICE.items():
            if stated[name] != passport[part][field]:
                faults.append(f"model.json and {PASSPORT} differ in {name}")
    except (OSError, ValueError, KeyError, TypeError):
        faults.append("model.json states no privacy")
    if passport["claim"]["run_epsilon"] > passport["claim"]["budget"]:
        faults.append("epsilon is above its budget")
    if hash_of(directory / CODE) != passport["code"]["sha256"]:
        faults.append(f"{CODE} is not the code that {PASSPORT} names")
    faults += _sbom_faults(directory, passport)
    signer = (passport["signer"]["name"], passport["signer"]["key"])
    if signer != (signature.signer, signature.fingerprint):
        faults.append(f"{PASSPORT} names another signer than the signature")
    digest = hashlib.sha256((directory / PASSPORT).read_bytes()).hexdigest()
    page = directory / PAGE
    if not page.is_file() or digest not in page.read_text(encoding="utf-8", errors="replace"):
        faults.append(f"{PAGE} is of another passport")
    return faults


def _sbom_faults(directory: Path, passport: Mapping[str, Any]) -> list[str]:
    path = directory / SBOM
    if not path.is_file():
        # Bundles of before had none, and their code did not know of one.
        knows = (directory / CODE / "release" / "sbom.py").is_file()
        return [f"there is no {SBOM}"] if knows else []
    try:
        return sbom_faults(json.loads(path.read_bytes()), passport)
    except ValueError:
        return [f"{SBOM} is no JSON"]
