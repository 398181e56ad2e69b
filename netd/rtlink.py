"""Links, addresses and forwarding as rtnetlink describes them, in dumps and in notifications.

Owns: reading them, of both address families; making and changing them is
links.py's. One parser for what is listed and what is heard, so that the two
can be compared; and none of pyroute2's, which needs 0.3 ms for each of the
links of a host with a thousand pods, and 10 MB. No sockets here. Sources:
rtnetlink(7); linux/if_link.h, linux/if_addr.h, linux/netconf.h; drivers/net/vxlan/vxlan_core.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface

from netd.model import Device, InterfaceAddress
from netd.rtnetlink import address
from podlane.api.subnets import Address
from podlane.runtime.netlink import Buffer, Message, attribute_map, get_be16, get_text, get_u32, text, u32

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22

RTM_NEWNETCONF = 80

GROUP_LINK, GROUP_IPV4_IFADDR, GROUP_IPV6_IFADDR, GROUP_IPV4_NETCONF, GROUP_IPV6_NETCONF = 1, 5, 9, 24, 25

_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index

_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_EXT_MASK = 1, 3, 4, 18, 29
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_VXLAN_ID, _IFLA_VXLAN_LINK, _IFLA_VXLAN_LOCAL, _IFLA_VXLAN_LEARNING = 1, 3, 4, 7
_IFLA_VXLAN_PORT, _IFLA_VXLAN_LOCAL6, _IFLA_VXLAN_GBP = 15, 17, 23
_RTEXT_FILTER_SKIP_STATS = 1 << 3  # a link's counters are most of its description
_IFNAMSIZ = 16

_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK = 0, 253
_IFA_F_SECONDARY, _IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x01, 0x08, 0x20, 0x40

_NETCONFMSG_ALIGNED = 4  # bytes; all it says is the family
_NETCONFA_IFINDEX, _NETCONFA_FORWARDING = 1, 2
_ALL_INTERFACES = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Vxlan:
    """What IFLA_INFO_DATA says of a VXLAN link; `underlay` is an index, 0 for none."""

    vni: int
    port: int
    local: Address | None
    underlay: int
    learning: bool
    gbp: bool


@dataclass(frozen=True, slots=True)
class Link:
    """A link: all of it that netd looks at, so that equal ones need no second look."""

    index: int
    name: str
    flags: int
    mtu: int
    mac: str
    kind: str
    vxlan: Vxlan | None = None

    @property
    def up(self) -> bool:
        return bool(self.flags & _IFF_UP)

    @property
    def loopback(self) -> bool:
        return bool(self.flags & _IFF_LOOPBACK)

    def device(self, addresses: frozenset[InterfaceAddress]) -> Device:
        """The VXLAN device this link is. It must be one."""
        assert self.vxlan is not None
        return Device(
            name=self.name,
            vni=self.vxlan.vni,
            port=self.vxlan.port,
            local=self.vxlan.local,
            underlay=name_of(self.vxlan.underlay),
            mtu=self.mtu,
            mac=self.mac,
            learning=self.vxlan.learning,
            gbp=self.vxlan.gbp,
            up=self.up,
            addresses=addresses,
        )


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An address of a link. `settled`: not one that IPv6 still doubts, has refused or is giving up.

    `secondary`: IPv4's later addresses of a subnet, IPv6's temporary ones.
    """

    index: int
    address: InterfaceAddress
    scope: int
    settled: bool = True
    secondary: bool = False

    @property
    def usable(self) -> bool:
        """Whether other hosts can use it: one of global scope."""
        return self.scope == _RT_SCOPE_UNIVERSE

    @property
    def link_local(self) -> bool:
        """IPv6's own, which the kernel makes and netd leaves alone."""
        return self.scope == _RT_SCOPE_LINK and self.address.version == 6


def get_links() -> Message:
    return Message(RTM_GETLINK, 0, _IFINFOMSG.pack(0, 0, 0, 0, 0) + u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS))


def get_link(name: str) -> Message:
    """Raises OSError (ENODEV) for what no interface can be called."""
    if not 0 < len(name.encode()) < _IFNAMSIZ:
        raise OSError(errno.ENODEV, f"no interface {name}")
    message = get_links()
    return message._replace(body=message.body + text(_IFLA_IFNAME, name))


def get_addresses(index: int = 0) -> Message:
    """Of one interface; of all for index 0."""
    return Message(RTM_GETADDR, 0, _IFADDRMSG.pack(0, 0, 0, 0, index))


def parse_link(body: Buffer) -> Link | None:
    """None for what says nothing of the link itself: a bridge's or IPv6's word on it."""
    family, _, index, flags, _ = _IFINFOMSG.unpack_from(body)
    found = attribute_map(memoryview(body)[_IFINFOMSG.size :])
    if family or _IFLA_IFNAME not in found:
        return None
    info = attribute_map(found.get(_IFLA_LINKINFO, b""))
    kind = get_text(info.get(_IFLA_INFO_KIND, b""))
    return Link(
        index=index,
        name=get_text(found[_IFLA_IFNAME]),
        flags=flags,
        mtu=get_u32(found[_IFLA_MTU]) if _IFLA_MTU in found else 0,
        mac=bytes(found.get(_IFLA_ADDRESS, b"")).hex(":"),
        kind=kind,
        vxlan=_vxlan(info[_IFLA_INFO_DATA]) if kind == "vxlan" and _IFLA_INFO_DATA in info else None,
    )


def _vxlan(data: memoryview) -> Vxlan:
    found = attribute_map(data)
    local = found.get(_IFLA_VXLAN_LOCAL) or found.get(_IFLA_VXLAN_LOCAL6)
    return Vxlan(
        vni=get_u32(found[_IFLA_VXLAN_ID]) if _IFLA_VXLAN_ID in found else 0,
        port=get_be16(found[_IFLA_VXLAN_PORT]) if _IFLA_VXLAN_PORT in found else 0,
        local=address(bytes(local)) if local else None,
        underlay=get_u32(found[_IFLA_VXLAN_LINK]) if _IFLA_VXLAN_LINK in found else 0,
        learning=bool(found[_IFLA_VXLAN_LEARNING][0]) if _IFLA_VXLAN_LEARNING in found else False,
        gbp=_IFLA_VXLAN_GBP in found,
    )


def parse_address(body: Buffer) -> LinkAddress | None:
    """None for an address that is neither IPv4 nor IPv6."""
    family, prefixlen, flags, scope, index = _IFADDRMSG.unpack_from(body)
    found = attribute_map(memoryview(body)[_IFADDRMSG.size :])
    # IFA_ADDRESS is the other end's on a point-to-point link
    own = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if own is None or family not in (socket.AF_INET, socket.AF_INET6):
        return None
    if _IFA_FLAGS in found:  # more than the header has room for
        flags = get_u32(found[_IFA_FLAGS])
    interface = IPv4Interface if family == socket.AF_INET else IPv6Interface
    return LinkAddress(
        index,
        interface((bytes(own), prefixlen)),
        scope,
        settled=not flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED | _IFA_F_DEPRECATED),
        secondary=bool(flags & _IFA_F_SECONDARY),
    )


def stops_forwarding(body: Buffer) -> bool:
    """Whether a RTM_NEWNETCONF says that this host forwards nothing of a family any more."""
    found = attribute_map(memoryview(body)[_NETCONFMSG_ALIGNED:])
    if _NETCONFA_IFINDEX not in found or _NETCONFA_FORWARDING not in found:
        return False
    return get_u32(found[_NETCONFA_IFINDEX]) == _ALL_INTERFACES and not get_u32(found[_NETCONFA_FORWARDING])


def name_of(index: int) -> str:
    """An interface's name; empty for index 0, `if7` for one that is gone."""
    if not index:
        return ""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"


def index_of(name: str) -> int:
    """Raises OSError (ENODEV)."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise OSError(errno.ENODEV, f"no interface {name}") from None
