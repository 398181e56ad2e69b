"""A host's certificates, and what its authority knows of others': read, and brought to what a plan says.

Owns: the reading of a folder as /etc/podlane/pki, and rotation.py's steps done to it.
A certificate without its key beside it is no holding of this host's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from podlane.errors import Invalid, PodlaneError
from podlane.pki import certificates as c
from podlane.pki import files
from podlane.pki.authority import AUTHORITY_DAYS, BUNDLE_FILE, LEAF_DAYS, Authority
from podlane.pki.profile import Profile
from podlane.pki.rotation import Leaf, Plan, State


@dataclass(frozen=True, slots=True)
class Holding:
    """A certificate that is here (`file`) or was given to somebody (no `file`); `signer` as Leaf's."""

    certificate: x509.Certificate
    signer: str
    file: str = ""

    @property
    def common_name(self) -> str:
        return c.common_name(self.certificate.subject)

    @property
    def leaf(self) -> Leaf:
        return Leaf(self.common_name, self.signer, self.certificate.not_valid_after_utc, self.file)


def trusted_here(folder: Path) -> list[x509.Certificate]:
    """Those in the folder's bundle. Raises PodlaneError when there is none."""
    file = folder / BUNDLE_FILE
    try:
        return c.read_certificates(file.read_text())
    except OSError as error:
        raise PodlaneError(f"read {file}: {error.strerror}") from error
    except ValueError as error:
        raise PodlaneError(f"read {file}: {error}") from error


def own(folder: Path, trusted: list[x509.Certificate]) -> list[Holding]:
    """What is in the folder with its key, by file name."""
    return [
        Holding(certificate, _signer(certificate, trusted), name)
        for name, certificate in _certificates_with_key(folder)
    ]


def given(authority: Authority, besides: list[Holding]) -> list[Holding]:
    """What the authority has given out and is not in `besides`, by common name."""
    known = {c.fingerprint(each.certificate) for each in besides}
    trusted = list(authority.trusted)
    return [
        Holding(certificate, _signer(certificate, trusted))
        for certificate in authority.issued().values()
        if c.fingerprint(certificate) not in known
    ]


def state_of(folder: Path, authority: Authority) -> State:
    """Raises PodlaneError."""
    here = own(folder, list(authority.trusted))
    return State(
        authority.name,
        c.common_name(authority.previous.subject) if authority.previous else "",
        authority.is_published(),
        tuple(holding.leaf for holding in (*here, *given(authority, here))),
    )


def apply(
    plan: Plan,
    folder: Path,
    authority: Authority,
    *,
    now: datetime,
    days: int = LEAF_DAYS,
    authority_days: int = AUTHORITY_DAYS,
) -> Authority:
    """Do what the plan says, and return the authority there is then. Raises PodlaneError at the first failure."""
    if plan.publish:
        authority.publish()
    if plan.begin:
        authority = authority.succeeded(now=now, days=authority_days)
        authority.save()
    for name in plan.renew:
        certificate = files.read(files.certificate_file(folder, name))
        files.issue_into(folder, name, authority, _profile(name, certificate), now=now, days=days)
    if plan.end:
        authority = authority.alone()
        authority.save()
    return authority


def _profile(name: str, certificate: x509.Certificate) -> Profile:
    try:
        return c.profile_of(certificate)
    except (ValueError, Invalid) as error:
        raise PodlaneError(f"renew {name}: {error}") from error


def _certificates_with_key(folder: Path) -> Iterator[tuple[str, x509.Certificate]]:
    for file in sorted(folder.glob("*.pem")):
        if file.name != BUNDLE_FILE and files.key_file(folder, file.stem).exists():
            yield file.stem, files.read(file)


def _signer(certificate: x509.Certificate, trusted: list[x509.Certificate]) -> str:
    found = (each for each in trusted if c.is_signed_by(certificate, each))
    return next((c.common_name(each.subject) for each in found), "")
