"""rtnetlink messages for links, their addresses and the default route.

Owns: their binary form, both ways, on top of podlane.runtime.netlink. No
sockets here. Source: rtnetlink(7); linux/if_link.h, if_addr.h, rtnetlink.h;
drivers/net/veth.c (veth_newlink: the peer's attributes are a message of their own).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, ip_address, ip_interface

from podlane.runtime.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    attr,
    attribute_map,
    get_text,
    get_u32,
    nest,
    text,
    u8,
    u32,
)
from scheduler.agent.network import Interface

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE = 24
GROUP_LINK, GROUP_IPV4_IFADDR, GROUP_IPV6_IFADDR = 1, 5, 9

_AF_INET, _AF_BRIDGE, _AF_INET6 = 2, 7, 10
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags
_IFF_UP = 1

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_IFLA_PROTINFO, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 12, 18, 20, 28, 29
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_DATA = 1, 2, 5
_VETH_INFO_PEER = 1
_BRPORT_MODE = 4
_SKIP_STATS = 8
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_BROADCAST = 1, 2, 3, 4
_IFA_F_NODAD = 2
_SCOPE_GLOBAL = 0
_RTA_OIF, _RTA_GATEWAY = 4, 5
_MAIN_TABLE, _PROTOCOL_STATIC, _UNICAST = 254, 4, 1


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface. `master` is the index of the bridge it is a port of, 0 if of none."""

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    master: int = 0
    alias: str = ""
    hairpin: bool = False


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


# ---- links -------------------------------------------------------------------------------------


def get_link(name: str) -> Message:
    return Message(RTM_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name))


def get_ports(bridge: int) -> Message:
    """To be dumped: the links that are ports of a bridge."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + u32(_IFLA_MASTER, bridge) + u32(_IFLA_EXT_MASK, _SKIP_STATS)
    return Message(RTM_GETLINK, 0, body)


def get_veths() -> Message:
    """To be dumped: the links of kind veth."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + nest(_IFLA_LINKINFO, text(_INFO_KIND, "veth"))
    return Message(RTM_GETLINK, 0, body + u32(_IFLA_EXT_MASK, _SKIP_STATS))


def parse_link(body: bytes | memoryview) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = attribute_map(body[_IFINFO.size :])
    info = attribute_map(found.get(_IFLA_LINKINFO, b""))
    mode = attribute_map(info.get(_INFO_SLAVE_DATA, b"")).get(_BRPORT_MODE)
    return Link(
        index=index,
        name=get_text(found.get(_IFLA_IFNAME, b"")),
        kind=get_text(info.get(_INFO_KIND, b"")),
        mac=bytes(found.get(_IFLA_ADDRESS, b"")).hex(":"),
        mtu=get_u32(found[_IFLA_MTU]) if _IFLA_MTU in found else 0,
        up=bool(flags & _IFF_UP),
        master=get_u32(found[_IFLA_MASTER]) if _IFLA_MASTER in found else 0,
        alias=get_text(found.get(_IFLA_IFALIAS, b"")),
        hairpin=mode is not None and mode[0] == 1,
    )


def new_bridge(name: str, mac: str, mtu: int) -> Message:
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + attr(_IFLA_ADDRESS, mac_bytes(mac))
    body += u32(_IFLA_MTU, mtu) + nest(_IFLA_LINKINFO, text(_INFO_KIND, "bridge"))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def new_veth(name: str, peer: str, namespace: int, *, peer_mac: str, mtu: int) -> Message:
    """A veth pair whose peer is made in another namespace (an open descriptor) at once."""
    there = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, peer) + attr(_IFLA_ADDRESS, mac_bytes(peer_mac))
    there += u32(_IFLA_MTU, mtu) + u32(_IFLA_NET_NS_FD, namespace)
    data = nest(_INFO_DATA, attr(_VETH_INFO_PEER, there))
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + u32(_IFLA_MTU, mtu)
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body + nest(_IFLA_LINKINFO, text(_INFO_KIND, "veth"), data))


def set_link(index: int, *, up: bool = True, mac: str = "", mtu: int = 0, master: int = 0, alias: str = "") -> Message:
    """Change what is given. An empty value leaves a property as it is."""
    flags = _IFF_UP if up else 0
    body = _IFINFO.pack(0, 0, index, flags, flags)
    body += attr(_IFLA_ADDRESS, mac_bytes(mac)) if mac else b""
    body += u32(_IFLA_MTU, mtu) if mtu else b""
    body += attr(_IFLA_IFALIAS, alias.encode()) if alias else b""
    body += u32(_IFLA_MASTER, master) if master else b""
    return Message(RTM_SETLINK, 0, body)


def set_hairpin(port: int) -> Message:
    body = _IFINFO.pack(_AF_BRIDGE, 0, port, 0, 0) + nest(_IFLA_PROTINFO, u8(_BRPORT_MODE, 1))
    return Message(RTM_SETLINK, 0, body)


def delete_link(name: str) -> Message:
    return Message(RTM_DELLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name))


# ---- addresses and the default route -------------------------------------------------------------


def get_addresses(index: int) -> Message:
    """To be dumped: the addresses of one link."""
    return Message(RTM_GETADDR, 0, _IFADDR.pack(0, 0, 0, 0, index))


def parse_addresses(answers: Iterator[tuple[int, memoryview]], index: int) -> frozenset[Interface]:
    """All IPv4 addresses, and of IPv6 those that are not the link's own."""
    found: set[Interface] = set()
    for _, body in answers:
        family, prefix, _, scope, at = _IFADDR.unpack_from(body)
        given = attribute_map(body[_IFADDR.size :])
        local = given.get(_IFA_LOCAL, given.get(_IFA_ADDRESS) if family == _AF_INET6 else None)
        if at == index and local is not None and (family == _AF_INET or scope == _SCOPE_GLOBAL):
            found.add(ip_interface((bytes(local), prefix)))
    return frozenset(found)


def address_link(body: bytes) -> tuple[int, str]:
    """Index and name of the link an address notification is about; for IPv6 the name is not told."""
    index = _IFADDR.unpack_from(body)[4]
    return index, get_text(attribute_map(body[_IFADDR.size :]).get(_IFA_LABEL, b""))


def add_address(index: int, address: Interface) -> Message:
    """IPv6 without the search for duplicates: it would take a second, and hairpin ports return its question."""
    flags = 0 if address.version == 4 else _IFA_F_NODAD
    body = _address(index, address, flags)
    if isinstance(address, IPv4Interface):
        body += attr(_IFA_BROADCAST, address.network.broadcast_address.packed)
    return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body)


def delete_address(index: int, address: Interface) -> Message:
    return Message(RTM_DELADDR, 0, _address(index, address, 0))


def _address(index: int, address: Interface, flags: int) -> bytes:
    packed = address.ip.packed
    body = _IFADDR.pack(_family(address.version), address.network.prefixlen, flags, 0, index)
    return body + attr(_IFA_LOCAL, packed) + attr(_IFA_ADDRESS, packed)


def replace_default_route(index: int, gateway: str) -> Message:
    to = ip_address(gateway)
    body = _RTMSG.pack(_family(to.version), 0, 0, 0, _MAIN_TABLE, _PROTOCOL_STATIC, 0, _UNICAST, 0)
    body += u32(_RTA_OIF, index) + attr(_RTA_GATEWAY, to.packed)
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


def _family(version: int) -> int:
    return _AF_INET if version == 4 else _AF_INET6
