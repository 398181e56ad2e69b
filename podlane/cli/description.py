"""The text of `describe`, kind by kind.

Owns: what is shown and in which order, near to kubectl's
(staging/src/k8s.io/kubectl/pkg/describe). Pure: an object, what is related to
it and the time in, lines out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from podlane.api.types import (
    ConfigMap,
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
)
from podlane.cli.description_config import (
    describe_config_map,
    describe_namespace,
    describe_priority_class,
    describe_quota,
    describe_secret,
)
from podlane.cli.description_container import containers
from podlane.cli.description_lines import (
    COLUMN,
    Lines,
    condition_lines,
    field,
    grid,
    indented,
    labels,
    mapping,
    shown_annotations,
    top,
)
from podlane.cli.description_node import describe_node
from podlane.cli.description_pod import describe_pod, placement, volumes
from podlane.cli.description_service import UNSET, endpoint_lines, service_fields
from podlane.cli.tables import event_source, last_seen
from podlane.runtime.text import NONE, UNKNOWN, pairs, rfc1123


def _events(events: Sequence[Event] | None, now: datetime, width: int) -> Lines:
    if events is None:
        return
    if not events:
        yield field("Events", NONE, width)
        return
    yield "Events:"
    rows = [(e.type, e.reason, last_seen(e, now), event_source(e) or UNKNOWN, e.message.strip()) for e in events]
    yield from grid(("Type", "Reason", "Age", "From", "Message"), *rows)


def _controller(rc: ReplicationController, related: Sequence[Object]) -> Lines:
    yield from top(rc)
    yield field("Selector", pairs(rc.spec.selector))
    yield from labels(rc)
    yield field("Replicas", f"{rc.status.replicas} current / {rc.spec.replicas} desired")
    phases = ("Running", "Pending", "Succeeded", "Failed")
    pods = [pod for pod in related if isinstance(pod, Pod)]
    counts = {
        phase: sum(1 for pod in pods if pod.status.phase == phase and pod.metadata.deletion_timestamp is None)
        for phase in phases
    }
    counted = " / ".join(f"{counts[phase]} {'Waiting' if phase == 'Pending' else phase}" for phase in phases)
    yield field("Pods Status", counted)
    yield "Pod Template:"
    yield from indented(mapping("Labels", rc.spec.template.metadata.labels))
    template = rc.spec.template.spec
    yield from indented(containers(template, ()))
    yield from indented(volumes(template.volumes))
    yield from indented(placement(template))
    if rc.status.conditions:
        yield from condition_lines(rc.status.conditions, full=True)


def _service(service: Service, related: Sequence[Object]) -> tuple[list[str], int]:
    """The lines, and the width of the names in them."""
    slices = [piece for piece in related if isinstance(piece, EndpointSlice)]
    fields = list(service_fields(service, slices, shown_annotations(service)))
    width = max(COLUMN, max(len(name) for name, _ in fields) + 3)
    return [field(name, value, width) if name else " " * width + value for name, value in fields], width


def _slice(piece: EndpointSlice) -> Lines:
    yield from top(piece)
    yield from labels(piece)
    yield field("AddressType", piece.address_type)
    yield "Ports:"
    ports = [(port.name or UNSET, str(port.port), port.protocol) for port in piece.ports]
    yield from grid(("Name", "Port", "Protocol"), *ports)
    yield "Endpoints:"
    for endpoint in piece.endpoints:
        yield from endpoint_lines(endpoint)


def _lease(lease: Lease) -> Lines:
    spec = lease.spec
    yield from top(lease)
    yield from labels(lease)
    yield field("Holder Identity", spec.holder_identity or NONE)
    yield field("Lease Duration", f"{spec.lease_duration_seconds}s")
    yield field("Created", rfc1123(lease.metadata.creation_timestamp))


def _event(event: Event, now: datetime) -> Lines:
    about = event.involved_object
    yield from top(event)
    yield field("Type", event.type)
    yield field("Reason", event.reason)
    yield field("Object", f"{about.kind}/{about.name}")
    yield field("Last Seen", last_seen(event, now))
    yield field("Source", event_source(event) or UNKNOWN)
    yield field("Message", event.message.strip())


def _body(obj: Object, now: datetime, related: Sequence[Object]) -> Lines:
    match obj:
        case Pod():
            yield from describe_pod(obj)
        case ReplicationController():
            yield from _controller(obj, related)
        case Node():
            yield from describe_node(obj, [pod for pod in related if isinstance(pod, Pod)], now)
        case EndpointSlice():
            yield from _slice(obj)
        case Lease():
            yield from _lease(obj)
        case Event():
            yield from _event(obj, now)
        case Namespace():
            yield from describe_namespace(obj, related)
        case ConfigMap():
            yield from describe_config_map(obj)
        case Secret():
            yield from describe_secret(obj)
        case ResourceQuota():
            yield from describe_quota(obj)
        case PriorityClass():
            yield from describe_priority_class(obj)
        case _:
            yield from top(obj)
            yield from labels(obj)


def describe_object(
    obj: Object, now: datetime, *, events: Sequence[Event] | None, related: Sequence[Object] = ()
) -> Lines:
    """The lines about one object. `events` of None leaves the events out."""
    width = COLUMN
    if isinstance(obj, Service):
        lines, width = _service(obj, related)
        yield from lines
    else:
        yield from _body(obj, now, related)
    if not isinstance(obj, Event | Lease | Secret | ResourceQuota):
        yield from _events(events, now, width)
