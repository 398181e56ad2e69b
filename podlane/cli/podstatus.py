"""The words of the pods table: READY, STATUS, RESTARTS.

Owns: kubectl's summary of a pod, which is computed and stored nowhere. Pure. Where
a node ended a pod (Evicted), kubectl has the reason because the kubelet tells
nothing of its containers; our agent does, and the reason comes first all the same.
Source: Kubernetes' pkg/printers/internalversion/printers.go, printPod.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from podlane.api.meta import get_condition, is_pod_finished, is_pod_ready
from podlane.api.types import ContainerState, Pod
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


def summarize(pod: Pod) -> PodSummary:
    """The pod in one line. The first container that does not run names the reason; while init containers run, the
    one whose turn it is: `Init:1/2`, `Init:CrashLoopBackOff`.
    """
    sidecars = {ct.name for ct in pod.spec.init_containers if ct.restart_policy == "Always"}
    init, statuses = pod.status.init_container_statuses, pod.status.container_statuses
    running = [s for s in init if s.name in sidecars and s.started and s.ready]
    init_reason = _init_reason(pod, sidecars)
    reason = init_reason or pod.status.reason or pod.status.phase
    if not init_reason or _is_initialized(pod):
        reason = next((word for s in statuses if (word := state_reason(s.state))), reason)
        counted = [s for s in init if s.name in sidecars] + list(statuses)
        serving = [s for s in statuses if s.ready and s.state.running is not None]
        if reason == "Completed" and serving:
            reason = "Running" if is_pod_ready(pod) else "NotReady"
        running += serving
    else:
        counted = list(init)
    if pod.status.phase == "Failed" and pod.status.reason:
        reason = pod.status.reason  # the node's: it says more than how the containers took it
    if pod.metadata.deletion_timestamp is not None:
        if pod.status.reason == "NodeLost":
            reason = "Unknown"
        elif not is_pod_finished(pod):
            reason = "Terminating"
    ended = [s.last_state.terminated.finished_at for s in counted if s.last_state.terminated is not None]
    return PodSummary(
        ready=len(running),
        total=len(pod.spec.containers) + len(sidecars),
        reason=reason,
        restarts=sum(s.restart_count for s in counted),
        last_restart=max((at for at in ended if at is not None), default=None),
    )


def _init_reason(pod: Pod, sidecars: Collection[str]) -> str:
    """What the first init container that is not done does; "" when all are."""
    for number, status in enumerate(pod.status.init_container_statuses):
        ended = status.state.terminated
        if (ended is not None and ended.exit_code == 0) or (status.name in sidecars and status.started):
            continue
        word = state_reason(status.state)
        if word and word != "PodInitializing":
            return f"Init:{word}"
        return f"Init:{number}/{len(pod.spec.init_containers)}"
    return ""


def _is_initialized(pod: Pod) -> bool:
    condition = get_condition(pod.status.conditions, "Initialized")
    return condition is not None and condition.status == "True"
