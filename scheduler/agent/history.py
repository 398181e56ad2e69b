"""What the attempts at a container say: which is the latest, whether and when there is to be another. Pure.

Owns: the restart rules. Source: Kubernetes' doBackOff and ShouldContainerBeRestarted
(pkg/kubelet): the first restart is immediate, the next wait 10 s doubling to
5 min counted from the end of the container, and 10 min of running are forgiven
everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from podlane.api.types import Container, Pod
from scheduler.agent import containers as c
from scheduler.agent.runtime import Record

INITIAL_BACKOFF = 10
MAX_BACKOFF = 300
FORGIVEN_AFTER = 2 * MAX_BACKOFF
"""Seconds a container must have run for its next restart to be immediate again."""

Latest = Mapping[str, Record | None]
"""The latest attempt at each container of a pod, by name."""


def attempts(records: Iterable[Record], name: str) -> list[Record]:
    """A container's records, the latest first."""
    mine = [r for r in records if c.container_name(r) == name]
    return sorted(mine, key=lambda r: (c.attempt(r), r.created_at), reverse=True)


def live_infra(records: Iterable[Record]) -> Record | None:
    return next((r for r in attempts(records, c.INFRA) if r.running), None)


def all_containers(pod: Pod) -> tuple[Container, ...]:
    """In the order in which they start."""
    return (*pod.spec.init_containers, *pod.spec.containers)


def is_sidecar(ct: Container) -> bool:
    """Of an init container: it starts in its turn and runs for as long as the pod does."""
    return ct.restart_policy == "Always"


def latest_of(pod: Pod, records: Iterable[Record]) -> dict[str, Record | None]:
    known = list(records)
    return {ct.name: next(iter(attempts(known, ct.name)), None) for ct in all_containers(pod)}


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
    """By the pod's restart policy, a container whose latest attempt is `last` ought to be running."""
    if last is None or last.state != "exited":
        return True
    policy = pod.spec.restart_policy
    return policy == "Always" or (policy == "OnFailure" and last.exit_code != 0)


def is_due(pod: Pod, ct: Container, last: Record | None) -> bool:
    """The same for any container in its turn: an init container is done once it succeeded, a sidecar never is."""
    if ct not in pod.spec.init_containers:
        return should_run(pod, last)
    if last is None or last.state != "exited" or is_sidecar(ct):
        return True
    return last.exit_code != 0 and pod.spec.restart_policy != "Never"


def has_failed_init(pod: Pod, latest: Latest) -> bool:
    """An init container failed and is not to be tried again, so the pod has."""
    return pod.spec.restart_policy == "Never" and any(
        last is not None and last.state == "exited" and last.exit_code != 0
        for ct in pod.spec.init_containers
        if not is_sidecar(ct) and (last := latest[ct.name]) is not None
    )


def is_over(pod: Pod, latest: Latest) -> bool:
    """Nothing of the pod is to be started any more, but for sidecars on behalf of the rest."""
    return has_failed_init(pod, latest) or not any(should_run(pod, latest[ct.name]) for ct in pod.spec.containers)
