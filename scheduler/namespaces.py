"""Namespaces that end: first all that is in them, then they themselves.

Owns: the decision for one namespace from what the store has in it. Invariants:
it is read after the namespace was marked, since when nothing can be made in it
(podlane.store.namespaces), so an empty list is final; only "kubernetes" is
taken from its finalizers, others' stay. Source: Kubernetes'
pkg/controller/namespace/deletion/namespaced_resources_deleter.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from podlane.api.meta import get_condition, namespaced_name, resource_of, set_condition, utcnow_from
from podlane.api.types import Condition, Namespace, Object
from podlane.store.deletion import NAMESPACE_FINALIZER


@dataclass(frozen=True, slots=True)
class Plan:
    """`delete` are the objects that nobody has deleted yet; `update` is the namespace as it should become."""

    delete: tuple[Object, ...] = ()
    update: Namespace | None = None

    def __str__(self) -> str:
        lines = [f"delete {resource_of(type(obj)).singular} {namespaced_name(obj)}" for obj in self.delete]
        if self.update is not None:
            name = self.update.metadata.name
            remaining = get_condition(self.update.status.conditions, "NamespaceContentRemaining")
            ended = NAMESPACE_FINALIZER not in self.update.spec.finalizers
            lines.append(f"finalize namespace {name}" if ended or remaining is None else f"note {remaining.message}")
        return "\n".join(lines)


def plan(namespace: Namespace, contents: Mapping[type[Object], Sequence[Object]], now: float) -> Plan:
    """Decide for a namespace that is being deleted. `now` in Unix seconds."""
    delete = tuple(obj for objs in contents.values() for obj in objs if obj.metadata.deletion_timestamp is None)
    if not any(contents.values()):
        spec = replace(namespace.spec, finalizers=_others(namespace.spec.finalizers))
        return Plan(update=replace(namespace, spec=spec) if spec != namespace.spec else None)
    conditions = namespace.status.conditions
    for condition in (_content(contents, now), _finalizers(contents, now)):
        conditions = set_condition(conditions, condition)
    if conditions == namespace.status.conditions:
        return Plan(delete)
    return Plan(delete, replace(namespace, status=replace(namespace.status, conditions=conditions)))


def _others(finalizers: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in finalizers if name != NAMESPACE_FINALIZER)


def _content(contents: Mapping[type[Object], Sequence[Object]], now: float) -> Condition:
    counts = [f"{resource_of(cls).plural} ({len(objs)})" for cls, objs in contents.items() if objs]
    return Condition(
        type="NamespaceContentRemaining",
        status="True",
        reason="SomeResourcesRemain",
        message=f"some resources remain: {', '.join(counts)}",
        last_transition_time=utcnow_from(now),
    )


def _finalizers(contents: Mapping[type[Object], Sequence[Object]], now: float) -> Condition:
    kept = [(name, obj) for objs in contents.values() for obj in objs for name in obj.metadata.finalizers]
    names = sorted({name for name, _ in kept})
    return Condition(
        type="NamespaceFinalizersRemaining",
        status="True" if kept else "False",
        reason="SomeFinalizersRemain" if kept else "ContentHasNoFinalizers",
        message=f"some content has finalizers: {', '.join(names)}" if kept else "all content can go",
        last_transition_time=utcnow_from(now),
    )
