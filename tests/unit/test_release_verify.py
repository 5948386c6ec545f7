"""A released bundle: whole, signed and one with itself, or refused."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rapid_dist.errors import ReleaseError
from rapid_dist.release.assemble import assemble
from rapid_dist.release.bundle import open_bundle
from rapid_dist.release.checksums import CHECKSUMS, SIGNATURE, write_checksums
from rapid_dist.release.passport import schema_faults
from rapid_dist.release.signing import (
    fingerprint_of,
    public_path,
    raw_public_key,
    read_private_key,
    sign,
    to_bytes,
    write_key_pair,
)
from rapid_dist.release.verify import verify_release
from tests.releases import new_key, tiny_parts

FILES = {
    CHECKSUMS, SIGNATURE, "README.md", "code/rapid_dist/sampler.py", "denoiser.json", "model.json",
    "passport.html", "passport.json", "passport.schema.json", "prior.npz", "references.npz",
    "sbom.json",
    "public/denoiser.json", "public/unet/config.json",
    "public/unet/diffusion_pytorch_model.safetensors", "sampler.py", "synthetic/index.html",
    "synthetic/synthetic.npz", "synthetic/images/000/000000.png",
    "synthetic/images/000/000002.png", "synthetic/images/001/000001.png", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Release:
    """A signed bundle, and the key that signed it."""

    bundle: Path
    key: Ed25519PrivateKey
    public: Path

    def resigned(self, key: Ed25519PrivateKey, signer: str = "A. Officer") -> None:
        """Does what somebody would who has a key and wants the bundle to look whole."""
        signature = sign(write_checksums(self.bundle), key, signer=signer, created="2026-03-01")
        (self.bundle / SIGNATURE).write_bytes(to_bytes(signature))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    write_key_pair(folder / "key.pem")
    key = read_private_key(folder / "key.pem")
    parts = tiny_parts(folder, fingerprint_of(raw_public_key(key)), synthetic=3)
    (folder / "bundle").mkdir()
    assemble(parts, key, folder / "bundle")
    return Release(bundle=folder / "bundle", key=key, public=public_path(folder / "key.pem"))


@pytest.fixture
def release(made: Release, tmp_path: Path) -> Release:
    """A copy to tamper with."""
    copy = Path(shutil.copytree(made.bundle, tmp_path / "bundle"))
    return Release(bundle=copy, key=made.key, public=made.public)


def _names(bundle: Path) -> set[str]:
    return {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}


def test_a_release_has_these_files_and_no_other(made: Release) -> None:
    assert _names(made.bundle) == FILES


def test_a_release_is_verified_by_its_key_and_opens_as_a_bundle(made: Release) -> None:
    verified = verify_release(made.bundle, made.public)
    assert verified.key_checked
    assert verified.signature.signer == "A. Officer"
    assert schema_faults(verified.passport) == []
    assert open_bundle(made.bundle).facts.name == "tiny"


def test_without_a_key_the_verifier_says_that_anybody_may_have_signed(made: Release) -> None:
    assert not verify_release(made.bundle).key_checked


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_changed_byte_is_noticed_in(name: str, release: Release) -> None:
    path = release.bundle / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ReleaseError):
        verify_release(release.bundle, release.public)


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_missing_file_is_noticed(name: str, release: Release) -> None:
    (release.bundle / name).unlink()
    with pytest.raises(ReleaseError):
        verify_release(release.bundle, release.public)


def test_a_file_that_was_added_is_noticed(release: Release) -> None:
    (release.bundle / "code" / "rapid_dist" / "more.py").write_text("")
    with pytest.raises(ReleaseError, match=r"more\.py is unlisted"):
        verify_release(release.bundle, release.public)


def test_new_checksums_over_changed_files_are_noticed(release: Release) -> None:
    (release.bundle / "README.md").write_text("epsilon 0.1")
    write_checksums(release.bundle)
    with pytest.raises(ReleaseError, match="of another bundle"):
        verify_release(release.bundle, release.public)


def test_a_signature_by_another_key_is_noticed(release: Release) -> None:
    release.resigned(new_key())
    with pytest.raises(ReleaseError, match="not by the one that was given"):
        verify_release(release.bundle, release.public)


def test_another_key_under_the_signers_name_contradicts_the_passport(release: Release) -> None:
    release.resigned(new_key())
    with pytest.raises(ReleaseError, match="another signer"):
        verify_release(release.bundle)


def test_a_missing_signature_is_noticed(release: Release) -> None:
    (release.bundle / SIGNATURE).unlink()
    with pytest.raises(ReleaseError, match="not signed"):
        verify_release(release.bundle, release.public)


def test_a_signature_of_another_bundle_is_noticed(release: Release) -> None:
    signature = sign("0" * 64, release.key, signer="A. Officer", created="2026-03-01")
    (release.bundle / SIGNATURE).write_bytes(to_bytes(signature))
    with pytest.raises(ReleaseError, match="another bundle"):
        verify_release(release.bundle, release.public)


@pytest.mark.parametrize("field", ["signer", "created", "public_key", "algorithm", "checksums"])
def test_no_field_of_the_signature_can_be_changed(field: str, release: Release) -> None:
    content = json.loads((release.bundle / SIGNATURE).read_text())
    content[field] = "00" * 32
    (release.bundle / SIGNATURE).write_text(json.dumps(content))
    with pytest.raises(ReleaseError):
        verify_release(release.bundle)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', "null", "\x00"])
def test_a_signature_that_is_none_is_refused_in_words(content: str, release: Release) -> None:
    (release.bundle / SIGNATURE).write_text(content)
    with pytest.raises(ReleaseError, match="signature"):
        verify_release(release.bundle)


@pytest.mark.parametrize("name", ["prior.npz", CHECKSUMS, SIGNATURE, "unet"])
def test_a_link_to_the_very_same_content_is_refused(name: str, release: Release) -> None:
    path, moved = release.bundle / name, release.bundle.parent / "moved"
    shutil.move(path, moved)
    path.symlink_to(moved, target_is_directory=moved.is_dir())
    with pytest.raises(ReleaseError, match=r"link|not signed"):
        verify_release(release.bundle, release.public)


@pytest.mark.parametrize("place", ["../outside", "/etc/hostname", "unet/../../outside"])
def test_checksums_that_lead_out_of_the_bundle_are_refused(place: str, release: Release) -> None:
    (release.bundle.parent / "outside").write_text("x")
    listed = json.loads((release.bundle / CHECKSUMS).read_text())
    listed[place] = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    (release.bundle / CHECKSUMS).write_text(json.dumps(listed))
    with pytest.raises(ReleaseError, match="is missing"):
        verify_release(release.bundle, release.public)


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("model.json", '"delta": 0.0001', '"delta": 1e-09', "differ in delta"),
        ("model.json", '"relation": "zero_out"', '"relation": "none"', "differ in relation"),
        ("passport.json", '"budget": 5.0', '"budget": 0.5', "above its budget"),
        ("passport.json", '"name": "A. Officer"', '"name": "B."', "another signer"),
        ("passport.json", '"questions": 2', '"questions": 3', "of another passport"),
        ("code/rapid_dist/sampler.py", "pass", "pass  # more", "is not the code"),
        ("passport.json", '"passed": true', '"passed": false', "not complete"),
        ("passport.json", '"format": 1', '"format": 2', "not complete"),
    ],
)
def test_a_signed_bundle_that_contradicts_itself_is_refused(
    name: str, old: str, new: str, said: str, release: Release
) -> None:
    """As its own signer would make it by mistake: every checksum and the signature hold."""
    _edit(release.bundle / name, old, new)
    release.resigned(release.key)
    with pytest.raises(ReleaseError, match=said):
        verify_release(release.bundle, release.public)


def test_signing_again_what_was_not_changed_is_fine(release: Release) -> None:
    """The twin of the tests above: it is the edit that is noticed, not the new signature."""
    release.resigned(release.key)
    assert verify_release(release.bundle, release.public).key_checked


def test_a_release_that_holds_internal_figures_is_not_finished(tmp_path: Path) -> None:
    key = new_key()
    quality = {"notice": "Internal.", "samples": {"accuracy": 0.918273645}}
    parts = tiny_parts(
        tmp_path, fingerprint_of(raw_public_key(key)), internal=(quality,), public_network=None
    )
    bundle = parts.bundle
    content = json.loads((bundle / "model.json").read_text())
    content["privacy"]["utility"] = 0.918273645
    (bundle / "model.json").write_text(json.dumps(content))
    write_checksums(bundle)
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ReleaseError, match=r"model\.json holds 1 figures"):
        assemble(parts, key, tmp_path / "bundle")
    assert not (tmp_path / "bundle" / SIGNATURE).exists()
