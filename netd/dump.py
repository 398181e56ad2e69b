"""Reading a kernel through a netlink socket: links, addresses, and all that an observation covers.

Owns: what is asked of the kernel, and that a dump which changed while it was
read is read again. Invariant: what is returned is whole or an error is raised.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

from netd import rtlink as rl
from netd import rtnetlink as rt
from netd.held import Asked, Held
from netd.model import Interface
from podlane.api.subnets import Address
from podlane.errors import PodlaneError
from podlane.runtime.netlink import NETLINK_ROUTE, DumpInterrupted, Message, NetlinkError, NetlinkSocket

SYSCTLS = Path("/proc/sys")
"""Below `net` the files are those of the network namespace of the thread that opens them."""

_ATTEMPTS = 5
_NO_SUCH_LINK = (errno.ENODEV, errno.ENXIO)
_UNREACHABLE = (
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EACCES,
    errno.EINVAL,
)  # by type of route; EINVAL: blackhole

_T = TypeVar("_T")


def open_socket(*groups: int, receive_buffer: int = 4 << 20) -> NetlinkSocket:
    """Raises PodlaneError."""
    try:
        return NetlinkSocket(NETLINK_ROUTE, groups=groups, receive_buffer=receive_buffer)
    except OSError as error:
        raise PodlaneError(f"open netlink socket: {error.strerror or error}") from error


def find_link(nl: NetlinkSocket, name: str) -> rl.Link | None:
    try:
        return rl.parse_link(nl.ask(rl.get_link(name)))
    except NetlinkError as error:
        if error.errno in _NO_SUCH_LINK:
            return None
        raise
    except OSError:
        return None


def links(nl: NetlinkSocket) -> list[rl.Link]:
    return _dump(nl, rl.get_links(), rl.RTM_NEWLINK, rl.parse_link)


def addresses(nl: NetlinkSocket, index: int = 0) -> list[rl.LinkAddress]:
    """Of one interface, or of all."""
    try:
        return _dump(nl, rl.get_addresses(index), rl.RTM_NEWADDR, rl.parse_address)
    except NetlinkError as error:
        if error.errno in _NO_SUCH_LINK:
            return []
        raise


def interfaces(nl: NetlinkSocket) -> tuple[Interface, ...]:
    """Every link as choosing the underlay needs it."""
    by_index: dict[int, list[rl.LinkAddress]] = {}
    for address in addresses(nl):
        by_index.setdefault(address.index, []).append(address)
    metrics = {family: _default_metrics(nl, family) for family in (rt.AF_INET, rt.AF_INET6)}
    return tuple(
        interface(
            link,
            by_index.get(link.index, ()),
            metrics[rt.AF_INET].get(link.index),
            metrics[rt.AF_INET6].get(link.index),
        )
        for link in links(nl)
    )


def interface(
    link: rl.Link, having: Iterable[rl.LinkAddress], metric: int | None = None, metric6: int | None = None
) -> Interface:
    """IPv4 first; addresses that may not last come last, or not at all where the family has others."""
    usable = sorted(
        (each for each in having if each.usable),
        key=lambda each: (each.address.version, not each.settled, each.secondary),
    )
    settled = {each.address.version for each in usable if each.settled}
    return Interface(
        name=link.name,
        index=link.index,
        mtu=link.mtu,
        up=link.up,
        loopback=link.loopback,
        kind=link.kind,
        addresses=tuple(e.address for e in usable if e.settled or e.address.version not in settled),
        default_metric=metric,
        default_metric6=metric6,
    )


def _default_metrics(nl: NetlinkSocket, family: int) -> dict[int, int]:
    """The best metric of the default routes out of each interface, by index."""
    metrics: dict[int, int] = {}

    def take(body: memoryview) -> list[tuple[int, int]] | None:
        if body[0] != family or not rt.route_is_default(body):
            return None
        metric = rt.parse_route(body).metric
        return [(index, metric) for index in rt.route_interfaces(body)]

    for route in _dump(nl, rt.get_routes(family), rt.RTM_NEWROUTE, take):
        for index, metric in route:
            metrics[index] = min(metric, metrics.get(index, metric))
    return metrics


def route_to(nl: NetlinkSocket, address: Address) -> str:
    """The interface a packet to `address` would leave by, or that has the address; empty when it cannot be sent."""
    try:
        route = nl.ask(rt.get_route_to(address))
    except NetlinkError as error:
        if error.errno in _UNREACHABLE:
            return ""
        raise
    if rt.route_is_to_this_host(route):  # by way of the loopback
        holders = [each.index for each in addresses(nl) if each.address.ip == address]
        if holders:
            return rl.name_of(holders[0])
    return rl.name_of(next(iter(rt.route_interfaces(route)), 0))


def held(nl: NetlinkSocket, asked: Asked, watched: frozenset[str]) -> Held:
    """All that `asked` covers, and the links of the names in `watched`."""
    found = Held(asked, watched)
    for name in asked.devices | watched:
        if (link := find_link(nl, name)) is not None:
            found.links[link.index] = link
            for address in addresses(nl, link.index):
                found.take_address(address)
    for link in list(found.links.values()):
        if link.vxlan is not None and link.name in asked.devices:
            _entries(nl, link, found)
    for family in (rt.AF_INET, rt.AF_INET6):
        for raw in _dump(nl, rt.get_routes(family), rt.RTM_NEWROUTE, rt.parse_route):
            # a kernel without IPv6 answers with other families' routes
            if rt.family_of(raw.destination) == family:
                found.take_route(raw)
    return found


def _entries(nl: NetlinkSocket, link: rl.Link, found: Held) -> None:
    name = link.name
    for neighbour in _dump(nl, rt.get_neighbours(link.index), rt.RTM_NEWNEIGH, _on(link.index, rt.parse_neighbour)):
        if neighbour[1] is not None:
            found.neighbours[name, neighbour[0]] = neighbour[1]
    for fdb in _dump(nl, rt.get_fdb(link.index), rt.RTM_NEWNEIGH, _on(link.index, rt.parse_fdb)):
        if fdb[1] is not None:
            found.ambiguous |= (name, fdb[0]) in found.fdb
            found.fdb[name, fdb[0]] = fdb[1]


def _on(index: int, parse: Callable[[memoryview], _T | None]) -> Callable[[memoryview], _T | None]:
    """Older kernels list other interfaces' entries too."""
    return lambda body: parse(body) if rt.neighbour_head(body)[1] == index else None


def sysctls(paths: Collection[str]) -> dict[str, str]:
    """Their values, without those that do not exist."""
    values: dict[str, str] = {}
    for path in paths:
        try:
            values[path] = (SYSCTLS / path).read_text().strip()
        except OSError:
            continue
    return values


def _dump(nl: NetlinkSocket, message: Message, wanted: int, parse: Callable[[memoryview], _T | None]) -> list[_T]:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            parsed = [parse(body) for kind, body in nl.dump(message) if kind == wanted]
        except DumpInterrupted:
            if attempt == _ATTEMPTS:
                raise
        else:
            return [each for each in parsed if each is not None]
    raise AssertionError("unreachable")
