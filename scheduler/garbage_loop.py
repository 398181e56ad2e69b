"""Carries out what was judged of garbage.

Invariants: before anything is deleted because its owner is not known, the store
is asked for that owner by kind, name and UID; before an owner that orphans its
dependents goes, the store is asked for such as we do not see yet; a deletion
names the UID it means.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from podlane.api.meta import namespaced_name
from podlane.api.types import KINDS, Event, Lease, Object, OwnerReference
from podlane.errors import Conflict, Fenced, NotFound, PodlaneError
from podlane.store.bulk import Change
from podlane.store.deletion import is_over
from scheduler.cluster import METADATA_ONLY, metadata_only
from scheduler.garbage import Graph, Key, Verdict
from scheduler.loop import Context, Loop

COLLECTED = tuple(cls for cls in KINDS.values() if cls not in {Event, Lease})
"""Events and leases end by themselves."""


LOOK_AGAIN = 0.1
"""Seconds until what could not be done is looked at again."""


class GarbageLoop(Loop):
    """Deletes what its owners have left behind, and lets owners go whose dependents are gone."""

    name = "garbage"
    watches = COLLECTED
    min_interval = 0.05

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._graph = Graph()
        self._feeds = {cls.KIND: self.snapshot.of_kind(cls).feed() for cls in COLLECTED}
        self._told: set[tuple[str, str]] = set()  # objects and owners that cannot be theirs, by UID

    def decide(self) -> None:
        for kind, feed in self._feeds.items():
            self._graph.see(kind, feed.take())
        judged = {key: self._graph.judge(key) for key in sorted(self._graph.dirty)}
        verdicts = {key: verdict for key, verdict in judged.items() if verdict is not None}
        again: set[Key] = set()
        confirmed = dict(self._confirmed(verdicts, again))
        for verdict in confirmed.values():
            self._tell_misplaced(verdict)
        self.tell_of(confirmed.values())
        self._update(confirmed, again)
        self._delete(confirmed, again)
        # an error that was not foreseen leaves all of them to be judged once more
        self._graph.dirty.clear()
        self._graph.dirty |= again
        if again:
            self.wake_at(self.context.clock.now() + LOOK_AGAIN)

    def tell_of(self, verdicts: Iterable[Verdict]) -> None:
        lines = [line for verdict in verdicts for line in str(verdict).splitlines() if not line.startswith("refuse")]
        if lines:
            self.tell(lines, {"collect": len(lines)})

    def _confirmed(self, verdicts: dict[Key, Verdict], again: set[Key]) -> Iterable[tuple[Key, Verdict]]:
        """Those whose absent owners the store does not have either."""
        asked: dict[tuple[str, str, str, str], bool] = {}
        for key, verdict in verdicts.items():
            try:
                if any(self._is_there(verdict.obj, owner, asked) for owner in verdict.absent):
                    continue  # we shall see it
                if verdict.released and self._has_dependents(verdict.obj):
                    again.add(key)
                    continue
                yield key, verdict
            except PodlaneError as error:
                again.add(key)
                self.failed(f"look for the owners of {' '.join(key)}", error)

    def _is_there(self, obj: Object, owner: OwnerReference, asked: dict[tuple[str, str, str, str], bool]) -> bool:
        cls = KINDS[owner.kind]
        question = (owner.kind, obj.metadata.namespace if cls.NAMESPACED else "", owner.name, owner.uid)
        if question not in asked:
            try:
                asked[question] = self.registry.get(cls, *question[1:3]).metadata.uid == owner.uid
            except NotFound:
                asked[question] = False
        return asked[question]

    def _has_dependents(self, owner: Object) -> bool:
        """Whether the store has some: those that we do not see yet would be deleted for their owner's absence."""
        namespace = owner.metadata.namespace if type(owner).NAMESPACED else None
        kinds = [cls for cls in COLLECTED if cls.NAMESPACED or namespace is None]
        return any(
            reference.uid == owner.metadata.uid
            for cls in kinds
            for obj in self.registry.list(cls, namespace).items
            for reference in obj.metadata.owner_references
        )

    def _update(self, verdicts: dict[Key, Verdict], again: set[Key]) -> None:
        wanted: list[tuple[Key, Change[Any]]] = []
        changed: set[str] = set()
        for key, (old, new) in ((key, pair) for key, verdict in verdicts.items() for pair in verdict.update):
            if old.metadata.uid in changed:  # one change of an object at a time
                again.add(key)
                continue
            changed.add(old.metadata.uid)
            wanted.append((key, Change(old, new)))
        whole = [(key, change) for key, change in wanted if type(change.old) not in METADATA_ONLY]
        outcomes: list[Object | Exception] = self.registry.update_many([change for _, change in whole])
        for key, change in wanted:
            if type(change.old) in METADATA_ONLY:
                whole.append((key, change))
                outcomes.append(self._change_metadata(change))
        for (key, change), outcome in zip(whole, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._failed(f"update {_named(change.old)}", outcome, key, again)
            elif is_over(outcome):
                self.snapshot.of_kind(type(outcome)).deleted(outcome)
            else:
                self.snapshot.of_kind(type(outcome)).wrote(outcome)

    def _change_metadata(self, change: Change[Any]) -> Object | Exception:
        """Of an object that we do not hold whole; what is written is what the store has."""
        old, new = change.old.metadata, change.new.metadata

        def changed(live: Any) -> Any:
            meta = live.metadata
            if (meta.uid, meta.resource_version) != (old.uid, old.resource_version):
                raise Conflict(f"update {_named(live)}: it has changed since it was read")
            meta = replace(meta, owner_references=new.owner_references, finalizers=new.finalizers)
            return replace(live, metadata=meta)

        try:
            written: Object = self.registry.modify(type(change.old), old.namespace, old.name, changed)
        except Fenced:
            raise
        except PodlaneError as error:
            return error
        return metadata_only(written)

    def _delete(self, verdicts: dict[Key, Verdict], again: set[Key]) -> None:
        """Many at once where the object's own finalizers say how, by themselves where its dependents go first."""
        gone = [(key, verdict.obj) for key, verdict in verdicts.items() if verdict.delete and not verdict.propagation]
        outcomes: list[Object | Exception] = self.registry.delete_many([obj for _, obj in gone])
        for key, verdict in verdicts.items():
            if verdict.delete and verdict.propagation:
                gone.append((key, verdict.obj))
                outcomes.append(self._delete_one(verdict))
        for (key, obj), outcome in zip(gone, outcomes, strict=True):
            if isinstance(outcome, NotFound | Conflict):
                self.snapshot.of_kind(type(obj)).deleted(obj)
            elif isinstance(outcome, Exception):
                self._failed(f"delete {_named(obj)}", outcome, key, again)
            elif outcome.metadata.deletion_timestamp is None:
                self.snapshot.of_kind(type(obj)).deleted(obj)
            else:
                self.snapshot.of_kind(type(obj)).wrote(outcome)

    def _delete_one(self, verdict: Verdict) -> Object | Exception:
        meta = verdict.obj.metadata
        try:
            return self.registry.delete(
                type(verdict.obj), meta.namespace, meta.name, uid=meta.uid, propagation=verdict.propagation
            )
        except Fenced:
            raise
        except PodlaneError as error:
            return error

    def _failed(self, step: str, error: Exception, key: Key, again: set[Key]) -> None:
        """Try again, also what others changed meanwhile: that need not be a change that makes us judge anew."""
        if not isinstance(error, NotFound):
            again.add(key)
        self.failed(step, error)

    def _tell_misplaced(self, verdict: Verdict) -> None:
        for owner in verdict.misplaced:
            if (told := (verdict.obj.metadata.uid, owner.uid)) not in self._told:
                self._told.add(told)
                text = f"ownerRef {owner.kind} {owner.name}, uid {owner.uid}: not in the same namespace, or in none"
                self.context.events.event(verdict.obj, "Warning", "OwnerRefInvalidNamespace", text)


def _named(obj: Object) -> str:
    return f"{type(obj).KIND.lower()} {namespaced_name(obj)}"
