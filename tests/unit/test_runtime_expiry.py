"""When certificates end, read without the package that makes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from podlane.runtime import expiry, metrics


def certificate(end: datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "netd@node1")])
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=365))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM)


SOON, LATER = datetime(2027, 3, 4, 5, 6, 7, tzinfo=UTC), datetime(2051, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("end", [SOON, LATER], ids=["UTCTime", "GeneralizedTime"])
def test_the_end_of_a_certificate(end: datetime) -> None:
    assert list(expiry.expiries(certificate(end))) == [end.timestamp()]


def test_of_a_bundle_the_first_end_counts_and_what_is_no_certificate_is_passed_over() -> None:
    broken = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    bundle = certificate(LATER) + broken + b"a remark\n" + certificate(SOON)
    assert list(expiry.expiries(bundle)) == [LATER.timestamp(), SOON.timestamp()]
    expiry.loaded("/etc/podlane/pki/ca.pem", bundle)
    name = "podlane_certificate_expiry_timestamp_seconds"
    assert metrics.value(name, file="/etc/podlane/pki/ca.pem") == SOON.timestamp()


def test_a_file_without_a_certificate_is_not_shown() -> None:
    expiry.loaded("/etc/podlane/pki/empty.pem", b"")
    assert metrics.value("podlane_certificate_expiry_timestamp_seconds", file="/etc/podlane/pki/empty.pem") is None
