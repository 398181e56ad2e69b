"""The registry's work on many objects at once: bind, create, delete.

Owns: the batching, and what a loser gets instead. Invariants: objects are
independent, one that cannot be done holds up no other; the answers are in the
order of what was asked; an unreachable store costs one deadline and not one
for each object. Fenced ends the whole call: the leader has nothing more to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import msgspec

from podlane.api.codec import DecodeError, decode
from podlane.api.meta import set_condition, short_name, utcnow_from
from podlane.api.types import Condition, Object, Pod, Service
from podlane.errors import AlreadyExists, Conflict, Fenced, Forbidden, NotFound, PodlaneError, StoreUnavailable
from podlane.store import admission, keys, quota
from podlane.store.deletion import is_over
from podlane.store.interface import Compare, Get
from podlane.store.namespaces import Admission
from podlane.store.rules import at_revision, change, creation, key_of, removal, replacement, unchanged
from podlane.store.writes import MAX_OPS, Lost, Outcome, Write, Written, commit_all

if TYPE_CHECKING:
    from podlane.store.registry import Registry

O = TypeVar("O", bound=Object)  # noqa: E741 - an object


@dataclass(frozen=True, slots=True)
class Binding:
    """Put a pod on a node if it still is at `resource_version`.

    `pod` is the pod at that version if the caller has it, which saves reading it.
    """

    namespace: str
    name: str
    node: str
    resource_version: str
    pod: Pod | None = None


@dataclass(frozen=True, slots=True)
class Change(Generic[O]):
    """Write `new` over `old` if that is as it was read, so is everything in `rests_on`, and all of `compare` hold."""

    old: O
    new: O
    rests_on: tuple[Object, ...] = ()
    compare: tuple[Compare, ...] = ()


def bind(registry: Registry, bindings: Sequence[Binding]) -> list[Exception | None]:
    """None for each pod bound, else why not: Conflict (it changed, is bound, or ends), NotFound, StoreUnavailable.

    Sets spec.nodeName and the condition PodScheduled, and takes back a nomination. Raises Fenced.
    """
    answers: list[Exception | None] = [None] * len(bindings)
    writes: dict[int, Write] = {}
    for i, (binding, pod) in enumerate(zip(bindings, _pods(registry, bindings), strict=True)):
        try:
            if isinstance(pod, Exception):
                raise pod
            writes[i] = change(pod, replacement(pod, _bound(registry, pod, binding)))
        except PodlaneError as error:
            answers[i] = error
    outcomes = commit_all(registry.store, list(writes.values()), registry.fence)
    for i, outcome in zip(writes, outcomes, strict=True):
        what = f"bind pod/{bindings[i].name}"
        if isinstance(outcome, StoreUnavailable):
            answers[i] = outcome
        elif isinstance(outcome, Lost):
            gone = None in outcome.found.values()
            answers[i] = NotFound(f"{what}: not found") if gone else Conflict(f"{what}: it has changed")
    return answers


def create_many(registry: Registry, objs: Sequence[O]) -> list[O | Exception]:
    """See Registry.create_many. Services one by one, for their addresses."""
    prepared = {i: registry.prepared(obj) for i, obj in enumerate(objs) if not isinstance(obj, Service)}
    answers: dict[int, O | Exception] = {}
    for i, outcome in zip(prepared, created(registry, list(prepared.values())), strict=True):
        if not isinstance(outcome, Lost):
            answers[i] = outcome
        elif objs[i].metadata.name and outcome.found[key_of(prepared[i])] is not None:
            answers[i] = AlreadyExists(f"create {short_name(objs[i])}: already exists")
    for i, obj in enumerate(objs):
        if i not in answers:  # a service, a generated name that is taken, or a namespace that has changed
            answers[i] = _outcome_of(partial(registry.create, obj))
    return [answers[i] for i in range(len(objs))]


def created(registry: Registry, prepared: Sequence[O]) -> list[O | PodlaneError | Lost]:
    """Store new objects, no services, as the cluster's policies have them, within its quotas.

    Lost is one whose name is taken or whose namespace has changed. Raises Fenced.
    """
    try:
        policies = admission.read(registry, prepared)
    except PodlaneError as error:
        return [error for _ in prepared]
    outcomes: dict[int, Outcome | PodlaneError] = {}
    admitted: dict[int, O] = {}
    free: dict[int, Write] = {}
    limited: dict[str, dict[int, quota.Candidate]] = {}
    namespaces = Admission(registry)
    for i, new in enumerate(prepared):
        try:
            admission.check_default_class(registry, new)
            admitted[i] = policies.admitted(new)
            write = creation(admitted[i]).resting_on(namespaces.compares(new))
        except PodlaneError as error:
            outcomes[i] = error
            continue
        if isinstance(new, Pod) and new.metadata.namespace in policies.quotas:
            candidates = limited.setdefault(new.metadata.namespace, {})
            candidates[i] = quota.Candidate(cast(Pod, admitted[i]), write)
        else:
            free[i] = write
    outcomes.update(zip(free, commit_all(registry.store, list(free.values()), registry.fence), strict=True))
    for namespace, candidates in limited.items():
        outcomes.update(quota.create(registry, namespace, candidates, policies.quotas[namespace]))
    return [_as_stored(admitted.get(i), outcomes[i]) for i in range(len(prepared))]


def _as_stored(new: O | None, outcome: Outcome | PodlaneError) -> O | PodlaneError | Lost:
    return at_revision(cast(O, new), outcome.revision) if isinstance(outcome, Written) else outcome


def update_many(registry: Registry, changes: Sequence[Change[O]]) -> list[O | Exception]:
    """See Registry.update_many."""
    answers: list[O | Exception] = [item.old for item in changes]
    writes: dict[int, Write] = {}
    replaced: dict[int, O] = {}
    for i, item in enumerate(changes):
        try:
            new = replacement(item.old, item.new)
        except PodlaneError as error:
            answers[i] = error
            continue
        if new != item.old:
            write = removal(item.old) if is_over(new) else change(item.old, new)
            writes[i] = write.resting_on((*map(unchanged, item.rests_on), *item.compare))
            replaced[i] = new
    outcomes = commit_all(registry.store, list(writes.values()), registry.fence)
    for i, outcome in zip(writes, outcomes, strict=True):
        what = f"update {short_name(changes[i].old)}"
        if isinstance(outcome, StoreUnavailable):
            answers[i] = outcome
        elif isinstance(outcome, Lost):
            gone = outcome.found[key_of(changes[i].old)] is None
            answers[i] = NotFound(f"{what}: not found") if gone else Conflict(f"{what}: it, or its owner, has changed")
        else:
            answers[i] = at_revision(replaced[i], outcome.revision)
    return answers


def delete_many(registry: Registry, objs: Sequence[O], *, grace_seconds: int | None = None) -> list[O | Exception]:
    """See Registry.delete_many. Those that have changed since they were read are deleted one by one."""
    answers: list[O | Exception] = list(objs)
    left: dict[int, O] = {}
    writes: dict[int, Write] = {}
    for i, obj in enumerate(objs):
        try:
            marked = registry.left_of(obj, grace_seconds)
        except Forbidden as error:
            answers[i] = error
            continue
        if marked is None:
            writes[i] = removal(obj)
            continue
        left[i] = marked
        if marked != obj:
            writes[i] = change(obj, marked)
    outcomes = commit_all(registry.store, list(writes.values()), registry.fence)
    for i, outcome in zip(writes, outcomes, strict=True):
        if isinstance(outcome, StoreUnavailable):
            answers[i] = outcome
        elif isinstance(outcome, Lost):
            answers[i] = _outcome_of(partial(_delete_as_is, registry, objs[i], grace_seconds))
        elif i in left:
            answers[i] = at_revision(left[i], outcome.revision)
    return answers


def _delete_as_is(registry: Registry, obj: O, grace_seconds: int | None) -> O:
    meta = obj.metadata
    return registry.delete(type(obj), meta.namespace, meta.name, uid=meta.uid or None, grace_seconds=grace_seconds)


def _outcome_of(call: Callable[[], O]) -> O | Exception:
    try:
        return call()
    except Fenced:
        raise
    except PodlaneError as error:
        return error


def _bound(registry: Registry, pod: Pod, binding: Binding) -> Pod:
    what = f"bind pod/{binding.name}"
    if pod.metadata.resource_version != binding.resource_version:
        raise Conflict(f"{what}: it is at version {pod.metadata.resource_version}, not {binding.resource_version}")
    if pod.spec.node_name:
        raise Conflict(f"{what}: it is on {pod.spec.node_name} already")
    if pod.metadata.deletion_timestamp is not None:
        raise Conflict(f"{what}: it is being deleted")
    scheduled = Condition(type="PodScheduled", status="True", last_transition_time=utcnow_from(registry.clock.now()))
    conditions = set_condition(pod.status.conditions, scheduled)
    status = msgspec.structs.replace(pod.status, conditions=conditions, nominated_node_name="")
    return msgspec.structs.replace(pod, spec=msgspec.structs.replace(pod.spec, node_name=binding.node), status=status)


def _pods(registry: Registry, bindings: Sequence[Binding]) -> list[Pod | Exception]:
    """The pods meant, read from the store where the caller does not have them."""
    unread = [keys.pod_key(b.namespace, b.name) for b in bindings if b.pod is None]
    found: dict[str, Pod | Exception] = {}
    for start in range(0, len(unread), MAX_OPS):
        wanted = unread[start : start + MAX_OPS]
        try:
            reads = registry.store.txn([], [Get(key) for key in wanted]).reads
        except StoreUnavailable as error:
            found.update(dict.fromkeys(unread[start:], error))
            break
        for kv in (kv for read in reads for kv in read):
            try:
                found[kv.key] = decode(Pod, kv.value, revision=kv.mod_revision)
            except DecodeError as error:
                found[kv.key] = error
    return [
        b.pod or found.get(keys.pod_key(b.namespace, b.name)) or NotFound(f"bind pod/{b.name}: not found")
        for b in bindings
    ]
