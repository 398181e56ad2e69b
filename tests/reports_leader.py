"""A scheduler that only carries over what nodes report: for tests of an agent alone, which place pods themselves."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from podlane.runtime.clock import SystemClock
from podlane.store.election import Election
from podlane.store.events import EventRecorder
from podlane.store.registry import Registry
from scheduler.cluster import Cluster
from scheduler.events_loop import EventsLoop
from scheduler.leader import Leader
from scheduler.reports_loop import ReportsLoop


@contextlib.contextmanager
def carrying_over(registry: Registry) -> Iterator[None]:
    clock, stop = SystemClock(), threading.Event()
    cluster = Cluster(registry, clock)
    leader = Leader(
        cluster,
        lambda fenced: EventRecorder(fenced, "scheduler", "test", clock),
        clock,
        loops=(ReportsLoop, EventsLoop),
    )

    def lead() -> None:
        for mirror in cluster.mirrors:
            while not mirror.wait_synced(0.2):
                if stop.is_set():
                    return
        Election(registry.store, "/podlane/election/scheduler", "test", clock=clock).run(stop, leader.lead)

    bodies = [*((mirror.run, (stop,)) for mirror in cluster.mirrors), (lead, ())]
    threads = [threading.Thread(target=body, args=arguments, daemon=True) for body, arguments in bodies]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), thread
