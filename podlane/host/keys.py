"""A host's own keys, and its place in etcd, where no join service gives them.

Owns: what a server that founds a cluster makes for itself, and how given
certificates are put in their places. Invariant: level-triggered; what is there and
good is left alone, so it can be done again after any interruption.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from podlane.errors import NotFound, PodlaneError
from podlane.host.enrol import enrol_node, enrol_server
from podlane.host.layout import NODE_DAEMONS, Role
from podlane.pki import files, profile
from podlane.pki.authority import BUNDLE_FILE, Authority
from podlane.pki.certificates import profile_of
from podlane.pki.profile import Profile
from podlane.runtime.atomic import write_atomic
from podlane.store.administration import Administration
from podlane.store.roles import ROOT, operator_role

if TYPE_CHECKING:
    from podlane.store.config import StoreConfig
    from podlane.store.interface import Store


def found(folder: Path, role: Role, name: str, addresses: tuple[str, ...], *, now: datetime) -> list[str]:
    """Make the authority and this host's certificates, as far as they are missing. Returns what was made."""
    made: list[str] = []
    try:
        authority = Authority.load(folder)
    except NotFound:
        authority = Authority.create(folder, now=now)
        made.append("authority")
    for each in _profiles(role, name, addresses):
        file_name = files.file_name(each.common_name)
        if not _is_good(folder, file_name, each, authority, now):
            files.issue_into(folder, file_name, authority, each, now=now)
            made.append(each.common_name)
    return made


def _profiles(role: Role, name: str, addresses: tuple[str, ...]) -> Iterable[Profile]:
    yield profile.administrator()
    yield profile.etcd(name, addresses)
    yield profile.join(name, addresses)
    yield profile.scheduler(name)
    if role == "all":
        yield from (profile.node_daemon(daemon, name) for daemon in NODE_DAEMONS)


def _is_good(folder: Path, file_name: str, wanted: Profile, authority: Authority, now: datetime) -> bool:
    certificate = files.certificate_file(folder, file_name)
    if not certificate.exists() or not files.key_file(folder, file_name).exists():
        return False
    there = files.read(certificate)
    if files.renewal_reason(there, authority.bundle, now) is not None:
        return False
    return profile_of(there) == wanted


Files = dict[str, tuple[bytes, int]]
"""Contents and modes by name."""


def given(daemons: Iterable[str], ca: Path, *, cert_dir: Path | None, cert: Path | None, key: Path | None) -> Files:
    """Certificates from elsewhere, by the names that the daemons look for. Raises PodlaneError when one is missing."""
    sources: dict[str, tuple[Path | None, Path | None]] = {
        daemon: (cert_dir / f"{daemon}.pem", cert_dir / f"{daemon}.key") if cert_dir else (cert, key)
        for daemon in daemons
    }
    contents: Files = {BUNDLE_FILE: (_read(ca), 0o644)}
    for daemon, (certificate, private) in sources.items():
        if certificate is not None and private is not None:
            contents[f"{daemon}.pem"] = (_read(certificate), 0o644)
            contents[f"{daemon}.key"] = (_read(private), 0o600)
    return contents


def take(folder: Path, contents: Files) -> None:
    """Put given certificates where the daemons look. Raises PodlaneError."""
    for name, (content, mode) in contents.items():
        write_atomic(folder / name, content, mode)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PodlaneError(f"read {path}: {error.strerror}") from error


def enrol(store: Store, config: StoreConfig, role: Role, name: str, addresses: tuple[str, ...]) -> None:
    """Make etcd's users and roles for this host; as a server also root's, and from then on etcd asks who one is."""
    parsed = [ip_address(each) for each in addresses]
    with closing(Administration(config)) as accounts:
        if role == "node":
            enrol_node(store, accounts, node=name, addresses=parsed)
            return
        accounts.ensure_user("root", [ROOT])
        accounts.ensure_role(operator_role())
        enrol_server(store, accounts, server=name, addresses=parsed)
        if not accounts.auth_enabled():
            accounts.enable_auth()
