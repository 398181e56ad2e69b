"""Whose each pod is: the index that replication decides on.

Owns: every owner's share of the pods, kept up to date by changes, so that one
change in a large cluster costs the owners it concerns and not a pass over all.
Invariants: the shares are those of a fresh index of the same objects, and an
owner whose counts or orphans may have changed since it was last decided on is
in `dirty`; a pod is in at most one share. An orphan that
several owners select is the first one's by name, so that it is not promised
twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from podlane.api.meta import controller_of, is_pod_active, is_pod_ready
from podlane.api.selectors import selects
from podlane.api.types import Pod
from scheduler.removal import ready_since
from scheduler.replication import Owner, Share
from scheduler.terms import Term, discard, term_of, terms_of
from scheduler.view import Changes


class Ownership:
    """`dirty` (UIDs) is for the caller to empty as it decides; all of them are owners in the index."""

    def __init__(self) -> None:
        self.dirty: set[str] = set()
        self._pods: dict[str, Pod] = {}
        self._owners: dict[str, Owner] = {}  # by UID
        self._uids: dict[tuple[str, str], str] = {}  # by the owner's kind and name
        self._owned: dict[str, dict[str, Pod]] = defaultdict(dict)  # active ones, by the controller's UID, known or not
        self._on: dict[str, set[str]] = defaultdict(set)  # the keys of pods by node
        # an orphan is under each of its labels, an owner under one of its selector's
        self._orphans: dict[Term, dict[str, Pod]] = defaultdict(dict)
        self._seekers: dict[Term, set[str]] = defaultdict(set)

    def knows(self, uid: str) -> bool:
        return uid in self._owners

    def owner(self, uid: str) -> Owner:
        return self._owners[uid]

    def is_in(self, uid: str, namespaces: Collection[str]) -> bool:
        return uid in self._owners and self._owners[uid].namespace in namespaces

    def touch(self, uids: Iterable[str]) -> None:
        """These are to be decided on, as far as they are known."""
        self.dirty.update(filter(self.knows, uids))

    @property
    def names(self) -> Collection[str]:
        """The "namespace/name" of every pod."""
        return self._pods.keys()

    def share(self, uid: str) -> Share:
        """What this owner is to be decided on."""
        owner = self._owners[uid]
        return Share(owner, list(self._owned.get(uid, {}).values()), self._claims(owner))

    # --- changes -------------------------------------------------------------------

    def see_owners(self, kind: str, changes: Changes[Owner]) -> None:
        """Take in the owners of one kind, by "namespace/name"."""
        known = {name for of, name in self._uids if of == kind} if changes.complete else set()
        for name in [*(known - changes.objects.keys()), *changes.objects]:
            self._see_owner((kind, name), changes.objects.get(name))

    def see_pods(self, changes: Changes[Pod]) -> None:
        gone = self._pods.keys() - changes.objects.keys() if changes.complete else ()
        for key in [*gone, *changes.objects]:
            old, new = self._pods.get(key), changes.objects.get(key)
            if old is not None:
                self._drop_pod(key, old)
            if new is not None:
                self._add_pod(key, new)
            if old is None or new is None or _counted(old) is None or _counted(old) != _counted(new):
                for pod in filter(None, (old, new)):
                    self._touch(pod)

    def see_nodes(self, names: Iterable[str]) -> None:
        """These nodes went or came back."""
        for name in names:
            for key in self._on.get(name, ()):
                self._touch(self._pods[key])

    # --- inside --------------------------------------------------------------------

    def _see_owner(self, key: tuple[str, str], owner: Owner | None) -> None:
        uid = self._uids.get(key)
        old = self._owners.get(uid) if uid is not None else None
        if old == owner:
            if owner is not None:  # its status changed, perhaps by others
                self.dirty.add(owner.uid)
            return
        if old is not None:
            del self._uids[key], self._owners[old.uid]
            discard(self._seekers, term_of(old.namespace, old.selector), old.uid)
            self.dirty.discard(old.uid)
            self._touch_rivals(old)
        if owner is not None:
            self._uids[key] = owner.uid
            self._owners[owner.uid] = owner
            self._seekers[term_of(owner.namespace, owner.selector)].add(owner.uid)
            self.dirty.add(owner.uid)
            self._touch_rivals(owner)

    def _touch_rivals(self, owner: Owner) -> None:
        """Who wants the same orphans may get them now, or no more."""
        for key, pod in self._orphans.get(term_of(owner.namespace, owner.selector), {}).items():
            if selects(owner.selector, pod.metadata.labels):
                self.dirty.update(rival.uid for rival in self._seekers_of(self._pods[key]))

    def _add_pod(self, key: str, pod: Pod) -> None:
        self._pods[key] = pod
        if pod.spec.node_name:
            self._on[pod.spec.node_name].add(key)
        controller = controller_of(pod)
        if is_pod_active(pod):
            if controller is not None:
                self._owned[controller.uid][key] = pod
            else:
                for term in terms_of(pod):
                    self._orphans[term][key] = pod

    def _drop_pod(self, key: str, pod: Pod) -> None:
        del self._pods[key]
        if pod.spec.node_name:
            discard(self._on, pod.spec.node_name, key)
        controller = controller_of(pod)
        if controller is not None:
            discard(self._owned, controller.uid, key)
        else:
            for term in terms_of(pod):
                discard(self._orphans, term, key)

    def _touch(self, pod: Pod) -> None:
        """Note the owners that this pod concerns."""
        controller = controller_of(pod)
        if controller is None:
            self.dirty.update(owner.uid for owner in self._seekers_of(pod))
        elif controller.uid in self._owners:
            self.dirty.add(controller.uid)

    def _seekers_of(self, pod: Pod) -> list[Owner]:
        """The owners that would adopt it."""
        near = (self._owners[uid] for term in terms_of(pod) for uid in self._seekers.get(term, ()))
        return [owner for owner in near if not owner.deleting and selects(owner.selector, pod.metadata.labels)]

    def _claims(self, owner: Owner) -> list[Pod]:
        if owner.deleting:
            return []
        near = self._orphans.get(term_of(owner.namespace, owner.selector), {})
        wanted = [near[key] for key in sorted(near) if selects(owner.selector, near[key].metadata.labels)]
        return [pod for pod in wanted if min(self._seekers_of(pod), key=_precedence) is owner]


def _counted(pod: Pod) -> tuple[object, ...] | None:
    """All that an owner counts by: that its pod is bound, say, changes no count. None for an orphan."""
    controller = controller_of(pod)
    if controller is None:
        return None
    return controller.uid, pod.metadata.labels, is_pod_active(pod), is_pod_ready(pod), ready_since(pod)


def _precedence(owner: Owner) -> tuple[str, str]:
    return owner.reference.name, owner.uid
