"""Keeping a lease, and knowing when it is lost.

Owns: one etcd lease and its renewals. Invariant: `lost` is set no later than
the moment the store may have given the lease up: `ttl` seconds, by our own
monotonic clock, after the last renewal that was acknowledged was *sent*. So no
other machine's clock matters, and a process that was frozen finds out before
it acts. A lost lease is never renewed again; whoever needs one makes another
KeepAlive.
Source: etcd's lease semantics; client-go's leader election (renew deadline).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from podlane.errors import PodlaneError
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import Repetition, get_logger
from podlane.store.interface import DEFAULT_TIMEOUT, LeaseNotFound, Store

RETRY = (0.5, 1.0)  # seconds between attempts to renew while the store does not answer: not in step with other hosts


class KeepAlive:
    """A lease of `ttl` whole seconds (at least 2), renewed every third of that by a thread.

    With a `margin` it is renewed earlier if need be: that many seconds before
    it would expire, though not more often than every second. `on_lost` is
    called once, from that thread, if the lease is lost. `check` runs after
    each renewal; when it returns False the lease counts as lost (for a leader
    whose key somebody deleted). `lease_id` adopts a lease that exists instead
    of making one.
    """

    def __init__(
        self,
        store: Store,
        ttl: int,
        *,
        clock: Clock | None = None,
        on_lost: Callable[[], None] | None = None,
        check: Callable[[int], bool] | None = None,
        lease_id: int = 0,
        margin: float = 0,
    ) -> None:
        self._store = store
        self._ttl = ttl
        self._clock = clock or SystemClock()
        self._on_lost = on_lost
        self._check = check
        self._lease_id = lease_id
        self._margin = margin
        self._stopping = threading.Event()
        self._lost = threading.Event()
        self._expires = 0.0
        self._thread: threading.Thread | None = None
        self._repetition = Repetition()
        self._log = get_logger("lease")

    def start(self) -> None:
        """Get the lease and begin to renew it. Raises StoreUnavailable, LeaseNotFound (the one to adopt is gone)."""
        asked = self._clock.monotonic()
        if self._lease_id:
            self._ttl = self._store.keep_alive(self._lease_id)
        else:
            self._lease_id = self._store.grant(self._ttl)
        self._expires = asked + self._ttl
        self._thread = threading.Thread(target=self._run, name=f"lease-{self._lease_id:x}", daemon=True)
        self._thread.start()

    @property
    def lease_id(self) -> int:
        """0 before `start`."""
        return self._lease_id

    @property
    def lost(self) -> bool:
        """Whether the lease is gone or may be: also true while the thread has not noticed yet."""
        return self._lost.is_set() or self._clock.monotonic() >= self._expires

    def ttl_left(self) -> float:
        """Seconds until it expires by our own clock; 0 when it is lost, and before `start`."""
        return 0.0 if self._lost.is_set() else max(0.0, self._expires - self._clock.monotonic())

    def stop(self, revoke: bool = True) -> None:
        """End the renewals; with `revoke` end the lease too, and its keys with it, if the store answers."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(DEFAULT_TIMEOUT + 1)
        if revoke and self._lease_id:
            try:
                self._store.revoke(self._lease_id)
            except PodlaneError as error:
                self._log.warning("lease not revoked, it runs out by itself", ttl=self._ttl, error=str(error))

    def _run(self) -> None:
        pause = self._until_renewal()
        while not self._clock.wait(self._stopping, pause):
            try:
                pause = self._renew()
            except LeaseNotFound as error:
                self._lose(str(error))
                return
            except PodlaneError as error:
                now = self._clock.monotonic()
                left = self._expires - now
                if left <= 0:
                    self._lose(f"no renewal for {self._ttl} s: {error}")
                    return
                say = self._log.warning if self._repetition.is_news(str(error), now) else self._log.debug
                say("renew failed", lease=f"{self._lease_id:x}", error=str(error), left=left)
                pause = min(random.uniform(*RETRY), left)

    def _renew(self) -> float:
        """Renew once; returns the seconds until the next renewal."""
        asked = self._clock.monotonic()
        left = self._expires - asked
        if left <= 0:
            raise LeaseNotFound("renewed too late")
        self._ttl = self._store.keep_alive(self._lease_id, timeout=min(DEFAULT_TIMEOUT, left))
        self._expires = asked + self._ttl
        self._repetition.over()
        if self._check is not None and not self._check(self._lease_id):
            raise LeaseNotFound("what it stands for is gone")
        return self._until_renewal()

    def _until_renewal(self) -> float:
        """Seconds from one renewal to the next; `ttl` is the store's and may not be what was asked for."""
        return min(self._ttl / 3, max(1.0, self._ttl - self._margin))

    def _lose(self, cause: str) -> None:
        self._lost.set()
        self._log.warning("lease lost", lease=f"{self._lease_id:x}", cause=cause)
        if self._on_lost is not None:
            self._on_lost()
