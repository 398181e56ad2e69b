"""The join service's work: a request in, certificates out.

Owns: the order of what happens to a request. Invariants: everything is checked before
anything is changed; a use of the token is counted before the host is enrolled, and it is
enrolled before anything is signed; whatever is interrupted, the same host that asks again
with the same keys gets the rest. The authority is loaded for each request, so a rotation
counts at once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec

from netd.table import SubnetTable
from podlane.api.subnets import DEFAULT_PREFIX, config_key
from podlane.errors import NotFound, PodlaneError, StoreUnavailable
from podlane.host import joinrules as rules
from podlane.host import jointokens
from podlane.host.enrol import Accounts, Enrolment, Hosts, NewKey, enrol_node, enrol_server, read_hosts
from podlane.host.joinmessages import JoinAnswer, JoinRequest, RenewAnswer, RenewRequest
from podlane.host.joinrules import Admission, Known, Refused
from podlane.host.jointries import Tries
from podlane.pki.authority import KEY_FILE, Authority
from podlane.pki.profile import Profile
from podlane.runtime import metrics
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from podlane.store import keys
from podlane.store.adminwire import Member
from podlane.store.enrolled import HostRecord
from podlane.store.interface import Store
from podlane.store.revocations import read_list

_REQUESTS = metrics.counter(
    "podlane_join_requests_total", "Requests to the join service by kind and result.", ["kind", "result"]
)

_log = get_logger("join")


class Etcd(Accounts, Protocol):
    """Users, roles and members; podlane.store.administration.Administration has them."""

    def members(self) -> tuple[Member, ...]: ...


class ServiceRecord(msgspec.Struct, frozen=True, rename="camel"):
    """What a join service tells of itself in the store: where it is, and the authority it signs for (RFC 3339)."""

    urls: tuple[str, ...]
    ca_hash: str
    ca_since: str
    version: str


def read_services(store: Store) -> dict[str, ServiceRecord]:
    """The join services that run, by server. One that cannot be read counts as not there."""
    found: dict[str, ServiceRecord] = {}
    for kv in store.list(keys.JOIN_SERVICES).items:
        try:
            found[kv.key.removeprefix(keys.JOIN_SERVICES)] = msgspec.json.decode(kv.value, type=ServiceRecord)
        except msgspec.DecodeError as error:
            _log.warning("join service not readable", key=kv.key, error=str(error))
    return found


def since(authority: Authority) -> str:
    """By which the newer of two authorities is known."""
    return f"{authority.certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"


def newest_authority(store: Store, folder: Path) -> Authority:
    """The one here, if it signs now. Raises StoreUnavailable when another server has a newer one, PodlaneError."""
    own = Authority.load(folder)
    for server, record in read_services(store).items():
        if record.ca_since > since(own):
            raise StoreUnavailable(
                f"the authority was replaced on {server} and this server has the key of the one before: copy "
                f"{folder / KEY_FILE} from there"
            )
    return own


class JoinService:
    """Thread-safe. `folder` is the authority's; `prefix` flannel's."""

    def __init__(
        self, store: Store, etcd: Etcd, folder: Path, *, clock: Clock | None = None, prefix: str = DEFAULT_PREFIX
    ) -> None:
        self._store = store
        self._etcd = etcd
        self._folder = folder
        self._clock = clock or SystemClock()
        self._prefix = prefix
        self._tries = Tries()
        self._changing = threading.Lock()  # one at a time: other services are met with by comparing revisions

    def authority(self) -> Authority:
        """As newest_authority."""
        return newest_authority(self._store, self._folder)

    def join(self, request: JoinRequest, peer: str) -> JoinAnswer:
        """Let a host in. `peer` is the address that asks. Raises Refused, PodlaneError."""
        log = _log.bind(name=request.name, role=request.role, peer=peer)
        try:
            token = self._token(request.token, peer)
            log = log.bind(token=token.id)
            with self._changing:
                answer = self._admit(request, token)
        except PodlaneError as error:
            _REQUESTS.labels("join", "refused" if isinstance(error, Refused) else "failed").inc()
            log.warning("host not let in", error=str(error))
            raise
        _REQUESTS.labels("join", "done").inc()
        log.info("host joined", subnets=answer.subnets, addresses=",".join(request.addresses))
        return answer

    def renew(self, request: RenewRequest, caller: Profile, caller_key: str, peer: str) -> RenewAnswer:
        """New certificates for the host whose certificate the caller has. Raises Refused, PodlaneError."""
        try:
            profiles = rules.renewal(caller, caller_key, request.csrs, read_hosts(self._store))
            authority = self.authority()
            answer = RenewAnswer(
                self._signed(authority, request.csrs, profiles),
                authority.bundle,
                self._endpoints(),
                self._services(),
                read_list(self._store),
            )
        except PodlaneError as error:
            _REQUESTS.labels("renew", "refused" if isinstance(error, Refused) else "failed").inc()
            _log.warning("certificates not renewed", caller=caller.common_name, peer=peer, error=str(error))
            raise
        _REQUESTS.labels("renew", "done").inc()
        if profiles:
            _log.info("certificates renewed", caller=caller.common_name, peer=peer, files=",".join(profiles))
        return answer

    # ---- joining -----------------------------------------------------------------------------------

    def _token(self, text: str, peer: str) -> jointokens.Found:
        """The token, if the secret is right. Who was wrong too often is not even listened to."""
        now = self._clock.monotonic()
        if wait := self._tries.wait(peer, now):
            raise Refused(429, f"too many wrong tokens from {peer}: try again in {wait:.0f} s")
        try:
            token = jointokens.JoinToken.parse(text)
        except PodlaneError as error:
            self._tries.failed(peer, now)
            raise Refused(401, rules.NOT_KNOWN) from error
        found = jointokens.find(self._store, token.id)
        try:
            rules.check_token(found.record if found else None, token.secret)
        except Refused:
            self._tries.failed(peer, now)
            raise
        assert found is not None
        return found

    def _admit(self, request: JoinRequest, token: jointokens.Found) -> JoinAnswer:
        authority = self.authority()
        known = self._known(request)
        admission = rules.admit(request, token.record, known)
        used = jointokens.count_use(self._store, token, admission.name)
        if used == "used up":
            raise Refused(403, "the token is used up; `podlane join-token` on a server makes another")
        if used == "gone":
            raise Refused(401, rules.NOT_KNOWN)
        if used == "counted before" and admission.name not in token.record.used:
            raise Refused(409, f"another host joins as {admission.name} with this token at this moment")
        node = self._enrol(admission, known.hosts)
        return JoinAnswer(
            admission.name,
            self._signed(authority, request.csrs, admission.profiles),
            authority.bundle,
            self._endpoints(),
            self._services(),
            node.subnets.key if node else "",
            self._key_text() if token.record.authority else "",
            read_list(self._store),
        )

    def _known(self, request: JoinRequest) -> Known:
        members = self._etcd.members()
        addresses = rules.parsed_addresses(request.addresses)
        claims = SubnetTable(self._store, self._prefix).claims(addresses)
        return Known(
            read_hosts(self._store),
            frozenset(member.name for member in members if member.name),
            tuple(url for member in members for url in (*member.peer_urls, *member.client_urls)),
            {address: claim.host for address, (claim, _) in claims.items() if claim is not None},
            self._store.get(config_key(self._prefix)) is not None,
        )

    def _enrol(self, admission: Admission, seen: Hosts) -> Enrolment | None:
        """As it was decided on what was `seen`: who was quicker since keeps the name."""
        name, addresses = admission.name, admission.addresses
        if admission.is_server:
            key = NewKey(admission.keys["etcd"], seen.servers.get(name, HostRecord()).key_hash)
            enrol_server(self._store, self._etcd, server=name, addresses=addresses, key=key)
        if not admission.is_node:
            return None
        key = NewKey(admission.keys["agent"], seen.nodes.get(name, HostRecord()).key_hash)
        return enrol_node(self._store, self._etcd, node=name, addresses=addresses, key=key, prefix=self._prefix)

    # ---- what is handed out ------------------------------------------------------------------------

    def _signed(self, authority: Authority, csrs: Mapping[str, str], profiles: Mapping[str, Profile]) -> dict[str, str]:
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        return {file: authority.sign(csrs[file], profile, now=now) for file, profile in profiles.items()}

    def _endpoints(self) -> tuple[str, ...]:
        urls = tuple(url for member in self._etcd.members() if not member.learner for url in member.client_urls)
        if not urls:
            raise StoreUnavailable("list members: none tells where its clients find it")
        return urls

    def _services(self) -> tuple[str, ...]:
        return tuple(url for _, record in sorted(read_services(self._store).items()) for url in record.urls)

    def _key_text(self) -> str:
        try:
            return (self._folder / KEY_FILE).read_text()
        except OSError as error:
            raise NotFound(f"read {self._folder / KEY_FILE}: {error.strerror}") from error
