"""What follows from a service's fields: which addresses and ports it has.

Owns: the questions that validation, defaults, allocation and the proxy ask
alike. Pure. Source: Kubernetes' pkg/api/service and the service strategy.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from podlane.api.types import IPFamily, Service, ServiceSpec

Address = IPv4Address | IPv6Address

HEADLESS = "None"
LOAD_BALANCERS = ("NodePort", "LoadBalancer")


def address_of(text: str) -> Address | None:
    """An IP address without a zone, or None."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None


def family_of(text: str) -> IPFamily | None:
    """The family of an address; None if it is none."""
    address = address_of(text)
    return None if address is None else "IPv4" if address.version == 4 else "IPv6"


def has_cluster_ip(spec: ServiceSpec) -> bool:
    """Whether the field means something, if only "None"."""
    return spec.type != "ExternalName"


def is_headless(spec: ServiceSpec) -> bool:
    return has_cluster_ip(spec) and HEADLESS in (spec.cluster_ip, *spec.cluster_ips[:1])


def cluster_ips(spec: ServiceSpec) -> tuple[str, ...]:
    """The cluster addresses, one a family; none of a headless service."""
    said = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
    return () if HEADLESS in said else said


def may_have_node_ports(spec: ServiceSpec) -> bool:
    return spec.type in LOAD_BALANCERS


def wants_node_ports(spec: ServiceSpec) -> bool:
    """Whether every port is to get one."""
    return spec.type == "NodePort" or (spec.type == "LoadBalancer" and spec.allocate_load_balancer_node_ports)


def used_node_ports(spec: ServiceSpec) -> Iterator[tuple[str, int]]:
    """(field, number) of each node port, that of the health check last; one may serve two protocols."""
    for index, port in enumerate(spec.ports):
        if port.node_port:
            yield f"spec.ports[{index}].nodePort", port.node_port
    if spec.health_check_node_port:
        yield "spec.healthCheckNodePort", spec.health_check_node_port


def is_external(spec: ServiceSpec) -> bool:
    """Whether anything from outside the cluster can reach it, and externalTrafficPolicy has a meaning."""
    return spec.type in LOAD_BALANCERS or (spec.type == "ClusterIP" and bool(spec.external_ips))


def has_health_check(spec: ServiceSpec) -> bool:
    """Whether a load balancer asks the nodes, at healthCheckNodePort, which of them have endpoints."""
    return spec.type == "LoadBalancer" and spec.external_traffic_policy == "Local"


def has_free_families(spec: ServiceSpec) -> bool:
    """Headless without a selector: whoever writes the endpoints chooses the families, whatever the cluster has."""
    return is_headless(spec) and not spec.selector


def ingress_of(service: Service) -> Iterator[str]:
    """Where its load balancer serves: addresses or names."""
    for ingress in service.status.load_balancer.ingress:
        if text := ingress.ip or ingress.hostname:
            yield text
