"""The one loop: something changed, so bring the world to what it should be.

Owns: when a sync runs. Callbacks only `trigger`; the runner alone decides.
Invariants: syncs of one runner never overlap; a trigger that arrives at any
moment, also in the middle of a sync, is followed by a complete sync that began
after it; any number of triggers before that sync are one; syncs start at least
`min_interval` apart, and after one comes a pause of `rest` times its length, so
that a loop with much to look at leaves time to the others; a failed sync is retried after a doubling pause, and
a trigger during that pause may hold the cure, so it shortens the pause to the
first step but does not reset the doubling; without any trigger a sync runs
every `resync` seconds. `Schedule` holds the arithmetic without threads.
Source: kube-proxy's BoundedFrequencyRunner, Felix's dataplane loop.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from podlane.errors import PodlaneError
from podlane.runtime import metrics
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import Repetition, get_logger

_SYNCS = metrics.counter("podlane_sync_total", "Syncs by result: ok, error, not_ready.", ["runner", "result"])
_DURATION = metrics.histogram("podlane_sync_duration_seconds", "Time one sync took.", ["runner"])
_FAILURES = metrics.gauge("podlane_sync_failures", "Failed syncs since the last good one.", ["runner"])
_LAST_OK = metrics.gauge("podlane_sync_last_success_timestamp_seconds", "When the last good sync ended.", ["runner"])


_NOT_READY_RETRY = 1.0  # seconds; what was missing normally triggers when it is there


class NotReady(PodlaneError):
    """A sync cannot do its work yet (a mirror has no complete list): no fault, no growing pause."""


class Schedule:
    """When the next sync is due. Times are seconds on one monotonic clock."""

    def __init__(self, *, min_interval: float, resync: float, backoff: tuple[float, float], rest: float = 0.0) -> None:
        first, longest = backoff
        if min_interval < 0 or rest < 0 or resync <= 0 or not 0 < first <= longest:
            raise ValueError(
                "make schedule: expected min_interval and rest ≥ 0, resync > 0 and 0 < backoff[0] ≤ backoff[1], "
                f"got {min_interval}, {rest}, {resync}, {backoff}"
            )
        self._min_interval = min_interval
        self._rest = rest
        self._resync = resync
        self._first = first
        self._longest = longest
        self._requested = math.inf
        self._not_before = -math.inf
        self._automatic = math.inf
        self.failures = 0

    def request(self, at: float) -> None:
        """Ask for a sync that begins at `at` or later; the earliest request wins."""
        self._requested = min(self._requested, at)

    def begin(self, now: float) -> None:
        """Note that a sync begins, which answers every request due by now."""
        if self._requested <= now:
            self._requested = math.inf
        self._not_before = now + self._min_interval

    def end(self, now: float, took: float) -> None:
        """Note that a sync of so many seconds ended, whatever came of it."""
        self._not_before = max(self._not_before, now + self._rest * took)

    def succeed(self, now: float) -> None:
        self.failures = 0
        self._automatic = now + self._resync

    def fail(self, now: float) -> float:
        """Note a failure and return the seconds until the retry."""
        pause = min(self._longest, self._first * 2.0 ** min(self.failures, 60))
        self.failures += 1
        self._automatic = now + pause
        self._not_before = max(self._not_before, now + self._first)
        return pause

    def defer(self, now: float) -> None:
        """Note that the sync could not do its work yet."""
        self._automatic = now + min(_NOT_READY_RETRY, self._resync)

    def next(self) -> float:
        """Return when the next sync is due; infinity: at the first request."""
        return max(min(self._requested, self._automatic), self._not_before)


class Runner:
    """Runs `sync` when it is needed; see the module for what is promised.

    `min_interval`, `resync` and `backoff` (first, longest pause) are seconds,
    `rest` is a factor of the time a sync took.
    With `eager` the first sync needs no trigger.
    """

    def __init__(
        self,
        sync: Callable[[], None],
        *,
        name: str,
        clock: Clock | None = None,
        min_interval: float = 0.0,
        resync: float = 30.0,
        backoff: tuple[float, float] = (0.2, 30.0),
        rest: float = 0.0,
        eager: bool = True,
    ) -> None:
        self.name = name
        self._sync = sync
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._schedule = Schedule(min_interval=min_interval, resync=resync, backoff=backoff, rest=rest)
        self._log = get_logger("runner", runner=name)
        self._error: Exception | None = None
        self._repetition = Repetition()
        self._synced_once = False
        if eager:
            self._schedule.request(-math.inf)

    def trigger(self) -> None:
        """Ask for a sync as soon as may be. Cheap, thread-safe, never blocks on the sync."""
        self.trigger_after(0.0)

    def trigger_after(self, seconds: float) -> None:
        """Ask for a sync in `seconds`; of several such requests the earliest wins."""
        with self._lock:
            self._schedule.request(self._clock.monotonic() + seconds)
        self._wake.set()

    @property
    def last_error(self) -> Exception | None:
        """What the last sync raised; None when it went well or none ran yet."""
        return self._error

    @property
    def synced_once(self) -> bool:
        """Whether any sync has gone well since the start."""
        return self._synced_once

    def ready(self) -> str | None:
        """Answer for `Daemon.add_ready_check`: None once a sync went well, else why not."""
        if self._synced_once:
            return None
        return str(self._error) if self._error else "no sync yet"

    def run(self, stop: threading.Event) -> None:
        """Sync until `stop` is set. A sync that runs then is finished, not interrupted."""
        threading.Thread(target=self._wake_at, args=(stop,), name=f"{self.name}-stop", daemon=True).start()
        while not stop.is_set():
            self._wake.clear()
            pause = self.step()
            if pause > 0:
                self._clock.wait(self._wake, min(pause, 3600.0))

    def step(self) -> float:
        """Sync if one is due; returns the seconds until the next is, 0 after a sync. `run` is this in a loop."""
        with self._lock:
            now = self._clock.monotonic()
            pause = self._schedule.next() - now
            if pause > 0:
                return pause
            self._schedule.begin(now)
        self._sync_once(now)
        return 0.0

    def _wake_at(self, stop: threading.Event) -> None:
        stop.wait()
        self._wake.set()

    def _sync_once(self, started: float) -> None:
        error: Exception | None = None
        try:
            self._sync()
        except Exception as raised:
            error = raised
        now = self._clock.monotonic()
        with self._lock:
            self._schedule.end(now, now - started)
        if error is None:
            self._succeeded(now)
        elif isinstance(error, NotReady):
            with self._lock:
                self._schedule.defer(now)
            self._log.debug("sync not ready", reason=str(error))
        else:
            with self._lock:
                pause = self._schedule.fail(now)
            # An error nobody foresaw needs its trace; one of ours says all in its message.
            trace = {} if isinstance(error, PodlaneError) else {"exc_info": error}
            text = str(error) or repr(error)
            # each retry of an outage would be a line every few seconds
            say = self._log.warning if self._repetition.is_news(text, now) else self._log.debug
            say("sync failed", error=text, retry_in=pause, **trace)
        self._error = error
        _DURATION.labels(self.name).observe(now - started)
        _SYNCS.labels(self.name, _result(error)).inc()
        _FAILURES.labels(self.name).set(self._schedule.failures)

    def _succeeded(self, now: float) -> None:
        with self._lock:
            failures = self._schedule.failures
            self._schedule.succeed(now)
        self._synced_once = True
        self._repetition.over()
        _LAST_OK.labels(self.name).set(self._clock.now())
        if failures:
            self._log.info("sync recovered", failures=failures)


def _result(error: Exception | None) -> str:
    if error is None:
        return "ok"
    return "not_ready" if isinstance(error, NotReady) else "error"
