"""From leases to what this host's kernel should hold. Pure.

Owns: which leases are peers and which are left out, and over which device and
underlay family each pod network travels. Invariant: a lease that cannot be
used (another backend, a malformed MAC address, one that clashes with an
earlier peer's or with our own subnets) is named in `problems` and costs nobody
else anything. Leases are taken in order of age, so every host settles a clash
alike.

Devices are as flannel has them: `flannel.<VNI>` for IPv4 pods over IPv4 hosts,
`flannel-v6.<VNI>` for IPv6 pods over IPv6 hosts. A host with addresses of one
family only carries both pod networks over that family, on one device, because
the kernel refuses a second one with the same VNI and port.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Literal

from netd.model import Desired, Device, FdbEntry, FdbKey, Neighbour, NeighbourKey, Route
from podlane.api.network import VXLAN6_OVERHEAD, VXLAN_OVERHEAD, NetworkConfig
from podlane.api.subnets import Address, LeaseValue, Network, Subnets

Family = Literal[4, 6]


@dataclass(frozen=True, slots=True)
class Lease:
    """One host's lease as it stands in the store. `age` is its create revision: lower is older."""

    key: str
    subnets: Subnets
    value: LeaseValue
    age: int = 0


@dataclass(frozen=True, slots=True)
class Underlay:
    """The interface that carries the overlay's packets, and what peers are told to send to.

    `v4` and `v6` are its addresses, at least one of them; the public addresses
    may be others (behind NAT), and are None exactly where the address is.
    """

    name: str
    mtu: int
    v4: IPv4Interface | None = None
    v6: IPv6Interface | None = None
    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None

    def local(self, family: Family) -> IPv4Interface | IPv6Interface | None:
        return self.v4 if family == 4 else self.v6

    def is_public(self, address: Address) -> bool:
        return address in {self.public_ip, self.public_ipv6}


@dataclass(frozen=True, slots=True)
class Carrier:
    """A VXLAN device to be: which pod networks it carries, over hosts' addresses of which family."""

    name: str
    over: Family
    families: tuple[Family, ...]


def carriers(config: NetworkConfig, underlay: Underlay) -> tuple[Carrier, ...]:
    """The VXLAN devices this host needs under this config; none for host-gw."""
    if config.backend.type != "vxlan":
        return ()
    families: dict[Family, list[Family]] = {}
    for network in config.networks:
        family: Family = 4 if network.version == 4 else 6
        over: Family = family if underlay.local(family) is not None else (6 if family == 4 else 4)
        families.setdefault(over, []).append(family)
    vni = config.backend.vni
    return tuple(
        Carrier(f"flannel.{vni}" if 4 in carried else f"flannel-v6.{vni}", over, tuple(carried))
        for over, carried in families.items()
    )


def overlay_mtu(config: NetworkConfig, underlay: Underlay) -> int:
    """Bytes a pod may send in one packet: what the tightest of the devices takes."""
    mtu = config.backend.mtu or underlay.mtu
    return min((mtu - _overhead(c.over) for c in carriers(config, underlay)), default=mtu)


def lease_value(config: NetworkConfig, underlay: Underlay, macs: Mapping[str, str]) -> LeaseValue:
    """What this host's own lease says; `macs` are the devices' by name."""
    # as flannel: the IPv6 address is told only where it is needed
    public_ipv6 = underlay.public_ipv6 if config.enable_ipv6 or underlay.public_ip is None else None
    by_family = {family: macs[c.name] for c in carriers(config, underlay) for family in c.families}
    if config.backend.type != "vxlan":
        return LeaseValue(underlay.public_ip, public_ipv6, config.backend.type)
    return LeaseValue.vxlan(
        underlay.public_ip,
        config.backend.vni,
        by_family.get(4, ""),
        public_ipv6=public_ipv6,
        mac6=by_family.get(6, ""),
    )


@dataclass
class Peers:
    """Works out what each lease needs, remembering it for leases that have not changed since.

    `direct` are the peers (by public address) that `DirectRouting: "auto"` has
    found to be reachable without encapsulation.
    """

    _memo: dict[str, tuple[Lease, _Needs]] = field(default_factory=dict)
    _context: object = None

    def desired(
        self,
        config: NetworkConfig,
        underlay: Underlay,
        own: Subnets,
        macs: Mapping[str, str],
        leases: Iterable[Lease],
        *,
        direct: Collection[Address] = frozenset(),
        blackhole: bool = False,
        obsolete: Collection[str] = (),
    ) -> Desired:
        """What a host with the subnets `own` and devices with these MAC addresses should hold."""
        by_carrier = carriers(config, underlay)
        context = (config, underlay, own, tuple(macs.items()), frozenset(direct))
        if context != self._context:
            self._memo.clear()
            self._context = context
        devices = {c.name: _device(c, config, underlay, own, macs[c.name]) for c in by_carrier}
        neighbours: dict[NeighbourKey, Neighbour] = {}
        fdb: dict[FdbKey, FdbEntry] = {}
        routes: dict[Network, Route] = {}
        problems: dict[str, str] = {}
        kept: dict[str, tuple[Lease, _Needs]] = {}
        for lease in sorted(leases, key=lambda each: (each.age, each.key)):
            if lease.subnets == own:
                continue
            known = self._memo.get(lease.key)
            if known is None or known[0] is not lease:
                known = (lease, _needs(lease, config, underlay, own, devices, by_carrier, direct))
            kept[lease.key] = known
            needs = known[1]
            if problem := needs.problem or _clash(needs, neighbours, fdb, routes):
                problems[lease.key] = problem
                continue
            neighbours.update(needs.neighbours)
            fdb.update(needs.fdb)
            routes.update(needs.routes)
        self._memo = kept
        return Desired(
            config.networks,
            devices,
            neighbours,
            fdb,
            routes,
            frozenset(own) if blackhole else frozenset(),
            _sysctls(config, underlay),
            frozenset(obsolete) - devices.keys(),
            problems,
        )


@dataclass(frozen=True, slots=True)
class _Needs:
    """One peer's entries, or why it has none."""

    neighbours: tuple[tuple[NeighbourKey, Neighbour], ...] = ()
    fdb: tuple[tuple[FdbKey, FdbEntry], ...] = ()
    routes: tuple[tuple[Network, Route], ...] = ()
    problem: str = ""


def _needs(  # noqa: PLR0917
    lease: Lease,
    config: NetworkConfig,
    underlay: Underlay,
    own: Subnets,
    devices: Mapping[str, Device],
    by_carrier: tuple[Carrier, ...],
    direct: Collection[Address],
) -> _Needs:
    if problem := _unusable(lease, config, underlay, own):
        return _Needs(problem=problem)
    neighbours: list[tuple[NeighbourKey, Neighbour]] = []
    fdb: dict[FdbKey, FdbEntry] = {}
    routes: list[tuple[Network, Route]] = []
    for subnet in lease.subnets:
        family: Family = 4 if subnet.version == 4 else 6
        gateway = _direct_gateway(lease.value, family, config, underlay, direct)
        if gateway is not None:
            routes.append((subnet, Route(gateway, underlay.name, onlink=False)))
            continue
        carrier = next((c for c in by_carrier if family in c.families), None)
        if carrier is None:
            return _Needs(problem=f"no address of it is in the subnet of {underlay.name}, which host-gw needs")
        remote = next((a for a in lease.value.addresses if a.version == carrier.over), None)
        if remote is None:
            return _Needs(problem=f"it has no public IPv{carrier.over} address, over which this host sends")
        try:
            mac = lease.value.vtep_mac(family)
        except ValueError as error:
            return _Needs(problem=str(error))
        if mac == devices[carrier.name].mac:
            # a clone of this machine, or a lease of our own from another subnet: packets would come back to us
            return _Needs(problem=f"VtepMAC {mac} is this host's own")
        vtep = subnet.network_address
        neighbours.append(((carrier.name, vtep), Neighbour(mac)))
        fdb[carrier.name, mac] = FdbEntry(remote)
        routes.append((subnet, Route(vtep, carrier.name, onlink=True)))
    return _Needs(tuple(neighbours), tuple(fdb.items()), tuple(routes))


def _unusable(lease: Lease, config: NetworkConfig, underlay: Underlay, own: Subnets) -> str:
    for address in lease.value.addresses:
        if underlay.is_public(address):
            return f"its public address {address} is this host's own"
    if lease.subnets.overlaps(own):
        return f"it overlaps this host's {own}"
    if lease.value.backend_type != config.backend.type:
        return f'backend type "{lease.value.backend_type}" is not {config.backend.type}'
    for subnet in lease.subnets:
        network = config.network if subnet.version == 4 else config.ipv6_network
        if network is None:
            return f"it has the subnet {subnet}, and the network has no IPv{subnet.version}"
        if not _within(subnet, network):
            return f"it is not in the network {network}"
    return ""


def _within(subnet: Network, network: Network) -> bool:
    """For networks of one family; subnet_of() costs ten times as much."""
    return subnet.prefixlen >= network.prefixlen and subnet.network_address in network


def _direct_gateway(
    value: LeaseValue, family: Family, config: NetworkConfig, underlay: Underlay, direct: Collection[Address]
) -> Address | None:
    """The peer's address when packets for it go without encapsulation."""
    local = underlay.local(family)
    gateway = next((a for a in value.addresses if a.version == family), None)
    if local is None or gateway is None or gateway not in local.network:
        return None
    how = True if config.backend.type == "host-gw" else config.backend.direct_routing
    return gateway if how is True or (how == "auto" and gateway in direct) else None


def _clash(
    needs: _Needs,
    neighbours: Mapping[NeighbourKey, Neighbour],
    fdb: Mapping[FdbKey, FdbEntry],
    routes: Mapping[Network, Route],
) -> str:
    for key, entry in needs.fdb:
        if key in fdb and fdb[key].remote != entry.remote:
            return (
                f"VtepMAC {key[1]} is also that of {fdb[key].remote}, which has the older lease; "
                f"{entry.remote} must take another"
            )
    for destination, _ in needs.routes:
        if destination in routes:
            return f"its subnet {destination} is also that of a peer with an older lease"
    for neighbour, _ in needs.neighbours:  # a longer or shorter subnet that begins alike
        if neighbour in neighbours:
            return f"its VTEP's address {neighbour[1]} is also that of a peer with an older lease"
    return ""


def _device(carrier: Carrier, config: NetworkConfig, underlay: Underlay, own: Subnets, mac: str) -> Device:
    backend, local = config.backend, underlay.local(carrier.over)
    assert local is not None
    vteps = {
        IPv4Interface((own.v4.network_address, 32)) if own.v4 is not None and 4 in carrier.families else None,
        IPv6Interface((own.v6.network_address, 128)) if own.v6 is not None and 6 in carrier.families else None,
    }
    return Device(
        name=carrier.name,
        vni=backend.vni,
        port=backend.port,
        local=local.ip,
        underlay=underlay.name,
        mtu=(backend.mtu or underlay.mtu) - _overhead(carrier.over),
        mac=mac,
        learning=backend.learning,
        gbp=backend.gbp,
        addresses=frozenset(each for each in vteps if each is not None),
    )


def _overhead(over: Family) -> int:
    return VXLAN_OVERHEAD if over == 4 else VXLAN6_OVERHEAD


def _sysctls(config: NetworkConfig, underlay: Underlay) -> dict[str, str]:
    wanted = {"net/ipv4/ip_forward": "1"} if config.enable_ipv4 else {}
    if config.enable_ipv6:
        # a host that forwards stops listening to router advertisements, and with that loses its own
        # default route, unless accept_ra is 2 (Linux ip-sysctl)
        wanted[f"net/ipv6/conf/{underlay.name}/accept_ra"] = "2"
        wanted["net/ipv6/conf/all/forwarding"] = "1"
    return wanted
