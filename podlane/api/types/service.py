"""Services, and the endpoint slices that say who serves them."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from podlane.api.types.base import IPFamily, Object, ObjectReference, Protocol, Struct

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
SERVICE_PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
BALANCE_ANNOTATION = "podlane.io/balance"


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
