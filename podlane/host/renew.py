"""Renewal of a host's certificates, and what of a cluster's changes comes with it.

Owns: what `podlane host renew` does each day. Sources: a host that has
joined asks the join service, to which it shows the certificate it has (also a server that was
given the authority's key: it may be the one before by now); the host that made the cluster
has the authority itself. Invariants: keys stay
(podlane.pki.files), so one file is replaced at a time and none is without its other half;
the new bundle is written before what was signed by a new authority is needed by anybody,
which the cross-certificates of a rotation see to (ADR 0021); a daemon is restarted only if
it works with copies of what has changed, or still trusts an authority that nobody should.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from podlane.errors import PodlaneError, UsageError
from podlane.host.join import RECORD, JoinRecord, read_record, write_record
from podlane.host.joincall import ServiceUrl, Unreachable, call, trusting
from podlane.host.joinmessages import RENEW, RenewAnswer, RenewRequest
from podlane.host.layout import ORDER, Daemon
from podlane.host.revoking import keep
from podlane.host.units import loaded_files
from podlane.pki import certificates as c
from podlane.pki import files
from podlane.pki.authority import BUNDLE_FILE, KEY_FILE, Authority
from podlane.pki.certificates import profile_of
from podlane.pki.profile import ADMINISTRATOR, NODE_DAEMONS, SERVER_DAEMONS
from podlane.runtime.atomic import write_atomic

_HOLDERS = (ADMINISTRATOR, *SERVER_DAEMONS, *NODE_DAEMONS)


@dataclass(slots=True)
class Renewed:
    """What has changed on this host. `reasons` by holder (`netd`); `changed` are file names.

    `distrusted`: an authority has left the bundle. `endpoints`: etcd's client URLs, when they are others now.
    `revoked`: there is a new list of revoked certificates, which etcd reads by itself.
    """

    reasons: dict[str, str] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    distrusted: bool = False
    revoked: bool = False
    endpoints: tuple[str, ...] = ()


def renew(folder: Path, *, now: datetime, force: bool = False) -> Renewed:
    """Renew what ends soon or is not by the authority that signs now; with `force` all. Raises PodlaneError."""
    record = read_record(folder)
    if record is None and (folder / KEY_FILE).exists():
        return _by_own_authority(folder, now, force=force)
    if record is None:
        raise UsageError(
            f"renew: {folder} has neither an authority's key nor {RECORD}: its certificates were put there by "
            "hand, so they are renewed by hand"
        )
    problem: Unreachable | None = None
    for text in record.services:
        try:
            return _ByService(folder, ServiceUrl.parse(text), record.name, now, force).renew()
        except Unreachable as error:
            problem = problem or error
    raise Unreachable(f"renew: {problem or 'no join service is known'}")


def restarts(renewed: Renewed, daemons: Collection[Daemon], outdated: Collection[Daemon] = ()) -> tuple[Daemon, ...]:
    """Which of the host's daemons to restart, in this order, one after another. Pure.

    `outdated` work with copies that differ from the files, perhaps since a renewal before that was interrupted.
    """

    def stale(daemon: Daemon) -> bool:
        if renewed.distrusted or (renewed.endpoints and daemon != "etcd"):
            return True
        return daemon in outdated or bool(renewed.changed & set(loaded_files(daemon)))

    return tuple(each for each in ORDER if each in daemons and stale(each))


def _by_own_authority(folder: Path, now: datetime, *, force: bool) -> Renewed:
    authority = Authority.load(folder)
    done = Renewed()
    _note_bundle(folder, authority.bundle, done)
    authority.publish()
    for holder, reason in _due(folder, _HOLDERS, authority.bundle, now, force=force):
        profile = profile_of(files.read(files.certificate_file(folder, holder)))
        files.issue_into(folder, holder, authority, profile, now=now)
        _note(done, holder, reason)
    return done


@dataclass(frozen=True, slots=True)
class _ByService:
    folder: Path
    url: ServiceUrl
    name: str
    now: datetime
    force: bool

    def renew(self) -> Renewed:
        """Raises Unreachable, PodlaneError."""
        done = Renewed()
        # of a server that runs pods both ask, each for its like: podlane.host.joinrules.renewal
        for speaker, daemons in (("etcd", SERVER_DAEMONS), ("agent", NODE_DAEMONS)):
            certificate = files.certificate_file(self.folder, speaker)
            if not certificate.exists():
                continue
            try:
                self._group(speaker, daemons, done)
            except Unreachable:
                raise
            except PodlaneError as error:
                if files.expiry(certificate) <= self.now:
                    again = f"podlane join-token --node {self.name}"
                    raise PodlaneError(
                        f"renew: {certificate} has expired: let the host join anew, `{again}`"
                    ) from error
                raise PodlaneError(f"renew: {error}") from error
        return done

    def _group(self, speaker: str, daemons: Iterable[str], done: Renewed) -> None:
        certificate, key = files.certificate_file(self.folder, speaker), files.key_file(self.folder, speaker)
        context = trusting(_bundle(self.folder), certificate, key)
        told = call(self.url, context, RENEW, RenewRequest({}), RenewAnswer)
        due = _due(self.folder, daemons, told.bundle, self.now, force=self.force)
        if due:
            csrs = {each: files.request_for(self.folder, each, f"{each}@{self.name}").csr_pem for each, _ in due}
            told = call(self.url, context, RENEW, RenewRequest(csrs), RenewAnswer)
        _note_bundle(self.folder, told.bundle, done)
        for holder, reason in due:
            files.store(self.folder, holder, told.certificates[holder], told.bundle)
            _note(done, holder, reason)
        if _bundle(self.folder) != told.bundle:
            write_atomic(self.folder / BUNDLE_FILE, told.bundle)
        done.revoked |= keep(self.folder, told.revocations, c.read_certificates(told.bundle), self.now)
        self._keep(told, done)

    def _keep(self, told: RenewAnswer, done: Renewed) -> None:
        record = read_record(self.folder)
        assert record is not None, "renew has read it"
        new = JoinRecord(record.name, record.role, told.services or record.services, told.endpoints)
        if set(new.endpoints) != set(record.endpoints):
            done.endpoints = new.endpoints
        if new != record:
            write_record(self.folder, new)


def _due(folder: Path, holders: Iterable[str], bundle: str, now: datetime, *, force: bool) -> list[tuple[str, str]]:
    """Whose certificate is to be renewed, and why."""
    found: list[tuple[str, str]] = []
    for holder in holders:
        certificate = files.certificate_file(folder, holder)
        if not certificate.exists() or not files.key_file(folder, holder).exists():
            continue
        reason = files.renewal_reason(files.read(certificate), bundle, now) or ("asked for" if force else None)
        if reason is not None:
            found.append((holder, reason))
    return found


def _note(done: Renewed, holder: str, reason: str) -> None:
    done.reasons[holder] = reason
    done.changed.add(f"{holder}.pem")


def _note_bundle(folder: Path, bundle: str, done: Renewed) -> None:
    """Before it is written: what it differs in."""
    there = _bundle(folder)
    if there != bundle:
        done.changed.add(BUNDLE_FILE)
        left = {c.fingerprint(each) for each in c.read_certificates(there)} if there else set()
        done.distrusted |= bool(left - {c.fingerprint(each) for each in c.read_certificates(bundle)})


def _bundle(folder: Path) -> str:
    try:
        return (folder / BUNDLE_FILE).read_text()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise PodlaneError(f"read {folder / BUNDLE_FILE}: {error.strerror}") from error
