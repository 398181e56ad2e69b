"""A certificate of the agent's own, where the cluster has no authority: known by its fingerprint.

Owns: the file with the key and the certificate, and both sides' TLS settings.
Invariants: the key is made on the node and never leaves it (mode 0600); nothing
is trusted but a fingerprint that the agent published in its Node, which is in the
store that operator and agent trust anyway, so there is no authority to keep and
nothing that expires. See docs/adr/0018.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from dataclasses import dataclass
from pathlib import Path

from podlane.errors import PodlaneError
from podlane.runtime.atomic import write_atomic
from podlane.runtime.command import run
from podlane.runtime.log import get_logger

_FILE = "api.pem"
_TIMEOUT = 60.0
_NEVER = "36500"  # days: who pins a fingerprint looks at no date
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Certificate:
    """`context` for serving with it; `fingerprint` is the SHA-256 of its DER form in hexadecimal."""

    context: ssl.SSLContext
    fingerprint: str


def fingerprint_of(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def ensure_certificate(folder: Path, node: str) -> Certificate:
    """The node's certificate, made if it is missing or cannot be used. Raises PodlaneError."""
    file = folder / _FILE
    if file.exists():
        try:
            return _load(file)
        except (OSError, ValueError) as error:
            get_logger("agent-api").warning("certificate made anew", file=str(file), error=str(error))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    argv = ["openssl", "req", "-x509", *curve, "-days", _NEVER, "-subj", f"/CN={node}", "-keyout", "-", "-out", "-"]
    write_atomic(file, run(argv, timeout=_TIMEOUT).stdout, mode=0o600)
    try:
        return _load(file)
    except (OSError, ValueError) as error:
        raise PodlaneError(f"load {file}: {error}") from error


def client_context() -> ssl.SSLContext:
    """For a client that compares the fingerprint itself, before it sends anything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _load(file: Path) -> Certificate:
    """Raises OSError (which an SSLError is), ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are ours
    context.load_cert_chain(file)
    found = _CERTIFICATE.search(file.read_text())
    if found is None:
        raise ValueError("no certificate in it")
    return Certificate(context, fingerprint_of(ssl.PEM_cert_to_DER_cert(found[0])))
