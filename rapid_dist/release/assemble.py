"""Puts a released bundle together, signs it and checks it as a stranger would.

    bundle/
      model.json, denoiser.json, unet/, prior.npz, references.npz    as the run made them
      public/                 the public network, in the same layout; what a query needs besides
      sampler.py, code/       the sampler as an MLflow model from code, and the code it runs
      README.md               the model card
      passport.json, passport.html, passport.schema.json
      sbom.json               what it was made with: packages, versions, licences
      synthetic/              if asked for: npz, PNG files, a page
      checksums.json          of every file above
      signature.json          of the checksums

It opens as the run's own bundle does (``Generator.open``): what is beside the model is
listed in the checksums and otherwise in nobody's way.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rapid_dist.data.images import Int64Array, UInt8Array
from rapid_dist.diffusion.denoiser import Denoiser, save_denoiser
from rapid_dist.errors import ReleaseError
from rapid_dist.release import synthetic
from rapid_dist.release.bundle import open_bundle
from rapid_dist.release.checksums import CHECKSUMS, SIGNATURE, write_checksums
from rapid_dist.release.generator import Generator
from rapid_dist.release.model_card import CARD, model_card
from rapid_dist.release.model_code import MODEL_CODE
from rapid_dist.release.needed import PUBLIC
from rapid_dist.release.passport import PAGE, PASSPORT, SCHEMA, to_bytes
from rapid_dist.release.passport_content import PassportInputs, passport_of
from rapid_dist.release.passport_page import render_passport
from rapid_dist.release.sbom import SBOM, bill_of_materials
from rapid_dist.release.sbom import to_bytes as sbom_bytes
from rapid_dist.release.scan import internal_traces
from rapid_dist.release.signing import sign
from rapid_dist.release.signing import to_bytes as signature_bytes
from rapid_dist.release.verify import CODE, Verified, verify_release

PACKAGE = Path(__file__).parent.parent
_SOURCE = {".py", ".yaml", ".json", ".typed"}


# (bundle, labels int64 [n], seed) -> images uint8 [n, C, S, S] of ids from 0.
Draw = Callable[[Path, Int64Array, int], UInt8Array]


def draw_alone(bundle: Path, labels: Int64Array, seed: int) -> UInt8Array:
    """Draws in this process; whoever has workers has them draw the same."""
    return Generator.open(bundle).generate(labels, seed=seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What a release is put together from."""

    bundle: Path  # As the run made it; it has been verified.
    public_network: Denoiser | None
    passport: PassportInputs  # Without its synthetic data set.
    internal: Sequence[Mapping[str, Any]]  # Internal results, of which nothing may leave.
    synthetic: int = 0
    synthetic_seed: int = 0
    draw: Draw = draw_alone
    package: Path = PACKAGE


def assemble(parts: Parts, key: Ed25519PrivateKey, target: Path) -> Verified:
    """Fills ``target``, an empty folder, and returns what a verifier finds in it.

    Raises:
      ReleaseError: the finished folder holds internal results or does not verify.
    """
    shutil.copytree(parts.bundle, target, dirs_exist_ok=True)
    (target / CHECKSUMS).unlink()
    if parts.public_network is not None and not (target / PUBLIC).exists():
        save_denoiser(parts.public_network, target / PUBLIC)
    _copy_code(parts.package, target / CODE)
    (target / "sampler.py").write_text(MODEL_CODE, encoding="utf-8")
    shutil.copyfile(SCHEMA, target / SCHEMA.name)
    inputs, drawn = parts.passport, None
    if parts.synthetic:
        told = {
            "images": parts.synthetic, "seed": parts.synthetic_seed, "folder": synthetic.FOLDER,
        }  # fmt: skip
        inputs = replace(inputs, synthetic=told)
        labels = synthetic.labels_of(parts.synthetic, inputs.facts.class_names)
        images = parts.draw(parts.bundle, labels, parts.synthetic_seed)
        drawn = synthetic.write_synthetic(target, images, labels)
    passport = passport_of(inputs)
    stored = to_bytes(passport)
    (target / PASSPORT).write_bytes(stored)
    page = render_passport(passport, hashlib.sha256(stored).hexdigest())
    (target / PAGE).write_text(page, encoding="utf-8")
    (target / CARD).write_text(model_card(passport), encoding="utf-8")
    made_with = bill_of_materials(inputs.created, inputs.code_version, inputs.code_hash)
    (target / SBOM).write_bytes(sbom_bytes(made_with))
    if drawn is not None:
        about = synthetic.synthetic_page(passport, drawn)
        (target / synthetic.FOLDER / "index.html").write_text(about, encoding="utf-8")
    traces = internal_traces(target, parts.internal)
    if traces:
        raise ReleaseError(
            f"The finished bundle holds what looks internal: {'; '.join(traces)}. Nothing is "
            "released."
        )
    checksums = write_checksums(target)
    signature = sign(checksums, key, signer=inputs.signer, created=inputs.created)
    (target / SIGNATURE).write_bytes(signature_bytes(signature))
    open_bundle(target)  # As whoever samples from it will.
    return verify_release(target)


def _copy_code(package: Path, target: Path) -> None:
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix in _SOURCE:
            place = target / path.relative_to(package)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
