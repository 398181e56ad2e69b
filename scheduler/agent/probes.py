"""The threads that ask containers: startup, liveness and readiness probes.

Owns: `Prober`. Invariants: probes of one kind of one container never overlap;
one slow container delays no other's probe beyond the size of the pool; asking
never blocks a sync. What is asked and how is in checks.py, what the answers
mean in probestate.py.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from scheduler.agent.checks import Answer, checker
from scheduler.agent.probestate import ProbeKind, ProbeState, Target
from scheduler.agent.workers import MakePool, threads

__all__ = ["Answer", "Prober", "Target", "checker"]

_WORKERS = 16
_IDLE = 60.0


class _Key(NamedTuple):
    id: str
    kind: ProbeKind


class Prober:
    """Give it everything that is to be probed with `set`; ask it for the results.

    `on_change` is called when an answer changed a result, `on_answer` with each
    failure that counts (False) and each warning (True); both from the prober's
    threads.
    """

    def __init__(
        self,
        check: Callable[[Target], Answer],
        *,
        on_change: Callable[[], None],
        on_answer: Callable[[Target, bool, str], None],
        clock: Clock | None = None,
        pool: MakePool = threads,
    ) -> None:
        self._check = check
        self._on_change = on_change
        self._on_answer = on_answer
        self._clock = clock or SystemClock()
        self._pool = pool(_WORKERS, "probe")
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._targets: dict[_Key, Target] = {}
        self._states: dict[_Key, ProbeState] = {}
        self._due: list[tuple[float, int, _Key]] = []
        self._numbers = itertools.count()
        self._log = get_logger("prober")

    def set(self, targets: Iterable[Target]) -> None:
        """Probe exactly these; what is known of those already probed stays."""
        now = self._clock.monotonic()
        wanted = {_Key(target.id, target.kind): target for target in targets}
        with self._lock:
            for gone in self._targets.keys() - wanted.keys():
                self._states.pop(gone, None)
            for key, target in wanted.items():
                state = self._states.get(key)
                if state is None or state.probe != target.probe:
                    state = self._states[key] = ProbeState(
                        target.probe,
                        now,
                        kind=target.kind,
                        running_for=target.running_for,
                        was_ready=target.was_ready,
                        spread=target.id if target.adopted else "",
                    )
                    self._schedule(key, state)
            self._targets = wanted
        self._wake.set()

    def ready(self) -> frozenset[str]:
        """Ids of the containers whose readiness probe passes."""
        return self._passing("readiness")

    def started(self) -> frozenset[str]:
        """Ids of the containers whose startup probe has passed."""
        return self._passing("startup")

    def unhealthy(self) -> dict[str, Target]:
        """The probe that has failed for good, by container id."""
        with self._lock:
            return {key.id: self._targets[key] for key, state in self._states.items() if state.failed}

    def run(self, stop: threading.Event) -> None:
        """Ask until `stop` is set: the body of one thread."""
        threading.Thread(target=self._wake_at, args=(stop,), name="prober-stop", daemon=True).start()
        try:
            while not stop.is_set():
                self._wake.clear()
                self._clock.wait(self._wake, self.step())
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def step(self) -> float:
        """Ask whoever is due; returns the seconds until the next is. `run` is this in a loop."""
        now = self._clock.monotonic()
        for key in self._take_due(now):
            self._pool.submit(self._ask, key)
        with self._lock:
            return max(0.0, self._due[0][0] - now) if self._due else _IDLE

    def _passing(self, kind: ProbeKind) -> frozenset[str]:
        with self._lock:
            return frozenset(key.id for key, state in self._states.items() if key.kind == kind and state.passing)

    def _schedule(self, key: _Key, state: ProbeState) -> None:
        """The lock is held."""
        if not state.over:
            heapq.heappush(self._due, (state.due, next(self._numbers), key))

    def _wake_at(self, stop: threading.Event) -> None:
        stop.wait()
        self._wake.set()

    def _take_due(self, now: float) -> list[_Key]:
        taken = []
        with self._lock:
            while self._due and self._due[0][0] <= now:
                due, _, key = heapq.heappop(self._due)
                state = self._states.get(key)
                # an entry of a container that is gone, or probed anew with another probe, is stale
                if state is not None and state.due == due:
                    taken.append(key)
        return taken

    def _ask(self, key: _Key) -> None:
        with self._lock:
            target, state = self._targets.get(key), self._states.get(key)
        if target is None or state is None:
            return
        try:
            ok, message = self._check(target)
        except Exception as error:  # whatever happens, the next probe must be scheduled
            self._log.warning("probe failed", container=target.container.name, error=str(error), exc_info=error)
            ok, message = False, str(error)
        with self._lock:
            if self._states.get(key) is not state:
                return
            before = state.passing, state.over
            counts = state.answer(ok, self._clock.monotonic())
            changed = before != (state.passing, state.over)
            self._schedule(key, state)
        self._wake.set()
        if counts or (ok and message):
            self._on_answer(target, ok, message)
        if changed:
            self._on_change()
