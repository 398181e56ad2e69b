"""The first packet of a connection in bytes, and reading one back.

Owns: the formats: an IPv4 or IPv6 packet with a TCP SYN, an empty UDP datagram
or an SCTP INIT in it, and the Ethernet frame around it. Pure. Invariant: all
checksums are right, since conntrack ignores what has a wrong one.
Source: RFC 791, 8200, 9293, 768, 9260 (appendix A: CRC32c).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from proxyd.tables import PROTOCOL_NUMBERS, pack_address, show_address

_SYN = 0x02
_MSS = struct.pack("!BBH", 2, 4, 1200)  # no answer of full size is wanted
_INIT = 1
_CRC32C = 0x82F63B78
_LIFE = 64  # as a pod, or a client outside, sends it


@dataclass(frozen=True, slots=True)
class Ends:
    """Who sends to whom. `protocol` is "TCP", "UDP" or "SCTP"."""

    source: str
    source_port: int
    destination: str
    port: int
    protocol: str

    @property
    def width(self) -> int:
        """Bytes of an address."""
        return 16 if ":" in self.destination else 4


def packet(ends: Ends, *, number: int) -> bytes:
    """The IP packet that opens a connection. `number`: its sequence number, or verification tag; not 0."""
    source, destination = pack_address(ends.source), pack_address(ends.destination)
    ports = struct.pack("!HH", ends.source_port, ends.port)
    protocol = PROTOCOL_NUMBERS[ends.protocol]
    segment = _BODIES[ends.protocol](ports, number)
    if ends.protocol != "SCTP":
        pseudo = source + destination + struct.pack("!II", len(segment), protocol)
        at = 16 if ends.protocol == "TCP" else 6
        # a UDP checksum of 0 would mean that there is none
        segment = segment[:at] + struct.pack("!H", checksum(pseudo + segment) or 0xFFFF) + segment[at + 2 :]
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28, len(segment), protocol, _LIFE) + source + destination + segment
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, _LIFE, protocol, 0) + source + destination
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + segment


def frame(packed: bytes, *, to: bytes, sender: bytes) -> bytes:
    """The packet in an Ethernet frame; `to` and `sender` are MAC addresses."""
    return to + sender + (b"\x86\xdd" if packed[0] >> 4 == 6 else b"\x08\x00") + packed


def read_ends(network: bytes, transport: bytes) -> Ends | None:
    """From the headers at a packet's beginning; None for other protocols or headers that were cut off."""
    if len(transport) < 4 or len(network) < 20:
        return None
    six = network[0] >> 4 == 6
    if six and len(network) < 40:
        return None
    number = network[6] if six else network[9]
    protocol = next((name for name, each in PROTOCOL_NUMBERS.items() if each == number), None)
    if protocol is None:
        return None
    first = 8 if six else 12
    width = 16 if six else 4
    source_port, port = struct.unpack_from("!HH", transport)
    return Ends(
        show_address(network[first : first + width]),
        source_port,
        show_address(network[first + width : first + 2 * width]),
        port,
        protocol,
    )


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CRC32C if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _tcp(ports: bytes, number: int) -> bytes:
    return ports + struct.pack("!IIBBHHH", number, 0, 6 << 4, _SYN, 64240, 0, 0) + _MSS


def _udp(ports: bytes, _number: int) -> bytes:
    return ports + struct.pack("!HH", 8, 0)


def _sctp(ports: bytes, number: int) -> bytes:
    chunk = struct.pack("!BBHIIHHI", _INIT, 0, 20, number, 65536, 1, 1, number)
    head = ports + bytes(4)  # of an INIT the tag is 0
    whole = head + bytes(4) + chunk
    return head + struct.pack("<I", crc32c(whole)) + chunk


_BODIES = {"TCP": _tcp, "UDP": _udp, "SCTP": _sctp}
