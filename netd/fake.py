"""A kernel in memory, for tests and dry runs: keeps state and refuses what Linux refuses.

Held to the same contract tests as kernel.LinuxKernel. Invariant: what Linux
drops along with a device, its MAC address or its up state is dropped here too,
because netd's planning relies on exactly that. Seen on Linux 6.18.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from netd import plan as p
from netd.model import PROTOCOL, Actual, Device, FdbEntry, Interface, LinkState, Neighbour, Route
from podlane.errors import ApplyError
from podlane.store.interface import Store

_GROUP = 1  # the lowest bit of a MAC address's first byte


class FakeKernel:
    """`interrupt_after` makes `apply` end with an error after that many steps, once."""

    def __init__(self, *interfaces: Interface) -> None:
        self.links = {each.name: each for each in interfaces}
        self.device: Device | None = None
        self.foreign: dict[str, str] = {}
        self.neighbours: dict[IPv4Address, Neighbour] = {}
        self.fdb: dict[str, FdbEntry] = {}
        self.routes: dict[IPv4Network, Route] = {}
        self.forwarding = False
        self.interrupt_after: int | None = None
        self.applied: list[p.Step] = []
        self._changed: list[Callable[[], None]] = []

    # ---- Kernel ------------------------------------------------------------------------------

    def interfaces(self) -> tuple[Interface, ...]:
        return tuple(self.links.values())

    def link(self, name: str) -> LinkState | None:
        if name in self.links:
            each = self.links[name]
            return LinkState(each.kind, each.mtu, each.up)
        if name in self.foreign:
            return LinkState(self.foreign[name], 1500, True)
        if self.device is None or self.device.name != name:
            return None
        return LinkState("vxlan", self.device.mtu, self.device.up)

    def observe(self, device: str, network: IPv4Network) -> Actual:
        routes = {
            destination: route
            for destination, route in self.routes.items()
            if route.protocol == PROTOCOL or (destination != network and destination.subnet_of(network))
        }
        if device in self.foreign:
            return Actual(foreign_kind=self.foreign[device], routes=routes, forwarding=self.forwarding)
        if self.device is None or self.device.name != device:
            return Actual(routes=routes, forwarding=self.forwarding)
        return Actual(self.device, "", dict(self.neighbours), dict(self.fdb), routes, self.forwarding)

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
                if step in plan.device_steps:
                    break
        if failures:
            raise ApplyError(failures)

    def listen(self, device: str, underlay: str, on_change: Callable[[], None], stop: threading.Event) -> None:
        del device, underlay  # everything here concerns them
        self._changed.append(on_change)
        on_change()
        stop.wait()
        self._changed.remove(on_change)

    # ---- what a person or another program does ------------------------------------------------

    def changed(self) -> None:
        """Tell the listeners, as the kernel does after a change."""
        for on_change in self._changed:
            on_change()

    def set_down(self) -> None:
        """Takes routes and neighbours, keeps the FDB."""
        assert self.device is not None
        self.device = replace(self.device, up=False)
        self._drop_routes_and_neighbours(self.device.name)

    def delete_device(self) -> None:
        assert self.device is not None
        self._drop_routes_and_neighbours(self.device.name)
        self.fdb.clear()
        self.device = None

    # ---- steps -------------------------------------------------------------------------------

    def _step(self, step: p.Step) -> None:
        match step:
            case p.SetForwarding():
                self.forwarding = True
            case p.CreateDevice(device):
                self._create(device)
            case p.SetRoute(destination, route):
                self._set_route(destination, route)
            case p.DeleteRoute(destination, route):
                if self.routes.get(destination) == route:
                    del self.routes[destination]
            case _:
                self._on_device(step, self._named(step.name))

    def _on_device(self, step: p.Step, device: Device) -> None:
        match step:
            case p.DeleteDevice():
                self.delete_device()
            case p.SetMac(_, mac):
                self.device = replace(device, mac=_unicast(mac))
                self.neighbours.clear()
            case p.SetMtu(_, mtu):
                self.device = replace(device, mtu=mtu)
            case p.SetUp():
                self.device = replace(device, up=True)
            case p.AddAddress(_, address):
                if address in device.addresses:
                    raise FileExistsError(errno.EEXIST, "address already assigned")
                self.device = replace(device, addresses=device.addresses | {address})
            case p.DeleteAddress(_, address):
                if address not in device.addresses:
                    raise OSError(errno.EADDRNOTAVAIL, "address not found")
                self.device = replace(device, addresses=device.addresses - {address})
            case _:
                self._on_entries(step, device)

    def _on_entries(self, step: p.Step, device: Device) -> None:
        match step:
            case p.SetFdb(_, mac, entry):
                had = self.fdb.get(mac)
                # the mark cannot be put on an entry that another program made
                self.fdb[_unicast(mac)] = FdbEntry(entry.remote, entry.ours and (had is None or had.ours))
            case p.DeleteFdb(_, mac, entry):
                if self.fdb.get(mac, entry).remote == entry.remote:
                    self.fdb.pop(mac, None)
            case p.SetNeighbour(_, ip, neighbour):
                if not device.up:
                    raise OSError(errno.ENETDOWN, "device is down")
                self.neighbours[ip] = neighbour
            case p.DeleteNeighbour(_, ip):
                self.neighbours.pop(ip, None)

    def _create(self, device: Device) -> None:
        if (self.device is not None and self.device.name == device.name) or device.name in self.foreign:
            raise FileExistsError(errno.EEXIST, "file exists")
        if device.underlay and device.underlay not in self.links:
            raise OSError(errno.ENODEV, f"no interface {device.underlay}")
        _unicast(device.mac)
        self.device = replace(device, up=False, addresses=frozenset[IPv4Interface]())

    def _set_route(self, destination: IPv4Network, route: Route) -> None:
        if self.device is not None and route.device == self.device.name:
            if not self.device.up:
                raise OSError(errno.ENETDOWN, "network is down")
        elif route.device not in self.links:
            raise OSError(errno.ENODEV, f"no interface {route.device}")
        elif not self.links[route.device].up:
            raise OSError(errno.ENETDOWN, "network is down")
        self.routes[destination] = route

    def _named(self, name: str) -> Device:
        if self.device is None or self.device.name != name:
            raise OSError(errno.ENODEV, f"no interface {name}")
        return self.device

    def _drop_routes_and_neighbours(self, name: str) -> None:
        self.routes = {d: r for d, r in self.routes.items() if r.device != name}
        self.neighbours.clear()


def _unicast(mac: str) -> str:
    if int(mac[:2], 16) & _GROUP or mac == "00:00:00:00:00:00":
        raise OSError(errno.EADDRNOTAVAIL, f"{mac} is not a unicast address")
    return mac


class FakeFirewall:
    """Remembers what it was last asked for."""

    def __init__(self) -> None:
        self.asked: tuple[IPv4Network, bool, bool] | None = None

    def sync(self, network: IPv4Network, *, forward: bool, masquerade: bool) -> None:
        self.asked = (network, forward, masquerade)


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

    def stop(self, *, revoke: bool = False) -> None:
        self.stopped = True
        if revoke:
            self._store.revoke(self.lease_id)

    def lose(self) -> None:
        self.lost = True
        self._on_lost()
