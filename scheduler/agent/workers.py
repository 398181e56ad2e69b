"""A few threads that work on many pods, on each pod one at a time.

Owns: which pods are being worked on. Work that may wait (for a grace period, for
the store) has threads of its own, so that it never keeps pods from starting.
Invariants: what is asked for a pod that
is busy is dropped, not queued, because a plan made now is stale by then:
`on_done` says to look and plan again. A pod counts as busy until `on_done` was called for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Generic, TypeVar

from podlane.runtime.log import get_logger

K = TypeVar("K")

_PATIENT = 4

MakePool = Callable[[int, str], Executor]
"""Makes a pool of so many threads of that name."""


def threads(size: int, name: str) -> Executor:
    return ThreadPoolExecutor(size, thread_name_prefix=name)


class Workers(Generic[K]):
    """`on_done(seconds)`: look again in so many seconds; called from the workers' threads."""

    def __init__(self, name: str, size: int, on_done: Callable[[float], None], *, pool: MakePool = threads) -> None:
        self._pool = pool(size, name)
        self._patient = pool(_PATIENT, f"{name}-patient")
        self._on_done = on_done
        self._lock = threading.Lock()
        self._busy: set[K] = set()
        self._log = get_logger(name)

    def busy(self) -> frozenset[K]:
        with self._lock:
            return frozenset(self._busy)

    def submit(self, key: K, work: Callable[[], float], *, waits: bool = False) -> bool:
        """Do `work`, which returns when to look again, unless the key is busy: then False.

        `waits`: it may take long without doing anything.
        """
        with self._lock:
            if key in self._busy:
                return False
            self._busy.add(key)
        (self._patient if waits else self._pool).submit(self._run, key, work)
        return True

    def close(self) -> None:
        """Begin nothing more; what is being done goes on to its end."""
        for pool in (self._pool, self._patient):
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, key: K, work: Callable[[], float]) -> None:
        pause = 1.0
        try:
            pause = work()
        except Exception as error:  # a fault of ours: the pod must not stay busy for ever
            self._log.error("work failed", error=str(error) or repr(error), exc_info=error, retry_in=pause)
        with self._lock:
            self._busy.discard(key)
        self._on_done(pause)
