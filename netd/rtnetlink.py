"""rtnetlink messages for the objects netd handles: links, addresses, routes, neighbours, FDB entries.

Owns: their binary form, both ways, on top of podlane.runtime.netlink. No
sockets here. Sources: rtnetlink(7); linux/if_link.h, linux/neighbour.h,
linux/rtnetlink.h; drivers/net/vxlan/vxlan_core.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from netd.model import Device, FdbEntry, Neighbour, Route
from podlane.runtime.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    attr,
    attribute_map,
    be16,
    get_be16,
    get_text,
    get_u32,
    nest,
    text,
    u8,
    u32,
)

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

GROUP_LINK, GROUP_NEIGH, GROUP_IPV4_IFADDR, GROUP_IPV4_ROUTE = 1, 3, 5, 7

AF_INET, AF_BRIDGE = 2, 7
MAIN_TABLE = 254
IFF_UP, IFF_LOOPBACK = 0x1, 0x8

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change mask
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=B3xiHBB")  # family, index, state, flags, type

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO = 1, 3, 4, 18
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_VXLAN_ID, _VXLAN_LINK, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_GBP = 1, 3, 4, 7, 15, 23
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
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


# ---- links ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the kernel describes it; `device` only for VXLAN, without its addresses."""

    index: int
    name: str
    flags: int
    mtu: int
    mac: str
    kind: str
    data: Mapping[int, memoryview]

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)

    def vxlan(self, addresses: frozenset[IPv4Interface], name_of: Callable[[int], str]) -> Device:
        """The VXLAN device this link is; `name_of` tells an interface's name by its index."""
        data = self.data
        local = data.get(_VXLAN_LOCAL)
        return Device(
            name=self.name,
            vni=get_u32(data[_VXLAN_ID]),
            port=get_be16(data[_VXLAN_PORT]),
            local=IPv4Address(bytes(local)) if local is not None else None,
            underlay=name_of(get_u32(data[_VXLAN_LINK])) if _VXLAN_LINK in data else "",
            mtu=self.mtu,
            mac=self.mac,
            learning=bool(data[_VXLAN_LEARNING][0]),
            gbp=_VXLAN_GBP in data,
            up=self.up,
            addresses=addresses,
        )


def get_link(name: str) -> Message:
    return Message(RTM_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name))


def get_links() -> Message:
    return Message(RTM_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0))


def parse_link(body: bytes | memoryview) -> Link:
    body = bytes(body)  # a copy, because the link keeps a part of it
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = attribute_map(body[_IFINFO.size :])
    info = attribute_map(found[_IFLA_LINKINFO]) if _IFLA_LINKINFO in found else {}
    return Link(
        index=index,
        name=get_text(found[_IFLA_IFNAME]),
        flags=flags,
        mtu=get_u32(found[_IFLA_MTU]) if _IFLA_MTU in found else 0,
        mac=mac_text(found[_IFLA_ADDRESS]) if _IFLA_ADDRESS in found else "",
        kind=get_text(info[_IFLA_INFO_KIND]) if _IFLA_INFO_KIND in info else "",
        data=attribute_map(info[_IFLA_INFO_DATA]) if _IFLA_INFO_DATA in info else {},
    )


def new_vxlan(device: Device, underlay_index: int) -> Message:
    """`underlay_index` 0 binds the device to no interface."""
    data = [u32(_VXLAN_ID, device.vni), u8(_VXLAN_LEARNING, device.learning), be16(_VXLAN_PORT, device.port)]
    if underlay_index:
        data.append(u32(_VXLAN_LINK, underlay_index))
    if device.local is not None:
        data.append(attr(_VXLAN_LOCAL, device.local.packed))
    if device.gbp:
        data.append(attr(_VXLAN_GBP, b""))
    body = b"".join(
        (
            _IFINFO.pack(0, 0, 0, 0, 0),
            text(_IFLA_IFNAME, device.name),
            attr(_IFLA_ADDRESS, mac_bytes(device.mac)),
            u32(_IFLA_MTU, device.mtu),
            nest(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "vxlan"), nest(_IFLA_INFO_DATA, *data)),
        )
    )
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def delete_link(index: int) -> Message:
    return Message(RTM_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0))


def set_link(index: int, *, mac: str = "", mtu: int = 0, up: bool = False) -> Message:
    """Change only what is given."""
    body = _IFINFO.pack(0, 0, index, IFF_UP if up else 0, IFF_UP if up else 0)
    body += attr(_IFLA_ADDRESS, mac_bytes(mac)) if mac else b""
    body += u32(_IFLA_MTU, mtu) if mtu else b""
    return Message(RTM_NEWLINK, 0, body)


# ---- addresses ---------------------------------------------------------------------------------


def get_addresses(index: int = 0) -> Message:
    return Message(RTM_GETADDR, 0, _IFADDR.pack(AF_INET, 0, 0, 0, index))


def parse_address(body: memoryview) -> tuple[int, IPv4Interface, bool]:
    """Interface index, address, and whether its scope is global (usable from other hosts)."""
    _, prefix_len, _, scope, index = _IFADDR.unpack_from(body)
    found = attribute_map(body[_IFADDR.size :])
    local = found.get(_IFA_LOCAL) or found[_IFA_ADDRESS]
    return index, IPv4Interface((bytes(local), prefix_len)), scope == 0


def change_address(index: int, address: IPv4Interface, *, add: bool) -> Message:
    body = _IFADDR.pack(AF_INET, address.network.prefixlen, 0, 0, index)
    body += attr(_IFA_LOCAL, address.ip.packed) + attr(_IFA_ADDRESS, address.ip.packed)
    return Message(RTM_NEWADDR if add else RTM_DELADDR, (NLM_F_CREATE | NLM_F_EXCL) if add else 0, body)


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
