"""Pods: their spec and what their agent says of them."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from podlane.api.types.base import Condition, Object, Struct, Time
from podlane.api.types.container import Container
from podlane.api.types.scheduling import Affinity, PreemptionPolicy, Toleration, TopologySpreadConstraint
from podlane.api.types.volume import Volume


class HostAlias(Struct, frozen=True, kw_only=True):
    """A line of the pod's /etc/hosts."""

    ip: str
    hostnames: tuple[str, ...] = ()


class PodSecurityContext(Struct, frozen=True, kw_only=True):
    """For all containers that say nothing else; `fs_group` owns the pod's emptyDir, configMap and secret volumes."""

    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    fs_group: int | None = None
    supplemental_groups: tuple[int, ...] = ()


class PodSpec(Struct, frozen=True, kw_only=True):
    """`priority` and `preemption_policy` are filled in from the class when the pod is created."""

    init_containers: tuple[Container, ...] = ()
    containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    termination_grace_period_seconds: int = 30
    active_deadline_seconds: int | None = None
    node_name: str = ""
    node_selector: dict[str, str] = {}
    affinity: Affinity | None = None
    tolerations: tuple[Toleration, ...] = ()
    topology_spread_constraints: tuple[TopologySpreadConstraint, ...] = ()
    priority_class_name: str = ""
    priority: int | None = None
    preemption_policy: PreemptionPolicy | None = None
    hostname: str = ""
    host_network: bool = False
    host_aliases: tuple[HostAlias, ...] = ()
    enable_service_links: bool = True
    security_context: PodSecurityContext | None = None


class ContainerStateWaiting(Struct, frozen=True, kw_only=True):
    reason: str = ""
    message: str = ""


class ContainerStateRunning(Struct, frozen=True, kw_only=True):
    started_at: Time | None = None


class ContainerStateTerminated(Struct, frozen=True, kw_only=True):
    exit_code: int = 0
    signal: int = 0
    reason: str = ""
    message: str = ""
    started_at: Time | None = None
    finished_at: Time | None = None
    container_id: str = msgspec.field(default="", name="containerID")


class ContainerState(Struct, frozen=True, kw_only=True):
    waiting: ContainerStateWaiting | None = None
    running: ContainerStateRunning | None = None
    terminated: ContainerStateTerminated | None = None


class ContainerStatus(Struct, frozen=True, kw_only=True):
    name: str
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()
    ready: bool = False
    started: bool = False
    restart_count: int = 0
    image: str = ""
    image_id: str = msgspec.field(default="", name="imageID")
    container_id: str = msgspec.field(default="", name="containerID")


class PodIP(Struct, frozen=True, kw_only=True):
    ip: str


class HostIP(Struct, frozen=True, kw_only=True):
    ip: str


class PodStatus(Struct, frozen=True, kw_only=True):
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"] = "Pending"
    conditions: tuple[Condition, ...] = ()
    message: str = ""
    reason: str = ""
    host_ip: str = msgspec.field(default="", name="hostIP")
    host_ips: tuple[HostIP, ...] = msgspec.field(default=(), name="hostIPs")
    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: tuple[PodIP, ...] = msgspec.field(default=(), name="podIPs")
    start_time: Time | None = None
    init_container_statuses: tuple[ContainerStatus, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    qos_class: Literal["", "Guaranteed", "Burstable", "BestEffort"] = ""
    nominated_node_name: str = ""
    observed_generation: int = 0


class Pod(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Pod"
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class PodReport(Struct, frozen=True, kw_only=True):
    """What a node says of a pod; see podlane.store.reports. `removed`: nothing of it is left there."""

    uid: str
    status: PodStatus = PodStatus()
    removed: bool = False
