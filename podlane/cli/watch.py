"""`--watch`: objects as they change.

Owns: the threads of the mirrors, and the difference between two looks at them.
Invariant: an object is yielded once when it comes, at every change seen, and
once more, in its last form, when it goes or stops matching the selector. What
changes several times between two looks is yielded once: the last state counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event, Thread
from typing import TYPE_CHECKING

from podlane.api.types import Object
from podlane.cli.query import in_order
from podlane.cli.resources import Target
from podlane.errors import StoreUnavailable
from podlane.store.interface import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from podlane.api.selectors import Selector
    from podlane.cli.session import Session
    from podlane.store.mirror import Mirror

_POLL = 0.5  # seconds after which a look is taken though nothing was announced, to notice `stop`


class _View:
    """One kind's mirror, narrowed to what was asked for."""

    def __init__(self, mirror: Mirror[Object], target: Target, selector: Selector | None) -> None:
        self.mirror = mirror
        self._names = frozenset(target.names)
        self._selector = selector
        self._shown: dict[str, Object] = {}

    def _wanted(self, obj: Object) -> bool:
        if self._names and obj.metadata.name not in self._names:
            return False
        return self._selector is None or self._selector.matches(obj.metadata.labels)

    def take(self) -> list[Object]:
        """What came, changed or went since the last call."""
        changed = self.mirror.take_changes()
        items = self.mirror.snapshot()
        keys = {*items, *self._shown} if changed is None else changed
        result: list[Object] = []
        for key in keys:
            obj, before = items.get(key), self._shown.get(key)
            if obj is not None and self._wanted(obj):
                if obj != before:
                    self._shown[key] = obj
                    result.append(obj)
            elif before is not None:
                result.append(self._shown.pop(key))
        return in_order(result)


def follow(
    session: Session, targets: Sequence[Target], *, namespace: str | None, selector: Selector | None
) -> Iterator[list[Object]]:
    """Batches of objects of one kind: first all there are, then the changes, until `session.stop`
    (at which a last look is taken).

    Raises StoreUnavailable when there is no first complete list by the deadline;
    later the mirrors wait for the store to come back.
    """
    changed, done = Event(), Event()
    views = [
        _View(
            session.registry.mirror(
                target.resource.cls, changed.set, namespace if target.resource.cls.NAMESPACED else None
            ),
            target,
            selector,
        )
        for target in targets
    ]
    threads = [Thread(target=view.mirror.run, args=(done,), daemon=True, name="watch") for view in views]
    for thread in threads:
        thread.start()
    try:
        for view in views:
            if not view.mirror.wait_synced(DEFAULT_TIMEOUT):
                raise StoreUnavailable(f"list objects: no answer from the store within {DEFAULT_TIMEOUT:g} s")
        while True:
            changed.clear()
            for view in views:
                if batch := view.take():
                    yield batch
            if session.stop.is_set():
                return
            changed.wait(_POLL)
    finally:
        done.set()
