"""A few threads that do the work of many agents.

Owns: when what is done. `Crew` does pieces of work at their time, `Lane` is a
pool of one node's in the place of the threads a real agent has (so many at
once, each after the time it would take), `Turning` calls a node's turn soon
after it was woken. Invariants: a node's turns never overlap; a wake at any
moment is followed by a whole turn that began after it; a piece of work that
fails ends nothing but itself.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger

Work = Callable[[], object]

_LOOK = 1.0  # seconds a stop may go unnoticed
_PAUSE_AFTER_FAULT = 1.0


class Crew:
    """Run `work` as the body of as many threads as there shall be, or call `step` in a test."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._due: list[tuple[float, int, Work]] = []
        self._numbers = itertools.count()
        # one thread without work waits for the next moment, all others until they are called: to wake is dear
        self._moment = threading.Condition(self._lock)
        self._call = threading.Condition(self._lock)
        self._waits_for_moment = False
        self._waiting_for_call = 0
        self._log = get_logger("crew")

    def later(self, seconds: float, work: Work) -> None:
        """Do `work` in so many seconds, or soon after."""
        with self._lock:
            entry = (self.clock.monotonic() + seconds, next(self._numbers), work)
            heapq.heappush(self._due, entry)
            if seconds <= 0 and self._waiting_for_call:
                self._call.notify()
            elif self._due[0] is entry:
                (self._moment if self._waits_for_moment else self._call).notify()

    def step(self) -> float:
        """Do one piece of work that is due; returns the seconds until another will be, 0 after a piece."""
        with self._lock:
            pause = self._pause()
            if pause > 0:
                return pause
            work = heapq.heappop(self._due)[2]
        self._do(work)
        return 0.0

    def work(self, stop: threading.Event) -> None:
        """Do what falls due until `stop` is set."""
        while not stop.is_set():
            work = self._take(stop)
            if work is not None:
                self._do(work)

    def _take(self, stop: threading.Event) -> Work | None:
        with self._lock:
            while not stop.is_set():
                pause = self._pause()
                if pause <= 0:
                    work = heapq.heappop(self._due)[2]
                    if not self._waits_for_moment:
                        self._call.notify()  # somebody must wait for the next
                    return work
                if self._waits_for_moment:
                    self._waiting_for_call += 1
                    self._call.wait(_LOOK)
                    self._waiting_for_call -= 1
                else:
                    self._waits_for_moment = True
                    self._moment.wait(min(pause, _LOOK))
                    self._waits_for_moment = False
        return None

    def _pause(self) -> float:
        return max(0.0, self._due[0][0] - self.clock.monotonic()) if self._due else _LOOK

    def _do(self, work: Work) -> None:
        try:
            work()
        except Exception as error:  # a fault of ours: the others' work must go on
            self._log.error("work failed", error=str(error) or repr(error), exc_info=error)


class Lane(Executor):
    """A pool of `size` for one node. `takes()` is how many seconds a piece lasts; `after` is called when it is done."""

    def __init__(self, crew: Crew, size: int, takes: Callable[[], float], after: Callable[[], None]) -> None:
        self._crew, self._size, self._takes, self._after = crew, size, takes, after
        self._lock = threading.Lock()
        self._waiting: deque[Work] = deque()
        self._running = 0
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The future is never done: nobody waits for it."""
        with self._lock:
            if not self._closed:
                self._waiting.append(lambda: fn(*args, **kwargs))
                self._begin()
        return Future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        del wait, cancel_futures
        with self._lock:
            self._closed = True
            self._waiting.clear()

    def _begin(self) -> None:
        if self._waiting and self._running < self._size:
            self._running += 1
            work = self._waiting.popleft()
            self._crew.later(self._takes(), lambda: self._do(work))

    def _do(self, work: Work) -> None:
        try:
            work()
        finally:
            with self._lock:
                self._running -= 1
                self._begin()
            self._after()


class Turning:
    """`turn` returns in how many seconds it wants the next one; `wake` asks for one now, from any thread."""

    def __init__(self, crew: Crew, turn: Callable[[], float]) -> None:
        self._crew, self._turn = crew, turn
        self._lock = threading.Lock()
        self._asked = self._running = self._closed = False
        self._number = 0  # of the latest turn: the alarm of an earlier one counts no more

    def wake(self) -> None:
        with self._lock:
            if self._asked or self._closed:
                return
            self._asked = True
            if self._running:
                return
        self._crew.later(0.0, self._run)

    def close(self) -> None:
        """Begin no turn any more."""
        with self._lock:
            self._closed = True

    def _run(self) -> None:
        with self._lock:
            if self._closed or self._running:
                return
            self._running, self._asked = True, False
        pause = _PAUSE_AFTER_FAULT
        try:
            pause = self._turn()
        finally:
            with self._lock:
                self._running = False
                self._number += 1
                asked, number = self._asked, self._number
            if asked:
                self._crew.later(0.0, self._run)
            else:
                self._crew.later(pause, lambda: self._alarm(number))

    def _alarm(self, number: int) -> None:
        with self._lock:
            if number != self._number or self._running:
                return
        self.wake()
