"""Objects to bytes and back, and to what `-o json` and `-o yaml` print.

Owns: the form of stored values. Invariants: a stored value never carries a
resourceVersion (it is etcd's mod_revision and would always be one write
behind) and always carries kind and apiVersion; reading is tolerant of fields
this version does not know, for a newer Podlane or another program may have
written them. Source: Kubernetes' storage serialization of v1 JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from podlane.api.types import Object, ServiceSpec, Struct
from podlane.errors import PodlaneError

S = TypeVar("S", bound=Struct)

# Kubernetes' types without `omitempty`: shown also when zero or false
ALWAYS_SHOWN = frozenset({"replicas", "readyReplicas", "ready", "restartCount", "exitCode", "serving", "terminating"})

# defaults of some types of services, which Kubernetes refuses or does not have in the others
_OF_OTHER_TYPES = {
    "ClusterIP": ("allocateLoadBalancerNodePorts",),
    "NodePort": ("allocateLoadBalancerNodePorts",),
    "ExternalName": ("allocateLoadBalancerNodePorts", "internalTrafficPolicy"),
}

_encoder = msgspec.json.Encoder()


class DecodeError(PodlaneError):
    """A stored value is no JSON, or not of the type expected."""


def encode(obj: Struct) -> bytes:
    """Compact JSON for the store: kind and apiVersion filled in, resourceVersion left out."""
    if isinstance(obj, Object):
        metadata = obj.metadata
        if metadata.resource_version:
            metadata = msgspec.structs.replace(metadata, resource_version="")
        if metadata is not obj.metadata or not obj.kind or not obj.api_version:
            obj = msgspec.structs.replace(
                obj, kind=type(obj).KIND, api_version=type(obj).API_VERSION, metadata=metadata
            )
    return _encoder.encode(obj)


def decode(cls: type[S], data: bytes, *, revision: int = 0) -> S:
    """Read a stored value; with a `revision` it becomes metadata.resourceVersion.

    Raises DecodeError, naming the field.
    """
    try:
        obj = _decode(cls, data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"decode {_kind_of(cls)}: {error}") from error
    if not isinstance(obj, Object):
        return obj
    kind = type(obj).KIND
    if obj.kind not in {"", kind}:
        raise DecodeError(f"decode {kind}: the value is a {obj.kind}")
    changes: dict[str, Any] = {}
    if not obj.kind or not obj.api_version:
        changes.update(kind=kind, api_version=type(obj).API_VERSION)
    if revision:
        changes["metadata"] = msgspec.structs.replace(obj.metadata, resource_version=str(revision))
    return msgspec.structs.replace(obj, **changes) if changes else obj


def to_builtins(obj: Struct, *, defaults: bool = True) -> dict[str, Any]:
    """The object as plain dicts and lists with Kubernetes' names, apiVersion and kind first.

    With `defaults` the values a reader would want to see are written out even
    where they equal the default (`protocol: TCP`, `replicas: 1`, `ready:
    false`), as kubectl shows them; what is empty is left out either way.
    """
    result: dict[str, Any] = {}
    if isinstance(obj, Object):
        result["apiVersion"] = obj.api_version or type(obj).API_VERSION
        result["kind"] = obj.kind or type(obj).KIND
    for field in msgspec.structs.fields(obj):
        name = field.encode_name
        if name in result:
            continue
        value = getattr(obj, field.name)
        if isinstance(obj, ServiceSpec) and name in _OF_OTHER_TYPES.get(obj.type, ()) and value == field.default:
            continue
        default = field.default
        if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        if isinstance(value, Struct):
            inner = to_builtins(value, defaults=defaults)
            # an optional struct means something by being there (`running: {}`)
            if inner or default is None or default is msgspec.NODEFAULT:
                result[name] = inner
        elif default is msgspec.NODEFAULT or value != default or (defaults and (value or name in ALWAYS_SHOWN)):
            result[name] = _plain(value, defaults)
    return result


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as metav1.Time: `2026-01-02T03:04:05Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def without_nulls(value: Any) -> Any:
    """A copy in which every key whose value is null is absent: Kubernetes reads the two alike."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def _plain(value: Any, defaults: bool) -> Any:
    if isinstance(value, Struct):
        return to_builtins(value, defaults=defaults)
    if isinstance(value, tuple | list):
        return [_plain(item, defaults) for item in value]
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, dict):
        return dict(value)
    return value


def _decode(cls: type[S], data: bytes) -> S:
    try:
        value: S = _decoders[cls].decode(data)
    except msgspec.ValidationError:
        # Go programs write `"labels": null` for an empty map; rare, so it is the slow path
        value = msgspec.convert(without_nulls(msgspec.json.decode(data)), cls)
    return value


def _types(base: type[Struct]) -> Iterator[type[Struct]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _types(cls)


# msgspec learns a type when it is first needed, and lets other threads have what it has learned before that is
# complete (0.22.0): two that decode two types with a third in common, for the first time and at once, die of
# SIGSEGV. So the thread that imports this makes all types known.
_decoders: dict[type[Struct], msgspec.json.Decoder[Any]] = {cls: msgspec.json.Decoder(cls) for cls in _types(Struct)}


def _kind_of(cls: type[Struct]) -> str:
    return cls.KIND if issubclass(cls, Object) else cls.__name__
