"""A client's side of the join service: one request over TLS to a server that is known.

Owns: by what a service is known. Invariants: before a secret is sent, the other end has
shown the certificate of a join service (CN join@…, O podlane:servers) signed by an authority
we trust: the one whose hash is in the token, or those of our bundle. By what name or address
it was reached does not matter: it is a server of this cluster and no node could say so.
Answers are bounded in size and time.
"""

from __future__ import annotations

import http.client
import ssl
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from cryptography import x509

from podlane.errors import Invalid, PodlaneError, StoreUnavailable, UsageError
from podlane.host.joinmessages import BUNDLE, MAX_ANSWER, PORT, Problem
from podlane.host.jointokens import ca_hashes
from podlane.pki import certificates as c
from podlane.pki.certificates import SKEW
from podlane.pki.profile import SERVERS, Profile

TIMEOUT = 30.0
"""Seconds for each step: a service enrols one host at a time."""

_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED

_ANOTHER_MAY = 503
"""HTTP status of a service that cannot do it now, where another may."""

T = TypeVar("T")


class Unreachable(StoreUnavailable):
    """Nobody answered, or a service that is in trouble: another may."""


@dataclass(frozen=True, slots=True)
class ServiceUrl:
    """Where a join service is."""

    host: str
    port: int = PORT

    def __str__(self) -> str:
        return f"https://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> ServiceUrl:
        """`https://10.0.0.1:10261`; scheme and port may be left out. Raises UsageError."""
        problem = UsageError(f'join service: expected https://HOST[:{PORT}], got "{text}"')
        try:
            url = urlsplit(text if "://" in text else f"https://{text}")
            port = PORT if url.port is None else url.port
        except ValueError as error:
            raise problem from error
        if url.scheme != "https" or not url.hostname or not port or url.path.strip("/") or url.query or url.username:
            raise problem
        return cls(url.hostname, port)


def authority_of(url: ServiceUrl, ca_hash: str, now: datetime) -> str:
    """The authority's certificate, from a server that nobody vouches for: known by its hash. Raises PodlaneError."""
    status, body, told = _ask(url, _trusting_nobody(), "GET", BUNDLE, b"")
    if status != 200:
        raise PodlaneError(f"{url}: {_problem(body) or f'HTTP status {status}'}; is this the join service?")
    _check_clock(url, told, now)
    try:
        text = body.decode("ascii")
        hashes, found = ca_hashes(text), c.read_certificates(text)
    except (PodlaneError, ValueError) as error:
        raise PodlaneError(f"{url}: it gives no certificate of an authority; is this the join service?") from error
    for each, certificate in zip(hashes, found, strict=True):
        if each == ca_hash:
            return c.certificate_pem(certificate)
    raise PodlaneError(
        f"{url}: its authority is not the one of the token (it has {hashes[0][:8]}…, the token says {ca_hash[:8]}…): "
        "this is another cluster's server, somebody in between, or the authority was replaced since the token was made"
    )


def trusting(bundle_pem: str, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """For a client that trusts these authorities, and shows a certificate if it has one. Raises PodlaneError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # see the module
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cadata=bundle_pem)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise PodlaneError(f"read certificates: {error}") from error
    return context


def call(url: ServiceUrl, context: ssl.SSLContext, path: str, message: object, answer: type[T]) -> T:
    """POST a message. Raises Unreachable, PodlaneError with what the service says."""
    status, body, _ = _ask(url, context, "POST", path, msgspec.json.encode(message))
    if status == _ANOTHER_MAY:
        raise Unreachable(f"{url}: {_problem(body)}")
    if status != 200:
        raise PodlaneError(_problem(body) or f"{url}: HTTP status {status}")
    try:
        return msgspec.json.decode(body, type=answer)
    except msgspec.DecodeError as error:
        raise PodlaneError(f"{url}: the answer cannot be read ({error}); is the server of the same version?") from error


def _trusting_nobody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _ask(
    url: ServiceUrl, context: ssl.SSLContext, method: str, path: str, body: bytes
) -> tuple[int, bytes, datetime | None]:
    """Status, body, and what time the server has."""
    connection = http.client.HTTPSConnection(url.host, url.port, timeout=TIMEOUT, context=context)
    with closing(connection):
        try:
            connection.connect()
            if context.verify_mode == ssl.CERT_REQUIRED:
                _check_service(url, connection.sock)
            connection.request(method, path, body or None, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read(MAX_ANSWER + 1)
        except ssl.SSLCertVerificationError as error:
            raise PodlaneError(f"{url}: {_unverified(error)}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{url}: {_cause(error)}") from error
    if len(text) > MAX_ANSWER:
        raise PodlaneError(f"{url}: the answer is longer than {MAX_ANSWER} bytes; is this the join service?")
    told: datetime | None = None
    with suppress(ValueError, TypeError):
        told = parsedate_to_datetime(response.headers.get("Date", ""))
    return response.status, text, told


def _check_service(url: ServiceUrl, connection: object) -> None:
    """That the certificate, whose signature was checked, is a join service's."""
    assert isinstance(connection, ssl.SSLSocket)
    shown = profile_of(connection.getpeercert(binary_form=True) or b"")
    if shown is None or not shown.common_name.startswith("join@") or shown.organization != SERVERS:
        raise PodlaneError(f'{url}: it is "{shown.common_name if shown else "?"}" and not a join service')


def profile_of(der: bytes) -> Profile | None:
    """What the other end's certificate says; None when it is none of Podlane's."""
    try:
        return c.profile_of(x509.load_der_x509_certificate(der))
    except (ValueError, Invalid):
        return None


def _check_clock(url: ServiceUrl, told: datetime | None, now: datetime) -> None:
    """Whoever is too far behind would not take the certificates he gets for valid, after the token was used."""
    if told is None:
        return
    behind = told.astimezone(UTC) - now
    if behind >= SKEW:
        minutes = int(behind.total_seconds() // 60)
        raise PodlaneError(f"{url}: this host's clock is {minutes} minutes behind the server's; set it and try again")


def _unverified(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _NOT_YET_VALID:
        return "its certificate is not valid yet by this host's clock: is the clock behind?"
    if error.verify_code == _EXPIRED:
        return "its certificate has expired by this host's clock: is the clock ahead? else `podlane host renew` there"
    return f"its certificate is not by the authority we trust ({error.verify_message})"


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:.0f} s"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}; is this the join service?"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _problem(body: bytes) -> str:
    with suppress(msgspec.DecodeError):
        return msgspec.json.decode(body, type=Problem).error
    return ""
