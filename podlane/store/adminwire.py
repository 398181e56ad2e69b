"""Between etcd's administration messages and our values.

Owns: the fields and calls that are newer than the stubs' rpc.proto (ADR 0001):
users without a password, learners, the bytes in use of a database. They are
written and read as protobuf's unknown fields, by number. Pure.
Source: api/etcdserverpb/rpc.proto of etcd 3.4, which no later one contradicts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from etcd3 import etcdrpc
from etcd3.etcdrpc import auth_pb2
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]

from podlane.store import wire
from podlane.store.roles import Access, Permission, Role

Grant = tuple[int, bytes, bytes]
"""Permission type, first key, range end: what etcd keeps of a permission."""

_TYPES: dict[Access, int] = {"read": 0, "write": 1, "readwrite": 2}  # authpb.Permission.Type
_ALARMS = {0: "none", 1: "NOSPACE", 2: "CORRUPT"}
_NO_PASSWORD = b"\x1a\x02\x08\x01"  # AuthUserAddRequest.options = {no_password: true}
_IS_LEARNER = b"\x10\x01"  # MemberAddRequest.isLearner = true
_MEMBER_IS_LEARNER = 5
_STATUS_APPLIED, _STATUS_ERRORS, _STATUS_IN_USE, _STATUS_IS_LEARNER = 7, 8, 9, 10


@dataclass(frozen=True, slots=True)
class Member:
    """One of etcd's cluster. Without a name it was added and has never started."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...] = ()
    learner: bool = False

    def __str__(self) -> str:
        return self.name or f"{self.id:x}"


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What a member says of itself. Sizes are bytes; `in_use` is what defragmenting would leave, 0 if it does not say.

    `leader` is the id of the member it follows, 0 if none. `errors` are its own complaints.
    """

    member: int
    cluster: int
    version: str
    size: int
    in_use: int
    leader: int
    term: int
    index: int
    applied: int
    learner: bool
    revision: int
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Alarm:
    """A member refuses writes (NOSPACE) or reads (CORRUPT) until it is taken back."""

    member: int
    kind: str


def add_user_request(name: str) -> Any:
    """A user that its certificate alone stands for: no password opens it."""
    request = etcdrpc.AuthUserAddRequest(name=name)
    request.MergeFromString(_NO_PASSWORD)
    return request


def add_member_request(peer_urls: Iterable[str], *, learner: bool) -> Any:
    request = etcdrpc.MemberAddRequest(peerURLs=list(peer_urls))
    if learner:
        request.MergeFromString(_IS_LEARNER)
    return request


def promote_member(channel: Any) -> Any:
    """The call the stubs lack. Its messages look like those for removing a member."""
    return channel.unary_unary(
        "/etcdserverpb.Cluster/MemberPromote",
        request_serializer=etcdrpc.MemberRemoveRequest.SerializeToString,
        response_deserializer=etcdrpc.MemberRemoveResponse.FromString,
    )


def member(message: Any) -> Member:
    learner = bool(_newer(message).get(_MEMBER_IS_LEARNER))
    return Member(message.ID, message.name, tuple(message.peerURLs), tuple(message.clientURLs), learner)


def members(response: Any) -> tuple[Member, ...]:
    """By name, those without one last."""
    return tuple(sorted(map(member, response.members), key=lambda each: (not each.name, each.name, each.id)))


def member_status(response: Any) -> MemberStatus:
    newer = _newer(response)
    errors = tuple(
        field.data.decode("utf-8", "replace")
        for field in UnknownFieldSet(response)
        if field.field_number == _STATUS_ERRORS
    )
    return MemberStatus(
        member=response.header.member_id,
        cluster=response.header.cluster_id,
        version=response.version,
        size=response.dbSize,
        in_use=newer.get(_STATUS_IN_USE, 0),
        leader=response.leader,
        term=response.raftTerm,
        index=response.raftIndex,
        applied=newer.get(_STATUS_APPLIED, response.raftIndex),
        learner=bool(newer.get(_STATUS_IS_LEARNER)),
        revision=response.header.revision,
        errors=errors,
    )


def alarms(response: Any) -> tuple[Alarm, ...]:
    return tuple(Alarm(each.memberID, _ALARMS.get(each.alarm, str(each.alarm))) for each in response.alarms)


def grants_of(role: Role) -> frozenset[Grant]:
    return frozenset(_grant(permission) for permission in role.permissions)


def grants_in(response: Any) -> frozenset[Grant]:
    """What etcd says a role may do."""
    return frozenset((perm.permType, perm.key, perm.range_end) for perm in response.perm)


def steps(have: Collection[Grant], want: Collection[Grant]) -> list[tuple[Literal["grant", "revoke"], Grant]]:
    """In this order they make `have` into `want`, and nobody loses on the way what he may keep.

    Granting a range anew changes its type. Only a range that etcd holds twice (3.4 may add one beside another that
    begins alike) goes first: revoking it takes away both.
    """
    ranges = Counter(grant[1:] for grant in have)
    twice = {grant[1:]: grant for grant in sorted(have) if ranges[grant[1:]] > 1}
    kept = {grant for grant in have if grant[1:] not in twice}
    wanted = {grant[1:] for grant in want}
    return [
        *(("revoke", grant) for grant in twice.values()),
        *(("grant", grant) for grant in sorted(set(want) - kept)),
        *(("revoke", grant) for grant in sorted(kept) if grant[1:] not in wanted),
    ]


def grant_request(role: str, grant: Grant) -> Any:
    kind, key, end = grant
    return etcdrpc.AuthRoleGrantPermissionRequest(
        name=role, perm=auth_pb2.Permission(permType=kind, key=key, range_end=end)
    )


def revoke_request(role: str, grant: Grant) -> Any:
    _, key, end = grant
    return etcdrpc.AuthRoleRevokePermissionRequest(role=role, key=key, range_end=end)


def _grant(permission: Permission) -> Grant:
    key = wire.key_bytes(permission.key)
    return _TYPES[permission.access], key, wire.range_end(key) if permission.prefix else b""


def _newer(message: Any) -> dict[int, int]:
    """The numbers among the fields that the stubs do not know."""
    varint = 0
    return {field.field_number: field.data for field in UnknownFieldSet(message) if field.wire_type == varint}
