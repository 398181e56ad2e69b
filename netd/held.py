"""What a kernel holds of what netd looks at: filled by a dump, kept up by steps, compared with what is heard.

Owns: which links, addresses, neighbours, FDB entries and routes concern netd,
and where each stands. Invariant: a `Held` that was dumped, that expected every
step since, and that contradicted no notification since, is what the kernel
holds. Notifications are compared by what they say, not by who caused them,
because VXLAN's FDB does not tell. No I/O but asking for interfaces' names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from netd import plan as p
from netd import rtlink as rl
from netd import rtnetlink as rt
from netd.model import ROUTE_PROTOCOLS, Actual, FdbEntry, FdbKey, InterfaceAddress, Neighbour, NeighbourKey, Route
from podlane.api.subnets import Network
from podlane.runtime.netlink import Buffer

ABOUT_LINKS = (rl.RTM_NEWLINK, rl.RTM_DELLINK, rl.RTM_NEWADDR, rl.RTM_DELADDR)
"""Notifications about links and their addresses."""

_NEIGHBOURS = (rt.RTM_NEWNEIGH, rt.RTM_DELNEIGH)
_ROUTES = (rt.RTM_NEWROUTE, rt.RTM_DELROUTE)
_NEW = (rl.RTM_NEWLINK, rl.RTM_NEWADDR, rt.RTM_NEWNEIGH, rt.RTM_NEWROUTE)


@dataclass(frozen=True, slots=True)
class Asked:
    """What an observation covers: devices by name, and the pod networks."""

    devices: frozenset[str]
    networks: tuple[Network, ...]

    def covers(self, destination: Network) -> bool:
        """Whether a route there could be in a peer's way."""
        return any(
            destination.version == each.version
            and destination.prefixlen > each.prefixlen
            and destination.network_address in each
            for each in self.networks
        )


@dataclass
class Held:
    """`watched` are the names of further links, of which state and addresses count.

    `locals` are the kernel's own IPv6 routes, beside which others may stand.
    `holders` are the other interfaces that routes lead out of, by index.
    `ambiguous`: there are several entries where netd sees one, so that which
    is left when one goes cannot be told.
    """

    asked: Asked
    watched: frozenset[str] = frozenset()
    links: dict[int, rl.Link] = field(default_factory=dict)
    addresses: dict[tuple[int, InterfaceAddress], rl.LinkAddress] = field(default_factory=dict)
    neighbours: dict[NeighbourKey, Neighbour] = field(default_factory=dict)
    fdb: dict[FdbKey, FdbEntry] = field(default_factory=dict)
    routes: dict[Network, Route] = field(default_factory=dict)
    locals: dict[Network, Route] = field(default_factory=dict)
    blackholes: set[Network] = field(default_factory=set)
    holders: dict[int, str] = field(default_factory=dict)
    ambiguous: bool = False

    def actual(self, sysctls: Mapping[str, str]) -> Actual:
        """A copy that later steps leave alone."""
        asked = [link for link in self.links.values() if link.name in self.asked.devices]
        return Actual(
            devices={link.name: link.device(self._addresses(link.index)) for link in asked if link.vxlan is not None},
            foreign={link.name: link.kind or "physical" for link in asked if link.vxlan is None},
            neighbours=self.neighbours.copy(),
            fdb=self.fdb.copy(),
            routes={**self.locals, **self.routes} if self.locals else self.routes.copy(),
            blackholes=frozenset(self.blackholes),
            sysctls=sysctls,
        )

    def _addresses(self, index: int) -> frozenset[InterfaceAddress]:
        return frozenset(address for at, address in self.addresses if at == index)

    def reuse(self, before: Held) -> None:
        """Keep what is equal in the same objects: comparing something with itself costs nothing."""
        if self.neighbours == before.neighbours:
            self.neighbours = before.neighbours
        if self.fdb == before.fdb:
            self.fdb = before.fdb
        if self.routes == before.routes:
            self.routes = before.routes

    # ---- filled by a dump ------------------------------------------------------------------------

    def take_address(self, address: rl.LinkAddress) -> None:
        if not address.link_local:
            self.addresses[address.index, address.address] = address

    def take_route(self, raw: rt.RawRoute) -> None:
        place = raw.place
        if place is None or not self._concerns(raw):
            return
        destination = raw.destination
        if place == "blackhole":
            self.blackholes.add(destination)
            return
        entry = raw.entry(self._name(raw.interface))
        there = self.routes if place == "route" else self.locals
        # of several with one destination the kernel uses the first
        self.ambiguous |= there.setdefault(destination, entry) is not entry
        if entry.device:
            self._hold(raw.interface, entry.device)

    def _hold(self, index: int, name: str) -> None:
        if index and index not in self.links:
            self.holders[index] = name

    def _name(self, index: int) -> str:
        if index in self.links:
            return self.links[index].name
        return self.holders.get(index) or rl.name_of(index)

    def _concerns(self, raw: rt.RawRoute) -> bool:
        return raw.protocol in ROUTE_PROTOCOLS or raw.destination in self.routes or self.asked.covers(raw.destination)

    # ---- kept up by steps ------------------------------------------------------------------------

    def expect(self, step: p.EntryStep, index_of: Callable[[str], int]) -> None:
        """Take what the kernel will hold when it has carried out this step."""
        match step:
            case p.SetRoute(destination, route):
                self.routes[destination] = route
                self._hold(index_of(route.device), route.device)
            case p.DeleteRoute(destination, route):
                held = self.routes.get(destination)
                if held is not None and _matches(held, route):
                    del self.routes[destination]
            case p.SetFdb(name, mac, entry):
                had = self.fdb.get((name, mac))
                if had is not None and not had.ours and entry.ours:
                    entry = FdbEntry(entry.remote, ours=False)  # the mark stays that of who made it
                self.fdb[name, mac] = entry
            case p.DeleteFdb(name, mac, entry):
                had = self.fdb.get((name, mac))
                if had is not None and had.remote == entry.remote:
                    del self.fdb[name, mac]
            case p.SetNeighbour(name, address, neighbour):
                self.neighbours[name, address] = neighbour
            case p.DeleteNeighbour(name, address):
                self.neighbours.pop((name, address), None)
            case p.AddBlackhole(destination):
                self.blackholes.add(destination)
            case p.DeleteBlackhole(destination):
                self.blackholes.discard(destination)

    # ---- compared with what is heard ---------------------------------------------------------------

    def agrees(self, kind: int, body: Buffer, watched: Collection[str]) -> bool:
        """Whether a notification is no concern of netd's, or says what is held already.

        `watched` are the links that count by now, for one of ABOUT_LINKS.
        """
        if kind in _NEIGHBOURS:
            return self._neighbour_agrees(kind in _NEW, body)
        if kind in _ROUTES:
            return self._route_agrees(kind in _NEW, body)
        if kind in (rl.RTM_NEWLINK, rl.RTM_DELLINK):
            return self._link_agrees(kind in _NEW, body, watched)
        if kind == rl.RTM_NEWNETCONF:
            return not rl.stops_forwarding(body)
        return kind not in ABOUT_LINKS or self._address_agrees(kind in _NEW, body, watched)

    def _link_agrees(self, new: bool, body: Buffer, watched: Collection[str]) -> bool:
        link = rl.parse_link(body)
        if link is None:
            return True
        if link.index in self.links:
            return new and self.links[link.index] == link
        if link.index in self.holders:
            # its routes go without a word when it goes down
            return new and link.up and self.holders[link.index] == link.name
        return not self._counts(link.name, watched)

    def _counts(self, name: str, watched: Collection[str]) -> bool:
        return name in self.watched or name in self.asked.devices or name in watched

    def _address_agrees(self, new: bool, body: Buffer, watched: Collection[str]) -> bool:
        address = rl.parse_address(body)
        if address is None or address.link_local:
            return True
        if address.index in self.links:
            held = self.addresses.get((address.index, address.address))
            return held == address if new else held is None
        if address.index in self.holders:
            return new
        return not self._counts(rl.name_of(address.index), watched)

    def _neighbour_agrees(self, new: bool, body: Buffer) -> bool:
        family, index = rt.neighbour_head(body)
        link = self.links.get(index)
        if link is None or link.name not in self.asked.devices:
            return True  # ARP on the underlay is noise
        if family == rt.AF_BRIDGE:
            fdb = rt.parse_fdb(body)
            return fdb is None or self.fdb.get((link.name, fdb[0])) == (fdb[1] if new else None)
        neighbour = rt.parse_neighbour(body)
        if neighbour is None:
            return True
        return self.neighbours.get((link.name, neighbour[0])) == (neighbour[1] if new else None)

    def _route_agrees(self, new: bool, body: Buffer) -> bool:
        if not rt.route_is_main(body):
            return True
        raw = rt.parse_route(body)
        place = raw.place
        if place is None or not self._concerns(raw):
            return True
        if place == "blackhole":
            return (raw.destination in self.blackholes) == new
        held = (self.routes if place == "route" else self.locals).get(raw.destination)
        return held == (raw.entry(self._name(raw.interface)) if new else None)


def _matches(held: Route, removed: Route) -> bool:
    """As the kernel looks for a route to remove: what is not given may be anything."""
    return (
        held.protocol == removed.protocol
        and removed.device in {"", held.device}
        and removed.gateway in {None, held.gateway}
    )
