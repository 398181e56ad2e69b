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
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from podlane.api.types import (
    BALANCE_ANNOTATION,
    HEADLESS_LABEL,
    SERVICE_PROXY_NAME_LABEL,
    EndpointHints,
    EndpointSlice,
    Service,
    ServicePort,
)
from proxyd.healthcheck import ServiceHealth
from proxyd.tables import PROTOCOL_BYTES, Key, pack_address, pack_port

RANDOM, AFFINITY_HASH, MAGLEV = "random", "affinity-hash", "maglev"
_DEFAULT_TIMEOUT = 10800


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
    def targets(self) -> set[bytes]:
        return {*self.inside, *(self.outside or ())}


@dataclass(frozen=True, slots=True)
class Served:
    """What one service asks for. `addresses`: its cluster IPs, `hairpin`: its endpoints here, both packed.

    `without_local`: the policies ("internal", "external") that are Local while no endpoint is here.
    """

    frontends: Mapping[Key, Wanted] = field(default_factory=dict)
    addresses: frozenset[bytes] = frozenset()
    hairpin: frozenset[bytes] = frozenset()
    health: tuple[tuple[int, ServiceHealth], ...] = ()
    without_local: frozenset[str] = frozenset()


NOTHING = Served()
_NONE: frozenset[bytes] = frozenset()
_NO_POLICIES: frozenset[str] = frozenset()


_Endpoint = tuple[bytes, bool, bool, EndpointHints | None]
"""Address, ready (else terminating and still serving), on this node, hints. A bare tuple: there are many."""

_Serving = tuple[bytes, bool, EndpointHints | None]
"""Target, on this node, hints."""


class _Sets(NamedTuple):
    """Endpoints of one port: for everybody, on this node, and whether there is any at all."""

    cluster: tuple[bytes, ...]
    local: tuple[bytes, ...]
    any: bool


_NO_SETS = _Sets((), (), any=False)


def is_proxied(service: Service) -> bool:
    spec, labels = service.spec, service.metadata.labels
    return (
        spec.cluster_ip not in {"", "None"}
        and spec.type != "ExternalName"
        and SERVICE_PROXY_NAME_LABEL not in labels
        and HEADLESS_LABEL not in labels
    )


def serve(service: Service, slices: Sequence[EndpointSlice], place: Place) -> Served:
    """Resolve one service. An endpoint on no named node counts as one on this node."""
    if not is_proxied(service):
        return NOTHING
    spec = service.spec
    frontends: dict[Key, Wanted] = {}
    addresses: set[bytes] = set()
    hairpin: set[bytes] = set()
    lacks: set[str] = set()
    healthy = 0
    may_be_external = spec.type != "ClusterIP" or bool(spec.external_ips)
    for text in spec.cluster_ips or (spec.cluster_ip,):
        cluster_ip = _packed(text)
        if cluster_ip is None:
            continue
        addresses.add(cluster_ip)
        family = "IPv4" if len(cluster_ip) == 4 else "IPv6"
        sets, local = _sets_of([each for each in slices if each.address_type == family], place)
        hairpin.update(each[0] for each in local)
        healthy = max(healthy, len({each[0] for each in local if each[1]}))
        external = _External(service, place, len(cluster_ip)) if may_be_external else None
        for port in spec.ports:
            found = sets.get((port.name, port.protocol), _NO_SETS)
            suffix = PROTOCOL_BYTES[port.protocol] + pack_port(port.port)
            frontends[cluster_ip + suffix] = _internal(service, found)
            if external is not None:
                frontends.update(external.frontends(port, found))
            if found.any and not found.local:
                lacks.update(_local_policies(service))
    return Served(
        frontends,
        frozenset(addresses),
        frozenset(hairpin) if hairpin else _NONE,
        _health(service, healthy) if spec.health_check_node_port else (),
        frozenset(lacks) if lacks else _NO_POLICIES,
    )


def _internal(service: Service, sets: _Sets) -> Wanted:
    local = service.spec.internal_traffic_policy == "Local"
    targets = sets.local if local else sets.cluster
    return Wanted(
        targets, balance=balance_of(service), affinity=affinity_of(service), drop=local and sets.any and not targets
    )


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


def _local_policies(service: Service) -> list[str]:
    spec = service.spec
    policies = ["internal"] if spec.internal_traffic_policy == "Local" else []
    return [*policies, "external"] if spec.external_traffic_policy == "Local" else policies


def _health(service: Service, local_endpoints: int) -> tuple[tuple[int, ServiceHealth], ...]:
    spec, meta = service.spec, service.metadata
    if spec.external_traffic_policy != "Local" or spec.type != "LoadBalancer":
        return ()
    return ((spec.health_check_node_port, ServiceHealth(meta.namespace, meta.name, local_endpoints)),)


# --- endpoints ----------------------------------------------------------------------


def _sets_of(slices: Sequence[EndpointSlice], place: Place) -> tuple[dict[tuple[str, str], _Sets], list[_Endpoint]]:
    """By port name and protocol who serves; and the endpoints on this node that serve."""
    groups: dict[tuple[str, str], list[tuple[bytes, list[_Endpoint]]]] = {}
    local: list[_Endpoint] = []
    for each in slices:
        endpoints = _serving(each, place.node)
        local += [endpoint for endpoint in endpoints if endpoint[2]]
        for port in each.ports:
            groups.setdefault((port.name, port.protocol), []).append((pack_port(port.port), endpoints))
    return {name: _choose(found, place) for name, found in groups.items()}, local


def _serving(each: EndpointSlice, node: str) -> list[_Endpoint]:
    """The slice's endpoints that may serve: ready, or terminating and still serving."""
    found = []
    for endpoint in each.endpoints:
        conditions = endpoint.conditions
        ready = conditions.ready
        if not ready and not (conditions.serving and conditions.terminating):
            continue
        # the addresses of one endpoint are the same pod, of which Kubernetes says: use the first
        address = _packed(endpoint.addresses[0]) if endpoint.addresses else None
        if address is not None:
            there = endpoint.node_name
            found.append((address, ready, there == node or not there, endpoint.hints))
    return found


def _choose(groups: Sequence[tuple[bytes, list[_Endpoint]]], place: Place) -> _Sets:
    """Among endpoints with the same port (packed), group by group."""
    ready, ending = (
        [(each[0] + port, each[2], each[3]) for port, found in groups for each in found if each[1] is state]
        for state in (True, False)
    )
    cluster = _near(ready, place) or ending
    local = [each for each in ready if each[1]] or [each for each in ending if each[1]]
    return _Sets(_distinct(cluster), _distinct(local) if local else (), bool(ready or ending))


def _distinct(found: Sequence[_Serving]) -> tuple[bytes, ...]:
    return tuple(sorted({each[0] for each in found}))


def _near(ready: Sequence[_Serving], place: Place) -> Sequence[_Serving]:
    """Those that the hints name for this node, or else for its zone; all where the hints do not hold."""
    if not ready or ready[0][2] is None:
        return ready
    hints = [each[2] or EndpointHints() for each in ready]
    by_node = [{each.name for each in hint.for_nodes} for hint in hints]
    by_zone = [{each.name for each in hint.for_zones} for hint in hints]
    for named, here in ((by_node, place.node), (by_zone, place.zone)):
        if here and all(named) and any(here in names for names in named):
            return [each for each, names in zip(ready, named, strict=True) if here in names]
    return ready


# --- addresses ----------------------------------------------------------------------


def _packed(text: str) -> bytes | None:
    try:
        return pack_address(text)
    except ValueError:
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
