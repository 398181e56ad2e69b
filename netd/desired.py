"""From leases to what this host's kernel should hold. Pure.

Owns: which leases are peers and which are left out. Invariant: a lease that
cannot be used (another backend, a malformed MAC address, one that clashes with
an earlier peer's or with our own subnet) is named in `problems` and costs
nobody else anything. Leases are taken in order of age, so every host settles a
clash alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from netd.model import Desired, Device, FdbEntry, Neighbour, Route
from podlane.api.network import VXLAN_OVERHEAD, LeaseValue, NetworkConfig


@dataclass(frozen=True, slots=True)
class Lease:
    """One host's lease as it stands in the store. `age` is its create revision: lower is older."""

    key: str
    subnet: IPv4Network
    value: LeaseValue
    age: int = 0


@dataclass(frozen=True, slots=True)
class Underlay:
    """The interface that carries the overlay's packets. `public_ip` is what peers are told to send to."""

    name: str
    address: IPv4Interface
    public_ip: IPv4Address
    mtu: int


def device_name(config: NetworkConfig) -> str:
    return f"flannel.{config.backend.vni}"


def device_mtu(config: NetworkConfig, underlay: Underlay) -> int:
    return (config.backend.mtu or underlay.mtu) - VXLAN_OVERHEAD


def desired(
    config: NetworkConfig, underlay: Underlay, subnet: IPv4Network, mac: str, leases: Iterable[Lease]
) -> Desired:
    """What a host with the lease `subnet` and the VTEP address `mac` should hold."""
    assert config.network is not None
    backend = config.backend
    device = Device(
        name=device_name(config),
        vni=backend.vni,
        port=backend.port,
        local=underlay.address.ip,
        underlay=underlay.name,
        mtu=device_mtu(config, underlay),
        mac=mac,
        learning=backend.learning,
        gbp=backend.gbp,
        addresses=frozenset({IPv4Interface((subnet.network_address, 32))}),
    )
    neighbours: dict[IPv4Address, Neighbour] = {}
    fdb: dict[str, FdbEntry] = {}
    routes: dict[IPv4Network, Route] = {}
    problems: list[str] = []
    for lease in sorted(leases, key=lambda each: (each.age, each.subnet)):
        if lease.subnet == subnet:
            continue
        if why := _unusable(lease, config.network, subnet, underlay):
            problems.append(f"use lease {lease.key}: {why}")
            continue
        gateway, remote = lease.subnet.network_address, lease.value.public_ip
        if backend.direct_routing and remote in underlay.address.network:
            routes[lease.subnet] = Route(remote, underlay.name, onlink=False)
            continue
        peer_mac = lease.value.vtep_mac
        if peer_mac == mac:
            # a clone of this machine, or a lease of our own from another subnet: packets would come back to us
            problems.append(f"use lease {lease.key}: VtepMAC {peer_mac} is this host's own")
            continue
        if fdb.setdefault(peer_mac, FdbEntry(remote)).remote != remote:
            problems.append(
                f"use lease {lease.key}: VtepMAC {peer_mac} is also that of {fdb[peer_mac].remote}, "
                f"which has the older lease; {remote} must take another"
            )
            continue
        neighbours[gateway] = Neighbour(peer_mac)
        routes[lease.subnet] = Route(gateway, device.name, onlink=True)
    return Desired(config.network, device, neighbours, fdb, routes, tuple(problems))


def _unusable(lease: Lease, network: IPv4Network, own: IPv4Network, underlay: Underlay) -> str:
    if lease.value.public_ip == underlay.public_ip:
        return f"PublicIP {underlay.public_ip} is this host's own"
    if lease.subnet.overlaps(own):
        return f"it overlaps this host's subnet {own}"
    if not lease.subnet.subnet_of(network):
        return f"it is not in the network {network}"
    try:
        _ = lease.value.vtep_mac
    except ValueError as e:
        return str(e)
    return ""
