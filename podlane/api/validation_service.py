"""Kubernetes' rules for services and endpoint slices.

Owns: ports, addresses, selectors of services. Invariant: as in validation.py.
Whether an address lies in the service range and is free is the registry's to
decide, in the transaction that stores the service. Source: ValidateService in
pkg/apis/core/validation and pkg/apis/discovery/validation of Kubernetes.
"""

from __future__ import annotations

import ipaddress

from podlane.api import names, types
from podlane.api.fields import Errors, join

HEADLESS = "None"
MAX_ENDPOINTS = 1000
MAX_ADDRESSES = 100
MAX_PORTS = 20000


def check_service(spec: types.ServiceSpec, path: str, errors: Errors) -> None:
    if not spec.ports and spec.cluster_ip != HEADLESS:
        errors.add(join(path, "ports"), "required: at least one port, unless clusterIP is None")
    _check_service_ports(spec.ports, join(path, "ports"), errors)
    for key, value in spec.selector.items():
        errors.check(f"{join(path, 'selector')}[{key}]", names.label_key_error(key) or names.label_value_error(value))
    if spec.cluster_ip not in {"", HEADLESS}:
        errors.check(join(path, "clusterIP"), _cluster_ip_error(spec.cluster_ip))
    if len(spec.cluster_ips) > 1:
        errors.add(
            join(path, "clusterIPs"),
            f"expected one address, for Podlane's services have one family, got {len(spec.cluster_ips)}",
        )
    elif spec.cluster_ips and spec.cluster_ips[0] != spec.cluster_ip:
        errors.add(
            f"{join(path, 'clusterIPs')}[0]",
            f'expected the same as clusterIP, "{spec.cluster_ip}", got "{spec.cluster_ips[0]}"',
        )


def _check_service_ports(ports: tuple[types.ServicePort, ...], path: str, errors: Errors) -> None:
    by_name: dict[str, int] = {}
    by_port: dict[tuple[int, str], int] = {}
    for index, port in enumerate(ports):
        place = f"{path}[{index}]"
        errors.check(f"{place}.port", names.port_number_error(port.port))
        if port.name:
            errors.check(f"{place}.name", names.dns_label_error(port.name))
            if port.name in by_name:
                errors.add(f"{place}.name", f'duplicate name "{port.name}", also of ports[{by_name[port.name]}]')
            by_name.setdefault(port.name, index)
        elif len(ports) > 1:
            errors.add(f"{place}.name", "required where a service has several ports")
        target = port.target_port
        if target != port.port:  # a wrong port it was defaulted from has been reported
            errors.check(
                f"{place}.targetPort",
                names.port_number_error(target) if isinstance(target, int) else names.port_name_error(target),
            )
        key = (port.port, port.protocol)
        if key in by_port:
            errors.add(f"{place}.port", f"duplicate port {port.port}/{port.protocol}, also ports[{by_port[key]}]")
        by_port.setdefault(key, index)


def _cluster_ip_error(text: str) -> str | None:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return f'expected an IPv4 address, "None" or nothing, got "{text}"'
    return None


def check_endpoint_slice(endpoint_slice: types.EndpointSlice, path: str, errors: Errors) -> None:
    endpoints = join(path, "endpoints")
    if len(endpoint_slice.endpoints) > MAX_ENDPOINTS:
        errors.add(endpoints, f"expected at most {MAX_ENDPOINTS} endpoints, got {len(endpoint_slice.endpoints)}")
    for index, endpoint in enumerate(endpoint_slice.endpoints):
        place = f"{endpoints}[{index}]"
        if not 1 <= len(endpoint.addresses) <= MAX_ADDRESSES:
            errors.add(
                f"{place}.addresses",
                f"expected 1 to {MAX_ADDRESSES} addresses, got {len(endpoint.addresses)}",
            )
        for position, address in enumerate(endpoint.addresses):
            errors.check(f"{place}.addresses[{position}]", _endpoint_ip_error(address, endpoint_slice.address_type))
        if endpoint.node_name:
            errors.check(f"{place}.nodeName", names.dns_subdomain_error(endpoint.node_name))
    ports = join(path, "ports")
    if len(endpoint_slice.ports) > MAX_PORTS:
        errors.add(ports, f"expected at most {MAX_PORTS} ports, got {len(endpoint_slice.ports)}")
    by_name: dict[str, int] = {}
    for index, port in enumerate(endpoint_slice.ports):
        errors.check(f"{ports}[{index}].port", names.port_number_error(port.port))
        if port.name:
            errors.check(f"{ports}[{index}].name", names.dns_label_error(port.name))
        if port.name in by_name:
            errors.add(f"{ports}[{index}].name", f'duplicate name "{port.name}", also of ports[{by_name[port.name]}]')
        by_name.setdefault(port.name, index)


def _endpoint_ip_error(text: str, family: str) -> str | None:
    """Addresses that mean something else on every host (loopback, link-local) can be no endpoints."""
    try:
        address = ipaddress.IPv4Address(text) if family == "IPv4" else ipaddress.IPv6Address(text)
    except ValueError:
        return f'expected an {family} address, got "{text}"'
    for kind in ("unspecified", "loopback", "link_local", "multicast"):
        if getattr(address, f"is_{kind}"):
            return f"expected an address that can be reached from elsewhere, got {text} ({kind.replace('_', '-')})"
    return None
