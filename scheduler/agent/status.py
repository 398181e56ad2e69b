"""What to report of a pod: its containers, probes and plan in, a PodStatus out. Pure.

Owns: phase, conditions and container statuses. Invariants: a finished phase is
final, and not reached while a container runs; Ready is never True for a pod
whose infra container is gone or not attached to the network; a pod that is
being deleted stays Ready for as long as it serves, since a proxy falls back on
it when a service has nothing better; nothing changes but by a change of what
was seen (times come from the containers or stay), so an unchanged status need
not be written.
Source: Kubernetes' getPhase and convertStatusToAPIStatus (pkg/kubelet/kubelet_pods.go)
and status/generate.go.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

import msgspec

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
    HostIP,
    Pod,
    PodIP,
    PodStatus,
)
from scheduler.agent import containers as c
from scheduler.agent.admission import REJECTED, is_new
from scheduler.agent.history import attempts, is_due, is_sidecar, live_infra
from scheduler.agent.planstart import CREATING
from scheduler.agent.runtime import Record

Phase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]
FINISHED = {"Succeeded", "Failed"}
_SCHEME = "docker://"


@dataclass(frozen=True, slots=True)
class Health:
    """What else is known of the running containers, by id: who is `started` (hook over, startup probe passed), who
    is `ready` by its readiness probe or without one, who is `held` by its postStart hook; and by container name
    why one is `waiting` (the plan's), by id what an ended one left as its last words.
    """

    ready: Collection[str] = ()
    started: Collection[str] = ()
    held: Collection[str] = ()
    waiting: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    messages: Mapping[str, str] = field(default_factory=dict)


def compute(
    pod: Pod,
    records: Collection[Record],
    health: Health,
    *,
    node_ip: str,
    now: float,
    failed: tuple[str, str] | None = None,
) -> PodStatus:
    """The status of a pod; `failed` is the plan's reason and message for a pod that fails for another cause than
    its containers.
    """
    if not records and is_new(pod) and failed is not None:
        reason, message = failed  # nothing was begun, and as by the kubelet nothing more is told
        return msgspec.structs.replace(
            pod.status, phase="Failed", reason=reason, message=message, start_time=utcnow_from(now)
        )
    if not records and _was_rejected(pod):
        return pod.status
    infra = live_infra(records)
    if infra is None or not infra.ip:
        health = replace(health, ready=())
    init = tuple(_container(pod, ct, attempts(records, ct.name), health) for ct in pod.spec.init_containers)
    main = tuple(_container(pod, ct, attempts(records, ct.name), health) for ct in pod.spec.containers)
    old = pod.status
    phase, reason, message = old.phase, old.reason, old.message
    if not is_pod_finished(pod):
        phase = "Failed" if failed is not None else _phase(pod, init, main)
        # a pod is over when its last container is
        if phase in FINISHED and any(r.running and c.container_name(r) != c.INFRA for r in records):
            phase = "Running" if old.phase == "Pending" and main_has_begun(main) else old.phase
        elif failed is not None:
            reason, message = failed
    ip, ips = old.pod_ip, old.pod_ips or ((PodIP(ip=old.pod_ip),) if old.pod_ip else ())
    if infra is not None:
        ip, ips = infra.ip, tuple(PodIP(ip=each) for each in infra.ips)
    elif phase not in FINISHED:
        ip, ips = "", ()
    created = [r.created_at for r in records]
    return msgspec.structs.replace(
        old,
        phase=phase,
        conditions=_conditions(pod, phase, init, main, utcnow_from(now)),
        message=message,
        reason=reason,
        host_ip=node_ip,
        host_ips=(HostIP(ip=node_ip),),
        pod_ip=ip,
        pod_ips=ips,
        start_time=old.start_time or utcnow_from(min(created, default=now)),
        init_container_statuses=init,
        container_statuses=main,
    )


def _was_rejected(pod: Pod) -> bool:
    return pod.status.phase == "Failed" and pod.status.message.startswith(REJECTED)


def is_urgent(old: PodStatus, new: PodStatus) -> bool:
    """Others act on the difference (replicas, endpoints, a waiting operator): write it at once."""

    def key(status: PodStatus) -> tuple[object, ...]:
        condition = get_condition(status.conditions, "Ready")
        return status.phase, condition.status if condition else "", status.pod_ips if condition else ()

    return key(old) != key(new) and not (old.phase == new.phase == "Pending")


def main_has_begun(main: Sequence[ContainerStatus]) -> bool:
    return any(s.state.running or s.state.terminated or s.last_state.terminated for s in main)


def _phase(pod: Pod, init: Sequence[ContainerStatus], main: Sequence[ContainerStatus]) -> Phase:
    if not main_has_begun(main):
        lacking = _lacking(pod, init)
        if pod.spec.restart_policy == "Never" and any(_has_failed(s) for s in lacking):
            return "Failed"
        if lacking:
            return "Pending"
    waiting = running = stopped = succeeded = 0
    for status in main:
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
    if waiting or not main:
        return "Pending"
    if running or pod.spec.restart_policy == "Always":
        return "Running"
    if stopped == succeeded:
        return "Succeeded"
    return "Failed" if pod.spec.restart_policy == "Never" else "Running"


def _lacking(pod: Pod, init: Sequence[ContainerStatus]) -> list[ContainerStatus]:
    """The init containers that have not done what the next ones wait for."""
    pairs = zip(pod.spec.init_containers, init, strict=True)
    return [s for ct, s in pairs if not (s.started if is_sidecar(ct) else s.ready)]


def _has_failed(status: ContainerStatus) -> bool:
    ended = status.state.terminated
    return ended is not None and ended.exit_code != 0


def _conditions(
    pod: Pod, phase: Phase, init: Sequence[ContainerStatus], main: Sequence[ContainerStatus], now: datetime
) -> tuple[Condition, ...]:
    conditions = pod.status.conditions
    if get_condition(conditions, "PodScheduled") is None:
        conditions = set_condition(conditions, _condition("PodScheduled", "True", now))
    lacking = [] if main_has_begun(main) else [s.name for s in _lacking(pod, init)]
    if phase == "Succeeded":
        initialized = _condition("Initialized", "True", now, "PodCompleted")
    elif lacking:
        text = f"containers with incomplete status: [{' '.join(lacking)}]"
        initialized = _condition("Initialized", "False", now, "ContainersNotInitialized", text)
    else:
        initialized = _condition("Initialized", "True", now)
    conditions = set_condition(conditions, initialized)
    reason = message = ""
    status: ConditionStatus = "True"
    sidecars = [s for ct, s in zip(pod.spec.init_containers, init, strict=True) if is_sidecar(ct)]
    unready = [s.name for s in (*sidecars, *main) if not s.ready]
    if phase == "Succeeded":
        status, reason = "False", "PodCompleted"
    elif phase == "Failed":
        status, reason = "False", "PodFailed"
    elif unready:
        status, reason = "False", "ContainersNotReady"
        message = f"containers with unready status: [{' '.join(unready)}]"
    for kind in ("ContainersReady", "Ready"):
        conditions = set_condition(conditions, _condition(kind, status, now, reason, message))
    return conditions


def _condition(kind: str, status: ConditionStatus, now: datetime, reason: str = "", message: str = "") -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message, last_transition_time=now)


def _container(pod: Pod, ct: Container, history: Sequence[Record], health: Health) -> ContainerStatus:
    last = history[0] if history else None
    known = _reported(pod, ct)
    if last is None and known is not None and _is_final(pod, ct, known):
        return known  # its container was removed since
    earlier = next((r for r in history[1:] if r.state == "exited"), None)
    if earlier is not None:
        before = ContainerState(terminated=_terminated(earlier, health))
    else:  # what was reported when it was there to be asked
        before = known.last_state if known is not None else ContainerState()
    waiting = health.waiting.get(ct.name, (CREATING, ""))
    if last is None or last.state == "created" or last.id in health.held:
        return ContainerStatus(
            name=ct.name,
            state=_waiting(pod, waiting),
            last_state=before,
            restart_count=c.attempt(last) if last else known.restart_count if known else 0,
            image=ct.image,
        )
    regular_init = ct in pod.spec.init_containers and not is_sidecar(ct)
    ready = started = False
    if last.running:
        state = ContainerState(running=ContainerStateRunning(started_at=_time(last.started_at)))
        if not regular_init:
            started = last.id in health.started
            ready = started and last.id in health.ready
    elif waiting[0] != CREATING and not is_pod_finished(pod) and is_due(pod, ct, last):
        state = _waiting(pod, waiting)
        before = ContainerState(terminated=_terminated(last, health))
    else:  # also one about to be started again: it tells how it ended until its successor is there, as the kubelet's
        state = ContainerState(terminated=_terminated(last, health))
        ready = regular_init and last.exit_code == 0
    return ContainerStatus(
        name=ct.name,
        state=state,
        last_state=before,
        ready=ready,
        started=started,
        restart_count=c.attempt(last),
        image=ct.image,
        image_id=_SCHEME + last.image_id,
        container_id=_SCHEME + last.id,
    )


def _is_final(pod: Pod, ct: Container, known: ContainerStatus) -> bool:
    """What was reported of a container stays true when the engine has forgotten it."""
    ended = known.state.terminated
    done_init = ct in pod.spec.init_containers and not is_sidecar(ct) and ended is not None and ended.exit_code == 0
    return is_pod_finished(pod) or (done_init and main_has_begun(pod.status.container_statuses))


def _waiting(pod: Pod, why: tuple[str, str]) -> ContainerState:
    reason, message = why
    if reason == CREATING and pod.spec.init_containers:
        reason = "PodInitializing"
    return ContainerState(waiting=ContainerStateWaiting(reason=reason, message=message))


def _terminated(record: Record, health: Health) -> ContainerStateTerminated:
    if record.error:
        reason = "StartError"
    elif record.oom_killed:
        reason = "OOMKilled"
    else:
        reason = "Completed" if record.exit_code == 0 else "Error"
    return ContainerStateTerminated(
        exit_code=record.exit_code,
        reason=reason,
        message=record.error or health.messages.get(record.id, ""),
        started_at=_time(record.started_at),
        finished_at=_time(record.finished_at),
        container_id=_SCHEME + record.id,
    )


def _reported(pod: Pod, ct: Container) -> ContainerStatus | None:
    statuses = (*pod.status.init_container_statuses, *pod.status.container_statuses)
    return next((s for s in statuses if s.name == ct.name), None)


def _time(seconds: float | None) -> datetime | None:
    return utcnow_from(seconds) if seconds is not None else None
