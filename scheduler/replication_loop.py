"""Carries replication plans out: claims, creates, deletes, and writes status.

Invariants: a create or delete whose answer was lost is in doubt, and settled
before anything else is decided, a create under the very same name, so that
doubt makes no extra pod; an owner adopts only while the store has it, under its
UID and not being deleted; what an owner is refused (by a quota, say) is its own
trouble and keeps no other waiting. Source: slowStartBatch and manageReplicas in
Kubernetes' replica_set.go.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from podlane.api.meta import controller_of, namespaced_name
from podlane.api.types import Lease, Node, Object, ObjectReference, Pod, ResourceQuota
from podlane.errors import (
    AlreadyExists,
    Conflict,
    Fenced,
    NamespaceTerminating,
    NotFound,
    PodlaneError,
    StoreUnavailable,
)
from podlane.store.bulk import Change
from scheduler import replication
from scheduler.backoff import Backoff
from scheduler.kinds import KINDS, Failure, Kind, Outcome
from scheduler.loop import Context, Loop, delete_pods
from scheduler.ownership import Ownership
from scheduler.removal import Removal
from scheduler.replication import Claim, Counts, Owner
from scheduler.view import Changes

EVENTS_EACH = 10
"""Pods made or removed for one owner in one sync that get an event each; beyond, one event tells the number."""


class ReplicationLoop(Loop):
    """Keeps owners at their number and writes their status."""

    name = "replication"
    kinds: tuple[Kind[Any], ...] = KINDS
    watches = (*(kind.cls for kind in KINDS), Pod, Node, Lease, ResourceQuota)
    min_interval = 0.01

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._index = Ownership()
        self._kinds = {kind.cls.KIND: kind for kind in self.kinds}
        self._owners = {name: self.snapshot.of_kind(kind.cls).feed() for name, kind in self._kinds.items()}
        self._pods = self.snapshot.pods.feed()
        self._quotas = self.snapshot.of_kind(ResourceQuota).feed()
        self._nodes = (self.snapshot.nodes.feed(), self.snapshot.leases.feed())
        self._unreachable: frozenset[str] = frozenset()
        self._creating: dict[str, Pod] = {}
        self._deleting: dict[str, Pod] = {}
        # by the owner's UID:
        self._due: dict[str, float] = {}  # when time alone changes its plan
        self._trouble: Backoff[Failure] = Backoff()
        self._refused: dict[str, Failure] = {}  # in this sync
        self._again: set[str] = set()  # to be decided on again at once

    def decide(self) -> None:
        self._settle()
        self._observe()
        index, now = self._index, self.context.clock.now()
        # who is dirty stays so to the end: an error on the way leaves them all to be decided on once more
        index.touch({uid for uid, at in self._due.items() if at <= now} | self._trouble.due(now))
        plan = replication.plan(
            [index.share(uid) for uid in sorted(index.dirty)],
            now=now,
            rng=self.context.rng,
            taken=index.names,
            unreachable=self._unreachable,
        )
        if not plan.empty:
            self.tell(plan.lines(), plan.sizes())
        self._refused, self._again = {}, set(plan.unfinished)
        self._claim(plan.adopt, plan.release)
        self._create(plan.create)
        self._delete(plan.delete)
        self._note_trouble(plan.counts.keys() - {claim.owner.uid for claim in (*plan.adopt, *plan.release)}, now)
        self._report(plan.counts, now)
        index.dirty.clear()
        index.touch(self._again - self._refused.keys())
        self._sleep({uid: at for uid, at in self._due.items() if uid not in plan.counts} | dict(plan.next_at), now)

    def _settle(self) -> None:
        """End every doubt. A StoreUnavailable here ends the sync: nothing is decided on a guess."""
        for key, pod in list(self._creating.items()):
            try:
                self.snapshot.pods.wrote(self._created(pod))
            except (StoreUnavailable, Fenced):
                raise
            except PodlaneError as error:  # it was not made, or somebody has removed it since
                self.log.debug("a lost creation was none", pod=key, cause=str(error))
            del self._creating[key]
        doubtful = list(self._deleting.values())
        for pod, failure in zip(doubtful, delete_pods(self.registry, self.snapshot, doubtful), strict=True):
            if isinstance(failure, StoreUnavailable):
                raise failure
            del self._deleting[namespaced_name(pod)]

    def _created(self, pod: Pod) -> Pod:
        try:
            return self.registry.create(pod)
        except AlreadyExists:
            return self.registry.get(Pod, pod.metadata.namespace, pod.metadata.name)

    def _observe(self) -> None:
        for name, feed in self._owners.items():
            changes = feed.take()
            owners = {key: obj and self._kinds[name].owner_of(obj) for key, obj in changes.objects.items()}
            self._index.see_owners(name, Changes(owners, changes.complete))
        self._index.see_pods(self._pods.take())
        eased = {quota.metadata.namespace for quota in self._quotas.take().objects.values() if quota is not None}
        self._index.touch(uid for uid in self._trouble if self._index.is_in(uid, eased))
        moved = [feed.take() for feed in self._nodes]
        if any(taken.objects or taken.complete for taken in moved):
            unreachable = self.snapshot.unreachable()
            self._index.see_nodes(unreachable ^ self._unreachable)
            self._unreachable = unreachable

    # --- carrying out ----------------------------------------------------------------

    def _claim(self, adopt: Sequence[Claim], release: Sequence[Claim]) -> None:
        """Adopt, each resting on its owner as the store has it now, and release."""
        owners = {claim.owner.uid: claim.owner for claim in adopt}
        living = {uid: live for uid, owner in owners.items() if (live := self._living(owner)) is not None}
        claims = [(claim, Change(claim.pod, claim.changed)) for claim in release]
        claims += [(c, Change(c.pod, c.changed, (living[c.owner.uid],))) for c in adopt if c.owner.uid in living]
        outcomes = self.registry.update_many([change for _, change in claims])
        for (claim, _), outcome in zip(claims, outcomes, strict=True):
            if isinstance(outcome, Conflict):  # by a change that need not make us look again
                self._again.add(claim.owner.uid)
            if isinstance(outcome, Exception):
                self._failed(claim.owner.uid, f"update pod {namespaced_name(claim.pod)}", outcome)
            else:
                self.snapshot.pods.wrote(outcome)

    def _living(self, owner: Owner) -> Object | None:
        """The owner as it is stored, unless it is gone, another one of its name, or being deleted."""
        reference = owner.reference
        try:
            live: Object = self.registry.get(self._kinds[reference.kind].cls, owner.namespace, reference.name)
        except PodlaneError as error:
            self._failed(owner.uid, f"look for {owner}", error)
            return None
        return live if live.metadata.uid == owner.uid and live.metadata.deletion_timestamp is None else None

    def _create(self, pods: Sequence[Pod]) -> None:
        """For each owner one pod, then 2, 4, …, until one fails: what is refused once is not asked for 500 times."""
        waiting = _by_owner(pods)
        made: dict[str, list[Pod]] = defaultdict(list)
        size = 1
        while waiting:
            batch = [pod for left in waiting.values() for pod in left[:size]]
            stopped: set[str] = set()
            for pod, outcome in zip(batch, self.registry.create_many(batch), strict=True):
                if isinstance(outcome, Exception):
                    stopped.add(_owner_uid(pod))
                    self._create_failed(pod, outcome)
                else:
                    self.snapshot.pods.wrote(outcome)
                    made[_owner_uid(pod)].append(outcome)
            waiting = {uid: left[size:] for uid, left in waiting.items() if uid not in stopped and len(left) > size}
            size *= 2
        self._tell_owners(made.values(), "SuccessfulCreate", "Created pod")

    def _create_failed(self, pod: Pod, error: Exception) -> None:
        if isinstance(error, StoreUnavailable):
            self._creating[namespaced_name(pod)] = pod
        if isinstance(error, AlreadyExists):  # a pod we do not see yet has the name: another one then
            self._again.add(_owner_uid(pod))
        elif not isinstance(error, NamespaceTerminating):  # the owner goes with its namespace
            self._pod_failed(pod, "create", error)

    def _delete(self, removals: Sequence[Removal]) -> None:
        gone: dict[str, list[Pod]] = defaultdict(list)
        pods = [removal.pod for removal in removals]
        for pod, error in zip(pods, delete_pods(self.registry, self.snapshot, pods), strict=True):
            if isinstance(error, StoreUnavailable):
                self._deleting[namespaced_name(pod)] = pod
            if error is not None:
                self._pod_failed(pod, "delete", error)
            else:
                gone[_owner_uid(pod)].append(pod)
        self._tell_owners(gone.values(), "SuccessfulDelete", "Deleted pod")

    def _failed(self, uid: str, step: str, error: Exception) -> None:
        if isinstance(error, StoreUnavailable):
            self._again.add(uid)
        self.failed(step, error)

    def _pod_failed(self, pod: Pod, verb: Literal["create", "delete"], error: Exception) -> None:
        """A refusal is the owner's trouble, of which it is told once; what may be tried again is the loop's."""
        uid = _owner_uid(pod)
        if isinstance(error, StoreUnavailable | Conflict | NotFound | Fenced):
            self._failed(uid, f"{verb} pod {namespaced_name(pod)}", error)
        elif uid not in self._refused:
            self._refused[uid] = Failure(f"Failed{verb.capitalize()}", str(error))
            text = f"Error {verb.removesuffix('e')}ing: {error}"
            self.context.events.event(_owner_of(pod), "Warning", self._refused[uid].reason, text)

    # --- telling ---------------------------------------------------------------------

    def _note_trouble(self, decided: Collection[str], now: float) -> None:
        for uid in decided:
            failure = self._refused.get(uid)
            if failure is None:
                self._trouble.over(uid)
            else:
                pause = self._trouble.refused(uid, failure, now)
                self.log.warning("refused", owner=str(self._index.owner(uid)), cause=failure.message, retry_in=pause)

    def _report(self, counts: Mapping[str, Counts], now: float) -> None:
        """Write the status of those whose status changes."""
        changes: dict[str, Change[Any]] = {}
        for uid, of in counts.items():
            owner = self._index.owner(uid)
            kind = self._kinds[owner.reference.kind]
            obj = self.snapshot.of_kind(kind.cls).get(str(owner))
            if obj is not None and obj.metadata.uid == uid:
                changed = kind.with_outcome(obj, Outcome(of, self._trouble.reason(uid), now))
                if changed is not None:
                    changes[uid] = Change(obj, changed)
        for (uid, change), outcome in zip(
            changes.items(), self.registry.update_many(list(changes.values())), strict=True
        ):
            if isinstance(outcome, Exception):
                self._failed(uid, f"update status of {namespaced_name(change.old)}", outcome)
            else:
                self.snapshot.of_kind(type(outcome)).wrote(outcome)

    def _sleep(self, due: dict[str, float], now: float) -> None:
        self._due = {uid: at for uid, at in due.items() if self._index.knows(uid)}
        self._trouble.keep(self._index.knows)
        moments = [*self._due.values(), *filter(None, [self._trouble.next()])]
        self.wake_at(now if self._index.dirty else min(moments, default=None))

    def _tell_owners(self, groups: Iterable[list[Pod]], reason: str, text: str) -> None:
        for members in groups:
            about = _owner_of(members[0])
            if len(members) > EVENTS_EACH:
                self.context.events.event(about, "Normal", reason, f"{text}s: {len(members)} of them")
                continue
            for pod in members:
                self.context.events.event(about, "Normal", reason, f"{text}: {pod.metadata.name}")


def _by_owner(pods: Iterable[Pod]) -> dict[str, list[Pod]]:
    groups: dict[str, list[Pod]] = defaultdict(list)
    for pod in pods:
        groups[_owner_uid(pod)].append(pod)
    return groups


def _owner_uid(pod: Pod) -> str:
    owner = controller_of(pod)
    return owner.uid if owner else ""


def _owner_of(pod: Pod) -> ObjectReference:
    """For events about it."""
    owner = controller_of(pod)
    assert owner is not None, f"pod {namespaced_name(pod)} has no controller"
    return ObjectReference(
        kind=owner.kind,
        api_version=owner.api_version,
        namespace=pod.metadata.namespace,
        name=owner.name,
        uid=owner.uid,
    )
