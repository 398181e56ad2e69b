"""Whether the proxy is healthy, as kube-proxy means it: does the kernel keep up with what is asked for?

Owns: the moments of the oldest change that waits and of the last sync, and the
answers of /healthz and /livez made of them. Invariants: a quiet cluster is
healthy, however long ago the last sync was; a change that has waited for twice
the sync period is not; and a sync settles only what was queued before it began.

/livez says whether to restart proxyd. /healthz says whether load balancers may
send clients here, so it also fails while the node is being taken out of the
cluster, before its pods are gone: existing connections end, new ones go elsewhere.
Source: kube-proxy's pkg/proxy/healthcheck/proxy_health.go; KEP-3836.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from podlane.runtime.clock import Clock
from podlane.runtime.health import Answer
from proxyd import proxymetrics

_NEVER = "0001-01-01T00:00:00Z"


class ProxyHealth:
    """`sync_period`: seconds within which a sync comes round even if nothing changes. Thread-safe."""

    def __init__(self, clock: Clock, sync_period: float) -> None:
        self._clock = clock
        self._patience = 2 * sync_period
        self._lock = threading.Lock()
        self._waits_since: float | None = None  # the oldest change that waits
        self._newest = 0.0
        self._updated: float | None = None  # in Unix time
        self._eligible = True

    def queued(self) -> None:
        """Say that something changed that a sync must bring into the kernel."""
        with self._lock:
            self._newest = self._clock.monotonic()
            if self._waits_since is None:
                self._waits_since = self._newest

    def synced(self, started: float | None = None) -> None:
        """Say that a sync was completed.

        `started`: the monotonic time at which it took its view of the store; what
        was queued after that still waits. None settles all.
        """
        with self._lock:
            self._updated = self._clock.now()
            still = started is not None and self._waits_since is not None and self._newest > started
            # of what came since, the time of the first is not known: that of the last is not too early
            self._waits_since = self._newest if still else None

    def set_eligible(self, eligible: bool) -> None:
        """Say whether the node is to get clients: not while its Node object is being deleted."""
        with self._lock:
            self._eligible = eligible

    def live(self) -> bool:
        """Whether syncs keep up; also what health-check node ports say of the proxy."""
        with self._lock:
            return self._keeps_up()

    def healthy(self) -> bool:
        """Whether syncs keep up and the node is eligible."""
        with self._lock:
            return self._keeps_up() and self._eligible

    def healthz(self, failing: Mapping[str, str]) -> Answer:
        """The answer of /healthz, for Daemon.add_report."""
        return self._answer("/healthz", failing)

    def livez(self, failing: Mapping[str, str]) -> Answer:
        """The answer of /livez, for Daemon.add_report."""
        return self._answer("/livez", failing)

    def _keeps_up(self) -> bool:
        return self._waits_since is None or self._clock.monotonic() - self._waits_since < self._patience

    def _answer(self, path: Literal["/healthz", "/livez"], failing: Mapping[str, str]) -> Answer:
        now = _time(self._clock.now())
        with self._lock:
            well, updated, eligible = self._keeps_up() and not failing, self._updated, self._eligible
        # as kube-proxy: a healthy proxy is up to date now, whenever its last sync was
        last = now if well else _NEVER if updated is None else _time(updated)
        document: dict[str, object] = {"lastUpdated": last, "currentTime": now}
        if path == "/healthz":
            well = well and eligible
            document["nodeEligible"] = eligible
        if failing:
            document["failing"] = dict(failing)
        status = 200 if well else 503
        proxymetrics.answered(path, status)
        return Answer(status, "application/json", json.dumps(document).encode())


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
