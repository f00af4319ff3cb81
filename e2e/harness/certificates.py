"""Certificates signed by nobody, of any age."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


def make_certificate(*, valid_for: timedelta = timedelta(days=60)) -> tuple[bytes, bytes]:
    """A certificate for localhost and its key, as PEM; one that expired already when `valid_for` is negative."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    end = datetime.now(UTC) + valid_for
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=90))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def write_certificate(folder: Path, certificate: bytes, key: bytes) -> None:
    """tls.crt and tls.key, each replaced at once as a renewing program does, readable for the container's user."""
    folder.mkdir(exist_ok=True)
    for name, content in (("tls.crt", certificate), ("tls.key", key)):
        new = folder / f"{name}.new"
        new.write_bytes(content)
        new.chmod(0o444)
        new.replace(folder / name)
