"""Kubernetes' rules for containers.

Owns: ports, environment, resources, mounts, probes, hooks, security context.
Invariant: as in validation.py. Source: validateContainerCommon and what it
calls in Kubernetes' pkg/apis/core/validation/validation.go.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal

from podlane.api import names, quantity, types
from podlane.api.fields import Errors, check_one_of
from podlane.api.services import address_of
from podlane.api.validation_reference import check_env, check_env_from

SUPPORTED_RESOURCES = ("cpu", "memory")
_KUBERNETES_RESOURCES = ("ephemeral-storage", "storage")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of its pod a container is checked against."""

    volumes: Collection[str]
    host_network: bool
    grace_seconds: int


def check_container(container: types.Container, path: str, pod: Surroundings, errors: Errors) -> None:
    if container.name:
        errors.check(f"{path}.name", names.dns_label_error(container.name))
    else:
        errors.add(f"{path}.name", "required")
    if not container.image:
        errors.add(f"{path}.image", "required")
    elif container.image != container.image.strip():
        errors.add(f"{path}.image", f'expected an image without spaces around it, got "{container.image}"')
    _check_ports(container.ports, f"{path}.ports", pod, errors)
    check_env(container.env, f"{path}.env", errors)
    check_env_from(container.env_from, f"{path}.envFrom", errors)
    _check_mounts(container.volume_mounts, f"{path}.volumeMounts", pod, errors)
    _check_resources(container.resources, f"{path}.resources", errors)
    _check_probes(container, path, errors)
    if container.lifecycle is not None:
        for name, hook in (("postStart", container.lifecycle.post_start), ("preStop", container.lifecycle.pre_stop)):
            if hook is not None:
                _check_hook(hook, f"{path}.lifecycle.{name}", pod, errors)
    if container.security_context is not None:
        _check_security(container.security_context, f"{path}.securityContext", errors)


def check_init_container(container: types.Container, path: str, errors: Errors) -> None:
    """What only a sidecar, an init container that goes on running, may have."""
    if container.restart_policy == "Always":
        return
    for name, value in (
        ("livenessProbe", container.liveness_probe),
        ("readinessProbe", container.readiness_probe),
        ("startupProbe", container.startup_probe),
        ("lifecycle", container.lifecycle),
    ):
        if value is not None:
            errors.add(f"{path}.{name}", 'not in an init container, unless its restartPolicy is "Always"')


def host_ports(containers: Collection[types.Container]) -> list[tuple[str, tuple[str, str, int]]]:
    """Where each port of the node is asked for, and the port: (protocol, address, number)."""
    return [
        (f"[{index}].ports[{position}].hostPort", (port.protocol, port.host_ip, port.host_port))
        for index, container in enumerate(containers)
        for position, port in enumerate(container.ports)
        if port.host_port
    ]


def _check_ports(ports: tuple[types.ContainerPort, ...], path: str, pod: Surroundings, errors: Errors) -> None:
    seen: dict[str, int] = {}
    for index, port in enumerate(ports):
        place = f"{path}[{index}]"
        errors.check(f"{place}.containerPort", names.port_number_error(port.container_port))
        if port.host_port:
            errors.check(f"{place}.hostPort", names.port_number_error(port.host_port))
            if pod.host_network and port.host_port != port.container_port:
                errors.add(
                    f"{place}.containerPort",
                    f"expected the hostPort {port.host_port}, because hostNetwork is true, got {port.container_port}",
                )
        if port.host_ip and address_of(port.host_ip) is None:
            errors.add(f"{place}.hostIP", f'expected an IP address, got "{port.host_ip}"')
        if not port.name:
            continue
        errors.check(f"{place}.name", names.port_name_error(port.name))
        if port.name in seen:
            errors.add(f"{place}.name", f'duplicate name "{port.name}", also of ports[{seen[port.name]}]')
        seen.setdefault(port.name, index)


def _check_mounts(mounts: tuple[types.VolumeMount, ...], path: str, pod: Surroundings, errors: Errors) -> None:
    seen: dict[str, int] = {}
    for index, mount in enumerate(mounts):
        place = f"{path}[{index}]"
        if not mount.name:
            errors.add(f"{place}.name", "required")
        elif mount.name not in pod.volumes:
            errors.add(f"{place}.name", f'expected the name of one of the pod\'s volumes, got "{mount.name}"')
        if not mount.mount_path:
            errors.add(f"{place}.mountPath", "required")
        elif not mount.mount_path.startswith("/"):
            # Kubernetes takes it as seen from the root; a runtime refuses it
            errors.add(f"{place}.mountPath", f'expected an absolute path, got "{mount.mount_path}"')
        elif mount.mount_path in seen:
            errors.add(
                f"{place}.mountPath",
                f'duplicate path "{mount.mount_path}", also of volumeMounts[{seen[mount.mount_path]}]',
            )
        seen.setdefault(mount.mount_path, index)
        if mount.sub_path:
            errors.check(f"{place}.subPath", names.descending_path_error(mount.sub_path))


# --- resources -----------------------------------------------------------------------------------


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


# --- probes and hooks ----------------------------------------------------------------------------


def _check_probes(container: types.Container, path: str, errors: Errors) -> None:
    for name, probe in (("livenessProbe", container.liveness_probe), ("startupProbe", container.startup_probe)):
        if probe is None:
            continue
        _check_probe(probe, f"{path}.{name}", errors)
        if probe.success_threshold != 1:
            errors.add(f"{path}.{name}.successThreshold", f"expected 1, got {probe.success_threshold}")
        grace = probe.termination_grace_period_seconds
        if grace is not None:
            errors.integer(
                types.Probe,
                "termination_grace_period_seconds",
                grace,
                f"{path}.{name}.terminationGracePeriodSeconds",
            )
    if container.readiness_probe is not None:
        _check_probe(container.readiness_probe, f"{path}.readinessProbe", errors)
        if container.readiness_probe.termination_grace_period_seconds is not None:
            errors.add(
                f"{path}.readinessProbe.terminationGracePeriodSeconds",
                "not in a readinessProbe, which ends no container",
            )


def _check_probe(probe: types.Probe, path: str, errors: Errors) -> None:
    check_one_of(
        {"httpGet": probe.http_get, "tcpSocket": probe.tcp_socket, "exec": probe.exec, "grpc": probe.grpc},
        path,
        errors,
    )
    for field, name in (
        ("initial_delay_seconds", "initialDelaySeconds"),
        ("timeout_seconds", "timeoutSeconds"),
        ("period_seconds", "periodSeconds"),
        ("success_threshold", "successThreshold"),
        ("failure_threshold", "failureThreshold"),
    ):
        errors.integer(types.Probe, field, getattr(probe, field), f"{path}.{name}")
    _check_actions(probe, path, errors)
    if probe.grpc is not None:
        errors.check(f"{path}.grpc.port", names.port_number_error(probe.grpc.port))


def _check_hook(hook: types.LifecycleHandler, path: str, pod: Surroundings, errors: Errors) -> None:
    check_one_of(
        {"exec": hook.exec, "httpGet": hook.http_get, "tcpSocket": hook.tcp_socket, "sleep": hook.sleep},
        path,
        errors,
    )
    _check_actions(hook, path, errors)
    if hook.sleep is not None and not 0 <= hook.sleep.seconds <= pod.grace_seconds:
        errors.add(
            f"{path}.sleep.seconds",
            f"expected an integer 0 to {pod.grace_seconds}, the terminationGracePeriodSeconds, "
            f"got {hook.sleep.seconds}",
        )


def _check_actions(said: types.Probe | types.LifecycleHandler, path: str, errors: Errors) -> None:
    """What probes and hooks have in common."""
    if said.http_get is not None:
        _check_port_reference(said.http_get.port, f"{path}.httpGet.port", errors)
        if not said.http_get.path:
            errors.add(f"{path}.httpGet.path", "required")
        for index, header in enumerate(said.http_get.http_headers):
            errors.check(f"{path}.httpGet.httpHeaders[{index}].name", names.header_name_error(header.name))
    if said.tcp_socket is not None:
        _check_port_reference(said.tcp_socket.port, f"{path}.tcpSocket.port", errors)
    if said.exec is not None and not said.exec.command:
        errors.add(f"{path}.exec.command", "required")


def _check_port_reference(port: int | str, path: str, errors: Errors) -> None:
    errors.check(path, names.port_number_error(port) if isinstance(port, int) else names.port_name_error(port))


def _check_security(context: types.SecurityContext, path: str, errors: Errors) -> None:
    for field, name in (("run_as_user", "runAsUser"), ("run_as_group", "runAsGroup")):
        value = getattr(context, field)
        if value is not None:
            errors.integer(types.SecurityContext, field, value, f"{path}.{name}")
    if context.allow_privilege_escalation is False:
        added = context.capabilities.add if context.capabilities is not None else ()
        if context.privileged:
            errors.add(f"{path}.allowPrivilegeEscalation", "expected true where privileged is true, got false")
        elif "SYS_ADMIN" in added or "CAP_SYS_ADMIN" in added:
            errors.add(f"{path}.allowPrivilegeEscalation", "expected true where SYS_ADMIN is added, got false")
