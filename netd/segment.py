"""The underlay's layer 2 segment: who has which MAC address, and packets sent straight to one.

Owns: an AF_PACKET socket that only sends, and questions to the kernel's
neighbour table. The kernel itself resolves (ARP, neighbour discovery): an entry
is "used", as a packet would use it, so a probe goes to the very MAC address a
route over that neighbour would send to. Entries that an operator made permanent
are left alone: to use one (NTF_USE) makes it an ordinary one, seen on Linux
6.18. And the kernel's table is small: past half of its size nothing is added,
so that the neighbours pods talk to are not pushed out. Sources: packet(7),
rtnetlink(7), net/core/neighbour.c (neigh_get, Linux 5.0; neigh_add,
neigh_forced_gc).
"""

from __future__ import annotations

import errno
import math
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from netd.rtnetlink import RTM_GETNEIGH, RTM_NEWNEIGH
from podlane.api.subnets import Address
from podlane.errors import PodlaneError
from podlane.runtime.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    DumpInterrupted,
    Message,
    NetlinkError,
    NetlinkSocket,
    attr,
    attributes,
    get_u32,
    u32,
)

_NDMSG = struct.Struct("=B3xiHBB")  # family, index, state, flags, type
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX = 1, 2, 8
_RTM_GETNEIGHTBL = 66
_NDTA_THRESH3 = 4
_COUNTED = 1.0  # seconds the number of neighbours is believed
_NTF_USE = 0x01
_NUD_PERMANENT = 0x80
_NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | _NUD_PERMANENT  # reachable, stale, delay, probe
_FAMILY: dict[int, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_DEADLINE = 1.0  # seconds an answer of the kernel may take: it must hold up no probe of others


class Segment:
    """The segment of one interface, by its name: it may go and come back. Raises OSError.

    `most`: neighbours the interface may have before no more are looked for; by
    default half of what the kernel's table takes.
    """

    def __init__(self, name: str, *, most: int | None = None) -> None:
        self.name = name
        self._most = most
        self._packets = socket.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
        )  # protocol 0: it receives nothing
        try:
            self._netlink = NetlinkSocket(NETLINK_ROUTE, timeout=_DEADLINE)
        except OSError:
            self._packets.close()
            raise
        self._room: dict[int, tuple[float, int]] = {}  # by family: when it was counted, and what was left

    def close(self) -> None:
        self._packets.close()
        self._netlink.close()

    def mac(self, address: Address) -> bytes | None:
        """What the kernel has for a neighbour; None when it has nothing valid. Raises OSError, NetlinkError."""
        state, mac = self._look_up(address, socket.if_nametoindex(self.name))
        return mac if state & _NUD_VALID and len(mac) == 6 and any(mac) else None

    def resolve(self, addresses: Iterable[Address]) -> None:
        """Have the kernel find out, or confirm, these neighbours' MAC addresses. Raises OSError, PodlaneError."""
        index = socket.if_nametoindex(self.name)
        messages: list[Message] = []
        full = ""
        for address in addresses:
            state = self._look_up(address, index)[0]
            if not state and not self._takes_room(address.version, index):
                family = "ipv4" if address.version == 4 else "ipv6"
                full = f"half of the neighbour table is in use; raise net.{family}.neigh.default.gc_thresh3"
            elif not state & _NUD_PERMANENT:
                messages.append(Message(RTM_NEWNEIGH, NLM_F_CREATE, _neighbour(address, index, _NTF_USE)))
        for failure in self._netlink.batch(messages):
            raise PodlaneError(str(failure))
        if full:
            raise PodlaneError(full)

    def _look_up(self, address: Address, index: int) -> tuple[int, bytes]:
        """The state and MAC address of the kernel's entry, zero and empty without one."""
        try:
            answer = self._netlink.ask(Message(RTM_GETNEIGH, 0, _neighbour(address, index, 0)))
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return 0, b""
            raise
        found = dict(attributes(answer[_NDMSG.size :]))
        return _NDMSG.unpack_from(answer)[2], bytes(found.get(_NDA_LLADDR, b""))

    def send(self, packet: bytes, family: int, mac: bytes) -> None:
        """Send an IP packet to the neighbour with that MAC address. Raises OSError."""
        self._packets.sendto(packet, (self.name, _ETHERTYPE[family], 0, 0, mac))

    def _takes_room(self, family: int, index: int) -> bool:
        """Whether the table has room for one more, which is then taken."""
        now = time.monotonic()
        at, room = self._room.get(family, (-math.inf, 0))
        if now > at + _COUNTED:
            at, room = now, self.most(family) - self._count(family, index)
        self._room[family] = at, room - 1
        return room > 0

    def most(self, family: int) -> int:
        if self._most is not None:
            return self._most
        limit = 0
        for _, body in self._dump(Message(_RTM_GETNEIGHTBL, 0, struct.pack("=B3x", _FAMILY[family]))):
            found = dict(attributes(body[4:]))  # those of single interfaces have no limit
            limit = get_u32(found[_NDTA_THRESH3]) if _NDTA_THRESH3 in found else limit
        return limit // 2

    def _count(self, family: int, index: int) -> int:
        """The interface's neighbours. (The kernel tells the number of all only with our VTEPs' permanent ones.)"""
        body = _NDMSG.pack(_FAMILY[family], 0, 0, 0, 0) + u32(_NDA_IFINDEX, index)
        return sum(1 for _ in self._dump(Message(RTM_GETNEIGH, 0, body)))

    def _dump(self, message: Message) -> Iterator[tuple[int, memoryview]]:
        with suppress(DumpInterrupted):  # the table is always in motion
            yield from self._netlink.dump(message)


def _neighbour(address: Address, index: int, flags: int) -> bytes:
    return _NDMSG.pack(_FAMILY[address.version], index, 0, flags, 0) + attr(_NDA_DST, address.packed)
