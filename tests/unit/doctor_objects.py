"""One host and its peers, as the doctor is given them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_address
from typing import Any

from netd.desired import Lease, Peers, Underlay
from netd.doctor.facts import DoctorContext
from netd.doctor.finding import Finding
from netd.doctor.seen import Target
from netd.model import Actual
from podlane.api.network import parse_config
from podlane.api.subnets import LeaseValue, Subnets

CONFIG = parse_config('{"Network":"10.5.0.0/16"}')
UNDERLAY = Underlay("eth0", 1500, v4=IPv4Interface("192.168.64.11/24"), public_ip=IPv4Address("192.168.64.11"))
B = ip_address("192.168.64.12")


def lease(number: int, *, address: str = "", mac: str = "", subnet: str = "") -> Lease:
    subnets = Subnets(IPv4Network(subnet or f"10.5.{number}.0/24"))
    value = LeaseValue.vxlan(
        IPv4Address(address or f"192.168.64.{number + 10}"), 1, mac or f"02:00:00:00:00:{number:02x}"
    )
    return Lease(subnets.key, subnets, value, number)


def context(*leases: Lease, changed: Any = None, **fields: Any) -> DoctorContext:
    """Host 1's, whose kernel is as it should be unless `changed` gives what to replace in it."""
    config = fields.pop("config", CONFIG)
    all_leases = leases or (lease(1), lease(2))
    own = lease(1).subnets
    desired = Peers().desired(config, UNDERLAY, own, {"flannel.1": "02:00:00:00:00:01"}, all_leases)
    actual = Actual(desired.devices, {}, desired.neighbours, desired.fdb, desired.routes, sysctls=desired.sysctls)
    actual = replace(actual, **(changed or {}))
    whole = DoctorContext(config, UNDERLAY, own, all_leases, {}, actual, desired)
    return replace(whole, **fields)


def wrong(findings: Sequence[Finding]) -> list[tuple[str, str, str]]:
    return [(each.check, each.severity, each.peer) for each in findings if each.severity != "ok"]


TARGET = Target(
    peer="192.168.64.12",
    family=4,
    remote=B,
    local=ip_address("192.168.64.11"),
    vtep=ip_address("10.5.2.0"),
    mac="02:00:00:00:00:02",
    own_vtep=ip_address("10.5.1.0"),
    own_mac="02:00:00:00:00:01",
    vni=1,
    port=8472,
    mtu=1450,
    device="flannel.1",
    underlay="eth0",
    public=B,
    own_public=ip_address("192.168.64.11"),
)
