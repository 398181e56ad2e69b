"""Which interfaces could carry the overlay at all, and what is to be said of them. Pure.

Owns: telling the links of containers and overlays, and a virtual machine's NAT,
from links to other hosts. An operator may name any; the automatic choice
(underlay.py) is among these. Source for NAT: flannel's advice for Vagrant, "a
non-unique IP (often 10.0.2.15)"; it is what VirtualBox' NAT and QEMU's user
networking give every machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Interface

from netd.model import Interface

_NAT = IPv4Interface("10.0.2.15/24")

_OVERLAY_KINDS = frozenset(
    {"vxlan", "geneve", "wireguard", "tun", "dummy", "ipip", "sit", "ip6tnl", "gre", "gretap", "ip6gre", "ip6gretap"}
    | {"erspan", "vti", "vti6", "xfrm", "ifb"}
)

# A container's own eth0 is of kind veth as well, so for these only the name tells.
_CONTAINER_NAMES = re.compile(
    r"(docker|br-[0-9a-f]{12}|veth|flannel|podlane|cni|cali|cilium|weave|virbr|lxcbr|lxdbr|podman|kube-|nodelocaldns|tunl)"
)


def is_container_link(interface: Interface) -> bool:
    """Whether it connects containers, or is an overlay itself."""
    if interface.kind in _OVERLAY_KINDS or _CONTAINER_NAMES.match(interface.name):
        return True
    # a bridge that leads out of this host has a physical port; one for containers has not
    leads_out = interface.default_metric is not None or interface.default_metric6 is not None
    return interface.kind == "bridge" and not leads_out


def is_nat(interface: Interface) -> bool:
    """Whether its only IPv4 address is one that every virtual machine behind such a NAT has."""
    return {address for address in interface.addresses if address.version == 4} == {_NAT}


def unusable(interface: Interface) -> str:
    """Why the interface cannot carry the overlay, even if named; empty when it can."""
    if interface.loopback:
        return "it is the loopback"
    if not interface.up:
        return "it is down"
    if not interface.addresses:
        return "it has no address other hosts can use"
    return ""


def candidates(interfaces: Sequence[Interface]) -> str:
    """The interfaces an operator may choose from, for an error message."""
    usable = [each for each in interfaces if not unusable(each)]
    if not usable:
        return "no interface is up with an address other hosts can use"
    between_hosts = [each for each in usable if not is_container_link(each)]
    others = [each for each in usable if is_container_link(each)]
    parts = [f"candidates: {', '.join(map(_described, between_hosts))}"] if between_hosts else []
    if others:
        parts.append(f"only if named: {', '.join(map(_described, others))}")
    return "; ".join(parts)


def _described(interface: Interface) -> str:
    remark = ", the same on every virtual machine behind such a NAT" if is_nat(interface) else ""
    return f"{interface.name} ({', '.join(str(address.ip) for address in interface.addresses)}{remark})"
