"""Why the pods of a controller do not become ready.

Owns: which pod to name, and when waiting for it has become pointless. Invariant:
a pod is given up only after it has been in trouble for TROUBLE_SECONDS of this
watch, so that whoever comes back after the cause is removed does not trip over
what is left of it.
"""

from __future__ import annotations

from podlane.api.meta import controller_of, get_condition, is_pod_active, is_pod_ready
from podlane.api.types import ContainerStatus, Pod, ReplicationController
from podlane.cli.podstatus import summarize
from podlane.cli.session import Session

TROUBLE_SECONDS = 15.0
LOOK_AFTER = 2.0  # seconds without progress before pods are listed, and between two lists

HOPELESS = frozenset(
    {
        "CrashLoopBackOff",
        "ImagePullBackOff",
        "ErrImagePull",
        "ErrImageNeverPull",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
"""What a pod waits for that does not come by itself."""


class Watch:
    """Looks at the pods of a namespace now and then. Times are the session's clock's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._since: dict[str, float] = {}  # by the pod's UID, "" for the controller itself
        self._looked = -LOOK_AFTER

    def trouble(self, rc: ReplicationController, waited: float) -> str:
        """Why it is of no use to wait longer; "" while it is. `waited`: seconds without progress."""
        now = self._session.wall.monotonic()
        if waited < LOOK_AFTER or now < self._looked + LOOK_AFTER:
            return ""
        self._looked = now
        for pod in self._waiting(rc):
            if _hopeless(pod) and now - self._since.setdefault(pod.metadata.uid, now) >= TROUBLE_SECONDS:
                return describe(pod)
        failure = get_condition(rc.status.conditions, "ReplicaFailure")
        if failure is None:
            self._since.pop("", None)
        elif now - self._since.setdefault("", now) >= TROUBLE_SECONDS:
            return f"{failure.reason}: {failure.message}"
        return ""

    def reason(self, rc: ReplicationController) -> str:
        """What there is to say of the pods that are not ready."""
        failure = get_condition(rc.status.conditions, "ReplicaFailure")
        if failure is not None:
            return f"{failure.reason}: {failure.message}"
        return next((describe(pod) for pod in self._waiting(rc)), "")

    def _waiting(self, rc: ReplicationController) -> list[Pod]:
        """Its pods that are not ready, those in trouble first."""
        pods = self._session.registry.list(Pod, rc.metadata.namespace).items
        mine = [p for p in pods if (owner := controller_of(p)) is not None and owner.uid == rc.metadata.uid]
        waiting = [p for p in mine if is_pod_active(p) and not is_pod_ready(p)]
        return sorted(waiting, key=lambda p: (not _hopeless(p), p.metadata.name))


def describe(pod: Pod) -> str:
    """`pod web-2-x7k2p on node1: ImagePullBackOff: no such image`."""
    scheduled = get_condition(pod.status.conditions, "PodScheduled")
    if not pod.spec.node_name:
        why = scheduled.message if scheduled is not None and scheduled.message else "not scheduled yet"
        return f"pod {pod.metadata.name}: {why}"
    reason = summarize(pod).reason
    message = next((s.state.waiting.message for s in _statuses(pod) if s.state.waiting is not None), "")
    if reason == "Running":
        ready = get_condition(pod.status.conditions, "Ready")
        reason, message = "not ready", ready.message if ready is not None else ""
    return f"pod {pod.metadata.name} on {pod.spec.node_name}: {reason}" + (f": {message}" if message else "")


def _hopeless(pod: Pod) -> bool:
    reasons = {status.state.waiting.reason for status in _statuses(pod) if status.state.waiting is not None}
    return bool(reasons & HOPELESS)


def _statuses(pod: Pod) -> tuple[ContainerStatus, ...]:
    return (*pod.status.init_container_statuses, *pod.status.container_statuses)
