"""The difference between the wanted and the actual kernel state, as ordered steps.

Owns: the order in which netd changes a kernel. Pure: no I/O, no clock, no
randomness. Invariants: applying a plan, or any part of it in order, and then
planning and applying again reaches the desired state; a state that is right
already gives an empty plan; nothing without netd's mark is removed. What a
peer needs is added in the order a packet needs it in reverse (FDB entry,
neighbour, route), so that no route leads to a VTEP that is not known yet.
`str(plan)` is what an operator would type.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from netd.model import (
    BLACKHOLE_METRIC,
    PROTO_KERNEL,
    PROTOCOL,
    ROUTE_PROTOCOLS,
    Actual,
    Desired,
    Device,
    FdbEntry,
    FdbKey,
    InterfaceAddress,
    Neighbour,
    Route,
)
from podlane.api.subnets import Address, Network

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class CreateDevice:
    """Makes the device with its MAC address and MTU; down, without addresses."""

    device: Device

    def __str__(self) -> str:
        d = self.device
        parts = [f"ip link add {d.name} address {d.mac} mtu {d.mtu} type vxlan id {d.vni}"]
        parts += [f"local {d.local}"] if d.local else []
        parts += [f"dev {d.underlay}"] if d.underlay else []
        parts.append(f"dstport {d.port} {'learning' if d.learning else 'nolearning'}")
        parts += ["gbp"] if d.gbp else []
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class DeleteDevice:
    name: str

    def __str__(self) -> str:
        return f"ip link delete {self.name}"


@dataclass(frozen=True, slots=True)
class SetMac:
    """The kernel drops all of a device's neighbours when its MAC address changes."""

    name: str
    mac: str

    def __str__(self) -> str:
        return f"ip link set {self.name} address {self.mac}"


@dataclass(frozen=True, slots=True)
class SetMtu:
    name: str
    mtu: int

    def __str__(self) -> str:
        return f"ip link set {self.name} mtu {self.mtu}"


@dataclass(frozen=True, slots=True)
class SetUp:
    name: str

    def __str__(self) -> str:
        return f"ip link set {self.name} up"


@dataclass(frozen=True, slots=True)
class AddAddress:
    name: str
    address: InterfaceAddress

    def __str__(self) -> str:
        how = " nodad noprefixroute" if self.address.version == 6 else ""
        return f"ip address add {self.address} dev {self.name}{how}"


@dataclass(frozen=True, slots=True)
class DeleteAddress:
    name: str
    address: InterfaceAddress

    def __str__(self) -> str:
        return f"ip address delete {self.address} dev {self.name}"


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """`path` is below /proc/sys."""

    path: str
    value: str

    def __str__(self) -> str:
        return f"sysctl -w {self.path}={self.value}"


@dataclass(frozen=True, slots=True)
class SetFdb:
    name: str
    mac: str
    entry: FdbEntry

    def __str__(self) -> str:
        return f"bridge fdb replace {self.mac} dev {self.name} dst {self.entry.remote} self permanent extern_learn"


@dataclass(frozen=True, slots=True)
class DeleteFdb:
    name: str
    mac: str
    entry: FdbEntry

    def __str__(self) -> str:
        return f"bridge fdb delete {self.mac} dev {self.name} dst {self.entry.remote} self"


@dataclass(frozen=True, slots=True)
class SetNeighbour:
    name: str
    address: Address
    neighbour: Neighbour

    def __str__(self) -> str:
        mac, protocol = self.neighbour.mac, self.neighbour.protocol
        return f"ip neigh replace {self.address} lladdr {mac} dev {self.name} nud permanent protocol {protocol}"


@dataclass(frozen=True, slots=True)
class DeleteNeighbour:
    name: str
    address: Address

    def __str__(self) -> str:
        return f"ip neigh delete {self.address} dev {self.name}"


def _route_text(destination: Network, route: Route) -> str:
    via = f" via {route.gateway}" if route.gateway else ""
    onlink = " onlink" if route.onlink else ""
    device = f" dev {route.device}" if route.device else ""
    return f"{destination}{via}{device} protocol {route.protocol}{onlink}"


@dataclass(frozen=True, slots=True)
class SetRoute:
    destination: Network
    route: Route

    def __str__(self) -> str:
        return f"ip route replace {_route_text(self.destination, self.route)}"


@dataclass(frozen=True, slots=True)
class DeleteRoute:
    destination: Network
    route: Route

    def __str__(self) -> str:
        return f"ip route delete {_route_text(self.destination, self.route)}"


@dataclass(frozen=True, slots=True)
class AddBlackhole:
    """Drops what is sent to an address of `destination` that nobody has, rather than sending it out again."""

    destination: Network

    def __str__(self) -> str:
        return f"ip route replace blackhole {self.destination} metric {BLACKHOLE_METRIC} protocol {PROTOCOL}"


@dataclass(frozen=True, slots=True)
class DeleteBlackhole:
    destination: Network

    def __str__(self) -> str:
        return f"ip route delete blackhole {self.destination} metric {BLACKHOLE_METRIC} protocol {PROTOCOL}"


DeviceStep = CreateDevice | DeleteDevice | SetMac | SetMtu | SetUp | AddAddress | DeleteAddress | SetSysctl
EntryStep = (
    SetFdb | DeleteFdb | SetNeighbour | DeleteNeighbour | SetRoute | DeleteRoute | AddBlackhole | DeleteBlackhole
)
Step = DeviceStep | EntryStep


class Refused(Exception):
    """The desired state cannot be reached without touching what is not netd's."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in the order they must be taken.

    The device's come first and depend on one another; after them come entries,
    of which each may fail without harm to the others. `problems` says which
    entries are left alone because somebody else's stand in their place.
    """

    device_steps: tuple[DeviceStep, ...] = ()
    entry_steps: tuple[EntryStep, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*self.device_steps, *self.entry_steps)

    def withdrawing_nobody(self, desired: Desired) -> Plan:
        """Without the removal of peers that `desired` does not have: for one who may have missed some."""

        def stays(step: EntryStep) -> bool:
            match step:
                case DeleteFdb() | DeleteNeighbour():
                    return False
                case DeleteRoute(destination):
                    return destination in desired.routes  # it makes room for another
                case _:
                    return True

        return replace(self, entry_steps=tuple(filter(stays, self.entry_steps)))

    def __bool__(self) -> bool:
        return bool(self.device_steps or self.entry_steps)

    def __str__(self) -> str:
        return "".join(f"{step}\n" for step in self.steps)


def plan(desired: Desired, actual: Actual) -> Plan:
    """Raises Refused when a device's name is taken by a link that is not VXLAN."""
    for name in desired.devices:
        if kind := actual.foreign.get(name):
            raise Refused(f"create device {name}: a {kind} link of that name exists; rename or delete it")
    device_steps = tuple(_device_steps(desired, actual))
    actual = _without_what_goes(device_steps, actual)
    problems: list[str] = []
    entry_steps = tuple(_entry_steps(desired, actual, problems))
    return Plan(device_steps, entry_steps, tuple(problems))


def _device_steps(desired: Desired, actual: Actual) -> Iterator[DeviceStep]:
    for path, value in desired.sysctls.items():
        have = actual.sysctls.get(path)
        # who has turned router advertisements off keeps them off
        if have not in {None, value} and not (path.endswith("/accept_ra") and have == "0"):
            yield SetSysctl(path, value)
    for name in sorted(desired.obsolete & actual.devices.keys()):
        yield DeleteDevice(name)
    # all that must be made anew goes first: two devices cannot have one VNI and port, not even for a moment
    remade = {
        name
        for name, want in desired.devices.items()
        if name in actual.devices and not actual.devices[name].same_tunnel(want)
    }
    for name in sorted(remade):
        yield DeleteDevice(name)
    for name, want in desired.devices.items():
        yield from _one_device(want, None if name in remade else actual.devices.get(name), desired)


def _one_device(want: Device, have: Device | None, desired: Desired) -> Iterator[DeviceStep]:
    if have is None:
        yield CreateDevice(want)
        have = replace(want, up=False, addresses=frozenset())
    if have.mac != want.mac:
        yield SetMac(want.name, want.mac)
    if have.mtu != want.mtu:
        yield SetMtu(want.name, want.mtu)
    for address in sorted(want.addresses - have.addresses, key=_order):
        yield AddAddress(want.name, address)
    for address in sorted(have.addresses - want.addresses, key=_order):
        # an earlier lease's; others on our device are somebody's intention
        if address.network.prefixlen == address.max_prefixlen and any(address.ip in n for n in desired.networks):
            yield DeleteAddress(want.name, address)
    if not have.up:
        yield SetUp(want.name)


def _order(address: InterfaceAddress) -> tuple[int, int]:
    return address.version, int(address)


def _without_what_goes(steps: tuple[DeviceStep, ...], actual: Actual) -> Actual:
    """The state after the device steps: the kernel takes entries along with a device or its MAC address."""
    gone = {step.name for step in steps if isinstance(step, DeleteDevice)}
    gone |= {step.device.name for step in steps if isinstance(step, CreateDevice)}
    no_neighbours = gone | {step.name for step in steps if isinstance(step, SetMac)}
    if not no_neighbours:
        return actual
    return replace(
        actual,
        devices={name: device for name, device in actual.devices.items() if name not in gone},
        neighbours={key: each for key, each in actual.neighbours.items() if key[0] not in no_neighbours},
        fdb={key: each for key, each in actual.fdb.items() if key[0] not in gone},
        routes={destination: each for destination, each in actual.routes.items() if each.device not in gone},
    )


class _Difference(Generic[_K, _V]):
    """Between a wanted and an actual mapping: keys in their mapping's order.

    `missing` are wanted, and not there or with another value; `extra` are not
    wanted. Of thousands of entries few differ, and hashing keys is what takes
    longest: so sets and mappings are compared whole, which uses the hashes
    they have, before anything is looked at one by one.
    """

    def __init__(self, want: Mapping[_K, _V], have: Mapping[_K, _V]) -> None:
        want, have = dict(want), dict(have)
        self.missing: Collection[_K] = ()
        self.extra: Collection[_K] = ()
        if want == have:
            return
        absent, extra = set(want).difference(have), set(have).difference(want)
        self.extra = _in_order(have, extra)
        if _without(want, absent) == _without(have, extra):
            self.missing = _in_order(want, absent)
        else:
            self.missing = [key for key, value in want.items() if have.get(key) != value]


def _without(mapping: dict[_K, _V], keys: set[_K]) -> dict[_K, _V]:
    if len(keys) == len(mapping):
        return {}
    rest = mapping.copy()
    for key in keys:
        del rest[key]
    return rest


def _in_order(mapping: Mapping[_K, object], some: set[_K]) -> list[_K]:
    """Some of the mapping's own keys, the very objects."""
    those = set(map(id, some))
    return [key for key in mapping if id(key) in those] if those else []


def _entry_steps(desired: Desired, actual: Actual, problems: list[str]) -> Iterator[EntryStep]:
    fdb = _Difference(desired.fdb, actual.fdb)
    neighbours = _Difference(desired.neighbours, actual.neighbours)
    routes = _Difference(desired.routes, actual.routes)
    # what a packet meets last is added first
    for fdb_key in fdb.missing:
        entry, have_entry = desired.fdb[fdb_key], actual.fdb.get(fdb_key)
        if have_entry is None or have_entry.remote != entry.remote:  # the mark cannot be changed
            yield SetFdb(*fdb_key, entry)
    for key in neighbours.missing:
        yield SetNeighbour(*key, desired.neighbours[key])
    for destination in routes.missing:
        yield from _set_route(destination, desired.routes[destination], actual.routes.get(destination), problems)
    for destination in _sorted(desired.blackholes - actual.blackholes):
        yield AddBlackhole(destination)
    # routes go first; the neighbour last, because its mark vouches for an FDB entry without one
    for destination in routes.extra:
        if actual.routes[destination].protocol in ROUTE_PROTOCOLS:
            yield DeleteRoute(destination, actual.routes[destination])
    for destination in _sorted(actual.blackholes - desired.blackholes):
        yield DeleteBlackhole(destination)
    for fdb_key in _ours(fdb.extra, actual):
        yield DeleteFdb(*fdb_key, actual.fdb[fdb_key])
    for key in neighbours.extra:
        if actual.neighbours[key].protocol == PROTOCOL:
            yield DeleteNeighbour(*key)


def _set_route(destination: Network, route: Route, have: Route | None, problems: list[str]) -> Iterator[EntryStep]:
    if have is not None and have.protocol == PROTO_KERNEL:
        problems.append(f"add route {destination}: {have.device} has an address in that subnet")
        return
    # Linux 6.18 refuses an IPv6 gateway that a route out of another interface covers, also when that one goes
    if have is not None and route.onlink and destination.version == 6 and have.device != route.device:
        yield DeleteRoute(destination, have)
    yield SetRoute(destination, route)


def _ours(extra: Collection[FdbKey], actual: Actual) -> list[FdbKey]:
    """Those that carry netd's mark, or are vouched for by a neighbour that does."""
    if not extra:
        return []
    marked = {(name, n.mac) for (name, _), n in actual.neighbours.items() if n.protocol == PROTOCOL}
    return [key for key in extra if actual.fdb[key].ours or key in marked]


def _sorted(networks: Collection[Network]) -> list[Network]:
    return sorted(networks, key=lambda each: (each.version, int(each.network_address)))
