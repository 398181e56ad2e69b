"""Keys that are no objects, as they change, for the loops of the leader that act on them.

Owns: which keys each loop has yet to look at. A View (view.py) does the same for objects, with
our own writes laid over them; here nothing is ever written over. Thread-safe. It serves one
leadership: once closed, another takes the mirror's changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from podlane.errors import Fenced
from scheduler.view import Changes

T = TypeVar("T")


class Source(Protocol[T]):
    """A Mirror, as far as it is used here."""

    def snapshot(self) -> dict[str, T]: ...

    def get(self, key: str) -> T | None: ...

    def take_changes(self) -> frozenset[str] | None: ...


class Inbox(Generic[T]):
    def __init__(self, source: Source[T]) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._slots: list[Slot[T]] = []
        self._closed = False

    def close(self) -> None:
        """Take no more changes: slots of this inbox raise Fenced from now on."""
        with self._lock:
            self._closed = True

    def slot(self, wants: Callable[[str], bool] = lambda _key: True) -> Slot[T]:
        """For one reader of the keys it wants; its first `take` has everything."""
        with self._lock:
            self._slots.append(slot := Slot(self, wants))
            return slot

    def get(self, key: str) -> T | None:
        return self._source.get(key)

    def take(self, slot: Slot[T]) -> Changes[T]:
        """What Slot.take gives."""
        with self._lock:
            if self._closed:
                raise Fenced("read what has changed: this leadership is over")
            changed = self._source.take_changes()  # before what has changed is read, never after
            for each in self._slots:
                if changed is None:
                    each.changed = None
                elif each.changed is not None:
                    each.changed.update(filter(each.wants, changed))
            keys, slot.changed = slot.changed, set()
            if keys is None:
                found = self._source.snapshot()
                return Changes({key: item for key, item in found.items() if slot.wants(key)}, complete=True)
            return Changes({key: self._source.get(key) for key in keys})


class Slot(Generic[T]):
    """What one reader wants and has changed since it last asked; `changed` (None: everything) is the inbox's."""

    def __init__(self, inbox: Inbox[T], wants: Callable[[str], bool]) -> None:
        self._inbox = inbox
        self.wants = wants
        self.changed: set[str] | None = None

    def take(self) -> Changes[T]:
        """Items by key, None for one that is gone. Raises Fenced once the inbox is closed."""
        return self._inbox.take(self)

    def get(self, key: str) -> T | None:
        """One as it is now."""
        return self._inbox.get(key)
