"""A mirror with our own writes laid over it: a controller never decides on less than it has done.

Owns: the writes of this leader that its mirror has not shown yet. Invariant: a
snapshot is at least as new as every write recorded here, so a slow watch never
makes an extra pod. This takes the place of Kubernetes' expectations, which
count; a revision tells exactly. A `Feed` gives one reader what has changed
since it last asked, so that one change in a large cluster costs one object and
not a pass over all. Shared by the controllers, thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from podlane.api.meta import namespaced_name
from podlane.api.types import Object
from podlane.errors import Fenced

T = TypeVar("T", bound=Object)
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T]):
    """What a view is laid over: a Mirror. `revision` is that of the last change in the snapshot."""

    @property
    def revision(self) -> int: ...

    def snapshot(self) -> dict[str, T]: ...

    def get(self, key: str) -> T | None: ...

    def take_changes(self) -> frozenset[str] | None: ...


def revision_of(obj: Object) -> int:
    return int(obj.metadata.resource_version or 0)


@dataclass(frozen=True, slots=True)
class _Write(Generic[T]):
    """`known` is our object's revision; for `assumed` and `deleted` that of what we replaced."""

    kind: Literal["wrote", "assumed", "deleted"]
    obj: T
    known: int


@dataclass(frozen=True, slots=True)
class Changes(Generic[T_co]):
    """Objects by key as they are now, None for one that is gone; if `complete`, there are no others."""

    objects: Mapping[str, T_co | None]
    complete: bool = False


class View(Generic[T]):
    """Objects by "namespace/name", as the source has them or as we have written them since.

    It is the only one to take the source's changes, until it is closed.
    """

    def __init__(self, source: Source[T]) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._writes: dict[str, _Write[T]] = {}
        self._feeds: list[Feed[T]] = []
        self._newest = 0
        self._recorded = False  # a write since we last looked which are over
        self._closed = False

    def close(self) -> None:
        """Take no more changes: another view of the source does. Feeds of this one raise Fenced from now on."""
        with self._lock:
            self._closed = True

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
        key = namespaced_name(write.obj)
        with self._lock:
            self._writes[key] = write
            self._recorded = True
            self._mark((key,))

    def snapshot(self) -> dict[str, T]:
        """A copy. Raises what the source raises before its first complete list."""
        with self._lock:
            # the revision first: the snapshot may be newer than it, never older
            revision = self._source.revision
            objects = self._source.snapshot()
            self._forget(revision, objects.get)
            self._lay_over(objects)
            return objects

    def get(self, key: str) -> T | None:
        """One object, as of the last look at all or at what changed."""
        with self._lock:
            return self._now(key)

    def feed(self) -> Feed[T]:
        """For one reader; its first `take` has everything."""
        with self._lock:
            self._feeds.append(feed := Feed(self))
            return feed

    def take(self, feed: Feed[T]) -> Changes[T]:
        """What Feed.take gives."""
        with self._lock:
            if self._closed:
                raise Fenced("read what has changed: this leadership is over")
            # in this order: what is read may be newer than the revision and the changes, never older
            revision = self._source.revision
            changed = self._source.take_changes()
            self._mark(changed)
            if changed is None or feed.changed is None:
                objects = self._source.snapshot()
                self._forget(revision, objects.get)
                self._lay_over(objects)
                feed.changed = set()
                return Changes(objects, complete=True)
            if changed or self._recorded or revision != self._newest:
                self._forget(revision, self._source.get)
            keys, feed.changed = feed.changed, set()
            return Changes({key: self._now(key) for key in keys})

    def __len__(self) -> int:
        """How many writes the source had not shown at the last look."""
        return len(self._writes)

    def _now(self, key: str) -> T | None:
        write = self._writes.get(key)
        if write is None:
            return self._source.get(key)
        return None if write.kind == "deleted" else write.obj

    def _lay_over(self, objects: dict[str, T]) -> None:
        for key, write in self._writes.items():
            if write.kind == "deleted":
                objects.pop(key, None)
            else:
                objects[key] = write.obj

    def _forget(self, revision: int, shown: Callable[[str], T | None]) -> None:
        """Drop the writes that the source shows, or that went with the store it showed.

        There may be thousands, and most are younger than the source: it is asked for the others only.
        """
        restored = revision < self._newest  # or exchanged: what we wrote is not in it
        self._newest, self._recorded = revision, False
        over = [
            key
            for key, write in self._writes.items()
            if restored or (write.known <= revision and not _outstanding(write, shown(key)))
        ]
        for key in over:
            del self._writes[key]
        self._mark(over)

    def _mark(self, keys: Iterable[str] | None) -> None:
        """Tell every feed; None: all has changed."""
        for feed in self._feeds:
            if keys is None:
                feed.changed = None
            elif feed.changed is not None:
                feed.changed.update(keys)


class Feed(Generic[T]):
    """What has changed in a view since one reader last asked; `changed` (None: everything) is the view's."""

    def __init__(self, view: View[T]) -> None:
        self._view = view
        self.changed: set[str] | None = None

    def take(self) -> Changes[T]:
        """Raises Fenced once the view is closed, and what the source raises before its first complete list; then
        nothing is lost.
        """
        return self._view.take(self)


def _outstanding(write: _Write[T], shown: T | None) -> bool:
    """Whether a source that is as new as `write.known`, and has this, does not show the write yet."""
    match write.kind:
        case "wrote":
            return False
        case "assumed":
            return shown is not None and revision_of(shown) == write.known
        case "deleted":
            return shown is not None and shown.metadata.uid == write.obj.metadata.uid
