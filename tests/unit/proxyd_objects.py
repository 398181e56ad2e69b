"""Services and slices in one line each, a source that a test fills by hand, and what is made of them in text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from podlane.api.types import (
    SERVICE_NAME_LABEL,
    ClientIPConfig,
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    ForNode,
    ForZone,
    LoadBalancerIngress,
    LoadBalancerStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SessionAffinityConfig,
)
from podlane.runtime.runner import NotReady
from proxyd.desired import Index
from proxyd.plan import plan_all
from proxyd.ruleset import Skeleton
from proxyd.serving import Place
from proxyd.slots import plan_retire
from proxyd.source import View
from proxyd.tables import (
    IPV4,
    IPV6,
    Family,
    Frontend,
    Key,
    Tables,
    Target,
    pack_frontend,
    pack_target,
    show_address,
    unpack_target,
)

POD_NETWORK, POD_NETWORK6 = "10.5.0.0/16", "fd00:5::/48"
SERVICE_RANGE, SERVICE_RANGE6 = "10.96.0.0/16", "fd00:96::/112"
NODE_ADDRESS, NODE_ADDRESS6 = "192.168.64.11", "fd00:64::11"
OUTSIDE, OUTSIDE6 = "192.0.2.1", "2001:db8::1"
VIP, VIP6 = "10.96.0.1", "fd00:96::1"

PLACE = Place("node1", "zone1", (NODE_ADDRESS, NODE_ADDRESS6))
SKELETON = Skeleton((POD_NETWORK,), (SERVICE_RANGE,))
SKELETON6 = Skeleton((POD_NETWORK6,), (SERVICE_RANGE6,), family=IPV6)


# --- objects -------------------------------------------------------------------------


def service(
    name: str,
    ip: str | Sequence[str],
    *ports: str,
    labels: Mapping[str, str] | None = None,
    balance: str = "",
    affinity: int = 0,
    ingress: Sequence[str] = (),
    **spec: Any,
) -> Service:
    """`ports`: "http:80/TCP", or "80" for a nameless TCP port, and "http:80/TCP=30080" with a node port.

    `ip`: the cluster IP, or both. `affinity` in seconds. `ingress`: a load balancer's addresses.
    """
    ips = (ip,) if isinstance(ip, str) else tuple(ip)
    if affinity:
        spec["session_affinity"] = "ClientIP"
        spec["session_affinity_config"] = SessionAffinityConfig(client_ip=ClientIPConfig(timeout_seconds=affinity))
    return Service(
        metadata=ObjectMeta(
            name=name,
            namespace="default",
            labels=dict(labels or {}),
            annotations={"podlane.io/balance": balance} if balance else {},
        ),
        spec=ServiceSpec(
            cluster_ip=ips[0],
            cluster_ips=ips if len(ips) > 1 else (),
            ports=tuple(_service_port(port) for port in ports or ("80",)),
            **spec,
        ),
        status=ServiceStatus(
            load_balancer=LoadBalancerStatus(ingress=tuple(LoadBalancerIngress(ip=each) for each in ingress))
        ),
    )


def _split(text: str) -> tuple[str, int, str]:
    name, _, rest = text.rpartition(":")
    port, _, protocol = rest.partition("/")
    return name, int(port), protocol or "TCP"


def _service_port(text: str) -> ServicePort:
    rest, _, node_port = text.partition("=")
    name, port, protocol = _split(rest)
    return ServicePort(name=name, port=port, protocol=protocol, node_port=int(node_port or 0))  # type: ignore[arg-type]


def endpoint(text: str) -> Endpoint:
    """An address and words: "node2" (default node1, "-" for none), "ending", "ended", "unready", "@zone1", "@node1".

    "10.5.1.2 node2 ending @node1" is terminating but still serving, on node2, with a hint for node1.
    """
    address, *words = text.split()
    node, ready, serving, terminating = "node1", True, True, False
    zones: list[ForZone] = []
    nodes: list[ForNode] = []
    for word in words:
        if word == "ending":
            ready, terminating = False, True
        elif word == "ended":
            ready, serving, terminating = False, False, True
        elif word == "unready":
            ready, serving = False, False
        elif word.startswith("@zone"):
            zones.append(ForZone(name=word[1:]))
        elif word.startswith("@"):
            nodes.append(ForNode(name=word[1:]))
        else:
            node = word.strip("-")
    hints = EndpointHints(for_zones=tuple(zones), for_nodes=tuple(nodes)) if zones or nodes else None
    conditions = EndpointConditions(ready=ready, serving=serving, terminating=terminating)
    return Endpoint(addresses=(address,), conditions=conditions, node_name=node, hints=hints)


def slice_of(service_name: str, endpoints: Sequence[str], *ports: str, suffix: str = "1") -> EndpointSlice:
    """`endpoints` as `endpoint` reads them; `ports` as in `service` (default 8080). Its family is the first's."""
    made = tuple(map(endpoint, endpoints))
    six = bool(made) and ":" in made[0].addresses[0]
    return EndpointSlice(
        metadata=ObjectMeta(
            name=f"{service_name}-{suffix}", namespace="default", labels={SERVICE_NAME_LABEL: service_name}
        ),
        address_type="IPv6" if six else "IPv4",
        endpoints=made,
        ports=tuple(
            EndpointPort(name=name, port=port, protocol=protocol)  # type: ignore[arg-type]
            for name, port, protocol in map(_split, ports or ("8080",))
        ),
    )


Objects = Iterable[Service | EndpointSlice]


def named(objects: Objects) -> tuple[dict[str, Service], dict[str, EndpointSlice]]:
    """Services and slices by "namespace/name"."""
    services: dict[str, Service] = {}
    slices: dict[str, EndpointSlice] = {}
    for each in objects:
        key = f"{each.metadata.namespace}/{each.metadata.name}"
        if isinstance(each, Service):
            services[key] = each
        else:
            slices[key] = each
    return services, slices


# --- what follows from them ------------------------------------------------------------


def index_of(*objects: Service | EndpointSlice, place: Place = PLACE) -> Index:
    index = Index(place)
    index.replace(*named(objects))
    return index


def settled(index: Index, family: Family = IPV4, tables: Tables | None = None) -> Tables:
    """The kernel after a complete sync, with what is left for later."""
    tables = Tables(family) if tables is None else tables
    plan = plan_all(tables, index)
    tables.apply(plan.now)
    tables.apply(plan_retire(tables, plan.retire))
    return tables


def applied(*objects: Service | EndpointSlice, family: Family = IPV4, place: Place = PLACE) -> Tables:
    """The kernel after a complete first sync of these objects."""
    return settled(index_of(*objects, place=place), family)


def script(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def frontend(text: str) -> Key:
    """As "10.96.0.1:80" or "[fd00::1]:53/UDP"."""
    where, _, protocol = text.partition("/")
    address, _, port = where.rpartition(":")
    return pack_frontend(Frontend(address.strip("[]"), (protocol or "TCP").upper(), int(port)))


def target(text: str) -> bytes:
    address, _, port = text.rpartition(":")
    return pack_target(Target(address.strip("[]"), int(port)))


def shown(targets: Iterable[bytes] | None) -> list[str] | None:
    return None if targets is None else [str(unpack_target(each)) for each in targets]


def addresses(packed: Iterable[bytes]) -> set[str]:
    return {show_address(each) for each in packed}


class ListSource:
    """The mirrors' stand-in: put objects in, and `take` gives what a StoreSource would."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.slices: dict[str, EndpointSlice] = {}
        self.ready = True
        self.pod_networks: tuple[str, ...] = (POD_NETWORK,)
        self.service_ranges: tuple[str, ...] = (SERVICE_RANGE,)
        self.zone, self.internal_ips = PLACE.zone, PLACE.node_addresses
        self.revision = 0
        self._changed: tuple[set[str], set[str]] = (set(), set())

    def put(self, *objects: Service | EndpointSlice) -> None:
        services, slices = named(objects)
        self.services.update(services)
        self.slices.update(slices)
        self._changed[0].update(services)
        self._changed[1].update(slices)
        self.revision += len(objects)

    def drop(self, *objects: Service | EndpointSlice) -> None:
        services, slices = named(objects)
        for into, gone, changed in zip((self.services, self.slices), (services, slices), self._changed, strict=True):
            for name in gone:
                del into[name]  # type: ignore[attr-defined]
                changed.add(name)

    def take(self, *, complete: bool) -> View:
        if not self.ready:
            raise NotReady("read store: no complete list yet")
        changed, self._changed = self._changed, (set(), set())
        services: Mapping[str, Service | None] = dict(self.services)
        slices: Mapping[str, EndpointSlice | None] = dict(self.slices)
        if not complete:
            services = {name: self.services.get(name) for name in changed[0]}
            slices = {name: self.slices.get(name) for name in changed[1]}
        return View(
            complete,
            services,
            slices,
            self.pod_networks,
            self.service_ranges,
            zone=self.zone,
            internal_ips=self.internal_ips,
            revision=self.revision,
        )
