"""Why a connection over TLS does not come about, in words that name the file or the option.

Owns: the diagnosis after a failure. gRPC says little of it ("Unwrap failed"), since
with TLS 1.3 a server refuses a client's certificate after the handshake. So: our
own files are tried on each other, in memory, as etcd would try them; if they are
good, one handshake of our own tells what the server holds against us, or we
against it. Invariant: looks only, raises nothing, and is bounded in time. Not by
the `cryptography` package, which would cost each daemon 8 MB.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

from podlane.errors import PermissionDenied, PodlaneError
from podlane.store.config import StoreConfig

_SIGNS = (
    *("Tls handshake", "TSI_", "security handshaker", "Handshake", "SSL", "Peer name", "Hostname"),
    *("Socket closed", "reset by peer"),
)
_LONGEST = 3.0
"""Seconds a look at the server may take."""
_NO_TLS = "it does not speak TLS: http:// instead of https://?"
_REMEMBERED = 10.0
"""Seconds for which a look counts: a daemon tries to connect twice a second."""


class Diagnosis:
    """The faults of one config's connections. Thread-safe; looks at an endpoint once in a while only."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._tls = dict(config.targets)
        self._found: dict[tuple[str, str], tuple[float, str]] = {}
        self._user = ""

    def of(self, target: str, cause: str, timeout: float) -> str:
        """What failed at a target, better said than `cause` where that can be told within `timeout` seconds."""
        if not is_likely(cause):
            return cause
        at, said = self._found.get((target, cause), (-_REMEMBERED, ""))
        if time.monotonic() >= at + _REMEMBERED:
            said = explain(cause, target, tls=self._tls[target], config=self._config, timeout=timeout)
            self._found[target, cause] = (time.monotonic(), said)
        return said

    def named(self, error: PodlaneError) -> PodlaneError:
        """A refusal with the user it was for, as far as that can be told."""
        if not isinstance(error, PermissionDenied):
            return error
        self._user = self._user or user_of(self._config)
        return PermissionDenied(f"{error}, for user {self._user}") if self._user else error


def is_likely(cause: str) -> bool:
    """Whether gRPC's words may be about TLS."""
    return any(sign in cause for sign in _SIGNS)


def explain(cause: str, target: str, *, tls: bool, config: StoreConfig, timeout: float) -> str:
    """What is wrong with the connection to `target` (`host:port`), or `cause` if nothing is found."""
    if not tls:
        return "it speaks TLS: https:// and --etcd-cafile are needed" if _speaks_tls(target, timeout) else cause
    return own_fault(config) or _servers_fault(target, config, timeout) or cause


def own_fault(config: StoreConfig) -> str:
    """What is wrong with our own files, "" if nothing."""
    try:
        ours = _client(config)
    except (OSError, ssl.SSLError) as error:
        return _unusable(config, error)
    if not config.certfile:
        return ""
    try:
        _, problem = _introduce(ours, config)
    except (OSError, ssl.SSLError):
        return ""
    return f"client certificate {config.certfile}: {_in_words(problem, config)}" if problem else ""


def user_of(config: StoreConfig) -> str:
    """Whom etcd takes us for: the user name, or the certificate's common name; "" if that cannot be told."""
    if config.username or not config.certfile:
        return config.username
    try:
        return _introduce(_client(config), config)[0]
    except (OSError, ssl.SSLError):
        return ""


def _client(config: StoreConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if config.cafile:
        context.load_verify_locations(config.cafile)
    else:
        context.load_default_certs()
    if config.certfile:
        context.load_cert_chain(config.certfile, config.keyfile)
    return context


def _introduce(client: ssl.SSLContext, config: StoreConfig) -> tuple[str, str]:
    """(common name, what a server with our authorities would say against our certificate)."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(config.certfile, config.keyfile)
    server.verify_mode = ssl.CERT_REQUIRED
    if config.cafile:
        server.load_verify_locations(config.cafile)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    near, far = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as error:
                return "", error.verify_message
    shown: Any = far.getpeercert() or {}
    names = dict(pair for part in shown.get("subject", ()) for pair in part)
    return str(names.get("commonName", "")), ""


def _unusable(config: StoreConfig, error: OSError) -> str:
    """The file that cannot be loaded, found by loading one after the other."""
    if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
        return f"{config.certfile} and {config.keyfile} do not belong together"
    try:
        if config.cafile:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(config.cafile)
    except OSError:
        return f"{config.cafile}: holds no certificate that can be read"
    return f"{config.certfile} or {config.keyfile}: cannot be read as PEM"


def _servers_fault(target: str, config: StoreConfig, timeout: float) -> str:
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    try:
        with (
            socket.create_connection((host, int(port)), min(timeout, _LONGEST)) as raw,
            _client(config).wrap_socket(raw, server_hostname=host) as stream,
        ):
            return _after_handshake(stream, config)
    except ssl.SSLCertVerificationError as error:
        return f"etcd's certificate: {_in_words(error.verify_message, config)}"
    except ssl.SSLError as error:
        reason = error.reason or ""
        if "ALERT" in reason:
            return _refused(reason, config)
        return (
            _NO_TLS if "VERSION_NUMBER" in reason or isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) else ""
        )
    except ConnectionResetError:
        return _NO_TLS
    except OSError:
        return ""


def _after_handshake(stream: ssl.SSLSocket, config: StoreConfig) -> str:
    """With TLS 1.3 a refusal of our certificate comes then; one by the list of revoked certificates is a mere end.

    Raises SSLError with what the server says.
    """
    try:
        if stream.recv(1) or not config.certfile:
            return ""
    except ConnectionResetError:
        pass
    return f"etcd ends the connection: is {config.certfile} revoked? `podlane pki list` on a server tells"


def _refused(reason: str, config: StoreConfig) -> str:
    if not config.certfile:
        return "etcd wants a client certificate: --etcd-certfile and --etcd-keyfile are needed"
    word = reason.partition("ALERT_")[2].lower().replace("_", " ")
    return f"etcd refuses the client certificate {config.certfile} ({word}): signed by an authority it does not know?"


def _speaks_tls(target: str, timeout: float) -> bool:
    host, _, port = target.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), min(timeout, _LONGEST)) as raw,
            context.wrap_socket(raw),
        ):
            return True
    except OSError:
        return False


def _in_words(problem: str, config: StoreConfig) -> str:
    """OpenSSL's words, with what to do where that is not plain."""
    if "not yet valid" in problem:
        return f"{problem}; is this host's clock right?"
    if "issuer" in problem or "self-signed" in problem or "self signed" in problem or "signature" in problem:
        return f"not signed by an authority in {config.cafile or 'the system'} ({problem})"
    return problem
