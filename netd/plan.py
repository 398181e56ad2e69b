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

from collections.abc import Iterator
from dataclasses import dataclass, replace

from netd.model import (
    BLACKHOLE_METRIC,
    PROTO_KERNEL,
    PROTOCOL,
    Actual,
    Desired,
    Device,
    FdbEntry,
    InterfaceAddress,
    Neighbour,
    Route,
)
from podlane.api.subnets import Address, Network


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
    entry_steps = (*_additions(desired, actual, problems), *_removals(desired, actual))
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


def _additions(desired: Desired, actual: Actual, problems: list[str]) -> Iterator[EntryStep]:
    """What a packet meets last comes first."""
    for fdb_key, entry in desired.fdb.items():
        have_entry = actual.fdb.get(fdb_key)
        if have_entry is None or have_entry.remote != entry.remote:
            yield SetFdb(*fdb_key, entry)
    for key, neighbour in desired.neighbours.items():
        if actual.neighbours.get(key) != neighbour:
            yield SetNeighbour(*key, neighbour)
    for destination, route in desired.routes.items():
        have_route = actual.routes.get(destination)
        if have_route == route:
            continue
        if have_route is not None and have_route.protocol == PROTO_KERNEL:
            problems.append(f"add route {destination}: {have_route.device} has an address in that subnet")
            continue
        # Linux 6.18 refuses an IPv6 gateway that a route out of another interface covers, also when that one goes
        if have_route is not None and route.onlink and destination.version == 6 and have_route.device != route.device:
            yield DeleteRoute(destination, have_route)
        yield SetRoute(destination, route)
    for destination in desired.blackholes - actual.blackholes:
        yield AddBlackhole(destination)


def _removals(desired: Desired, actual: Actual) -> Iterator[EntryStep]:
    """Routes first; the neighbour last, because its mark vouches for an FDB entry without one."""
    for destination, route in actual.routes.items():
        if destination not in desired.routes and route.protocol == PROTOCOL:
            yield DeleteRoute(destination, route)
    for destination in actual.blackholes - desired.blackholes:
        yield DeleteBlackhole(destination)
    marked = {(name, n.mac) for (name, _), n in actual.neighbours.items() if n.protocol == PROTOCOL}
    for fdb_key, entry in actual.fdb.items():
        if fdb_key not in desired.fdb and (entry.ours or fdb_key in marked):
            yield DeleteFdb(*fdb_key, entry)
    for key, neighbour in actual.neighbours.items():
        if key not in desired.neighbours and neighbour.protocol == PROTOCOL:
            yield DeleteNeighbour(*key)
