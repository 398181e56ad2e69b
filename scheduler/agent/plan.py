"""What to do about the pods of a node: everything seen in, a plan out. Pure.

Owns: every decision about containers (when a pod's network is made anew, when
a container is started again, when and how it is ended) and the order of the
steps. Invariants: nothing is done to a pod while an earlier plan for it is
being carried out; all that must survive a restart of the agent is read from
the containers themselves, so planning after an interruption at any step leads
to the same end; a pod that is finished is never started again. Source:
Kubernetes' computePodActions and doBackOff (pkg/kubelet/kuberuntime): the first
restart is immediate, the next wait 10 s doubling to 5 min counted from the end
of the container, and 10 min of running are forgiven everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from podlane.api.meta import is_pod_finished
from podlane.api.types import Container, Pod
from scheduler.agent import containers as c
from scheduler.agent import volumes as v
from scheduler.agent.actions import (
    Action,
    Attach,
    BindParts,
    Create,
    Pull,
    Release,
    Remove,
    SetUpVolumes,
    Signal,
    Start,
    Stop,
    WriteHosts,
)
from scheduler.agent.environment import ConfigError, NotRead, environment
from scheduler.agent.model import Bucket, Ending, Observed, Plan, PodPlan
from scheduler.agent.runtime import Record
from scheduler.agent.security import needs_image_user, security

CONFIG_ERROR = "CreateContainerConfigError"
FAILED_MOUNT = "FailedMount: "
NO_ADDRESS = "FailedCreatePodSandBox: no free address"
INITIAL_BACKOFF = 10
MAX_BACKOFF = 300
FORGIVEN_AFTER = 2 * MAX_BACKOFF
"""Seconds a container must have run for its next restart to be immediate again."""
LEFT_TO_END = 2
"""Seconds of its grace period that a drain leaves a pod for the ending itself, or else half of a short one."""
KEPT_DEAD = 1
"""Ended containers kept per container of a pod, for `logs --previous`."""


def plan(seen: Observed) -> Plan:
    """One plan per pod that is bound here or has containers here, sorted by UID."""
    by_pod: dict[str, list[Record]] = {uid: [] for uid in seen.pods}
    for record in seen.records:
        by_pod.setdefault(c.pod_uid(record), []).append(record)
    free = seen.addresses.free() if seen.addresses else iter(())  # shared: no two pods get the same
    return Plan(tuple(_plan_one(seen, uid, by_pod[uid], free) for uid in sorted(by_pod)))


def wanted_images(pods: Iterable[Pod]) -> frozenset[str]:
    """The images `Observed.images` must tell about."""
    return frozenset(ct.image for p in pods if p.metadata.deletion_timestamp is None for ct in p.spec.containers)


def wanted_users(pods: Iterable[Pod]) -> frozenset[str]:
    """The images `Observed.users` must tell about, once they are here."""
    return frozenset(
        ct.image
        for p in pods
        for ct in (*p.spec.init_containers, *p.spec.containers)
        if p.metadata.deletion_timestamp is None and needs_image_user(p, ct)
    )


def next_start(last: Record, now: float) -> tuple[float, int]:
    """When an ended container may start again (Unix seconds, perhaps past), and the new one's back-off label."""
    before = c.backoff(last)
    ended = last.finished_at if last.finished_at is not None else last.created_at
    begun = last.started_at if last.started_at is not None else last.created_at
    if not before or ended - begun > FORGIVEN_AFTER:
        return now, INITIAL_BACKOFF
    # a clock set back must not stretch the wait
    return min(ended, now) + before, min(2 * before, MAX_BACKOFF)


def should_run(pod: Pod, last: Record | None) -> bool:
    """By the restart policy, a container whose latest attempt is `last` ought to be running."""
    if last is None or last.state != "exited":
        return True
    policy = pod.spec.restart_policy
    return policy == "Always" or (policy == "OnFailure" and last.exit_code != 0)


def to_drain(pods: Mapping[str, Pod], records: Iterable[Record], endings: Mapping[str, Ending]) -> dict[str, Pod]:
    """The pods `Observed.drains` must tell about, by UID: being deleted, were ready, and not told to end yet."""
    running = {c.pod_uid(r) for r in records if r.running and c.container_name(r) != c.INFRA}
    return {
        uid: pods[uid]
        for uid, ending in endings.items()
        if uid in pods and uid in running and ending.ready and not ending.signalled and _grace(pods[uid]) > 0
    }


def attempts(records: Iterable[Record], name: str) -> list[Record]:
    """A container's records, the latest first."""
    mine = [r for r in records if c.container_name(r) == name]
    return sorted(mine, key=lambda r: (c.attempt(r), r.created_at), reverse=True)


def live_infra(records: Iterable[Record]) -> Record | None:
    return next((r for r in attempts(records, c.INFRA) if r.running), None)


def _plan_one(seen: Observed, uid: str, records: list[Record], free: Iterator[str]) -> PodPlan:
    pod = seen.pods.get(uid)
    if uid in seen.busy:
        return PodPlan(uid, pod, "busy", waiting=_starting(pod, records))
    if pod is None:
        return _plan_end(seen, uid, None, records)
    if pod.metadata.deletion_timestamp is not None:
        return _plan_end(seen, uid, pod, records)
    return _plan_run(seen, pod, records, free)


# --- pods that should run ---------------------------------------------------------


def _plan_run(seen: Observed, pod: Pod, records: list[Record], free: Iterator[str]) -> PodPlan:
    latest = {ct.name: next(iter(attempts(records, ct.name)), None) for ct in pod.spec.containers}
    infra = live_infra(records)
    ended = is_pod_finished(pod) or not any(should_run(pod, last) for last in latest.values())
    # the namespace died under containers that may not be started a second time
    begun = any(last is not None and last.state != "created" for last in latest.values())
    lost = (infra is None or infra.id in seen.stale) and pod.spec.restart_policy == "Never" and begun
    if ended or lost:
        return _plan_finish(pod, records)
    if infra is None or infra.id in seen.stale:
        return _plan_rebuild(seen, pod, records, latest, free)
    steps: list[Action] = [Remove(c.INFRA, r.name) for r in attempts(records, c.INFRA) if r.id != infra.id]
    builder = _Builder(seen, pod, infra.name, infra.id, c.pod_ip(infra))
    set_up, builder.blocked = _plan_volumes(seen, pod, begun=begun)
    steps += set_up
    if not infra.ip and not c.is_on_host(infra):
        if blocked := _blocked(seen, pod):
            return _without_network(pod, *blocked)
        assert seen.addresses is not None
        steps.append(Attach(c.INFRA, infra.name, c.pod_ip(infra), seen.addresses.network))
        builder.why.append("not attached to the pod network")
    for ct in pod.spec.containers:
        builder.add(ct, attempts(records, ct.name))
    steps += builder.steps
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
    waiting = dict.fromkeys((ct.name for ct in pod.spec.containers), ("ContainerCreating", why))
    bucket: Bucket = "rebuild" if steps else "wait"
    return PodPlan(pod.metadata.uid, pod, bucket, why, steps, waiting=waiting, wake_at=wake_at)


def _plan_rebuild(
    seen: Observed,
    pod: Pod,
    records: list[Record],
    latest: Mapping[str, Record | None],
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
    if pod.spec.host_network:
        ip, attach = "", ()
    else:
        assert seen.addresses is not None
        network, ip = seen.addresses.network, next(free, "")
        if not ip:
            return _without_network(pod, f"{NO_ADDRESS} in {network.subnet}", steps=tuple(steps))
        attach = (Attach(c.INFRA, c.name_of(pod, c.INFRA, number), ip, network),)
    config = c.infra_config(pod, number, ip)
    steps += [*set_up, Create(c.INFRA, config), Start(c.INFRA, config.name), *attach]
    builder = _Builder(seen, pod, config.name, "", ip)
    for ct in pod.spec.containers:
        if should_run(pod, latest[ct.name]):
            builder.add(ct, attempts(records, ct.name))
    steps += builder.steps
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


def _result(builder: _Builder, bucket: Bucket, why: str, steps: list[Action]) -> PodPlan:
    pod = builder.pod
    if all(isinstance(step, Remove | SetUpVolumes) for step in steps):  # at most clearing up, and news of volumes
        bucket = "pull" if builder.pulls else "wait" if builder.waiting else "keep"
    return PodPlan(
        uid=pod.metadata.uid,
        pod=pod,
        bucket=bucket,
        why=why,
        steps=tuple(steps),
        pulls=tuple(builder.pulls),
        waiting=builder.waiting,
        wake_at=builder.wake_at,
    )


class _Builder:
    """Collects the steps for the containers of one pod, in the order of its specification."""

    def __init__(self, seen: Observed, pod: Pod, infra: str, infra_id: str, ip: str) -> None:
        self.seen, self.pod, self.infra, self.infra_id, self.ip = seen, pod, infra, infra_id, ip
        self.blocked: tuple[str, float | None] | None = None
        self.steps: list[Action] = []
        self.pulls: list[Pull] = []
        self.waiting: dict[str, tuple[str, str]] = {}
        self.why: list[str] = []
        self.wake_at: float | None = None

    def add(self, ct: Container, history: list[Record]) -> None:
        """`history` is the container's records, the latest first."""
        last = history[0] if history else None
        if last is None:
            self._start(ct, self._first_attempt(ct), 0)
        elif last.state == "created":
            self._begin_created(ct, last)
        elif last.running:
            self._check_running(ct, last)
        elif should_run(self.pod, last):
            self._restart(ct, last)
        self.steps += [Remove(ct.name, r.name) for r in history[1 + KEPT_DEAD :] if not r.running]

    def _begin_created(self, ct: Container, last: Record) -> None:
        if self.infra_id and last.joined == self.infra_id and self._current(ct, last):
            failure = self.seen.failures.get((self.pod.metadata.uid, ct.name))
            if failure is not None and failure.until > self.seen.now:
                self.waiting[ct.name] = (failure.reason, failure.message)
                self._wake(failure.until)
                return
            self.waiting[ct.name] = ("ContainerCreating", "")
            self.steps.append(Start(ct.name, last.name))
            return
        if self.infra_id:  # a rebuild has removed it already
            self.steps.append(Remove(ct.name, last.name))
        self._start(ct, c.attempt(last), c.backoff(last))

    def _check_running(self, ct: Container, last: Record) -> None:
        if not self.infra_id or last.joined != self.infra_id:
            if self.infra_id:
                self.steps.append(Signal(ct.name, last.name, last.id, "SIGKILL"))
            self.why.append(f"{ct.name} is in a dead network namespace")
            self._start(ct, c.attempt(last) + 1, c.backoff(last))
        elif not self._current(ct, last):
            self.why.append(f"{ct.name} specification changed")
            self.steps.append(Stop(ct.name, last.name, self.pod.spec.termination_grace_period_seconds))
            self._start(ct, c.attempt(last) + 1, 0)

    def _restart(self, ct: Container, last: Record) -> None:
        rebuilt = not self.infra_id or last.joined != self.infra_id
        at, wait = next_start(last, self.seen.now)
        if rebuilt:  # it did not fail, its network did
            at, wait = self.seen.now, c.backoff(last)
        if at > self.seen.now:
            meta = self.pod.metadata
            self.waiting[ct.name] = (
                "CrashLoopBackOff",
                f"back-off {c.backoff(last)}s restarting failed container={ct.name} "
                f"pod={meta.name}_{meta.namespace}({meta.uid})",
            )
            self._wake(at)
            return
        self.why.append(f"{ct.name} ended with {last.exit_code}")
        self._start(ct, c.attempt(last) + 1, wait)

    def _start(self, ct: Container, number: int, wait: int) -> None:
        """Create and start an attempt once its image is there and earlier failures are slept off."""
        uid = self.pod.metadata.uid
        self.waiting.setdefault(ct.name, ("ContainerCreating", ""))
        if self.blocked is not None:
            self.waiting[ct.name] = ("ContainerCreating", self.blocked[0])
            if self.blocked[1] is not None:
                self._wake(self.blocked[1])
            return
        failure = self.seen.failures.get((uid, ct.name))
        if failure is not None and failure.until > self.seen.now:
            self.waiting[ct.name] = (failure.reason, failure.message)
            self._wake(failure.until)
            return
        present = self.seen.images.get(ct.image) is not None
        if ct.image_pull_policy == "Never" and not present:
            text = f'Container image "{ct.image}" is not present with pull policy of Never'
            self.waiting[ct.name] = ("ErrImageNeverPull", text)
            return
        fetched = (uid, ct.name, number) in self.seen.pulled
        if (ct.image_pull_policy == "Always" and not fetched) or not present:
            if failure is not None:
                self.waiting[ct.name] = (failure.reason, failure.message)
            self.pulls.append(Pull(ct.name, ct.image, number))
            return
        try:
            self.steps += self._make(ct, number, wait)
        except NotRead as error:
            self.waiting[ct.name] = ("ContainerCreating", str(error))
        except ConfigError as error:
            self.waiting[ct.name] = (CONFIG_ERROR, str(error))

    def _make(self, ct: Container, number: int, wait: int) -> list[Action]:
        """Raises ConfigError, NotRead."""
        seen, pod, ips = self.seen, self.pod, self._ips()
        if needs_image_user(pod, ct) and ct.image not in seen.users:
            raise NotRead(f"it is not known yet whom image {ct.image} runs as")
        env = environment(pod, ct, seen.known, seen.node, ips)
        config = c.container_config(
            pod,
            ct,
            self.infra,
            number,
            wait,
            env=env,
            mounts=v.mounts(pod, ct, seen.files),
            security=security(pod, ct, seen.users.get(ct.image, "")),
            node_memory=seen.node.memory,
        )
        aliases = tuple(f"{alias.ip}\t" + "\t".join(alias.hostnames) for alias in pod.spec.host_aliases)
        hosts = seen.files.hosts(pod.metadata.uid)
        parts = v.sub_paths(pod, ct, seen.files)
        return [
            WriteHosts(ct.name, hosts, c.hostname_of(pod), ips, aliases, pod.spec.host_network),
            *([BindParts(ct.name, parts)] if parts else []),
            Create(ct.name, config, env.skipped),
            Start(ct.name, config.name),
        ]

    def _ips(self) -> tuple[str, ...]:
        if self.pod.spec.host_network:
            return self.seen.node.ips
        known = self.seen.addresses
        return known.network.ips(self.ip) if known is not None else (self.ip,)

    def _first_attempt(self, ct: Container) -> int:
        """Goes on counting where the status stopped when the engine lost its containers."""
        for status in self.pod.status.container_statuses:
            if status.name == ct.name and status.container_id:
                return status.restart_count + 1
        return 0

    @staticmethod
    def _current(ct: Container, record: Record) -> bool:
        return record.labels.get(c.SPEC_HASH) == c.spec_hash(ct)

    def _wake(self, at: float) -> None:
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)


# --- pods that should not ------------------------------------------------------------


def _plan_finish(pod: Pod, records: list[Record]) -> PodPlan:
    """Everything ended for good: the network goes, the ended containers stay for their logs."""
    steps: list[Action] = [
        Signal(c.container_name(r), r.name, r.id, "SIGKILL")
        for r in records
        if r.running and c.container_name(r) != c.INFRA
    ]
    steps += [Remove(c.INFRA, r.name) for r in attempts(records, c.INFRA)]
    return PodPlan(pod.metadata.uid, pod, "stop" if steps else "keep", "finished", tuple(steps))


def _plan_end(seen: Observed, uid: str, pod: Pod | None, records: list[Record]) -> PodPlan:
    """End a pod: drain (see drain.py), SIGTERM, grace, SIGKILL, remove, tell the store.

    Containers of a pod that is not bound here (any more) are nobody's
    endpoints, so they are not drained, but they get their grace period.
    """
    bucket: Bucket = "stop" if pod else "orphan"
    ending = seen.endings.get(uid, Ending(seen.now))
    running = [r for r in records if r.running and c.container_name(r) != c.INFRA]
    failure = seen.failures.get((uid, c.INFRA))
    if failure is not None and failure.until > seen.now:
        return PodPlan(uid, pod, bucket, failure.message, wake_at=failure.until)
    if not running:
        steps: list[Action] = [Remove(c.container_name(r), r.name) for r in records if c.container_name(r) != c.INFRA]
        steps += [Remove(c.INFRA, r.name) for r in attempts(records, c.INFRA)]
        if pod is not None:
            steps.append(Release(pod.metadata.namespace, pod.metadata.name))
        return PodPlan(uid, pod, bucket, "ended", tuple(steps))
    grace = float(_grace(pod) if pod is not None else max(c.grace_period(r) for r in running))
    deadline = ending.since + grace
    if seen.now >= deadline:
        return PodPlan(uid, pod, bucket, f"grace period of {grace:g} s is over", _signals(running, "SIGKILL"))
    limit = ending.since + min(seen.drain_timeout, max(grace - LEFT_TO_END, grace / 2))
    drained_at, waits_for = _drained(seen, uid, limit)
    if seen.now < drained_at:
        why = "draining" + (f", waiting for {waits_for}" if waits_for else "")
        return PodPlan(uid, pod, bucket, why, wake_at=drained_at)
    unasked = [r for r in running if r.id not in ending.signalled]
    why = "deleted" if pod else "not bound to this node"
    return PodPlan(uid, pod, bucket, why, _signals(unasked, "SIGTERM"), wake_at=deadline, undrained=waits_for)


def _drained(seen: Observed, uid: str, limit: float) -> tuple[float, str]:
    """When a pod may be told to end, as far as is known now, and what is waited for until then."""
    drain = seen.drains.get(uid)
    if drain is None:
        return seen.now, ""
    if drain.quiet_at is None:
        return limit, drain.waits_for
    return min(limit, drain.quiet_at + (seen.drain_delay if drain.served else 0.0)), ""


def _grace(pod: Pod) -> int:
    given = pod.metadata.deletion_grace_period_seconds
    return given if given is not None else pod.spec.termination_grace_period_seconds


def _signals(records: list[Record], signal: str) -> tuple[Action, ...]:
    return tuple(Signal(c.container_name(r), r.name, r.id, signal) for r in records)


def _starting(pod: Pod | None, records: list[Record]) -> dict[str, tuple[str, str]]:
    """Containers without a record of a pod that is being worked on."""
    if pod is None:
        return {}
    return {ct.name: ("ContainerCreating", "") for ct in pod.spec.containers if not attempts(records, ct.name)}
