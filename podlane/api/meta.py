"""Questions every part asks of objects: identity, ownership, readiness, conditions.

Owns: small pure functions over metadata and status, and the words by which
commands name kinds. Invariant: no clock is read here; the time is passed in.
Source: Kubernetes' pkg/api/v1/pod/util.go, kubectl's resource names.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from podlane.api.types import (
    Condition,
    ConfigMap,
    EndpointSlice,
    Event,
    Lease,
    Namespace,
    Node,
    Object,
    ObjectReference,
    OwnerReference,
    Pod,
    PriorityClass,
    ReplicationController,
    ResourceQuota,
    Secret,
    Service,
)


@dataclass(frozen=True, slots=True)
class Resource:
    """How commands spell a kind: `pods`, `pod`, `po`."""

    cls: type[Object]
    plural: str
    singular: str
    short: tuple[str, ...]


RESOURCES = (
    Resource(Pod, "pods", "pod", ("po",)),
    Resource(ReplicationController, "replicationcontrollers", "replicationcontroller", ("rc",)),
    Resource(Service, "services", "service", ("svc",)),
    Resource(EndpointSlice, "endpointslices", "endpointslice", ()),
    Resource(ConfigMap, "configmaps", "configmap", ("cm",)),
    Resource(Secret, "secrets", "secret", ()),
    Resource(Node, "nodes", "node", ("no",)),
    Resource(Namespace, "namespaces", "namespace", ("ns",)),
    Resource(ResourceQuota, "resourcequotas", "resourcequota", ("quota",)),
    Resource(PriorityClass, "priorityclasses", "priorityclass", ("pc",)),
    Resource(Event, "events", "event", ("ev",)),
    Resource(Lease, "leases", "lease", ()),
)


def resource_of(cls: type[Object]) -> Resource:
    """The spelling of a kind."""
    return next(resource for resource in RESOURCES if resource.cls is cls)


def find_resource(word: str) -> Resource | None:
    """The kind a command's word means (`rc`, `pods`, `Service`), or None."""
    word = word.lower()
    for resource in RESOURCES:
        if word in {resource.plural, resource.singular, *resource.short}:
            return resource
    return None


def short_name(obj: Object) -> str:
    """`pod/web-x7k2p`, `service/web`: the name as kubectl prints it."""
    return f"{resource_of(type(obj)).singular}/{obj.metadata.name}"


def namespaced_name(obj: Object) -> str:
    """`default/web`, or only the name for kinds without a namespace."""
    return f"{obj.metadata.namespace}/{obj.metadata.name}" if type(obj).NAMESPACED else obj.metadata.name


def key_of(obj: Object) -> tuple[str, str, str]:
    """(kind, namespace, name); the namespace is "" for kinds without one."""
    return type(obj).KIND, obj.metadata.namespace if type(obj).NAMESPACED else "", obj.metadata.name


def reference_to(obj: Object) -> ObjectReference:
    """A reference for events and endpoints."""
    return ObjectReference(
        kind=type(obj).KIND,
        api_version=type(obj).API_VERSION,
        namespace=obj.metadata.namespace,
        name=obj.metadata.name,
        uid=obj.metadata.uid,
    )


def utcnow_from(seconds: float) -> datetime:
    """A clock's reading in Unix seconds as a UTC time with whole seconds, as metav1.Time has them."""
    return datetime.fromtimestamp(int(seconds // 1), tz=UTC)


def new_uid() -> str:
    return str(uuid.uuid4())


def controller_of(obj: Object) -> OwnerReference | None:
    """The one owner that manages the object, if any."""
    for owner in obj.metadata.owner_references:
        if owner.controller:
            return owner
    return None


def owner_reference(owner: Object) -> OwnerReference:
    """What a controller writes into the objects it manages."""
    return OwnerReference(
        api_version=type(owner).API_VERSION,
        kind=type(owner).KIND,
        name=owner.metadata.name,
        uid=owner.metadata.uid,
        controller=True,
        block_owner_deletion=True,
    )


def is_pod_finished(pod: Pod) -> bool:
    """Its containers ended for good: phase Succeeded or Failed."""
    return pod.status.phase in {"Succeeded", "Failed"}


def is_pod_active(pod: Pod) -> bool:
    """It counts as a replica: neither finished nor being deleted."""
    return not is_pod_finished(pod) and pod.metadata.deletion_timestamp is None


def is_pod_ready(pod: Pod) -> bool:
    """Its Ready condition is True (a pod being deleted may still be ready)."""
    for condition in pod.status.conditions:  # asked of every pod of a large controller: no calls
        if condition.type == "Ready":
            return condition.status == "True"
    return False


def get_condition(conditions: Iterable[Condition], type: str) -> Condition | None:  # noqa: A002 - the field's name
    for condition in conditions:  # asked of every pod and node again and again: a generator takes twice as long
        if condition.type == type:
            return condition
    return None


def set_condition(conditions: tuple[Condition, ...], condition: Condition) -> tuple[Condition, ...]:
    """Replace or append the condition of that type.

    The transition time stays when the status does; the very same tuple comes
    back when nothing changed, so that nothing need be written.
    """
    current = get_condition(conditions, condition.type)
    if current is None:
        return (*conditions, condition)
    if current.status == condition.status:
        condition = msgspec.structs.replace(condition, last_transition_time=current.last_transition_time)
    if current == condition:
        return conditions
    return tuple(condition if c.type == condition.type else c for c in conditions)
