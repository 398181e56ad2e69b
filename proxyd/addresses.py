"""The addresses at which this node can be called: which there are, and which node ports are served at.

Owns: reading the addresses of this network namespace, and the choice among
them. Invariant: what is chosen is local at that moment; an address that comes
or goes calls `trigger`, so the choice is made anew.

Why by netlink and not from the Node object alone: a node port is served where
the packets arrive, and an InternalIP that is on no link of this host (of a NAT
in front of it, or not yet configured) cannot be listened at.
Source: rtnetlink(7); kube-proxy's --nodeport-addresses.
"""

from __future__ import annotations

import ipaddress
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple, Protocol

from podlane.runtime import netlink as nl
from podlane.runtime.netlink import NETLINK_ROUTE, DumpInterrupted, Message, NetlinkError, NetlinkSocket

PRIMARY = "primary"
"""In place of a CIDR: the node's main address of each family."""

_RTM_GETADDR, _RTM_GETROUTE = 22, 26
_GROUP_ADDRESS4, _GROUP_ADDRESS6 = 5, 9  # RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst and src length, tos, table, protocol, scope, type, flags
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_PREFSRC = 1, 7
_SCOPE_UNIVERSE, _SCOPE_SITE = 0, 200
_UNUSABLE = 0x08 | 0x40  # IFA_F_DADFAILED, IFA_F_TENTATIVE: the host does not answer at it (yet)
_OPTIMISTIC = 0x04
_FAMILIES: tuple[int, ...] = (AF_INET, AF_INET6)
_ELSEWHERE: dict[int, str] = {AF_INET: "192.0.2.1", AF_INET6: "2001:db8::1"}
"""For documentation only (RFC 5737, RFC 3849): nobody has a route there but the default one."""
_ATTEMPTS = 5
_WAIT = 1.0  # seconds a stop may go unnoticed


class Local(NamedTuple):
    """A global address of this host, and the index of its link."""

    address: str
    link: int


class Addresses(Protocol):
    """The node's addresses. Thread-safe; `NodeAddresses` says what each call means."""

    def addresses(self) -> frozenset[str]: ...

    def select(self, ranges: Sequence[str] = (), primary: Sequence[str] = ()) -> tuple[str, ...]: ...


class NodeAddresses:
    """For the network namespace of the thread that makes it. Thread-safe; `watch` belongs to one thread."""

    def __init__(self, *, timeout: float = 10.0) -> None:
        self._lock = threading.Lock()
        # first the events: what changes from now on is heard of
        self._events = NetlinkSocket(NETLINK_ROUTE, groups=[_GROUP_ADDRESS4, _GROUP_ADDRESS6])
        self._socket = NetlinkSocket(NETLINK_ROUTE, timeout=timeout)
        self._seen = self.addresses()

    def close(self) -> None:
        self._events.close()
        with self._lock:
            self._socket.close()

    def addresses(self) -> frozenset[str]:
        """Every address of both families by which others can reach this namespace. Raises NetlinkError.

        That is all but loopback, link-local and multicast ones and those still being checked for duplicates.
        """
        return frozenset(each.address for each in self._list())

    def select(self, ranges: Sequence[str] = (), primary: Sequence[str] = ()) -> tuple[str, ...]:
        """The addresses to serve node ports at, in a stable order. Raises NetlinkError.

        `ranges`: networks in CIDR form and the word "primary"; none means "primary".
        `primary`: the InternalIPs of this node's Node object.
        """
        local = self._list()
        sources = {family: self._default_source(family) for family in _FAMILIES}
        return choose(local, ranges, primary, sources)

    def watch(self, stop: threading.Event, trigger: Callable[[], None]) -> None:
        """Call `trigger` when the addresses changed: the body of one thread."""
        while not stop.is_set():
            try:
                heard = bool(self._events.receive(_WAIT))
            except NetlinkError:
                heard = True  # some notices were lost
            if not heard:
                continue
            try:
                now = self.addresses()
            except NetlinkError:
                trigger()  # who reads them next says what is wrong
                continue
            # an address's lifetime is renewed with every router advertisement: that is no change
            if now != self._seen:
                self._seen = now
                trigger()

    def _list(self) -> list[Local]:
        for attempt in range(_ATTEMPTS):
            with self._lock:
                try:
                    bodies = self._socket.dump(Message(_RTM_GETADDR, 0, _IFADDR.pack(0, 0, 0, 0, 0)))
                    found = [read_address(body) for _, body in bodies]
                except DumpInterrupted:
                    if attempt == _ATTEMPTS - 1:
                        raise
                    continue
            return [each for each in found if each is not None]
        raise AssertionError("unreachable")

    def _default_source(self, family: int) -> str | None:
        """The address the host itself calls the world with; None without a way there."""
        elsewhere = inet_pton(family, _ELSEWHERE[family])
        head = _RTMSG.pack(family, 8 * len(elsewhere), 0, 0, 0, 0, 0, 0, 0)
        with self._lock:
            try:
                answer = self._socket.ask(Message(_RTM_GETROUTE, 0, head + nl.attr(_RTA_DST, elsewhere)))
            except NetlinkError as error:
                if error.errno:
                    return None  # unreachable, in one of its many words
                raise
        source = nl.attribute_map(memoryview(answer)[_RTMSG.size :]).get(_RTA_PREFSRC)
        return None if source is None else inet_ntop(family, bytes(source))


def read_address(body: memoryview) -> Local | None:
    """Decode a listed address; None when others cannot reach the host by it."""
    family, _, flags, scope, link = _IFADDR.unpack_from(body)
    attributes = nl.attribute_map(body[_IFADDR.size :])
    packed = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))
    if family not in _FAMILIES or packed is None or scope not in {_SCOPE_UNIVERSE, _SCOPE_SITE}:
        return None
    if _IFA_FLAGS in attributes:
        flags = nl.get_u32(attributes[_IFA_FLAGS])
    if flags & _UNUSABLE and not flags & _OPTIMISTIC:
        return None
    address = ipaddress.ip_address(bytes(packed))
    if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
        return None
    return Local(inet_ntop(family, bytes(packed)), link)


def choose(
    local: Iterable[Local], ranges: Sequence[str], primary: Sequence[str], sources: Mapping[int, str | None]
) -> tuple[str, ...]:
    """Which of the local addresses to serve at; see `NodeAddresses.select`.

    Primary is, in each family, the first of `primary` that is local, else the
    default route's source (`sources`, by family), else the first global one
    by its link's index.
    """
    ordered = sorted(set(local), key=lambda each: (each.link, _number(each.address)))
    there = dict.fromkeys(each.address for each in ordered)
    networks = [ipaddress.ip_network(each, strict=False) for each in ranges if each != PRIMARY]
    chosen = []
    if not ranges or PRIMARY in ranges:
        for family in _FAMILIES:
            own = [each for each in there if _family(each) == family]
            preferred = [_canonical(each) for each in primary] + [sources.get(family)]
            chosen += [each for each in preferred if each in own][:1] or own[:1]
    chosen += [each for each in there if any(ipaddress.ip_address(each) in network for network in networks)]
    return tuple(sorted(set(chosen), key=_number))


def _canonical(address: str) -> str | None:
    """An address in the one form that can be compared; None when it is none."""
    try:
        return inet_ntop(_family(address), inet_pton(_family(address), address))
    except OSError:
        return None  # a Node object may say anything


def _family(address: str) -> int:
    return AF_INET6 if ":" in address else AF_INET


def _number(address: str) -> tuple[int, bytes]:
    family = _family(address)
    return family, inet_pton(family, address)
