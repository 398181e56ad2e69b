"""Events: what a daemon did to an object and why, for `podlane events` and `describe`.

Owns: writing them. Invariant: an event never costs a daemon anything: `event`
does not block, does not raise, and what cannot be written soon is dropped and
counted. The same event again within its lifetime is one object with a higher
count. Source: client-go's EventRecorder and its correlator; one etcd lease for
the events of several minutes, as kube-apiserver's lease manager does it, for a
lease for each would be more work for etcd than the events.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from podlane.api.meta import new_uid, reference_to, utcnow_from
from podlane.api.types import Event, EventSource, Object, ObjectMeta, ObjectReference
from podlane.errors import PodlaneError
from podlane.runtime import metrics
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from podlane.store.interface import LeaseNotFound
from podlane.store.registry import DEFAULT_NAMESPACE, Registry

LIFETIME = 3600  # seconds an event is kept after it last happened
SHARED = 300  # seconds for which new events share a lease
BACKLOG = 1000  # events waiting to be written
REMEMBERED = 4096  # different events whose repeats are counted
NAME_LIMIT = 200  # characters of the object's name in the event's name

_EVENTS = metrics.counter("podlane_events_total", "Events by result: written, dropped.", ["result"])


@dataclass(frozen=True, slots=True)
class _Happening:
    about: ObjectReference
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


class EventRecorder:
    """Thread-safe. `component` and `host` say who saw it; `close` when the daemon ends.

    A thread of its own writes, from the first event on; unless `threaded`, whoever calls `write_one` does.
    """

    def __init__(
        self,
        registry: Registry,
        component: str,
        host: str = "",
        clock: Clock | None = None,
        *,
        threaded: bool = True,
    ) -> None:
        self._registry = registry
        self._source = EventSource(component=component, host=host)
        self._clock = clock or SystemClock()
        self._queue: queue.Queue[tuple[_Happening, datetime] | None] = queue.Queue(BACKLOG)
        self._known: OrderedDict[_Happening, Event] = OrderedDict()
        self._lease = 0
        self._lease_made = 0.0
        self._threaded = threaded
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._log = get_logger("events")

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

    def write_one(self, *, wait: bool = False) -> bool:
        """Write the next event, if there is one or after waiting for it; False once closed."""
        try:
            item = self._queue.get(block=wait)
        except queue.Empty:
            return True
        if item is None:
            return False
        try:
            self._write(*item)
        except PodlaneError as error:
            _EVENTS.labels("dropped").inc()
            self._log.debug("event dropped", reason=item[0].reason, error=str(error))
        else:
            _EVENTS.labels("written").inc()
        return True

    def _run(self) -> None:
        while self.write_one(wait=True):
            pass

    def _write(self, happening: _Happening, when: datetime) -> None:
        event = self._counted(happening, when)
        try:
            self._registry.put_leased(event, self._current_lease())
        except LeaseNotFound:
            self._lease = 0
            self._registry.put_leased(event, self._current_lease())
        self._known[happening] = event
        self._known.move_to_end(happening)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _counted(self, happening: _Happening, when: datetime) -> Event:
        known = self._known.get(happening)
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

    def _current_lease(self) -> int:
        now = self._clock.monotonic()
        if not self._lease or now >= self._lease_made + SHARED:
            self._lease = self._registry.store.grant(LIFETIME + SHARED)
            self._lease_made = now
        return self._lease
