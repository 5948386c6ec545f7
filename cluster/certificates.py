"""Makes an authority of one's own and a certificate for each node, for Ray's TLS between nodes.

    python cluster/certificates.py --folder tls 10.0.0.1 10.0.0.2 10.0.0.3

writes ca.pem, and for every host HOST.pem and HOST.key (0600). Each node gets ca.pem and its own
two files, and these variables before `ray start`:

    RAY_USE_TLS=1 RAY_TLS_CA_CERT=ca.pem RAY_TLS_SERVER_CERT=HOST.pem RAY_TLS_SERVER_KEY=HOST.key

The authority's own key is kept in ca.key (0600) to make certificates for more nodes by the same
command; whoever has it can join the cluster, so it belongs on no node.
"""

import argparse
import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 365


def make(folder: Path, hosts: list[str], *, days: int = DAYS) -> None:
    """Writes a certificate for every host, and the authority's if there is none yet.

    Args:
      hosts: addresses, or names, by which other nodes reach them.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / "ca.key").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        name = _named("rapid-dist cluster")
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
            key_encipherment=False, data_encipherment=False, key_agreement=False,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        own = (
            _certificate(name, name, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        _write(folder / "ca.key", _private(key), 0o600)
        _write(folder / "ca.pem", own.public_bytes(serialization.Encoding.PEM), 0o644)
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    for host in hosts:
        key = ec.generate_private_key(ec.SECP256R1())
        names = [_alternative(name) for name in dict.fromkeys([host, "localhost", "127.0.0.1"])]
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        own = (
            _certificate(_named(host), authority.subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)  # Every node is both.
            .sign(signer, hashes.SHA256())
        )
        _write(folder / f"{host}.key", _private(key), 0o600)
        _write(folder / f"{host}.pem", own.public_bytes(serialization.Encoding.PEM), 0o644)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # Clocks differ.
        .not_valid_after(now + timedelta(days=days))
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("hosts", nargs="+", metavar="HOST", help="address of a node")
    parser.add_argument("--folder", type=Path, default=Path("tls"))
    parser.add_argument("--days", type=int, default=DAYS, help="until they expire")
    asked = parser.parse_args()
    make(asked.folder, asked.hosts, days=asked.days)
    print(f"{asked.folder}/ca.pem and a certificate for each of {len(asked.hosts)} hosts")


if __name__ == "__main__":
    main()
