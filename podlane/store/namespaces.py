"""Nothing is made in a namespace that is not there or that ends.

Owns: what a creation rests on beside its own key. Invariant: it is compared in
the same transaction, so that once a namespace is marked as terminating nothing
more comes into it, and what is listed then is all there is to delete. The
namespaces that are always there are not looked for. Source: Kubernetes'
NamespaceLifecycle admission (plugin/pkg/admission/namespace/lifecycle).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from podlane.api.codec import decode
from podlane.api.meta import short_name
from podlane.api.types import NODE_LEASE_NAMESPACE, Event, Lease, Namespace, Object
from podlane.errors import NamespaceTerminating, NotFound
from podlane.store import keys
from podlane.store.interface import Compare

if TYPE_CHECKING:
    from podlane.store.registry import Registry

ALWAYS_THERE = frozenset({"default", NODE_LEASE_NAMESPACE})


class Admission:
    """Remembers the namespaces it has looked up: make one for each attempt."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[str, Namespace | None] = {}

    def compares(self, new: Object) -> tuple[Compare, ...]:
        """What must hold when it is created. Raises NotFound, NamespaceTerminating, StoreUnavailable."""
        name = new.metadata.namespace
        if not type(new).NAMESPACED or name in ALWAYS_THERE or isinstance(new, Event | Lease):
            return ()
        if name not in self._known:
            kv = self._registry.store.get(keys.key_for(Namespace, "", name))
            self._known[name] = None if kv is None else decode(Namespace, kv.value, revision=kv.mod_revision)
        namespace = self._known[name]
        if namespace is None:
            raise NotFound(f'create {short_name(new)}: namespace "{name}" not found')
        if namespace.metadata.deletion_timestamp is not None:
            raise NamespaceTerminating(f'create {short_name(new)}: namespace "{name}" is being deleted')
        key = keys.key_for(Namespace, "", name)
        return (Compare.modified_at(key, int(namespace.metadata.resource_version)),)
