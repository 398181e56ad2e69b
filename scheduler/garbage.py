"""Garbage: what is left behind when an owner goes, and what must go before it does.

Owns: the graph of who owns whom, by UID, over every kind, kept up to date by
changes; and what is to be done with an object in it. Invariants: an object with
one owner that stays, stays; nothing is deleted on what the graph does not know
(`Verdict.absent`: the applier asks the store for those owners first); an owner
of a namespaced object is in the same namespace, or in none. Source: Kubernetes'
pkg/controller/garbagecollector (attemptToDeleteItem, processDeletingDependentsItem).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from podlane.api.meta import namespaced_name
from podlane.api.types import KINDS, Object, OwnerReference
from podlane.store.deletion import FOREGROUND, ORPHAN, Propagation
from scheduler.terms import discard
from scheduler.view import Changes

Key = tuple[str, str]
"""Kind, and "namespace/name" or "name"."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with one object.

    `delete` it, by `propagation`; only once the store says too that the owners
    in `absent` are not there. `update`: objects as they should become, the
    dependents that are let go and the object without its finalizer or dead
    references. `released`: all its dependents are let go, if the store knows no
    others. `misplaced`: the references no owner can have.
    """

    obj: Object
    delete: bool = False
    propagation: Propagation | None = None
    absent: tuple[OwnerReference, ...] = ()
    update: tuple[tuple[Object, Object], ...] = ()
    released: bool = False
    misplaced: tuple[OwnerReference, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.delete or self.update or self.misplaced)

    def __str__(self) -> str:
        lines = [f"update {_named(new)}{_difference(old, new)}" for old, new in self.update]
        if self.delete:
            how = f" ({self.propagation.lower()})" if self.propagation else ""
            lines.append(f"delete {_named(self.obj)}{how}: {_owners(self.absent) or 'its owners are going'}")
        lines += [f"refuse {_named(self.obj)}: owner {_owners((r,))} cannot be its" for r in self.misplaced]
        return "\n".join(lines)


class Graph:
    """`dirty` are the objects to judge again; the caller empties it."""

    def __init__(self) -> None:
        self.dirty: set[Key] = set()
        self._objects: dict[Key, Object] = {}
        self._uids: dict[str, Key] = {}
        self._dependents: dict[str, set[Key]] = defaultdict(set)  # by the owner's UID, known or not

    def see(self, kind: str, changes: Changes[Any]) -> None:
        """Take in the objects of one kind."""
        known = {key for of, key in self._objects if of == kind} if changes.complete else set()
        for key in [*(known - changes.objects.keys()), *changes.objects]:
            self._see((kind, key), changes.objects.get(key))

    def judge(self, key: Key) -> Verdict | None:
        """None for an object that is not there, or of which there is nothing to do."""
        obj = self._objects.get(key)
        if obj is None:
            return None
        verdict = self._ending(obj) if obj.metadata.deletion_timestamp is not None else self._owned(obj)
        return None if verdict.empty else verdict

    # --- inside --------------------------------------------------------------------

    def _see(self, key: Key, obj: Object | None) -> None:
        old = self._objects.get(key)
        if old is not None and obj is not None and _same_to_us(old, obj):
            self._objects[key] = obj
            return
        if old is not None:
            self._drop(key, old)
        if obj is not None:
            self._add(key, obj)
        for each in filter(None, (old, obj)):
            self.dirty |= self._dependents.get(each.metadata.uid, set())
            self.dirty |= {self._uids[r.uid] for r in each.metadata.owner_references if r.uid in self._uids}

    def _add(self, key: Key, obj: Object) -> None:
        self._objects[key] = obj
        self._uids[obj.metadata.uid] = key
        for reference in obj.metadata.owner_references:
            self._dependents[reference.uid].add(key)
        self.dirty.add(key)

    def _drop(self, key: Key, obj: Object) -> None:
        del self._objects[key]
        if self._uids.get(obj.metadata.uid) == key:
            del self._uids[obj.metadata.uid]
        for reference in obj.metadata.owner_references:
            discard(self._dependents, reference.uid, key)

    def _ending(self, obj: Object) -> Verdict:
        """One that is being deleted: its dependents first, or let go of, if its finalizers say so."""
        keys = sorted(self._dependents.get(obj.metadata.uid, ()))
        dependents = [self._objects[key] for key in keys]
        if ORPHAN in obj.metadata.finalizers:
            if dependents:
                return Verdict(obj, update=tuple((d, _without(d, {obj.metadata.uid})) for d in dependents))
            return Verdict(obj, update=((obj, _without_finalizer(obj, ORPHAN)),), released=True)
        if FOREGROUND in obj.metadata.finalizers and not any(_blocks(d, obj.metadata.uid) for d in dependents):
            return Verdict(obj, update=((obj, _without_finalizer(obj, FOREGROUND)),))
        return Verdict(obj)

    def _owned(self, obj: Object) -> Verdict:
        references = obj.metadata.owner_references
        misplaced = tuple(
            r for r in references if r.kind in KINDS and (not _can_own(r, obj) or self._is_elsewhere(r, obj))
        )
        if not type(obj).NAMESPACED and misplaced:
            return Verdict(obj, misplaced=misplaced)  # whether that owner is there cannot be told
        states = {r.uid: self._state(r, obj) for r in references}
        absent = tuple(r for r in references if states[r.uid] == "absent")
        if not references or all(state == "solid" for state in states.values()):
            return Verdict(obj, misplaced=misplaced)
        if "solid" in states.values():
            going = {uid for uid, state in states.items() if state != "solid"}
            return Verdict(obj, absent=absent, update=((obj, _without(obj, going)),), misplaced=misplaced)
        waiting = len(absent) < len(references)
        foreground = waiting and bool(self._dependents.get(obj.metadata.uid))
        return Verdict(obj, True, "Foreground" if foreground else None, absent, misplaced=misplaced)

    def _state(self, reference: OwnerReference, obj: Object) -> str:
        """solid, waiting (it goes after its dependents) or absent."""
        if reference.kind not in KINDS:
            return "solid"  # no kind of ours: nobody here can tell
        key = self._uids.get(reference.uid)
        if key is None or key != _key_of(reference, obj):
            return "absent"
        meta = self._objects[key].metadata
        return "waiting" if meta.deletion_timestamp is not None and FOREGROUND in meta.finalizers else "solid"

    def _is_elsewhere(self, reference: OwnerReference, obj: Object) -> bool:
        """Whether it is in another namespace."""
        key = self._uids.get(reference.uid)
        return key is not None and key != _key_of(reference, obj) and key[0] == reference.kind


def _same_to_us(old: Object, new: Object) -> bool:
    a, b = old.metadata, new.metadata
    return (
        a.uid == b.uid
        and a.owner_references == b.owner_references
        and a.finalizers == b.finalizers
        and a.deletion_timestamp == b.deletion_timestamp
    )


def _key_of(reference: OwnerReference, obj: Object) -> Key:
    """Where the owner must be."""
    cls = KINDS[reference.kind]
    return reference.kind, f"{obj.metadata.namespace}/{reference.name}" if cls.NAMESPACED else reference.name


def _can_own(reference: OwnerReference, obj: Object) -> bool:
    """What is in no namespace has no owner in one."""
    return type(obj).NAMESPACED or not KINDS[reference.kind].NAMESPACED


def _blocks(dependent: Object, uid: str) -> bool:
    return any(r.uid == uid and r.block_owner_deletion for r in dependent.metadata.owner_references)


def _without(obj: Object, uids: set[str]) -> Object:
    references = tuple(r for r in obj.metadata.owner_references if r.uid not in uids)
    return replace(obj, metadata=replace(obj.metadata, owner_references=references))


def _without_finalizer(obj: Object, name: str) -> Object:
    finalizers = tuple(f for f in obj.metadata.finalizers if f != name)
    return replace(obj, metadata=replace(obj.metadata, finalizers=finalizers))


def _named(obj: Object) -> str:
    return f"{type(obj).KIND.lower()} {namespaced_name(obj)}"


def _owners(references: tuple[OwnerReference, ...]) -> str:
    return ", ".join(f"{r.kind.lower()} {r.name}" for r in references)


def _difference(old: Object, new: Object) -> str:
    """` without finalizer orphan`, ` without owner replicationcontroller web`."""
    a, b = old.metadata, new.metadata
    gone: Mapping[str, list[str]] = {
        "finalizer": [f for f in a.finalizers if f not in b.finalizers],
        "owner": [_owners((r,)) for r in a.owner_references if r not in b.owner_references],
    }
    return "".join(f" without {what} {', '.join(names)}" for what, names in gone.items() if names)
