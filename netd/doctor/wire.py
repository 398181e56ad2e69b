"""The sockets the probes go through, and the three places where their answers are looked for.

Owns: sending whole IP packets past this host's own overlay, and hearing what
comes in on the underlay (before any firewall), on the overlay device (after
decapsulation) and at a socket (where a program would be). An answer that is
heard at one place and not at the next was lost in this host in between.
Invariants: only what a probe may be answered with is taken in, so a busy host
costs nothing (classic BPF, in the kernel); no wait is unbounded. Source:
packet(7), socket(7), linux/filter.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from netd.desired import Family
from podlane.api.subnets import Address

_ARPHRD_ETHER = 1
_ETH_P_ALL, _ETH_P_IP, _ETH_P_ARP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x0806, 0x86DD
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_PMTUDISC_PROBE = 3
_BUFFER = 4 << 20
_LONGEST = 65535


class Place(IntEnum):
    """Where an answer was heard; each is further in than the one before."""

    UNDERLAY = 1
    DEVICE = 2
    SOCKET = 3


class Heard(NamedTuple):
    """`data` starts with an IP header; `at` is the kernel's clock, in seconds since the epoch."""

    place: Place
    data: bytes
    at: float


class Sending(NamedTuple):
    """Something to do `after` seconds from the start of an exchange."""

    after: float
    send: Callable[[], None]


@dataclass(slots=True)
class Wire:
    """Open sockets; see `open_wire`."""

    _raw: dict[int, socket.socket]
    _frames: socket.socket
    _listening: list[tuple[socket.socket, Place]]
    devices: frozenset[str]
    """Overlay devices that are listened at."""
    _echo: dict[tuple[Family, Address], socket.socket] = field(default_factory=dict)

    def send(self, packet: bytes, to: Address) -> None:
        """A whole IP packet, the way this host routes it from the underlay. Raises OSError."""
        self._raw[to.version].sendto(packet, (str(to), 0))

    def send_frame(self, packet: bytes, interface: str, mac: str) -> None:
        """The same past routing and firewall, to a neighbour's MAC address. Raises OSError."""
        protocol = _ETH_P_IP if packet[0] >> 4 == 4 else _ETH_P_IPV6
        self._frames.sendto(packet, (interface, protocol, 0, 0, bytes.fromhex(mac.replace(":", ""))))

    def send_echo(self, message: bytes, source: Address, to: Address) -> None:
        """An ICMP message, by this host's routes and overlay, as a program would send it. Raises OSError."""
        family: Family = 4 if to.version == 4 else 6
        self._echo_socket(family, source).sendto(message, (str(to), 0))

    def send_datagram(self, payload: bytes, source: Address, to: Address, port: int) -> None:
        """A UDP datagram likewise: its checksum is the kernel's or the interface's to make. Raises OSError."""
        with socket.socket(_af(to.version), socket.SOCK_DGRAM) as s:
            s.bind((str(source), 0))
            s.sendto(payload, (str(to), port))

    def _echo_socket(self, family: Family, source: Address) -> socket.socket:
        if (family, source) not in self._echo:
            protocol = socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6
            s = socket.socket(_af(family), socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
            self._echo[family, source] = s
            s.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            # don't fragment, and believe no path MTU that was learned earlier
            level, option = (socket.IPPROTO_IP, 10) if family == 4 else (socket.IPPROTO_IPV6, 23)
            s.setsockopt(level, option, _PMTUDISC_PROBE)
            s.bind((str(source), 0))
            self._listening.append((s, Place.SOCKET))
        return self._echo[family, source]

    def listen_at(self, family: Family, source: Address) -> None:
        """Hear ICMP that reaches this address of the host. Raises OSError when it has no such address."""
        self._echo_socket(family, source)

    def exchange(self, sendings: Sequence[Sending], done: Callable[[], bool], linger: float) -> Iterator[Heard]:
        """Send each in its time and yield what is heard, until `done` or `linger` seconds after the last one."""
        todo = sorted(sendings, key=lambda each: each.after)
        start = time.monotonic()
        end = start + linger + (todo[-1].after if todo else 0.0)
        while True:
            now = time.monotonic()
            while todo and start + todo[0].after <= now:
                todo.pop(0).send()
                end = max(end, time.monotonic() + linger if not todo else end)
            if now >= end or (not todo and done()):
                return
            until = min(end, start + todo[0].after) if todo else end
            ready, _, _ = select.select([s for s, _ in self._listening], [], [], max(0.0, min(until - now, 0.1)))
            for s, place in self._listening[:]:
                if s in ready:
                    yield from _receive(s, place)

    def close(self) -> None:
        for s in (*self._raw.values(), self._frames, *(s for s, _ in self._listening)):
            s.close()


@contextlib.contextmanager
def open_wire(underlay: str, devices: Sequence[str], port: int) -> Iterator[Wire]:
    """Devices that are missing or down are left out. Raises OSError (EPERM without root)."""
    with contextlib.ExitStack() as stack:
        raw: dict[int, socket.socket] = {}
        for version in (4, 6):
            raw[version] = stack.enter_context(
                socket.socket(_af(version), socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
            )
            # as the VXLAN device, which is bound to the underlay, does
            raw[version].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, underlay.encode())
        frames = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0))
        listening = [(stack.enter_context(_tap(underlay, vxlan_filter(port))), Place.UNDERLAY)]
        tapped = set()
        for device in devices:
            with contextlib.suppress(OSError):
                listening.append((stack.enter_context(_tap(device, icmp_filter())), Place.DEVICE))
                tapped.add(device)
        wire = Wire(raw, frames, listening, frozenset(tapped))
        stack.callback(wire.close)
        yield wire


def arp_exchange(
    interface: str, frames: Callable[[str], Sequence[bytes]], *, times: int = 3, wait: float = 0.6
) -> Iterator[bytes]:
    """Send Ethernet frames several times and yield the ARP frames heard in `wait` seconds.

    `frames` makes them, given the interface's MAC address. Raises OSError.
    """
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as s:
        s.bind((interface, _ETH_P_ARP))
        _, _, _, hardware, own = s.getsockname()
        if hardware != _ARPHRD_ETHER:
            return
        sent = frames(own.hex(":"))
        start = time.monotonic()
        for turn in range(times):
            for frame in sent:
                s.send(frame)
            end = start + wait * (turn + 1) / times
            while (left := end - time.monotonic()) > 0:
                if select.select([s], [], [], left)[0]:
                    with contextlib.suppress(BlockingIOError):
                        yield s.recv(_LONGEST)


def _af(version: int) -> socket.AddressFamily:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _receive(s: socket.socket, place: Place) -> Iterator[Heard]:
    while True:
        try:
            data, ancillary, _, sender = s.recvmsg(_LONGEST, 256)
        except BlockingIOError:
            return
        except OSError:
            return  # an interface that went down: told once, and what comes after it is read at the next turn
        at = time.time()
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = struct.unpack_from("=qq", value)
                at = seconds + nanoseconds / 1e9
        if place is Place.SOCKET and s.family == socket.AF_INET6:
            # a raw IPv6 socket hears no header; who sent it is all that is needed of one
            source = socket.inet_pton(socket.AF_INET6, sender[0].partition("%")[0])
            data = struct.pack("!IHBB", 6 << 28, len(data), socket.IPPROTO_ICMPV6, 64) + source + bytes(16) + data
        yield Heard(place, data, at)


def _tap(interface: str, program: Sequence[_Op]) -> socket.socket:
    """Hears all that comes in on an interface and passes the filter, from the IP header on."""
    s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    try:
        instructions = b"".join(struct.pack("=HBBI", *each) for each in program)
        buffer = ctypes.create_string_buffer(instructions, len(instructions))
        s.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(buffer)))
        s.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        s.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        s.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        # bound last: nothing is heard that the filter has not seen
        s.bind((interface, _ETH_P_ALL))
        if why := s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(why, os.strerror(why))  # the interface is down
    except BaseException:  # also Ctrl-C: nobody else could close it
        s.close()
        raise
    return s


class _Op(NamedTuple):
    code: int
    if_true: int
    if_false: int
    k: int


_LOAD_BYTE, _LOAD_HALF, _AND, _EQUAL, _RETURN = 0x30, 0x28, 0x54, 0x15, 0x06
_ACCEPT, _REJECT = _Op(_RETURN, 0, 0, _LONGEST), _Op(_RETURN, 0, 0, 0)


def _load_byte(offset: int) -> _Op:
    return _Op(_LOAD_BYTE, 0, 0, offset)


def _only_if(k: int, rest: Sequence[_Op]) -> list[_Op]:
    """`rest`, which always returns, if what was loaded is `k`; else go on behind it."""
    return [_Op(_EQUAL, 0, len(rest), k), *rest]


def _in_vxlan(at: int) -> list[_Op]:
    """Accept a VXLAN packet, whose UDP header is at `at`, that holds ARP or ICMP."""
    ethertype, inner = at + 8 + 8 + 12, at + 8 + 8 + 14
    return [
        _Op(_LOAD_HALF, 0, 0, ethertype),
        *_only_if(_ETH_P_ARP, [_ACCEPT]),
        *_only_if(_ETH_P_IP, [_load_byte(inner + 9), *_only_if(1, [_ACCEPT]), _REJECT]),
        *_only_if(_ETH_P_IPV6, [_load_byte(inner + 6), *_only_if(58, [_ACCEPT]), _REJECT]),
        _REJECT,
    ]


def _icmp_answer(at: int, kinds: Sequence[int]) -> list[_Op]:
    return [_load_byte(at), *(op for kind in kinds for op in _only_if(kind, [_ACCEPT])), _REJECT]


_ANSWERS4 = (0, 3)  # echo reply, destination unreachable
_ANSWERS6 = (129, 1, 2)  # echo reply, destination unreachable, packet too big


def _by_version(four: Sequence[_Op], six: Sequence[_Op]) -> list[_Op]:
    return [_load_byte(0), _Op(_AND, 0, 0, 0xF0), *_only_if(0x40, four), *_only_if(0x60, six), _REJECT]


def vxlan_filter(port: int) -> list[_Op]:
    """ICMP answers, and ICMP and ARP within VXLAN; IP headers without options."""

    def udp(at: int) -> list[_Op]:
        return [_Op(_LOAD_HALF, 0, 0, at + 2), *_only_if(port, _in_vxlan(at)), _REJECT]

    four = [_load_byte(9), *_only_if(1, _icmp_answer(20, _ANSWERS4)), *_only_if(17, udp(20)), _REJECT]
    six = [_load_byte(6), *_only_if(58, _icmp_answer(40, _ANSWERS6)), *_only_if(17, udp(40)), _REJECT]
    return _by_version(four, six)


def icmp_filter() -> list[_Op]:
    return _by_version(
        [_load_byte(9), *_only_if(1, _icmp_answer(20, _ANSWERS4)), _REJECT],
        [_load_byte(6), *_only_if(58, _icmp_answer(40, _ANSWERS6)), _REJECT],
    )
