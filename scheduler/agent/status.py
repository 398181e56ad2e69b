"""What to report of a pod: its containers, probes and plan in, a PodStatus out. Pure.

Owns: phase, conditions and container statuses. Invariants: a finished phase is
final; Ready is never True for a pod whose infra container is gone or not
attached to the network; a pod that is being deleted stays Ready for as long as
it serves, since a proxy falls back on it when a service has nothing better;
nothing changes but by a change of what was seen (times come from the containers
or stay), so an unchanged status need not be written.
Source: Kubernetes' getPhase and convertStatusToAPIStatus (pkg/kubelet/kubelet_pods.go)
and status/generate.go.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from podlane.api.meta import get_condition, is_pod_finished, set_condition, utcnow_from
from podlane.api.types import (
    Condition,
    ConditionStatus,
    Container,
    ContainerState,
    ContainerStateRunning,
    ContainerStateTerminated,
    ContainerStateWaiting,
    ContainerStatus,
    Pod,
    PodIP,
    PodStatus,
)
from scheduler.agent import containers as c
from scheduler.agent.plan import attempts, live_infra, should_run
from scheduler.agent.runtime import Record

Phase = str
_SCHEME = "docker://"


def compute(
    pod: Pod,
    records: Collection[Record],
    *,
    ready: Collection[str],
    waiting: Mapping[str, tuple[str, str]],
    node_ip: str,
    now: float,
) -> PodStatus:
    """The status of a pod. `ready` are ids of containers whose readiness probe passes (or who have none);
    `waiting` is the plan's reason for each container that should run and does not.
    """
    infra = live_infra(records)
    statuses = tuple(
        _container(pod, ct, attempts(records, ct.name), waiting, ready if infra and infra.ip else ())
        for ct in pod.spec.containers
    )
    old = pod.status
    phase = old.phase if is_pod_finished(pod) else _phase(pod, statuses)
    ip, ips = old.pod_ip, old.pod_ips or ((PodIP(ip=old.pod_ip),) if old.pod_ip else ())
    if infra is not None:
        ip, ips = infra.ip, tuple(PodIP(ip=each) for each in infra.ips)
    elif phase not in {"Succeeded", "Failed"}:
        ip, ips = "", ()
    created = [r.created_at for r in records]
    return PodStatus(
        phase=phase,  # type: ignore[arg-type] # one of the five literals
        conditions=_conditions(pod, phase, statuses, utcnow_from(now)),
        message=old.message,
        reason=old.reason,
        host_ip=node_ip,
        pod_ip=ip,
        pod_ips=ips,
        start_time=old.start_time or utcnow_from(min(created, default=now)),
        container_statuses=statuses,
    )


def is_urgent(old: PodStatus, new: PodStatus) -> bool:
    """Others act on the difference (replicas, endpoints, a waiting operator): write it at once."""

    def key(status: PodStatus) -> tuple[object, ...]:
        condition = get_condition(status.conditions, "Ready")
        return status.phase, condition.status if condition else "", status.pod_ips if condition else ()

    return key(old) != key(new) and not (old.phase == new.phase == "Pending")


def _phase(pod: Pod, statuses: Sequence[ContainerStatus]) -> Phase:
    waiting = running = stopped = succeeded = 0
    for status in statuses:
        ended = status.state.terminated
        if status.state.running:
            running += 1
        elif ended is not None:
            stopped += 1
            succeeded += ended.exit_code == 0
        elif status.last_state.terminated is not None:
            stopped += 1
        else:
            waiting += 1
    if waiting or not statuses:
        return "Pending"
    if running or pod.spec.restart_policy == "Always":
        return "Running"
    if stopped == succeeded:
        return "Succeeded"
    return "Failed" if pod.spec.restart_policy == "Never" else "Running"


def _conditions(pod: Pod, phase: Phase, statuses: Sequence[ContainerStatus], now: datetime) -> tuple[Condition, ...]:
    reason = message = ""
    status: ConditionStatus = "True"
    unready = [s.name for s in statuses if not s.ready]
    if phase == "Succeeded":
        status, reason = "False", "PodCompleted"
    elif phase == "Failed":
        status, reason = "False", "PodFailed"
    elif unready:
        status, reason = "False", "ContainersNotReady"
        message = f"containers with unready status: [{' '.join(unready)}]"
    conditions = pod.status.conditions
    if get_condition(conditions, "PodScheduled") is None:
        conditions = set_condition(conditions, _condition("PodScheduled", "True", now))
    conditions = set_condition(conditions, _condition("Initialized", "True", now))
    for kind in ("ContainersReady", "Ready"):
        conditions = set_condition(conditions, _condition(kind, status, now, reason, message))
    return conditions


def _condition(kind: str, status: ConditionStatus, now: datetime, reason: str = "", message: str = "") -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message, last_transition_time=now)


def _container(
    pod: Pod,
    ct: Container,
    history: Sequence[Record],
    waiting: Mapping[str, tuple[str, str]],
    ready: Collection[str],
) -> ContainerStatus:
    last = history[0] if history else None
    earlier = next((r for r in history[1:] if r.state == "exited"), None)
    before = ContainerState(terminated=_terminated(earlier)) if earlier else _remembered(pod, ct)
    if last is None or last.state == "created":
        reason, message = waiting.get(ct.name, ("ContainerCreating", ""))
        return ContainerStatus(
            name=ct.name,
            state=ContainerState(waiting=ContainerStateWaiting(reason=reason, message=message)),
            last_state=before,
            restart_count=c.attempt(last) if last else _restarts(pod, ct),
            image=ct.image,
        )
    if last.running:
        state = ContainerState(running=ContainerStateRunning(started_at=_time(last.started_at)))
    elif _is_held_back(ct.name, waiting) and should_run(pod, last) and not is_pod_finished(pod):
        reason, message = waiting[ct.name]
        state = ContainerState(waiting=ContainerStateWaiting(reason=reason, message=message))
        before = ContainerState(terminated=_terminated(last))
    else:
        state = ContainerState(terminated=_terminated(last))
    return ContainerStatus(
        name=ct.name,
        state=state,
        last_state=before,
        ready=last.running and last.id in ready,
        started=last.running,
        restart_count=c.attempt(last),
        image=ct.image,
        image_id=_SCHEME + last.image_id,
        container_id=_SCHEME + last.id,
    )


def _is_held_back(name: str, waiting: Mapping[str, tuple[str, str]]) -> bool:
    """It is not started now. One that is keeps telling how it ended until its successor is there, as the kubelet's."""
    return name in waiting and waiting[name][0] != "ContainerCreating"


def _terminated(record: Record) -> ContainerStateTerminated:
    if record.error:
        reason = "StartError"
    elif record.oom_killed:
        reason = "OOMKilled"
    else:
        reason = "Completed" if record.exit_code == 0 else "Error"
    return ContainerStateTerminated(
        exit_code=record.exit_code,
        reason=reason,
        message=record.error,
        started_at=_time(record.started_at),
        finished_at=_time(record.finished_at),
        container_id=_SCHEME + record.id,
    )


def _remembered(pod: Pod, ct: Container) -> ContainerState:
    """What was reported of the previous attempt when its container is not there to be asked."""
    status = _reported(pod, ct)
    return status.last_state if status else ContainerState()


def _restarts(pod: Pod, ct: Container) -> int:
    status = _reported(pod, ct)
    return status.restart_count if status else 0


def _reported(pod: Pod, ct: Container) -> ContainerStatus | None:
    return next((s for s in pod.status.container_statuses if s.name == ct.name), None)


def _time(seconds: float | None) -> datetime | None:
    return utcnow_from(seconds) if seconds is not None else None
