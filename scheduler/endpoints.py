"""Endpoints: which addresses stand behind each service, as EndpointSlices.

Owns: the slices that carry our managed-by label, and no others (a service
without a selector has its slices made by hand). Invariants: a pod is in at most
one slice for a service, address family and set of ports; a slice holds at most
MAX_ENDPOINTS; an endpoint stays in the slice it is in, so that a change touches
as few slices as can be, and the same input gives the same names. Source:
Kubernetes' endpointslice/reconciler.go and utils.go (families, conditions, ports).

A pod on a node that is gone has no endpoint: nobody can tell whether it still
serves, and its node will never tell.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from podlane.api.meta import is_pod_finished, is_pod_ready, namespaced_name, owner_reference, reference_to
from podlane.api.types import (
    HEADLESS_LABEL,
    SERVICE_NAME_LABEL,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    IPFamily,
    ObjectMeta,
    Pod,
    Service,
)
from scheduler.hints import hinted

MAX_ENDPOINTS = 1000
DESCRIBED = 8  # endpoints of a slice that its description lists
MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by"
MANAGED_BY = "scheduler.podlane.io"

Group = tuple[IPFamily, tuple[EndpointPort, ...]]
"""What all endpoints of a slice share: address type and ports."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Slices to write and to remove; `update` carries the resourceVersion it replaces."""

    create: tuple[EndpointSlice, ...] = ()
    update: tuple[EndpointSlice, ...] = ()
    delete: tuple[EndpointSlice, ...] = ()
    unchanged: int = 0

    @property
    def empty(self) -> bool:
        return not (self.create or self.update or self.delete)

    def sizes(self) -> dict[str, int]:
        """How many are in each bucket that is not empty."""
        return {name: len(getattr(self, name)) for name in ("create", "update", "delete") if getattr(self, name)}

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        for name in ("create", "update", "delete"):
            for item in getattr(self, name):
                yield f"{name} {describe(item)}" if name != "delete" else f"delete {namespaced_name(item)}"


def describe(item: EndpointSlice) -> str:
    """`default/web-1a2b3c4d tcp/8080 10.4.1.2 10.4.2.2(terminating)`, of many endpoints only the first."""
    ports = ",".join(f"{port.protocol.lower()}/{port.port}" for port in item.ports)
    shown = [_describe_endpoint(endpoint) for endpoint in item.endpoints[:DESCRIBED]]
    if len(item.endpoints) > DESCRIBED:
        shown.append(f"and {len(item.endpoints) - DESCRIBED} more")
    return " ".join((namespaced_name(item), ports, *shown))


def _describe_endpoint(endpoint: Endpoint) -> str:
    conditions = endpoint.conditions
    notes = [] if conditions.ready else ["not ready"]
    if conditions.terminating:
        notes = ["terminating", "serving"] if conditions.serving else ["terminating"]
    return endpoint.addresses[0] + (f"({' '.join(notes)})" if notes else "")


def plan(
    services: Iterable[Service],
    pods: Iterable[Pod],
    slices: Iterable[EndpointSlice],
    *,
    unreachable: Collection[str] = frozenset(),
    zones: Mapping[str, str] | None = None,
    max_endpoints: int = MAX_ENDPOINTS,
) -> Plan:
    """Decide for all services. `unreachable`: nodes whose pods have no endpoints; `zones`: the zone of each node
    that has one; `max_endpoints`: a slice.
    """
    index = _PodIndex(pod for pod in pods if _may_serve(pod, unreachable))
    existing: dict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
    for item in slices:
        if item.metadata.labels.get(MANAGED_BY_LABEL) == MANAGED_BY:
            service_name = item.metadata.labels.get(SERVICE_NAME_LABEL, "")
            existing[item.metadata.namespace, service_name].append(item)

    create: list[EndpointSlice] = []
    update: list[EndpointSlice] = []
    delete: list[EndpointSlice] = []
    unchanged = 0
    for service in services:
        now = existing.pop((service.metadata.namespace, service.metadata.name), [])
        if service.spec.type == "ExternalName":  # a name, with nothing behind it here
            delete += now
            continue
        if not service.spec.selector:
            unchanged += len(now)
            continue
        have = {item.metadata.name: item for item in now}
        for item in _slices_of(service, index.select(service), now, zones or {}, max_endpoints):
            old = have.pop(item.metadata.name, None)
            if old is None:
                create.append(item)
            elif _same(old, item):
                unchanged += 1
            else:
                update.append(replace(item, metadata=replace(old.metadata, **_our_metadata(item))))
        delete += have.values()
    for left in existing.values():
        delete += left
    return Plan(tuple(create), tuple(update), tuple(delete), unchanged)


class _PodIndex:
    """Pods by one label pair, so that a service looks at its own and not at all of them."""

    def __init__(self, pods: Iterable[Pod]) -> None:
        self._by_label: dict[tuple[str, str, str], list[Pod]] = defaultdict(list)
        for pod in pods:
            for key, value in pod.metadata.labels.items():
                self._by_label[pod.metadata.namespace, key, value].append(pod)

    def select(self, service: Service) -> list[Pod]:
        namespace, selector = service.metadata.namespace, service.spec.selector
        nothing: list[Pod] = []
        candidates = [self._by_label.get((namespace, k, v), nothing) for k, v in selector.items()]
        fewest = min(candidates, key=len)
        return [pod for pod in fewest if selector.items() <= pod.metadata.labels.items()]


def _may_serve(pod: Pod, unreachable: Collection[str]) -> bool:
    return bool(pod.status.pod_ip) and not is_pod_finished(pod) and pod.spec.node_name not in unreachable


def families(service: Service) -> tuple[IPFamily, ...]:
    """The address families a service has slices of."""
    if service.spec.ip_families:
        return service.spec.ip_families
    if service.spec.cluster_ip == "None":  # made before there were families: whatever its pods have
        return ("IPv4", "IPv6")
    return (_family(service.spec.cluster_ip),)


def _family(address: str) -> IPFamily:
    return "IPv6" if ":" in address else "IPv4"


def _addresses(pod: Pod, family: IPFamily) -> tuple[str, ...]:
    """A pod's addresses of one family, of which Kubernetes' pods have one."""
    known = [pod.status.pod_ip, *(each.ip for each in pod.status.pod_ips)]
    return tuple(dict.fromkeys(ip for ip in known if ip and _family(ip) == family))[:1]


def _slices_of(
    service: Service, pods: Sequence[Pod], now: Sequence[EndpointSlice], zones: Mapping[str, str], most: int
) -> Iterator[EndpointSlice]:
    groups: dict[Group, dict[str, Endpoint]] = defaultdict(dict)
    for family in families(service):
        found: dict[str, Endpoint] = {}
        ports: dict[str, tuple[EndpointPort, ...]] = {}
        for pod in pods:
            uid, addresses = pod.metadata.uid, _addresses(pod, family)
            ports[uid] = _ports(service, pod)
            if addresses and (ports[uid] or not service.spec.ports):
                found[uid] = _endpoint(service, pod, addresses, zones.get(pod.spec.node_name, ""))
        for uid, endpoint in hinted(service.spec.traffic_distribution, found).items():
            groups[family, ports[uid]][uid] = endpoint
    for group, endpoints in sorted(groups.items(), key=lambda entry: _group_id(entry[0])):
        for name, members in _pack(service.metadata.name, group, endpoints, now, most):
            yield _slice(service, group, name, members)


def _pack(
    service: str, group: Group, endpoints: Mapping[str, Endpoint], now: Sequence[EndpointSlice], most: int
) -> Iterator[tuple[str, list[Endpoint]]]:
    """Distribute endpoints (by pod UID) over slices: stay where you are, then fill, then open new ones."""
    base = f"{service}-{_group_id(group)}"
    left = dict(endpoints)
    packed: dict[str, list[Endpoint]] = {}
    for item in sorted(now, key=lambda item: item.metadata.name):
        if (item.address_type, item.ports) == group:
            uids = [e.target_ref.uid for e in item.endpoints if e.target_ref is not None]
            kept = [left.pop(uid) for uid in uids[:most] if uid in left]
            packed[item.metadata.name] = kept
    waiting = sorted(left.values(), key=_endpoint_order, reverse=True)
    number = 0
    while waiting:
        name = base if number == 0 else f"{base}-{number}"
        members = packed.setdefault(name, [])
        while waiting and len(members) < most:
            members.append(waiting.pop())
        number += 1
    for name, members in sorted(packed.items()):
        if members:
            yield name, sorted(members, key=_endpoint_order)


def _endpoint_order(endpoint: Endpoint) -> tuple[str, tuple[str, ...]]:
    return (endpoint.target_ref.name if endpoint.target_ref else "", endpoint.addresses)


def _group_id(group: Group) -> str:
    family, ports = group
    words = (f"{p.name}/{p.protocol}/{p.port}" + (p.app_protocol and f"/{p.app_protocol}") for p in ports)
    text = ";".join((family, *words))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _ports(service: Service, pod: Pod) -> tuple[EndpointPort, ...]:
    """The service's ports on this pod; a named one that the pod lacks is left out."""
    found = []
    for port in service.spec.ports:
        number: int | None
        if isinstance(port.target_port, str):
            number = _named_port(pod, port.target_port, port.protocol)
        else:
            number = port.target_port or port.port
        if number is not None:
            found.append(
                EndpointPort(name=port.name, protocol=port.protocol, port=number, app_protocol=port.app_protocol)
            )
    return tuple(found)


def _named_port(pod: Pod, name: str, protocol: str) -> int | None:
    for container in pod.spec.containers:
        for port in container.ports:
            if port.name == name and port.protocol == protocol:
                return port.container_port
    return None


def _endpoint(service: Service, pod: Pod, addresses: tuple[str, ...], zone: str) -> Endpoint:
    """`ready` is never true of what terminates, unless the service wants all there is; `serving` is the pod's own."""
    terminating = pod.metadata.deletion_timestamp is not None
    serving = is_pod_ready(pod)
    ready = service.spec.publish_not_ready_addresses or (serving and not terminating)
    return Endpoint(
        addresses=addresses,
        conditions=EndpointConditions(ready=ready, serving=serving, terminating=terminating),
        node_name=pod.spec.node_name,
        zone=zone,
        target_ref=reference_to(pod),
    )


def _slice(service: Service, group: Group, name: str, members: Sequence[Endpoint]) -> EndpointSlice:
    labels = {
        **{key: value for key, value in service.metadata.labels.items() if key != HEADLESS_LABEL},
        SERVICE_NAME_LABEL: service.metadata.name,
        MANAGED_BY_LABEL: MANAGED_BY,
    }
    if service.spec.cluster_ip == "None":
        labels[HEADLESS_LABEL] = ""
    family, ports = group
    return EndpointSlice(
        kind=EndpointSlice.KIND,
        api_version=EndpointSlice.API_VERSION,
        metadata=ObjectMeta(
            name=name,
            generate_name=f"{service.metadata.name}-",
            namespace=service.metadata.namespace,
            labels=labels,
            owner_references=(owner_reference(service),),
        ),
        address_type=family,
        endpoints=tuple(members),
        ports=ports,
    )


def _our_metadata(item: EndpointSlice) -> dict[str, object]:
    return {"labels": item.metadata.labels, "owner_references": item.metadata.owner_references}


def _same(old: EndpointSlice, new: EndpointSlice) -> bool:
    return (
        old.endpoints == new.endpoints
        and old.ports == new.ports
        and old.address_type == new.address_type
        and old.metadata.labels == new.metadata.labels
        and old.metadata.owner_references == new.metadata.owner_references
    )
