"""What `apply` makes of three versions of an object.

Owns: the three-way merge: what the manifest says wins; what the manifest of
last time said and this one does not is removed; what neither says keeps its
live value (a cluster IP, a label someone added). Pure: plain dicts in,
a new dict out. Source: kubectl's three-way strategic merge; the keys by which
list elements are recognised are the API's patchMergeKey tags.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

LAST_APPLIED = "podlane.io/last-applied-configuration"

_MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "hostAliases": ("ip",),
    "ports": ("containerPort", "port"),
    "taints": ("key",),
    "topologySpreadConstraints": ("topologyKey",),
    "volumeMounts": ("mountPath",),
}
"""Lists whose elements are objects with an identity: the first of these fields that they have."""

_EXTENDED = ("clusterIPs", "ipFamilies")
"""Lists to which the registry adds what the policy of a service asks for, behind what the manifest says."""


def merge(live: Any, last: Any, manifest: Any, *, field: str = "") -> Any:
    """The value of one field. `last` is what the previous manifest said, None if nothing."""
    if isinstance(manifest, Mapping):
        return _merge_maps(_mapping(live), _mapping(last), manifest)
    if isinstance(manifest, Sequence) and not isinstance(manifest, str):
        key = _merge_key(field, manifest)
        if key is not None:
            return _merge_lists(_sequence(live), _sequence(last), manifest, key)
        if field in _EXTENDED and last in (None, manifest) and [*_sequence(live)][: len(manifest)] == [*manifest]:
            # the same manifest again does not mean to take away what was added
            return live
    return manifest


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _merge_maps(live: Mapping[str, Any], last: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in live.items() if key in manifest or key not in last}
    for key, value in manifest.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(live.get(key), last.get(key), value, field=key)
    return result


def _merge_key(field: str, items: Sequence[Any]) -> str | None:
    """The field that identifies the elements, if there is one and it is unambiguous."""
    for key in _MERGE_KEYS.get(field, ()):
        identities = [item.get(key) for item in items if isinstance(item, Mapping)]
        if len(identities) == len(items) and None not in identities and len(set(identities)) == len(identities):
            return key
    return None


def _merge_lists(live: Sequence[Any], last: Sequence[Any], manifest: Sequence[Any], key: str) -> list[dict[str, Any]]:
    """The manifest's elements in its order, then those that others added."""
    live_by, last_by = _by(live, key), _by(last, key)
    wanted = _by(manifest, key)
    merged = [
        _merge_maps(live_by.get(identity, {}), last_by.get(identity, {}), item) for identity, item in wanted.items()
    ]
    added = [dict(item) for identity, item in live_by.items() if identity not in wanted and identity not in last_by]
    return merged + added


def _by(items: Sequence[Any], key: str) -> dict[Any, Mapping[str, Any]]:
    return {item[key]: item for item in items if isinstance(item, Mapping) and key in item}


def configuration(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that the annotation remembers: without status and without the annotation."""
    kept = {key: value for key, value in raw.items() if key != "status"}
    metadata = dict(_mapping(kept.get("metadata")))
    annotations = {k: v for k, v in _mapping(metadata.get("annotations")).items() if k != LAST_APPLIED}
    if annotations or "annotations" in metadata:
        metadata["annotations"] = annotations
    return {**kept, "metadata": metadata}


def to_annotation(config: Mapping[str, Any]) -> str:
    """Compact, with sorted keys: the same manifest is always the same text."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def from_annotation(text: str | None) -> dict[str, Any] | None:
    """What was applied last; None when nothing was, or when somebody broke the annotation."""
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The changed fields as `spec.replicas: 4 -> 8`, one a line, in path order."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines: list[str] = []
        for key in sorted({*old, *new}):
            lines += differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return lines
    if isinstance(old, list) and isinstance(new, list) and old and new:
        lines = []
        for i in range(max(len(old), len(new))):
            before = old[i] if i < len(old) else None
            after = new[i] if i < len(new) else None
            lines += differences(before, after, f"{path}[{i}]")
        return lines
    if old == new:
        return []
    return [f"{path}: {_shown(old)} -> {_shown(new)}"]


def _shown(value: Any) -> str:
    if value is None:
        return "(none)"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | list | dict) else str(value)
