"""Kubernetes' rules for pod specs, alone and in templates.

Owns: containers, ports, environment, resources, probes. Invariant: as in
validation.py. Source: ValidatePodSpec and what it calls in Kubernetes'
pkg/apis/core/validation/validation.go.
"""

from __future__ import annotations

from decimal import Decimal

from podlane.api import names, quantity, types
from podlane.api.fields import Errors, join

SUPPORTED_RESOURCES = ("cpu", "memory")
_KUBERNETES_RESOURCES = ("ephemeral-storage", "storage")


def check_pod_spec(spec: types.PodSpec, path: str, errors: Errors) -> None:
    if not spec.containers:
        errors.add(join(path, "containers"), "required: at least one container")
    seen: dict[str, int] = {}
    for index, container in enumerate(spec.containers):
        place = f"{join(path, 'containers')}[{index}]"
        _check_container(container, place, errors)
        if container.name and container.name in seen:
            errors.add(
                f"{place}.name", f'duplicate name "{container.name}", also of containers[{seen[container.name]}]'
            )
        seen.setdefault(container.name, index)
    if spec.node_name:
        errors.check(join(path, "nodeName"), names.dns_subdomain_error(spec.node_name))
    if spec.hostname:
        errors.check(join(path, "hostname"), names.dns_label_error(spec.hostname))
    for key, value in spec.node_selector.items():
        errors.check(
            f"{join(path, 'nodeSelector')}[{key}]", names.label_key_error(key) or names.label_value_error(value)
        )
    errors.integer(
        types.PodSpec,
        "termination_grace_period_seconds",
        spec.termination_grace_period_seconds,
        join(path, "terminationGracePeriodSeconds"),
    )


def _check_container(container: types.Container, path: str, errors: Errors) -> None:
    if container.name:
        errors.check(f"{path}.name", names.dns_label_error(container.name))
    else:
        errors.add(f"{path}.name", "required")
    if not container.image:
        errors.add(f"{path}.image", "required")
    elif container.image != container.image.strip():
        errors.add(f"{path}.image", f'expected an image without spaces around it, got "{container.image}"')
    _check_ports(container.ports, f"{path}.ports", errors)
    for index, variable in enumerate(container.env):
        place = f"{path}.env[{index}].name"
        errors.check(place, names.env_name_error(variable.name) if variable.name else "required")
    _check_resources(container.resources, f"{path}.resources", errors)
    if container.readiness_probe is not None:
        _check_probe(container.readiness_probe, f"{path}.readinessProbe", errors)


def _check_ports(ports: tuple[types.ContainerPort, ...], path: str, errors: Errors) -> None:
    seen: dict[str, int] = {}
    for index, port in enumerate(ports):
        place = f"{path}[{index}]"
        errors.check(f"{place}.containerPort", names.port_number_error(port.container_port))
        if not port.name:
            continue
        errors.check(f"{place}.name", names.port_name_error(port.name))
        if port.name in seen:
            errors.add(f"{place}.name", f'duplicate name "{port.name}", also of ports[{seen[port.name]}]')
        seen.setdefault(port.name, index)


def _check_resources(resources: types.ResourceRequirements, path: str, errors: Errors) -> None:
    limits = _quantities(resources.limits, f"{path}.limits", errors)
    # what was copied from the limits by default has been reported there
    own = {name: text for name, text in resources.requests.items() if text != resources.limits.get(name)}
    requests = _quantities(own, f"{path}.requests", errors)
    for name, request in requests.items():
        if name in limits and request > limits[name]:
            errors.add(
                f"{path}.requests[{name}]",
                f"expected at most the limit {resources.limits[name]}, got {resources.requests[name]}",
            )


def _quantities(quantities: dict[str, str], path: str, errors: Errors) -> dict[str, Decimal]:
    values: dict[str, Decimal] = {}
    for name, text in quantities.items():
        place = f"{path}[{name}]"
        if name not in SUPPORTED_RESOURCES:
            known = name in _KUBERNETES_RESOURCES or name.startswith("hugepages-") or "/" in name
            errors.add(
                place,
                ("known to Kubernetes but not supported by Podlane yet" if known else "unknown resource")
                + f" (supported: {', '.join(SUPPORTED_RESOURCES)})",
            )
            continue
        try:
            value = quantity.parse(text)
        except ValueError as error:
            errors.add(place, str(error))
            continue
        if value < 0:
            errors.add(place, f"expected a quantity ≥ 0, got {text}")
        else:
            values[name] = value
    return values


def _check_probe(probe: types.Probe, path: str, errors: Errors) -> None:
    actions = [
        name
        for name, action in (("httpGet", probe.http_get), ("tcpSocket", probe.tcp_socket), ("exec", probe.exec))
        if action is not None
    ]
    if len(actions) != 1:
        got = " and ".join(actions) or "none"
        errors.add(path, f"expected exactly one of httpGet, tcpSocket and exec, got {got}")
    for field, name in (
        ("initial_delay_seconds", "initialDelaySeconds"),
        ("timeout_seconds", "timeoutSeconds"),
        ("period_seconds", "periodSeconds"),
        ("success_threshold", "successThreshold"),
        ("failure_threshold", "failureThreshold"),
    ):
        errors.integer(types.Probe, field, getattr(probe, field), f"{path}.{name}")
    if probe.http_get is not None:
        _check_port_reference(probe.http_get.port, f"{path}.httpGet.port", errors)
        if not probe.http_get.path:
            errors.add(f"{path}.httpGet.path", "required")
        for index, header in enumerate(probe.http_get.http_headers):
            errors.check(f"{path}.httpGet.httpHeaders[{index}].name", names.header_name_error(header.name))
    if probe.tcp_socket is not None:
        _check_port_reference(probe.tcp_socket.port, f"{path}.tcpSocket.port", errors)
    if probe.exec is not None and not probe.exec.command:
        errors.add(f"{path}.exec.command", "required")


def _check_port_reference(port: int | str, path: str, errors: Errors) -> None:
    errors.check(path, names.port_number_error(port) if isinstance(port, int) else names.port_name_error(port))
