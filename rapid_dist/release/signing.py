"""Ed25519 signatures of a bundle, by a key that its owner holds.

What is signed is the SHA-256 of the checksums, and with it every file. A signature proves who
signed only to somebody who has the public key from elsewhere: ``check_signature`` says whether it
was compared with one.
"""

import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from rapid_dist.errors import ConfigError, ReleaseError

PrivateKey = Ed25519PrivateKey  # What others call it, who need not know the library.

SigningKey: TypeAlias = Ed25519PrivateKey

FORMAT = 1
PASSPHRASE = "RAPID_DIST_KEY_PASSPHRASE"  # Environment variable; without it a key is not encrypted.
_DOMAIN = b"rapid-dist release 1\n"  # A signature made for something else is none here.
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, kw_only=True)
class Signature:
    """signature.json."""

    format: int = FORMAT
    algorithm: str = "Ed25519"
    checksums: str  # SHA-256 of checksums.json.
    signer: str  # What the signer calls himself; the key is what counts.
    created: str  # Date, as the signer says.
    public_key: str  # 32 bytes in hex.
    signature: str = ""  # 64 bytes in hex, of all of the above.

    def message(self) -> bytes:
        """Returns the bytes that are signed."""
        content = asdict(self)
        del content["signature"]
        return _DOMAIN + json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the public key, to be compared by eye."""
        return fingerprint_of(bytes.fromhex(self.public_key))


def fingerprint_of(public_key: bytes) -> str:
    """Returns the SHA-256 of a raw public key in hex."""
    return hashlib.sha256(public_key).hexdigest()


def raw_public_key(key: Ed25519PrivateKey | Ed25519PublicKey) -> bytes:
    """Returns the 32 bytes of a key's public half."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def write_key_pair(path: Path, passphrase: str = "") -> str:
    """Makes a key pair, ``path`` (0600) and ``path``.pub, and returns its fingerprint.

    Raises:
      ConfigError: one of the files is there: a key is never replaced.
    """
    key = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    if public_path(path).exists():
        raise ConfigError(
            f"{public_path(path)} exists. Keep it, and give the new key another name."
        )
    _create(path, pem, 0o600)
    _create(public_path(path), public, 0o644)
    return fingerprint_of(raw_public_key(key))


def public_path(path: Path) -> Path:
    """Returns where the public half of a key is kept."""
    return path.with_name(f"{path.name}.pub")


def read_private_key(path: Path, passphrase: str = "") -> Ed25519PrivateKey:
    """Reads a private key; refuses one that others on this machine can read."""
    try:
        mode, pem = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The key {path} cannot be read ({error.strerror}). Make one with "
            "`rapid-dist release keygen`."
        ) from None
    if mode & _OTHERS:
        raise ConfigError(
            f"The key {path} has mode {stat.S_IMODE(mode):o}: others can use it. Run chmod 600 on "
            "it, or make another if somebody may have read it."
        )
    try:
        key = serialization.load_pem_private_key(pem, passphrase.encode() if passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(
            f"{path} is no private key, or {PASSPHRASE} is not its passphrase. Set that variable, "
            "or unset it for a key without one."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is no Ed25519 key. Make one with `rapid-dist release keygen`.")
    return key


def read_public_key(path: Path) -> bytes:
    """Reads a public key file and returns its 32 bytes."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"The key {path} cannot be read ({error.strerror}).") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            f"{path} is no public key. Give the .pub file that belongs to the signer's key."
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} is no Ed25519 key. Give the .pub file of the signer's key.")
    return raw_public_key(key)


def sign(checksums: str, key: Ed25519PrivateKey, *, signer: str, created: str) -> Signature:
    """Returns the signature of a bundle whose checksums have that SHA-256."""
    unsigned = Signature(
        checksums=checksums, signer=signer, created=created, public_key=raw_public_key(key).hex()
    )
    return Signature(**{**asdict(unsigned), "signature": key.sign(unsigned.message()).hex()})


def to_bytes(signature: Signature) -> bytes:
    """Returns signature.json."""
    return json.dumps(asdict(signature), indent=2).encode() + b"\n"


def read_signature(data: bytes) -> Signature:
    """Reads signature.json as ``to_bytes`` wrote it; anything else is a ``ReleaseError``."""
    try:
        content: dict[str, Any] = json.loads(data)
        if content.keys() != set(Signature.__dataclass_fields__):
            raise ValueError("other fields than a signature has")
        signature = Signature(**content)
        if signature.format != FORMAT or signature.algorithm != "Ed25519":
            raise ValueError(f"format {signature.format}, {signature.algorithm}")
        if not all(isinstance(value, str) for name, value in content.items() if name != "format"):
            raise ValueError("a field that is no text")
    except (ValueError, TypeError, AttributeError) as error:
        raise ReleaseError(f"The signature cannot be read ({error}). Fetch it again.") from None
    return signature


def check_signature(signature: Signature, checksums: str, trusted: bytes | None) -> None:
    """Raises ``ReleaseError`` unless the signature is of these checksums and by the trusted key.

    Args:
      checksums: SHA-256 of the checksums that were compared with the files.
      trusted: the signer's public key, from elsewhere; None proves that the bundle is whole, and
        nothing of who signed it.
    """
    if signature.checksums != checksums:
        raise ReleaseError("The signature is of another bundle. Fetch both again.")
    try:
        public = bytes.fromhex(signature.public_key)
        Ed25519PublicKey.from_public_bytes(public).verify(
            bytes.fromhex(signature.signature), signature.message()
        )
    except (ValueError, InvalidSignature):
        raise ReleaseError("The signature does not hold: it, or what it signs, was changed.") from (
            None
        )
    if trusted is not None and public != trusted:
        raise ReleaseError(
            f"The bundle is signed by the key {signature.fingerprint[:16]}, not by the one that "
            f"was given, {fingerprint_of(trusted)[:16]}. Do not use it."
        )


def _create(path: Path, content: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    except FileExistsError:
        raise ConfigError(f"{path} exists. Keep it, and give the new key another name.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}).") from None
