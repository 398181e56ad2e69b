"""What may not change in an object that exists.

Owns: the comparison of an old and a new object field by field. Invariant: it
assumes that what the update left unsaid was carried over (`defaults.inherit`),
so a field that differs was changed on purpose. Source: the Validate…Update
functions of Kubernetes' pkg/apis/core/validation/validation.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from podlane.api import types
from podlane.api.fields import Errors, join
from podlane.api.validation_config import check_config_map_update, check_secret_update
from podlane.api.validation_policy import check_priority_class_update, check_quota_update
from podlane.api.validation_service_update import check_service_update
from podlane.errors import FieldError

_POD_MUTABLE = re.compile(r"spec\.(initC|c)ontainers\[\d+\]\.image|spec\.activeDeadlineSeconds|spec\.tolerations.*")
_POD_RULE = (
    "immutable: of a pod's spec only containers[*].image, initContainers[*].image, activeDeadlineSeconds and "
    "tolerations may change; delete the pod and create it anew"
)

_FIXED_METADATA = {
    "name": "name",
    "namespace": "namespace",
    "uid": "uid",
    "creation_timestamp": "creationTimestamp",
    "deletion_timestamp": "deletionTimestamp",
}


def validate_update(old: types.Object, new: types.Object) -> list[FieldError]:
    """Every immutable field that the update would change; say nothing of whether `new` is valid."""
    errors = Errors()
    if type(old) is not type(new):
        errors.add("kind", f"immutable: it is {type(old).KIND}, got {type(new).KIND}")
        return errors.found
    for name, field in _FIXED_METADATA.items():
        before, after = getattr(old.metadata, name), getattr(new.metadata, name)
        if before != after:
            errors.add(f"metadata.{field}", f"immutable: it is {_text(before)}, got {_text(after)}")
    match old, new:
        case types.Pod(), types.Pod():
            _check_pod(old, new, errors)
        case types.Service(), types.Service():
            check_service_update(old, new, errors)
        case types.EndpointSlice(), types.EndpointSlice():
            _check_fixed("addressType", old.address_type, new.address_type, errors)
        case types.Node(), types.Node():
            _check_fixed("spec.podCIDR", old.spec.pod_cidr, new.spec.pod_cidr, errors)
        case types.ConfigMap(), types.ConfigMap():
            check_config_map_update(old, new, errors)
        case types.Secret(), types.Secret():
            check_secret_update(old, new, errors)
        case types.ResourceQuota(), types.ResourceQuota():
            check_quota_update(old, new, errors)
        case types.PriorityClass(), types.PriorityClass():
            check_priority_class_update(old, new, errors)
        case _:
            pass  # nothing of the other kinds is fixed
    return errors.found


def changed_fields(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """The paths of the fields that differ, as deep as they can be told apart."""
    if old == new:
        return
    if isinstance(old, types.Struct) and type(old) is type(new):
        for field in msgspec.structs.fields(old):
            yield from changed_fields(getattr(old, field.name), getattr(new, field.name), join(path, field.encode_name))
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from changed_fields(before, after, f"{path}[{index}]")
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                yield f"{path}[{key}]"
    else:
        yield path


def _check_pod(old: types.Pod, new: types.Pod, errors: Errors) -> None:
    for field, was, wanted in (
        ("initContainers", old.spec.init_containers, new.spec.init_containers),
        ("containers", old.spec.containers, new.spec.containers),
    ):
        if len(was) != len(wanted):
            errors.add(
                f"spec.{field}", f"immutable: a pod keeps its number of containers, {len(was)}, got {len(wanted)}"
            )
            return
    _check_deadline(old.spec.active_deadline_seconds, new.spec.active_deadline_seconds, errors)
    for toleration in old.spec.tolerations:
        # Kubernetes lets the time of a toleration change
        if not any(_but_for_time(toleration) == _but_for_time(kept) for kept in new.spec.tolerations):
            errors.add("spec.tolerations", "a toleration may be added, and none taken away or changed but for its time")
            break
    for path in changed_fields(old.spec, new.spec, "spec"):
        if not _POD_MUTABLE.fullmatch(path):
            errors.add(path, _POD_RULE)


def _check_deadline(was: int | None, wanted: int | None, errors: Errors) -> None:
    if was is not None and (wanted is None or wanted > was):
        errors.add(
            "spec.activeDeadlineSeconds", f"expected an integer 1 to {was}: it may only get less, got {_text(wanted)}"
        )


def _but_for_time(toleration: types.Toleration) -> types.Toleration:
    return msgspec.structs.replace(toleration, toleration_seconds=None)


def _check_fixed(path: str, old: str, new: str, errors: Errors) -> None:
    """A field that may be set once."""
    if old not in {"", new}:
        errors.add(path, f"immutable: it is {_text(old)}, got {_text(new)}")


def _text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else "nothing" if value is None else str(value)
