"""Kubernetes' rules for pod specs, alone and in templates.

Owns: what concerns the pod as a whole; containers, volumes and placement have
files of their own. Invariant: as in validation.py. Source: ValidatePodSpec in
Kubernetes' pkg/apis/core/validation/validation.go.
"""

from __future__ import annotations

from podlane.api import names, types
from podlane.api.fields import Errors, join
from podlane.api.services import address_of
from podlane.api.validation_container import Surroundings, check_container, check_init_container, host_ports
from podlane.api.validation_scheduling import check_affinity, check_spread, check_tolerations
from podlane.api.validation_volume import check_volumes


def check_pod_spec(spec: types.PodSpec, path: str, errors: Errors) -> None:
    check_volumes(spec.volumes, join(path, "volumes"), errors)
    _check_containers(spec, path, errors)
    _check_numbers(spec, path, errors)
    if spec.node_name:
        errors.check(join(path, "nodeName"), names.dns_subdomain_error(spec.node_name))
    if spec.hostname:
        errors.check(join(path, "hostname"), names.dns_label_error(spec.hostname))
    for key, value in spec.node_selector.items():
        errors.check(
            f"{join(path, 'nodeSelector')}[{key}]", names.label_key_error(key) or names.label_value_error(value)
        )
    if spec.affinity is not None:
        check_affinity(spec.affinity, join(path, "affinity"), errors)
    check_tolerations(spec.tolerations, join(path, "tolerations"), errors)
    check_spread(spec.topology_spread_constraints, join(path, "topologySpreadConstraints"), errors)
    if spec.priority_class_name:
        errors.check(join(path, "priorityClassName"), names.dns_subdomain_error(spec.priority_class_name))
    for index, alias in enumerate(spec.host_aliases):
        place = f"{join(path, 'hostAliases')}[{index}]"
        if address_of(alias.ip) is None:
            errors.add(f"{place}.ip", f'expected an IP address, got "{alias.ip}"')
        for position, hostname in enumerate(alias.hostnames):
            errors.check(f"{place}.hostnames[{position}]", names.dns_subdomain_error(hostname))


def _check_containers(spec: types.PodSpec, path: str, errors: Errors) -> None:
    if not spec.containers:
        errors.add(join(path, "containers"), "required: at least one container")
    pod = Surroundings({v.name for v in spec.volumes}, spec.host_network, spec.termination_grace_period_seconds)
    seen: dict[str, str] = {}
    for field, containers in (("initContainers", spec.init_containers), ("containers", spec.containers)):
        for index, container in enumerate(containers):
            own = f"{field}[{index}]"
            place = join(path, own)
            check_container(container, place, pod, errors)
            if container.name and container.name in seen:
                errors.add(f"{place}.name", f'duplicate name "{container.name}", also of {seen[container.name]}')
            seen.setdefault(container.name, own)
            if field == "initContainers":
                check_init_container(container, place, errors)
            elif container.restart_policy:
                errors.add(f"{place}.restartPolicy", "only in an init container")
    taken: dict[tuple[str, str, int], str] = {}
    for where, port in host_ports(spec.containers):
        if port in taken:
            errors.add(
                f"{join(path, 'containers')}{where}", f"duplicate port {port[2]}, also of containers{taken[port]}"
            )
        taken.setdefault(port, where)


def _check_numbers(spec: types.PodSpec, path: str, errors: Errors) -> None:
    for field, name in (
        ("termination_grace_period_seconds", "terminationGracePeriodSeconds"),
        ("active_deadline_seconds", "activeDeadlineSeconds"),
        ("priority", "priority"),
    ):
        value = getattr(spec, field)
        if value is not None:
            errors.integer(types.PodSpec, field, value, join(path, name))
    context = spec.security_context
    if context is None:
        return
    place = join(path, "securityContext")
    for field, name in (("run_as_user", "runAsUser"), ("run_as_group", "runAsGroup"), ("fs_group", "fsGroup")):
        value = getattr(context, field)
        if value is not None:
            errors.integer(types.PodSecurityContext, field, value, f"{place}.{name}")
    for index, group in enumerate(context.supplemental_groups):
        errors.integer(types.PodSecurityContext, "supplemental_groups", group, f"{place}.supplementalGroups[{index}]")
