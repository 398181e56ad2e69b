"""Who may do what in a lab's etcd: users, roles, each node's subnet, and authentication turned on.

Invariant: hosts are enrolled by the functions that enrol real ones, and doing it
again finishes what was interrupted. Only hollow nodes differ: those of one process
share a user, whose role is an agent's for every node there is.

It runs as a process of its own in the lab's underlay, because the threads of gRPC
stay in the network namespace in which the first of them was started.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import ip_address

from podlane.errors import PodlaneError
from podlane.host.enrol import enrol_node, enrol_server
from podlane.lab.cluster import load
from podlane.lab.topology import HOLLOW, Host, Topology
from podlane.store.administration import Administration
from podlane.store.config import connect
from podlane.store.interface import Store
from podlane.store.roles import OPERATOR, ROOT, Access, Permission, Role, node_roles, operator_role

_AT_ONCE = 8


def hollow_role() -> Role:
    """An agent's role, where what names its node is so for every name."""
    node = "hollow-1"
    access: dict[str, Access] = {}
    for role in node_roles(node, subnet_keys=(), addresses=())[f"agent@{node}"]:
        for each in role.permissions:
            key = each.key.partition(node)[0]
            access[key] = "readwrite" if "readwrite" in (each.access, access.get(key)) else each.access
    return Role(HOLLOW, tuple(Permission(kind, key, prefix=True) for key, kind in access.items()))


def enrol_all(lab: Topology) -> str:
    """Enrol everybody in a lab whose etcd runs and has its network config; say what there is now."""
    root = lab.store_config(ROOT)
    with closing(Administration(root)) as accounts, closing(connect(root)) as store:
        accounts.ensure_role(operator_role())
        accounts.ensure_user(OPERATOR, [OPERATOR])
        if lab.hollow:
            accounts.ensure_role(hollow_role())
            accounts.ensure_user(HOLLOW, [HOLLOW])
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda host: _enrol_host(lab, host, store, accounts), lab.hosts))
        accounts.enable_auth()
        return f"{len(accounts.users())} users of etcd, by certificate; a node's write only what is its own"


def _enrol_host(lab: Topology, host: Host, store: Store, accounts: Administration) -> None:
    addresses = [ip_address(each) for each in (host.address, *((host.address6,) if lab.dual_stack else ()))]
    if host.role == "server":
        enrol_server(store, accounts, server=host.name, addresses=addresses)
    elif host.role == "node":
        enrol_node(store, accounts, node=host.name, addresses=addresses)


if __name__ == "__main__":
    try:
        sys.stdout.write(enrol_all(load(sys.argv[1])))
    except PodlaneError as error:
        sys.exit(str(error))
