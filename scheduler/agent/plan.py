"""What to do about the pods of a node: everything seen in, a plan out. Pure.

Owns: when a pod's network is made (anew), what it waits for before, and when a
pod is over; planinit.py, planstart.py, planstop.py and planend.py have the rest.
Invariants: nothing is done to a pod while an earlier plan for it is being
carried out; all that must survive a restart of the agent is read from the
containers themselves, so planning after an interruption at any step leads to
the same end; a pod that is finished is never started again. Source: Kubernetes'
computePodActions (pkg/kubelet/kuberuntime), active_deadline.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from podlane.api.meta import is_pod_finished
from podlane.api.types import Pod
from scheduler.agent import containers as c
from scheduler.agent import volumes as v
from scheduler.agent.actions import Action, Attach, Create, Remove, SetUpVolumes, Signal, Start
from scheduler.agent.environment import NotRead
from scheduler.agent.history import Latest, all_containers, attempts, is_over, latest_of, live_infra
from scheduler.agent.model import Bucket, Observed, Plan, PodPlan
from scheduler.agent.planend import plan_end, plan_finish
from scheduler.agent.planinit import whose_turn
from scheduler.agent.planstart import CREATING, Builder, is_started
from scheduler.agent.runtime import Record
from scheduler.agent.security import needs_image_user

FAILED_MOUNT = "FailedMount: "
NO_ADDRESS = "FailedCreatePodSandBox: no free address"
DEADLINE = ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
NETWORK_LOST = ("NetworkLost", "The pod's network ended, and with restartPolicy Never it is not made anew")


def plan(seen: Observed) -> Plan:
    """One plan per pod that is bound here or has containers here, sorted by UID."""
    by_pod: dict[str, list[Record]] = {uid: [] for uid in seen.pods}
    for record in seen.records:
        by_pod.setdefault(c.pod_uid(record), []).append(record)
    free = seen.addresses.free() if seen.addresses else iter(())  # shared: no two pods get the same
    return Plan(tuple(_plan_one(seen, uid, by_pod[uid], free) for uid in sorted(by_pod)))


def wanted_images(pods: Iterable[Pod]) -> frozenset[str]:
    """The images `Observed.images` must tell about."""
    return frozenset(ct.image for p in pods if p.metadata.deletion_timestamp is None for ct in all_containers(p))


def wanted_users(pods: Iterable[Pod]) -> frozenset[str]:
    """The images `Observed.users` must tell about, once they are here."""
    return frozenset(
        ct.image
        for p in pods
        for ct in all_containers(p)
        if p.metadata.deletion_timestamp is None and needs_image_user(p, ct)
    )


def _plan_one(seen: Observed, uid: str, records: list[Record], free: Iterator[str]) -> PodPlan:
    pod = seen.pods.get(uid)
    if uid in seen.busy:
        return PodPlan(uid, pod, "busy", waiting=_starting(pod, records))
    if pod is None or pod.metadata.deletion_timestamp is not None:
        return plan_end(seen, uid, pod, records)
    if is_pod_finished(pod):
        return plan_finish(seen, pod, records)
    if uid in seen.evicted:
        return plan_finish(seen, pod, records, grace=0, failed=seen.evicted[uid])
    until = _active_until(seen, pod, records)
    if until is not None and seen.now >= until:
        return plan_finish(seen, pod, records, failed=DEADLINE)
    planned = _plan_run(seen, pod, records, free)
    return planned if until is None else replace(planned, wake_at=min(until, planned.wake_at or until))


def _active_until(seen: Observed, pod: Pod, records: list[Record]) -> float | None:
    """When the pod's activeDeadlineSeconds are over (Unix seconds)."""
    if pod.spec.active_deadline_seconds is None:
        return None
    since = pod.status.start_time
    begun = since.timestamp() if since is not None else min((r.created_at for r in records), default=seen.now)
    return begun + pod.spec.active_deadline_seconds


def _plan_run(seen: Observed, pod: Pod, records: list[Record], free: Iterator[str]) -> PodPlan:
    latest = latest_of(pod, records)
    infra = live_infra(records)
    # the namespace died under containers that may not be started a second time
    begun = any(last is not None and last.state != "created" for last in latest.values())
    lost = (infra is None or infra.id in seen.stale) and pod.spec.restart_policy == "Never" and begun
    if is_over(pod, latest):
        return plan_finish(seen, pod, records, grace=0 if infra is None else None)
    if lost:
        ended = all((last := latest[ct.name]) is not None and last.state != "created" for ct in pod.spec.containers)
        return plan_finish(seen, pod, records, grace=0, failed=None if ended else NETWORK_LOST)
    if infra is None or infra.id in seen.stale:
        return _plan_rebuild(seen, pod, records, latest, free)
    steps: list[Action] = [Remove(c.INFRA, r.name) for r in attempts(records, c.INFRA) if r.id != infra.id]
    builder = Builder(seen, pod, infra.name, infra.id, infra.ip or c.pod_ip(infra))
    set_up, builder.blocked = _plan_volumes(seen, pod, begun=begun)
    builder.wake_at = builder.blocked[1] if builder.blocked is not None else None
    steps += set_up
    if not infra.ip and not c.is_on_host(infra):
        if blocked := _blocked(seen, pod):
            return _without_network(pod, *blocked)
        assert seen.addresses is not None
        steps.append(Attach(c.INFRA, infra.name, c.pod_ip(infra), seen.addresses.network))
        builder.why.append("not attached to the pod network")
    turn = whose_turn(pod, latest, infra.id, lambda ct, last: is_started(seen, pod, ct, last))
    for ct in all_containers(pod):
        last = latest[ct.name]
        if ct in turn:
            builder.add(ct, attempts(records, ct.name))
        elif last is not None and last.running and last.joined != infra.id:
            steps.append(Signal(ct.name, last.name, last.id, "SIGKILL"))
    fresh = all(last is None for last in latest.values())
    return _result(builder, "start" if fresh else "restart", "; ".join(builder.why), steps)


def _blocked(seen: Observed, pod: Pod) -> tuple[str, float | None] | None:
    """Why a pod cannot be given a network now and when to look again; None if it can."""
    failure = seen.failures.get((pod.metadata.uid, c.INFRA))
    if seen.network and not pod.spec.host_network:
        return f"NetworkNotReady: {seen.network}", None
    if failure is not None and failure.until > seen.now:
        return f"{failure.reason}: {failure.message}", failure.until
    return None


def _without_network(pod: Pod, why: str, wake_at: float | None = None, steps: tuple[Action, ...] = ()) -> PodPlan:
    waiting = dict.fromkeys((ct.name for ct in all_containers(pod)), (CREATING, why))
    bucket: Bucket = "rebuild" if steps else "wait"
    return PodPlan(pod.metadata.uid, pod, bucket, why, steps, waiting=waiting, wake_at=wake_at)


def _plan_rebuild(
    seen: Observed,
    pod: Pod,
    records: list[Record],
    latest: Latest,
    free: Iterator[str],
) -> PodPlan:
    """Make the pod's network namespace (anew): what still runs in a dead one is ended first."""
    steps: list[Action] = []
    for name, last in latest.items():
        if last is not None and last.running:
            steps.append(Signal(name, last.name, last.id, "SIGKILL"))
        elif last is not None and last.state == "created":
            steps.append(Remove(name, last.name))
    steps += [Remove(c.INFRA, r.name) for r in attempts(records, c.INFRA)]
    begun = any(last is not None and last.state != "created" for last in latest.values())
    set_up, unmounted = _plan_volumes(seen, pod, begun=begun)
    if blocked := unmounted or _blocked(seen, pod):
        return _without_network(pod, *blocked, tuple(steps))
    number = max((c.attempt(r) + 1 for r in records if c.container_name(r) == c.INFRA), default=0)
    attach: list[Action] = []
    if pod.spec.host_network:
        ip = ""
    else:
        assert seen.addresses is not None
        network, ip = seen.addresses.network, next(free, "")
        if not ip:
            return _without_network(pod, f"{NO_ADDRESS} in {network.subnet}", steps=tuple(steps))
        attach.append(Attach(c.INFRA, c.name_of(pod, c.INFRA, number), ip, network))
    config = c.infra_config(pod, number, ip)
    steps += [*set_up, Create(c.INFRA, config), Start(c.INFRA, config.name), *attach]
    builder = Builder(seen, pod, config.name, "", ip)
    for ct in whose_turn(pod, latest, "", lambda _ct, _last: False):
        builder.add(ct, attempts(records, ct.name))
    bucket: Bucket = "rebuild" if records else "start"
    return _result(builder, bucket, "infra container is gone" if records else "", steps)


def _plan_volumes(seen: Observed, pod: Pod, *, begun: bool) -> tuple[list[Action], tuple[str, float | None] | None]:
    """The step that makes the pod's volumes what they should be, if they are not, or why that cannot be done
    and when to look again. A pod that has `begun` keeps what it had where something in the store is missing.
    """
    uid = pod.metadata.uid
    stamp = v.stamp(pod, seen.known)
    if not stamp or seen.set_up.get(uid) == stamp:
        return [], None
    failure = seen.failures.get((uid, c.VOLUMES))
    if failure is not None and failure.until > seen.now:
        return [], (failure.message, failure.until)
    try:
        return [SetUpVolumes(v.set_ups(pod, seen.known, seen.files, seen.node), stamp)], None
    except NotRead as error:
        return [], None if begun else (str(error), None)
    except v.VolumeMissing as error:
        return [], None if begun else (f"{FAILED_MOUNT}{error}", None)


def _result(builder: Builder, bucket: Bucket, why: str, steps: list[Action]) -> PodPlan:
    pod, stops = builder.pod, builder.stops
    steps = [*steps, *builder.steps, *stops.steps]
    # at most clearing up, and news of volumes
    if not stops.hooks and all(isinstance(step, Remove | SetUpVolumes) for step in steps):
        bucket = "pull" if builder.pulls else "wait" if builder.waiting else "keep"
    return PodPlan(
        uid=pod.metadata.uid,
        pod=pod,
        bucket=bucket,
        why=why,
        steps=tuple(steps),
        pulls=tuple(builder.pulls),
        hooks=tuple(stops.hooks),
        waiting=builder.waiting,
        wants_services=builder.wants_services,
        wake_at=min((at for at in (builder.wake_at, stops.wake_at) if at is not None), default=None),
    )


def _starting(pod: Pod | None, records: list[Record]) -> dict[str, tuple[str, str]]:
    """Containers without a record of a pod that is being worked on."""
    if pod is None:
        return {}
    return {ct.name: (CREATING, "") for ct in all_containers(pod) if not attempts(records, ct.name)}
