"""Which of the pods bound here have arrived: a new one is asked for its right to be here first.

Owns: what was decided. Invariants: a pod is decided on once, the oldest first,
and refused only by a Node read after the pod was seen (labels, taints and
amounts may be news); while that is waited for the pod has not arrived, and when
the store does not answer it is let in. A pod that is let in counts for the next
ones at once. A controller replaces what is refused without pause, so each
further pod of one is refused later. For the sync's thread, but for `read`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from podlane.api.meta import controller_of, is_pod_finished, namespaced_name
from podlane.api.types import Node, Pod
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from scheduler.agent.admission import REJECTED, Refusal, is_new, refusal

PATIENCE = 5.0
"""Seconds a pod is kept waiting for the Node."""
PAUSES = (1.0, 300.0)
"""Seconds from one refused pod of a controller to the next: first, longest."""


class Gate:
    """`ask` has the Node read, which comes by `read`; `look_again(seconds)` asks for another sync."""

    def __init__(self, ask: Callable[[], None], look_again: Callable[[float], None], clock: Clock) -> None:
        self._ask = ask
        self._look_again = look_again
        self._clock = clock
        self._node: tuple[Node, float] | None = None
        self._since: dict[str, float] = {}
        """By UID of each pod that waits: when it was first seen (monotonic)."""
        self._admitted: set[str] = set()
        self._rejected: dict[str, Refusal] = {}
        self._owners: dict[str, tuple[int, float]] = {}
        """By UID of a controller: how many of its pods in a row were refused, and until when the next is not."""
        self._log = get_logger("admission")

    def read(self, node: Node, as_of: float) -> bool:
        """The Node, read after `as_of` (monotonic); whether a pod waits for it. From any thread."""
        self._node = node, as_of
        return bool(self._since)

    def rejected(self) -> dict[str, Refusal]:
        """Reason and message by UID of the pods that must not be begun."""
        return self._rejected.copy()

    def look(self, pods: Mapping[str, Pod], begun: Collection[str]) -> dict[str, Pod]:
        """The pods that have arrived, be it to be refused. `begun` are UIDs with containers."""
        self._forget(pods)
        new = [
            pod
            for uid, pod in pods.items()
            if is_new(pod) and uid not in begun and uid not in self._admitted and uid not in self._rejected
        ]
        if not new:
            return dict(pods)
        waiting = {pod.metadata.uid for pod in new}
        out = waiting | self._rejected.keys()
        others = [pod for uid, pod in pods.items() if uid not in out and not is_pod_finished(pod)]
        for pod in sorted(new, key=_age):
            uid = pod.metadata.uid
            if self._decide(pod, others):
                self._since.pop(uid, None)
                waiting.discard(uid)
                if uid in self._admitted:
                    others.append(pod)
        return {uid: pod for uid, pod in pods.items() if uid not in waiting}

    def _decide(self, pod: Pod, others: Collection[Pod]) -> bool:
        """Let it in or refuse it; False when that must wait."""
        uid, now = pod.metadata.uid, self._clock.monotonic()
        since = self._since.setdefault(uid, now)
        known = self._node
        why = refusal(pod, known[0], others) if known is not None else None
        fresh = known is not None and known[1] >= since
        if (known is None or why is not None) and not fresh and now < since + PATIENCE:
            self._ask()
            self._look_again(since + PATIENCE - now)
            return False
        owner = controller_of(pod)
        if why is None or not fresh:
            self._admitted.add(uid)
            if owner is not None:
                self._owners.pop(owner.uid, None)
            return True
        if owner is not None and not self._may_refuse(owner.uid, now):
            return False
        self._log.warning("pod rejected", pod=namespaced_name(pod), reason=why[0], why=why[1])
        self._rejected[uid] = why[0], REJECTED + why[1]
        return True

    def _may_refuse(self, owner: str, now: float) -> bool:
        first, longest = PAUSES
        times, until = self._owners.get(owner, (0, now))
        if now < until:
            self._look_again(until - now)
            return False
        self._owners[owner] = times + 1, now + min(longest, first * 2.0 ** min(times, 16))
        return True

    def _forget(self, pods: Mapping[str, Pod]) -> None:
        now = self._clock.monotonic()
        self._admitted &= pods.keys()
        self._since = {uid: at for uid, at in self._since.items() if uid in pods and is_new(pods[uid])}
        self._rejected = {
            uid: why for uid, why in self._rejected.items() if uid in pods and not is_pod_finished(pods[uid])
        }
        self._owners = {uid: known for uid, known in self._owners.items() if now < known[1] + PAUSES[1]}


def _age(pod: Pod) -> tuple[float, str]:
    created = pod.metadata.creation_timestamp
    return created.timestamp() if created is not None else 0.0, pod.metadata.uid
