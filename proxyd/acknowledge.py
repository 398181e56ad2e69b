"""Telling the cluster up to which revision this node's kernel knows the endpoints.

Owns: the writing of `/podlane/proxies/{node}` (see podlane.store.proxies), which
pods that end on other nodes wait for. Invariants: what is written was committed
to the kernel before; of one history of the store never a lower revision after a
higher one; the sync that reports is never kept waiting.

When: at once if an endpoint is terminating or gone, since somebody waits for
that; within FOLLOW seconds if it is but URGENT_FOR seconds since then, for a
slice that was changed once more has a later revision, which may be the one
that is waited for; otherwise only now and then, for thousands of nodes write it.
"""

from __future__ import annotations

import threading

from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from podlane.runtime.runner import Runner
from podlane.store import proxies
from podlane.store.interface import Store

LAZY = 30.0
"""Seconds between writes nobody waits for."""
URGENT_FOR = 10.0
"""As long as an agent waits (its --drain-timeout)."""
FOLLOW = 1.0
"""Seconds within which what comes in that time is written too."""
_MIN_INTERVAL = 0.2  # seconds between writes, of which thousands of nodes make one for each pod that ends
_BACKOFF = (0.1, 5.0)


class Acknowledger:
    """`run` is the body of one thread; `applied` may be called from any."""

    def __init__(self, store: Store, node: str, *, clock: Clock | None = None) -> None:
        self._store = store
        self._node = node
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._newest = 0
        self._lower = 0  # reported after a higher one: the store went back, or the call came late
        self._written = 0  # 0: nothing yet
        self._urgent_until = float("-inf")
        self._log = get_logger("acknowledge")
        self._runner = Runner(
            self._write,
            name="acknowledge",
            clock=self._clock,
            min_interval=_MIN_INTERVAL,
            resync=LAZY,  # which is when a revision that is not urgent is written
            backoff=_BACKOFF,
            eager=False,
        )

    @property
    def written(self) -> int:
        """The revision last written to the store; 0 before the first."""
        return self._written

    def applied(self, revision: int, *, terminating: bool) -> None:
        """The kernel has all endpoint slices as of `revision` (0: not known, ignored). Cheap, never raises.

        `terminating`: an endpoint of the applied changes is terminating or gone.
        """
        if revision <= 0:
            return
        now = self._clock.monotonic()
        with self._lock:
            if terminating:
                self._urgent_until = now + URGENT_FOR
            if revision < self._newest:
                self._lower = revision
            else:
                self._newest, self._lower = revision, 0
            news = self._lower or self._newest > self._written
            at_once = news and (not self._written or terminating or self._lower)
            soon = news and now < self._urgent_until
        if at_once:
            self._runner.trigger()
        elif soon:
            self._runner.trigger_after(FOLLOW)

    def run(self, stop: threading.Event) -> None:
        """Write what is due until `stop`."""
        self._runner.run(stop)

    def _write(self) -> None:
        """Write the newest revision. Raises StoreUnavailable, and is tried again."""
        self._settle_lower()
        with self._lock:
            newest, written = self._newest, self._written
        if newest > written:
            proxies.acknowledge(self._store, self._node, newest)
            with self._lock:
                self._written = newest
            self._log.debug("acknowledged", revision=newest)

    def _settle_lower(self) -> None:
        """Only a store that was wiped or restored makes a lower revision true: ask it."""
        with self._lock:
            newest, lower = self._newest, self._lower
        if not lower:
            return
        went_back = self._store.txn([], []).revision < newest
        with self._lock:
            if self._lower != lower:
                return  # something newer was reported meanwhile, and the runner triggered again
            self._lower = 0
            if went_back:
                self._newest, self._written = lower, 0
        if went_back:
            self._log.warning("the store went back", acknowledged=newest, revision=lower)
