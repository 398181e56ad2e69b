"""What the nodes report, as it comes in, for the loops of the leader that carry it over.

Owns: which reports each of them has yet to look at. Invariant: values are not
read here, for most of what a node says it says again soon, and only what is
looked at need be understood. Thread-safe. The reports of one leadership only:
once closed, another takes the mirror's changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from podlane.errors import Fenced
from podlane.store.interface import KeyValue
from scheduler.view import Changes


class Reports(Protocol):
    """A Mirror of everything below podlane.store.keys.REPORTS, each value as it is stored."""

    def snapshot(self) -> dict[str, KeyValue]: ...

    def get(self, key: str) -> KeyValue | None: ...

    def take_changes(self) -> frozenset[str] | None: ...


class Inbox:
    def __init__(self, source: Reports) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._slots: list[Slot] = []
        self._closed = False

    def close(self) -> None:
        """Take no more changes: slots of this inbox raise Fenced from now on."""
        with self._lock:
            self._closed = True

    def slot(self, *, of_events: bool) -> Slot:
        """For one reader, of events or of all else; its first `take` has everything."""
        with self._lock:
            self._slots.append(slot := Slot(self, lambda key: (key.split("/")[1:2] == ["events"]) == of_events))
            return slot

    def get(self, key: str) -> KeyValue | None:
        return self._source.get(key)

    def take(self, slot: Slot) -> Changes[KeyValue]:
        """What Slot.take gives."""
        with self._lock:
            if self._closed:
                raise Fenced("read what was reported: this leadership is over")
            changed = self._source.take_changes()  # before what has changed is read, never after
            for each in self._slots:
                if changed is None:
                    each.changed = None
                elif each.changed is not None:
                    each.changed.update(filter(each.wants, changed))
            keys, slot.changed = slot.changed, set()
            if keys is None:
                found = self._source.snapshot()
                return Changes({key: kv for key, kv in found.items() if slot.wants(key)}, complete=True)
            return Changes({key: self._source.get(key) for key in keys})


class Slot:
    """The reports of one reader's kind that have changed since it last asked; `changed` (None: all) is the inbox's."""

    def __init__(self, inbox: Inbox, wants: Callable[[str], bool]) -> None:
        self._inbox = inbox
        self.wants = wants
        self.changed: set[str] | None = None

    def take(self) -> Changes[KeyValue]:
        """Reports by key below REPORTS, None for one that is gone. Raises Fenced once the inbox is closed."""
        return self._inbox.take(self)

    def get(self, key: str) -> KeyValue | None:
        """One report as it is now."""
        return self._inbox.get(key)
