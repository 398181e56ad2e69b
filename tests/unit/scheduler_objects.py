"""Objects for the scheduler's tests, with only what a test cares about spelled out."""

from __future__ import annotations

from datetime import UTC, datetime

from podlane.api.meta import namespaced_name
from podlane.api.types import (
    Condition,
    Container,
    ContainerPort,
    ContainerStatus,
    Node,
    NodeSpec,
    NodeStatus,
    ObjectMeta,
    OwnerReference,
    Pod,
    PodIP,
    PodSpec,
    PodStatus,
    PodTemplateSpec,
    ReplicationController,
    ReplicationControllerSpec,
    ResourceRequirements,
    Service,
    ServicePort,
    ServiceSpec,
)
from scheduler.ownership import Ownership
from scheduler.view import Changes

T0 = 1_700_000_000.0


def at(seconds: float) -> datetime:
    """`seconds` after the tests' beginning of time."""
    return datetime.fromtimestamp(T0 + seconds, tz=UTC)


def index_of(owners, pods) -> Ownership:
    """A fresh index of these, all dirty."""
    index = Ownership()
    index.see_owners("ReplicationController", Changes({str(owner): owner for owner in owners}, complete=True))
    index.see_pods(Changes({namespaced_name(p): p for p in pods}, complete=True))
    return index


def owned_by(owner: str, kind: str = "ReplicationController") -> tuple[OwnerReference, ...]:
    return (
        OwnerReference(
            api_version="v1", kind=kind, name=owner, uid=f"uid-{owner}", controller=True, block_owner_deletion=True
        ),
    )


def template(**spec: object) -> PodTemplateSpec:
    containers = (Container(name="main", image="web:1", ports=(ContainerPort(container_port=8080, name="http"),)),)
    return PodTemplateSpec(
        metadata=ObjectMeta(labels={"app": "web"}), spec=PodSpec(**{"containers": containers, **spec})
    )


def rc(name: str = "web", replicas: int = 1, *, min_ready: int = 0, **changes: object) -> ReplicationController:
    spec = ReplicationControllerSpec(
        replicas=replicas, selector={"app": "web"}, template=template(), min_ready_seconds=min_ready
    )
    meta = ObjectMeta(name=name, namespace="default", uid=f"uid-{name}", generation=1, resource_version="1")
    return ReplicationController(
        kind="ReplicationController", api_version="v1", metadata=meta, **{"spec": spec, **changes}
    )


def pod(
    name: str,
    *,
    owner: str = "",
    node: str = "",
    phase: str = "",
    ready: float | bool = False,
    terminating: bool = False,
    labels: dict[str, str] | None = None,
    created: float = 0,
    cpu: str = "",
    memory: str = "",
    selector: dict[str, str] | None = None,
    ip: str = "",
    ips: tuple[str, ...] = (),
    ports: tuple[ContainerPort, ...] = (ContainerPort(container_port=8080, name="http"),),
    restarts: int = 0,
    cost: str = "",
    namespace: str = "default",
    version: int = 1,
) -> Pod:
    """`ready`: since when (seconds after T0), or True for since the beginning; `ips`: one of each family."""
    requests = {key: value for key, value in (("cpu", cpu), ("memory", memory)) if value}
    is_ready = ready is not False
    conditions = (
        (Condition(type="Ready", status="True", last_transition_time=at(0 if ready is True else ready)),)
        if is_ready
        else ()
    )
    return Pod(
        kind="Pod",
        api_version="v1",
        metadata=ObjectMeta(
            name=name,
            namespace=namespace,
            uid=f"uid-{name}",
            resource_version=str(version),
            creation_timestamp=at(created),
            deletion_timestamp=at(1) if terminating else None,
            labels={"app": "web"} if labels is None else labels,
            annotations={"controller.kubernetes.io/pod-deletion-cost": cost} if cost else {},
            owner_references=owned_by(owner) if owner else (),
        ),
        spec=PodSpec(
            containers=(
                Container(name="main", image="web:1", ports=ports, resources=ResourceRequirements(requests=requests)),
            ),
            node_name=node,
            node_selector=selector or {},
        ),
        status=PodStatus(
            phase=phase or ("Running" if is_ready else "Pending"),
            conditions=conditions,
            pod_ip=ip or "".join(ips[:1]),
            pod_ips=tuple(PodIP(ip=each) for each in ips),
            container_statuses=(ContainerStatus(name="main", restart_count=restarts),),
        ),
    )


def node(
    name: str,
    *,
    cpu: str = "4",
    memory: str = "8Gi",
    pods: str = "110",
    ready: str = "True",
    reason: str = "",
    cordoned: bool = False,
    labels: dict[str, str] | None = None,
) -> Node:
    allocatable = {"cpu": cpu, "memory": memory, "pods": pods}
    conditions = (Condition(type="Ready", status=ready, reason=reason),) if ready else ()
    return Node(
        kind="Node",
        api_version="v1",
        metadata=ObjectMeta(name=name, uid=f"uid-{name}", labels=labels or {}, resource_version="1"),
        spec=NodeSpec(unschedulable=cordoned),
        status=NodeStatus(capacity=allocatable, allocatable=allocatable, conditions=conditions),
    )


def service(
    name: str = "web",
    *,
    ports: tuple[ServicePort, ...] = (ServicePort(port=80, name="http", target_port="http"),),
    selector: dict[str, str] | None = None,
    **spec: object,
) -> Service:
    return Service(
        kind="Service",
        api_version="v1",
        metadata=ObjectMeta(name=name, namespace="default", uid=f"uid-{name}", resource_version="1"),
        spec=ServiceSpec(**{"ports": ports, "selector": {"app": "web"} if selector is None else selector, **spec}),
    )
