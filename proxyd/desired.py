"""What services and endpoint slices ask for: frontends and the targets behind each.

Owns: the meaning of Service and EndpointSlice, and an index that turns a change
of one object into the frontends it touches, so that a change costs what it
changed. Pure: no I/O, no clock. Invariant: after any sequence of updates the
index equals one built afresh from the same objects.
Source: kube-proxy's pkg/proxy (servicechangetracker.go, endpointslicecache.go):
only ready endpoints serve; a slice's ports belong to a service's by name and
protocol; headless services, and those another proxy is named for, are left alone.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from podlane.api.types import SERVICE_NAME_LABEL, EndpointSlice, Service
from proxyd.tables import Frontend, Target

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"

_NOTHING: frozenset[Target] = frozenset()


@dataclass(frozen=True, slots=True)
class Served:
    """What one service asks for. `hairpin`: addresses of its endpoints on this node."""

    frontends: Mapping[Frontend, frozenset[Target]] = field(default_factory=dict)
    addresses: frozenset[str] = frozenset()
    hairpin: frozenset[str] = frozenset()


@dataclass(slots=True)
class Touched:
    """What an update may have changed; the index says what is wanted there now."""

    frontends: set[Frontend] = field(default_factory=set)
    addresses: set[str] = field(default_factory=set)
    hairpin: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Clash:
    """Two services claim one frontend: `kept` (lowest name) has it, `refused` does not."""

    frontend: Frontend
    kept: str
    refused: str

    def __str__(self) -> str:
        return f"serve {self.refused}: {self.frontend} already belongs to service {self.kept}"


@lru_cache(maxsize=65536)
def is_ipv4(address: str) -> bool:
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return True


def serve(service: Service, slices: Iterable[EndpointSlice], node: str) -> Served:
    """Resolve one service. An endpoint on `node`, or on no named node, counts as local."""
    address = service.spec.cluster_ip
    labels = service.metadata.labels
    if not is_ipv4(address) or PROXY_NAME_LABEL in labels or HEADLESS_LABEL in labels:
        return Served()
    targets: dict[tuple[str, str], set[Target]] = {}
    hairpin: set[str] = set()
    for each in slices:
        if each.address_type != "IPv4":
            continue
        ready = [e for e in each.endpoints if e.conditions.ready and e.addresses and is_ipv4(e.addresses[0])]
        # the addresses of one endpoint are the same pod, of which Kubernetes says: use the first
        hairpin.update(e.addresses[0] for e in ready if e.node_name in {"", node})
        for port in each.ports:
            found = targets.setdefault((port.name, port.protocol), set())
            found.update(Target(e.addresses[0], port.port) for e in ready)
    frontends = {
        Frontend(address, port.protocol, port.port): frozenset(targets.get((port.name, port.protocol), ()))
        for port in service.spec.ports
    }
    return Served(frontends, frozenset((address,)), frozenset(hairpin))


class Index:
    """Everything wanted, by frontend, kept up to date object by object.

    Objects are named "namespace/name"; `node` is this node's name.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self._services: dict[str, Service] = {}
        self._slices: dict[str, EndpointSlice] = {}
        self._slices_of: dict[str, set[str]] = {}
        self._served: dict[str, Served] = {}
        self._owner: dict[Frontend, str] = {}
        self._claims: dict[Frontend, set[str]] = {}  # only where two services claim one frontend
        self._addresses: Counter[str] = Counter()
        self._hairpin: Counter[str] = Counter()

    def targets(self, frontend: Frontend) -> frozenset[Target]:
        """Where the frontend's connections go; empty when nobody serves it."""
        owner = self._owner.get(frontend)
        return _NOTHING if owner is None else self._served[owner].frontends[frontend]

    def owner(self, frontend: Frontend) -> str | None:
        return self._owner.get(frontend)

    @property
    def frontends(self) -> Iterable[Frontend]:
        return self._owner.keys()

    @property
    def services(self) -> int:
        """How many services are proxied."""
        return sum(1 for served in self._served.values() if served.addresses)

    @property
    def addresses(self) -> Mapping[str, int]:
        return self._addresses

    @property
    def hairpin(self) -> Mapping[str, int]:
        return self._hairpin

    @property
    def clashes(self) -> list[Clash]:
        return [
            Clash(frontend, self._owner[frontend], name)
            for frontend, names in sorted(self._claims.items())
            for name in sorted(names)
            if name != self._owner[frontend]
        ]

    def replace(self, services: Mapping[str, Service], slices: Mapping[str, EndpointSlice]) -> Touched:
        """Take whole lists: what is not in them is gone."""
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
            changed.update(self._place_slice(name, each))
        touched = Touched()
        for name in sorted(changed):
            self._resolve(name, touched)
        return touched

    def _place_slice(self, name: str, each: EndpointSlice | None) -> Iterable[str]:
        """File a slice under its service; return the services it left and joined."""
        old = self._slices.pop(name, None)
        if old is not None and (before := _service_of(old)):
            self._slices_of[before].discard(name)
            if not self._slices_of[before]:
                del self._slices_of[before]
            yield before
        if each is not None:
            self._slices[name] = each
            if after := _service_of(each):
                self._slices_of.setdefault(after, set()).add(name)
                yield after

    def _resolve(self, name: str, touched: Touched) -> None:
        old = self._served.pop(name, Served())
        new = Served()
        service = self._services.get(name)
        if service is not None:
            new = serve(service, (self._slices[each] for each in self._slices_of.get(name, ())), self.node)
            self._served[name] = new
        for frontend in old.frontends.keys() | new.frontends.keys():
            if old.frontends.get(frontend) != new.frontends.get(frontend):
                touched.frontends.add(frontend)
        for frontend in old.frontends.keys() - new.frontends.keys():
            self._release(frontend, name)
        for frontend in new.frontends.keys() - old.frontends.keys():
            self._claim(frontend, name)
        _recount(self._addresses, old.addresses, new.addresses, touched.addresses)
        _recount(self._hairpin, old.hairpin, new.hairpin, touched.hairpin)

    def _claim(self, frontend: Frontend, name: str) -> None:
        owner = self._owner.setdefault(frontend, name)
        if owner != name:
            self._claims.setdefault(frontend, {owner}).add(name)
            self._owner[frontend] = min(owner, name)

    def _release(self, frontend: Frontend, name: str) -> None:
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


def _recount(counts: Counter[str], old: frozenset[str], new: frozenset[str], touched: set[str]) -> None:
    for gone in old - new:
        counts[gone] -= 1
        if not counts[gone]:
            del counts[gone]
            touched.add(gone)
    for come in new - old:
        counts[come] += 1
        if counts[come] == 1:
            touched.add(come)
