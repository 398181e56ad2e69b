"""What the cluster's policies make of objects that are about to be created.

Owns: priority classes and the values that a pod gets once, at its creation;
quotas are quota.py's, namespaces namespaces.py's. Invariant: policies are read
once for all objects of a batch, in one transaction, and only if a pod is among
them. Source: Kubernetes' admission plugins Priority and PodPriority
(plugin/pkg/admission/priority).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, cast

from msgspec.structs import replace

from podlane.api.codec import DecodeError, decode
from podlane.api.meta import resource_of, short_name
from podlane.api.podcreation import completed
from podlane.api.podresources import QOSClass, qos_class
from podlane.api.priority import prioritized
from podlane.api.types import Object, Pod, PodSpec, PriorityClass, ResourceQuota
from podlane.errors import FieldError, Forbidden, Invalid
from podlane.runtime.log import get_logger
from podlane.store import keys
from podlane.store.interface import Get, KeyValue
from podlane.store.writes import MAX_OPS

if TYPE_CHECKING:
    from podlane.store.registry import Registry

O = TypeVar("O", bound=Object)  # noqa: E741 - an object

_log = get_logger("admission")


@dataclass(slots=True)
class Policies:
    """As of one moment; quotas by namespace, those only that have some."""

    classes: tuple[PriorityClass, ...] = ()
    quotas: dict[str, tuple[ResourceQuota, ...]] = field(default_factory=dict)
    _qos: dict[int, QOSClass] = field(default_factory=dict)

    def admitted(self, new: O) -> O:
        """The object as it is to be stored. Raises Invalid (no such priority class), Forbidden."""
        if isinstance(new, Pod):
            return cast(O, completed(self._prioritized(new), self._qos_of(new.spec)))
        return new

    def _prioritized(self, pod: Pod) -> Pod:
        spec = prioritized(pod.spec, self.classes)
        if isinstance(spec, FieldError):
            raise Invalid(f"create {asked_name(pod)}", [spec])
        return replace(pod, spec=spec)

    def _qos_of(self, spec: PodSpec) -> QOSClass:
        # pods of one template share its containers: the sums are made once for all of them
        key = id(spec.containers)
        if key not in self._qos:
            self._qos[key] = qos_class(spec)
        return self._qos[key]


def asked_name(obj: Object) -> str:
    """`pod/web-*` where a name was made up: the next try has another, and the same refusal should be the same text."""
    generated = obj.metadata.generate_name
    return f"{resource_of(type(obj)).singular}/{generated}*" if generated else short_name(obj)


def read(registry: Registry, objs: Sequence[Object]) -> Policies:
    """What bears on the creation of these. Raises StoreUnavailable."""
    namespaces = list(dict.fromkeys(obj.metadata.namespace for obj in objs if isinstance(obj, Pod)))
    policies = Policies()
    for start in range(0, len(namespaces), MAX_OPS):
        part = namespaces[start : start + MAX_OPS]
        wanted = [keys.prefix_for(PriorityClass), *(keys.prefix_for(ResourceQuota, name) for name in part)]
        classes, *quotas = registry.store.txn([], [Get(prefix, prefix=True) for prefix in wanted]).reads
        policies.classes = _readable(PriorityClass, classes)
        for name, found in zip(part, quotas, strict=True):
            if readable := _readable(ResourceQuota, found):
                policies.quotas[name] = readable
    return policies


def _readable(cls: type[O], found: Sequence[KeyValue]) -> tuple[O, ...]:
    """Without those that cannot be read: one of them must not keep all pods from being made."""
    objs: list[O] = []
    for kv in found:
        try:
            objs.append(decode(cls, kv.value, revision=kv.mod_revision))
        except DecodeError as error:
            _log.warning("left out of admission", key=kv.key, error=str(error))
    return tuple(objs)


def check_default_class(registry: Registry, new: Object) -> None:
    """Raises Forbidden where another priority class is the default already."""
    if not isinstance(new, PriorityClass) or not new.global_default:
        return
    for known in registry.list(PriorityClass).items:
        if known.global_default and known.metadata.name != new.metadata.name:
            raise Forbidden(f"store {short_name(new)}: {short_name(known)} is the default already (globalDefault)")
