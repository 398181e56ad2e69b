"""Who may ask the agent's API, and what its port shows them.

Owns: the two answers. `OperatorGuard`: certificates of the cluster's authority
both ways, the other side's for OPERATORS and not revoked (docs/adr/0021, 0025). `TokenGuard`: the agent's
own certificate and the cluster's bearer token, where there is no authority
(docs/adr/0018). Invariants: with certificates a token counts for nothing; renewed
files are used from the next connection on, and files that cannot be used leave
what was there; nobody is let in by resuming a session, so whoever connects has been
checked against today's files.
"""

from __future__ import annotations

import hmac
import os
import ssl
from collections.abc import Callable, Container
from pathlib import Path
from typing import Protocol

from podlane.errors import PodlaneError
from podlane.pki.profile import OPERATORS
from podlane.runtime import expiry
from podlane.runtime.fileversions import FileVersions
from podlane.runtime.log import get_logger
from podlane.runtime.wire import Subject
from scheduler.agent.certificate import Certificate

UNKNOWN = "the cluster's bearer token is required"


class Refused(PodlaneError):
    """A request that cannot be answered; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Guard(Protocol):
    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        ...

    def check(self, subject: Subject, authorization: str) -> None:
        """`subject` of the certificate that was shown, and the header. Raises Refused."""
        ...


class TokenGuard:
    """`token` gives the token as of now; while it is empty everybody is refused."""

    def __init__(self, certificate: Certificate, token: Callable[[], str]) -> None:
        self._certificate = certificate
        self._token = token

    def context(self) -> ssl.SSLContext:
        return self._certificate.context

    def check(self, subject: Subject, authorization: str) -> None:
        del subject
        wanted = self._token()
        # in constant time, and never equal to an empty token
        right = hmac.compare_digest(authorization.encode("utf-8", "replace"), f"Bearer {wanted}".encode())
        if not wanted or not right:
            raise Refused(401, UNKNOWN)


class OperatorGuard:
    """From PEM files; `revoked` are serial numbers, as of now. Raises PodlaneError when the files cannot be used."""

    def __init__(self, certfile: Path, keyfile: Path, cafile: Path, revoked: Container[int] = ()) -> None:
        self._files = (certfile, keyfile, cafile)
        self._revoked = revoked
        self._told: set[int] = set()
        self._versions = FileVersions(self._files)
        try:
            self._context = self._load()
        except OSError as error:
            raise PodlaneError(f"load certificate of the agent's API: {_cause(error, self._files)}") from error

    def context(self) -> ssl.SSLContext:
        if self._versions.changed():
            try:
                self._context = self._load()
                get_logger("agent-api").info("certificates read anew", certfile=str(self._files[0]))
            except OSError as error:
                cause = _cause(error, self._files)
                get_logger("agent-api").warning("certificates not read, the ones before go on", error=cause)
        return self._context

    def check(self, subject: Subject, authorization: str) -> None:
        del authorization
        if subject.organization != OPERATORS:
            raise Refused(
                403,
                f'certificate of "{subject.name}": expected organization {OPERATORS}, got '
                f'"{subject.organization}"; the agent\'s API is for operators only',
            )
        if subject.serial in self._revoked:
            self._tell_once(subject)
            raise Refused(403, f'certificate of "{subject.name}": it is revoked (serial number {subject.serial:x})')

    def _tell_once(self, subject: Subject) -> None:
        """Of each certificate, or whoever holds it could fill the log."""
        if subject.serial not in self._told:
            self._told.add(subject.serial)
            log = get_logger("agent-api")
            log.warning("a revoked certificate was shown", name=subject.name, serial=f"{subject.serial:x}")

    def _load(self) -> ssl.SSLContext:
        """Raises OSError, which an SSLError is."""
        certfile, keyfile, cafile = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cafile)
        context.load_cert_chain(certfile, keyfile)
        for file in (certfile, cafile):
            expiry.loaded(str(file), file.read_bytes())
        return context


def _cause(error: OSError, files: tuple[Path, ...]) -> str:
    """OpenSSL does not say which file it was."""
    missing = [file for file in files if not os.access(file, os.R_OK)]
    if missing:
        return f"{missing[0]} cannot be read"
    return f"{', '.join(map(str, files))}: {error.strerror or error}"
