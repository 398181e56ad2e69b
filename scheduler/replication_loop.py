"""Carries replication plans out: claims, creates, deletes, collects, and writes status.

Invariant: a create or delete whose answer was lost is in doubt, and settled
before anything else is decided, a create under the very same name; so doubt
makes no extra pod.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from podlane.api.meta import controller_of, namespaced_name
from podlane.api.types import Lease, Node, ObjectReference, Pod, ReplicationController
from podlane.errors import AlreadyExists, NotFound, PodlaneError, StoreUnavailable
from scheduler import replication
from scheduler.kinds import owner_of, with_counts
from scheduler.loop import Context, Loop, delete_pods

EVENTS_EACH = 10
"""Pods made or removed for one owner in one sync that get an event each; beyond, one event tells the number."""


class ReplicationLoop(Loop):
    """Keeps owners at their number and writes their status."""

    name = "replication"
    watches = (ReplicationController, Pod, Node, Lease)
    min_interval = 0.01

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._creating: dict[str, Pod] = {}
        self._deleting: dict[str, Pod] = {}

    def decide(self) -> None:
        self._settle()
        controllers = self.snapshot.controllers.snapshot()
        plan = replication.plan(
            [owner_of(rc) for rc in controllers.values()],
            self.snapshot.pods.snapshot().values(),
            now=self.context.clock.now(),
            rng=self.context.rng,
            unreachable=self.snapshot.unreachable(),
        )
        if not plan.empty:
            self.tell(plan.lines(), plan.sizes())
        for pod in (*plan.adopt, *plan.release):
            self._update(pod)
        self._create(plan.create)
        self._delete(plan.delete)
        self._collect(plan.collect)
        for rc in controllers.values():
            self._write_status(rc, plan.counts[rc.metadata.uid])
        self.wake_at(plan.next_at)

    def _settle(self) -> None:
        """End every doubt. A StoreUnavailable here ends the sync: nothing is decided on a guess."""
        for key, pod in list(self._creating.items()):
            try:
                stored = self.registry.create(pod)
            except AlreadyExists:
                stored = self.registry.get(Pod, pod.metadata.namespace, pod.metadata.name)
            self.snapshot.pods.wrote(stored)
            del self._creating[key]
        doubtful = list(self._deleting.values())
        for pod, error in zip(doubtful, delete_pods(self.registry, self.snapshot, doubtful), strict=True):
            if isinstance(error, StoreUnavailable):
                raise error
            del self._deleting[namespaced_name(pod)]

    def _update(self, pod: Pod) -> None:
        try:
            self.snapshot.pods.wrote(self.registry.update(pod))
        except PodlaneError as error:
            self.failed(f"update pod {namespaced_name(pod)}", error)

    def _create(self, pods: Sequence[Pod]) -> None:
        made: dict[str, list[Pod]] = defaultdict(list)
        for pod, outcome in zip(pods, self.registry.create_many(pods), strict=True):
            if isinstance(outcome, StoreUnavailable):
                self._creating[namespaced_name(pod)] = pod
            if isinstance(outcome, Exception):
                self.failed(f"create pod {namespaced_name(pod)}", outcome)
            else:
                self.snapshot.pods.wrote(outcome)
                made[_owner_uid(outcome)].append(outcome)
        self._tell_owners(made, "SuccessfulCreate", "Created pod")

    def _delete(self, removals: Sequence[replication.Removal]) -> None:
        gone: dict[str, list[Pod]] = defaultdict(list)
        pods = [removal.pod for removal in removals]
        for pod, error in zip(pods, delete_pods(self.registry, self.snapshot, pods), strict=True):
            if isinstance(error, StoreUnavailable):
                self._deleting[namespaced_name(pod)] = pod
            if error is not None:
                self.failed(f"delete pod {namespaced_name(pod)}", error)
            else:
                gone[_owner_uid(pod)].append(pod)
        self._tell_owners(gone, "SuccessfulDelete", "Deleted pod")

    def _collect(self, pods: Sequence[Pod]) -> None:
        """Delete what an owner left behind, once the store itself says that it is gone."""
        by_owner: dict[str, list[Pod]] = defaultdict(list)
        for pod in pods:
            by_owner[_owner_uid(pod)].append(pod)
        for uid, members in by_owner.items():
            try:
                if self._owner_exists(members[0], uid):
                    continue
            except PodlaneError as error:
                self.failed(f"look for the owner of pod {namespaced_name(members[0])}", error)
                continue
            self._delete([replication.Removal(pod, "owner gone") for pod in members])

    def _owner_exists(self, pod: Pod, uid: str) -> bool:
        owner = controller_of(pod)
        if owner is None:
            return True
        try:
            found = self.registry.get(ReplicationController, pod.metadata.namespace, owner.name)
        except NotFound:
            return False
        return found.metadata.uid == uid

    def _write_status(self, rc: ReplicationController, counts: replication.Counts) -> None:
        changed = with_counts(rc, counts)
        if changed is not None:
            try:
                self.snapshot.controllers.wrote(self.registry.update(changed))
            except PodlaneError as error:
                self.failed(f"update status of {namespaced_name(rc)}", error)

    def _tell_owners(self, pods: dict[str, list[Pod]], reason: str, text: str) -> None:
        for members in pods.values():
            owner = controller_of(members[0])
            if owner is None:
                continue
            about = ObjectReference(
                kind=owner.kind,
                api_version=owner.api_version,
                namespace=members[0].metadata.namespace,
                name=owner.name,
                uid=owner.uid,
            )
            if len(members) > EVENTS_EACH:
                self.context.events.event(about, "Normal", reason, f"{text}s: {len(members)} of them")
                continue
            for pod in members:
                self.context.events.event(about, "Normal", reason, f"{text}: {pod.metadata.name}")


def _owner_uid(pod: Pod) -> str:
    owner = controller_of(pod)
    return owner.uid if owner else ""
