"""Time as a value that can be passed in, so that no test sleeps.

Owns: the `Clock` protocol, the real one, and two fakes. `FakeClock` is for
tests with threads: time stands still until `advance`. `ScriptedClock` is for
tests without: a wait jumps straight to its deadline, running what `at`
scheduled on the way, so a day of retries is a loop of microseconds and always
takes the same course. Invariant: `now` is for people and other machines,
`monotonic` for every duration.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import Protocol

_POLL = 0.002  # real seconds between a FakeClock waiter's looks at its event and the time


class Clock(Protocol):
    """Thread-safe."""

    def now(self) -> float:
        """Seconds since 1970, UTC. May jump when the host's time is set."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment. Never goes back."""
        ...

    def wait(self, event: threading.Event, timeout: float) -> bool:
        """Wait until `event` is set (True) or `timeout` seconds have passed (False)."""
        ...


class SystemClock:
    """The host's time."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, timeout: float) -> bool:
        return event.wait(max(0.0, timeout))


class FakeClock:
    """Time that moves only when a test says `advance`."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._lock = threading.Lock()
        self._start = start
        self._elapsed = 0.0
        self._sleepers = 0

    def now(self) -> float:
        with self._lock:
            return self._start + self._elapsed

    def monotonic(self) -> float:
        with self._lock:
            return self._elapsed

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; waiters whose deadline that reaches return soon after."""
        if seconds < 0:
            raise ValueError(f"advance clock: expected seconds ≥ 0, got {seconds}")
        with self._lock:
            self._elapsed += seconds

    def wait(self, event: threading.Event, timeout: float) -> bool:
        deadline = self.monotonic() + timeout
        with self._lock:
            self._sleepers += 1
        try:
            while not event.is_set():
                if self.monotonic() >= deadline:
                    return False
                event.wait(_POLL)
            return True
        finally:
            with self._lock:
                self._sleepers -= 1

    @property
    def sleepers(self) -> int:
        """How many threads are inside `wait` now."""
        with self._lock:
            return self._sleepers

    def await_sleepers(self, count: int, timeout: float = 10.0) -> None:
        """Wait in real time until at least `count` threads are inside `wait`.

        A test calls it before `advance`, so that the thread it tests has
        computed its deadline from the time before. Raises TimeoutError.
        """
        deadline = time.monotonic() + timeout
        while self.sleepers < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"wait for {count} sleepers: only {self.sleepers} after {timeout} s")
            time.sleep(_POLL)


class ScriptedClock(FakeClock):
    """Time that jumps to the deadline of whoever waits. For one thread only.

    What `at` scheduled runs inside `wait`, in order of time, as if another
    thread had done it at that moment.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        super().__init__(start)
        self._script: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = itertools.count()

    def at(self, elapsed: float, action: Callable[[], object]) -> None:
        """Run `action` when `monotonic()` reaches `elapsed`."""
        heapq.heappush(self._script, (elapsed, next(self._sequence), action))

    def advance(self, seconds: float) -> None:
        self._run_until(self.monotonic() + seconds, None)

    def wait(self, event: threading.Event, timeout: float) -> bool:
        if event.is_set():
            return True
        self._run_until(self.monotonic() + timeout, event)
        return event.is_set()

    def _run_until(self, deadline: float, event: threading.Event | None) -> None:
        while self._script and self._script[0][0] <= deadline:
            moment, _, action = heapq.heappop(self._script)
            super().advance(max(0.0, moment - self.monotonic()))
            action()
            if event is not None and event.is_set():
                return
        super().advance(max(0.0, deadline - self.monotonic()))
