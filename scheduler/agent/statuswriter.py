"""Writing the statuses of pods to the store, several at a time.

Owns: what was written last, so that a mirror that lags behind our own writes
causes neither a conflict nor a second write. Invariants: a write rests on the
newest copy known (compare-and-swap); a write that lost or failed is not
repeated as it was: `look_again` leads to a new look at the pod and a status of
then. While the store is away nothing piles up: one status per pod is pending.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable

import msgspec

from podlane.api.types import Pod, PodStatus
from podlane.errors import Conflict, NotFound, PodlaneError
from podlane.runtime.log import get_logger
from scheduler.agent.workers import MakePool, threads

_THREADS = 4
_CONFLICT_PAUSE = 0.1
_FAILURE_PAUSES = (0.5, 5.0)


class StatusWriter:
    """`replace` is Registry.replace; `look_again(seconds)` asks for another sync."""

    def __init__(
        self, replace: Callable[[Pod, Pod], Pod], look_again: Callable[[float], None], *, pool: MakePool = threads
    ) -> None:
        self._replace = replace
        self._look_again = look_again
        self._pool = pool(_THREADS, "status")
        self._lock = threading.Lock()
        self._latest: dict[str, Pod] = {}
        self._pending: dict[str, tuple[Pod, PodStatus]] = {}
        self._writing: set[str] = set()
        self._failures = 0
        self._log = get_logger("status")

    def newest(self, pods: Iterable[Pod]) -> dict[str, Pod]:
        """The pods by UID, each replaced by our own later write where the mirror has not seen it yet."""
        with self._lock:
            return {pod.metadata.uid: _later(pod, self._latest.get(pod.metadata.uid)) for pod in pods}

    def offer(self, pod: Pod, status: PodStatus) -> None:
        """Write this status over `pod`, unless it is so already; replaces one not begun yet."""
        uid = pod.metadata.uid
        with self._lock:
            if status == pod.status:
                self._pending.pop(uid, None)
                return
            self._pending[uid] = pod, status
            if uid in self._writing:
                return
            self._writing.add(uid)
        self._pool.submit(self._run, uid)

    def keep(self, uids: Collection[str]) -> None:
        """Forget every pod but these."""
        with self._lock:
            self._latest = {uid: pod for uid, pod in self._latest.items() if uid in uids}
            self._pending = {uid: offered for uid, offered in self._pending.items() if uid in uids}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, uid: str) -> None:
        while True:
            with self._lock:
                offered = self._pending.pop(uid, None)
                latest = self._latest.get(uid)
                if offered is None:
                    self._writing.discard(uid)
                    return
            pod, status = offered
            pod = _later(pod, latest)
            if pod.status != status:
                self._write(uid, pod, status)

    def _write(self, uid: str, pod: Pod, status: PodStatus) -> None:
        name = f"{pod.metadata.namespace}/{pod.metadata.name}"
        try:
            written = self._replace(pod, msgspec.structs.replace(pod, status=status))
        except NotFound:
            return
        except Conflict:
            # somebody else wrote: their copy reaches the mirror, and with it a new status is made
            self._look_again(_CONFLICT_PAUSE)
        except PodlaneError as error:
            self._failed(name, error)
        except Exception as error:  # a fault of ours: later pods must still be written
            self._log.error("status write failed", pod=name, error=repr(error), exc_info=error)
            self._look_again(_FAILURE_PAUSES[1])
        else:
            with self._lock:
                self._latest[uid] = _later(written, self._latest.get(uid))
                self._failures = 0

    def _failed(self, name: str, error: PodlaneError) -> None:
        first, longest = _FAILURE_PAUSES
        with self._lock:
            self._failures += 1
            count = self._failures
        pause = min(longest, first * 2.0 ** min(count - 1, 10))
        self._log.warning("status write failed", pod=name, error=str(error), retry_in=pause)
        self._look_again(pause)


def _revision(pod: Pod) -> int:
    return int(pod.metadata.resource_version or 0)


def _later(pod: Pod, other: Pod | None) -> Pod:
    return other if other is not None and _revision(other) > _revision(pod) else pod
