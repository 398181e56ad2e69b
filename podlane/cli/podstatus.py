"""The words of the pods table: READY, STATUS, RESTARTS.

Owns: kubectl's summary of a pod, which is computed and stored nowhere. Pure.
Source: Kubernetes' pkg/printers/internalversion/printers.go, printPod.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from podlane.api.meta import is_pod_finished, is_pod_ready
from podlane.api.types import ContainerState, ContainerStatus, Pod
from podlane.runtime.text import age


@dataclass(frozen=True, slots=True)
class PodSummary:
    """`last_restart` is when a container ended that has been restarted since."""

    ready: int
    total: int
    reason: str
    restarts: int
    last_restart: datetime | None

    def restarts_text(self, now: datetime) -> str:
        """`0`, `2 (3m ago)`."""
        if self.restarts and self.last_restart is not None:
            return f"{self.restarts} ({age(self.last_restart, now)} ago)"
        return str(self.restarts)


def state_reason(state: ContainerState) -> str:
    """Why a container does not run: `CrashLoopBackOff`, `Completed`, `ExitCode:3`; "" while it runs."""
    if state.waiting is not None and state.waiting.reason:
        return state.waiting.reason
    if state.terminated is not None:
        ended = state.terminated
        if ended.reason:
            return ended.reason
        return f"Signal:{ended.signal}" if ended.signal else f"ExitCode:{ended.exit_code}"
    return ""


def _runs(status: ContainerStatus) -> bool:
    return status.ready and status.state.running is not None and not state_reason(status.state)


def summarize(pod: Pod) -> PodSummary:
    """The pod in one line. The first container that does not run names the reason."""
    statuses = pod.status.container_statuses
    reason = pod.status.reason or pod.status.phase
    reason = next((word for status in statuses if (word := state_reason(status.state))), reason)
    ready = sum(map(_runs, statuses))
    if reason == "Completed" and ready:
        reason = "Running" if is_pod_ready(pod) else "NotReady"
    if pod.metadata.deletion_timestamp is not None:
        if pod.status.reason == "NodeLost":
            reason = "Unknown"
        elif not is_pod_finished(pod):
            reason = "Terminating"
    ended = [
        status.last_state.terminated.finished_at
        for status in statuses
        if status.last_state.terminated is not None and status.last_state.terminated.finished_at is not None
    ]
    return PodSummary(
        ready=ready,
        total=len(pod.spec.containers),
        reason=reason,
        restarts=sum(status.restart_count for status in statuses),
        last_restart=max(ended, default=None),
    )
