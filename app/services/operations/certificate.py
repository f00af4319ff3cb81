"""The certificate that nginx serves https with: asked of nginx itself, so that it is the one that clients see."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import NameOID

TIMEOUT_S = 3.0
EXPIRES_SOON = timedelta(days=14)
"""Whoever renews by machine does so a month before the end: what is left then was not renewed."""


class CertificateUnknown(Exception):
    """Nobody serves https at the address, or not in a way that can be read. One line."""


@dataclass(frozen=True)
class Certificate:
    """What clients are shown. `names`: the host names and addresses that it holds for."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime

    @property
    def is_self_signed(self) -> bool:
        """Whether nobody else vouches for it, so that clients refuse it unless told otherwise."""
        return self.subject == self.issuer

    def time_left(self, now: datetime | None = None) -> timedelta:
        """Until it expires; negative when it has."""
        return self.not_after - (now or datetime.now(UTC))

    def problem(self, now: datetime | None = None) -> str | None:
        """What is wrong with its time, in one line: not valid yet, expired, or about to; None when nothing is."""
        now = now or datetime.now(UTC)
        left = self.time_left(now)
        if now < self.not_before:
            return f"it is not valid before {self.not_before.isoformat(timespec='seconds')}"
        if left <= timedelta(0):
            return f"it expired on {self.not_after.isoformat(timespec='seconds')}"
        if left < EXPIRES_SOON:
            return f"it expires in {left.days} days, on {self.not_after.isoformat(timespec='seconds')}"
        return None


def served_certificate(address: str) -> Certificate:
    """The certificate shown at `address` (host:port); CertificateUnknown where none is."""
    host, _, port = address.rpartition(":")
    # Its dates are what is asked about; whether it can be trusted is for its clients to say.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S) as connection,
            context.wrap_socket(connection) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
    except OSError as error:  # ssl.SSLError is one
        raise CertificateUnknown(f"nobody serves https at {address}: {error}") from error
    if shown is None:
        raise CertificateUnknown(f"no certificate is shown at {address}")
    return read_certificate(shown)


def read_certificate(der: bytes) -> Certificate:
    """A certificate from its DER form; CertificateUnknown for anything else."""
    try:
        found = x509.load_der_x509_certificate(der)
        return Certificate(
            subject=_shown(found.subject),
            issuer=_shown(found.issuer),
            names=_names(found),
            not_before=found.not_valid_before_utc,
            not_after=found.not_valid_after_utc,
        )
    except ValueError as error:
        raise CertificateUnknown(f"the certificate cannot be read: {error}") from error


def _shown(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if common else name.rfc4514_string()


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        holds = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = holds.get_values_for_type(x509.IPAddress)
    return (*holds.get_values_for_type(x509.DNSName), *(str(address) for address in addresses))
