"""Pods that are to be no more, or have nothing left to do. Pure.

Owns: how a whole pod ends. Invariants: a pod that is being deleted is drained
(drain.py) before anything is told to end; it is taken out of the store last;
a pod that is over keeps its ended containers for their logs, but neither its
network nor its sidecars. Source: SyncTerminatingPod and killPod (pkg/kubelet).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from podlane.api.types import Pod
from scheduler.agent import containers as c
from scheduler.agent.actions import Action, Release, Remove
from scheduler.agent.history import attempts, live_infra
from scheduler.agent.model import Bucket, Ending, Observed, PodPlan
from scheduler.agent.planstop import Stops
from scheduler.agent.runtime import Record

LEFT_TO_END = 2
"""Seconds of its grace period that a drain leaves a pod for the ending itself, or else half of a short one."""


def to_drain(
    pods: Mapping[str, Pod], records: Iterable[Record], endings: Mapping[str, Ending], told: Iterable[str]
) -> dict[str, Pod]:
    """The pods `Observed.drains` must tell about, by UID: being deleted, were ready, and not told to end yet.

    `told` are the ids of containers that were (`Observed.stops`).
    """
    known = set(told)
    running: dict[str, bool] = {}
    for r in records:
        if r.running and c.container_name(r) != c.INFRA:
            running[c.pod_uid(r)] = running.get(c.pod_uid(r), False) or r.id in known
    return {
        uid: pods[uid]
        for uid, ending in endings.items()
        if uid in pods and running.get(uid) is False and ending.ready and grace_of(pods[uid]) > 0
    }


def plan_finish(
    seen: Observed,
    pod: Pod,
    records: list[Record],
    *,
    grace: float | None = None,
    failed: tuple[str, str] | None = None,
) -> PodPlan:
    """Nothing of the pod is to start any more: what still runs ends, then the network goes.

    The ended containers stay for their logs. `grace` in seconds, default the pod's.
    """
    infra = live_infra(records)
    stops = Stops(seen, pod, infra.ip if infra else "")
    stops.stop_all(records, grace=pod.spec.termination_grace_period_seconds if grace is None else grace)
    steps = list(stops.steps)
    if not _running(records) or grace == 0:
        steps += [Remove(c.INFRA, r.name) for r in attempts(records, c.INFRA)]
    return PodPlan(
        uid=pod.metadata.uid,
        pod=pod,
        bucket="stop" if steps or stops.hooks or stops.wake_at is not None else "keep",
        why=failed[1] if failed is not None else "finished",
        steps=tuple(steps),
        hooks=tuple(stops.hooks),
        wake_at=stops.wake_at,
        failed=failed,
    )


def plan_end(seen: Observed, uid: str, pod: Pod | None, records: list[Record]) -> PodPlan:
    """End a pod: drain, preStop, SIGTERM, grace, SIGKILL, remove, tell the store.

    Containers of a pod that is not bound here (any more) are nobody's
    endpoints, so they are not drained, but they get their grace period.
    """
    bucket: Bucket = "stop" if pod else "orphan"
    ending = seen.endings.get(uid, Ending(seen.now))
    running = _running(records)
    failure = seen.failures.get((uid, c.INFRA))
    if failure is not None and failure.until > seen.now:
        return PodPlan(uid, pod, bucket, failure.message, wake_at=failure.until)
    if not running:
        steps: list[Action] = [Remove(c.container_name(r), r.name) for r in records if c.container_name(r) != c.INFRA]
        steps += [Remove(c.INFRA, r.name) for r in attempts(records, c.INFRA)]
        if pod is not None:
            steps.append(Release(pod.metadata.namespace, pod.metadata.name))
        return PodPlan(uid, pod, bucket, "ended", tuple(steps))
    grace = float(grace_of(pod) if pod is not None else max(c.grace_period(r) for r in running))
    deadline = ending.since + grace
    limit = ending.since + min(seen.drain_timeout, max(grace - LEFT_TO_END, grace / 2))
    drained_at, waits_for = _drained(seen, uid, limit)
    if seen.now < min(drained_at, deadline):
        why = "draining" + (f", waiting for {waits_for}" if waits_for else "")
        return PodPlan(uid, pod, bucket, why, wake_at=drained_at)
    infra = live_infra(records)
    stops = Stops(seen, pod, infra.ip if infra else "")
    stops.stop_all(records, grace=grace, begun=ending.since)
    why = "deleted" if pod else "not bound to this node"
    if seen.now >= deadline:
        why, waits_for = f"grace period of {grace:g} s is over", ""
    return PodPlan(
        uid,
        pod,
        bucket,
        why,
        tuple(stops.steps),
        hooks=tuple(stops.hooks),
        wake_at=stops.wake_at,
        undrained=waits_for,
    )


def grace_of(pod: Pod) -> int:
    """Seconds a pod that is being deleted has to end."""
    given = pod.metadata.deletion_grace_period_seconds
    return given if given is not None else pod.spec.termination_grace_period_seconds


def _drained(seen: Observed, uid: str, limit: float) -> tuple[float, str]:
    """When a pod may be told to end, as far as is known now, and what is waited for until then."""
    drain = seen.drains.get(uid)
    if drain is None:
        return seen.now, ""
    if drain.quiet_at is None:
        return limit, drain.waits_for
    return min(limit, drain.quiet_at + (seen.drain_delay if drain.served else 0.0)), ""


def _running(records: Iterable[Record]) -> list[Record]:
    return [r for r in records if r.running and c.container_name(r) != c.INFRA]
