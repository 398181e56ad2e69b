"""The kernel netd programs: observe it, apply a plan to it, hear of changes.

Owns: what netd does to the kernel and when it looks. Invariants: `observe` is a dump
of what is there and remembers nothing; `apply` takes steps in the plan's
order, stops at a device step that fails (everything rests on the device), goes
on past an entry that fails, and names all failures in one ApplyError. fake.py
is the same in memory; one contract suite holds both.

Links and addresses go through pyroute2 (links.py). Routes, neighbours and FDB
entries, of which there is one each per peer, go through podlane.runtime.netlink
in bulk: pyroute2 needs 0.3 ms or more for one. Notifications are looked at for
what they are about and never for what they say, so they need no decoder.
"""

from __future__ import annotations

import errno
import gc
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Protocol, TypeVar

from netd import plan as p
from netd import rtnetlink as rt
from netd.links import index_of, name_of, open_links
from netd.model import PROTOCOL, Actual, Interface, LinkState, Route
from podlane.errors import ApplyError, PodlaneError
from podlane.runtime.netlink import NETLINK_ROUTE, DumpInterrupted, Message, NetlinkError, NetlinkSocket

_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_DUMP_ATTEMPTS = 5
_LISTEN = 1.0  # seconds a stop may go unnoticed

_T = TypeVar("_T")


class Kernel(Protocol):
    """What netd needs of a kernel. Used from one thread, but for `listen`."""

    def interfaces(self) -> tuple[Interface, ...]:
        """Every link with its IPv4 addresses. Raises PodlaneError."""
        ...

    def link(self, name: str) -> LinkState | None:
        """One link, None when there is none of that name: cheap, however many others there are. Raises PodlaneError."""
        ...

    def observe(self, device: str, network: IPv4Network) -> Actual:
        """What there is of `device` and of the routes into `network`. Raises PodlaneError."""
        ...

    def apply(self, plan: p.Plan) -> None:
        """Carry out the steps in order. Raises ApplyError."""
        ...

    def listen(self, device: str, underlay: str, on_change: Callable[[], None], stop: threading.Event) -> None:
        """Call `on_change` whenever something netd looks at may have changed, until `stop`.

        Other links are no concern: each pod that starts or ends brings some twenty notifications.
        """
        ...


class LinuxKernel:
    """The kernel of the network namespace this thread is in."""

    def interfaces(self) -> tuple[Interface, ...]:
        with open_links() as on:
            links = on.all()
            addresses: dict[int, list[IPv4Interface]] = {}
            for each in on.addresses():
                if each.usable:
                    addresses.setdefault(each.index, []).append(each.address)
        metrics: dict[int, int] = {}
        with _socket() as nl:
            for route in _dump(nl, rt.get_routes(), rt.RTM_NEWROUTE, rt.parse_route):
                if route.destination.prefixlen == 0 and route.index:
                    metrics[route.index] = min(route.metric, metrics.get(route.index, route.metric))
        return tuple(
            Interface(
                name=link.name,
                index=link.index,
                mtu=link.mtu,
                up=link.up,
                loopback=link.loopback,
                kind=link.kind,
                addresses=tuple(addresses.get(link.index, ())),
                default_metric=metrics.get(link.index),
            )
            for link in links
        )

    def link(self, name: str) -> LinkState | None:
        with open_links() as on:
            link = on.find(name)
        return LinkState(link.kind, link.mtu, link.up) if link is not None else None

    def observe(self, device: str, network: IPv4Network) -> Actual:
        forwarding = _FORWARDING.read_text().strip() == "1"
        with open_links() as on:
            link = on.find(device)
            addresses = on.addresses() if link is not None and link.kind == "vxlan" else []
        # pyroute2's messages are cyclic: left alone, 2 MB of them pile up between two full collections
        gc.collect(1)
        with _socket() as nl:
            routes = self._routes(nl, network)
            if link is None:
                return Actual(routes=routes, forwarding=forwarding)
            if link.kind != "vxlan":
                return Actual(foreign_kind=link.kind or "physical", routes=routes, forwarding=forwarding)
            index = link.index
            neighbours = _dump(
                nl, rt.get_neighbours(index), rt.RTM_NEWNEIGH, lambda body: rt.parse_neighbour(body, index)
            )
            fdb = _dump(nl, rt.get_fdb(index), rt.RTM_NEWNEIGH, lambda body: rt.parse_fdb(body, index))
        return Actual(
            device=link.vxlan(frozenset(each.address for each in addresses if each.index == index)),
            neighbours=dict(each for each in neighbours if each is not None),
            fdb=dict(each for each in fdb if each is not None),
            routes=routes,
            forwarding=forwarding,
        )

    @staticmethod
    def _routes(nl: NetlinkSocket, network: IPv4Network) -> dict[IPv4Network, Route]:
        routes: dict[IPv4Network, Route] = {}
        names: dict[int, str] = {}
        first, last = int(network.network_address), int(network.broadcast_address)
        for raw in _dump(nl, rt.get_routes(), rt.RTM_NEWROUTE, rt.parse_route):
            if raw.metric or raw.tos:
                continue
            inside = first <= int(raw.destination.network_address) <= last
            if raw.protocol != PROTOCOL and not (inside and raw.destination.prefixlen > network.prefixlen):
                continue
            if raw.index not in names:
                names[raw.index] = name_of(raw.index)
            # of several with one destination the kernel uses the first
            routes.setdefault(raw.destination, Route(raw.gateway, names[raw.index], raw.onlink, raw.protocol))
        return routes

    def apply(self, plan: p.Plan) -> None:
        for device_step in plan.device_steps:
            try:
                _device_step(device_step)
            except (OSError, PodlaneError) as error:
                raise ApplyError([(str(device_step), error)]) from error
        if plan.entry_steps:
            self._apply_entries(plan.entry_steps)

    @staticmethod
    def _apply_entries(wanted: Sequence[p.EntryStep]) -> None:
        with _socket() as nl:
            failures: list[tuple[str, Exception]] = []
            steps: list[p.EntryStep] = []
            messages: list[Message] = []
            indexes: dict[str, int] = {}
            for step in wanted:
                try:
                    messages.append(_entry_message(step, indexes))
                except OSError as error:
                    failures.append((str(step), error))
                    continue
                steps.append(step)
            for failure in nl.batch(messages):
                step = steps[failure.index]
                if not _gone(step, failure.errno):
                    failures.append((str(step), NetlinkError(str(failure), failure.errno)))
        if failures:
            raise ApplyError(failures)

    def listen(self, device: str, underlay: str, on_change: Callable[[], None], stop: threading.Event) -> None:
        groups = (rt.GROUP_LINK, rt.GROUP_NEIGH, rt.GROUP_IPV4_IFADDR, rt.GROUP_IPV4_ROUTE)
        with NetlinkSocket(NETLINK_ROUTE, groups=groups) as nl:
            concern = _Concern(device, underlay)
            on_change()  # what happened before the socket was there
            while not stop.is_set():
                try:
                    events = nl.receive(_LISTEN)
                except NetlinkError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    concern = _Concern(device, underlay)
                    on_change()  # some were lost: look at everything
                    continue
                if [event for event in events if concern.about(*event)]:  # all of them: it learns from each
                    on_change()


class _Concern:
    """Which notifications are about the overlay device, the underlay, or the main table's routes."""

    def __init__(self, device: str, underlay: str) -> None:
        self._names = (device, underlay)
        self._indexes = {_index_or_zero(name): name for name in self._names}

    def about(self, kind: int, body: bytes) -> bool:
        if kind in (rt.RTM_NEWLINK, rt.RTM_DELLINK):
            index, name = rt.link_named(body)
            known = index in self._indexes
            if name in self._names:
                self._indexes[index] = name
            return known or name in self._names
        if kind in (rt.RTM_NEWADDR, rt.RTM_DELADDR):
            return rt.address_index(body) in self._indexes
        if kind in (rt.RTM_NEWNEIGH, rt.RTM_DELNEIGH):  # ARP on the underlay is noise
            return self._indexes.get(rt.neighbour_index(body)) == self._names[0]
        return rt.route_is_main(body)


def _socket() -> NetlinkSocket:
    try:
        return NetlinkSocket(NETLINK_ROUTE)
    except OSError as error:
        raise PodlaneError(f"open netlink socket: {error.strerror or error}") from error


def _dump(nl: NetlinkSocket, message: Message, wanted: int, parse: Callable[[memoryview], _T]) -> list[_T]:
    for attempt in range(1, _DUMP_ATTEMPTS + 1):
        try:
            return [parse(body) for kind, body in nl.dump(message) if kind == wanted]
        except DumpInterrupted:
            if attempt == _DUMP_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _index_or_zero(name: str) -> int:
    with suppress(OSError):
        return socket.if_nametoindex(name)
    return 0


def _device_step(step: p.DeviceStep) -> None:
    if isinstance(step, p.SetForwarding):
        _FORWARDING.write_text("1\n")
        return
    with open_links() as on:
        match step:
            case p.CreateDevice(device):
                on.add_vxlan(device)
            case p.DeleteDevice(name):
                on.delete(name)
            case p.SetMac(name, mac):
                on.set_mac(name, mac)
            case p.SetMtu(name, mtu):
                on.set_mtu(name, mtu)
            case p.SetUp(name):
                on.set_up(name)
            case p.AddAddress(name, address):
                on.add_address(name, address)
            case p.DeleteAddress(name, address):
                on.delete_address(name, address)


def _entry_message(step: p.EntryStep, indexes: dict[str, int]) -> Message:
    name = step.route.device if isinstance(step, p.SetRoute | p.DeleteRoute) else step.name
    if name not in indexes:
        indexes[name] = index_of(name)
    index = indexes[name]
    match step:
        case p.SetFdb(_, mac, entry):
            return rt.replace_fdb(index, mac, entry)
        case p.DeleteFdb(_, mac, entry):
            return rt.delete_fdb(index, mac, entry)
        case p.SetNeighbour(_, address, neighbour):
            return rt.replace_neighbour(index, address, neighbour)
        case p.DeleteNeighbour(_, address):
            return rt.delete_neighbour(index, address)
        case p.SetRoute(destination, route):
            return rt.replace_route(destination, route, index)
        case p.DeleteRoute(destination, route):
            return rt.delete_route(destination, route, index)


def _gone(step: p.Step, number: int) -> bool:
    """Whether a removal failed because there is nothing to remove any more."""
    removal = isinstance(step, p.DeleteFdb | p.DeleteNeighbour | p.DeleteRoute)
    return removal and number in (errno.ENOENT, errno.ESRCH)
