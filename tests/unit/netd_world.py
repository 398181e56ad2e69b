"""Networks, hosts and leases for tests of what netd wants: host N has subnet N, MAC address N, address N + 10."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, Literal

from netd.desired import Lease, Peers, Underlay, carriers
from netd.fake import FakeKernel
from netd.model import Desired, Interface
from podlane.api.network import NetworkConfig, parse_config
from podlane.api.subnets import LeaseValue, Subnets

Families = Literal["v4", "v6", "dual"]


def mac(number: int, family: int = 4) -> str:
    """A VTEP's: over IPv6 hosts have another device, with another address."""
    return f"02:00:00:00:{family:02x}:{number:02x}"


def config(families: Families = "v4", **backend: Any) -> NetworkConfig:
    raw: dict[str, Any] = {"Backend": {"Type": "vxlan", **backend}}
    if families != "v6":
        raw["Network"] = "10.5.0.0/16"
    else:
        raw["EnableIPv4"] = False
    if families != "v4":
        raw |= {"EnableIPv6": True, "IPv6Network": "fd00:10:5::/48"}
    return parse_config(json.dumps(raw))


def underlay(families: Families = "v4", *, host: int = 1) -> Underlay:
    v4 = IPv4Interface(f"192.168.64.{host + 10}/24") if families != "v6" else None
    v6 = IPv6Interface(f"fd64::{host + 10}/64") if families != "v4" else None
    return Underlay("eth0", 1500, v4, v6, v4.ip if v4 is not None else None, v6.ip if v6 is not None else None)


def subnets(number: int, families: Families = "v4") -> Subnets:
    return Subnets(
        IPv4Network(f"10.5.{number}.0/24") if families != "v6" else None,
        IPv6Network(f"fd00:10:5:{number}::/64") if families != "v4" else None,
    )


def lease(
    number: int,
    families: Families = "v4",
    *,
    hosts: Families | None = None,
    ip: int | None = None,
    vtep: int | None = None,
    age: int | None = None,
    **changes: Any,
) -> Lease:
    """`hosts`: which public addresses it has, by default those of the subnets' families."""
    hosts = hosts or families
    ip = number + 10 if ip is None else ip
    vtep = number if vtep is None else vtep
    value = LeaseValue.vxlan(
        IPv4Address(f"192.168.64.{ip}") if hosts != "v6" else None,
        1,
        mac(vtep, 4) if families != "v6" else "",
        public_ipv6=IPv6Address(f"fd64::{ip}") if hosts != "v4" else None,
        mac6=mac(vtep, 6) if families != "v4" else "",
    )
    own = subnets(number, families)
    return Lease(own.key, own, replace(value, **changes), number if age is None else age)


def want(
    *leases: Lease,
    families: Families = "v4",
    hosts: Families | None = None,
    peers: Peers | None = None,
    own: int = 1,
    network: NetworkConfig | None = None,
    **more: Any,
) -> Desired:
    """What host 1 should hold; `own` is the number of its subnet."""
    network = network or config(families)
    below = underlay(hosts or families)
    macs = {each.name: mac(1, each.over) for each in carriers(network, below)}
    return (peers or Peers()).desired(network, below, subnets(own, families), macs, leases, **more)


def kernel() -> FakeKernel:
    """Host 1 without an overlay."""
    addresses = (IPv4Interface("192.168.64.11/24"), IPv6Interface("fd64::11/64"))
    return FakeKernel(Interface("eth0", 2, 1500, True, False, "veth", addresses, 0, 1024))
