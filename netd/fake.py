"""A kernel in memory, for tests and dry runs: keeps state and refuses what Linux refuses.

Held to the same contract tests as kernel.LinuxKernel. Invariant: what Linux
drops along with a device, its MAC address or its up state is dropped here too,
because netd's planning relies on exactly that. Seen on Linux 6.18.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_network

from netd import plan as p
from netd.desired import Lease, Underlay
from netd.model import (
    ROUTE_PROTOCOLS,
    Actual,
    Device,
    FdbEntry,
    FdbKey,
    Interface,
    InterfaceAddress,
    LinkState,
    Neighbour,
    NeighbourKey,
    Route,
)
from netd.reachability import Silent
from netd.ruleset import FirewallRules
from podlane.api.subnets import Address, Network, Subnets
from podlane.errors import ApplyError
from podlane.store.interface import Store

_GROUP = 1  # the lowest bit of a MAC address's first byte
_UP, _DISABLED = "nexthop device is not up", "net/ipv6/conf/{}/disable_ipv6"


class FakeKernel:
    """`interrupt_after` makes `apply` end with an error after that many steps, once.

    `applied` are the steps that were carried out, `observed` the `verify` of each observation.
    """

    def __init__(self, *interfaces: Interface) -> None:
        self.links = {each.name: each for each in interfaces}
        self.devices: dict[str, Device] = {}
        self.foreign: dict[str, str] = {}
        self.neighbours: dict[NeighbourKey, Neighbour] = {}
        self.fdb: dict[FdbKey, FdbEntry] = {}
        self.routes: dict[Network, Route] = {}
        self.blackholes: set[Network] = set()
        self.sysctls = {"net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0"}
        self.sysctls |= {f"net/ipv6/conf/{name}/accept_ra": "1" for name in self.links}
        self.interrupt_after: int | None = None
        self.applied: list[p.Step] = []
        self.observed: list[bool] = []
        self._changed: list[Callable[[], None]] = []
        self._indexes: dict[str, int] = {}

    # ---- Kernel ------------------------------------------------------------------------------

    def interfaces(self) -> tuple[Interface, ...]:
        return (*self.links.values(), *map(self._as_interface, self.devices.values()))

    def interface(self, name: str) -> Interface | None:
        return next((each for each in self.interfaces() if each.name == name), None)

    def route_to(self, address: Address) -> str:
        for each in self.interfaces():
            if any(address == own.ip for own in each.addresses):
                return each.name
        ways = dict(self._connected() | self.routes.items() | {(to, None) for to in self.blackholes})
        if covering := _best(address, ways):
            route = ways[covering]
            return route.device if route is not None else ""
        metrics = {
            each.name: each.default_metric if address.version == 4 else each.default_metric6
            for each in self.links.values()
            if each.up
        }
        return min((n for n, m in metrics.items() if m is not None), key=lambda n: metrics[n] or 0, default="")

    def link(self, name: str) -> LinkState | None:
        if name in self.foreign:
            return LinkState(self.foreign[name], 1500, True)
        if name in self.devices:
            device = self.devices[name]
            return LinkState("vxlan", device.mtu, device.up, device.mac)
        found = self.links.get(name)
        return LinkState(found.kind, found.mtu, found.up) if found is not None else None

    def observe(
        self, devices: Collection[str], networks: Collection[Network], sysctls: Collection[str], *, verify: bool = True
    ) -> Actual:
        self.observed.append(verify)

        def inside(destination: Network) -> bool:
            return any(_within(destination, each) and destination != each for each in networks)

        return Actual(
            devices={name: each for name, each in self.devices.items() if name in devices},
            foreign={name: kind for name, kind in self.foreign.items() if name in devices},
            neighbours={key: each for key, each in self.neighbours.items() if key[0] in devices},
            fdb={key: each for key, each in self.fdb.items() if key[0] in devices},
            routes={to: route for to, route in self.routes.items() if route.protocol in ROUTE_PROTOCOLS or inside(to)},
            blackholes=frozenset(self.blackholes),
            sysctls={path: self.sysctls[path] for path in sysctls if path in self.sysctls},
        )

    def apply(self, plan: p.Plan) -> None:
        failures: list[tuple[str, Exception]] = []
        for step in plan.steps:
            if self.interrupt_after is not None:
                if self.interrupt_after == 0:
                    self.interrupt_after = None
                    raise ApplyError([*failures, (str(step), InterruptedError("interrupted"))])
                self.interrupt_after -= 1
            try:
                self._step(step)
                self.applied.append(step)
            except OSError as error:
                failures.append((str(step), error))
                if step in plan.device_steps and not isinstance(step, p.SetSysctl):
                    break
        if failures:
            raise ApplyError(failures)

    def listen(
        self, names: Callable[[], Collection[str]], on_change: Callable[[], None], stop: threading.Event
    ) -> None:
        del names  # everything here concerns them
        self._changed.append(on_change)
        on_change()
        stop.wait()
        self._changed.remove(on_change)

    # ---- what a person or another program does ------------------------------------------------

    def changed(self) -> None:
        """Tell the listeners, as the kernel does after a change."""
        for on_change in self._changed:
            on_change()

    def set_down(self, name: str) -> None:
        """Takes the routes, the neighbours and the IPv6 addresses; keeps the FDB and the IPv4 addresses."""
        if name in self.devices:
            device = self.devices[name]
            self.devices[name] = replace(device, up=False, addresses=frozenset(_v4(device.addresses)))
        else:
            link = self.links[name]
            self.links[name] = replace(link, up=False, addresses=tuple(_v4(link.addresses)))
        self._drop(name)

    def delete_link(self, name: str) -> None:
        """Takes all entries, and the devices whose underlay it is."""
        for device in [each for each in self.devices.values() if each.underlay == name]:
            self.delete_link(device.name)
        self.devices.pop(name, None)
        self.links.pop(name, None)
        self.sysctls = {path: value for path, value in self.sysctls.items() if f"/{name}/" not in path}
        self._drop(name)
        self.fdb = {key: each for key, each in self.fdb.items() if key[0] != name}

    # ---- steps -------------------------------------------------------------------------------

    def _step(self, step: p.Step) -> None:
        match step:
            case p.SetSysctl(path, value):
                if path not in self.sysctls:
                    raise FileNotFoundError(errno.ENOENT, f"no such file: {path}")
                self.sysctls[path] = value
            case p.CreateDevice(device):
                self._create(device)
            case p.SetRoute(destination, route):
                self._set_route(destination, route)
            case p.DeleteRoute(destination, route):
                have = self.routes.get(destination, route)
                if (have.gateway, have.device, have.protocol) == (route.gateway, route.device, route.protocol):
                    self.routes.pop(destination, None)
            case p.AddBlackhole(destination):
                self.blackholes.add(destination)
            case p.DeleteBlackhole(destination):
                self.blackholes.discard(destination)
            case _:
                self._on_device(step, self._named(step.name))

    def _on_device(self, step: p.Step, device: Device) -> None:
        match step:
            case p.DeleteDevice(name):
                self.delete_link(name)
            case p.SetMac(name, mac):
                self.devices[name] = replace(device, mac=_unicast(mac))
                self.neighbours = {key: each for key, each in self.neighbours.items() if key[0] != name}
            case p.SetMtu(name, mtu):
                self.devices[name] = replace(device, mtu=mtu)
            case p.SetUp(name):
                self._set_up(device)
            case p.AddAddress(name, address):
                if address in device.addresses:
                    raise FileExistsError(errno.EEXIST, "address already assigned")
                self.devices[name] = replace(device, addresses=device.addresses | {address})
                if address.version == 6:
                    self.sysctls[_DISABLED.format(name)] = "0"
            case p.DeleteAddress(name, address):
                if address not in device.addresses:
                    raise OSError(errno.EADDRNOTAVAIL, "address not found")
                self.devices[name] = replace(device, addresses=device.addresses - {address})
            case _:
                self._on_entries(step, device)

    def _on_entries(self, step: p.Step, device: Device) -> None:
        match step:
            case p.SetFdb(name, mac, entry):
                if entry.remote.version != _over(device):
                    raise OSError(errno.EAFNOSUPPORT, "address family not supported by protocol")
                had = self.fdb.get((name, mac))
                # the mark cannot be put on an entry that another program made
                self.fdb[name, _unicast(mac)] = FdbEntry(entry.remote, entry.ours and (had is None or had.ours))
            case p.DeleteFdb(name, mac, entry):
                if self.fdb.get((name, mac), entry).remote == entry.remote:
                    self.fdb.pop((name, mac), None)
            case p.SetNeighbour(name, ip, neighbour):
                self.neighbours[name, ip] = neighbour
            case p.DeleteNeighbour(name, ip):
                self.neighbours.pop((name, ip), None)

    def _create(self, device: Device) -> None:
        if device.name in self.devices or device.name in self.foreign or device.name in self.links:
            raise FileExistsError(errno.EEXIST, "file exists")
        if device.underlay and device.underlay not in self.links:
            raise OSError(errno.ENODEV, f"no interface {device.underlay}")
        for each in self.devices.values():
            if (each.vni, each.port, each.gbp, _over(each)) == (device.vni, device.port, device.gbp, _over(device)):
                raise FileExistsError(errno.EEXIST, "file exists (a VXLAN device with that VNI already exists)")
        _unicast(device.mac)
        self.devices[device.name] = replace(device, up=False, addresses=frozenset[InterfaceAddress]())
        self.sysctls[_DISABLED.format(device.name)] = self.sysctls.get(_DISABLED.format("default"), "0")

    def _set_up(self, device: Device) -> None:
        for each in self.devices.values():
            if each.up and each.port == device.port and _over(each) == _over(device) and each.gbp != device.gbp:
                raise OSError(errno.EADDRINUSE, "address already in use")
        self.devices[device.name] = replace(device, up=True)

    def _set_route(self, destination: Network, route: Route) -> None:
        holder = self.interface(route.device)
        if holder is None:
            raise OSError(errno.ENODEV, f"no interface {route.device}")
        if not holder.up:
            raise OSError(errno.ENETDOWN, _UP)
        gateway = route.gateway
        if gateway is not None and not route.onlink and not any(gateway in own.network for own in holder.addresses):
            raise OSError(errno.ENETUNREACH, "network is unreachable (nexthop has invalid gateway)")
        if gateway is not None and route.onlink and gateway.version == 6:
            ways = dict(self._connected() | self.routes.items())
            covering = _best(gateway, ways)
            if covering is not None and ways[covering].device != route.device:
                raise OSError(errno.EINVAL, "nexthop has invalid gateway or device mismatch")
        self.routes[destination] = route

    # ---- what is there -------------------------------------------------------------------------

    def _connected(self) -> set[tuple[Network, Route]]:
        return {
            (ip_network(address.network), Route(None, each.name, onlink=False, protocol=2))
            for each in self.links.values()
            if each.up
            for address in each.addresses
        }

    def _as_interface(self, device: Device) -> Interface:
        addresses = tuple(sorted(device.addresses, key=lambda each: (each.version, int(each))))
        index = self._indexes.setdefault(device.name, 1000 + len(self._indexes))
        return Interface(device.name, index, device.mtu, device.up, False, "vxlan", addresses)

    def _named(self, name: str) -> Device:
        if name not in self.devices:
            raise OSError(errno.ENODEV, f"no interface {name}")
        return self.devices[name]

    def _drop(self, name: str) -> None:
        self.routes = {to: route for to, route in self.routes.items() if route.device != name}
        self.neighbours = {key: each for key, each in self.neighbours.items() if key[0] != name}


def _over(device: Device) -> int:
    return device.local.version if device.local is not None else 4


def _v4(addresses: Collection[InterfaceAddress]) -> Iterator[InterfaceAddress]:
    return (each for each in addresses if each.version == 4)


def _within(destination: Network, network: Network) -> bool:
    return (
        destination.version == network.version
        and destination.prefixlen >= network.prefixlen
        and destination.network_address in network
    )


def _best(address: Address, ways: Collection[Network]) -> Network | None:
    """The longest prefix that covers an address."""
    covering = [each for each in ways if each.version == address.version and address in each and each.prefixlen]
    return max(covering, key=lambda each: each.prefixlen, default=None)


def _unicast(mac: str) -> str:
    if int(mac[:2], 16) & _GROUP or mac == "00:00:00:00:00:00":
        raise OSError(errno.EADDRNOTAVAIL, f"{mac} is not a unicast address")
    return mac


class FakeFirewall:
    """Remembers what it was last asked for."""

    def __init__(self) -> None:
        self.asked: FirewallRules | None = None

    def sync(self, rules: FirewallRules) -> None:
        self.asked = rules

    def listen(self, on_change: Callable[[], None], stop: threading.Event) -> None:
        del on_change  # nobody else changes it
        stop.wait()


class FakeProber:
    """Probes nobody. `direct` and `silent` are what it says; `peers` are the keys it was last told of."""

    def __init__(self, on_change: Callable[[], object]) -> None:
        self._on_change = on_change
        self.direct: frozenset[Address] = frozenset()
        self.silent = Silent()
        self.peers: tuple[str, ...] = ()
        self.auto = False

    def unreachable(self) -> Silent:
        return self.silent

    def set_peers(
        self, own: Subnets, leases: Iterable[Lease], underlay: Underlay, *, auto: bool, devices: Collection[str] = ()
    ) -> None:
        del own, underlay, devices
        self.peers, self.auto = tuple(sorted(lease.key for lease in leases)), auto

    def found(self, *direct: Address) -> None:
        """These answer without encapsulation, and no others."""
        self.direct = frozenset(direct)
        self._on_change()

    def run(self, stop: threading.Event) -> None:
        stop.wait()


class FakeRenewal:
    """An etcd lease that nobody renews; `lose` says that it is lost. Stands in for store.lease.KeepAlive."""

    def __init__(self, store: Store, ttl: int, on_lost: Callable[[], None], lease_id: int = 0) -> None:
        self._store, self._ttl, self._on_lost = store, ttl, on_lost
        self.lease_id = lease_id
        self.lost = False
        self.stopped = False

    def start(self) -> None:
        if self.lease_id:
            self._store.keep_alive(self.lease_id)
        else:
            self.lease_id = self._store.grant(self._ttl)

    def ttl_left(self) -> float:
        return 0.0 if self.lost else float(self._ttl)

    def stop(self, *, revoke: bool = False) -> None:
        self.stopped = True
        if revoke:
            self._store.revoke(self.lease_id)

    def lose(self) -> None:
        self.lost = True
        self._on_lost()
