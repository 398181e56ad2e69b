"""What services and endpoint slices ask for: frontends and the targets behind each.

Owns: an index that turns a change of one object into the frontends it touches,
so that a change costs what it changed (what one service means is serving.py's).
Pure: no I/O, no clock. Invariant: after any sequence of updates the index equals
one built afresh from the same objects.
Source: kube-proxy's pkg/proxy (servicechangetracker.go, endpointslicecache.go).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from podlane.api.types import SERVICE_NAME_LABEL, EndpointSlice, IPFamily, Service
from proxyd.healthcheck import ServiceHealth
from proxyd.serving import NOTHING, Place, Policy, Served, Wanted, serve
from proxyd.tables import Frontend, Key, unpack_frontend


@dataclass(slots=True)
class Touched:
    """What an update may have changed; the index says what is wanted there now. All packed."""

    frontends: set[Key] = field(default_factory=set)
    addresses: set[bytes] = field(default_factory=set)
    hairpin: set[bytes] = field(default_factory=set)

    def __or__(self, other: Touched) -> Touched:
        if not (other.frontends or other.addresses or other.hairpin):
            return self
        return Touched(self.frontends | other.frontends, self.addresses | other.addresses, self.hairpin | other.hairpin)


@dataclass(frozen=True, slots=True)
class Clash:
    """Two services claim one frontend: `kept` (lowest name) has it, `refused` does not."""

    frontend: Frontend
    kept: str
    refused: str

    def __str__(self) -> str:
        return f"serve {self.refused}: {self.frontend} already belongs to service {self.kept}"


class Index:
    """Everything wanted, by frontend, kept up to date object by object.

    Objects are named "namespace/name"; `place` is where this proxy stands.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.left_out: dict[Key, str] = {}
        """Frontends, and addresses in sets, that the kernel refused, and why. Nothing is wanted there until
        their service changes.
        """
        self._services: dict[str, Service] = {}
        self._slices: dict[str, EndpointSlice] = {}
        self._slices_of: dict[str, tuple[str, ...]] = {}
        self._served: dict[str, Served] = {}
        self._owner: dict[Key, str] = {}
        self._claims: dict[Key, set[str]] = {}  # only where two services claim one frontend
        self._addresses: dict[bytes, int] = {}
        self._hairpin: dict[bytes, int] = {}
        self._checked: set[str] = set()  # services with a health-check node port
        self._lacking: set[str] = set()  # services with no endpoint here where their policy wants one
        self.proxied = 0
        """How many services are proxied."""

    def wanted(self, frontend: Key) -> Wanted | None:
        """What is wanted at the frontend; None when no service has it."""
        owner = self._owner.get(frontend)
        if owner is None or frontend in self.left_out:
            return None
        return self._served[owner].frontends[frontend]

    def owner(self, frontend: Key) -> str | None:
        return self._owner.get(frontend)

    def users(self, key: Key) -> list[str]:
        """The services that have the frontend, or the address in one of the sets. Not quick: for what is refused."""
        if (owner := self._owner.get(key)) is not None:
            return [owner]
        return sorted(name for name, each in self._served.items() if key in each.addresses or key in each.hairpin)

    @property
    def frontends(self) -> Iterable[Key]:
        return self._owner.keys()

    @property
    def services(self) -> Mapping[str, Service]:
        return self._services

    def served(self, service: str) -> Served:
        return self._served.get(service, NOTHING)

    def slice(self, name: str) -> EndpointSlice | None:
        return self._slices.get(name)

    def slices(self, service: str) -> list[EndpointSlice]:
        return [self._slices[name] for name in sorted(self._slices_of.get(service, ()))]

    @property
    def addresses(self) -> Mapping[bytes, int]:
        return self._addresses

    @property
    def hairpin(self) -> Mapping[bytes, int]:
        return self._hairpin

    @property
    def health(self) -> dict[int, ServiceHealth]:
        """What is to be answered at each health-check node port."""
        return {port: health for name in sorted(self._checked) for port, health in self._served[name].health}

    @property
    def clashes(self) -> list[Clash]:
        return [
            Clash(unpack_frontend(frontend), self._owner[frontend], name)
            for frontend, names in sorted(self._claims.items())
            for name in sorted(names)
            if name != self._owner[frontend]
        ]

    def without_local(self) -> Counter[tuple[IPFamily, Policy]]:
        """How many services have a Local policy and endpoints, but none here."""
        return Counter(each for name in self._lacking for each in self._served[name].without_local)

    def is_member(self, counts: Mapping[bytes, int], address: bytes) -> bool:
        """Whether the address is wanted in the set with these counts (`addresses` or `hairpin`)."""
        return address in counts and address not in self.left_out

    def move(self, place: Place) -> Touched:
        """Stand elsewhere: another zone, other node addresses."""
        touched = Touched()
        if place != self.place:
            self.place = place
            for name in sorted(self._served):
                self._resolve(name, touched)
        return touched

    def replace(self, services: Mapping[str, Service], slices: Mapping[str, EndpointSlice]) -> Touched:
        """Take whole lists: what is not in them is gone."""
        if not (self._services or self._slices or self.left_out):
            return self._fill(services, slices)
        return self.update(
            {name: services.get(name) for name in self._services.keys() | services.keys()},
            {name: slices.get(name) for name in self._slices.keys() | slices.keys()},
        )

    def update(self, services: Mapping[str, Service | None], slices: Mapping[str, EndpointSlice | None]) -> Touched:
        """Take changed objects, None for one that is gone."""
        changed = set(services)
        for name, service in services.items():
            if service is None:
                self._services.pop(name, None)
            else:
                self._services[name] = service
        for name, each in slices.items():
            self._place_slice(name, each, changed)
        touched = Touched()
        for name in sorted(changed):
            self._resolve(name, touched)
        return touched

    def _fill(self, services: Mapping[str, Service], slices: Mapping[str, EndpointSlice]) -> Touched:
        """As `update`, for an index that has nothing: there is nothing to compare with."""
        self._services, self._slices = dict(services), dict(slices)
        for name, each in slices.items():
            if service := _service_of(each):
                self._slices_of[service] = (*self._slices_of.get(service, ()), name)
        for name in sorted(services):
            served = serve(services[name], [slices[each] for each in self._slices_of.get(name, ())], self.place)
            self._served[name] = served
            if not served.frontends:
                continue
            self.proxied += 1
            if served.health:
                self._checked.add(name)
            if served.without_local:
                self._lacking.add(name)
            for frontend in served.frontends:
                if self._owner.setdefault(frontend, name) != name:
                    self._contest(frontend, name)
            for address in served.addresses:
                self._addresses[address] = self._addresses.get(address, 0) + 1
            for address in served.hairpin:
                self._hairpin[address] = self._hairpin.get(address, 0) + 1
        return Touched(set(self._owner), set(self._addresses), set(self._hairpin))

    def _place_slice(self, name: str, each: EndpointSlice | None, changed: set[str]) -> None:
        """File a slice under its service; note the services it left and joined."""
        old = self._slices.pop(name, None)
        if old is not None and (before := _service_of(old)):
            others = tuple(other for other in self._slices_of.pop(before) if other != name)
            if others:
                self._slices_of[before] = others
            changed.add(before)
        if each is not None:
            self._slices[name] = each
            if after := _service_of(each):
                self._slices_of[after] = (*self._slices_of.get(after, ()), name)
                changed.add(after)

    def _resolve(self, name: str, touched: Touched) -> None:
        old = self._served.pop(name, NOTHING)
        new = NOTHING
        service = self._services.get(name)
        if service is not None:
            slices = self._slices
            new = serve(service, [slices[each] for each in self._slices_of.get(name, ())], self.place)
            self._served[name] = new
        self.proxied += bool(new.frontends) - bool(old.frontends)
        if new.health or old.health:
            (self._checked.add if new.health else self._checked.discard)(name)
        if new.without_local or old.without_local:
            (self._lacking.add if new.without_local else self._lacking.discard)(name)
        was, now = old.frontends, new.frontends
        for frontend, wanted in now.items():
            there = was.get(frontend)
            if there is None and self._owner.setdefault(frontend, name) != name:
                self._contest(frontend, name)
            if there != wanted:
                touched.frontends.add(frontend)
        for frontend in was.keys() - now.keys() if was else ():
            self._release(frontend, name)
            touched.frontends.add(frontend)
        if self.left_out:
            self._try_again((*was, *now), touched.frontends)
            self._try_again((*old.addresses, *new.addresses), touched.addresses)
            self._try_again((*old.hairpin, *new.hairpin), touched.hairpin)
        _recount(self._addresses, old.addresses, new.addresses, touched.addresses)
        _recount(self._hairpin, old.hairpin, new.hairpin, touched.hairpin)

    def _try_again(self, keys: Iterable[bytes], touched: set[bytes]) -> None:
        for key in keys:
            if self.left_out.pop(key, None) is not None:
                touched.add(key)

    def _contest(self, frontend: Key, name: str) -> None:
        owner = self._owner[frontend]
        self._claims.setdefault(frontend, {owner}).add(name)
        self._owner[frontend] = min(owner, name)

    def _release(self, frontend: Key, name: str) -> None:
        claims = self._claims.get(frontend)
        if claims is None:
            del self._owner[frontend]
            return
        claims.discard(name)
        self._owner[frontend] = min(claims)
        if len(claims) == 1:
            del self._claims[frontend]


def _service_of(each: EndpointSlice) -> str:
    name = each.metadata.labels.get(SERVICE_NAME_LABEL, "")
    return f"{each.metadata.namespace}/{name}" if name else ""


def _recount(counts: dict[bytes, int], old: Sequence[bytes], new: Sequence[bytes], touched: set[bytes]) -> None:
    if old == new:
        return
    for gone in set(old).difference(new) if old else ():
        counts[gone] -= 1
        if not counts[gone]:
            del counts[gone]
            touched.add(gone)
    for come in set(new).difference(old) if old else new:
        before = counts.get(come, 0)
        counts[come] = before + 1
        if not before:
            touched.add(come)
