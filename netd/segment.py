"""The underlay's layer 2 segment: who has which MAC address, and packets sent straight to one.

Owns: an AF_PACKET socket that only sends, and questions to the kernel's
neighbour table. The kernel itself resolves (ARP, neighbour discovery): an entry
is "used", as a packet would use it, so a probe goes to the very MAC address a
route over that neighbour would send to. Entries that an operator made permanent
are left alone: to use one (NTF_USE) makes it an ordinary one, seen on Linux
6.18. Sources: packet(7), rtnetlink(7), net/core/neighbour.c (neigh_get, Linux
5.0; neigh_add).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from netd.rtnetlink import RTM_GETNEIGH, RTM_NEWNEIGH
from podlane.api.subnets import Address
from podlane.errors import PodlaneError
from podlane.runtime.netlink import NETLINK_ROUTE, NLM_F_CREATE, Message, NetlinkError, NetlinkSocket, attr, attributes

_NDMSG = struct.Struct("=B3xiHBB")  # family, index, state, flags, type
_NDA_DST, _NDA_LLADDR = 1, 2
_NTF_USE = 0x01
_NUD_PERMANENT = 0x80
_NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | _NUD_PERMANENT  # reachable, stale, delay, probe
_FAMILY: dict[int, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_DEADLINE = 1.0  # seconds an answer of the kernel may take: it must hold up no probe of others


class Segment:
    """The segment of one interface, by its name: it may go and come back. Raises OSError."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._packets = socket.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
        )  # protocol 0: it receives nothing
        try:
            self._netlink = NetlinkSocket(NETLINK_ROUTE, timeout=_DEADLINE)
        except OSError:
            self._packets.close()
            raise

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
        messages = [
            Message(RTM_NEWNEIGH, NLM_F_CREATE, _neighbour(address, index, _NTF_USE))
            for address in addresses
            if not self._look_up(address, index)[0] & _NUD_PERMANENT
        ]
        for failure in self._netlink.batch(messages):
            hint = "; raise net.ipv4.neigh.default.gc_thresh3" if failure.errno == errno.ENOBUFS else ""
            raise PodlaneError(f"{failure}{hint}")

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


def _neighbour(address: Address, index: int, flags: int) -> bytes:
    return _NDMSG.pack(_FAMILY[address.version], index, 0, flags, 0) + attr(_NDA_DST, address.packed)
