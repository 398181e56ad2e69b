"""rtnetlink messages for what netd has by the thousand: routes, neighbours and FDB entries.

Owns: their binary form, both ways, on top of podlane.runtime.netlink, which
sends many at a time; and what of a notification tells whether to look. No
sockets here. Links and addresses are links.py's. Sources: rtnetlink(7);
linux/neighbour.h, linux/rtnetlink.h; drivers/net/vxlan/vxlan_core.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from netd.model import FdbEntry, Neighbour, Route
from podlane.runtime.netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Message,
    attr,
    attribute_map,
    get_text,
    get_u32,
    u8,
    u32,
)

RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

GROUP_LINK, GROUP_NEIGH, GROUP_IPV4_IFADDR, GROUP_IPV4_ROUTE = 1, 3, 5, 7

AF_INET, AF_BRIDGE = 2, 7
MAIN_TABLE = 254

_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=B3xiHBB")  # family, index, state, flags, type
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_IFLA_IFNAME = 3

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 1, 4, 5, 6
_RTN_UNICAST = 1
_RTNH_F_ONLINK = 4
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX, _NDA_PROTOCOL = 1, 2, 8, 12
_NDA_OTHER_DESTINATION = {6, 7, 8, 11, 13}  # port, VNI, interface, source VNI, nexthop group of its own
_NUD_NOARP, _NUD_PERMANENT = 0x40, 0x80
_NTF_SELF, _NTF_EXT_LEARNED = 0x02, 0x10


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def mac_text(data: bytes | memoryview) -> str:
    return bytes(data).hex(":")


# ---- routes ------------------------------------------------------------------------------------


def get_routes() -> Message:
    """IPv4 unicast routes of the main table."""
    return Message(RTM_GETROUTE, 0, _RTMSG.pack(AF_INET, 0, 0, 0, MAIN_TABLE, 0, 0, _RTN_UNICAST, 0))


@dataclass(frozen=True, slots=True)
class RawRoute:
    """One unicast route; `index` 0 and `gateway` None for a multipath route."""

    destination: IPv4Network
    gateway: IPv4Address | None
    index: int
    metric: int
    tos: int
    protocol: int
    onlink: bool


def parse_route(body: memoryview) -> RawRoute:
    _, dst_len, _, tos, _, protocol, _, _, flags = _RTMSG.unpack_from(body)
    found = attribute_map(body[_RTMSG.size :])
    gateway = found.get(_RTA_GATEWAY)
    return RawRoute(
        destination=IPv4Network((bytes(found.get(_RTA_DST, b"\0\0\0\0")), dst_len)),
        gateway=IPv4Address(bytes(gateway)) if gateway is not None else None,
        index=get_u32(found[_RTA_OIF]) if _RTA_OIF in found else 0,
        metric=get_u32(found[_RTA_PRIORITY]) if _RTA_PRIORITY in found else 0,
        tos=tos,
        protocol=protocol,
        onlink=bool(flags & _RTNH_F_ONLINK),
    )


def _route(kind: int, flags: int, destination: IPv4Network, route: Route, index: int) -> Message:
    scope = 0 if route.gateway is not None else 253  # universe, or link
    body = _RTMSG.pack(
        AF_INET,
        destination.prefixlen,
        0,
        0,
        MAIN_TABLE,
        route.protocol,
        scope,
        _RTN_UNICAST,
        _RTNH_F_ONLINK if route.onlink else 0,
    )
    body += attr(_RTA_DST, destination.network_address.packed) + u32(_RTA_OIF, index)
    body += attr(_RTA_GATEWAY, route.gateway.packed) if route.gateway is not None else b""
    return Message(kind, flags, body)


def replace_route(destination: IPv4Network, route: Route, index: int) -> Message:
    return _route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, destination, route, index)


def delete_route(destination: IPv4Network, route: Route, index: int) -> Message:
    """Matches protocol, gateway and interface too, so that only the route that was seen goes."""
    return _route(RTM_DELROUTE, 0, destination, route, index)


# ---- neighbours and FDB entries ----------------------------------------------------------------


def get_neighbours(index: int) -> Message:
    return Message(RTM_GETNEIGH, 0, _NDMSG.pack(AF_INET, 0, 0, 0, 0) + u32(_NDA_IFINDEX, index))


def get_fdb(index: int) -> Message:
    return Message(RTM_GETNEIGH, 0, _NDMSG.pack(AF_BRIDGE, index, 0, 0, 0))


def neighbour_index(body: bytes) -> int:
    """The interface a neighbour or FDB notification is about."""
    return int(_NDMSG.unpack_from(body)[1])


def link_named(body: bytes) -> tuple[int, str]:
    """The index and name a link notification is about; bridges send some without a name."""
    name = attribute_map(body[_IFINFOMSG.size :]).get(_IFLA_IFNAME)
    return int(_IFINFOMSG.unpack_from(body)[2]), get_text(name) if name is not None else ""


def address_index(body: bytes) -> int:
    """The interface an address notification is about."""
    return int(_IFADDRMSG.unpack_from(body)[4])


def route_is_main(body: bytes) -> bool:
    return int(_RTMSG.unpack_from(body)[4]) == MAIN_TABLE


def parse_neighbour(body: memoryview, index: int) -> tuple[IPv4Address, Neighbour] | None:
    """A permanent neighbour on interface `index`; None for anything else."""
    _, at, state, _, _ = _NDMSG.unpack_from(body)
    if at != index or not state & _NUD_PERMANENT:
        return None
    found = attribute_map(body[_NDMSG.size :])
    if _NDA_DST not in found or _NDA_LLADDR not in found:
        return None
    protocol = found[_NDA_PROTOCOL][0] if _NDA_PROTOCOL in found else 0
    return IPv4Address(bytes(found[_NDA_DST])), Neighbour(mac_text(found[_NDA_LLADDR]), protocol)


def parse_fdb(body: memoryview, index: int) -> tuple[str, FdbEntry] | None:
    """A permanent unicast entry that sends to a plain IPv4 address; None for anything else.

    Entries for no MAC address (the default destination), for groups, or with a
    port, VNI or interface of their own are nothing netd makes.
    """
    _, at, state, flags, _ = _NDMSG.unpack_from(body)
    if at != index or not state & (_NUD_PERMANENT | _NUD_NOARP):
        return None
    found = attribute_map(body[_NDMSG.size :])
    remote, mac = found.get(_NDA_DST), found.get(_NDA_LLADDR)
    if remote is None or mac is None or len(remote) != 4 or _NDA_OTHER_DESTINATION & found.keys():
        return None
    if mac[0] & 1 or not any(mac):
        return None
    return mac_text(mac), FdbEntry(IPv4Address(bytes(remote)), bool(flags & _NTF_EXT_LEARNED))


def replace_neighbour(index: int, address: IPv4Address, neighbour: Neighbour) -> Message:
    body = _NDMSG.pack(AF_INET, index, _NUD_PERMANENT, 0, 0)
    body += attr(_NDA_DST, address.packed) + attr(_NDA_LLADDR, mac_bytes(neighbour.mac))
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body + u8(_NDA_PROTOCOL, neighbour.protocol))


def delete_neighbour(index: int, address: IPv4Address) -> Message:
    return Message(RTM_DELNEIGH, 0, _NDMSG.pack(AF_INET, index, 0, 0, 0) + attr(_NDA_DST, address.packed))


def replace_fdb(index: int, mac: str, entry: FdbEntry) -> Message:
    flags = _NTF_SELF | (_NTF_EXT_LEARNED if entry.ours else 0)
    body = _NDMSG.pack(AF_BRIDGE, index, _NUD_PERMANENT, flags, 0)
    body += attr(_NDA_LLADDR, mac_bytes(mac)) + attr(_NDA_DST, entry.remote.packed)
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def delete_fdb(index: int, mac: str, entry: FdbEntry) -> Message:
    body = _NDMSG.pack(AF_BRIDGE, index, 0, _NTF_SELF, 0)
    return Message(RTM_DELNEIGH, 0, body + attr(_NDA_LLADDR, mac_bytes(mac)) + attr(_NDA_DST, entry.remote.packed))
