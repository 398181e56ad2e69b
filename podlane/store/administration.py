"""etcd's own affairs: users, roles, members, alarms, disk.

Owns: the calls that need etcd's root role. Invariants: each `ensure_…` brings
etcd to the state named, whatever it is in, and may be interrupted and repeated
at any step; authentication is not turned on by somebody it would lock out.
What a role holds is roles.py's, snapshots are snapshot.py's.

Where a call concerns one member (status, defragment, snapshot), it goes to
that one and does not ask for a leader: a member that is alone is to answer.
Source: api/etcdserverpb/rpc.proto, server/auth/store.go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from etcd3 import etcdrpc

from podlane.errors import PermissionDenied, PodlaneError, StoreUnavailable, UsageError
from podlane.store import adminwire as wire
from podlane.store import snapshot
from podlane.store.adminwire import Alarm, Member, MemberStatus
from podlane.store.config import StoreConfig
from podlane.store.endpoints import Endpoints, Metadata, Stubs, verdict_of, with_action
from podlane.store.interface import Refused
from podlane.store.roles import ROOT, Role
from podlane.store.tlsfault import user_of

TIMEOUT = 10.0
CHANGE_TIMEOUT = 30.0  # etcd finds the cluster unhealthy for 5 s after a member has come
STATUS_TIMEOUT = 3.0
SNAPSHOT_TIMEOUT = 3600.0
DEFRAGMENT_TIMEOUT = 600.0
"""Seconds. A member answers nothing else while it defragments, which takes as long as its database is large."""

_GET, _DEACTIVATE = 0, 2  # AlarmRequest.AlarmAction
_THERE = "already exists"
_NOT_THERE = ("role name not found", "user name not found")
_NOT_GRANTED = ("role is not granted", "permission is not granted")


class Administration:
    """Thread-safe. Connects at the first call; `close` it.

    Who it is comes from the config: the common name of its certificate, or its user and password.
    """

    def __init__(self, config: StoreConfig) -> None:
        """Raises Invalid when a file named in the config cannot be read."""
        self.config = config
        self._endpoints = Endpoints(config)

    def close(self) -> None:
        self._endpoints.close()

    # --- users and roles -------------------------------------------------------------

    def auth_enabled(self) -> bool:
        """Whether etcd asks who somebody is. Anybody may ask: a login as nobody fails in one of two ways."""
        try:
            self._auth("ask for authentication", "Authenticate", etcdrpc.AuthenticateRequest())
        except Refused as error:
            if "authentication is not enabled" in str(error):
                return False
            raise
        except PermissionDenied:
            return True
        return True

    def enable_auth(self) -> None:
        """Make the user and the role `root`, and ask everybody from now on who he is.

        Raises UsageError when the one who asks would be locked out, PermissionDenied when it is on already and he
        may not ask.
        """
        self.ensure_user(ROOT, [ROOT])
        if not self.auth_enabled():
            self._check_not_locked_out()
            self._auth("enable authentication", "AuthEnable", etcdrpc.AuthEnableRequest())

    def _check_not_locked_out(self) -> None:
        user = user_of(self.config)
        if not user:
            raise UsageError("enable authentication: without a client certificate nobody could undo it")
        if ROOT not in (self.user_roles(user) or ()):
            raise UsageError(f'enable authentication: "{user}", as whom this is asked, lacks the role {ROOT}')

    def ensure_role(self, role: Role, *, narrow: bool = True) -> None:
        """Make it, grant what is missing of it and, if it may be narrowed, revoke what is too much."""
        have = self._granted(role.name)
        if have is None:
            request = etcdrpc.AuthRoleAddRequest(name=role.name)
            with _unless(_THERE):
                self._auth(f"add role {role.name}", "RoleAdd", request)
        for step, grant in wire.steps(have or frozenset(), wire.grants_of(role)):
            if step == "grant":
                self._auth(f"grant to role {role.name}", "RoleGrantPermission", wire.grant_request(role.name, grant))
            elif narrow:
                with _unless(*_NOT_GRANTED):
                    request = wire.revoke_request(role.name, grant)
                    self._auth(f"revoke from role {role.name}", "RoleRevokePermission", request)

    def ensure_user(self, name: str, role_names: Collection[str]) -> None:
        """Make a user whom no password opens, with these roles and no other."""
        have = self.user_roles(name)
        if have is None:
            with _unless(_THERE):
                self._auth(f"add user {name}", "UserAdd", wire.add_user_request(name))
        for role in [role for role in role_names if role not in (have or ())]:
            request = etcdrpc.AuthUserGrantRoleRequest(user=name, role=role)
            self._auth(f"grant role {role} to {name}", "UserGrantRole", request)
        for role in [role for role in have or () if role not in role_names]:
            with _unless(*_NOT_GRANTED):
                request = etcdrpc.AuthUserRevokeRoleRequest(name=name, role=role)
                self._auth(f"revoke role {role} from {name}", "UserRevokeRole", request)

    def delete_user(self, name: str) -> None:
        """His certificate is worth nothing from now on. Nothing happens if there is none."""
        with _unless(*_NOT_THERE):
            self._auth(f"delete user {name}", "UserDelete", etcdrpc.AuthUserDeleteRequest(name=name))

    def delete_role(self, name: str) -> None:
        """Nothing happens if there is none."""
        with _unless(*_NOT_THERE):
            self._auth(f"delete role {name}", "RoleDelete", etcdrpc.AuthRoleDeleteRequest(role=name))

    def users(self) -> tuple[str, ...]:
        return tuple(sorted(self._auth("list users", "UserList", etcdrpc.AuthUserListRequest()).users))

    def roles(self) -> tuple[str, ...]:
        return tuple(sorted(self._auth("list roles", "RoleList", etcdrpc.AuthRoleListRequest()).roles))

    def user_roles(self, name: str) -> tuple[str, ...] | None:
        """None: there is no such user."""
        with _unless(*_NOT_THERE):
            return tuple(self._auth(f"get user {name}", "UserGet", etcdrpc.AuthUserGetRequest(name=name)).roles)
        return None

    def _granted(self, role: str) -> frozenset[wire.Grant] | None:
        with _unless(*_NOT_THERE):
            return wire.grants_in(self._auth(f"get role {role}", "RoleGet", etcdrpc.AuthRoleGetRequest(role=role)))
        return None

    def _auth(self, action: str, method: str, request: Any) -> Any:
        return self._call(action, lambda stubs: getattr(stubs.auth, method), request)

    # --- members ---------------------------------------------------------------------

    def members(self) -> tuple[Member, ...]:
        """As the first member that answers knows them, also when they have no leader."""
        failures: list[PodlaneError] = []
        for endpoint in self.config.endpoints:
            try:
                response = self._ask(
                    endpoint, "list members", lambda stubs: stubs.cluster.MemberList, etcdrpc.MemberListRequest()
                )
            except PodlaneError as error:
                failures.append(error)
            else:
                return wire.members(response)
        raise type(failures[0])("; ".join(map(str, failures)))

    def add_member(self, name: str, peer_urls: Sequence[str], *, learner: bool = False) -> Member:
        """Let a member join; it counts for the quorum from now on, or as a learner once it is promoted.

        One that was added with the same URLs is returned as it is. Raises Refused with etcd's reason.
        """
        if there := self._at(peer_urls):
            return there
        request = wire.add_member_request(peer_urls, learner=learner)
        try:
            added = self._call(f"add member {name}", lambda stubs: stubs.cluster.MemberAdd, request, CHANGE_TIMEOUT)
        except (Refused, StoreUnavailable):
            # a first attempt was carried out, but its answer was lost or came too late
            if there := self._at(peer_urls):
                return there
            raise
        return wire.member(added.member)

    def _at(self, peer_urls: Sequence[str]) -> Member | None:
        return next((each for each in self.members() if set(each.peer_urls) == set(peer_urls)), None)

    def promote_member(self, member_id: int) -> None:
        """Let a learner vote. Raises Refused while it has not caught up."""
        request = etcdrpc.MemberRemoveRequest(ID=member_id)
        self._call(f"promote member {member_id:x}", lambda stubs: wire.promote_member(stubs.channel), request)

    def remove_member(self, member_id: int) -> None:
        """Raises Refused when etcd sees its quorum in danger. Nothing happens if there is none."""
        request = etcdrpc.MemberRemoveRequest(ID=member_id)
        with _unless("member not found"):
            self._call(f"remove member {member_id:x}", lambda stubs: stubs.cluster.MemberRemove, request)

    def status(self, endpoint: str, *, timeout: float = STATUS_TIMEOUT) -> MemberStatus:
        """What the member at this client URL says of itself."""
        request = etcdrpc.StatusRequest()
        response = self._ask(endpoint, "get status", lambda stubs: stubs.maintenance.Status, request, timeout)
        return wire.member_status(response)

    def defragment(self, endpoint: str) -> None:
        """Give the disk back what compaction has freed. The member answers nothing meanwhile."""
        request = etcdrpc.DefragmentRequest()
        self._ask(endpoint, "defragment", lambda stubs: stubs.maintenance.Defragment, request, DEFRAGMENT_TIMEOUT)

    def compact(self, revision: int) -> None:
        """Forget what was before this revision. Nothing happens if that is done already."""
        request = etcdrpc.CompactionRequest(revision=revision, physical=True)
        with _unless("required revision has been compacted"):
            self._call(f"compact to revision {revision}", lambda stubs: stubs.kv.Compact, request)

    def alarms(self) -> tuple[Alarm, ...]:
        return wire.alarms(self._alarm("list alarms", etcdrpc.AlarmRequest(action=_GET)))

    def disarm(self) -> None:
        """Take back every alarm; etcd raises it again if its cause is still there."""
        for alarm in self._alarm("list alarms", etcdrpc.AlarmRequest(action=_GET)).alarms:
            request = etcdrpc.AlarmRequest(action=_DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
            self._alarm("disarm", request)

    def _alarm(self, action: str, request: Any) -> Any:
        return self._call(action, lambda stubs: stubs.maintenance.Alarm, request)

    def snapshot(self, path: Path, progress: snapshot.Progress | None = None, *, endpoint: str = "") -> snapshot.Saved:
        """Write the whole database into a file, checked; from the member at `endpoint`, else from the first that can.

        Raises StoreUnavailable, PermissionDenied, PodlaneError (the disk).
        """
        endpoints = [endpoint] if endpoint else list(self.config.endpoints)
        while True:
            each = endpoints.pop(0)
            try:
                with self._only(each) as only, _translated(only, f"take a snapshot from {each}"):
                    return snapshot.save(_chunks(only), path, progress)
            except StoreUnavailable:
                if not endpoints:
                    raise

    # --- calls -----------------------------------------------------------------------

    def _call(self, action: str, rpc: Callable[[Stubs], Any], request: Any, timeout: float = TIMEOUT) -> Any:
        """Whichever member; none of these calls does harm when it is done twice."""
        return self._endpoints.call(action, rpc, request, timeout=timeout, repeatable=True)

    def _ask(
        self, endpoint: str, action: str, rpc: Callable[[Stubs], Any], request: Any, timeout: float = STATUS_TIMEOUT
    ) -> Any:
        """One member, as it is, leader or not."""
        with self._only(endpoint) as only, _translated(only, f"{action} of {endpoint}"):
            return rpc(only.current().stubs)(request, timeout=timeout, metadata=_token(only, timeout))

    @contextlib.contextmanager
    def _only(self, endpoint: str) -> Iterator[Endpoints]:
        only = Endpoints(replace(self.config, endpoints=(endpoint,)))
        try:
            yield only
        finally:
            only.close()


def _token(only: Endpoints, timeout: float) -> Metadata:
    """Who we are, and nothing of a leader: a member without one is to answer."""
    return tuple(pair for pair in only.metadata(only.current(), timeout) if pair[0] == "token")


def _chunks(only: Endpoints) -> Iterator[snapshot.Chunk]:
    stream = only.current().stubs.maintenance.Snapshot(
        etcdrpc.SnapshotRequest(), timeout=SNAPSHOT_TIMEOUT, metadata=_token(only, STATUS_TIMEOUT)
    )
    return ((response.blob, response.remaining_bytes) for response in stream)


@contextlib.contextmanager
def _translated(only: Endpoints, action: str) -> Iterator[None]:
    """Raise gRPC's errors as ours, with what was being done."""
    try:
        yield
    except grpc.RpcError as error:
        meaning = verdict_of(error)[1]
        said = only.diagnosis.of(only.current().target, str(meaning), STATUS_TIMEOUT)
        raise only.diagnosis.named(with_action(action, type(meaning)(said))) from error


@contextlib.contextmanager
def _unless(*causes: str) -> Iterator[None]:
    """Do without what failed for one of these causes: then it is as it should be."""
    try:
        yield
    except PodlaneError as error:
        if not any(cause in str(error) for cause in causes):
            raise
