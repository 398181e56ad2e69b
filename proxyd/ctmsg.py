"""Conntrack entries as netlink messages: asking for them, reading one, deleting one.

Owns: the bytes of ctnetlink that proxyd needs. Invariant: what a filter does not
select right is asked for more widely, never missed. The kernel's filter (Linux
5.8) has two gaps, seen up to 6.18:
  - over IPv6 an address in the filter selects all entries that do not have it
    (ctnetlink_filter_match_tuple tests ipv6_addr_cmp for 0), so only the
    protocol and port are asked for;
  - the ports of SCTP are not looked at.
A kernel without the filter ignores it and lists everything.
Source: linux/net/netfilter/nf_conntrack_netlink.c; the numbers are of
uapi/linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h, nf_conntrack_tcp.h, nf_conntrack_sctp.h.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

from podlane.runtime import netlink as nl
from podlane.runtime.netlink import Buffer, Message
from proxyd.tables import Frontend, Target

_SUBSYSTEM = 1 << 8
_GET, _DELETE, _GET_STATS = 1, 2, 5
BORN, GROUP_BORN = _SUBSYSTEM, 1
"""The kind of message that tells of a new entry, once its packet has got through, and the group that is told."""

_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _PROTOINFO, _ID = 1, 2, 3, 4, 12
_COUNTERS_ORIG, _COUNTERS_REPLY, _FILTER = 9, 10, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_DST: dict[int, int] = {AF_INET: 2, AF_INET6: 4}
_IP_SRC: dict[int, int] = {AF_INET: 1, AF_INET6: 3}
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_PACKETS, _BYTES = 1, 2
_STATS_ENTRIES = 1
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_BY_DST, _BY_PROTOCOL, _BY_DST_PORT = 1 << 1, 1 << 3, 1 << 5  # CTA_FILTER_F_CTA_IP_DST and so on
_SEEN_REPLY = 1 << 1  # IPS_SEEN_REPLY
DST_NAT = 1 << 5  # IPS_DST_NAT
_NAMES = {6: "TCP", 17: "UDP", 132: "SCTP"}
_NUMBERS = {name: number for number, name in _NAMES.items()}
PROTOCOLS = tuple(_NUMBERS)
_U64 = struct.Struct(">Q")

_RESET = {6: 8, 132: 1}
"""The state after a reset, by protocol: TCP's CLOSE, SCTP's CLOSED (also where an association was refused)."""

_STATE = {6: 1, 132: 3}  # CTA_PROTOINFO_TCP, CTA_PROTOINFO_SCTP; in either, attribute 1 is the state


class Flow(NamedTuple):
    """One conntrack entry: where the client meant to go, where replies come from, whether one came.

    `reset`: a connection that one end broke off, or refused; never said of UDP, which has none.
    """

    frontend: Frontend
    replies_from: Target
    answered: bool
    reset: bool = False


class Request(NamedTuple):
    """One dump to ask for: entries of a family and protocol, of a port and an address where those are given."""

    family: int
    protocol: str
    port: int = 0
    address: str = ""


def _genmsg(family: int) -> bytes:
    return struct.pack(">BBH", family, 0, 0)


def entries_message() -> Message:
    """Ask how many entries there are; `read_entries` reads the answer."""
    return Message(_SUBSYSTEM | _GET_STATS, 0, _genmsg(0))


def read_entries(body: Buffer) -> int:
    found = nl.attribute_map(memoryview(body)[4:])
    return nl.get_be32(found[_STATS_ENTRIES]) if _STATS_ENTRIES in found else 0


def list_message(request: Request, *, status: int = 0) -> Message:
    """List entries; of the filter, what an old kernel does not know it ignores. `status`: bits that must be set."""
    flags = _BY_PROTOCOL
    addresses, ports = b"", nl.u8(_PROTO_NUM, _NUMBERS[request.protocol])
    if request.address:
        flags |= _BY_DST
        addresses = nl.attr(_IP_DST[AF_INET], inet_pton(request.family, request.address))
    if request.port:
        flags |= _BY_DST_PORT
        ports += nl.be16(_PROTO_DST_PORT, request.port)
    selected = nl.nest(_TUPLE_ORIG, nl.nest(_TUPLE_IP, addresses), nl.nest(_TUPLE_PROTO, ports))
    selected += nl.nest(_FILTER, nl.u32(_FILTER_ORIG_FLAGS, flags), nl.u32(_FILTER_REPLY_FLAGS, 0))
    if status:
        selected += nl.be32(_STATUS, status)
    return Message(_SUBSYSTEM | _GET, 0, _genmsg(request.family) + selected)


def delete_message(body: memoryview) -> Message:
    """Delete exactly the listed entry: by its tuple and its id, lest a successor be hit.

    The entry goes whatever it has become since. (The id is made of its place in memory and its tuple, so a successor
    in the same place would have it too; not seen to happen.)
    """
    found = nl.attribute_map(body[4:])
    return Message(_SUBSYSTEM | _DELETE, 0, _original(body) + nl.attr(_ID, found[_ID]))


def again_message(body: memoryview) -> Message:
    """Ask for a listed entry as it is now."""
    return Message(_SUBSYSTEM | _GET, 0, _original(body))


def _original(body: memoryview) -> bytes:
    return _genmsg(body[0]) + nl.attr(_TUPLE_ORIG | nl.NLA_F_NESTED, nl.attribute_map(body[4:])[_TUPLE_ORIG])


def read_flow(body: memoryview) -> Flow | None:
    """Decode a listed entry; None when it is of another protocol."""
    family = body[0]
    ends = _read_ends(family, body)
    protocol = None if ends is None else _NAMES.get(ends.number)
    if ends is None or protocol is None:
        return None
    rest = nl.attribute_map(body[ends.end :])
    return Flow(
        Frontend(_show(family, ends.destination), protocol, ends.port),
        Target(_show(family, ends.replier), ends.replier_port),
        answered=bool(nl.get_be32(rest[_STATUS]) & _SEEN_REPLY),
        reset=_is_reset(ends.number, rest.get(_PROTOINFO)),
    )


class _Ends(NamedTuple):
    number: int
    destination: bytes
    port: int
    replier: bytes
    replier_port: int
    end: int  # where the attributes after the tuples begin, or all of them


class _Layout:
    """Where the kernel puts what, in an entry of one family that is in no conntrack zone.

    Taking it from there costs a tenth of looking through the nested attributes, of which
    a table of 200,000 flows has four million.
    """

    def __init__(self, family: int, size: int) -> None:
        ips, ports = 4 + 2 * (4 + size), 4 + 3 * 8
        header = struct.Struct("=HH").pack
        nested = nl.NLA_F_NESTED
        inner = header(ips, _TUPLE_IP | nested) + header(4 + size, _IP_SRC[family])
        self.heads = [header(4 + ips + ports, kind | nested) + inner for kind in (_TUPLE_ORIG, _TUPLE_REPLY)]
        self.proto = header(ports, _TUPLE_PROTO | nested) + header(5, _PROTO_NUM)
        self.reply = 4 + 4 + ips + ports  # in the body, after struct nfgenmsg
        self.at_proto = 4 + ips
        self.end = self.reply + 4 + ips + ports
        one = f"12x{size}s4x{size}s8xB7xH6xH2x"
        self.ends = struct.Struct(f">4x{one}{one}")


_LAYOUTS: dict[int, _Layout] = {AF_INET: _Layout(AF_INET, 4), AF_INET6: _Layout(AF_INET6, 16)}


def _read_ends(family: int, body: memoryview) -> _Ends | None:
    layout = _LAYOUTS.get(family)
    if layout is None:
        return None
    reply, at = layout.reply, layout.at_proto
    if (
        body[4:16] == layout.heads[0]
        and body[reply : reply + 12] == layout.heads[1]
        and body[4 + at : 12 + at] == layout.proto
        and body[reply + at : reply + at + 8] == layout.proto
    ):
        _, destination, number, _, port, replier, _, _, replier_port, _ = layout.ends.unpack_from(body)
        return _Ends(number, destination, port, replier, replier_port, layout.end)
    return _search_ends(family, body)


def _search_ends(family: int, body: memoryview) -> _Ends | None:
    """The same whatever the order: in a zone, or of a protocol without ports."""
    found = nl.attribute_map(body[4:])
    if _TUPLE_ORIG not in found or _TUPLE_REPLY not in found:
        return None
    original, reply = nl.attribute_map(found[_TUPLE_ORIG]), nl.attribute_map(found[_TUPLE_REPLY])
    there, back = nl.attribute_map(original[_TUPLE_PROTO]), nl.attribute_map(reply[_TUPLE_PROTO])
    if _PROTO_DST_PORT not in there or _PROTO_SRC_PORT not in back:
        return None
    return _Ends(
        there[_PROTO_NUM][0],
        bytes(nl.attribute_map(original[_TUPLE_IP])[_IP_DST[family]]),
        nl.get_be16(there[_PROTO_DST_PORT]),
        bytes(nl.attribute_map(reply[_TUPLE_IP])[_IP_SRC[family]]),
        nl.get_be16(back[_PROTO_SRC_PORT]),
        4,
    )


def _is_reset(protocol: int, info: Buffer | None) -> bool:
    if info is None or protocol not in _RESET:
        return False
    own = nl.attribute_map(info).get(_STATE[protocol])
    state = None if own is None else nl.attribute_map(own).get(1)
    return state is not None and state[0] == _RESET[protocol]


def read_counters(body: memoryview) -> tuple[int, int] | None:
    """(bytes, packets) of both directions; None when they are not counted."""
    found = nl.attribute_map(body[4:])
    directions = [nl.attribute_map(found[each]) for each in (_COUNTERS_ORIG, _COUNTERS_REPLY) if each in found]
    if not directions:
        return None
    return sum(_be64(each[_BYTES]) for each in directions), sum(_be64(each[_PACKETS]) for each in directions)


def _be64(data: Buffer) -> int:
    return int(_U64.unpack_from(data)[0])


@lru_cache(maxsize=4096)
def _show(family: int, packed: bytes) -> str:
    return inet_ntop(family, packed)


def ask_message(source: Target, frontend: Frontend) -> Message:
    """Ask for the one entry of a connection; the answer can be given to `delete_message`."""
    family = AF_INET6 if ":" in frontend.address else AF_INET
    addresses = nl.attr(_IP_SRC[family], inet_pton(family, source.address))
    addresses += nl.attr(_IP_DST[family], inet_pton(family, frontend.address))
    ports = nl.u8(_PROTO_NUM, _NUMBERS[frontend.protocol])
    ports += nl.be16(_PROTO_SRC_PORT, source.port) + nl.be16(_PROTO_DST_PORT, frontend.port)
    ends = nl.nest(_TUPLE_ORIG, nl.nest(_TUPLE_IP, addresses), nl.nest(_TUPLE_PROTO, ports))
    return Message(_SUBSYSTEM | _GET, 0, _genmsg(family) + ends)


def read_replies(body: memoryview) -> tuple[Target, Target]:
    """Of the answer to `ask_message`: where replies come from, and where to."""
    _, source, destination = _read_tuple(body, _TUPLE_REPLY)
    return source, destination


def is_of(body: memoryview, source: Target, frontend: Frontend) -> bool:
    """Whether an entry is this connection's."""
    if body[0] not in _IP_SRC:
        return False
    try:
        number, sender, destination = _read_tuple(body, _TUPLE_ORIG)
    except KeyError:
        return False  # of a protocol without ports
    return (sender, destination) == (source, frontend[::2]) and number == _NUMBERS[frontend.protocol]


def _read_tuple(body: memoryview, which: int) -> tuple[int, Target, Target]:
    """The protocol's number, the source, the destination. Raises KeyError."""
    family = body[0]
    ends = nl.attribute_map(nl.attribute_map(body[4:])[which])
    addresses, ports = nl.attribute_map(ends[_TUPLE_IP]), nl.attribute_map(ends[_TUPLE_PROTO])
    return (
        ports[_PROTO_NUM][0],
        Target(_show(family, bytes(addresses[_IP_SRC[family]])), nl.get_be16(ports[_PROTO_SRC_PORT])),
        Target(_show(family, bytes(addresses[_IP_DST[family]])), nl.get_be16(ports[_PROTO_DST_PORT])),
    )
