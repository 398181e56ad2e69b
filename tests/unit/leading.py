"""A leader that does nothing but carry over what nodes report, on a store in memory: for tests of agents."""

from __future__ import annotations

from scheduler_world import Scheduler

from podlane.errors import ApplyError, StoreUnavailable
from podlane.runtime.clock import Clock
from podlane.store.memory import MemoryStore
from scheduler.reports_loop import ReportsLoop


class ReportsLeader:
    """`step` when something may have been reported. While the store is away nobody leads, and then another does."""

    def __init__(self, store: MemoryStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._scheduler: Scheduler | None = None

    def step(self) -> None:
        try:
            if self._scheduler is None:
                self._scheduler = Scheduler(self._store, self._clock)
                self._scheduler.sync(ReportsLoop)
            elif self._scheduler.drain():
                self._scheduler.sync(ReportsLoop)
        except (StoreUnavailable, ApplyError):
            self._scheduler = None
