"""Hosts that come and go: names, addresses, subnets and users, on a store in memory."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from netd.reserve import SubnetTaken, reserve
from podlane.api.network import parse_config
from podlane.api.subnets import Subnets
from podlane.errors import AlreadyExists, NotFound, UsageError
from podlane.host.enrol import Enrolment, NewKey, enrol_node, enrol_server, read_hosts, remove_node, remove_server
from podlane.store.interface import Delete, Put
from podlane.store.memory import MemoryStore
from tests.contract.netd_hosts import PREFIX, leases, put, subnets
from tests.unit.host_accounts import FakeAccounts

pytestmark = pytest.mark.unit

V4 = '{"Network":"10.5.0.0/16"}'
DUAL = '{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}'
SMALL = '{"Network":"10.5.0.0/28"}'  # three usable /30


class Cluster:
    def __init__(self, config: str = V4) -> None:
        self.store = MemoryStore()
        self.accounts = FakeAccounts()
        if config:
            put(self.store, f"{PREFIX}/config", config)

    def enrol(
        self, node: str = "web1", *addresses: str, want: Subnets | None = None, key: NewKey | None = None
    ) -> Enrolment:
        found = [ip_address(each) for each in addresses or ("192.168.64.11",)]
        return enrol_node(
            self.store,
            self.accounts,
            node=node,
            addresses=found,
            subnets=want,
            key=key,
            rng=random.Random(1),
        )

    def remove(self, node: str, revoked: str = "") -> None:
        remove_node(self.store, self.accounts, node=node, revoked=revoked)

    @property
    def reservations(self) -> dict[str, str]:
        return {key: str(value.addresses[0]) for key, value in leases(self.store).items()}

    def state(self) -> object:
        items = [(kv.key, kv.value, kv.lease) for kv in self.store.list("/").items]
        return items, self.accounts.users, self.accounts.roles


def test_a_node_gets_a_subnet_users_and_roles_and_keeps_them() -> None:
    cluster = Cluster()
    node = cluster.enrol()
    assert node.users == ("netd@web1", "proxyd@web1", "agent@web1")
    assert cluster.reservations == {node.subnets.key: "192.168.64.11"}
    assert cluster.accounts.users["netd@web1"] == {"netd", "netd@web1"}
    written = {str(permission) for permission in cluster.accounts.roles["netd@web1"].permissions}
    assert written == {
        f"readwrite {PREFIX}/subnets/{node.subnets.key}",
        f"readwrite /podlane/netd{PREFIX}/recent/{node.subnets.key}",
        f"readwrite /podlane/netd{PREFIX}/nodes/192.168.64.11",
    }
    before = cluster.store.list("/").revision
    assert cluster.enrol() == node
    assert cluster.store.list("/").revision == before


def test_a_dual_stack_node_has_both_subnets_and_both_addresses() -> None:
    cluster = Cluster(DUAL)
    node = cluster.enrol("web1", "fd00::11", "192.168.64.11")
    assert node.subnets.v4 is not None
    assert node.subnets.v6 is not None
    assert [str(each) for each in node.addresses] == ["192.168.64.11", "fd00::11"]
    permissions = {permission.key for permission in cluster.accounts.roles["netd@web1"].permissions}
    assert f"/podlane/netd{PREFIX}/nodes/fd00::11" in permissions


def test_what_cannot_be_is_refused_and_nothing_is_written() -> None:
    cluster = Cluster(config="")
    empty = cluster.state()
    with pytest.raises(NotFound, match=r"enrol node web1: there is no network config at .*; run `podlane init` first"):
        cluster.enrol()
    put(cluster.store, f"{PREFIX}/config", V4)
    with pytest.raises(UsageError, match="enrol node Web_1: expected a DNS name"):
        cluster.enrol("Web_1")
    with pytest.raises(UsageError, match=r"one address of each family, got 10\.0\.0\.1, 10\.0\.0\.2"):
        cluster.enrol("web1", "10.0.0.2", "10.0.0.1")
    with pytest.raises(UsageError, match=r"the config of the network 10\.5\.0\.0/16 allows no node 10\.6\.0\.0/24"):
        cluster.enrol(want=subnets("10.6.0.0/24"))
    cluster.store.txn([], [Delete(f"{PREFIX}/config")])
    assert cluster.state() == empty


def test_an_address_is_one_nodes() -> None:
    cluster = Cluster()
    cluster.enrol()
    with pytest.raises(AlreadyExists, match=r"enrol node web2: address 192\.168\.64\.11 is node web1's"):
        cluster.enrol("web2")
    assert set(read_hosts(cluster.store).nodes) == {"web1"}


def test_a_name_whose_key_changed_since_it_was_looked_at_is_another_hosts() -> None:
    cluster = Cluster()
    cluster.enrol(key=NewKey("aa"))
    with pytest.raises(AlreadyExists, match="enrol node web1: another host has taken this name meanwhile"):
        cluster.enrol(key=NewKey("bb"))
    cluster.enrol(key=NewKey("bb", replaces="aa"))
    cluster.enrol()
    assert read_hosts(cluster.store).nodes["web1"].key_hash == "bb"


def test_a_reservation_or_a_lease_of_its_address_becomes_the_nodes() -> None:
    cluster = Cluster()
    reserve(cluster.store, PREFIX, parse_config(V4), subnets("10.5.34.0/24"), [ip_address("192.168.64.11")])
    assert cluster.enrol().subnets == subnets("10.5.34.0/24")
    lease = cluster.store.grant(60)
    put(cluster.store, f"{PREFIX}/subnets/10.5.35.0-24", '{"PublicIP":"192.168.64.12","PublicIPv6":null}', lease)
    assert cluster.enrol("web2", "192.168.64.12").subnets == subnets("10.5.35.0/24")
    kv = cluster.store.get(f"{PREFIX}/subnets/10.5.35.0-24")
    assert kv is not None
    assert kv.lease == 0


def test_the_last_free_subnets_are_found_and_then_there_are_none() -> None:
    cluster = Cluster(SMALL)
    found = {cluster.enrol(f"web{n}", f"192.168.64.{n}").subnets.key for n in range(1, 4)}
    assert found == {"10.5.0.4-30", "10.5.0.8-30", "10.5.0.12-30"}
    with pytest.raises(Exception, match="all 3 /30 subnets"):
        cluster.enrol("web4", "192.168.64.4")


def test_a_subnet_asked_for_is_had_or_refused() -> None:
    cluster = Cluster()
    assert cluster.enrol(want=subnets("10.5.9.0/24")).subnets == subnets("10.5.9.0/24")
    with pytest.raises(SubnetTaken, match=r"enrol node web2: 10\.5\.9\.0/24 is another node's"):
        cluster.enrol("web2", "192.168.64.12", want=subnets("10.5.9.0/24"))


def test_a_node_whose_address_changes_keeps_its_subnet_and_loses_the_old_address() -> None:
    cluster = Cluster()
    before = cluster.enrol()
    after = cluster.enrol("web1", "192.168.64.99")
    assert after.subnets == before.subnets
    assert cluster.reservations == {before.subnets.key: "192.168.64.99"}
    permissions = {permission.key for permission in cluster.accounts.roles["netd@web1"].permissions}
    assert not any("192.168.64.11" in key for key in permissions)


def test_a_node_whose_subnet_the_network_does_not_allow_any_more_gets_another() -> None:
    cluster = Cluster()
    before = cluster.enrol()
    put(cluster.store, f"{PREFIX}/config", '{"Network":"10.7.0.0/16"}')
    after = cluster.enrol()
    assert str(after.subnets).startswith("10.7.")
    assert before.subnets.key not in cluster.reservations


def test_whatever_is_interrupted_is_finished_by_doing_it_again() -> None:
    whole = Cluster()
    whole.enrol()
    calls = whole.accounts.calls
    for at in range(1, calls + 1):
        cluster = Cluster()
        cluster.accounts.fail_at = at
        with pytest.raises(InterruptedError):
            cluster.enrol()
        cluster.enrol()
        assert cluster.state() == whole.state()
    for at in range(1, 7):
        cluster = Cluster()
        cluster.enrol()
        cluster.accounts.fail_at = cluster.accounts.calls + at
        with pytest.raises(InterruptedError):
            cluster.remove("web1")
        cluster.remove("web1")
        assert (cluster.accounts.users, cluster.reservations, read_hosts(cluster.store).nodes) == ({}, {}, {})


def test_a_removed_node_has_nothing_left_and_the_others_all_of_theirs() -> None:
    cluster = Cluster()
    cluster.enrol("web2", "192.168.64.12")
    alone = cluster.state()
    cluster.enrol()
    cluster.remove("web1")
    assert cluster.state() == alone
    with pytest.raises(NotFound, match="remove node web1: it is not enrolled"):
        cluster.remove("web1")


def test_a_revoked_name_is_remembered_and_its_address_is_free() -> None:
    cluster = Cluster()
    cluster.enrol(key=NewKey("aa"))
    cluster.remove("web1", revoked="2026-11-29T00:00:00Z")
    record = read_hosts(cluster.store).nodes["web1"]
    assert (record.revoked, record.key_hash, record.addresses) == ("2026-11-29T00:00:00Z", "", ())
    assert cluster.enrol("web2").node == "web2"
    assert cluster.enrol("web1", "192.168.64.13", key=NewKey("bb")).node == "web1"
    assert read_hosts(cluster.store).nodes["web1"].revoked == ""


def test_what_is_somebody_elses_by_now_is_not_released() -> None:
    cluster = Cluster()
    node = cluster.enrol()
    cluster.store.txn([], [Put(f"{PREFIX}/subnets/{node.subnets.key}", b'{"PublicIP":"192.168.64.77"}')])
    cluster.remove("web1")
    assert cluster.reservations == {node.subnets.key: "192.168.64.77"}


def test_a_server_has_its_users_and_loses_them() -> None:
    cluster = Cluster()
    enrol_server(cluster.store, cluster.accounts, server="s1", addresses=[ip_address("192.168.64.1")])
    assert cluster.accounts.users == {"scheduler@s1": {"scheduler"}, "join@s1": {"root"}}
    assert read_hosts(cluster.store).servers["s1"].addresses == ("192.168.64.1",)
    remove_server(cluster.store, cluster.accounts, server="s1")
    assert cluster.accounts.users == {}
    assert read_hosts(cluster.store).servers == {}
