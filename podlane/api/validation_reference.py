"""Kubernetes' rules for what pods read of themselves, of config maps and of secrets.

Owns: environment variables with a source, and the fields and resources of a
pod that may be named. Invariant: as in validation.py. Source: ValidateEnv,
ValidateEnvFrom, validateObjectFieldSelector and
validateContainerResourceFieldSelector in Kubernetes'
pkg/apis/core/validation/validation.go.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from podlane.api import names, types
from podlane.api.fields import Errors, check_one_of

ENV_FIELDS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
VOLUME_FIELDS = ("metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations", "metadata.uid")
RESOURCES = ("limits.cpu", "limits.memory", "requests.cpu", "requests.memory")
_DIVISORS = {
    "cpu": ("1m", "1"),
    "memory": ("1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"),
}
_SUBSCRIPT = re.compile(r"(?P<path>metadata\.(?:labels|annotations))\['(?P<key>.*)'\]", re.ASCII)


def subscript(field_path: str) -> tuple[str, str] | None:
    """`metadata.labels['app']` as ("metadata.labels", "app"); None for a path without a key."""
    match = _SUBSCRIPT.fullmatch(field_path)
    return (match["path"], match["key"]) if match else None


def check_env(variables: tuple[types.EnvVar, ...], path: str, errors: Errors) -> None:
    for index, variable in enumerate(variables):
        place = f"{path}[{index}]"
        errors.check(f"{place}.name", names.env_name_error(variable.name) if variable.name else "required")
        if variable.value_from is not None:
            if variable.value:
                errors.add(f"{place}.valueFrom", "not beside a value")
            _check_source(variable.value_from, f"{place}.valueFrom", errors)


def _check_source(source: types.EnvVarSource, path: str, errors: Errors) -> None:
    alternatives = {
        "fieldRef": source.field_ref,
        "resourceFieldRef": source.resource_field_ref,
        "configMapKeyRef": source.config_map_key_ref,
        "secretKeyRef": source.secret_key_ref,
    }
    check_one_of(alternatives, path, errors)
    if source.field_ref is not None:
        check_field(source.field_ref, f"{path}.fieldRef", ENV_FIELDS, errors)
    if source.resource_field_ref is not None:
        check_resource_field(source.resource_field_ref, f"{path}.resourceFieldRef", errors)
    for name, reference in (("configMapKeyRef", source.config_map_key_ref), ("secretKeyRef", source.secret_key_ref)):
        if reference is not None:
            if not reference.name:
                errors.add(f"{path}.{name}.name", "required")
            errors.check(f"{path}.{name}.key", names.config_key_error(reference.key) if reference.key else "required")


def check_env_from(sources: tuple[types.EnvFromSource, ...], path: str, errors: Errors) -> None:
    for index, source in enumerate(sources):
        place = f"{path}[{index}]"
        if source.prefix:
            errors.check(f"{place}.prefix", names.env_name_error(source.prefix))
        check_one_of({"configMapRef": source.config_map_ref, "secretRef": source.secret_ref}, place, errors)
        for name, reference in (("configMapRef", source.config_map_ref), ("secretRef", source.secret_ref)):
            if reference is not None:
                errors.check(
                    f"{place}.{name}.name",
                    names.dns_subdomain_error(reference.name) if reference.name else "required",
                )


def check_field(selector: types.ObjectFieldSelector, path: str, allowed: Collection[str], errors: Errors) -> None:
    if selector.api_version not in {"", "v1"}:
        errors.add(f"{path}.apiVersion", f'expected "v1", got "{selector.api_version}"')
    place = f"{path}.fieldPath"
    keyed = subscript(selector.field_path)
    if not selector.field_path:
        errors.add(place, "required")
    elif keyed is not None:
        errors.check(place, names.label_key_error(keyed[1].lower() if keyed[0] == "metadata.annotations" else keyed[1]))
    elif selector.field_path not in allowed:
        listed = ", ".join(allowed)
        errors.add(
            place,
            f"expected one of {listed}, metadata.labels['KEY'] and metadata.annotations['KEY'], "
            f'got "{selector.field_path}"',
        )


def check_resource_field(
    selector: types.ResourceFieldSelector, path: str, errors: Errors, *, needs_container: bool = False
) -> None:
    if needs_container and not selector.container_name:
        errors.add(f"{path}.containerName", "required")
    if not selector.resource:
        errors.add(f"{path}.resource", "required")
    elif selector.resource not in RESOURCES:
        errors.add(f"{path}.resource", f'expected one of {", ".join(RESOURCES)}, got "{selector.resource}"')
    elif selector.divisor not in {"", "0"}:
        divisors = _DIVISORS[selector.resource.partition(".")[2]]
        if selector.divisor not in divisors:
            errors.add(f"{path}.divisor", f'expected one of {", ".join(divisors)}, got "{selector.divisor}"')
