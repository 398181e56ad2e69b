"""What writing an object means: the rules, without the writing.

Owns: how creation, change and removal of an object become one conditional
write each, and what a change may not change. Pure: no store, no clock.
Invariants: see registry.py. Source: Kubernetes' registry strategies
(pkg/registry/core/*/strategy.go).
"""

from __future__ import annotations

from typing import TypeVar, cast

import msgspec

from podlane.api.codec import encode
from podlane.api.defaults import service_spec
from podlane.api.fields import Errors
from podlane.api.meta import short_name
from podlane.api.service_update import carry_over
from podlane.api.types import ConfigMap, Event, Lease, Object, Pod, PriorityClass, Secret, Service
from podlane.api.validation_config import check_config_map_update, check_secret_update
from podlane.api.validation_policy import check_priority_class_update
from podlane.api.validation_service_update import check_service_update
from podlane.errors import Conflict, FieldError, Invalid, UsageError
from podlane.store import keys
from podlane.store.claims import returning, taking
from podlane.store.deletion import check_finalizers
from podlane.store.interface import Compare, Delete, Put
from podlane.store.writes import Write

O = TypeVar("O", bound=Object)  # noqa: E741 - an object


def key_of(obj: Object) -> str:
    """Its key in the store."""
    return keys.key_for(type(obj), obj.metadata.namespace, obj.metadata.name)


def named(obj: O, namespace: str, name: str) -> O:
    metadata = msgspec.structs.replace(obj.metadata, namespace=namespace, name=name)
    return msgspec.structs.replace(obj, metadata=metadata)


def at_revision(obj: O, revision: int) -> O:
    """The object as a reader of that revision sees it."""
    metadata = msgspec.structs.replace(obj.metadata, resource_version=str(revision))
    return msgspec.structs.replace(obj, metadata=metadata)


def creation(new: Object, lease: int = 0) -> Write:
    """Write it if nothing has its key, nor its addresses and node ports."""
    compare, ops = taking(None, new)
    return Write((Compare.absent(key_of(new)), *compare), (*_puts(new, lease), *ops))


def change(old: Object, new: Object) -> Write:
    """Write it if `old` is still as it was read, and nobody has what it takes anew."""
    compare, ops = taking(old, new)
    return Write((unchanged(old), *compare), (*_puts(new), *ops))


def removal(old: Object) -> Write:
    """Remove it, and what goes with it, if it is still as it was read."""
    ops = [Delete(key_of(old))]
    if isinstance(old, Pod) and old.spec.node_name:
        ops += [Delete(_binding_key(old)), Delete(_report_key(old))]
    ops += returning(old)
    return Write((unchanged(old),), tuple(ops))


def replacement(old: O, new: O) -> O:
    """What may be written over `old`. Raises Conflict (another uid), Invalid (an immutable field), UsageError."""
    if isinstance(old, Lease | Event):
        raise UsageError(f"update {short_name(old)}: it belongs to an etcd lease, which only its writer knows")
    was, wanted = old.metadata, new.metadata
    if wanted.uid not in {"", was.uid}:
        raise Conflict(f"update {short_name(old)}: its uid is {was.uid}, not {wanted.uid}")
    check_finalizers(old, new)
    if isinstance(old, Service) and isinstance(new, Service):
        new = cast(O, _service_replacement(old, new))
    _check_fixed_fields(old, new)
    if isinstance(old, Pod) and isinstance(new, Pod) and old.spec.node_name not in {"", new.spec.node_name}:
        raise _immutable(old, "spec.nodeName", old.spec.node_name, new.spec.node_name)
    ends, grace = wanted.deletion_timestamp, wanted.deletion_grace_period_seconds
    if ends is None:  # a deletion cannot be taken back
        ends, grace = was.deletion_timestamp, was.deletion_grace_period_seconds
    metadata = msgspec.structs.replace(
        wanted,
        namespace=was.namespace,
        uid=was.uid,
        resource_version=was.resource_version,
        creation_timestamp=was.creation_timestamp,
        generation=was.generation + (getattr(old, "spec", None) != getattr(new, "spec", None)),
        deletion_timestamp=ends,
        deletion_grace_period_seconds=grace,
    )
    return msgspec.structs.replace(new, kind=old.kind, api_version=old.api_version, metadata=metadata)


def _check_fixed_fields(old: Object, new: Object) -> None:
    errors = Errors()
    match old, new:
        case ConfigMap(), ConfigMap():
            check_config_map_update(old, new, errors)
        case Secret(), Secret():
            check_secret_update(old, new, errors)
        case PriorityClass(), PriorityClass():
            check_priority_class_update(old, new, errors)
        case _:
            return
    if errors.found:
        raise Invalid(short_name(old), errors.found)


def _service_replacement(old: Service, new: Service) -> Service:
    completed = carry_over(old, msgspec.structs.replace(new, spec=service_spec(new.spec)))
    errors = Errors()
    check_service_update(old, completed, errors)
    if errors.found:
        raise Invalid(short_name(old), errors.found)
    return completed


def _immutable(obj: Object, field: str, was: str, wanted: str) -> Invalid:
    return Invalid(short_name(obj), [FieldError(field, f'cannot be changed: it is "{was}", got "{wanted}"')])


def unchanged(old: Object) -> Compare:
    return Compare.modified_at(key_of(old), int(old.metadata.resource_version))


def _puts(new: Object, lease: int = 0) -> tuple[Put, ...]:
    value = encode(new)
    put = Put(key_of(new), value, lease)
    if isinstance(new, Pod) and new.spec.node_name:
        return put, Put(_binding_key(new), value)
    return (put,)


def _binding_key(pod: Pod) -> str:
    return keys.binding_key(pod.spec.node_name, pod.metadata.namespace, pod.metadata.name)


def _report_key(pod: Pod) -> str:
    return keys.pod_report_key(pod.spec.node_name, pod.metadata.namespace, pod.metadata.name)
