"""Which hosts belong to the cluster: a record, etcd users and roles, and for a node its subnet.

Owns: the records below /podlane/enrolled/ and the order in which a host comes and goes.
Invariants: a name and an address are one node's, whoever asks first; the record is written
first and taken away last, so that whatever is interrupted is finished by doing it again;
users go first of all, for that is the revocation: who has a certificate without a user can
do nothing in etcd. The subnet is chosen as netd would and reserved, because only what is
known beforehand can be the one thing a node may write (docs/etcd-roles.md).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import msgspec

from netd.allocate import Take, Who, choose
from netd.identity import NodeIdentity
from netd.reserve import SubnetTaken, release, reserve
from netd.table import SubnetTable
from netd.watched import usable_config
from podlane.api.names import dns_subdomain_error
from podlane.api.network import NetworkConfig
from podlane.api.subnets import DEFAULT_PREFIX, Address, LeaseValue, Subnets, config_key
from podlane.errors import AlreadyExists, Conflict, NotFound, PodlaneError, UsageError
from podlane.store import keys
from podlane.store.enrolled import HostRecord
from podlane.store.interface import Compare, Delete, Get, KeyValue, Op, Put, Store
from podlane.store.roles import ROOT, Role, node_roles, scheduler_role

_RACES = 10


class Accounts(Protocol):
    """What enrolment needs of etcd's users and roles; podlane.store.administration.Administration has it."""

    def ensure_role(self, role: Role) -> object: ...

    def ensure_user(self, name: str, role_names: Collection[str]) -> object: ...

    def delete_user(self, name: str) -> object: ...

    def delete_role(self, name: str) -> object: ...


@dataclass(frozen=True, slots=True)
class NewKey:
    """The hash of the key that a host is known by from now on, and that of the one it may take the place of."""

    hash: str
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a node has now."""

    node: str
    addresses: tuple[Address, ...]
    subnets: Subnets
    users: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hosts:
    """Everything enrolled, by name."""

    nodes: dict[str, HostRecord]
    servers: dict[str, HostRecord]


def read_hosts(store: Store) -> Hosts:
    """Raises StoreUnavailable, PermissionDenied."""
    nodes, servers = store.txn(
        [], [Get(keys.ENROLLED_NODES, prefix=True), Get(keys.ENROLLED_SERVERS, prefix=True)]
    ).reads
    return Hosts(_by_name(nodes, keys.ENROLLED_NODES), _by_name(servers, keys.ENROLLED_SERVERS))


def enrol_node(
    store: Store,
    accounts: Accounts,
    *,
    node: str,
    addresses: Collection[Address],
    subnets: Subnets | None = None,
    key: NewKey | None = None,
    prefix: str = DEFAULT_PREFIX,
    rng: random.Random | None = None,
) -> Enrolment:
    """Give a node its subnet, users and roles. The same again changes nothing; new addresses replace the old.

    `addresses` are those netd has for public ones, one of a family. What the node has reserved it keeps; else
    it gets `subnets`, or free ones. Raises UsageError, NotFound (no network config), AlreadyExists (the name or
    an address is another's), SubnetTaken, OutOfSubnets, StoreUnavailable, PermissionDenied.
    """
    if error := dns_subdomain_error(node):
        raise UsageError(f"enrol node {node}: {error}")
    wanted = tuple(sorted(set(addresses), key=lambda each: (each.version, each)))
    if not wanted or len({each.version for each in wanted}) != len(wanted):
        raise UsageError(f"enrol node {node}: expected one address of each family, got {_listed(wanted) or 'none'}")
    table = SubnetTable(store, prefix)
    step = _Step(table, _config(table, f"enrol node {node}"), node, wanted, key, rng or random.Random())
    held = _reserve(step, subnets)
    users = node_roles(node, subnet_keys=(held.key,), addresses=[str(each) for each in wanted], prefix=prefix)
    _ensure_users(accounts, users)
    return Enrolment(node, wanted, held, tuple(users))


def remove_node(
    store: Store, accounts: Accounts, *, node: str, revoked: str = "", prefix: str = DEFAULT_PREFIX
) -> HostRecord:
    """Take a node's users, roles and subnet away, and its record; return that.

    With `revoked` (the time) a record stays behind that says so, since the certificates are still out there.
    Raises NotFound, Conflict, StoreUnavailable, PermissionDenied.
    """
    key = keys.enrolled_node_key(node)
    kv = store.get(key)
    if kv is None:
        raise NotFound(f"remove node {node}: it is not enrolled")
    record = decode(kv)
    for user in node_roles(node, subnet_keys=(), addresses=(), prefix=prefix):
        accounts.delete_user(user)
        accounts.delete_role(user)  # each has one of its own name, beside those it shares
    if record.subnets:
        _release(SubnetTable(store, prefix), record)
    gone = HostRecord(revoked=record.revoked or revoked)
    op: Op = Put(key, msgspec.json.encode(gone)) if revoked else Delete(key)
    if not store.txn([Compare.modified_at(key, kv.mod_revision)], [op]).succeeded:
        raise Conflict(f"remove node {node}: it was enrolled anew meanwhile; remove it again")
    return record


def enrol_server(
    store: Store, accounts: Accounts, *, server: str, addresses: Collection[Address], key: NewKey | None = None
) -> None:
    """Give a control-plane host its users. The same again changes nothing. Raises as enrol_node does."""
    if error := dns_subdomain_error(server):
        raise UsageError(f"enrol server {server}: {error}")
    where = keys.enrolled_server_key(server)
    kv = store.get(where)
    before = decode(kv) if kv is not None else HostRecord()
    record = HostRecord(tuple(sorted(map(str, addresses))), "", _new_hash(key, before, f"enrol server {server}"))
    if record != before:
        compare = Compare.modified_at(where, kv.mod_revision if kv is not None else 0)
        if not store.txn([compare], [Put(where, msgspec.json.encode(record))]).succeeded:
            raise Conflict(f"enrol server {server}: its record changed meanwhile; do it again")
    _ensure_users(accounts, {f"scheduler@{server}": (scheduler_role(),)})
    accounts.ensure_user(f"join@{server}", [ROOT])


def remove_server(store: Store, accounts: Accounts, *, server: str) -> None:
    """Take a control-plane host's users away, and its record. Its etcd member is not looked at. Raises NotFound."""
    key = keys.enrolled_server_key(server)
    if store.get(key) is None:
        raise NotFound(f"remove server {server}: it is not enrolled")
    for daemon in ("join", "scheduler"):
        accounts.delete_user(f"{daemon}@{server}")
    store.txn([], [Delete(key)])


def decode(kv: KeyValue) -> HostRecord:
    """Raises PodlaneError."""
    try:
        return msgspec.json.decode(kv.value, type=HostRecord)
    except msgspec.DecodeError as error:
        raise PodlaneError(f"read {kv.key}: {error}") from error


# ---- the steps -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """What it takes to find a node's subnets and to write them down."""

    table: SubnetTable
    config: NetworkConfig
    node: str
    addresses: tuple[Address, ...]
    key: NewKey | None
    rng: random.Random


def _reserve(step: _Step, asked: Subnets | None) -> Subnets:
    """Write the record and the reservation, and return the node's subnets."""
    for _ in range(_RACES):
        _check_addresses(step)
        kv = step.table.store.get(keys.enrolled_node_key(step.node))
        before = decode(kv) if kv is not None else HostRecord()
        if asked is not None:
            _check_asked(step, asked)
        held = asked or _kept(step, before) or _free(step)
        if not _record(step, kv, before, held):
            continue
        try:
            reserve(step.table.store, step.table.prefix, step.config, held, step.addresses)
        except SubnetTaken:
            if asked is not None:
                raise
            continue  # somebody was quicker: choose again
        return held
    raise Conflict(f"enrol node {step.node}: the subnets change all the time, {_RACES} attempts failed")


def _check_addresses(step: _Step) -> None:
    for other, record in read_hosts(step.table.store).nodes.items():
        shared = set(step.addresses) & set(record.parsed_addresses())
        if other != step.node and shared:
            raise AlreadyExists(f"enrol node {step.node}: address {_listed(shared)} is node {other}'s")


def _check_asked(step: _Step, asked: Subnets) -> None:
    """Before anything is written; `reserve` does it again, against whoever is quicker."""
    if not step.config.allows(asked):
        networks = " and ".join(map(str, step.config.networks))
        raise UsageError(f"enrol node {step.node}: the config of the network {networks} allows no node {asked}")
    if not _may_have(step, asked, step.addresses):
        raise SubnetTaken(f"enrol node {step.node}: {asked} is another node's")


def _kept(step: _Step, before: HostRecord) -> Subnets | None:
    """The subnets of the node's record, if it can go on with them: allowed, and nobody else's."""
    if not before.subnets:
        return None
    subnets = Subnets.parse_key(before.subnets)
    mine = {*before.parsed_addresses(), *step.addresses}
    return subnets if step.config.allows(subnets) and _may_have(step, subnets, mine) else None


def _may_have(step: _Step, subnets: Subnets, mine: Collection[Address]) -> bool:
    in_the_way = (each for each in step.table.held() if each.subnets.overlaps(subnets))
    return all(each.value is not None and set(mine) & set(each.value.addresses) for each in in_the_way)


def _free(step: _Step) -> Subnets:
    """What netd would take."""
    who = Who(step.node, frozenset(step.addresses))
    choice = choose(step.config, who, step.table.all(who, NodeIdentity(step.node, "", step.node)), None, step.rng)
    return choice.held.subnets if isinstance(choice, Take) else choice.subnets


def _record(step: _Step, kv: KeyValue | None, before: HostRecord, held: Subnets) -> bool:
    """Write the record; False when it changed since it was read as `before`.

    A reservation it had under other addresses changes in the same transaction, so that no interruption
    leaves one behind that no record knows.
    """
    record = HostRecord(
        tuple(map(str, step.addresses)), held.key, _new_hash(step.key, before, f"enrol node {step.node}")
    )
    if record == before:
        return True
    key = keys.enrolled_node_key(step.node)
    compare = [Compare.modified_at(key, kv.mod_revision if kv is not None else 0)]
    ops: list[Op] = [Put(key, msgspec.json.encode(record))]
    if (reserved := _reservation(step.table, before)) is not None:
        compare.append(Compare.modified_at(reserved.key, reserved.mod_revision))
        kept = before.subnets == held.key
        ops.append(_readdressed(reserved, step.addresses) if kept else Delete(reserved.key))
    return step.table.store.txn(compare, ops).succeeded


def _reservation(table: SubnetTable, record: HostRecord) -> KeyValue | None:
    """The lease or reservation of the record's subnets, if it is there and this node's."""
    kv = table.store.get(table.key(Subnets.parse_key(record.subnets))) if record.subnets else None
    if kv is None:
        return None
    with suppress(ValueError):
        if set(LeaseValue.decode(kv.value).addresses) & set(record.parsed_addresses()):
            return kv
    return None


def _new_hash(key: NewKey | None, before: HostRecord, action: str) -> str:
    if key is None:
        return before.key_hash
    if before.key_hash not in {"", key.hash, key.replaces}:
        raise AlreadyExists(f"{action}: another host has taken this name meanwhile")
    return key.hash


def _readdressed(reserved: KeyValue, addresses: tuple[Address, ...]) -> Put:
    v4 = next((each for each in addresses if each.version == 4), None)
    v6 = next((each for each in addresses if each.version == 6), None)
    old = LeaseValue.decode(reserved.value)
    new = LeaseValue(v4, v6, old.backend_type, old.backend_data, old.backend_v6_data)
    return Put(reserved.key, new.encode())


def _release(table: SubnetTable, record: HostRecord) -> None:
    if _reservation(table, record) is not None:
        with suppress(NotFound):
            release(table.store, table.prefix, Subnets.parse_key(record.subnets), force=True)


def _ensure_users(accounts: Accounts, users: dict[str, tuple[Role, ...]]) -> None:
    for user, roles in users.items():
        for role in roles:
            accounts.ensure_role(role)
        accounts.ensure_user(user, [role.name for role in roles])


def _config(table: SubnetTable, action: str) -> NetworkConfig:
    key = config_key(table.prefix)
    kv = table.store.get(key)
    if kv is None:
        raise NotFound(f"{action}: there is no network config at {key}; run `podlane init` first")
    return usable_config(kv.value, f"network config {key}")


def _by_name(found: Iterable[KeyValue], prefix: str) -> dict[str, HostRecord]:
    return {kv.key.removeprefix(prefix): decode(kv) for kv in found}


def _listed(addresses: Iterable[Address]) -> str:
    return ", ".join(map(str, addresses))
