"""ICMP and ICMPv6 echo: requests packed with `struct`, and raw sockets that hear only our own answers.

Owns: the form of a probe. Each carries the identifier of this process and a
token nobody can guess, so that what answers has seen it. The sockets have a
classic BPF filter for the identifier: however much ICMP a host receives, what
is not for us costs nothing here. Sources: RFC 792, RFC 1071 (checksum), RFC
4443, raw(7), linux/filter.h.
"""

from __future__ import annotations

import socket
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from podlane.api.subnets import Address

TOKEN = 8
"""Bytes of a token."""

_REQUEST = {4: 8, 6: 128}
_REPLY = {4: 0, 6: 129}
_ECHO = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_DONT_FRAGMENT = 0x4000
_ONE_HOP = 1
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_RECEIVE_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Echo:
    """Echo requests between two addresses, packed but for the sequence number.

    `header` is the IP header, with a time to live of one hop: who is no router's
    distance away answers, and nobody forwards it. `partial` is the checksum's sum
    without the sequence number.
    """

    header: bytes
    kind: int
    partial: int
    ident: int
    token: bytes

    @classmethod
    def between(cls, source: Address, destination: Address, ident: int, token: bytes) -> Echo:
        family = source.version
        length = _ECHO.size + len(token)
        kind = _REQUEST[family]
        partial = (kind << 8) + ident + _words(token)
        if family == 4:
            fields = (0x45, 0, 20 + length, 0, _DONT_FRAGMENT, _ONE_HOP, socket.IPPROTO_ICMP)
            total = _words(_IPV4.pack(*fields, 0, source.packed, destination.packed))
            header = _IPV4.pack(*fields, _fold(total), source.packed, destination.packed)
        else:
            protocol = socket.IPPROTO_ICMPV6
            header = _IPV6.pack(6 << 28, length, protocol, _ONE_HOP, source.packed, destination.packed)
            partial += _words(source.packed) + _words(destination.packed) + length + protocol
        return cls(header, kind, partial, ident, token)

    def message(self, sequence: int) -> bytes:
        """The request without the IP header."""
        return _ECHO.pack(self.kind, 0, _fold(self.partial + sequence), self.ident, sequence) + self.token

    def packet(self, sequence: int) -> bytes:
        return self.header + self.message(sequence)


class Reply(NamedTuple):
    """`source` is packed, as `Address.packed` is."""

    source: bytes
    sequence: int
    token: bytes


def parse_reply(message: bytes, source: bytes, family: int, ident: int) -> Reply | None:
    """Read an ICMP message, without the IP header; None for anything but an echo reply to `ident`."""
    if len(message) != _ECHO.size + TOKEN:
        return None
    kind, code, _, replied, sequence = _ECHO.unpack_from(message)
    if (kind, code, replied) != (_REPLY[family], 0, ident):
        return None
    return Reply(source, sequence, message[_ECHO.size :])


class EchoSocket:
    """Sends echo requests from an address of this host by the ordinary routing, and hears the replies to `ident`.

    In the network namespace of the thread that makes it. Raises OSError, also
    when the host does not have the address (yet).
    """

    def __init__(self, source: Address, ident: int) -> None:
        self.source = source
        self._family = source.version
        self._ident = ident
        family, protocol = (
            (socket.AF_INET, socket.IPPROTO_ICMP) if self._family == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
        )
        self._socket = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
        try:
            program = array("B", _filter(self._family, ident))
            where, size = program.buffer_info()
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", size // 8, where))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            self._socket.bind((str(source), 0))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, message: bytes, destination: Address) -> None:
        """Raises OSError when there is no way to send it."""
        self._socket.sendto(message, (str(destination), 0))

    def replies(self) -> Iterator[Reply]:
        """Those that have come so far."""
        while True:
            try:
                if self._family == 4:  # with the IP header, which IPv6's raw sockets leave out
                    data = self._socket.recv(2048)
                    reply = parse_reply(data[(data[0] & 15) * 4 :], data[12:16], 4, self._ident)
                else:
                    data, address = self._socket.recvfrom(2048)
                    source = socket.inet_pton(socket.AF_INET6, address[0].split("%", 1)[0])
                    reply = parse_reply(data, source, 6, self._ident)
            except BlockingIOError:
                return
            if reply is not None:
                yield reply


def _words(data: bytes) -> int:
    return sum(struct.unpack(f"!{len(data) // 2}H", data))


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _filter(family: int, ident: int) -> bytes:
    """Echo replies with our identifier; the packet begins with the IP header for IPv4, without for IPv6."""
    load_byte, load_half = (0x50, 0x48) if family == 4 else (0x30, 0x28)  # relative to X, absolute
    program = [(0xB1, 0, 0, 0)] if family == 4 else []  # X = length of the IP header
    program += [
        (load_byte, 0, 0, 0),
        (0x15, 0, 3, _REPLY[family]),  # jump if equal
        (load_half, 0, 0, 4),
        (0x15, 0, 1, ident),
        (0x06, 0, 0, 0xFFFF),  # take all of it
        (0x06, 0, 0, 0),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
