"""Keys are made once, kept to their owner and refused in words."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from rapid_dist.errors import ConfigError, ReleaseError
from rapid_dist.release.signing import (
    check_signature,
    fingerprint_of,
    public_path,
    raw_public_key,
    read_private_key,
    read_public_key,
    read_signature,
    sign,
    to_bytes,
    write_key_pair,
)

CHECKSUMS = "ab" * 32


def test_a_key_pair_is_its_owners_and_belongs_together(tmp_path: Path) -> None:
    fingerprint = write_key_pair(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    key = read_private_key(tmp_path / "key")
    assert read_public_key(public_path(tmp_path / "key")) == raw_public_key(key)
    assert fingerprint_of(raw_public_key(key)) == fingerprint


@pytest.mark.parametrize("there", ["key", "key.pub"])
def test_no_key_is_ever_replaced(there: str, tmp_path: Path) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        write_key_pair(tmp_path / "key")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {there: "mine"}


def test_a_key_that_others_can_read_signs_nothing(tmp_path: Path) -> None:
    write_key_pair(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(ConfigError, match="mode 640"):
        read_private_key(tmp_path / "key")


def test_an_encrypted_key_opens_with_its_passphrase_alone(tmp_path: Path) -> None:
    write_key_pair(tmp_path / "key", "a long one")
    assert b"ENCRYPTED" in (tmp_path / "key").read_bytes()
    read_private_key(tmp_path / "key", "a long one")
    for wrong in ("", "another"):
        with pytest.raises(ConfigError, match="not its passphrase"):
            read_private_key(tmp_path / "key", wrong)


def test_what_is_no_key_of_ours_is_refused_in_words(tmp_path: Path) -> None:
    other = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    for name, content in (("other", other), ("text", b"hello")):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=r"no private key|no Ed25519 key"):
            read_private_key(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_private_key(tmp_path / "nowhere")
    write_key_pair(tmp_path / "key")
    for name in ("key", "text"):  # A private key is no public one.
        with pytest.raises(ConfigError, match="no public key"):
            read_public_key(tmp_path / name)


def test_a_signature_comes_back_as_it_was_written_and_holds(tmp_path: Path) -> None:
    write_key_pair(tmp_path / "key")
    key = read_private_key(tmp_path / "key")
    signature = sign(CHECKSUMS, key, signer="A. Officer", created="2026-03-01")
    assert read_signature(to_bytes(signature)) == signature
    check_signature(signature, CHECKSUMS, raw_public_key(key))
    check_signature(signature, CHECKSUMS, None)
    with pytest.raises(ReleaseError, match="another bundle"):
        check_signature(signature, "cd" * 32, None)


def test_the_twin_a_signature_of_other_words_does_not_hold(tmp_path: Path) -> None:
    write_key_pair(tmp_path / "key")
    key = read_private_key(tmp_path / "key")
    honest = sign(CHECKSUMS, key, signer="A. Officer", created="2026-03-01")
    forged = type(honest)(**{**honest.__dict__, "signer": "B. Other"})
    with pytest.raises(ReleaseError, match="does not hold"):
        check_signature(forged, CHECKSUMS, None)
