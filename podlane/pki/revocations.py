"""The list of revoked certificates (a CRL): how it is made, read and checked.

Owns: every use of X.509 lists. Invariants: a list counts if an authority that is trusted has
signed it, or one that such a one has cross-signed, as with certificates (ADR 0021); of two
the one with the greater number is the newer; it holds until there is a newer one, for a list
that ran out would shut nobody out, or everybody. It names the certificates of all authorities
a cluster has had, by serial number alone, which are random and of 159 bits: so etcd compares
them, and the key of an authority that was replaced is gone. See docs/adr/0025.
Source: RFC 5280, 5; etcd 3.4, pkg/transport/listener_tls.go, which reads the first PEM block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from podlane.errors import PodlaneError
from podlane.pki import certificates as c

LIST_FILE = "crl.pem"
"""Beside ca.pem, where a folder of keys has it."""

_BEGIN = "-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class RevocationList:
    number: int
    serials: frozenset[int]


def sign(
    revoked: Mapping[int, datetime], *, number: int, issuer: x509.Certificate, issuer_key: c.PrivateKey, now: datetime
) -> str:
    """`revoked` says of each serial since when."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - c.SKEW)
        .next_update(issuer.not_valid_after_utc)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial, since in sorted(revoked.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def read(text: str) -> RevocationList:
    """What it says, whoever has signed it. Raises PodlaneError."""
    found = _parsed(text)
    return RevocationList(_number(found), frozenset(each.serial_number for each in found))


def checked(text: str, trusted: Iterable[x509.Certificate], now: datetime) -> RevocationList:
    """What it says, if one of the `trusted` stands behind it. Raises PodlaneError."""
    found, anchors = _parsed(text), list(trusted)
    crosses = [each for each in _certificates(text) if _vouched_for(each, anchors, now)]
    if not any(found.is_signature_valid(each.public_key()) for each in (*anchors, *crosses)):  # type: ignore[arg-type]
        raise PodlaneError(
            f"check list of revoked certificates: signed by {c.common_name(found.issuer)}, no authority that is trusted"
        )
    return RevocationList(_number(found), frozenset(each.serial_number for each in found))


def _parsed(text: str) -> x509.CertificateRevocationList:
    try:
        return x509.load_pem_x509_crl(text.encode())
    except ValueError as error:
        raise PodlaneError(f"read list of revoked certificates: {error}") from error


def _number(found: x509.CertificateRevocationList) -> int:
    try:
        return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (x509.ExtensionNotFound, ValueError) as error:
        raise PodlaneError(f"read list of revoked certificates: it has no number: {error}") from error


def _certificates(text: str) -> list[x509.Certificate]:
    try:
        return c.read_certificates(text) if _BEGIN in text else []
    except ValueError as error:
        raise PodlaneError(f"read list of revoked certificates: {error}") from error


def _vouched_for(certificate: x509.Certificate, anchors: Iterable[x509.Certificate], now: datetime) -> bool:
    in_time = certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc
    return in_time and "authority" in c.uses(certificate) and any(c.is_signed_by(certificate, each) for each in anchors)
