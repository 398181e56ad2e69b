"""The text of `describe`, kind by kind.

Owns: what is shown and in which order, near to kubectl's
(staging/src/k8s.io/kubectl/pkg/describe). Pure: an object, what is related to
it and the time in, lines out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from podlane.api import quantity
from podlane.api.meta import controller_of
from podlane.api.types import (
    Condition,
    Container,
    ContainerState,
    ContainerStatus,
    EndpointSlice,
    Event,
    Lease,
    Namespace,
    Node,
    Object,
    Pod,
    PodSpec,
    Probe,
    ReplicationController,
    Service,
)
from podlane.cli.description_service import UNSET, endpoint_lines, service_fields
from podlane.cli.tables import event_source, last_seen, node_roles
from podlane.runtime.text import NONE, UNKNOWN, TableWriter, age, pairs, rfc1123

_COLUMN = 18
"""Width of the names at the top level."""

Lines = Iterator[str]


def _field(name: str, value: object, width: int = _COLUMN) -> str:
    return f"{name + ':':<{width}}{value}"


def _map(name: str, values: Mapping[str, str]) -> Lines:
    """`Labels:  a=1`, one pair a line."""
    texts = [f"{key}={values[key]}" for key in sorted(values)] or [NONE]
    yield _field(name, texts[0])
    for text in texts[1:]:
        yield " " * _COLUMN + text


def _indented(lines: Iterable[str], by: int = 2) -> Lines:
    for line in lines:
        yield " " * by + line


def _grid(*rows: Sequence[str]) -> Lines:
    """A table below a title, with ruled headers."""
    header, *rest = rows
    ruled = [list(header), ["-" * len(cell) for cell in header], *rest]
    yield from _indented(TableWriter().render(ruled))


def _conditions(conditions: Sequence[Condition], *, full: bool = False) -> Lines:
    if not conditions:
        yield _field("Conditions", NONE)
        return
    yield "Conditions:"
    if not full:
        yield from _grid(("Type", "Status"), *((c.type, c.status) for c in conditions))
        return
    rows = [(c.type, c.status, rfc1123(c.last_transition_time), c.reason, c.message) for c in conditions]
    yield from _grid(("Type", "Status", "LastTransitionTime", "Reason", "Message"), *rows)


def _events(events: Sequence[Event] | None, now: datetime, width: int) -> Lines:
    if events is None:
        return
    if not events:
        yield _field("Events", NONE, width)
        return
    yield "Events:"
    rows = [(e.type, e.reason, last_seen(e, now), event_source(e) or UNKNOWN, e.message.strip()) for e in events]
    yield from _grid(("Type", "Reason", "Age", "From", "Message"), *rows)


def _state(name: str, state: ContainerState) -> Lines:
    if state.running is not None:
        yield f"{name + ':':<16}Running"
        yield f"  Started:      {rfc1123(state.running.started_at)}"
    elif state.terminated is not None:
        ended = state.terminated
        yield f"{name + ':':<16}Terminated"
        yield f"  Reason:       {ended.reason or NONE}"
        if ended.message:
            yield f"  Message:      {ended.message}"
        yield f"  Exit Code:    {ended.exit_code}"
        if ended.signal:
            yield f"  Signal:       {ended.signal}"
        yield f"  Started:      {rfc1123(ended.started_at)}"
        yield f"  Finished:     {rfc1123(ended.finished_at)}"
    else:
        waiting = state.waiting
        yield f"{name + ':':<16}Waiting"
        if waiting is not None and waiting.reason:
            yield f"  Reason:       {waiting.reason}"
        if waiting is not None and waiting.message:
            yield f"  Message:      {waiting.message}"


def probe_text(probe: Probe) -> str:
    """`http-get http://:8080/ delay=0s timeout=1s period=10s #success=1 #failure=3`."""
    if probe.http_get is not None:
        get = probe.http_get
        how = f"http-get {get.scheme.lower()}://{get.host}:{get.port}{get.path}"
    elif probe.tcp_socket is not None:
        how = f"tcp-socket {probe.tcp_socket.host}:{probe.tcp_socket.port}"
    else:
        how = f"exec [{' '.join(probe.exec.command) if probe.exec else ''}]"
    return (
        f"{how} delay={probe.initial_delay_seconds}s timeout={probe.timeout_seconds}s "
        f"period={probe.period_seconds}s #success={probe.success_threshold} #failure={probe.failure_threshold}"
    )


def _container(container: Container, status: ContainerStatus | None) -> Lines:
    def line(name: str, value: object) -> str:
        return f"{name + ':':<16}{value}"

    if status is not None and status.container_id:
        yield line("Container ID", status.container_id)
    yield line("Image", container.image)
    ports = ", ".join(f"{port.container_port}/{port.protocol}" for port in container.ports)
    yield line("Ports" if len(container.ports) > 1 else "Port", ports or NONE)
    for name, words in (("Command", container.command), ("Args", container.args)):
        if words:
            yield f"{name}:"
            yield from _indented(words)
    if status is not None:
        yield from _state("State", status.state)
        last = status.last_state
        if last.terminated is not None or last.running is not None:
            yield from _state("Last State", last)
        yield line("Ready", status.ready)
        yield line("Restart Count", status.restart_count)
    for name, amounts in (("Limits", container.resources.limits), ("Requests", container.resources.requests)):
        if amounts:
            yield f"{name}:"
            yield from _indented(f"{key + ':':<14}{amounts[key]}" for key in sorted(amounts))
    if container.readiness_probe is not None:
        yield line("Readiness", probe_text(container.readiness_probe))
    if not container.env:
        yield line("Environment", NONE)
        return
    yield "Environment:"
    yield from _indented(f"{variable.name}: {variable.value}" for variable in container.env)


def _containers(spec: PodSpec, statuses: Sequence[ContainerStatus]) -> Lines:
    by_name = {status.name: status for status in statuses}
    yield "Containers:"
    for container in spec.containers:
        yield f"  {container.name}:"
        yield from _indented(_container(container, by_name.get(container.name)), 4)


def _top(obj: Object) -> Lines:
    yield _field("Name", obj.metadata.name)
    if type(obj).NAMESPACED:
        yield _field("Namespace", obj.metadata.namespace)


def _labels(obj: Object) -> Lines:
    yield from _map("Labels", obj.metadata.labels)
    yield from _map("Annotations", _shown_annotations(obj))


def _shown_annotations(obj: Object) -> dict[str, str]:
    from podlane.cli.merge import LAST_APPLIED

    return {key: value for key, value in obj.metadata.annotations.items() if key != LAST_APPLIED}


def _pod(pod: Pod) -> Lines:
    yield from _top(pod)
    host = f"/{pod.status.host_ip}" if pod.status.host_ip else ""
    yield _field("Node", (pod.spec.node_name + host) or NONE)
    yield _field("Start Time", rfc1123(pod.status.start_time) if pod.status.start_time else NONE)
    yield from _labels(pod)
    deleted = pod.metadata.deletion_timestamp
    if deleted is not None:
        yield _field("Status", f"Terminating (ends {rfc1123(deleted)})")
        yield _field("Grace Period", f"{pod.metadata.deletion_grace_period_seconds or 0}s")
    else:
        yield _field("Status", pod.status.phase)
    for name, text in (("Reason", pod.status.reason), ("Message", pod.status.message)):
        if text:
            yield _field(name, text)
    yield _field("IP", pod.status.pod_ip or NONE)
    owner = controller_of(pod)
    if owner is not None:
        yield _field("Controlled By", f"{owner.kind}/{owner.name}")
    yield from _containers(pod.spec, pod.status.container_statuses)
    yield from _conditions(pod.status.conditions)
    yield _field("Restart Policy", pod.spec.restart_policy)
    yield from _map("Node-Selectors", pod.spec.node_selector)


def _controller(rc: ReplicationController, related: Sequence[Object]) -> Lines:
    yield from _top(rc)
    yield _field("Selector", pairs(rc.spec.selector))
    yield from _labels(rc)
    yield _field("Replicas", f"{rc.status.replicas} current / {rc.spec.replicas} desired")
    phases = ("Running", "Pending", "Succeeded", "Failed")
    pods = [pod for pod in related if isinstance(pod, Pod)]
    counts = {
        phase: sum(1 for pod in pods if pod.status.phase == phase and pod.metadata.deletion_timestamp is None)
        for phase in phases
    }
    counted = " / ".join(f"{counts[phase]} {'Waiting' if phase == 'Pending' else phase}" for phase in phases)
    yield _field("Pods Status", counted)
    yield "Pod Template:"
    yield from _indented(_map("Labels", rc.spec.template.metadata.labels))
    yield from _indented(_containers(rc.spec.template.spec, ()))
    if rc.status.conditions:
        yield from _conditions(rc.status.conditions, full=True)


def _service(service: Service, related: Sequence[Object]) -> tuple[list[str], int]:
    """The lines, and the width of the names in them."""
    slices = [piece for piece in related if isinstance(piece, EndpointSlice)]
    fields = list(service_fields(service, slices, _shown_annotations(service)))
    width = max(_COLUMN, max(len(name) for name, _ in fields) + 3)
    return [_field(name, value, width) if name else " " * width + value for name, value in fields], width


def _node(node: Node, related: Sequence[Object], now: datetime) -> Lines:
    info, status = node.status.node_info, node.status
    yield from _top(node)
    yield _field("Roles", node_roles(node))
    yield from _labels(node)
    yield _field("CreationTimestamp", " " + rfc1123(node.metadata.creation_timestamp))
    yield _field("Unschedulable", str(node.spec.unschedulable).lower())
    yield from _conditions(status.conditions, full=True)
    yield "Addresses:"
    yield from _indented(f"{a.type + ':':<12}{a.address}" for a in status.addresses)
    for name, amounts in (("Capacity", status.capacity), ("Allocatable", status.allocatable)):
        yield f"{name}:"
        yield from _indented(f"{key + ':':<12}{amounts[key]}" for key in sorted(amounts))
    yield "System Info:"
    rows = (
        ("Machine ID", info.machine_id),
        ("Kernel Version", info.kernel_version),
        ("OS Image", info.os_image),
        ("Operating System", info.operating_system),
        ("Architecture", info.architecture),
        ("Container Runtime", info.container_runtime_version),
        ("Agent Version", info.kubelet_version),
    )
    yield from _indented(f"{name + ':':<20}{value}" for name, value in rows)
    yield _field("PodCIDR", node.spec.pod_cidr or NONE)
    pods = [pod for pod in related if isinstance(pod, Pod)]
    yield f"{'Pods:':<{_COLUMN}}({len(pods)} in total)"
    if pods:
        yield from _grid(("Namespace", "Name", "CPU Requests", "Memory Requests", "Age"), *_pod_rows(pods, now))


def _pod_rows(pods: Sequence[Pod], now: datetime) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for pod in sorted(pods, key=lambda p: (p.metadata.namespace, p.metadata.name)):
        requests = [container.resources.requests for container in pod.spec.containers]
        cpu = sum(quantity.milli_cpu(r.get("cpu", "0")) for r in requests)
        memory = sum(quantity.bytes_(r.get("memory", "0")) for r in requests)
        rows.append(
            (
                pod.metadata.namespace,
                pod.metadata.name,
                f"{cpu}m" if cpu else "0",
                f"{memory // 2**20}Mi" if memory else "0",
                age(pod.metadata.creation_timestamp, now),
            )
        )
    return rows


def _slice(piece: EndpointSlice) -> Lines:
    yield from _top(piece)
    yield from _labels(piece)
    yield _field("AddressType", piece.address_type)
    yield "Ports:"
    ports = [(port.name or UNSET, str(port.port), port.protocol) for port in piece.ports]
    yield from _grid(("Name", "Port", "Protocol"), *ports)
    yield "Endpoints:"
    for endpoint in piece.endpoints:
        yield from endpoint_lines(endpoint)


def _lease(lease: Lease) -> Lines:
    spec = lease.spec
    yield from _top(lease)
    yield from _labels(lease)
    yield _field("Holder Identity", spec.holder_identity or NONE)
    yield _field("Lease Duration", f"{spec.lease_duration_seconds}s")
    yield _field("Created", rfc1123(lease.metadata.creation_timestamp))


def _event(event: Event, now: datetime) -> Lines:
    about = event.involved_object
    yield from _top(event)
    yield _field("Type", event.type)
    yield _field("Reason", event.reason)
    yield _field("Object", f"{about.kind}/{about.name}")
    yield _field("Last Seen", last_seen(event, now))
    yield _field("Source", event_source(event) or UNKNOWN)
    yield _field("Message", event.message.strip())


def _body(obj: Object, now: datetime, related: Sequence[Object]) -> Lines:
    match obj:
        case Pod():
            yield from _pod(obj)
        case ReplicationController():
            yield from _controller(obj, related)
        case Node():
            yield from _node(obj, related, now)
        case EndpointSlice():
            yield from _slice(obj)
        case Lease():
            yield from _lease(obj)
        case Event():
            yield from _event(obj, now)
        case Namespace():
            yield from _top(obj)
            yield from _labels(obj)
            yield _field("Status", obj.status.phase)
        case _:
            yield from _top(obj)
            yield from _labels(obj)


def describe_object(
    obj: Object, now: datetime, *, events: Sequence[Event] | None, related: Sequence[Object] = ()
) -> Lines:
    """The lines about one object. `events` of None leaves the events out."""
    width = _COLUMN
    if isinstance(obj, Service):
        lines, width = _service(obj, related)
        yield from lines
    else:
        yield from _body(obj, now, related)
    if not isinstance(obj, Event | Lease):
        yield from _events(events, now, width)
