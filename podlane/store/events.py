"""Events: what a daemon did to an object and why, for `podlane events` and `describe`.

Owns: writing them. Invariant: an event never costs a daemon anything: `event`
does not block, does not raise, and what cannot be written soon is dropped and
counted. The same event again within its lifetime is one object with a higher
count. Those that wait are written in one transaction, for they come in bursts.
Source: client-go's EventRecorder and its correlator; one etcd lease for the
events of several minutes, as kube-apiserver's lease manager does it, for a
lease for each would be more work for etcd than the events.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from podlane.api.codec import encode
from podlane.api.defaults import DEFAULT_NAMESPACE
from podlane.api.meta import new_uid, reference_to, utcnow_from
from podlane.api.types import Event, EventSource, Object, ObjectMeta, ObjectReference
from podlane.errors import PodlaneError
from podlane.runtime import metrics
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from podlane.store.interface import LeaseNotFound, Put, Store
from podlane.store.keys import event_report_key
from podlane.store.registry import Registry
from podlane.store.rules import key_of
from podlane.store.writes import Write, Written, commit_all

LIFETIME = 3600  # seconds an event is kept after it last happened
SHARED = 300  # seconds for which new events share a lease
BACKLOG = 1000  # events waiting to be written
AT_ONCE = 100  # events written together
REMEMBERED = 4096  # different events whose repeats are counted
NAME_LIMIT = 200  # characters of the object's name in the event's name

_EVENTS = metrics.counter("podlane_events_total", "Events by result: written, dropped.", ["result"])


@dataclass(frozen=True, slots=True)
class _Happening:
    about: ObjectReference
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


class EventLease:
    """One etcd lease for the events of several minutes. Not thread-safe."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._id = 0
        self._made = 0.0

    def current(self) -> int:
        now = self._clock.monotonic()
        if not self._id or now >= self._made + SHARED:
            self._id = self._store.grant(LIFETIME + SHARED)
            self._made = now
        return self._id

    def lost(self) -> None:
        """The store does not know it any more."""
        self._id = 0


class EventRecorder:
    """Thread-safe. `component` and `host` say who saw it; `close` when the daemon ends.

    A thread of its own writes, from the first event on; unless `threaded`, whoever calls `write_waiting` does.
    """

    def __init__(
        self,
        registry: Registry,
        component: str,
        host: str = "",
        clock: Clock | None = None,
        *,
        threaded: bool = True,
        key: Callable[[Event], str] = key_of,
    ) -> None:
        self._registry = registry
        self._key = key
        self._source = EventSource(component=component, host=host)
        self._clock = clock or SystemClock()
        self._queue: queue.Queue[tuple[_Happening, datetime] | None] = queue.Queue(BACKLOG)
        self._known: OrderedDict[_Happening, Event] = OrderedDict()
        self._lease = EventLease(registry.store, self._clock)
        self._threaded = threaded
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._log = get_logger("events")

    @classmethod
    def of_node(
        cls, registry: Registry, component: str, node: str, clock: Clock, *, threaded: bool = True
    ) -> EventRecorder:
        """For a daemon of a node: what it may write are reports of events, which the leader carries over."""

        def key(event: Event) -> str:
            return event_report_key(node, component, event.metadata.namespace, event.metadata.name)

        return cls(registry, component, node, clock, threaded=threaded, key=key)

    def event(
        self,
        about: Object | ObjectReference,
        type: Literal["Normal", "Warning"],  # noqa: A002 - the field's name
        reason: str,
        message: str,
    ) -> None:
        """Record that `reason` (CamelCase) happened to an object; `message` is for people."""
        reference = about if isinstance(about, ObjectReference) else reference_to(about)
        happening = _Happening(reference, type, reason, message)
        try:
            self._queue.put_nowait((happening, utcnow_from(self._clock.now())))
        except queue.Full:
            _EVENTS.labels("dropped").inc()
            return
        with self._lock:
            if self._threaded and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for up to `timeout` seconds."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return  # the store is away: they would not be written anyway
        if self._thread is not None:
            self._thread.join(timeout)

    def write_waiting(self, *, wait: bool = False) -> bool:
        """Write the events that wait, many to a transaction, or with `wait` the next there are; False once closed."""
        items = self._take(wait)
        happened = [item for item in items if item is not None]
        try:
            written = self._write(happened)
        except PodlaneError as error:
            written = 0
            self._log.debug("events dropped", events=len(happened), error=str(error))
        _EVENTS.labels("written").inc(written)
        _EVENTS.labels("dropped").inc(len(happened) - written)
        return None not in items

    def _take(self, wait: bool) -> list[tuple[_Happening, datetime] | None]:
        items: list[tuple[_Happening, datetime] | None] = []
        try:
            items.append(self._queue.get(block=wait))
            while items[-1] is not None and len(items) < AT_ONCE:
                items.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        return items

    def _run(self) -> None:
        while self.write_waiting(wait=True):
            pass

    def _write(self, items: Sequence[tuple[_Happening, datetime]]) -> int:
        """Returns how many of the happenings are written now."""
        events: dict[_Happening, Event] = {}
        for happening, when in items:
            events[happening] = self._counted(happening, when, events.get(happening) or self._known.get(happening))
        if not events:
            return 0
        try:
            done = self._commit(list(events.values()))
        except LeaseNotFound:
            self._lease.lost()
            done = self._commit(list(events.values()))
        for (happening, event), is_done in zip(events.items(), done, strict=True):
            if is_done:
                self._known[happening] = event
                self._known.move_to_end(happening)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        written = {happening for happening, is_done in zip(events, done, strict=True) if is_done}
        return sum(happening in written for happening, _ in items)

    def _commit(self, events: Sequence[Event]) -> list[bool]:
        lease = self._lease.current()
        writes = [Write((), (Put(self._key(event), encode(event), lease),)) for event in events]
        outcomes = commit_all(self._registry.store, writes, self._registry.fence)
        return [isinstance(outcome, Written) for outcome in outcomes]

    def _counted(self, happening: _Happening, when: datetime, known: Event | None) -> Event:
        if known is not None and known.last_timestamp and (when - known.last_timestamp).total_seconds() < LIFETIME:
            return msgspec.structs.replace(known, count=known.count + 1, last_timestamp=when)
        about = happening.about
        uid = new_uid()
        metadata = ObjectMeta(
            name=f"{about.name[:NAME_LIMIT]}.{uid.replace('-', '')[:16]}",
            namespace=about.namespace or DEFAULT_NAMESPACE,
            uid=uid,
            creation_timestamp=when,
        )
        return Event(
            metadata=metadata,
            involved_object=about,
            type=happening.type,
            reason=happening.reason,
            message=happening.message,
            source=self._source,
            first_timestamp=when,
            last_timestamp=when,
        )
