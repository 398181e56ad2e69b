"""Which pod must go when a node runs out of memory, before the kernel chooses one.

Owns: the choice (pure) and its pace. Invariants: one pod at a time, and then a
pause in which what it held can show; never a system-critical one, never one
that ends already or whose usage is not known. What remains of the choice is the
pod's phase Failed; an agent that restarts in between has chosen nothing.
Source: the kubelet's ranking (rankMemoryPressure in pkg/kubelet/eviction) and
hard eviction without grace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from podlane.api.meta import is_pod_active
from podlane.api.priority import HIGHEST_USER_PRIORITY
from podlane.api.quantity import bytes_, format_bytes
from podlane.api.types import Pod
from podlane.errors import PodlaneError
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger

REASON = "Evicted"
SYSTEM_CRITICAL = 2 * HIGHEST_USER_PRIORITY
PAUSE = 10.0
"""Seconds between two evictions: the kubelet looks so often."""


def choose(pods: Iterable[Pod], used: Mapping[str, int]) -> tuple[Pod, str] | None:
    """The pod that must go and what to say of it; None if there is none. `used`: bytes of memory by UID.

    First those that use more than they request, then lower priority, then who uses most beyond its request.
    """
    candidates = [
        pod
        for pod in pods
        if is_pod_active(pod) and pod.metadata.uid in used and (pod.spec.priority or 0) < SYSTEM_CRITICAL
    ]

    def beyond(pod: Pod) -> int:
        return used[pod.metadata.uid] - _requested(pod)

    if not candidates:
        return None
    pod = min(candidates, key=lambda p: (beyond(p) <= 0, p.spec.priority or 0, -beyond(p), p.metadata.uid))
    usage, request = format_bytes(used[pod.metadata.uid] >> 10 << 10), format_bytes(_requested(pod))
    return pod, f"The node was low on resource: memory. The pod was using {usage}, its request is {request}."


def _requested(pod: Pod) -> int:
    return sum(bytes_(ct.resources.requests.get("memory", "0")) for ct in pod.spec.containers)


class Evictor:
    """`usage` answers as `GET /stats` does, `pods` are those bound here, `evict` ends one and says why."""

    def __init__(
        self,
        usage: Callable[[], Mapping[str, Any]],
        pods: Callable[[], Iterable[Pod]],
        evict: Callable[[Pod, str], None],
        clock: Clock,
    ) -> None:
        self._usage = usage
        self._pods = pods
        self._evict = evict
        self._clock = clock
        self._rest_until = clock.monotonic()
        self._log = get_logger("eviction")

    def look(self) -> None:
        """There is too little memory at this moment."""
        if self._clock.monotonic() < self._rest_until:
            return
        try:
            told = self._usage()
        except PodlaneError as error:
            self._log.warning("usage not known", error=str(error), retry_in=PAUSE)
            return
        used = {pod["uid"]: sum(ct["memory"] for ct in pod["containers"]) for pod in told["pods"]}
        self._rest_until = self._clock.monotonic() + PAUSE
        if (chosen := choose(self._pods(), used)) is not None:
            self._evict(*chosen)
