"""What the netd benchmarks reckon with: peers that are not there, and when their entries are."""

from __future__ import annotations

import socket
import struct
import threading
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from bench import traffic
from bench.netd_entries import (
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    Entry,
    Missing,
    fdb_entry,
    messages,
    neighbour_entry,
    parse,
    route_entry,
)
from bench.netd_leases import NETWORK, OWN_RANGE, deletes, entries_of, peers, puts
from netd.desired import Lease, Peers, Underlay
from podlane.api.network import parse_config
from podlane.api.subnets import LeaseValue, Subnets
from podlane.runtime.netlink import attr
from podlane.store.interface import Delete, Put

pytestmark = pytest.mark.unit

SUBNET, VTEP, MAC = IPv4Network("10.1.7.0/24"), IPv4Address("10.1.7.0"), "02:00:00:00:00:08"
REMOTE = IPv4Address("172.16.0.8")
MAC_BYTES = bytes.fromhex(MAC.replace(":", ""))


def route(kind: int = 1, table: int = 254, family: int = 2) -> bytes:
    head = struct.pack("=BBBBBBBBI", family, 24, 0, 0, table, 117, 0, kind, 4)
    return head + attr(1, SUBNET.network_address.packed) + attr(5, VTEP.packed)


def neighbour(state: int, family: int = 2, to: IPv4Address = VTEP) -> bytes:
    return struct.pack("=B3xiHBB", family, 5, state, 2, 0) + attr(1, to.packed) + attr(2, MAC_BYTES)


@pytest.mark.parametrize(
    ("kind", "body", "change"),
    [
        (RTM_NEWROUTE, route(), (route_entry(SUBNET), VTEP.packed)),
        (RTM_DELROUTE, route(), (route_entry(SUBNET), None)),
        (RTM_NEWROUTE, route(table=255), None),
        (RTM_NEWROUTE, route(kind=2), None),
        (RTM_NEWROUTE, route(family=10), None),
        (RTM_NEWNEIGH, neighbour(0x80), (neighbour_entry(VTEP), MAC_BYTES)),
        (RTM_NEWNEIGH, neighbour(0x20), (neighbour_entry(VTEP), None)),
        (RTM_DELNEIGH, neighbour(0x80), (neighbour_entry(VTEP), None)),
        (RTM_NEWNEIGH, neighbour(0x80, family=7, to=REMOTE), (fdb_entry(MAC), REMOTE.packed)),
        (RTM_DELNEIGH, neighbour(0x80, family=7, to=REMOTE), (fdb_entry(MAC), None)),
        (16, b"", None),
    ],
    ids=[
        "route",
        "route gone",
        "local table",
        "not unicast",
        "IPv6",
        "neighbour",
        "neighbour failed, before it goes",
        "neighbour gone",
        "FDB entry",
        "FDB entry gone",
        "a link",
    ],
)
def test_notifications(kind: int, body: bytes, change: tuple[Entry, bytes | None] | None) -> None:
    assert parse(kind, body) == change


def test_a_datagram_is_taken_apart() -> None:
    def message(kind: int, body: bytes) -> bytes:
        return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + b"\0" * (-len(body) & 3)

    datagram = message(24, b"abcde") + message(25, b"")
    assert [(kind, bytes(body)) for kind, body in messages(datagram)] == [(24, b"abcde"), (25, b"")]
    assert list(messages(b"\0" * 16)) == []


def test_the_wait_ends_with_the_last_entry_and_its_right_value() -> None:
    a, b = route_entry(SUBNET), neighbour_entry(VTEP)
    missing = Missing({a: b"x", b: None})
    assert str(missing) == "1 neighbours, 1 routes"
    missing.note(1.0, a, b"wrong")
    missing.note(2.0, b, None)
    missing.note(2.5, fdb_entry(MAC), b"x")
    assert len(missing) == 1
    missing.note(3.0, a, b"x")
    assert (len(missing), missing.since) == (0, 3.0)
    missing.note(4.0, a, b"x")
    assert missing.since == 3.0, "said twice, there since the first time"
    missing.note(5.0, a, None)
    assert len(missing) == 1, "it went again"
    missing.note(6.0, a, b"x")
    assert (str(missing), missing.since) == ("nothing", 6.0)


def test_peers_have_nothing_in_common() -> None:
    some = (*peers(0, 20, direct=True), *peers(20, 5980))
    for of_all in (
        {peer.subnet for peer in some},
        {peer.public_ip for peer in some},
        {peer.mac for peer in some},
        {peer.key for peer in some},
    ):
        assert len(of_all) == 6000
    low, high = (IPv4Address(each) for each in OWN_RANGE)
    assert all(peer.subnet.subnet_of(NETWORK) and not low <= peer.vtep <= high for peer in some)
    assert [str(each) for each in (some[0].public_ip, some[-1].public_ip)] == ["192.168.64.150", "172.16.23.112"]
    for first, count, direct in ((0, 60_000, False), (-1, 2, False), (100, 10, True), (0, 0, False)):
        with pytest.raises(ValueError, match="no room"):
            peers(first, count, direct=direct)


def test_leases_are_as_hosts_write_them() -> None:
    (peer,) = peers(7, 1)
    (put,) = puts([peer], 42)
    assert isinstance(put, Put)
    assert put.key == "/coreos.com/network/subnets/10.1.7.0-24"
    assert put.lease == 42
    value = LeaseValue.decode(put.value)
    assert (value.public_ip, value.vtep_mac()) == (REMOTE, MAC)
    assert deletes([peer]) == [Delete(put.key)]


def test_the_entries_waited_for_are_those_netd_wants() -> None:
    some = (*peers(0, 3, direct=True), *peers(10, 4))
    config = parse_config('{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","DirectRouting":true}}')
    local = IPv4Interface("192.168.64.101/24")
    underlay = Underlay("eth0", 1500, v4=local, public_ip=local.ip)
    leases = [Lease(peer.key, Subnets(v4=peer.subnet), peer.value) for peer in some]
    own = Subnets(v4=IPv4Network("10.200.0.0/24"))
    desired = Peers().desired(config, underlay, own, {"flannel.1": "02:00:00:ff:ff:ff"}, leases)
    wanted: dict[Entry, bytes] = {}
    for destination, each in desired.routes.items():
        assert isinstance(destination, IPv4Network)
        assert each.gateway is not None
        wanted[route_entry(destination)] = each.gateway.packed
    for (_, address), entry in desired.neighbours.items():
        assert isinstance(address, IPv4Address)
        wanted[neighbour_entry(address)] = bytes.fromhex(entry.mac.replace(":", ""))
    for (_, mac), to in desired.fdb.items():
        wanted[fdb_entry(mac)] = to.remote.packed
    assert entries_of(some) == wanted
    assert len(wanted) == 3 + 3 * 4


def test_a_bulk_is_counted_by_who_takes_it() -> None:
    sender, taker = socket.socketpair()
    with sender, taker:
        thread = threading.Thread(target=traffic.take_bulk, args=(taker,))
        thread.start()
        rate = traffic.send_bulk(sender, 0.05)
        thread.join(10)
    assert rate > 0
    assert not thread.is_alive()


def test_an_end_without_a_task_says_what_there_is() -> None:
    with pytest.raises(SystemExit, match="serve KIND"):
        traffic.main(["nothing"])
