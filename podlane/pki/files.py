"""A holder's key and certificate as files: NAME.key, NAME.pem, and ca.pem beside them.

Owns: how they are made, and when a certificate is to be renewed. Invariant: the key
is made where it is used (mode 0600) and kept when the certificate is renewed, so a
renewal replaces one file and at no moment do key and certificate not belong
together. A new key is had by removing the old one first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from podlane.errors import PodlaneError
from podlane.pki import certificates as c
from podlane.pki.authority import BUNDLE_FILE, LEAF_DAYS, Authority, private_folder
from podlane.pki.profile import Profile
from podlane.runtime.atomic import write_atomic

_RENEW_BELOW = 1 / 3
"""Of its life left, a certificate is renewed: months before it ends, so a server may be down for a while."""


@dataclass(frozen=True, slots=True)
class Request:
    """`key_pem` stays where it was made."""

    key_pem: str
    csr_pem: str


def new_request(common_name: str, key_pem: str = "") -> Request:
    """A request to sign, for a key that is there or, without one, for a new one. Raises PodlaneError."""
    try:
        key = c.read_key(key_pem) if key_pem else c.new_key()
    except ValueError as error:
        raise PodlaneError(f"read key of {common_name}: {error}") from error
    return Request(c.key_pem(key), c.new_request(key, common_name))


def request_for(folder: Path, file_name: str, common_name: str) -> Request:
    """A request for the key in `folder`, which is made when it is missing. Raises PodlaneError."""
    file = key_file(folder, file_name)
    try:
        present = file.read_text() if file.exists() else ""
    except OSError as error:
        raise PodlaneError(f"read {file}: {error.strerror}") from error
    request = new_request(common_name, present)
    if not present:
        private_folder(folder)
        write_atomic(file, request.key_pem, mode=0o600)
    return request


def store(folder: Path, file_name: str, certificate_pem: str, bundle_pem: str) -> None:
    """Write what an authority answered. Raises PodlaneError, with nothing written, when it is not for our key."""
    try:
        leaf = c.read_certificates(certificate_pem)[0]
        key = c.read_key(key_file(folder, file_name).read_text())
        c.read_certificates(bundle_pem)
        if leaf.public_key() != key.public_key():
            raise ValueError("it is not for the key that is here")
    except (OSError, ValueError) as error:
        raise PodlaneError(f"store certificate {file_name} in {folder}: {error}") from error
    write_atomic(certificate_file(folder, file_name), certificate_pem)
    bundle = folder / BUNDLE_FILE
    if not bundle.exists() or bundle.read_text() != bundle_pem:
        write_atomic(bundle, bundle_pem)


def issue_into(
    folder: Path, file_name: str, authority: Authority, profile: Profile, *, now: datetime, days: int = LEAF_DAYS
) -> None:
    """Make or renew a certificate in `folder`. Raises PodlaneError."""
    request = request_for(folder, file_name, profile.common_name)
    store(folder, file_name, authority.sign(request.csr_pem, profile, now=now, days=days), authority.bundle)


def key_file(folder: Path, file_name: str) -> Path:
    return folder / f"{file_name}.key"


def certificate_file(folder: Path, file_name: str) -> Path:
    return folder / f"{file_name}.pem"


def file_name(common_name: str) -> str:
    """`etcd` of `etcd@s1`: a host is one server or node, so its name is in none of its files'."""
    return common_name.partition("@")[0]


def expiry(path: Path) -> datetime:
    """When the (first) certificate in the file ends, UTC. Raises PodlaneError."""
    return read(path).not_valid_after_utc


def read(path: Path) -> x509.Certificate:
    """The (first) certificate in the file. Raises PodlaneError."""
    try:
        return c.read_certificates(path.read_text())[0]
    except OSError as error:
        raise PodlaneError(f"read {path}: {error.strerror}") from error
    except ValueError as error:
        raise PodlaneError(f"read {path}: {error}") from error


def renewal_reason(certificate: x509.Certificate, bundle_pem: str, now: datetime) -> str | None:
    """Why to renew it now; None when there is no need. `bundle_pem` is the authority's, the one that signs first."""
    end = certificate.not_valid_after_utc
    if end - now < (end - certificate.not_valid_before_utc) * _RENEW_BELOW:
        return f"it ends at {end:%Y-%m-%d}"
    signer = c.read_certificates(bundle_pem)[0]
    if not c.is_signed_by(certificate, signer):
        return f"{c.common_name(signer.subject)} signs now"
    return None
