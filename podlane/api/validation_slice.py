"""Kubernetes' rules for endpoint slices.

Owns: addresses, hints, ports of endpoint slices. Invariant: as in
validation.py. Source: pkg/apis/discovery/validation of Kubernetes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from podlane.api import names, types
from podlane.api.fields import Errors, join
from podlane.api.validation_addresses import special_address_error

MAX_ENDPOINTS = 1000
MAX_ADDRESSES = 100
MAX_PORTS = 20000
MAX_HINTS = 8


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
            errors.check(f"{place}.addresses[{position}]", special_address_error(address, endpoint_slice.address_type))
        if endpoint.node_name:
            errors.check(f"{place}.nodeName", names.dns_subdomain_error(endpoint.node_name))
        if endpoint.hostname:
            errors.check(f"{place}.hostname", names.dns_label_error(endpoint.hostname))
        if endpoint.hints is not None:
            _check_hints(endpoint.hints, f"{place}.hints", errors)
    ports = join(path, "ports")
    if len(endpoint_slice.ports) > MAX_PORTS:
        errors.add(ports, f"expected at most {MAX_PORTS} ports, got {len(endpoint_slice.ports)}")
    by_name: dict[str, int] = {}
    for index, port in enumerate(endpoint_slice.ports):
        errors.check(f"{ports}[{index}].port", names.port_number_error(port.port))
        if port.name:
            errors.check(f"{ports}[{index}].name", names.dns_label_error(port.name))
        if port.app_protocol:
            errors.check(f"{ports}[{index}].appProtocol", names.label_key_error(port.app_protocol))
        if port.name in by_name:
            errors.add(f"{ports}[{index}].name", f'duplicate name "{port.name}", also of ports[{by_name[port.name]}]')
        by_name.setdefault(port.name, index)


def _check_hints(hints: types.EndpointHints, path: str, errors: Errors) -> None:
    _check_names([zone.name for zone in hints.for_zones], f"{path}.forZones", names.label_value_error, errors)
    _check_names([node.name for node in hints.for_nodes], f"{path}.forNodes", names.dns_subdomain_error, errors)


def _check_names(found: Sequence[str], path: str, rule: Callable[[str], str | None], errors: Errors) -> None:
    if len(found) > MAX_HINTS:
        errors.add(path, f"expected at most {MAX_HINTS} entries, got {len(found)}")
    for index, name in enumerate(found):
        errors.check(f"{path}[{index}].name", rule(name) if name else "required")
        if name in found[:index]:
            errors.add(f"{path}[{index}].name", f'duplicate name "{name}", also of [{found.index(name)}]')
