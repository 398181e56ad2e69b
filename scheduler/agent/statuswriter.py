"""Reporting the statuses of pods, and their end, many at a time.

Owns: what this agent says of its pods (podlane.store.reports). Invariants: what
was said is laid over what the store shows of a pod, for nobody else says it, and
the leader is later in storing it than the agent in going on; what was said is
written once, and again only when the store does not come to show it: after a
while, or at once where the node was taken for dead, but never before this agent
has looked; a pod said to be removed is none of the agent's any more. While the
store is away nothing piles up: of each pod one report is to be written, its latest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from podlane.api.meta import namespaced_name, utcnow_from
from podlane.api.types import Pod, PodReport, PodStatus
from podlane.errors import PodlaneError
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from podlane.runtime.runner import NotReady
from podlane.store.reports import carried_over, is_marked, reported_status
from scheduler.agent.workers import MakePool, threads

REMIND = 30.0
"""Seconds until what the store does not come to show is written again: it may be lost, as with a restored store."""
_FAILURE_PAUSES = (0.5, 5.0)


class Outbox(Protocol):
    """podlane.store.reports.Outbox, as far as it is used here."""

    def read(self) -> dict[str, PodReport]: ...

    def write(self, reports: Mapping[str, PodReport | None]) -> None: ...


class StatusWriter:
    """Thread-safe. `look_again(seconds)` asks for another sync."""

    def __init__(
        self, outbox: Outbox, look_again: Callable[[float], None], *, clock: Clock, pool: MakePool = threads
    ) -> None:
        self._outbox = outbox
        self._look_again = look_again
        self._clock = clock
        self._pool = pool(1, "status")
        self._lock = threading.Lock()
        self._said: dict[str, PodReport] | None = None
        self._left: frozenset[str] = frozenset()
        """Reports found at the start, until it is known which pods are bound."""
        self._unwritten: set[str] = set()
        self._shown: dict[str, tuple[str, PodReport]] = {}
        """By pod: the resourceVersion at which the store showed what was said."""
        self._missed: dict[str, float] = {}
        """By pod: since when (monotonic) the store does not show it."""
        self._answered: dict[str, str] = {}
        """By pod: the resourceVersion on which it was last written again."""
        self._busy = False
        self._failures = 0
        self._log = get_logger("status")

    def newest(self, pods: Iterable[Pod]) -> dict[str, Pod]:
        """The pods by UID as the agent has reported them, without those it said are removed.

        Raises NotReady before what was reported is read.
        """
        with self._lock:
            if self._said is None:
                self._work()
                raise NotReady("look at pods: what was reported of them is not read yet")
            known = {namespaced_name(pod): pod for pod in pods}
            self._forget(known)
            now = self._clock.monotonic()
            for name, pod in known.items():
                self._compare(name, pod, now)
            if self._missed:
                self._look_again(max(0.0, min(self._missed.values()) + REMIND - now))
            return {pod.metadata.uid: told for name, pod in known.items() if (told := self._as_said(name, pod))}

    def offer(self, pod: Pod, status: PodStatus) -> None:
        """Report this status of `pod`, which is one of `newest`, unless that is what it has."""
        if status != pod.status:
            self._say(pod, PodReport(uid=pod.metadata.uid, status=status))

    def remove(self, pod: Pod) -> None:
        """Report that nothing of the pod is left here."""
        self._say(pod, PodReport(uid=pod.metadata.uid, status=pod.status, removed=True))

    def flush(self) -> None:
        """Write what is not written, after all was offered."""
        with self._lock:
            self._work()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _say(self, pod: Pod, report: PodReport) -> None:
        name = namespaced_name(pod)
        with self._lock:
            assert self._said is not None  # `newest` gave the pod
            if (before := self._said.get(name)) is not None and before.uid == report.uid and before.removed:
                return
            self._said[name] = report
            self._unwritten.add(name)
            if report.removed:
                self._work()

    # --- with the lock held ----------------------------------------------------------------

    def _as_said(self, name: str, pod: Pod) -> Pod | None:
        assert self._said is not None
        report = self._said.get(name)
        if report is None or report.uid != pod.metadata.uid:
            return pod
        if report.removed:
            return None
        status = reported_status(pod, report.status)
        return pod if status is pod.status else msgspec.structs.replace(pod, status=status)

    def _forget(self, known: Mapping[str, Pod]) -> None:
        """Pods that are not bound here any more; their reports went with them, but for those that were late."""
        assert self._said is not None
        self._unwritten |= {name for name in self._left if name not in known}
        self._left = frozenset()
        for name in [name for name in self._said if name not in known]:
            del self._said[name]
            for by_name in (self._shown, self._missed, self._answered):
                by_name.pop(name, None)

    def _compare(self, name: str, pod: Pod, now: float) -> None:
        """Whether the store shows what was said of a pod, or has long not."""
        assert self._said is not None
        report, version = self._said.get(name), pod.metadata.resource_version
        if report is None or report.uid != pod.metadata.uid or self._shown.get(name) == (version, report):
            return
        if _is_carried_over(pod, report):
            self._shown[name] = version, report
            self._missed.pop(name, None)
            return
        since = self._missed.setdefault(name, now)
        if now >= since + REMIND or (is_marked(pod) and self._answered.get(name) != version):
            self._missed[name], self._answered[name] = now, version
            self._unwritten.add(name)

    def _work(self) -> None:
        if not self._busy and (self._said is None or self._unwritten):
            self._busy = True
            self._pool.submit(self._run)

    # --- in the pool --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except PodlaneError as error:
            self._failed(error)
        except Exception as error:  # a fault of ours: later reports must still be written
            self._log.error("report failed", error=repr(error), exc_info=error)
            self._again(_FAILURE_PAUSES[1])

    def _step(self) -> bool:
        """Read what was reported, or write what was not; False when there is nothing left to do."""
        if self._said is None:
            found = self._outbox.read()
            with self._lock:
                self._said, self._left = found, frozenset(found)
            self._look_again(0.0)
        with self._lock:
            names, self._unwritten = self._unwritten, set()
            reports = {name: self._said.get(name) for name in names}
            if not names:
                self._busy = False
                return False
        try:
            self._outbox.write(reports)
        except BaseException:  # whatever it was, also a fault of ours: these are still to be written
            with self._lock:
                self._unwritten |= names
            raise
        self._failures = 0
        return True

    def _failed(self, error: PodlaneError) -> None:
        first, longest = _FAILURE_PAUSES
        self._failures += 1
        pause = min(longest, first * 2.0 ** min(self._failures - 1, 10))
        self._log.warning("report failed", pods=len(self._unwritten), error=str(error), retry_in=pause)
        self._again(pause)

    def _again(self, pause: float) -> None:
        with self._lock:
            self._busy = False
        self._look_again(pause)


def _is_carried_over(pod: Pod, report: PodReport) -> bool:
    if report.removed:  # it is there for its finalizers' sake
        return pod.metadata.deletion_timestamp is not None and not pod.metadata.deletion_grace_period_seconds
    return carried_over(pod, report.status, utcnow_from(0.0)) is pod.status
