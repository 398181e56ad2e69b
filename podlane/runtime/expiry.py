"""Until when the certificates are good that this process uses.

Owns: reading a certificate's end, and the gauge that tells it. Why not by the
`cryptography` package: it would cost each daemon 8 MB for one date. The gauge
tells of what was loaded, not of what lies in the file by now: a daemon that
was not told of its renewed certificate is just what an operator wants to see.
Source: RFC 5280, 4.1 (TBSCertificate, Validity).
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

from podlane.runtime import metrics

_EXPIRY = metrics.gauge(
    "podlane_certificate_expiry_timestamp_seconds",
    "When the first certificate to end ends, of those loaded from a file.",
    ["file"],
)

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x17, 0x18, 0xA0


def loaded(path: str, pem: bytes) -> None:
    """Tell of a file of certificates that is used from now on. What cannot be read is left out."""
    ends = list(expiries(pem))
    if ends:
        _EXPIRY.labels(path).set(min(ends))


def expiries(pem: bytes) -> Iterator[float]:
    """The end of each certificate in a PEM file, in seconds since 1970."""
    for part in pem.decode("ascii", "replace").split(_BEGIN)[1:]:
        try:
            yield _not_after(ssl.PEM_cert_to_DER_cert(_BEGIN + part.partition(_END)[0] + _END))
        except (ValueError, IndexError):
            continue


def _not_after(der: bytes) -> float:
    certificate = _Reader(_Reader(der).next()[1])
    fields = _Reader(certificate.next()[1])
    if fields.peek() == _VERSION:
        fields.next()
    for _ in ("serial number", "signature", "issuer"):
        fields.next()
    validity = _Reader(fields.next()[1])
    validity.next()
    tag, text = validity.next()
    digits = text.decode("ascii").removesuffix("Z")
    if tag == _UTC_TIME:  # years 50 to 99 are those before 2000
        digits = ("19" if digits[:2] >= "50" else "20") + digits
    elif tag != _GENERALIZED_TIME:
        raise ValueError(f"read certificate: expected a time, got tag {tag:#x}")
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()


class _Reader:
    """DER elements one after another."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def peek(self) -> int:
        return self._data[self._at]

    def next(self) -> tuple[int, bytes]:
        """Tag and content."""
        tag, length = self._data[self._at], self._data[self._at + 1]
        begin = self._at + 2
        if length & 0x80:
            octets = length & 0x7F
            length = int.from_bytes(self._data[begin : begin + octets], "big")
            begin += octets
        self._at = begin + length
        return tag, self._data[begin : self._at]
