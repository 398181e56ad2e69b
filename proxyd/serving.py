"""What one service means on this node: its frontends, and who is behind each for whom.

Owns: the meaning of Service and EndpointSlice. Pure. The rules are Kubernetes':

- Only ready endpoints serve. Where a set (all, or those on this node) has none,
  those that are terminating and still serving do.
- `internalTrafficPolicy: Local`: the cluster IP leads to endpoints on this node only.
- `externalTrafficPolicy: Local`: clients outside the cluster reach endpoints on this
  node only and keep their address; pods, and the host itself, reach all of them.
- No endpoint anywhere: refused. None here, but elsewhere: dropped.
- Hints (from `trafficDistribution`) are heeded where every ready endpoint has one and
  one of them is for this node, or this zone; a Local policy comes before hints.

Source: kube-proxy's pkg/proxy/topology.go (CategorizeEndpoints), serviceport.go.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton
from typing import Literal, NamedTuple

from podlane.api.types import (
    BALANCE_ANNOTATION,
    HEADLESS_LABEL,
    SERVICE_PROXY_NAME_LABEL,
    EndpointHints,
    EndpointSlice,
    IPFamily,
    Service,
    ServicePort,
)
from proxyd.healthcheck import ServiceHealth
from proxyd.tables import PROTOCOL_BYTES, Key, pack_port

RANDOM, AFFINITY_HASH, MAGLEV = "random", "affinity-hash", "maglev"
_DEFAULT_TIMEOUT = 10800

Policy = Literal["internal", "external"]
"""Which of a service's two traffic policies."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where this proxy stands. `node_addresses`: where node ports are served."""

    node: str
    zone: str = ""
    node_addresses: tuple[str, ...] = ()


class Wanted(NamedTuple):
    """What is wanted at one frontend. Targets are packed, sorted and each there once.

    `inside` serves pods and the host itself and, unless `outside` says otherwise,
    everybody. `external`: not a cluster IP, so a connection may come from anywhere.
    `ranges`: who may connect, packed as first and last address; None for everybody.
    `drop`: with nobody inside, drop what should be refused (there are endpoints elsewhere).
    """

    inside: tuple[bytes, ...]
    outside: tuple[bytes, ...] | None = None
    balance: str = RANDOM
    affinity: int = 0
    external: bool = False
    ranges: tuple[bytes, ...] | None = None
    drop: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is a cluster IP whose endpoints are picked at random."""
        return not self.external and self.outside is None and self.balance == RANDOM and not self.affinity

    @property
    def targets(self) -> set[bytes]:
        return {*self.inside, *(self.outside or ())}


class Served(NamedTuple):
    """What one service asks for. `addresses`: its cluster IPs, `hairpin`: its endpoints that
    are, or may be, on this node, both packed.

    `without_local`: families and policies that are Local while endpoints are only elsewhere.
    """

    frontends: Mapping[Key, Wanted] = {}
    addresses: tuple[bytes, ...] = ()
    hairpin: tuple[bytes, ...] = ()
    health: tuple[tuple[int, ServiceHealth], ...] = ()
    without_local: frozenset[tuple[IPFamily, Policy]] = frozenset()


NOTHING = Served()


_Endpoint = tuple[bytes, bool, bool, EndpointHints | None]
"""Address, ready (else terminating and still serving), on this node, hints. A bare tuple: there are many."""

_Group = tuple[bytes, list[_Endpoint], bool]
"""A packed port, the endpoints that serve at it, and whether any of them has hints."""


class _Sets(NamedTuple):
    """Endpoints of one port: for everybody, on this node, and whether there is any at all."""

    cluster: tuple[bytes, ...]
    local: tuple[bytes, ...]
    any: bool


def is_proxied(service: Service) -> bool:
    spec, labels = service.spec, service.metadata.labels
    return (
        spec.cluster_ip not in {"", "None"}
        and spec.type != "ExternalName"
        and SERVICE_PROXY_NAME_LABEL not in labels
        and HEADLESS_LABEL not in labels
    )


def serve(service: Service, slices: Sequence[EndpointSlice], place: Place) -> Served:
    """Resolve one service. An endpoint without a node (of a slice made by hand) is on none."""
    if not is_proxied(service):
        return NOTHING
    return _serve_plain(service, slices, place.node) or serve_any(service, slices, place)


def serve_any(service: Service, slices: Sequence[EndpointSlice], place: Place) -> Served:
    """Resolve a service that is proxied."""
    spec = service.spec
    policies = _local_policies(service)
    may_be_external = spec.type != "ClusterIP" or bool(spec.external_ips)
    frontends: dict[Key, Wanted] = {}
    addresses: tuple[bytes, ...] = ()
    hairpin: tuple[bytes, ...] = ()
    lacks: frozenset[tuple[IPFamily, Policy]] = frozenset()
    healthy = 0
    for text in spec.cluster_ips or (spec.cluster_ip,):
        cluster_ip = _packed(text)
        if cluster_ip is None:
            continue
        addresses += (cluster_ip,)
        family: IPFamily = "IPv4" if len(cluster_ip) == 4 else "IPv6"
        groups, own = _groups([each for each in slices if each.address_type == family], place.node)
        hairpin += own
        if spec.health_check_node_port:
            healthy = max(healthy, _ready_here(groups))
        external = _External(service, place, len(cluster_ip)) if may_be_external else None
        for port in spec.ports:
            sets = _choose(groups.get((port.name, port.protocol), ()), place, local=bool(policies))
            frontends[cluster_ip + PROTOCOL_BYTES[port.protocol] + pack_port(port.port)] = _internal(service, sets)
            if external is not None:
                frontends.update(external.frontends(port, sets))
            if policies and sets.any and not sets.local:
                lacks |= {(family, policy) for policy in policies}
    health = _health(service, healthy) if spec.health_check_node_port else ()
    return Served(frontends, addresses, hairpin, health, lacks)


def _serve_plain(service: Service, slices: Sequence[EndpointSlice], node: str) -> Served | None:
    """As `serve_any`, for what nearly all services are, in a third of the time; None for the others.

    That is: one cluster IP and nothing else, one slice, every endpoint ready and without hints.
    """
    spec = service.spec
    if (
        len(slices) != 1
        or len(spec.cluster_ips) > 1
        or spec.type != "ClusterIP"
        or spec.external_ips
        or spec.session_affinity != "None"
        or spec.internal_traffic_policy == "Local"
        or service.metadata.annotations
    ):
        return None
    cluster_ip, only = _packed(spec.cluster_ip), slices[0]
    af = AF_INET if only.address_type == "IPv4" else AF_INET6
    if cluster_ip is None or (len(cluster_ip) == 4) is not (af == AF_INET):
        return None
    pods, own = set(), set()
    try:
        for endpoint in only.endpoints:
            if endpoint.hints is not None or not endpoint.conditions.ready:
                return None
            address = inet_pton(af, endpoint.addresses[0])
            pods.add(address)
            if (on := endpoint.node_name) == node or not on:
                own.add(address)
    except (OSError, IndexError):
        return None
    frontends = {}
    for port in spec.ports:
        behind: tuple[bytes, ...] = ()
        for each in only.ports:
            if each.name == port.name and each.protocol == port.protocol:
                target = pack_port(each.port)
                behind = tuple(sorted([pod + target for pod in pods]))
        frontends[cluster_ip + PROTOCOL_BYTES[port.protocol] + pack_port(port.port)] = Wanted(behind)
    return Served(frontends, (cluster_ip,), tuple(own))


def _internal(service: Service, sets: _Sets) -> Wanted:
    balance, affinity = balance_of(service), affinity_of(service)
    if service.spec.internal_traffic_policy == "Local":
        nobody_here = sets.any and not sets.local
        return Wanted(sets.local, balance=balance, affinity=affinity, drop=nobody_here)
    return Wanted(sets.cluster, None, balance, affinity)


class _External:
    """A service's frontends besides its cluster IP, of one family (by the width of its addresses)."""

    def __init__(self, service: Service, place: Place, width: int) -> None:
        spec = service.spec
        self._service = service
        self._local = spec.external_traffic_policy == "Local"
        self._external_ips = _of_width(spec.external_ips, width)
        self._balancers: list[bytes] = []
        self._nodes: list[bytes] = []
        self._ranges: tuple[bytes, ...] | None = None
        if spec.type == "LoadBalancer":
            ingress = [each.ip for each in service.status.load_balancer.ingress if each.ip_mode != "Proxy"]
            self._balancers = _of_width(ingress, width)
            if spec.load_balancer_source_ranges:
                self._ranges = _pack_ranges(spec.load_balancer_source_ranges, width)
        if spec.type in {"NodePort", "LoadBalancer"}:
            self._nodes = _of_width(place.node_addresses, width)

    def frontends(self, port: ServicePort, sets: _Sets) -> Iterable[tuple[Key, Wanted]]:
        if not (self._external_ips or self._balancers or (self._nodes and port.node_port)):
            return
        wanted = Wanted(
            sets.cluster,
            sets.local if self._local else None,
            balance_of(self._service),
            affinity_of(self._service),
            external=True,
        )
        protocol = PROTOCOL_BYTES[port.protocol]
        suffix = protocol + pack_port(port.port)
        for address in self._external_ips:
            yield address + suffix, wanted
        for address in self._balancers:
            yield address + suffix, wanted._replace(ranges=self._ranges)
        if port.node_port:
            for address in self._nodes:
                yield address + protocol + pack_port(port.node_port), wanted


def balance_of(service: Service) -> str:
    """How clients are spread over endpoints; what the annotation does not know is random."""
    if not service.metadata.annotations:
        return RANDOM
    asked = service.metadata.annotations.get(BALANCE_ANNOTATION, RANDOM)
    return asked if asked in {AFFINITY_HASH, MAGLEV} else RANDOM


def affinity_of(service: Service) -> int:
    """Seconds an idle client stays with its endpoint, 0 for no affinity."""
    if service.spec.session_affinity != "ClientIP":
        return 0
    config = service.spec.session_affinity_config
    return config.client_ip.timeout_seconds if config and config.client_ip else _DEFAULT_TIMEOUT


def _local_policies(service: Service) -> tuple[Policy, ...]:
    spec = service.spec
    policies: tuple[Policy, ...] = ("internal",) if spec.internal_traffic_policy == "Local" else ()
    return (*policies, "external") if spec.external_traffic_policy == "Local" else policies


def _health(service: Service, local_endpoints: int) -> tuple[tuple[int, ServiceHealth], ...]:
    spec, meta = service.spec, service.metadata
    if spec.external_traffic_policy != "Local" or spec.type != "LoadBalancer":
        return ()
    return ((spec.health_check_node_port, ServiceHealth(meta.namespace, meta.name, local_endpoints)),)


# --- endpoints ----------------------------------------------------------------------


def _groups(
    slices: Sequence[EndpointSlice], node: str
) -> tuple[dict[tuple[str, str], list[_Group]], tuple[bytes, ...]]:
    """By port name and protocol who serves at which port; and the addresses that are perhaps of this node."""
    groups: dict[tuple[str, str], list[_Group]] = {}
    own: set[bytes] = set()
    for each in slices:
        endpoints, hinted = _serving(each, node, own)
        for port in each.ports:
            group = (pack_port(port.port), endpoints, hinted)
            if found := groups.get(name := (port.name, port.protocol)):
                found.append(group)
            else:
                groups[name] = [group]
    return groups, tuple(own)


def _ready_here(groups: Mapping[tuple[str, str], Sequence[_Group]]) -> int:
    """How many pods on this node are ready."""
    endpoints = [each for found in groups.values() for group in found for each in group[1]]
    return len({address for address, ready, local, _ in endpoints if ready and local})


def _serving(each: EndpointSlice, here: str, own: set[bytes]) -> tuple[list[_Endpoint], bool]:
    """The slice's endpoints that may serve (ready, or terminating and still serving), and whether any has hints.

    `own` is told of those that are, or may be, on this node.
    """
    af = AF_INET if each.address_type == "IPv4" else AF_INET6
    found = []
    hinted = False
    for endpoint in each.endpoints:
        conditions = endpoint.conditions
        ready = conditions.ready
        if not ready and not (conditions.serving and conditions.terminating):
            continue
        try:
            # the addresses of one endpoint are the same pod, of which Kubernetes says: use the first
            address = inet_pton(af, endpoint.addresses[0])
        except (OSError, IndexError):
            continue
        node, hints = endpoint.node_name, endpoint.hints
        if hints is not None:
            hinted = True
        if node == here or not node:
            own.add(address)
        found.append((address, ready, node == here, hints))
    return found, hinted


def _choose(groups: Sequence[_Group], place: Place, *, local: bool) -> _Sets:
    """Who serves, and (with `local`) who of them on this node."""
    ready = {each[0] + port for port, found, _ in groups for each in found if each[1]}
    if not ready:
        return _choose_ending(groups)
    hinted = any(each[2] for each in groups)
    cluster = _near(groups, place) if hinted else tuple(sorted(ready))
    if not local:
        return _Sets(cluster, (), any=True)
    here = {each[0] + port for port, found, _ in groups for each in found if each[1] and each[2]}
    return _Sets(cluster, tuple(sorted(here)) or _choose_ending(groups).local, any=True)


def _choose_ending(groups: Sequence[_Group]) -> _Sets:
    """Those that are terminating and still serve."""
    everybody = {each[0] + port for port, found, _ in groups for each in found if not each[1]}
    local = {each[0] + port for port, found, _ in groups for each in found if not each[1] and each[2]}
    return _Sets(tuple(sorted(everybody)), tuple(sorted(local)), any=bool(everybody))


def _near(groups: Sequence[_Group], place: Place) -> tuple[bytes, ...]:
    """The ready ones that the hints name for this node, or else for its zone; all where the hints do not hold."""
    ready = [(each[0] + port, each[3] or EndpointHints()) for port, found, _ in groups for each in found if each[1]]
    by_node = [{each.name for each in hints.for_nodes} for _, hints in ready]
    by_zone = [{each.name for each in hints.for_zones} for _, hints in ready]
    for named, here in ((by_node, place.node), (by_zone, place.zone)):
        if here and all(named) and any(here in names for names in named):
            return tuple(sorted({each[0] for each, names in zip(ready, named, strict=True) if here in names}))
    return tuple(sorted({target for target, _ in ready}))


# --- addresses ----------------------------------------------------------------------


def _packed(text: str) -> bytes | None:
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except OSError:
        return None


def _of_width(addresses: Iterable[str], width: int) -> list[bytes]:
    packed = [_packed(each) for each in addresses]
    return [each for each in packed if each is not None and len(each) == width]


@lru_cache(maxsize=4096)
def _pack_ranges(ranges: tuple[str, ...], width: int) -> tuple[bytes, ...]:
    """The family's ranges as first and last address, none overlapping another. None of the family: nobody."""
    found = []
    for text in ranges:
        try:
            network = ipaddress.ip_network(text.strip(), strict=False)
        except ValueError:
            continue
        if network.max_prefixlen == width * 8:
            found.append(network)
    merged = ipaddress.collapse_addresses(found)  # type: ignore[type-var]
    return tuple(each.network_address.packed + each.broadcast_address.packed for each in merged)
