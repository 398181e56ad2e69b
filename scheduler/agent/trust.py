"""How the operator's command knows an agent, and the agent the command.

Owns: the client's side of guard.py. `Mutual`: the agent's certificate is the
authority's, for that node; ours goes with the connection (docs/adr/0021).
`Pinned`: the agent's certificate is the one its Node tells of; the cluster's token
goes with the request (docs/adr/0018). Invariant: `check` has passed before a byte is
sent.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Protocol

from podlane.errors import PodlaneError
from podlane.pki.profile import agent_hostname
from podlane.runtime.wire import Wire
from scheduler.agent.certificate import client_context, fingerprint_of


class Trust(Protocol):
    @property
    def hostname(self) -> str | None:
        """What the certificate is checked against, if it is."""
        ...

    def context(self) -> ssl.SSLContext:
        """Raises PodlaneError when a file cannot be used."""
        ...

    def check(self, wire: Wire) -> str | None:
        """Why not to trust the other side after the handshake."""
        ...

    def headers(self) -> dict[str, str]: ...


@dataclass(frozen=True, slots=True)
class Pinned:
    """`token` is ClusterConfig.agent_token, `fingerprint` the Node's annotation AGENT_CERTIFICATE_ANNOTATION."""

    token: str
    fingerprint: str
    hostname: None = None

    def context(self) -> ssl.SSLContext:
        return client_context()

    def check(self, wire: Wire) -> str | None:
        shown = fingerprint_of(wire.certificate())
        if shown == self.fingerprint.lower():
            return None
        return (
            f"another certificate (SHA-256 {shown}) than its node has published "
            f"({self.fingerprint or 'none'}), so nothing was asked"
        )

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@dataclass(frozen=True, slots=True)
class Mutual:
    """PEM files of the operator's, as for etcd."""

    node: str
    cafile: str
    certfile: str
    keyfile: str

    @property
    def hostname(self) -> str:
        return agent_hostname(self.node)

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(self.cafile)
            context.load_cert_chain(self.certfile, self.keyfile)
        except OSError as error:
            files = f"{self.cafile}, {self.certfile}, {self.keyfile}"
            raise PodlaneError(f"load certificates {files}: {error.strerror or error}") from error
        return context

    def check(self, wire: Wire) -> str | None:
        del wire  # the handshake has done it
        return None

    def headers(self) -> dict[str, str]:
        return {}


def cause_of(error: Exception) -> str:
    """What a failed handshake means, in words of ours where OpenSSL's are not clear."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason in _ALERTS:
        return f"it refused our certificate: {_ALERTS[error.reason]}"
    return str(getattr(error, "strerror", None) or error)


_ALERTS = {
    "TLSV1_ALERT_UNKNOWN_CA": "another authority has signed it",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "none was shown; give --etcd-certfile and --etcd-keyfile",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it is not valid",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is not for clients",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it is revoked",
}
"""OpenSSL's names of the alerts of RFC 8446, 6.2."""
