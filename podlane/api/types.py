"""The objects, in Kubernetes v1 shape, for the fields Podlane supports.

Owns: field names, defaults and types; nothing here does I/O or checks rules
(validation.py does). Invariant: objects are immutable, a change is a copy made
with `msgspec.structs.replace`; what is absent in JSON and what equals its
default are the same thing. Source: the Kubernetes v1 API reference.

Timestamps are UTC with whole seconds, as metav1.Time has them.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

import msgspec

Protocol = Literal["TCP", "UDP", "SCTP"]
IPFamily = Literal["IPv4", "IPv6"]
ConditionStatus = Literal["True", "False", "Unknown"]


class Struct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Base of everything that is stored or read from a manifest.

    Subclasses repeat `frozen` and `kw_only`: msgspec inherits the first only,
    and type checkers neither.
    """


# --- metadata ----------------------------------------------------------------


class OwnerReference(Struct, frozen=True, kw_only=True):
    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(Struct, frozen=True, kw_only=True):
    """metav1.ObjectMeta. `resource_version` is etcd's mod_revision in decimal, never stored in the value."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()


class Object(Struct, frozen=True, kw_only=True):
    """A stored object: `kind` and `apiVersion` are always written."""

    KIND: ClassVar[str]
    API_VERSION: ClassVar[str] = "v1"
    NAMESPACED: ClassVar[bool] = True

    kind: str = ""
    api_version: str = ""
    metadata: ObjectMeta = ObjectMeta()


# --- pods --------------------------------------------------------------------


class ContainerPort(Struct, frozen=True, kw_only=True):
    container_port: int
    name: str = ""
    protocol: Protocol = "TCP"


class EnvVar(Struct, frozen=True, kw_only=True):
    name: str
    value: str = ""


class ResourceRequirements(Struct, frozen=True, kw_only=True):
    """Quantities by resource name: cpu, memory (bytes). See quantity.py."""

    requests: dict[str, str] = {}
    limits: dict[str, str] = {}


class HTTPHeader(Struct, frozen=True, kw_only=True):
    name: str
    value: str = ""


class HTTPGetAction(Struct, frozen=True, kw_only=True):
    port: int | str
    path: str = "/"
    host: str = ""
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"
    http_headers: tuple[HTTPHeader, ...] = ()


class TCPSocketAction(Struct, frozen=True, kw_only=True):
    port: int | str
    host: str = ""


class ExecAction(Struct, frozen=True, kw_only=True):
    command: tuple[str, ...] = ()


class Probe(Struct, frozen=True, kw_only=True):
    """All times in whole seconds."""

    http_get: HTTPGetAction | None = None
    tcp_socket: TCPSocketAction | None = None
    exec: ExecAction | None = None
    initial_delay_seconds: int = 0
    timeout_seconds: int = 1
    period_seconds: int = 10
    success_threshold: int = 1
    failure_threshold: int = 3


class Container(Struct, frozen=True, kw_only=True):
    name: str = ""
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[EnvVar, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    resources: ResourceRequirements = ResourceRequirements()
    readiness_probe: Probe | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never", ""] = ""


class PodSpec(Struct, frozen=True, kw_only=True):
    containers: tuple[Container, ...] = ()
    node_name: str = ""
    node_selector: dict[str, str] = {}
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    termination_grace_period_seconds: int = 30
    hostname: str = ""


class ContainerStateWaiting(Struct, frozen=True, kw_only=True):
    reason: str = ""
    message: str = ""


class ContainerStateRunning(Struct, frozen=True, kw_only=True):
    started_at: datetime | None = None


class ContainerStateTerminated(Struct, frozen=True, kw_only=True):
    exit_code: int = 0
    signal: int = 0
    reason: str = ""
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
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


class Condition(Struct, frozen=True, kw_only=True):
    """PodCondition, NodeCondition and ReplicationControllerCondition share this shape."""

    type: str
    status: ConditionStatus
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None
    last_heartbeat_time: datetime | None = None


class PodIP(Struct, frozen=True, kw_only=True):
    ip: str


class PodStatus(Struct, frozen=True, kw_only=True):
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"] = "Pending"
    conditions: tuple[Condition, ...] = ()
    message: str = ""
    reason: str = ""
    host_ip: str = msgspec.field(default="", name="hostIP")
    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: tuple[PodIP, ...] = msgspec.field(default=(), name="podIPs")
    start_time: datetime | None = None
    container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Pod"
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


# --- replication controllers ---------------------------------------------------


class PodTemplateSpec(Struct, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()


class ReplicationControllerSpec(Struct, frozen=True, kw_only=True):
    replicas: int = 1
    selector: dict[str, str] = {}
    template: PodTemplateSpec = PodTemplateSpec()
    min_ready_seconds: int = 0


class ReplicationControllerStatus(Struct, frozen=True, kw_only=True):
    replicas: int = 0
    fully_labeled_replicas: int = 0
    ready_replicas: int = 0
    available_replicas: int = 0
    observed_generation: int = 0
    conditions: tuple[Condition, ...] = ()


class ReplicationController(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "ReplicationController"
    spec: ReplicationControllerSpec = ReplicationControllerSpec()
    # replicas 0 is not the default, so it is written; 1 is the default and may be left out
    status: ReplicationControllerStatus = ReplicationControllerStatus()


# --- services ------------------------------------------------------------------


class ServicePort(Struct, frozen=True, kw_only=True):
    """`target_port` is a number, a container port's name, or 0 for "the same as port"; `node_port` 0 is none yet."""

    port: int
    name: str = ""
    protocol: Protocol = "TCP"
    target_port: int | str = 0
    node_port: int = 0
    app_protocol: str = ""


class ClientIPConfig(Struct, frozen=True, kw_only=True):
    """How long an idle client stays with its pod: 1 to 86,400 seconds."""

    timeout_seconds: int = 10800


class SessionAffinityConfig(Struct, frozen=True, kw_only=True):
    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(Struct, frozen=True, kw_only=True):
    """`cluster_ip` is "" until allocated, "None" for a headless service, and always the first of `cluster_ips`.

    `cluster_ips` has one address a family, in the order of `ip_families`.
    """

    ports: tuple[ServicePort, ...] = ()
    selector: dict[str, str] = {}
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: tuple[str, ...] = msgspec.field(default=(), name="clusterIPs")
    ip_families: tuple[IPFamily, ...] = msgspec.field(default=(), name="ipFamilies")
    ip_family_policy: Literal["", "SingleStack", "PreferDualStack", "RequireDualStack"] = ""
    external_ips: tuple[str, ...] = msgspec.field(default=(), name="externalIPs")
    external_name: str = ""
    session_affinity: Literal["None", "ClientIP"] = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    internal_traffic_policy: Literal["Cluster", "Local"] = "Cluster"
    external_traffic_policy: Literal["", "Cluster", "Local"] = ""
    health_check_node_port: int = 0
    load_balancer_ip: str = msgspec.field(default="", name="loadBalancerIP")
    load_balancer_class: str = ""
    load_balancer_source_ranges: tuple[str, ...] = ()
    allocate_load_balancer_node_ports: bool = True
    traffic_distribution: Literal["", "PreferClose", "PreferSameZone", "PreferSameNode"] = ""
    publish_not_ready_addresses: bool = False


class LoadBalancerIngress(Struct, frozen=True, kw_only=True):
    """An address at which a load balancer serves; with `ip_mode` "Proxy" it sends on to node ports itself."""

    ip: str = ""
    hostname: str = ""
    ip_mode: Literal["", "VIP", "Proxy"] = ""


class LoadBalancerStatus(Struct, frozen=True, kw_only=True):
    ingress: tuple[LoadBalancerIngress, ...] = ()


class ServiceStatus(Struct, frozen=True, kw_only=True):
    load_balancer: LoadBalancerStatus = LoadBalancerStatus()


class Service(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Service"
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class EndpointConditions(Struct, frozen=True, kw_only=True):
    """Absent means ready and serving, as discovery.k8s.io/v1 says: say false where it is not."""

    ready: bool = True
    serving: bool = True
    terminating: bool = False


class ObjectReference(Struct, frozen=True, kw_only=True):
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    api_version: str = ""
    resource_version: str = ""
    field_path: str = ""


class ForZone(Struct, frozen=True, kw_only=True):
    name: str


class ForNode(Struct, frozen=True, kw_only=True):
    name: str


class EndpointHints(Struct, frozen=True, kw_only=True):
    """Whose clients should use this endpoint; a proxy heeds it if all endpoints of the service have such hints."""

    for_zones: tuple[ForZone, ...] = ()
    for_nodes: tuple[ForNode, ...] = ()


class Endpoint(Struct, frozen=True, kw_only=True):
    addresses: tuple[str, ...]
    conditions: EndpointConditions = EndpointConditions()
    node_name: str = ""
    zone: str = ""
    hostname: str = ""
    hints: EndpointHints | None = None
    target_ref: ObjectReference | None = None


class EndpointPort(Struct, frozen=True, kw_only=True):
    port: int
    name: str = ""
    protocol: Protocol = "TCP"
    app_protocol: str = ""


class EndpointSlice(Object, frozen=True, kw_only=True):
    """discovery.k8s.io/v1; belongs to the service in its label `kubernetes.io/service-name`."""

    KIND: ClassVar[str] = "EndpointSlice"
    API_VERSION: ClassVar[str] = "discovery.k8s.io/v1"
    address_type: Literal["IPv4", "IPv6"] = "IPv4"
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


SERVICE_NAME_LABEL = "kubernetes.io/service-name"
HOSTNAME_LABEL = "kubernetes.io/hostname"
ZONE_LABEL = "topology.kubernetes.io/zone"
SERVICE_PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
BALANCE_ANNOTATION = "podlane.io/balance"

# --- nodes -----------------------------------------------------------------------


class NodeSpec(Struct, frozen=True, kw_only=True):
    pod_cidr: str = msgspec.field(default="", name="podCIDR")
    unschedulable: bool = False


class NodeAddress(Struct, frozen=True, kw_only=True):
    type: Literal["InternalIP", "ExternalIP", "Hostname"]
    address: str


class DaemonEndpoint(Struct, frozen=True, kw_only=True, rename={"port": "Port"}):
    port: int = 0


class NodeDaemonEndpoints(Struct, frozen=True, kw_only=True):
    kubelet_endpoint: DaemonEndpoint = DaemonEndpoint()


class NodeSystemInfo(Struct, frozen=True, kw_only=True):
    machine_id: str = msgspec.field(default="", name="machineID")
    kernel_version: str = ""
    os_image: str = ""
    container_runtime_version: str = ""
    kubelet_version: str = ""
    operating_system: str = "linux"
    architecture: str = ""


class NodeStatus(Struct, frozen=True, kw_only=True):
    capacity: dict[str, str] = {}
    allocatable: dict[str, str] = {}
    conditions: tuple[Condition, ...] = ()
    addresses: tuple[NodeAddress, ...] = ()
    daemon_endpoints: NodeDaemonEndpoints = NodeDaemonEndpoints()
    node_info: NodeSystemInfo = NodeSystemInfo()


class Node(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Node"
    NAMESPACED: ClassVar[bool] = False
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class LeaseSpec(Struct, frozen=True, kw_only=True):
    holder_identity: str = ""
    lease_duration_seconds: int = 0
    acquire_time: datetime | None = None
    renew_time: datetime | None = None
    lease_transitions: int = 0


class Lease(Object, frozen=True, kw_only=True):
    """coordination.k8s.io/v1. A node's is bound to an etcd lease: while it exists the node is alive."""

    KIND: ClassVar[str] = "Lease"
    API_VERSION: ClassVar[str] = "coordination.k8s.io/v1"
    spec: LeaseSpec = LeaseSpec()


NODE_LEASE_NAMESPACE = "kube-node-lease"

# --- events and namespaces ----------------------------------------------------------


class EventSource(Struct, frozen=True, kw_only=True):
    component: str = ""
    host: str = ""


class Event(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Event"
    involved_object: ObjectReference = ObjectReference()
    reason: str = ""
    message: str = ""
    type: Literal["Normal", "Warning"] = "Normal"
    source: EventSource = EventSource()
    count: int = 1
    first_timestamp: datetime | None = None
    last_timestamp: datetime | None = None


class NamespaceSpec(Struct, frozen=True, kw_only=True):
    pass


class NamespaceStatus(Struct, frozen=True, kw_only=True):
    phase: Literal["Active", "Terminating"] = "Active"


class Namespace(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Namespace"
    NAMESPACED: ClassVar[bool] = False
    spec: NamespaceSpec = NamespaceSpec()
    status: NamespaceStatus = NamespaceStatus()


# --- Podlane's own ------------------------------------------------------------------


class ClusterConfig(Struct, frozen=True, kw_only=True):
    """The value of `/podlane/config`. Times in seconds.

    `service_cidr`: the service range, or one range a family separated by a comma.
    `service_node_port_range`: from and to, both included.
    `node_lease_seconds`: how long a silent node counts as alive (etcd refuses
    less than 2); `node_grace_seconds`: how long after that its pods are replaced.
    """

    service_cidr: str = msgspec.field(default="10.96.0.0/16", name="serviceCIDR")
    service_node_port_range: str = "30000-32767"
    cluster_domain: str = "cluster.local"
    node_lease_seconds: int = 10
    node_grace_seconds: int = 5
    agent_token: str = ""


KINDS: dict[str, type[Object]] = {
    cls.KIND: cls for cls in (Pod, ReplicationController, Service, EndpointSlice, Node, Lease, Event, Namespace)
}
