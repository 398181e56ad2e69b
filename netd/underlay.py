"""Which interface carries the overlay. Pure.

Owns: the choice and its error messages. Invariant: an interface is never
guessed: it is the one named, the one that holds the named address, or the one
of the default route with the lowest metric; anything else is refused with the
candidates listed. Source: flanneld's --iface and --public-ip.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Interface

from netd.desired import Underlay
from netd.model import Interface
from podlane.errors import UsageError


class NoUnderlay(UsageError):
    """No interface can carry the overlay, or more than one could."""


def choose_underlay(
    interfaces: Sequence[Interface], *, iface: str = "", public_ip: IPv4Address | None = None
) -> Underlay:
    """`iface` is a name or an address; empty means the default route's interface.

    `public_ip` is what peers are told; by default the interface's address. It
    need not be an address of this host (behind NAT it is not). Raises NoUnderlay.
    """
    usable = [i for i in interfaces if i.up and not i.loopback and i.addresses]
    if iface:
        chosen, wanted = _named(interfaces, usable, iface)
    else:
        chosen, wanted = _by_default(usable, public_ip), public_ip
    address = _address(chosen, wanted if wanted is not None else public_ip)
    return Underlay(chosen.name, address, public_ip or address.ip, chosen.mtu)


def _named(
    interfaces: Sequence[Interface], usable: Sequence[Interface], iface: str
) -> tuple[Interface, IPv4Address | None]:
    try:
        wanted = IPv4Address(iface)
    except AddressValueError:
        pass  # then it is a name
    else:
        for each in usable:
            if any(address.ip == wanted for address in each.addresses):
                return each, wanted
        raise NoUnderlay(f"choose interface {iface}: no interface has this address; {_candidates(usable)}")
    for each in interfaces:
        if each.name != iface:
            continue
        if each.loopback:
            raise NoUnderlay(f"choose interface {iface}: it is the loopback; {_candidates(usable)}")
        if not each.up:
            raise NoUnderlay(f"choose interface {iface}: it is down; {_candidates(usable)}")
        if not each.addresses:
            raise NoUnderlay(f"choose interface {iface}: it has no IPv4 address; {_candidates(usable)}")
        return each, None
    raise NoUnderlay(f"choose interface {iface}: no such interface; {_candidates(usable)}")


def _by_default(usable: Sequence[Interface], public_ip: IPv4Address | None) -> Interface:
    if public_ip is not None:
        for each in usable:
            if any(address.ip == public_ip for address in each.addresses):
                return each
    routed = [i for i in usable if i.default_metric is not None]
    if not routed:
        raise NoUnderlay(f"choose interface: there is no default route; name one with --iface; {_candidates(usable)}")
    return min(routed, key=lambda i: (i.default_metric or 0, i.index))


def _address(interface: Interface, wanted: IPv4Address | None) -> IPv4Interface:
    for address in interface.addresses:
        if address.ip == wanted:
            return address
    return interface.addresses[0]


def _candidates(usable: Sequence[Interface]) -> str:
    if not usable:
        return "no interface is up with an IPv4 address"
    listed = (f"{i.name} ({', '.join(str(a.ip) for a in i.addresses)})" for i in usable)
    return f"candidates: {', '.join(listed)}"
