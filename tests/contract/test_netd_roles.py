"""docs/etcd-roles.md on an etcd with authentication: under its roles netd works, and can do nothing else of note."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from netd.lease import DuplicateAddress
from podlane.errors import PermissionDenied
from podlane.store.config import StoreConfig, connect
from podlane.store.interface import Compare, Delete, Get, Put, Store
from podlane.store.mirror import Mirror
from tests.conftest import Etcd, running
from tests.contract.netd_hosts import CONFIG, PREFIX, Host, lease_of, subnets
from tests.contract.test_store_security import Authority

pytestmark = pytest.mark.contract

DOCUMENT = Path(__file__).parents[2] / "docs" / "etcd-roles.md"
OURS = f"/podlane/netd{PREFIX}"
WEB1 = subnets("10.5.34.0/24")
WEB2 = subnets("10.5.35.0/24")
NETWORK = '{"Network":"10.5.0.0/16"}'
WAIT = 20.0


def commands(heading: str) -> list[str]:
    """The shell blocks of a section, in order."""
    text = DOCUMENT.read_text()
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, heading
    return re.findall(r"^```sh\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)


def shell(etcd: Etcd, script: str, env: Mapping[str, str] | None = None) -> None:
    config = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": ",".join(etcd.endpoints), **(env or {})}
    done = subprocess.run(
        ["sh", "-eu", "-c", script],
        env={**os.environ, **config},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


@contextlib.contextmanager
def as_user(etcd: Etcd, name: str, password: str) -> Iterator[Store]:
    store = connect(StoreConfig(endpoints=etcd.endpoints, username=name, password=password))
    try:
        yield store
    finally:
        store.close()


def works_as_netd(host: Host) -> None:
    """Everything netd ever does for its lease."""
    tenancy = host.ensure()
    host.killed()
    host.start(tenancy.subnets)
    assert host.ensure() == tenancy
    host.holder.ensure(CONFIG, replace(host.value, backend_data={"VNI": 2, "VtepMAC": "02:00:00:00:00:99"}))
    host.claim_expires()
    assert host.ensure().subnets == tenancy.subnets
    host.holder.stop()
    host.start()
    assert host.ensure().subnets == tenancy.subnets
    assert tenancy.subnets.key in watched(host.store)


def watched(store: Store) -> set[str]:
    """The leases that netd's mirror sees."""
    stop = threading.Event()
    mirror = Mirror(store, f"{PREFIX}/", decode=lambda kv: kv.value, on_change=lambda: None, name="roles")
    thread = threading.Thread(target=mirror.run, args=(stop,))
    thread.start()
    try:
        assert mirror.wait_synced(WAIT)
        return {key.removeprefix("subnets/") for key in mirror.snapshot()}
    finally:
        stop.set()
        thread.join(WAIT)


def refused(store: Store, *ops: Put | Delete | Get) -> None:
    for op in ops:
        with pytest.raises(PermissionDenied, match="permission denied"):
            store.txn([], [op])


@pytest.fixture
def etcd_with_config(etcd_folder: Path) -> Iterator[Etcd]:
    with running(Etcd(etcd_folder)) as etcd:
        shell(etcd, f"etcdctl put {PREFIX}/config '{NETWORK}'")
        yield etcd


def test_one_role_for_all_nodes(etcd_with_config: Etcd) -> None:
    etcd = etcd_with_config
    for block in commands("Administrator") + commands("One role for all nodes"):
        shell(etcd, block)
    with as_user(etcd, "netd", "netd-password") as store:
        one, two = Host(store, 1), Host(store, 2)
        works_as_netd(one)
        works_as_netd(two)
        one.lease_expires()
        assert one.ensure().subnets == one.holder.previous
        refused(
            store,
            Put(f"{PREFIX}/config", b"{}"),
            Delete("/", prefix=True),
            Put("/registry/pods/default/x", b""),
            Get("/registry/", prefix=True),
            Put("/podlane/config", b""),
        )
        for each in (one, two):
            each.killed()


def test_a_role_for_each_node(etcd_with_config: Etcd) -> None:
    etcd = etcd_with_config
    common, node, enable, remove = commands("A role for each node")
    other = node.replace("web1", "web2").replace("192.168.64.11", "192.168.64.12").replace("10.5.34", "10.5.35")
    for block in (*commands("Administrator"), common, node, other, enable):
        shell(etcd, block)
    with as_user(etcd, "web1", "web1-password") as store1, as_user(etcd, "web2", "web2-password") as store2:
        web1, web2 = Host(store1, 11), Host(store2, 12)
        for host, which in ((web1, WEB1), (web2, WEB2)):
            works_as_netd(host)
            tenancy = host.ensure()
            assert (tenancy.subnets, tenancy.reserved) == (which, True)
        nothing_else_of_note(store1, web2)
        hinders_only_the_others_stop(store1, web2)
        with pytest.raises(DuplicateAddress):
            Host(store1, 1, address=ip_address("192.168.64.12")).ensure()
        for host in (web1, web2):
            host.killed()
    variables = node.partition("\n\n")[0]
    shell(etcd, f"{variables}\n{remove}")
    with as_user(etcd, "web1", "web1-password") as store, pytest.raises(PermissionDenied):
        store.get(f"{PREFIX}/config")
    with as_user(etcd, "root", "root-password") as store:
        assert lease_of(store, WEB1) is None
        assert lease_of(store, WEB2) is not None


def nothing_else_of_note(store: Store, other: Host) -> None:
    """As one node, try what would disturb another, or the network."""
    lease, claim, recent = other.lease, other.claim, other.recent
    assert lease is not None
    assert claim is not None
    assert recent is not None
    for kv in (lease, claim, recent):
        refused(store, Put(kv.key, b"x"), Delete(kv.key))
    refused(
        store,
        Put(f"{PREFIX}/subnets/10.5.99.0-24", b"x"),
        Put(f"{OURS}/nodes/192.168.64.99", b"x"),
        Put(f"{OURS}/recent/10.5.99.0-24", b"x"),
        Put(f"{PREFIX}/config", b"{}"),
        Put("/podlane/config", b"x"),
        Put("/registry/pods/default/x", b"x"),
        Get("/registry/", prefix=True),
        Get("/", prefix=True),
        Delete(f"{PREFIX}/subnets/", prefix=True),
        Delete("/", prefix=True),
    )
    for kv in (claim, recent):
        with pytest.raises(PermissionDenied):
            store.revoke(kv.lease)
    own = f"{PREFIX}/subnets/{WEB1.key}"
    with pytest.raises(PermissionDenied):  # nor by way of a transaction's other branch
        store.txn([Compare.absent(own)], [], [Put(lease.key, b"x")])
    assert (other.lease, other.claim, other.recent) == (lease, claim, recent)


def hinders_only_the_others_stop(store: Store, other: Host) -> None:
    """As one node, put a key of its own onto the etcd lease of another's claim, which etcd allows in a transaction."""
    claim = other.claim
    assert claim is not None
    own = f"{PREFIX}/subnets/{WEB1.key}"
    before = store.get(own)
    assert before is not None
    store.txn([], [Put(own, before.value, claim.lease)])
    other.holder.stop()
    assert other.claim == claim  # it ends within a minute
    store.txn([], [Put(own, before.value)])
    other.start()
    other.ensure()


def test_with_certificates_instead_of_passwords(tmp_path: Path, etcd_folder: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certfile, keyfile = authority.issue("server")
    extra = ("--cert-file", certfile, "--key-file", keyfile, "--client-cert-auth")
    extra += ("--trusted-ca-file", authority.cafile)
    issued = {name: authority.issue(name) for name in ("root", "web1", "stranger")}

    def config(name: str) -> dict[str, str]:
        return {"cafile": authority.cafile, "certfile": issued[name][0], "keyfile": issued[name][1]}

    root = config("root")
    env = {"ETCDCTL_CACERT": root["cafile"], "ETCDCTL_CERT": root["certfile"], "ETCDCTL_KEY": root["keyfile"]}
    common, node, enable, _ = commands("A role for each node")
    (without_password,) = commands("Certificates instead of passwords")
    add_root, add_node = without_password.strip().splitlines()
    with running(Etcd(etcd_folder, extra=extra, scheme="https", **root)) as etcd:
        (administrator,) = commands("Administrator")
        for block in (administrator, common, node, enable):
            script = block.replace("etcdctl user add root:root-password", add_root)
            shell(etcd, script.replace('etcdctl user add "$NODE:$NODE-password"', add_node), env)
        store = connect(StoreConfig(endpoints=etcd.endpoints, **config("web1")))  # type: ignore[arg-type]
        with contextlib.closing(store):
            web1 = Host(store, 11)
            works_as_netd(web1)
            assert web1.ensure().subnets == WEB1
            refused(store, Put(f"{PREFIX}/config", b"{}"), Put(f"{PREFIX}/subnets/{WEB2.key}", b"x"))
            web1.killed()
        store = connect(StoreConfig(endpoints=etcd.endpoints, **config("stranger")))  # type: ignore[arg-type]
        with contextlib.closing(store), pytest.raises(PermissionDenied):
            store.get(f"{PREFIX}/config")
