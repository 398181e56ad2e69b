"""Kubernetes' rules for volumes.

Owns: the volumes of a pod; their mounts are a container's. Invariant: as in
validation.py. Source: ValidateVolumes and what it calls in Kubernetes'
pkg/apis/core/validation/validation.go.
"""

from __future__ import annotations

from podlane.api import names, quantity, types
from podlane.api.fields import Errors, check_one_of
from podlane.api.validation_reference import VOLUME_FIELDS, check_field, check_resource_field

_MODE_MAX = 0o777


def check_volumes(volumes: tuple[types.Volume, ...], path: str, errors: Errors) -> None:
    seen: dict[str, int] = {}
    for index, volume in enumerate(volumes):
        place = f"{path}[{index}]"
        if not volume.name:
            errors.add(f"{place}.name", "required")
        else:
            errors.check(f"{place}.name", names.dns_label_error(volume.name))
            if volume.name in seen:
                errors.add(f"{place}.name", f'duplicate name "{volume.name}", also of volumes[{seen[volume.name]}]')
            seen.setdefault(volume.name, index)
        _check_source(volume, place, errors)


def _check_source(volume: types.Volume, path: str, errors: Errors) -> None:
    sources = {
        "emptyDir": volume.empty_dir,
        "hostPath": volume.host_path,
        "configMap": volume.config_map,
        "secret": volume.secret,
        "downwardAPI": volume.downward_api,
    }
    given = [name for name, source in sources.items() if source is not None]
    if len(given) > 1:
        errors.add(path, f"expected exactly one source, got {' and '.join(given)}")
    if volume.empty_dir is not None and volume.empty_dir.size_limit:
        errors.check(f"{path}.emptyDir.sizeLimit", _size_error(volume.empty_dir.size_limit))
    if volume.host_path is not None:
        place = f"{path}.hostPath.path"
        if not volume.host_path.path:
            errors.add(place, "required")
        elif not volume.host_path.path.startswith("/") or ".." in volume.host_path.path.split("/"):
            errors.add(place, f'expected an absolute path without "..", got "{volume.host_path.path}"')
    if volume.config_map is not None:
        _check_files(volume.config_map, volume.config_map.name, "name", f"{path}.configMap", errors)
    if volume.secret is not None:
        _check_files(volume.secret, volume.secret.secret_name, "secretName", f"{path}.secret", errors)
    if volume.downward_api is not None:
        _check_downward(volume.downward_api, f"{path}.downwardAPI", errors)


def _check_files(
    source: types.ConfigMapVolumeSource | types.SecretVolumeSource, name: str, field: str, path: str, errors: Errors
) -> None:
    if not name:
        errors.add(f"{path}.{field}", "required")
    errors.check(f"{path}.defaultMode", _mode_error(source.default_mode))
    for index, item in enumerate(source.items):
        place = f"{path}.items[{index}]"
        if not item.key:
            errors.add(f"{place}.key", "required")
        _check_path(item.path, f"{place}.path", errors)
        if item.mode is not None:
            errors.check(f"{place}.mode", _mode_error(item.mode))


def _check_downward(source: types.DownwardAPIVolumeSource, path: str, errors: Errors) -> None:
    errors.check(f"{path}.defaultMode", _mode_error(source.default_mode))
    for index, item in enumerate(source.items):
        place = f"{path}.items[{index}]"
        _check_path(item.path, f"{place}.path", errors)
        check_one_of({"fieldRef": item.field_ref, "resourceFieldRef": item.resource_field_ref}, place, errors)
        if item.field_ref is not None:
            check_field(item.field_ref, f"{place}.fieldRef", VOLUME_FIELDS, errors)
        if item.resource_field_ref is not None:
            check_resource_field(item.resource_field_ref, f"{place}.resourceFieldRef", errors, needs_container=True)
        if item.mode is not None:
            errors.check(f"{place}.mode", _mode_error(item.mode))


def _check_path(text: str, path: str, errors: Errors) -> None:
    if not text:
        errors.add(path, "required")
    elif text.startswith(".."):
        errors.add(path, f'expected a path that does not begin with "..", got "{text}"')
    else:
        errors.check(path, names.descending_path_error(text))


def _mode_error(mode: int) -> str | None:
    return None if 0 <= mode <= _MODE_MAX else f"expected a mode 0 to 0777 (511), got {mode}"


def _size_error(text: str) -> str | None:
    try:
        return None if quantity.parse(text) >= 0 else f"expected a quantity ≥ 0, got {text}"
    except ValueError as error:
        return str(error)
