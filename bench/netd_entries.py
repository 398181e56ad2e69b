"""What a kernel has of routes, neighbours and FDB entries, and the moment it got them.

Owns: reading both from notifications and from dumps, apart from netd's own
reading of them, so that a mistake there is not confirmed here. Invariants: an
entry is known by kind and key, and counts as there only with the right value; a
wait ends at the notification of the last entry, and is checked against a dump.
To disturb little, nobody sleeps on the socket: it is emptied once a millisecond
and decoded when enough has come. Source: rtnetlink(7), linux/neighbour.h.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from types import TracebackType
from typing import Literal, NamedTuple, Self

from podlane.errors import PodlaneError
from podlane.runtime.netlink import (
    NETLINK_ROUTE,
    Buffer,
    DumpInterrupted,
    Message,
    NetlinkError,
    NetlinkSocket,
    attr,
    attribute_map,
    get_u32,
)

RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
_GROUPS = 1 << (3 - 1) | 1 << (7 - 1)  # RTNLGRP_NEIGH, RTNLGRP_IPV4_ROUTE
_AF_INET, _AF_BRIDGE = 2, 7
_MAIN_TABLE = 254
_RTN_UNICAST = 1
_RTM_F_FIB_MATCH = 0x2000
_NUD_PERMANENT, _NTF_SELF = 0x80, 0x02
_RTA_DST, _RTA_GATEWAY = 1, 5
_NDA_DST, _NDA_LLADDR = 1, 2
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 128 << 20  # a notification takes up 1 to 2 kB of it
_PAUSE = 0.001
_CHECK = 10.0  # seconds the dump may go on differing from the notifications

_HEADER = struct.Struct("=IHHII")
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=B3xiHBB")  # family, index, state, flags, type
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFA_LOCAL = 2
_IFF_UP = 0x1

Kind = Literal["route", "neighbour", "fdb"]


class Entry(NamedTuple):
    """`key`: destination and prefix length, the neighbour's address, or the MAC address."""

    kind: Kind
    key: bytes


Entries = dict[Entry, bytes]
"""The value: a route's gateway, a neighbour's MAC address, where an FDB entry sends to."""


class EntriesError(PodlaneError):
    """The kernel's entries are not what was waited for."""


def route_entry(destination: IPv4Network) -> Entry:
    return Entry("route", destination.network_address.packed + bytes((destination.prefixlen,)))


def neighbour_entry(address: IPv4Address) -> Entry:
    return Entry("neighbour", address.packed)


def fdb_entry(mac: str) -> Entry:
    return Entry("fdb", bytes.fromhex(mac.replace(":", "")))


def parse(kind: int, body: Buffer) -> tuple[Entry, bytes | None] | None:
    """One message: an entry with its value, or with None when it is gone; None for what is no entry of a peer's."""
    if kind in {RTM_NEWROUTE, RTM_DELROUTE}:
        family, length, _, _, table, _, _, type_, _ = _RTMSG.unpack_from(body)
        if (family, table, type_) != (_AF_INET, _MAIN_TABLE, _RTN_UNICAST):
            return None
        found = attribute_map(memoryview(body)[_RTMSG.size :])
        entry = Entry("route", bytes(found.get(_RTA_DST, b"\0\0\0\0")) + bytes((length,)))
        return entry, bytes(found.get(_RTA_GATEWAY, b"")) if kind == RTM_NEWROUTE else None
    if kind in {RTM_NEWNEIGH, RTM_DELNEIGH}:
        family, _, state, _, _ = _NDMSG.unpack_from(body)
        found = attribute_map(memoryview(body)[_NDMSG.size :])
        to, mac = bytes(found.get(_NDA_DST, b"")), bytes(found.get(_NDA_LLADDR, b""))
        # a neighbour that is deleted is first announced as a failed one
        there = kind == RTM_NEWNEIGH and bool(state & _NUD_PERMANENT)
        if family == _AF_BRIDGE and len(mac) == 6 and len(to) == 4:
            return Entry("fdb", mac), to if there else None
        if family == _AF_INET and len(to) == 4:
            return Entry("neighbour", to), mac if there else None
    return None


def messages(datagram: bytes) -> Iterator[tuple[int, memoryview]]:
    """(type, body) of each message in a datagram."""
    view, at = memoryview(datagram), 0
    while at + _HEADER.size <= len(view):
        length, kind, _, _, _ = _HEADER.unpack_from(view, at)
        if length < _HEADER.size:
            return
        yield kind, view[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


class Missing:
    """What is still not as wanted, and when it last was not. A wanted value of None: the entry must be gone."""

    def __init__(self, wanted: Mapping[Entry, bytes | None]) -> None:
        self._wanted = wanted
        self._left = set(wanted)
        self.since = 0.0

    def __len__(self) -> int:
        return len(self._left)

    def note(self, at: float, entry: Entry, value: bytes | None) -> None:
        if entry not in self._wanted:
            return
        if value == self._wanted[entry]:
            if entry in self._left:
                self._left.remove(entry)
                self.since = at
        else:
            self._left.add(entry)

    def __str__(self) -> str:
        """How many of each kind."""
        kinds = [entry.kind for entry in self._left]
        return ", ".join(f"{kinds.count(kind)} {kind}s" for kind in sorted(set(kinds))) or "nothing"


class EntryWatch:
    """Notifications of the namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._socket.bind((0, _GROUPS))
        self._socket.setblocking(False)
        self._dumps = NetlinkSocket(NETLINK_ROUTE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._dumps.close()

    def forget(self) -> None:
        """Drop what has come so far."""
        while self._take() is not None:
            pass

    def wait(
        self,
        wanted: Mapping[Entry, bytes | None],
        *,
        timeout: float = 60.0,
        going_on: Callable[[], bool] = lambda: True,
    ) -> float:
        """Return the monotonic time at which the last of `wanted` came to be, as notified since `forget`.

        Raises EntriesError when that does not happen in time, when `going_on`
        turns false, and when a dump does not agree.
        """
        missing = Missing(wanted)
        pending: list[tuple[float, bytes]] = []
        begin = time.monotonic()
        while missing:
            while (datagram := self._take()) is not None:
                pending.append((time.monotonic(), datagram))
            if len(pending) >= len(missing):
                for at, each in pending:
                    for change in (parse(*message) for message in messages(each)):
                        if change is not None:
                            missing.note(at, *change)
                pending.clear()
            waited = time.monotonic() - begin
            if missing and (waited > timeout or not going_on()):
                raise EntriesError(f"wait for {len(wanted)} entries: {missing} missing after {waited:.0f} s")
            time.sleep(_PAUSE)
        self._check(wanted)
        return missing.since

    def entries(self) -> Entries:
        """All there are now."""
        return dump(self._dumps)

    def _check(self, wanted: Mapping[Entry, bytes | None]) -> None:
        deadline = time.monotonic() + _CHECK
        while True:
            have = self.entries()
            missing = Missing({entry: value for entry, value in wanted.items() if have.get(entry) != value})
            if not missing:
                return
            if time.monotonic() > deadline:
                raise EntriesError(f"look at {len(wanted)} entries: {missing} are not as they were announced")
            time.sleep(0.1)

    def _take(self) -> bytes | None:
        try:
            return self._socket.recv(65536)
        except BlockingIOError:
            return None
        except OSError as error:
            raise EntriesError(f"receive notifications: {error.strerror}") from error


# --- looking ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkSample:
    """A link as far as netd sees to it, without its index, which a new one does not share."""

    mtu: int
    mac: bytes
    up: bool
    addresses: frozenset[bytes]


def dump(nl: NetlinkSocket) -> Entries:
    """Every entry of this socket's namespace."""
    entries: Entries = {}
    for request in (
        Message(RTM_GETROUTE, 0, _RTMSG.pack(_AF_INET, 0, 0, 0, _MAIN_TABLE, 0, 0, _RTN_UNICAST, 0)),
        Message(RTM_GETNEIGH, 0, _NDMSG.pack(_AF_INET, 0, 0, 0, 0)),
        Message(RTM_GETNEIGH, 0, _NDMSG.pack(_AF_BRIDGE, 0, 0, 0, 0)),
    ):
        for change in _dumped(nl, request):
            if change is not None and change[1] is not None:
                entries[change[0]] = change[1]
    return entries


def _dumped(nl: NetlinkSocket, request: Message) -> list[tuple[Entry, bytes | None] | None]:
    for _ in range(20):
        try:
            return [parse(kind, body) for kind, body in nl.dump(request)]
        except DumpInterrupted:
            continue
    raise EntriesError("dump entries: they change faster than they can be read")


def look_up(nl: NetlinkSocket, index: int, entry: Entry) -> bytes | None:
    """One entry's value, cheap however many others there are; None when it is not there."""
    if entry.kind == "route":
        body = _RTMSG.pack(_AF_INET, 32, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH) + attr(_RTA_DST, entry.key[:4])
        request = Message(RTM_GETROUTE, 0, body)
    elif entry.kind == "neighbour":
        request = Message(RTM_GETNEIGH, 0, _NDMSG.pack(_AF_INET, index, 0, 0, 0) + attr(_NDA_DST, entry.key))
    else:
        body = _NDMSG.pack(_AF_BRIDGE, index, 0, _NTF_SELF, 0) + attr(_NDA_LLADDR, entry.key)
        request = Message(RTM_GETNEIGH, 0, body)
    try:
        answer = nl.ask(request)
    except NetlinkError as error:
        if not error.errno:
            raise
        return None
    found = parse(RTM_NEWROUTE if entry.kind == "route" else RTM_NEWNEIGH, answer)
    # a route that is not there is answered with the next best
    return found[1] if found is not None and found[0] == entry else None


def find_link(nl: NetlinkSocket, name: str) -> tuple[int, LinkSample] | None:
    """A link's index and state, None when there is none of that name."""
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + attr(_IFLA_IFNAME, name.encode() + b"\0")
    try:
        answer = nl.ask(Message(RTM_GETLINK, 0, body))
    except NetlinkError as error:
        if not error.errno:
            raise
        return None
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(answer)
    found = attribute_map(memoryview(answer)[_IFINFOMSG.size :])
    addresses = set()
    for kind, address in nl.dump(Message(RTM_GETADDR, 0, _IFADDRMSG.pack(_AF_INET, 0, 0, 0, 0))):
        _, length, _, _, at = _IFADDRMSG.unpack_from(address)
        if kind == RTM_NEWADDR and at == index:
            addresses.add(bytes(attribute_map(address[_IFADDRMSG.size :])[_IFA_LOCAL]) + bytes((length,)))
    mac = bytes(found[_IFLA_ADDRESS])
    return index, LinkSample(get_u32(found[_IFLA_MTU]), mac, bool(flags & _IFF_UP), frozenset(addresses))
