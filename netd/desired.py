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

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Literal

from netd.intern import interned
from netd.model import Desired, Device, FdbEntry, FdbKey, Neighbour, NeighbourKey, Route, route_protocol
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


@dataclass(frozen=True, slots=True)
class _Needs:
    """One peer's entries, and why some or all are missing; neither for this host's own lease and for reservations."""

    neighbours: tuple[tuple[NeighbourKey, Neighbour], ...] = ()
    fdb: tuple[tuple[FdbKey, FdbEntry], ...] = ()
    routes: tuple[tuple[Network, Route], ...] = ()
    problem: str = ""


@dataclass(slots=True)
class _Entries:
    """All peers' entries. `disjoint`: no two peers share one or clash, so any may come or go by itself."""

    neighbours: dict[NeighbourKey, Neighbour] = field(default_factory=dict)
    fdb: dict[FdbKey, FdbEntry] = field(default_factory=dict)
    routes: dict[Network, Route] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    disjoint: bool = True

    def copy(self) -> _Entries:
        return _Entries(
            self.neighbours.copy(), self.fdb.copy(), self.routes.copy(), self.problems.copy(), self.disjoint
        )

    def add(self, key: str, needs: _Needs) -> None:
        clash = self._clash(needs)
        if problem := clash or needs.problem:
            self.problems[key] = problem
        if clash:
            self.disjoint = False
            return
        self.disjoint &= not any(fdb_key in self.fdb for fdb_key, _ in needs.fdb)
        self.neighbours.update(needs.neighbours)
        self.fdb.update(needs.fdb)
        self.routes.update(needs.routes)

    def remove(self, key: str, needs: _Needs) -> None:
        """Of a peer that was added; they must be disjoint."""
        self.problems.pop(key, None)
        for neighbour_key, _ in needs.neighbours:
            del self.neighbours[neighbour_key]
        for fdb_key, _ in needs.fdb:
            del self.fdb[fdb_key]
        for destination, _ in needs.routes:
            del self.routes[destination]

    def _clash(self, needs: _Needs) -> str:
        for key, entry in needs.fdb:
            have = self.fdb.get(key)
            if have is not None and have.remote != entry.remote:
                return (
                    f"VtepMAC {key[1]} is also that of {have.remote}, which has the older lease; "
                    f"{entry.remote} must take another"
                )
        for destination, _ in needs.routes:
            if destination in self.routes:
                return f"its subnet {destination} is also that of a peer with an older lease"
        for neighbour, _ in needs.neighbours:  # a longer or shorter subnet that begins alike
            if neighbour in self.neighbours:
                return f"its VTEP's address {neighbour[1]} is also that of a peer with an older lease"
        return ""


@dataclass
class Peers:
    """Works out what each lease needs, remembering it for leases that have not changed since.

    Invariant: the result depends on the arguments alone, and not on earlier ones.
    """

    _memo: dict[str, tuple[Lease, _Needs]] = field(default_factory=dict)
    _entries: _Entries = field(default_factory=_Entries)
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
        """What a host with the subnets `own` and devices with these MAC addresses should hold.

        `direct` are the peers (by public address) that `DirectRouting: "auto"`
        has found to be reachable without encapsulation.
        """
        context = (config, underlay, own, tuple(macs.items()), frozenset(direct))
        if context != self._context:
            self._memo, self._entries, self._context = {}, _Entries(), context
        host = _Host(config, underlay, own, macs, frozenset(direct))
        self._update(host, leases)
        return Desired(
            config.networks,
            host.devices,
            self._entries.neighbours,
            self._entries.fdb,
            self._entries.routes,
            frozenset(own) if blackhole else frozenset(),
            _sysctls(config, underlay),
            frozenset(obsolete) - host.devices.keys(),
            self._entries.problems,
        )

    def _update(self, host: _Host, leases: Iterable[Lease]) -> None:
        """Bring the entries to these leases. What was given out before stays as it is."""
        before, memo = self._memo, dict[str, tuple[Lease, _Needs]]()
        new: list[tuple[Lease, _Needs]] = []
        gone: list[tuple[Lease, _Needs]] = []
        for lease in leases:
            known = before.get(lease.key)
            if known is None or known[0] is not lease:
                gone += (known,) if known is not None else ()
                known = (lease, host.needs(lease))
                new.append(known)
            memo[lease.key] = known
        gone += [before[key] for key in before.keys() - memo.keys()]
        self._memo = memo
        if not new and not gone:
            return
        entries = self._entries.copy()
        if entries.disjoint:
            for lease, needs in gone:
                entries.remove(lease.key, needs)
            for lease, needs in new:
                entries.add(lease.key, needs)
        if not entries.disjoint:  # then it matters whose lease is older
            entries = _Entries()
            for lease, needs in sorted(memo.values(), key=lambda each: (each[0].age, each[0].key)):
                entries.add(lease.key, needs)
        self._entries = entries


class _Host:
    """What of this host decides over a peer's entries."""

    def __init__(
        self,
        config: NetworkConfig,
        underlay: Underlay,
        own: Subnets,
        macs: Mapping[str, str],
        direct: Collection[Address],
    ) -> None:
        self._backend = config.backend
        self._networks: dict[int, Network] = {network.version: network for network in config.networks}
        self._underlay = underlay
        self._public = {underlay.public_ip, underlay.public_ipv6}
        self._own = own
        self._macs = macs
        self._direct = direct
        # for host-gw as for DirectRouting true, whoever is on the segment
        self._how = True if config.backend.type == "host-gw" else config.backend.direct_routing
        by_carrier = carriers(config, underlay)
        self._carriers: dict[int, Carrier] = {family: c for c in by_carrier for family in c.families}
        self.devices = {c.name: _device(c, config, underlay, own, macs[c.name]) for c in by_carrier}

    def needs(self, lease: Lease) -> _Needs:
        if lease.subnets == self._own or not lease.value.backend_type:  # without one: reserved, and nobody there yet
            return _Needs()
        addresses = lease.value.addresses
        if problem := self._unusable(lease, addresses):
            return _Needs(problem=problem)
        neighbours: list[tuple[NeighbourKey, Neighbour]] = []
        fdb: dict[FdbKey, FdbEntry] = {}
        routes: list[tuple[Network, Route]] = []
        problem = ""
        for subnet in map(interned, lease.subnets):
            family: Family = 4 if subnet.version == 4 else 6
            if family not in self._networks:
                problem = f"it has the subnet {subnet}, and the network has no IPv{family}"
                continue
            gateway = self._gateway(addresses, family) if self._how else None
            if gateway is not None:
                routes.append((subnet, Route(gateway, self._underlay.name, False, route_protocol(subnet))))
                continue
            try:
                name, mac, remote = self._tunnel(lease.value, addresses, family)
            except ValueError as error:
                problem = problem or str(error)
                continue
            vtep = subnet.network_address
            neighbours.append(((name, vtep), Neighbour(mac)))
            fdb[name, mac] = FdbEntry(remote)
            routes.append((subnet, Route(vtep, name, True, route_protocol(subnet))))
        return _Needs(tuple(neighbours), tuple(fdb.items()), tuple(routes), problem)

    def _tunnel(self, value: LeaseValue, addresses: Sequence[Address], family: Family) -> tuple[str, str, Address]:
        """Our device, the peer's MAC address, and its public address. Raises ValueError."""
        carrier = self._carriers.get(family)
        if carrier is None:
            raise ValueError(f"no address of it is in the subnet of {self._underlay.name}, which host-gw needs")
        remote = next((a for a in addresses if a.version == carrier.over), None)
        if remote is None:
            raise ValueError(f"it has no public IPv{carrier.over} address, over which this host sends")
        mac = value.vtep_mac(family)
        if mac == self._macs[carrier.name]:
            # a clone of this machine, or a lease of our own from another subnet: packets would come back to us
            raise ValueError(f"VtepMAC {mac} is this host's own")
        return carrier.name, mac, remote

    def _unusable(self, lease: Lease, addresses: Sequence[Address]) -> str:
        for address in addresses:
            if address in self._public:
                return f"its public address {address} is this host's own"
        if lease.subnets.overlaps(self._own):
            return f"it overlaps this host's {self._own}"
        if lease.value.backend_type != self._backend.type:
            return f'backend type "{lease.value.backend_type}" is not {self._backend.type}'
        for subnet in lease.subnets:
            network = self._networks.get(subnet.version)
            # subnet_of() costs ten times as much
            if network is not None and (subnet.prefixlen < network.prefixlen or subnet.network_address not in network):
                return f"it is not in the network {network}"
        return ""

    def _gateway(self, addresses: Sequence[Address], family: Family) -> Address | None:
        """The peer's address when packets for it go without encapsulation."""
        local = self._underlay.local(family)
        gateway = next((a for a in addresses if a.version == family), None)
        if local is None or gateway is None or gateway not in local.network:
            return None
        return gateway if self._how is True or gateway in self._direct else None


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
