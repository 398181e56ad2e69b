"""The pod network of this node: one bridge, and a veth pair for each pod.

Owns: the bridge `podlane0` and its ports named `pl…`. Invariants: every call may
be repeated, also after it was cut off anywhere; a port joins the bridge last, and
with an alias that tells how its pod's side was set up, so one list of ports says
who is attached and with what; the bridge's MAC and each pod's follow from their
addresses, so neither a coming or going port nor an address's new owner makes
anybody's neighbour entry wrong. Nothing is stored.

Why not Docker's bridge driver: it executes dockerd anew for each container and
costs 130 ms of CPU for what takes 2 ms here (docs/adr/0004). Source: the CNI
bridge plugin; linux/drivers/net/veth.c, net/bridge/br_stp_if.c
(br_stp_recalculate_bridge_id leaves a MAC alone that was set).
"""

from __future__ import annotations

import errno
import re
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Literal, Protocol

from podlane.errors import PodlaneError
from podlane.runtime import namespace
from podlane.runtime.netlink import NETLINK_ROUTE, DumpInterrupted, Message, NetlinkError, NetlinkSocket
from scheduler.agent import rtnl
from scheduler.agent.network import Interface, NetworkSpec

BRIDGE = "podlane0"
INSIDE = "eth0"
"""The pod's side of its veth pair."""
PREFIX = "pl"
_OURS = re.compile(rf"{PREFIX}[0-9a-f]{{11}}")
TIMEOUT = 10.0
"""Seconds the kernel may take for one answer; it is milliseconds unless many namespaces are being taken apart."""
_DUMP_TRIES = 5
_WAIT = 1.0  # seconds a stop may go unnoticed


class PodNetError(PodlaneError):
    """The kernel refused something, or the pod's namespace is not what it should be."""


@dataclass(frozen=True, slots=True)
class Plug:
    """How a container (its id) is to be attached: with which (first) address, to which network."""

    container: str
    ip: str
    network: NetworkSpec

    @property
    def link(self) -> str:
        """The host's side; an interface name has at most 15 characters."""
        return link_of(self.container)

    @property
    def routes(self) -> tuple[tuple[Interface, str], ...]:
        """Each address with the gateway of its default route."""
        gateways = (segment.gateway for segment in self.network.segments)
        return tuple(zip(self.network.interfaces(self.ip), gateways, strict=False))

    @property
    def alias(self) -> str:
        return ", ".join(f"{interface} via {gateway}" for interface, gateway in self.routes)


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the bridge."""

    link: str
    alias: str
    mtu: int
    up: bool
    hairpin: bool

    @property
    def ips(self) -> tuple[str, ...]:
        """The pod's addresses, as the alias tells them."""
        return tuple(part.partition("/")[0] for part in self.alias.split(", ") if "/" in part)


@dataclass(frozen=True, slots=True)
class Bridge:
    kind: str
    mac: str
    mtu: int
    up: bool
    addresses: frozenset[Interface]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to do to the bridge; prints as the command for it."""

    verb: Literal["create", "set mac", "set mtu", "set up", "delete address", "add address"]
    value: str = ""

    def __str__(self) -> str:
        match self.verb:
            case "create":
                mac, mtu = self.value.split()
                return f"ip link add {BRIDGE} address {mac} mtu {mtu} type bridge"
            case "set mac":
                return f"ip link set {BRIDGE} address {self.value}"
            case "set mtu":
                return f"ip link set {BRIDGE} mtu {self.value}"
            case "set up":
                return f"ip link set {BRIDGE} up"
            case _:
                return f"ip address {self.verb.split()[0]} {self.value} dev {BRIDGE}"


class PodNet(Protocol):
    """Thread-safe. Calls raise PodNetError, within seconds."""

    def ensure(self, network: NetworkSpec) -> tuple[Change, ...]:
        """Make the bridge, or make it right; returns what had to be done, nothing when it was right."""
        ...

    def ports(self) -> dict[str, Port]:
        """The bridge's ports by name; none without a bridge."""
        ...

    def plugs(self) -> frozenset[str]:
        """The links that `attach` made, on the bridge or not."""
        ...

    def attach(self, plug: Plug, pid: int) -> None:
        """Attach the network namespace of a process, or complete what is missing of it."""
        ...

    def detach(self, links: Collection[str]) -> None:
        """Delete ports, and with each its pod's side; no error for one that is gone."""
        ...

    def watch(self, stop: threading.Event, gone: Callable[[str], None]) -> None:
        """Until `stop`, call `gone` with a link that left, or BRIDGE when it or an address of it did.

        The body of one thread. It makes repairs quick; that they come at all does not rest on it.
        """
        ...


# ---- decisions: pure -----------------------------------------------------------------------------


def link_of(container: str) -> str:
    return f"{PREFIX}{container[:11]}"


def mac_of(ip: str) -> str:
    """A locally administered MAC made of an address, in the form CNI plugins gave theirs (0a:58:…)."""
    return f"0a:58:{ip_address(ip).packed[-4:].hex(':')}"


def is_attached(plug: Plug, ports: Mapping[str, Port]) -> bool:
    """Whether nothing is missing of a plug."""
    port = ports.get(plug.link)
    return port == Port(plug.link, plug.alias, plug.network.mtu, up=True, hairpin=True)


def strays(links: Iterable[str], containers: Collection[str]) -> frozenset[str]:
    """Links of ours that belong to none of the running containers (ids)."""
    known = {link_of(identity) for identity in containers}
    return frozenset(link for link in links if _OURS.fullmatch(link) and link not in known)


def plan_bridge(network: NetworkSpec, seen: Bridge | None) -> tuple[Change, ...]:
    """What makes the bridge right. Raises PodNetError when something else has its name.

    Addresses go before they come: the kernel deletes an address together with
    those of its subnet that were added after it.
    """
    mac, mtu = mac_of(network.gateway), str(network.mtu)
    wanted = network.gateways()
    changes: list[Change] = []
    if seen is None:
        changes.append(Change("create", f"{mac} {mtu}"))
        seen = Bridge("bridge", mac, network.mtu, up=False, addresses=frozenset())
    if seen.kind != "bridge":
        raise PodNetError(f"make bridge {BRIDGE}: a link of kind {seen.kind or 'none'} has its name")
    if seen.mac != mac:
        changes.append(Change("set mac", mac))
    if seen.mtu != network.mtu:
        changes.append(Change("set mtu", mtu))
    changes += [Change("delete address", str(a)) for a in in_order(seen.addresses - set(wanted))]
    changes += [Change("add address", str(a)) for a in wanted if a not in seen.addresses]
    if not seen.up:
        changes.append(Change("set up"))
    return tuple(changes)


def in_order(addresses: Collection[Interface]) -> list[Interface]:
    return sorted(addresses, key=lambda address: (address.version, int(address.ip), address.network.prefixlen))


# ---- the kernel ------------------------------------------------------------------------------------


class KernelPodNet:
    """The network namespace of the calling thread."""

    def __init__(self, *, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout

    def ensure(self, network: NetworkSpec) -> tuple[Change, ...]:
        try:
            with self._open() as here:
                link, seen = self._bridge(here)
                changes = plan_bridge(network, seen)
                for change in changes:
                    if change.verb == "add address" and ":" in change.value:
                        _set_ipv6(BRIDGE, on=True)  # it may be off for new links
                    here.request(_message(change, link.index if link else 0))
                    if change.verb == "create":
                        link = _find(here, BRIDGE)
                return changes
        except (NetlinkError, OSError) as error:
            raise PodNetError(f"make bridge {BRIDGE}: {error}") from error

    def ports(self) -> dict[str, Port]:
        try:
            with self._open() as here:
                bridge = _find(here, BRIDGE)
                found = _dump(here, rtnl.get_ports(bridge.index)) if bridge else []
                links = [link for link in found if bridge and link.master == bridge.index]
        except (NetlinkError, OSError) as error:
            raise PodNetError(f"list ports of {BRIDGE}: {error}") from error
        return {x.name: Port(x.name, x.alias, x.mtu, x.up, x.hairpin) for x in links}

    def plugs(self) -> frozenset[str]:
        try:
            with self._open() as here:
                links = _dump(here, rtnl.get_veths())
        except (NetlinkError, OSError) as error:
            raise PodNetError(f"list links: {error}") from error
        return frozenset(x.name for x in links if x.kind == "veth" and _OURS.fullmatch(x.name))

    def attach(self, plug: Plug, pid: int) -> None:
        try:
            with namespace.opened(namespace.of_process(pid)) as there, self._open() as here:
                if namespace.is_own(there):
                    raise PodNetError("its network namespace is the host's")
                with namespace.inside(there):
                    inner = self._open()
                with inner:
                    self._attach(here, inner, there, plug)
        except (PodlaneError, OSError) as error:
            raise PodNetError(f"attach {plug.container[:12]} to {BRIDGE}: {error}") from error

    def detach(self, links: Collection[str]) -> None:
        try:
            with self._open() as here:
                failures = here.batch([rtnl.delete_link(link) for link in links])
        except (NetlinkError, OSError) as error:
            raise PodNetError(f"delete ports of {BRIDGE}: {error}") from error
        for failure in failures:
            if failure.errno != errno.ENODEV:
                raise PodNetError(f"delete ports of {BRIDGE}: {failure}")

    def watch(self, stop: threading.Event, gone: Callable[[str], None]) -> None:
        groups = [rtnl.GROUP_LINK, rtnl.GROUP_IPV4_IFADDR, rtnl.GROUP_IPV6_IFADDR]
        with NetlinkSocket(NETLINK_ROUTE, groups=groups, timeout=self._timeout) as events:
            while not stop.is_set():
                try:
                    received = events.receive(_WAIT)
                except NetlinkError:
                    gone(BRIDGE)  # some notices were lost: look at all
                    continue
                for kind, body in received:
                    if kind == rtnl.RTM_DELLINK:  # also, from the bridge, when a port leaves it
                        gone(rtnl.parse_link(body).name)
                    elif kind == rtnl.RTM_DELADDR:
                        index, name = rtnl.address_link(body)
                        gone(name or _name_of(index))

    def _open(self) -> NetlinkSocket:
        return NetlinkSocket(NETLINK_ROUTE, timeout=self._timeout)

    def _bridge(self, here: NetlinkSocket) -> tuple[rtnl.Link | None, Bridge | None]:
        link = _find(here, BRIDGE)
        if link is None:
            return None, None
        addresses = _addresses(here, link.index)
        return link, Bridge(link.kind, link.mac, link.mtu, link.up, addresses)

    def _attach(self, here: NetlinkSocket, inner: NetlinkSocket, there: int, plug: Plug) -> None:
        bridge = _find(here, BRIDGE)
        if bridge is None:
            raise PodNetError("no such bridge")
        outside, inside = _find(here, plug.link), _find(inner, INSIDE)
        if outside is not None and inside is None:  # somebody took the pod's side away
            here.request(rtnl.delete_link(plug.link))
            outside = None
        if outside is None:
            if inside is not None:
                raise PodNetError(f"its namespace has an {INSIDE} of another's making")
            mac, mtu = mac_of(plug.ip), plug.network.mtu
            here.request(rtnl.new_veth(plug.link, INSIDE, there, peer_mac=mac, mtu=mtu))
            outside, inside = _find(here, plug.link), _find(inner, INSIDE)
            if outside is None or inside is None:
                raise PodNetError("its namespace went away")
        assert inside is not None
        wanted = any(interface.version == 6 for interface, _ in plug.routes)
        had = any(address.version == 6 for address in _addresses(inner, inside.index))
        if wanted or had:
            with namespace.inside(there):
                _set_ipv6(INSIDE, on=wanted)  # Docker turns it off in its namespaces; off takes address and route along
                _set_ipv6("lo", on=wanted)
        _send(inner, _inner_messages(inner, inside, plug))
        joined = rtnl.set_link(outside.index, mtu=plug.network.mtu, master=bridge.index, alias=plug.alias)
        _send(here, [joined, rtnl.set_hairpin(outside.index)])


def _inner_messages(inner: NetlinkSocket, link: rtnl.Link, plug: Plug) -> list[Message]:
    """What sets up the pod's side."""
    others = _addresses(inner, link.index) - {interface for interface, _ in plug.routes}
    messages = [rtnl.delete_address(link.index, address) for address in in_order(others)]
    if (loopback := _find(inner, "lo")) is not None:
        messages.append(rtnl.set_link(loopback.index))
    return [
        *messages,
        rtnl.set_link(link.index, mac=mac_of(plug.ip), mtu=plug.network.mtu),
        *(rtnl.add_address(link.index, interface) for interface, _ in plug.routes),
        *(rtnl.replace_default_route(link.index, gateway) for _, gateway in plug.routes),
    ]


def _message(change: Change, index: int) -> Message:
    match change.verb:
        case "create":
            mac, mtu = change.value.split()
            return rtnl.new_bridge(BRIDGE, mac, int(mtu))
        case "set mac":
            return rtnl.set_link(index, up=False, mac=change.value)
        case "set mtu":
            return rtnl.set_link(index, up=False, mtu=int(change.value))
        case "set up":
            return rtnl.set_link(index)
        case "delete address":
            return rtnl.delete_address(index, ip_interface(change.value))
        case "add address":
            return rtnl.add_address(index, ip_interface(change.value))


def _send(at: NetlinkSocket, messages: list[Message]) -> None:
    for failure in at.batch(messages):
        raise NetlinkError(f"netlink request {messages[failure.index].type:#x}: {failure}", failure.errno)


def _find(at: NetlinkSocket, name: str) -> rtnl.Link | None:
    try:
        return rtnl.parse_link(at.ask(rtnl.get_link(name)))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def _dump(at: NetlinkSocket, request: Message) -> list[rtnl.Link]:
    for left in reversed(range(_DUMP_TRIES)):
        try:
            return [rtnl.parse_link(body) for _, body in at.dump(request)]
        except DumpInterrupted:
            if not left:
                raise
    return []


def _addresses(at: NetlinkSocket, index: int) -> frozenset[Interface]:
    for left in reversed(range(_DUMP_TRIES)):
        try:
            return rtnl.parse_addresses(at.dump(rtnl.get_addresses(index)), index)
        except DumpInterrupted:
            if not left:
                raise
    return frozenset()


def _set_ipv6(link: str, *, on: bool) -> None:
    """Of a link in the calling thread's namespace. A kernel without IPv6 says so when it gets an address."""
    try:
        setting = Path(f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6")
        wanted = "0" if on else "1"
        if setting.read_text().strip() != wanted:
            setting.write_text(wanted)
    except FileNotFoundError:
        return


def _name_of(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # gone, which is told as well
        return ""
