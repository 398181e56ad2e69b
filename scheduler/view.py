"""A mirror with our own writes laid over it: a controller never decides on less than it has done.

Owns: the writes of this leader that its mirror has not shown yet. Invariant: a
snapshot is at least as new as every write recorded here, so a slow watch never
makes an extra pod. This takes the place of Kubernetes' expectations, which
count; a revision tells exactly. Shared by the controllers, thread-safe.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from podlane.api.meta import namespaced_name
from podlane.api.types import Object

T = TypeVar("T", bound=Object)


class Source(Protocol[T]):
    """What a view is laid over: a Mirror. `revision` is that of the last change in the snapshot."""

    @property
    def revision(self) -> int: ...

    def snapshot(self) -> dict[str, T]: ...


def revision_of(obj: Object) -> int:
    return int(obj.metadata.resource_version or 0)


@dataclass(frozen=True, slots=True)
class _Write(Generic[T]):
    """`known` is our object's revision; for `assumed` and `deleted` that of what we replaced."""

    kind: Literal["wrote", "assumed", "deleted"]
    obj: T
    known: int


class View(Generic[T]):
    """Objects by "namespace/name", as the source has them or as we have written them since."""

    def __init__(self, source: Source[T]) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._writes: dict[str, _Write[T]] = {}
        self._newest = 0

    def wrote(self, obj: T) -> None:
        """We stored `obj`, whose resourceVersion is the write's."""
        self._record(_Write("wrote", obj, revision_of(obj)))

    def assumed(self, obj: T) -> None:
        """We replaced the object of this resourceVersion by `obj`, and were not told the new one."""
        self._record(_Write("assumed", obj, revision_of(obj)))

    def deleted(self, obj: T) -> None:
        """We deleted `obj` for good."""
        self._record(_Write("deleted", obj, revision_of(obj)))

    def _record(self, write: _Write[T]) -> None:
        with self._lock:
            self._writes[namespaced_name(write.obj)] = write

    def snapshot(self) -> dict[str, T]:
        """A copy. Raises what the source raises before its first complete list."""
        with self._lock:
            # the revision first: the snapshot may be newer than it, never older
            revision = self._source.revision
            objects = self._source.snapshot()
            if revision < self._newest:
                # the store was restored or exchanged: what we wrote is not in it
                self._writes.clear()
            self._newest = revision
            for key, write in list(self._writes.items()):
                if not _outstanding(write, objects.get(key), revision):
                    del self._writes[key]
                elif write.kind == "deleted":
                    objects.pop(key, None)
                else:
                    objects[key] = write.obj
            return objects

    def __len__(self) -> int:
        """How many writes the source had not shown at the last snapshot."""
        return len(self._writes)


def _outstanding(write: _Write[T], shown: T | None, revision: int) -> bool:
    if revision < write.known:
        return True
    match write.kind:
        case "wrote":
            return False
        case "assumed":
            return shown is not None and revision_of(shown) == write.known
        case "deleted":
            return shown is not None and shown.metadata.uid == write.obj.metadata.uid
