"""rtnetlink messages for what netd has by the thousand: routes, neighbours and FDB entries.

Owns: their binary form, both ways and for both address families, on top of
podlane.runtime.netlink, which sends many at a time. Dumps and notifications
have one form and one parser, so that what is heard can be compared with what
was listed. No sockets here; links and addresses are rtlink.py's. Sources:
rtnetlink(7); linux/neighbour.h, linux/rtnetlink.h; net/ipv4/fib_frontend.c,
net/ipv6/route.c; drivers/net/vxlan/vxlan_core.c.
"""

from __future__ import annotations

import struct
import sys
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, NamedTuple

from netd.intern import network
from netd.model import BLACKHOLE_METRIC, PROTO_KERNEL, PROTOCOL, FdbEntry, Neighbour, Route
from podlane.api.subnets import Address, Network
from podlane.runtime.netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Buffer,
    Message,
    attr,
    attribute_map,
    get_u32,
    u8,
    u32,
)

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

GROUP_NEIGH, GROUP_IPV4_ROUTE, GROUP_IPV6_ROUTE = 3, 7, 11

AF_INET, AF_INET6, AF_BRIDGE = 2, 10, 7

_RTATTR = struct.Struct("=HH")  # length, type
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=B3xiHBB")  # family, index, state, flags, type
_RTNEXTHOP = struct.Struct("=HBBi")  # length, flags, hops, index

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH = 1, 4, 5, 6, 9
_RT_TABLE_MAIN = 254
_RTN_UNICAST, _RTN_LOCAL, _RTN_BLACKHOLE = 1, 2, 6
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RT_SCOPE_NOWHERE = 0, 253, 255
_RTNH_F_ONLINK = 4
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX, _NDA_PROTOCOL = 1, 2, 8, 12
_NDA_OTHER_DESTINATION = {6, 7, 8, 11, 13}  # port, VNI, interface, source VNI, nexthop group of its own
_NUD_NOARP, _NUD_PERMANENT = 0x40, 0x80
_NTF_SELF, _NTF_EXT_LEARNED = 0x02, 0x10

_METRIC6 = 1024  # what the kernel makes of 0 in IPv6 (IP6_RT_PRIO_USER)


def address(packed: bytes) -> Address:
    """Of 4 or 16 bytes."""
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _mac_text(packed: bytes) -> str:
    return packed.hex(":")


def _mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def family_of(one: Address | Network) -> int:
    return AF_INET if one.version == 4 else AF_INET6


def _attributes(body: Buffer, at: int) -> dict[int, bytes]:
    """The attributes by type: as attribute_map, in half the time, which is what a dump's length hangs on."""
    data = bytes(body)
    end = len(data) - 4
    found: dict[int, bytes] = {}
    while at <= end:
        size, kind = _RTATTR.unpack_from(data, at)
        if size < 4:
            break
        found[kind] = data[at + 4 : at + size]
        at += size + 3 & ~3
    return found


def _number(found: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(found[kind], sys.byteorder) if kind in found else 0


# ---- routes ------------------------------------------------------------------------------------

Place = Literal["route", "local", "blackhole"]
"""Where a route stands. A destination has one place for routes such as netd's, which `replace` fills.

In IPv6 there may be another route beside it, with a better metric, that the
kernel made for an address of this host (`local`). `blackhole`: netd's own.
"""


class RawRoute(NamedTuple):
    """One route of the main table; `interface`, an index, is 0 and `gateway` None for a multipath route."""

    destination: Network
    gateway: Address | None
    interface: int
    metric: int
    tos: int
    protocol: int
    kind: int
    onlink: bool

    @property
    def place(self) -> Place | None:
        """None for a route that netd has nothing to do with."""
        if self.kind == _RTN_BLACKHOLE and self.protocol == PROTOCOL and self.metric == BLACKHOLE_METRIC:
            return "blackhole"
        if self.tos:
            return None
        if self.metric == (0 if self.destination.version == 4 else _METRIC6):
            return "route"
        return "local" if self.protocol == PROTO_KERNEL and self.destination.version == 6 else None

    def entry(self, device: str) -> Route:
        """Without gateway and device when it leads nowhere (unreachable, prohibit, blackhole)."""
        if self.kind != _RTN_UNICAST:
            return Route(None, "", onlink=False, protocol=self.protocol)
        return Route(self.gateway, device, self.onlink, self.protocol)


def get_routes(family: int) -> Message:
    """The main table's routes."""
    return Message(RTM_GETROUTE, 0, _RTMSG.pack(family, 0, 0, 0, _RT_TABLE_MAIN, 0, 0, 0, 0))


def get_route_to(destination: Address) -> Message:
    """The one route that a packet to this address would take."""
    packed = destination.packed
    body = _RTMSG.pack(family_of(destination), 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
    return Message(RTM_GETROUTE, 0, body + attr(_RTA_DST, packed))


def route_is_main(body: Buffer) -> bool:
    return bool(body[4] == _RT_TABLE_MAIN)


def route_is_default(body: Buffer) -> bool:
    return bool(body[1] == 0)


def route_is_to_this_host(body: Buffer) -> bool:
    return bool(body[7] == _RTN_LOCAL)


def parse_route(body: Buffer) -> RawRoute:
    family, length, _, tos, _, protocol, _, kind, flags = _RTMSG.unpack_from(body)
    found = _attributes(body, _RTMSG.size)
    gateway = found.get(_RTA_GATEWAY)
    return RawRoute(
        network(found.get(_RTA_DST) or (b"\0\0\0\0" if family == AF_INET else bytes(16)), length),
        address(gateway) if gateway is not None else None,
        _number(found, _RTA_OIF),
        _number(found, _RTA_PRIORITY),
        tos,
        protocol,
        kind,
        bool(flags & _RTNH_F_ONLINK),
    )


def route_interfaces(body: Buffer) -> list[int]:
    """The indexes of the interfaces a route leads out of: several for a multipath route."""
    found = attribute_map(memoryview(body)[_RTMSG.size :])
    if _RTA_OIF in found:
        return [get_u32(found[_RTA_OIF])]
    indexes: list[int] = []
    hops = found.get(_RTA_MULTIPATH, memoryview(b""))
    while len(hops) >= _RTNEXTHOP.size:
        length, _, _, index = _RTNEXTHOP.unpack_from(hops)
        indexes.append(index)
        hops = hops[max(length + 3 & ~3, _RTNEXTHOP.size) :]
    return indexes


def _route(destination: Network, route: Route, index: int) -> bytes:
    """All attributes of a route; no interface for index 0."""
    body = attr(_RTA_DST, destination.network_address.packed)
    if index:
        body += u32(_RTA_OIF, index)
    if route.gateway is not None:
        body += attr(_RTA_GATEWAY, route.gateway.packed)
    if destination.version == 6:
        body += u32(_RTA_PRIORITY, _METRIC6)  # in a removal none would mean any
    return body


def replace_route(destination: Network, route: Route, index: int) -> Message:
    """`index` is that of the route's device."""
    family, length = family_of(destination), destination.prefixlen
    scope = _RT_SCOPE_UNIVERSE if route.gateway is not None else _RT_SCOPE_LINK
    flags = _RTNH_F_ONLINK if route.onlink else 0
    head = _RTMSG.pack(family, length, 0, 0, _RT_TABLE_MAIN, route.protocol, scope, _RTN_UNICAST, flags)
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, head + _route(destination, route, index))


def delete_route(destination: Network, route: Route, index: int) -> Message:
    """Matches protocol, gateway and interface too, so that only the route that was seen goes."""
    family, length = family_of(destination), destination.prefixlen
    head = _RTMSG.pack(family, length, 0, 0, _RT_TABLE_MAIN, route.protocol, _RT_SCOPE_NOWHERE, 0, 0)
    return Message(RTM_DELROUTE, 0, head + _route(destination, route, index))


def _blackhole(kind: int, flags: int, destination: Network) -> Message:
    scope = _RT_SCOPE_NOWHERE if kind == RTM_DELROUTE else _RT_SCOPE_UNIVERSE
    body = _RTMSG.pack(
        family_of(destination), destination.prefixlen, 0, 0, _RT_TABLE_MAIN, PROTOCOL, scope, _RTN_BLACKHOLE, 0
    )
    body += attr(_RTA_DST, destination.network_address.packed) + u32(_RTA_PRIORITY, BLACKHOLE_METRIC)
    return Message(kind, flags, body)


def replace_blackhole(destination: Network) -> Message:
    return _blackhole(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, destination)


def delete_blackhole(destination: Network) -> Message:
    return _blackhole(RTM_DELROUTE, 0, destination)


# ---- neighbours and FDB entries ----------------------------------------------------------------


def get_neighbours(index: int) -> Message:
    """Of both families."""
    return Message(RTM_GETNEIGH, 0, _NDMSG.pack(0, 0, 0, 0, 0) + u32(_NDA_IFINDEX, index))


def get_fdb(index: int) -> Message:
    return Message(RTM_GETNEIGH, 0, _NDMSG.pack(AF_BRIDGE, index, 0, 0, 0))


def neighbour_head(body: Buffer) -> tuple[int, int]:
    """Family and interface a neighbour (AF_INET, AF_INET6) or an FDB entry (AF_BRIDGE) belongs to."""
    return _NDMSG.unpack_from(body)[:2]


def parse_neighbour(body: Buffer) -> tuple[Address, Neighbour | None] | None:
    """A neighbour's address and, if it is permanent, what it resolves to. None for what is no IP neighbour."""
    _, _, state, _, _ = _NDMSG.unpack_from(body)
    found = _attributes(body, _NDMSG.size)
    key = found.get(_NDA_DST)
    if key is None or len(key) not in (4, 16):
        return None
    mac = found.get(_NDA_LLADDR)
    if mac is None or not state & _NUD_PERMANENT:
        return address(key), None
    protocol = found[_NDA_PROTOCOL][0] if _NDA_PROTOCOL in found else 0
    return address(key), Neighbour(_mac_text(mac), protocol)


def parse_fdb(body: Buffer) -> tuple[str, FdbEntry | None] | None:
    """An entry's MAC address and, if it permanently sends to a plain IP address, where to.

    None for entries that no MAC address belongs to (the default destination)
    or a group's: nothing netd makes. An entry with a port, VNI or interface of
    its own is not plain.
    """
    _, _, state, flags, _ = _NDMSG.unpack_from(body)
    found = _attributes(body, _NDMSG.size)
    mac = found.get(_NDA_LLADDR)
    if mac is None or mac[0] & 1 or not any(mac):
        return None
    remote = found.get(_NDA_DST)
    if remote is None or not state & (_NUD_PERMANENT | _NUD_NOARP) or not _NDA_OTHER_DESTINATION.isdisjoint(found):
        return _mac_text(mac), None
    return _mac_text(mac), FdbEntry(address(remote), bool(flags & _NTF_EXT_LEARNED))


def replace_neighbour(index: int, key: Address, neighbour: Neighbour) -> Message:
    body = _NDMSG.pack(family_of(key), index, _NUD_PERMANENT, 0, 0)
    body += attr(_NDA_DST, key.packed) + attr(_NDA_LLADDR, _mac_bytes(neighbour.mac))
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body + u8(_NDA_PROTOCOL, neighbour.protocol))


def delete_neighbour(index: int, key: Address) -> Message:
    return Message(RTM_DELNEIGH, 0, _NDMSG.pack(family_of(key), index, 0, 0, 0) + attr(_NDA_DST, key.packed))


def replace_fdb(index: int, mac: str, entry: FdbEntry) -> Message:
    flags = _NTF_SELF | (_NTF_EXT_LEARNED if entry.ours else 0)
    body = _NDMSG.pack(AF_BRIDGE, index, _NUD_PERMANENT, flags, 0)
    body += attr(_NDA_LLADDR, _mac_bytes(mac)) + attr(_NDA_DST, entry.remote.packed)
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def delete_fdb(index: int, mac: str, entry: FdbEntry) -> Message:
    body = _NDMSG.pack(AF_BRIDGE, index, 0, _NTF_SELF, 0)
    return Message(RTM_DELNEIGH, 0, body + attr(_NDA_LLADDR, _mac_bytes(mac)) + attr(_NDA_DST, entry.remote.packed))
