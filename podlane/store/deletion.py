"""What deleting an object means: whether it goes at once, or what keeps it.

Owns: finalizers, and the end that is set for an object that must wait. Pure.
Invariants: an end, once set, only comes nearer and is never taken back; an
object goes when its end is set, its grace is over and no finalizer is left.
Source: Kubernetes' registry/rest/delete.go and generic/registry/store.go
(BeforeDelete, deletionFinalizersForGarbageCollection).
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeVar, cast

from msgspec.structs import replace

from podlane.api.defaults import DEFAULT_NAMESPACE
from podlane.api.meta import is_pod_finished, short_name
from podlane.api.types import Namespace, Object, Pod
from podlane.errors import FieldError, Forbidden, Invalid

O = TypeVar("O", bound=Object)  # noqa: E741 - an object

Propagation = Literal["Background", "Foreground", "Orphan"]
"""What becomes of an object's dependents: they go after it, before it, or stay."""

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
NAMESPACE_FINALIZER = "kubernetes"


def grace_of(obj: Object, asked: int | None) -> int:
    """Seconds a deletion leaves a pod's agent; 0: nobody need be asked, it can go at once."""
    if not isinstance(obj, Pod) or not obj.spec.node_name or is_pod_finished(obj):
        return 0
    return max(0, obj.spec.termination_grace_period_seconds if asked is None else asked)


def remainder(old: O, ends: datetime, grace: int, propagation: Propagation | None = None) -> O | None:
    """The object as it is left after its deletion, to end at `ends`; None when it goes at once."""
    if isinstance(old, Namespace) and old.metadata.name == DEFAULT_NAMESPACE:
        raise Forbidden(f"delete {short_name(old)}: it is always there")
    finalizers = _finalizers(old.metadata.finalizers, propagation)
    if not grace and not finalizers and not _keeps_namespace(old):
        return None
    known, known_grace = old.metadata.deletion_timestamp, old.metadata.deletion_grace_period_seconds or 0
    if known is not None:
        ends, grace = min(known, ends), min(known_grace, grace)
    metadata = replace(
        old.metadata,
        deletion_timestamp=ends,
        deletion_grace_period_seconds=grace,
        finalizers=finalizers,
    )
    marked = replace(old, metadata=metadata)
    if isinstance(marked, Namespace):
        marked = cast(O, replace(marked, status=replace(marked.status, phase="Terminating")))
    return marked


def is_over(obj: Object) -> bool:
    """Its end is set and nothing keeps it any more."""
    meta = obj.metadata
    return (
        meta.deletion_timestamp is not None
        and not meta.deletion_grace_period_seconds
        and not meta.finalizers
        and not _keeps_namespace(obj)
    )


def check_finalizers(old: Object, new: Object) -> None:
    """Raises Invalid: what is being deleted gets no further finalizer."""
    added = [name for name in new.metadata.finalizers if name not in old.metadata.finalizers]
    if old.metadata.deletion_timestamp is not None and added:
        error = FieldError("metadata.finalizers", f"none can be added while it is being deleted, got {added[0]}")
        raise Invalid(short_name(old), [error])


def _finalizers(known: tuple[str, ...], propagation: Propagation | None) -> tuple[str, ...]:
    if propagation is None:
        return known
    kept = tuple(name for name in known if name not in {FOREGROUND, ORPHAN})
    added = {"Foreground": (FOREGROUND,), "Orphan": (ORPHAN,), "Background": ()}[propagation]
    return (*kept, *added)


def _keeps_namespace(obj: Object) -> bool:
    return isinstance(obj, Namespace) and bool(obj.spec.finalizers)
