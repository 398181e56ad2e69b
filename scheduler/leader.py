"""Leading: what runs while this scheduler is the leader, and only then.

Owns: the life of the loops. Invariants: nothing is decided before the mirrors
have caught up with all that was stored when leadership began; every leadership
starts with fresh memory (views, node history, doubts); all loops write through
one fenced registry, events too, so a leader that was paused past its lease and
goes on cannot change anything: its first write raises Fenced and ends its leading.
Loops of an earlier leadership never run beside those of a later one with the
same fence: the fence names the leadership, not the process.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

from podlane.api.types import Struct
from podlane.errors import Fenced
from podlane.runtime import metrics
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from podlane.runtime.runner import Runner
from podlane.store.election import Leadership
from podlane.store.registry import Registry
from scheduler import census_loop
from scheduler.census_loop import CensusLoop
from scheduler.cluster import Cluster, Snapshot
from scheduler.endpoints_loop import EndpointsLoop
from scheduler.events_loop import EventsLoop
from scheduler.garbage_loop import GarbageLoop
from scheduler.loop import Context, Loop, Recorder
from scheduler.namespaces_loop import NamespacesLoop
from scheduler.nodes_loop import NodesLoop
from scheduler.placement_loop import PlacementLoop
from scheduler.quota_loop import QuotaLoop
from scheduler.replication_loop import ReplicationLoop
from scheduler.reports_loop import ReportsLoop

LOOPS: tuple[type[Loop], ...] = (
    ReportsLoop,
    ReplicationLoop,
    PlacementLoop,
    EndpointsLoop,
    NodesLoop,
    GarbageLoop,
    NamespacesLoop,
    QuotaLoop,
    EventsLoop,
    CensusLoop,
)

JOIN_SECONDS = 6.0
"""How long loops may take to end; a store call in progress ends by its own deadline."""

_LOOK = 0.2  # seconds a loop's end may go unnoticed by the thread that leads

_LEADER = metrics.gauge("podlane_scheduler_leader", "1 while this scheduler leads.")


class Events(Recorder, Protocol):
    """What a leadership needs of an EventRecorder."""

    def close(self) -> None: ...


class Leader:
    """Runs the loops for one leadership after another: `lead` is what Election calls.

    `events` makes a leadership's recorder of its fenced registry.
    """

    def __init__(
        self,
        cluster: Cluster,
        events: Callable[[Registry], Events],
        clock: Clock,
        *,
        rng: random.Random | None = None,
        loops: Sequence[type[Loop]] = LOOPS,
    ) -> None:
        self._cluster = cluster
        self._loops = loops
        self._make_events = events
        self._clock = clock
        self._rng = rng or random.Random()
        self._runners: dict[str, Runner] = {}
        self._log = get_logger("leader")
        _LEADER.set(0)

    def lead(self, leadership: Leadership) -> None:
        """Run the loops until the leadership is lost. Raises StoreUnavailable when it cannot even begin."""
        started = self._clock.monotonic()
        self._cluster.catch_up(leadership.lost)
        if leadership.lost.is_set():
            return
        over = threading.Event()
        registry = self._cluster.registry.fenced(leadership.fence)
        events = self._make_events(registry)
        self._runners = self._make_runners(registry, events, over)
        self._log.info("leading", caught_up_in=round(self._clock.monotonic() - started, 3))
        _LEADER.set(1)
        threads = [
            threading.Thread(target=runner.run, args=(over,), name=name, daemon=True)
            for name, runner in self._runners.items()
        ]
        try:
            for thread in threads:
                thread.start()
            while not over.is_set() and not self._clock.wait(leadership.lost, _LOOK):
                pass
        finally:
            self._end(over, threads)
            events.close()

    def _end(self, over: threading.Event, threads: list[threading.Thread]) -> None:
        over.set()
        self._cluster.listen({})
        _LEADER.set(0)
        deadline = self._clock.monotonic() + JOIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - self._clock.monotonic()))
            if thread.is_alive():
                self._log.warning("loop has not ended yet, it can write no more", loop=thread.name)
        self._runners = {}
        census_loop.forget()
        self._log.info("no longer leading")

    def _make_runners(self, registry: Registry, events: Recorder, over: threading.Event) -> dict[str, Runner]:
        runners: dict[str, Runner] = {}
        context = Context(
            registry=registry,
            snapshot=Snapshot.of(self._cluster),
            events=events,
            clock=self._clock,
            rng=self._rng,
            wake=lambda name, seconds: runners[name].trigger_after(seconds),
        )
        listeners: dict[type[Struct], list[Callable[[], None]]] = defaultdict(list)
        for cls in self._loops:
            loop = cls(context)
            runner = Runner(
                self._until_fenced(loop, over),
                name=loop.name,
                clock=self._clock,
                min_interval=loop.min_interval,
                rest=loop.rest,
            )
            runners[loop.name] = runner
            for kind in loop.watches:
                listeners[kind].append(runner.trigger)
        self._cluster.listen(listeners)
        return runners

    def _until_fenced(self, loop: Loop, over: threading.Event) -> Callable[[], None]:
        def sync() -> None:
            try:
                loop.sync()
            except Fenced as error:
                self._log.warning("another scheduler leads", loop=loop.name, cause=str(error))
                over.set()

        return sync

    def not_ready(self) -> str | None:
        """For Daemon.add_ready_check: a standby is ready when its mirrors are, a leader when it has decided once."""
        for mirror in self._cluster.mirrors:
            if (reason := mirror.not_ready()) is not None:
                return reason
        waiting = [f"{name}: {reason}" for name, runner in list(self._runners.items()) if (reason := runner.ready())]
        return "; ".join(waiting) or None
