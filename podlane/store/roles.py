"""What each user of the cluster's etcd may read and write.

Owns: the roles, as values; administration.py brings etcd to them. Pure.
Invariant: what the three users of one node may write names that node (its
objects, its reports, its lease, its addresses), so that whoever stole a node's
certificates can lie about that node only. Reading is by kind, not by node: a
role cannot follow which secrets a node's pods name, so a stolen node can read
them all. A user has one role for what all of its kind read and one for what it
alone writes, so that a thousand nodes are not a thousand lists of what to read.

etcd counts a comparison in a transaction as reading, a watch or list of a
prefix as reading all of it, and the end of an etcd lease as writing every key
on it. The users are the common names of the certificates (podlane.pki).
Source: server/auth/range_perm_cache.go; which keys, the daemons' own modules,
proved by tests/contract/test_store_roles.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from podlane.api.subnets import DEFAULT_PREFIX, config_key, netd_prefix, subnets_prefix
from podlane.api.types import (
    NODE_LEASE_NAMESPACE,
    ConfigMap,
    EndpointSlice,
    Lease,
    Node,
    Secret,
    Service,
)
from podlane.store import keys

Access = Literal["read", "write", "readwrite"]

ROOT = "root"
"""etcd's own role that may do everything, and the user without which authentication cannot be turned on."""

OPERATOR = "operator"
SCHEDULER = "scheduler"

_PODLANE = "/podlane/"


@dataclass(frozen=True, slots=True)
class Permission:
    """Access to one key, or with `prefix` to all keys that start with it."""

    access: Access
    key: str
    prefix: bool = False

    def __str__(self) -> str:
        return f"{self.access} {self.key}{'*' if self.prefix else ''}"


@dataclass(frozen=True, slots=True)
class Role:
    """A name for permissions. No key is in two of them: etcd 3.4 loses its way among several ranges of one start."""

    name: str
    permissions: tuple[Permission, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(map(str, self.permissions)) or 'nothing'}"


def node_roles(
    node: str, *, subnet_keys: Sequence[str], addresses: Sequence[str], prefix: str = DEFAULT_PREFIX
) -> dict[str, tuple[Role, ...]]:
    """The roles of a node's three users.

    `subnet_keys` are the leases reserved for it (`10.5.34.0-24`), `addresses`
    the public ones that its netd may claim, `prefix` is flannel's. Raises
    ValueError for an address that is none.
    """
    return {
        f"netd@{node}": (_netd(prefix), _netd_of(node, subnet_keys, addresses, prefix)),
        f"proxyd@{node}": (_proxyd(prefix), _proxyd_of(node)),
        f"agent@{node}": (agent_role(), _agent_of(node)),
    }


def shared_roles(prefix: str = DEFAULT_PREFIX) -> tuple[Role, ...]:
    """Those that name no host: what each kind of daemon and operator may, of this version of Podlane."""
    return (_netd(prefix), _proxyd(prefix), agent_role(), scheduler_role(), operator_role(prefix))


def scheduler_role() -> Role:
    """For every server's scheduler: whichever leads writes all objects. It lets nobody join the cluster."""
    return Role(
        SCHEDULER,
        (
            _all("readwrite", keys.REGISTRY),
            _all("readwrite", keys.ELECTION_SCHEDULER),
            _all("readwrite", keys.BINDINGS),
            _all("readwrite", keys.REPORTS),
            _all("readwrite", keys.PROXIES),
            _all("read", keys.CLUSTER_CONFIG),
            _all("read", keys.ENROLLED_NODES),
        ),
    )


def operator_role(prefix: str = DEFAULT_PREFIX) -> Role:
    """For people: everything of the cluster, but not etcd's members and users."""
    network = f"{prefix.rstrip('/')}/"
    return Role(
        OPERATOR,
        (
            _all("readwrite", keys.REGISTRY),
            _all("readwrite", _PODLANE),
            _all("read", keys.ADMINISTRATION),
            _all("readwrite", network),
        ),
    )


def _netd(prefix: str) -> Role:
    return Role("netd", (_all("read", f"{prefix.rstrip('/')}/"), _all("read", netd_prefix(prefix))))


def _netd_of(node: str, subnet_keys: Sequence[str], addresses: Sequence[str], prefix: str) -> Role:
    own = netd_prefix(prefix)
    return Role(
        f"netd@{node}",
        (
            *(_one("readwrite", f"{subnets_prefix(prefix)}{key}") for key in subnet_keys),
            *(_one("readwrite", f"{own}recent/{key}") for key in subnet_keys),
            *(_one("readwrite", f"{own}nodes/{ip_address(address)}") for address in addresses),
        ),
    )


def _proxyd(prefix: str) -> Role:
    """A mirror of one key watches all that begin like it, so single keys are prefixes here."""
    return Role(
        "proxyd",
        (
            _all("read", keys.prefix_for(Service)),
            _all("read", keys.prefix_for(EndpointSlice)),
            _all("read", keys.prefix_for(Node)),
            _all("read", keys.CLUSTER_CONFIG),
            _all("read", config_key(prefix)),
        ),
    )


def _proxyd_of(node: str) -> Role:
    return Role(
        f"proxyd@{node}",
        (_one("readwrite", keys.proxy_key(node)), _all("readwrite", keys.event_reports_prefix(node, "proxyd"))),
    )


def agent_role() -> Role:
    """What every node's agent reads."""
    return Role(
        "agent",
        (
            _all("read", keys.CLUSTER_CONFIG),
            _all("read", keys.PROXIES),
            _all("read", keys.prefix_for(Service)),
            _all("read", keys.prefix_for(EndpointSlice)),
            _all("read", keys.prefix_for(ConfigMap)),
            _all("read", keys.prefix_for(Secret)),
            _all("read", keys.prefix_for(Lease, NODE_LEASE_NAMESPACE)),
            _all("read", keys.prefix_for(Node)),
            _one("read", keys.REVOCATION_LIST),
        ),
    )


def _agent_of(node: str) -> Role:
    return Role(
        f"agent@{node}",
        (
            _all("read", keys.bindings_prefix(node)),
            _one("readwrite", keys.key_for(Node, "", node)),
            _one("readwrite", keys.key_for(Lease, NODE_LEASE_NAMESPACE, node)),
            _all("readwrite", keys.pod_reports_prefix(node)),
            _all("readwrite", keys.event_reports_prefix(node, "agent")),
        ),
    )


def _one(access: Access, key: str) -> Permission:
    return Permission(access, key)


def _all(access: Access, prefix: str) -> Permission:
    return Permission(access, prefix, prefix=True)
