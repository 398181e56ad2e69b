"""The slot a client is hashed to: the kernel's, and hashing.py's, for many clients and every size of table.

Everything is on one host: each slot leads to a port of its own, and a raw socket
sees to which port a client's datagram went.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from proxyd.chains import HASH_SEED, OUTSIDE_SLOTS
from proxyd.hashing import jhash, slot_of
from proxyd.nft import KernelNft
from proxyd.ruleset import Skeleton
from proxyd.tables import (
    ADDRESSES,
    CLUSTER_IPS,
    ENDPOINTS,
    INSIDE,
    IPV4,
    IPV6,
    PICKS,
    SERVICES,
    Family,
    Frontend,
    Target,
    Transaction,
    pack_address,
    pack_frontend,
    pack_mark,
    pack_target,
)
from tests.kernel.conftest import inside

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [IPV4, IPV6], ids=str)
VIPS = {IPV4: "10.96.0.1", IPV6: "fd00:96::1"}
POD = {IPV4: "10.5.1.2", IPV6: "fd00:5::2"}
CLIENTS = {IPV4: "10.77.0.0/16", IPV6: "fd00:77::/64"}
FIRST_PORT = 1
"""The port of slot 0: the largest table has 65,521 slots."""


class Host:
    """Sends from any address of `CLIENTS` to the service, and tells to which port the kernel sent it."""

    def __init__(self, netns: Any, family: Family) -> None:
        self.family = family
        self.ns = netns.add("host")
        self.ns.run("sysctl -qw net.ipv6.ip_nonlocal_bind=1")
        six = ["-6"] if family is IPV6 else []
        self.ns.run(["ip", *six, "address", "add", f"{POD[family]}/{family.width * 8}", "dev", "lo"])
        self.ns.run(["ip", *six, "route", "add", "local", CLIENTS[family], "dev", "lo"])
        self.ns.run(["ip", *six, "route", "add", VIPS[family], "dev", "lo"])
        with inside(self.ns):
            self.nft = KernelNft()
            self._pod = socket.socket(family.af, socket.SOCK_RAW, socket.IPPROTO_UDP)
            # as pods, whose address is kept
            self.nft.load(Skeleton((CLIENTS[family],), (), family=family))
        self._pod.bind((POD[family], 0))
        self._pod.settimeout(5)

    def close(self) -> None:
        self.nft.close()
        self._pod.close()

    def target(self, slot: int) -> bytes:
        return pack_target(Target(POD[self.family], FIRST_PORT + slot))

    def serve(self, chain: str, port: int, slots: int) -> None:
        """Make the service's port hash with a chain of so many slots."""
        at = pack_frontend(Frontend(VIPS[self.family], "UDP", port))
        change = Transaction(self.family, chains=[chain])
        change.put(SERVICES, at, f"goto {chain}", replaces=False)
        change.put(CLUSTER_IPS, at[:-8], None, replaces=False)
        for slot in range(slots):
            if "aff" in chain:
                change.put(PICKS, at + pack_mark(slot), pack_mark(port << 16 | slot), replaces=False)
                change.put(ADDRESSES, pack_mark(port << 16 | slot), self.target(slot), replaces=False)
            else:
                change.put(ENDPOINTS, at + pack_mark(slot), self.target(slot), replaces=False)
        self.nft.commit(change)

    def clients(self, count: int) -> list[str]:
        rng = random.Random(5)
        if self.family is IPV4:
            return [f"10.77.{n >> 8}.{n & 255}" for n in rng.sample(range(1, 65535), count)]
        hosts = (rng.getrandbits(64) for _ in range(count))
        return [f"fd00:77::{n >> 48:x}:{n >> 32 & 65535:x}:{n >> 16 & 65535:x}:{n & 65535:x}" for n in hosts]

    def slot_of(self, client: str, port: int) -> int:
        """Where the kernel sends the client's first datagram."""
        with inside(self.ns):
            sender = socket.socket(self.family.af, socket.SOCK_DGRAM)
        with sender:
            sender.bind((client, 0))
            sender.sendto(b"?", (VIPS[self.family], port))
            datagram, (source, *_) = self._pod.recvfrom(128)
        assert pack_address(source) == pack_address(client)
        header = datagram[20:] if self.family is IPV4 else datagram  # IPv6 comes without
        return int.from_bytes(header[2:4]) - FIRST_PORT


@pytest.fixture
def host(netns: Any, family: Family) -> Iterator[Host]:
    made = Host(netns, family)
    yield made
    made.close()


@FAMILIES
@pytest.mark.parametrize("slots", [1021, 8191, 65521])
def test_the_kernel_picks_the_slot_that_we_say(host, slots):
    host.serve(f"hash{slots}", 80, slots)
    clients = host.clients(100)
    found = {client: host.slot_of(client, 80) for client in clients}
    assert found == {client: slot_of(pack_address(client), slots, HASH_SEED) for client in clients}
    assert len(set(found.values())) > 80  # and it is not one and the same for all


@FAMILIES
def test_with_session_affinity_the_first_pick_is_the_same(host):
    host.serve("hash1021-aff60", 81, 1021)
    for client in host.clients(40):
        slot = slot_of(pack_address(client), 1021, HASH_SEED)
        assert [host.slot_of(client, 81) for _ in range(2)] == [slot, slot]
    remembered = host.nft.affinity(host.family)
    assert sorted(remembered.values()) == sorted(
        pack_mark(81 << 16 | slot_of(pack_address(client), 1021, HASH_SEED)) for client in host.clients(40)
    )


@FAMILIES
def test_slots_for_clients_outside_begin_at_their_offset(host, family):
    """The chain's first rules let pods and this host through to `inside`; here that leads nowhere."""
    at = pack_frontend(Frontend(VIPS[family], "UDP", 82))
    change = Transaction(family, chains=["outside-hash1021"])
    change.put(SERVICES, at, "goto outside-hash1021", replaces=False)
    change.put(CLUSTER_IPS, at[:-8], None, replaces=False)
    for slot in range(1021):
        change.put(ENDPOINTS, at + pack_mark(OUTSIDE_SLOTS + slot), host.target(slot), replaces=False)
    host.nft.commit(change)
    assert host.nft.dump(family)[INSIDE] == {}
    for client in host.clients(40):
        assert host.slot_of(client, 82) == slot_of(pack_address(client), 1021, HASH_SEED)


def test_the_hash_itself():
    """What slot_of scales: differing by one bit, clients have nothing in common."""
    hashes = [jhash(pack_address(f"10.77.0.{n}"), HASH_SEED) for n in range(256)]
    assert len(set(hashes)) == 256
    assert all(60 < sum(each >> bit & 1 for each in hashes) < 196 for bit in range(32))
