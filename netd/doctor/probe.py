"""The packets of the doctor's probes, built and read with scapy.

Owns: their exact bytes. Invariant: every probe carries the run's identity and
its own number where its answer brings them back: ICMP's identifier and sequence
number, or the payload that an ICMP error quotes. Import it late: scapy takes
0.3 s to load. Source: RFC 7348 (VXLAN), RFC 792, RFC 4443.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any, NamedTuple

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, in6_chksum
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw
from scapy.utils import checksum

from netd.doctor.seen import Answer, Kind, Target
from netd.doctor.wire import Place

BROADCAST = "ff:ff:ff:ff:ff:ff"
CLOSED_PORT = 33434
"""traceroute's first port: known to be probed, and nobody's service."""

_MAGIC = b"netd doctor "
_SMALL = 84  # bytes of inner packet, ping's own default
_SOURCE_PORT = 49152


def payload(ident: int, number: int, length: int) -> bytes:
    """Of a probe: who it is, and then bytes that differ from place to place."""
    start = _MAGIC + struct.pack("!HH", ident, number)
    return (start + bytes(i & 0xFF for i in range(len(start), length)))[: max(length, len(start))]


def encapsulated(target: Target, kind: Kind, ident: int, number: int, size: int = _SMALL) -> bytes:
    """A probe of `size` bytes within VXLAN, from the outer IP header on."""
    if kind is Kind.ARP:
        # without a sender's address, so that nobody learns anything from it (RFC 5227)
        who = ARP(op=1, hwsrc=target.own_mac, psrc="0.0.0.0", hwdst="00:00:00:00:00:00", pdst=str(target.vtep))
        return _outer(target, number, Ether(src=target.own_mac, dst=BROADCAST) / who)
    to = BROADCAST if kind is Kind.BROADCAST else target.mac
    return _outer(target, number, Ether(src=target.own_mac, dst=to) / _inner(target, kind, ident, number, size))


def inner_of(packet: bytes, target: Target) -> bytes:
    """The inner IP packet of one that `encapsulated` made."""
    return packet[target.overhead :]


def _outer(target: Target, number: int, frame: Any) -> bytes:
    # as the kernel does it, another source port for each flow; here each probe is one
    udp = UDP(sport=_source_port(number), dport=target.port)
    if target.remote.version == 4:
        udp.chksum = 0  # as the kernel's (RFC 7348); over IPv6 it needs one
        ip: Any = IP(src=str(target.local), dst=str(target.remote), flags="DF", id=number)
    else:
        ip = IPv6(src=str(target.local), dst=str(target.remote))
    return bytes(ip / udp / VXLAN(flags="Instance", vni=target.vni) / frame)


def _inner(target: Target, kind: Kind, ident: int, number: int, size: int) -> Any:
    source = target.own_public if kind is Kind.BACK_PLAIN else target.own_vtep
    if kind is Kind.FORWARDED:
        # whoever forwards it lowers its TTL: it cannot go round for long
        return (
            _ip(target, source, number, source) / _echo(target.family, ident, number) / Raw(payload(ident, number, 56))
        )
    header = 20 if target.family == 4 else 40
    data = Raw(payload(ident, number, size - header - 8))
    if kind in {Kind.BARE, Kind.BARE_FULL}:
        udp = UDP(sport=_source_port(number), dport=CLOSED_PORT)
        if target.family == 4:
            udp.chksum = 0
        return _ip(target, source, number) / udp / data
    return _ip(target, source, number) / _echo(target.family, ident, number) / data


def _ip(target: Target, source: Any, number: int, to: Any = None) -> Any:
    to = target.vtep if to is None else to
    if target.family == 4:
        return IP(src=str(source), dst=str(to), flags="DF", id=number)
    return IPv6(src=str(source), dst=str(to))


def _echo(family: int, ident: int, number: int) -> Any:
    return ICMP(id=ident, seq=number) if family == 4 else ICMPv6EchoRequest(id=ident, seq=number)


def plain(target: Target, source: Any, to: Any, ident: int, number: int) -> bytes:
    """An echo request without VXLAN, of addresses of the target's inner family."""
    data = Raw(payload(ident, number, 56))
    return bytes(_ip(target, source, number, to) / _echo(target.family, ident, number) / data)


def echo_message(target: Target, ident: int, number: int, size: int = _SMALL) -> bytes:
    """An ICMP echo request without an IP header. IPv6's checksum is the kernel's to make."""
    echo, header = _echo(target.family, ident, number), 20
    if target.family == 6:
        echo.cksum, header = 0, 40
    return bytes(echo / Raw(payload(ident, number, size - header - 8)))


def outer_plain(target: Target, ident: int, number: int) -> bytes:
    """An echo request to the public address that VXLAN packets go to."""
    data = Raw(payload(ident, number, 56))
    if target.remote.version == 4:
        ip: Any = IP(src=str(target.local), dst=str(target.remote), flags="DF", id=number)
    else:
        ip = IPv6(src=str(target.local), dst=str(target.remote))
    return bytes(ip / _echo(target.remote.version, ident, number) / data)


def who_has(mac: str, address: str) -> bytes:
    """An ARP probe (RFC 5227), from the Ethernet header on."""
    return bytes(Ether(src=mac, dst=BROADCAST) / ARP(op=1, hwsrc=mac, psrc="0.0.0.0", pdst=address))


def read_arp(frame: bytes) -> tuple[str, str] | None:
    """Who answers: address and MAC address. None for anything but an ARP reply."""
    arp = Ether(frame).getlayer(ARP)
    return (arp.psrc, arp.hwsrc) if arp is not None and arp.op == 2 else None


def read(place: Place, data: bytes, ident: int, port: int) -> Answer | None:
    """What a packet says about probes of this run; None when nothing."""
    try:
        if place is Place.UNDERLAY and (vxlan := _vxlan(data, port)) is not None:
            return _read_encapsulated(vxlan, ident)
        return _read_ip(data, ident)
    except (struct.error, IndexError, ValueError, AttributeError, TypeError):
        return None  # cut short or garbled on the way: no answer


def _vxlan(data: bytes, port: int) -> Any:
    header, protocol = (20, 9) if data[0] >> 4 == 4 else (40, 6)
    if data[protocol] != 17 or struct.unpack_from("!H", data, header + 2)[0] != port:
        return None
    return VXLAN(data[header + 8 :])


def _read_encapsulated(vxlan: Any, ident: int) -> Answer | None:
    frame = vxlan.payload
    if not isinstance(frame, Ether):
        return None
    if (arp := frame.getlayer(ARP)) is not None:
        if arp.op != 2:
            return None
        return Answer("arp", arp.psrc, encapsulated=True, vni=vxlan.vni, mac_from=arp.hwsrc, mac_to=frame.dst)
    answer = _read_ip(bytes(frame.payload), ident)
    if answer is None:
        return None
    return answer._replace(encapsulated=True, vni=vxlan.vni, mac_from=frame.src, mac_to=frame.dst)


def _read_ip(data: bytes, ident: int) -> Answer | None:
    return _read_ipv4(data, ident) if data[0] >> 4 == 4 else _read_ipv6(data, ident)


def _read_ipv4(data: bytes, ident: int) -> Answer | None:
    length, total = (data[0] & 15) * 4, struct.unpack_from("!H", data, 2)[0]
    message, source = data[length:total], IP(data).src
    # a first fragment, or one cut short, cannot be summed
    whole = len(data) >= total and not data[6] & 0x20
    sound = not whole or (checksum(data[:length]) == 0 and checksum(message) == 0)
    return _read_icmp(message, source, ident, sound, _ICMP)


def _read_ipv6(data: bytes, ident: int) -> Answer | None:
    length = struct.unpack_from("!H", data, 4)[0]
    header, message = IPv6(data[:40]), data[40 : 40 + length]
    # one that a raw socket gave us has no destination, and the kernel has looked at its checksum
    whole = len(message) == length and header.dst != "::"
    sound = not whole or in6_chksum(58, header, message) == 0
    return _read_icmp(message, header.src, ident, sound, _ICMP6)


class _Types(NamedTuple):
    """The numbers of one ICMP. `closed` is a code of `unreachable`, `too_big` a type and a code."""

    reply: int
    request: int
    unreachable: int
    closed: int
    too_big: tuple[int, int]


_ICMP = _Types(reply=0, request=8, unreachable=3, closed=3, too_big=(3, 4))
_ICMP6 = _Types(reply=129, request=128, unreachable=1, closed=4, too_big=(2, 0))


def _read_icmp(message: bytes, source: str, ident: int, sound: bool, types: _Types) -> Answer | None:
    kind, code = message[0], message[1]
    if kind in {types.reply, types.request}:
        theirs, number = struct.unpack_from("!HH", message, 4)
        if theirs == ident:
            return Answer("reply" if kind == types.reply else "forwarded", source, number, sound=sound)
        # a sound one is the answer to somebody else's ping
        return None if sound or kind == types.request else Answer("reply", source, None, sound=False)
    if (kind, code) == types.too_big:
        # IPv4 has 16 bits for it, IPv6 32 (RFC 1191, RFC 4443)
        mtu = struct.unpack_from("!H", message, 6)[0] if kind == 3 else struct.unpack_from("!I", message, 4)[0]
        return Answer("too-big", source, sound=sound, quote=message[8:], mtu=mtu)
    if kind == types.unreachable:
        number = _quoted_number(message[8:], ident)
        what = "closed" if code == types.closed else "unreachable"
        return Answer(what, source, number, sound=sound, quote=message[8:], code=code)
    return None


def _quoted_number(quote: bytes, ident: int) -> int | None:
    at = quote.find(_MAGIC)
    if at >= 0:
        theirs, number = struct.unpack_from("!HH", quote, at + len(_MAGIC))
        return int(number) if theirs == ident else None
    # its payload was altered on the way: IPv4's identification and UDP's ports tell as much
    if quote[0] >> 4 != 4 or quote[9] != 17:
        return None
    (number,) = struct.unpack_from("!H", quote, 4)
    ports = struct.unpack_from("!HH", quote, 20)
    return int(number) if ports == (_source_port(number), CLOSED_PORT) else None


def quoted_destination(quote: bytes) -> str:
    """Where a quoted IP packet was going; empty when that cannot be read."""
    if len(quote) < 20:
        return ""
    if quote[0] >> 4 == 4:
        return str(ip_address(quote[16:20]))
    return str(ip_address(quote[24:40])) if len(quote) >= 40 else ""


def quoted_port(quote: bytes) -> int:
    """The UDP port a quoted IP packet was going to; 0 when it is none."""
    header, protocol = (20, 9) if quote[0] >> 4 == 4 else (40, 6)
    if len(quote) < header + 4 or quote[protocol] != 17:
        return 0
    return int(struct.unpack_from("!H", quote, header + 2)[0])


def _source_port(number: int) -> int:
    return _SOURCE_PORT + number % 8192


def altered(sent: bytes, quote: bytes) -> tuple[int, ...]:
    """Offsets at which a quoted IP packet differs from the one that was sent.

    Traffic class, TTL and IPv4's header checksum may change on the way.
    """
    ignored = {1, 8, 10, 11} if sent[0] >> 4 == 4 else {0, 1, 7}
    return tuple(i for i, (a, b) in enumerate(zip(sent, quote, strict=False)) if a != b and i not in ignored)
