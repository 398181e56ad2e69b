"""The text of `describe` for services and endpoint slices.

Owns: what is shown of them and in which order, near to kubectl's. Pure, as
description.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from podlane.api import services
from podlane.api.types import Endpoint, EndpointSlice, Service, ServicePort
from podlane.runtime.text import NONE, pairs

UNSET = "<unset>"

Fields = Iterator[tuple[str, str]]
"""Names and values; an empty name goes on with the value before."""


def service_fields(service: Service, slices: Sequence[EndpointSlice], annotations: Mapping[str, str]) -> Fields:
    """All but the events. `annotations` are those to show."""
    spec = service.spec
    yield "Name", service.metadata.name
    yield "Namespace", service.metadata.namespace
    yield from _several("Labels", [f"{key}={value}" for key, value in sorted(service.metadata.labels.items())])
    yield from _several("Annotations", [f"{key}={value}" for key, value in sorted(annotations.items())])
    yield "Selector", pairs(spec.selector)
    yield "Type", spec.type
    if services.has_cluster_ip(spec):
        yield from _addresses(service)
    if spec.external_ips:
        yield "External IPs", ",".join(spec.external_ips)
    if spec.load_balancer_ip:
        yield "Desired LoadBalancer IP", spec.load_balancer_ip
    if spec.external_name:
        yield "External Name", spec.external_name
    ingress = service.status.load_balancer.ingress
    if ingress:
        served = (f"{one.ip or one.hostname}{f' ({one.ip_mode})' if one.ip_mode else ''}" for one in ingress)
        yield "LoadBalancer Ingress", ", ".join(served)
    for port in spec.ports:
        yield from _port(port, service, slices)
    yield from _policies(service)


def _several(name: str, values: Sequence[str]) -> Fields:
    for index, value in enumerate(values or [NONE]):
        yield name if index == 0 else "", value


def _addresses(service: Service) -> Fields:
    spec = service.spec
    if spec.ip_family_policy:
        yield "IP Family Policy", spec.ip_family_policy
    if spec.ip_families:
        yield "IP Families", ",".join(spec.ip_families)
    yield "IP", spec.cluster_ip or NONE
    if spec.cluster_ips:
        yield "IPs", ",".join(spec.cluster_ips)


def _port(port: ServicePort, service: Service, slices: Sequence[EndpointSlice]) -> Fields:
    name = port.name or UNSET
    yield "Port", f"{name}  {port.port}/{port.protocol}"
    yield "TargetPort", f"{port.target_port}/{port.protocol}"
    if port.node_port:
        yield "NodePort", f"{name}  {port.node_port}/{port.protocol}"
    if port.app_protocol:
        yield "AppProtocol", port.app_protocol
    families = service.spec.ip_families
    if len(families) < 2:
        yield "Endpoints", ",".join(_serving(slices, port.name)) or NONE
        return
    for family in families:
        own = [piece for piece in slices if piece.address_type == family]
        yield f"Endpoints ({family})", ",".join(_serving(own, port.name)) or NONE


def _policies(service: Service) -> Fields:
    spec = service.spec
    yield "Session Affinity", spec.session_affinity
    config = spec.session_affinity_config
    if config is not None and config.client_ip is not None:
        yield "Session Affinity Timeout", f"{config.client_ip.timeout_seconds}s"
    if spec.external_traffic_policy:
        yield "External Traffic Policy", spec.external_traffic_policy
    if services.has_cluster_ip(spec):
        yield "Internal Traffic Policy", spec.internal_traffic_policy
    if spec.health_check_node_port:
        yield "HealthCheck NodePort", str(spec.health_check_node_port)
    if spec.load_balancer_class:
        yield "LoadBalancer Class", spec.load_balancer_class
    if spec.load_balancer_source_ranges:
        yield "LoadBalancer Source Ranges", ",".join(spec.load_balancer_source_ranges)
    if spec.traffic_distribution:
        yield "Traffic Distribution", spec.traffic_distribution
    if spec.publish_not_ready_addresses:
        yield "Publish Not Ready", "true"


def _serving(slices: Sequence[EndpointSlice], port_name: str) -> list[str]:
    """`10.244.1.2:8080`, `[fd00::2]:8080` for every ready endpoint of one service port."""
    return [
        f"[{address}]:{port.port}" if ":" in address else f"{address}:{port.port}"
        for piece in slices
        for port in piece.ports
        if port.name == port_name
        for endpoint in piece.endpoints
        if endpoint.conditions.ready
        for address in endpoint.addresses
    ]


def endpoint_lines(endpoint: Endpoint) -> Iterator[str]:
    conditions, target = endpoint.conditions, endpoint.target_ref
    yield f"  - Addresses:  {','.join(endpoint.addresses)}"
    yield (
        f"    Conditions: ready={str(conditions.ready).lower()} serving={str(conditions.serving).lower()} "
        f"terminating={str(conditions.terminating).lower()}"
    )
    if endpoint.hostname:
        yield f"    Hostname:   {endpoint.hostname}"
    yield f"    TargetRef:  {f'{target.kind}/{target.name}' if target else NONE}"
    yield f"    NodeName:   {endpoint.node_name or NONE}"
    if endpoint.zone:
        yield f"    Zone:       {endpoint.zone}"
    if endpoint.hints is not None:
        zones = [f"zone {zone.name}" for zone in endpoint.hints.for_zones]
        nodes = [f"node {node.name}" for node in endpoint.hints.for_nodes]
        yield f"    Hints:      {', '.join(zones + nodes) or NONE}"
