"""What a sync is given of the store: the objects that pods name, and services for the pods that start.

Owns: which services must be known, and how new. Invariants: a pod that starts, or
whose container has just ended, finds services that are as new as the pod was when
it was first seen starting (not as its latest status, which we write: it would
wait for ever); a pod that waits for something else (an image, a config map, its
back-off, its init containers) has nothing read for it until the plan asks.
For the sync's thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from podlane.api.meta import is_pod_active
from podlane.api.types import Pod
from scheduler.agent import containers as c
from scheduler.agent.model import Plan
from scheduler.agent.references import Followed, Known, Ref, Services
from scheduler.agent.runtime import Record


class Referenced(Protocol):
    """references.References, as far as it is used here."""

    def look(self, pods: Iterable[Pod]) -> dict[Ref, Followed | None]: ...


class ServiceVariables(Protocol):
    """servicelists.ServiceLists, as far as it is used here."""

    def look(self, needed: Mapping[str, int], namespaces: Collection[str]) -> dict[str, Services]: ...


class StoreView:
    def __init__(self, references: Referenced, services: ServiceVariables) -> None:
        self._references = references
        self._services = services
        self._since: dict[str, int] = {}
        """By UID of each starting pod: the revision it was of when that was first seen."""
        self._held: frozenset[str] = frozenset()
        """UIDs of the pods that waited for something else than services when last planned for."""

    def look(self, pods: Mapping[str, Pod], records: Iterable[Record]) -> Known:
        alive = [pod for pod in pods.values() if is_pod_active(pod)]
        running = {(c.pod_uid(r), c.container_name(r)) for r in records if r.running}
        starting = [p for p in alive if any((p.metadata.uid, ct.name) not in running for ct in p.spec.containers)]
        self._since = {p.metadata.uid: self._since.get(p.metadata.uid, _revision(p)) for p in starting}
        needed: dict[str, int] = {}
        for pod in starting:
            if pod.metadata.uid not in self._held:
                namespace = pod.metadata.namespace
                needed[namespace] = max(needed.get(namespace, 0), self._since[pod.metadata.uid])
        services = self._services.look(needed, {pod.metadata.namespace for pod in alive})
        return Known(self._references.look(alive), services)

    def note(self, plan: Plan) -> None:
        """What was made of the last look."""
        done = {p.uid for p in plan.pods if p.bucket != "busy"}
        held = {p.uid for p in plan.pods if p.waiting and not p.steps and not p.wants_services}
        self._held = frozenset((self._held - done) | (held & done))


def _revision(pod: Pod) -> int:
    return int(pod.metadata.resource_version or 0)
