"""The columns of `get`, one table per kind.

Owns: headers and cells. Pure: an object and the time in, strings out. The
columns are kubectl's (Kubernetes' pkg/printers/internalversion/printers.go),
without those of features Podlane does not have (READINESS GATES).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from podlane.api.meta import get_condition
from podlane.api.services import ingress_of
from podlane.api.types import (
    ConfigMap,
    Endpoint,
    EndpointSlice,
    Event,
    Lease,
    Namespace,
    Node,
    Object,
    Pod,
    PriorityClass,
    ReplicationController,
    ResourceQuota,
    Secret,
    Service,
    ServicePort,
)
from podlane.cli.podstatus import summarize
from podlane.runtime.text import NONE, UNKNOWN, age, pairs

UNSET = "<unset>"
_SHOWN = 3
"""How many addresses or ports of an endpoint slice a cell shows."""
_INGRESS_WIDTH = 16
"""How many letters of a load balancer's addresses a cell shows."""


@dataclass(frozen=True, slots=True)
class Table:
    """`cells` yields all columns in the order of `columns`; those in `wide` are shown with -o wide only.

    `full` yields the cells with -o wide, where some are shortened without.
    """

    columns: tuple[str, ...]
    wide: frozenset[str]
    cells: Callable[[Any, datetime], Sequence[str]]
    full: Callable[[Any, datetime], Sequence[str]] | None = None

    def _shown(self, wide: bool) -> list[int]:
        return [i for i, column in enumerate(self.columns) if wide or column not in self.wide]

    def header(self, *, wide: bool = False) -> list[str]:
        return [self.columns[i] for i in self._shown(wide)]

    def row(self, obj: Object, now: datetime, *, wide: bool = False) -> list[str]:
        cells = (self.full or self.cells)(obj, now) if wide else self.cells(obj, now)
        return [cells[i] for i in self._shown(wide)]


def _pod(pod: Pod, now: datetime) -> Sequence[str]:
    summary = summarize(pod)
    return (
        pod.metadata.name,
        f"{summary.ready}/{summary.total}",
        summary.reason,
        summary.restarts_text(now),
        age(pod.metadata.creation_timestamp, now),
        pod.status.pod_ip or NONE,
        pod.spec.node_name or NONE,
        pod.status.nominated_node_name or NONE,
    )


def _controller(rc: ReplicationController, now: datetime) -> Sequence[str]:
    containers = rc.spec.template.spec.containers
    return (
        rc.metadata.name,
        str(rc.spec.replicas),
        str(rc.status.replicas),
        str(rc.status.ready_replicas),
        age(rc.metadata.creation_timestamp, now),
        ",".join(c.name for c in containers) or NONE,
        ",".join(c.image for c in containers) or NONE,
        pairs(rc.spec.selector),
    )


def service_ports(ports: Sequence[ServicePort]) -> str:
    """`80/TCP,53/UDP`, with node ports `80:31234/TCP`."""
    shown = (f"{port.port}{f':{port.node_port}' if port.node_port else ''}/{port.protocol}" for port in ports)
    return ",".join(shown) or NONE


def external_addresses(service: Service, *, wide: bool = False) -> str:
    """Where it is reached from outside; a load balancer's own addresses are shortened unless `wide`."""
    spec = service.spec
    if spec.type == "ExternalName":
        return spec.external_name
    if spec.type != "LoadBalancer":
        return ",".join(spec.external_ips) or NONE
    served = ",".join(sorted(set(ingress_of(service))))
    if not wide and len(served) > _INGRESS_WIDTH:
        served = served[: _INGRESS_WIDTH - 3] + "..."
    return ",".join(filter(None, (served, *spec.external_ips))) or "<pending>"


def _service(service: Service, now: datetime, *, wide: bool = False) -> Sequence[str]:
    return (
        service.metadata.name,
        service.spec.type,
        service.spec.cluster_ip or NONE,
        external_addresses(service, wide=wide),
        service_ports(service.spec.ports),
        age(service.metadata.creation_timestamp, now),
        pairs(service.spec.selector),
    )


def node_status(node: Node) -> str:
    """`Ready`, `NotReady`, `Unknown`, each also with `,SchedulingDisabled`."""
    ready = get_condition(node.status.conditions, "Ready")
    words = {"True": "Ready"}
    status = "Unknown" if ready is None else words.get(ready.status, "NotReady")
    return f"{status},SchedulingDisabled" if node.spec.unschedulable else status


def node_roles(node: Node) -> str:
    """From the labels `node-role.kubernetes.io/ROLE` and `kubernetes.io/role`."""
    prefix = "node-role.kubernetes.io/"
    roles = {key.removeprefix(prefix) for key in node.metadata.labels if key.startswith(prefix)}
    roles.add(node.metadata.labels.get("kubernetes.io/role", ""))
    return ",".join(sorted(roles - {""})) or NONE


def node_address(node: Node, kind: str) -> str:
    return next((a.address for a in node.status.addresses if a.type == kind), NONE)


def _node(node: Node, now: datetime) -> Sequence[str]:
    info = node.status.node_info
    return (
        node.metadata.name,
        node_status(node),
        node_roles(node),
        age(node.metadata.creation_timestamp, now),
        info.kubelet_version,
        node_address(node, "InternalIP"),
        node_address(node, "ExternalIP"),
        info.os_image or UNKNOWN,
        info.kernel_version or UNKNOWN,
        info.container_runtime_version or UNKNOWN,
    )


def _shortened(values: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    if not values:
        return UNSET
    more = len(values) - _SHOWN
    return ",".join(values[:_SHOWN]) + (f" + {more} more..." if more > 0 else "")


def endpoint_addresses(endpoints: Sequence[Endpoint]) -> list[str]:
    return [address for endpoint in endpoints for address in endpoint.addresses]


def _slice(piece: EndpointSlice, now: datetime) -> Sequence[str]:
    return (
        piece.metadata.name,
        piece.address_type,
        _shortened([str(port.port) for port in piece.ports]),
        _shortened(endpoint_addresses(piece.endpoints)),
        age(piece.metadata.creation_timestamp, now),
    )


def _lease(lease: Lease, now: datetime) -> Sequence[str]:
    return (
        lease.metadata.name,
        lease.spec.holder_identity,
        age(lease.metadata.creation_timestamp, now),
    )


def _namespace(namespace: Namespace, now: datetime) -> Sequence[str]:
    return (
        namespace.metadata.name,
        namespace.status.phase,
        age(namespace.metadata.creation_timestamp, now),
    )


def _config_map(config: ConfigMap, now: datetime) -> Sequence[str]:
    size = len(config.data) + len(config.binary_data)
    return config.metadata.name, str(size), age(config.metadata.creation_timestamp, now)


def _secret(secret: Secret, now: datetime) -> Sequence[str]:
    return secret.metadata.name, secret.type, str(len(secret.data)), age(secret.metadata.creation_timestamp, now)


def _quota(quota: ResourceQuota, now: datetime) -> Sequence[str]:
    status = quota.status
    cells: dict[bool, list[str]] = {True: [], False: []}
    for name, hard in sorted(status.hard.items()):
        cells[name.startswith("limits")].append(f"{name}: {status.used.get(name, '0')}/{hard}")
    return (
        quota.metadata.name,
        ", ".join(cells[False]),
        ", ".join(cells[True]),
        age(quota.metadata.creation_timestamp, now),
    )


def _priority_class(priority: PriorityClass, now: datetime) -> Sequence[str]:
    return (
        priority.metadata.name,
        str(priority.value),
        str(priority.global_default).lower(),
        age(priority.metadata.creation_timestamp, now),
        priority.preemption_policy,
    )


def event_object(event: Event) -> str:
    """`pod/web-1`."""
    return f"{event.involved_object.kind.lower()}/{event.involved_object.name}"


def event_source(event: Event) -> str:
    """`agent, node1`."""
    return ", ".join(filter(None, (event.source.component, event.source.host)))


def last_seen(event: Event, now: datetime) -> str:
    """`4s`, and for repeated ones `4s (x5 over 3m)`."""
    last = age(event.last_timestamp or event.first_timestamp or event.metadata.creation_timestamp, now)
    if event.count > 1:
        return f"{last} (x{event.count} over {age(event.first_timestamp, now)})"
    return last


def _event(event: Event, now: datetime) -> Sequence[str]:
    return (
        age(event.last_timestamp or event.first_timestamp, now),
        event.type,
        event.reason,
        event_object(event),
        event.involved_object.field_path,
        event_source(event),
        event.message.strip(),
        age(event.first_timestamp, now),
        str(event.count),
        event.metadata.name,
    )


def _table(
    columns: str,
    wide: str,
    cells: Callable[[Any, datetime], Sequence[str]],
    full: Callable[[Any, datetime], Sequence[str]] | None = None,
) -> Table:
    """Columns separated by `|`; those after the first in `wide` are shown with -o wide only."""
    names = tuple(columns.split("|"))
    return Table(names, frozenset(filter(None, wide.split("|"))), cells, full)


TABLES: dict[type[Object], Table] = {
    Pod: _table("NAME|READY|STATUS|RESTARTS|AGE|IP|NODE|NOMINATED NODE", "IP|NODE|NOMINATED NODE", _pod),
    ReplicationController: _table(
        "NAME|DESIRED|CURRENT|READY|AGE|CONTAINERS|IMAGES|SELECTOR", "CONTAINERS|IMAGES|SELECTOR", _controller
    ),
    Service: _table(
        "NAME|TYPE|CLUSTER-IP|EXTERNAL-IP|PORT(S)|AGE|SELECTOR", "SELECTOR", _service, partial(_service, wide=True)
    ),
    Node: _table(
        "NAME|STATUS|ROLES|AGE|VERSION|INTERNAL-IP|EXTERNAL-IP|OS-IMAGE|KERNEL-VERSION|CONTAINER-RUNTIME",
        "INTERNAL-IP|EXTERNAL-IP|OS-IMAGE|KERNEL-VERSION|CONTAINER-RUNTIME",
        _node,
    ),
    EndpointSlice: _table("NAME|ADDRESSTYPE|PORTS|ENDPOINTS|AGE", "", _slice),
    Lease: _table("NAME|HOLDER|AGE", "", _lease),
    ConfigMap: _table("NAME|DATA|AGE", "", _config_map),
    Secret: _table("NAME|TYPE|DATA|AGE", "", _secret),
    ResourceQuota: _table("NAME|REQUEST|LIMIT|AGE", "", _quota),
    PriorityClass: _table("NAME|VALUE|GLOBAL-DEFAULT|AGE|PREEMPTIONPOLICY", "", _priority_class),
    Namespace: _table("NAME|STATUS|AGE", "", _namespace),
    Event: _table(
        "LAST SEEN|TYPE|REASON|OBJECT|SUBOBJECT|SOURCE|MESSAGE|FIRST SEEN|COUNT|NAME",
        "SUBOBJECT|SOURCE|FIRST SEEN|COUNT|NAME",
        _event,
    ),
}
