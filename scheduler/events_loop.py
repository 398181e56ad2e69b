"""Carries over the events that nodes report, and takes them out of their outboxes.

Invariant: an event is told and taken out in one transaction, so it is told once;
what may not be told is taken out all the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from podlane.api.codec import DecodeError, decode, encode
from podlane.api.types import EndpointSlice, Event, Node, ObjectReference, Pod, PodReport, Service
from podlane.errors import NotFound
from podlane.runtime import metrics
from podlane.store import keys
from podlane.store.events import EventLease
from podlane.store.interface import Compare, Delete, KeyValue, LeaseNotFound, Put
from podlane.store.rules import key_of
from podlane.store.writes import Lost, Write, Written, commit_all
from scheduler import nodeevents
from scheduler.loop import Context, Loop

AT_ONCE = 200
REMEMBERED = 4096
"""Pods that are gone, of which a node may still have something to tell."""

_EVENTS = metrics.counter(
    "podlane_reported_events_total", "Events that nodes reported, by result: told, dropped.", ["result"]
)


class EventsLoop(Loop):
    """Stores the events that nodes report. It leaves time to the other loops: nothing waits for an event."""

    name = "events"
    watches = (PodReport,)
    min_interval = 0.1
    rest = 1.0

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._inbox = self.snapshot.reports.slot(keys.is_event_report)
        self._pods = self.snapshot.pods.feed()
        self._waiting: dict[str, None] = {}
        self._bound: dict[str, tuple[str, str]] = {}
        """By namespace/name of each bound pod: its UID and its node."""
        self._gone: OrderedDict[str, str] = OrderedDict()
        """By UID of pods that were bound: their node."""
        self._allowances: dict[str, nodeevents.Allowance] = {}
        self._lease = EventLease(self.registry.store, context.clock)

    def decide(self) -> None:
        self._observe()
        batch = [key for _, key in zip(range(AT_ONCE), self._waiting, strict=False)]
        found = [kv for key in batch if (kv := self._inbox.get(key)) is not None]
        self._carry_out(found, [self._judged(kv) for kv in found])
        for key in batch:
            self._waiting.pop(key, None)
        if self._waiting:
            self.wake_at(self.context.clock.now())

    def _observe(self) -> None:
        came = self._inbox.take()
        if came.complete:
            self._waiting.clear()
        for key, kv in came.objects.items():
            if kv is None:
                self._waiting.pop(key, None)
            else:
                self._waiting[key] = None
        pods = self._pods.take()
        if pods.complete:
            self._bound.clear()
        for name, pod in pods.objects.items():
            before = self._bound.pop(name, None)
            if pod is not None and pod.spec.node_name:
                self._bound[name] = pod.metadata.uid, pod.spec.node_name
            if before is not None and before != self._bound.get(name):
                self._gone[before[0]] = before[1]
        while len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)

    def _judged(self, kv: KeyValue) -> Event | str:
        """The event as it is to be told, or why it is not."""
        try:
            key = keys.parse_report_key(kv.key)
            event = decode(Event, kv.value[: nodeevents.LARGEST])  # a longer one is none
        except (ValueError, DecodeError) as error:
            return str(error)
        before = self._allowances.get(key.node, nodeevents.Allowance())
        if (after := before.spend(self.context.clock.monotonic())) is None:
            return f"more than {nodeevents.RATE:g} in a second"
        self._allowances[key.node] = after
        return nodeevents.refusal(key, event, self._place(event.involved_object)) or nodeevents.as_told(key, event)

    def _place(self, about: ObjectReference) -> str | None:
        """As nodeevents.refusal wants it."""
        name = f"{about.namespace}/{about.name}"
        match about.kind:
            case Node.KIND:
                return about.name
            case Service.KIND:
                return "" if self.snapshot.services.get(name) is not None else None
            case EndpointSlice.KIND:
                return "" if self.snapshot.slices.get(name) is not None else None
            case Pod.KIND:
                uid, node = self._bound.get(name, ("", ""))
                return node if uid == about.uid else self._gone.get(about.uid) or self._stored_place(about)
        return None

    def _stored_place(self, about: ObjectReference) -> str | None:
        """Of a pod that we do not see, or not yet; one that is not bound is on a node that is none."""
        try:
            pod = self.registry.get(Pod, about.namespace, about.name)
        except (NotFound, DecodeError):
            return None
        return (pod.spec.node_name or "?") if pod.metadata.uid == about.uid else None

    def _carry_out(self, found: Sequence[KeyValue], judged: Sequence[Event | str]) -> None:
        try:
            self._commit(found, judged)
        except LeaseNotFound:
            self._lease.lost()
            self._commit(found, judged)

    def _commit(self, found: Sequence[KeyValue], judged: Sequence[Event | str]) -> None:
        writes = list(self._writes(found, judged))
        outcomes = commit_all(self.registry.store, writes, self.registry.fence)
        dropped: list[tuple[str, str]] = []
        for kv, what, outcome in zip(found, judged, outcomes, strict=True):
            match outcome:
                case Lost():
                    pass  # it is another by now, and on its way to us
                case Written() if isinstance(what, str):
                    dropped.append((kv.key, what))
                case Written():
                    _EVENTS.labels("told").inc()
                case error:
                    self._waiting[kv.key.removeprefix(keys.REPORTS)] = None
                    self.failed(f"carry over event {kv.key}", error)
        if dropped:
            _EVENTS.labels("dropped").inc(len(dropped))
            self.log.warning("events dropped", events=len(dropped), one=dropped[0][0], why=dropped[0][1])

    def _writes(self, found: Sequence[KeyValue], judged: Sequence[Event | str]) -> Iterator[Write]:
        lease = self._lease.current() if any(isinstance(what, Event) for what in judged) else 0
        for kv, what in zip(found, judged, strict=True):
            told = (Put(key_of(what), encode(what), lease),) if isinstance(what, Event) else ()
            yield Write((Compare.modified_at(kv.key, kv.mod_revision),), (*told, Delete(kv.key)))
