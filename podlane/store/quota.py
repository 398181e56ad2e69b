"""Pods are created within the quotas of their namespace.

Owns: the transaction that makes pods and raises what is used. Invariant: the
quota is compared and written together with the pods that it counts, so that no
number of writers at once can exceed it, and a pod that was not made after all
counts for nothing. It is lowered by the controller that counts anew, never
here. Refused is only what does not fit beside what was really made. Source:
Kubernetes' ResourceQuota admission (plugin/pkg/admission/resourcequota), which
cannot write both at once and therefore counts too much for a while.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from podlane.api import quota
from podlane.api.meta import utcnow_from
from podlane.api.types import Pod, ResourceQuota
from podlane.errors import Conflict, Forbidden, NotFound, StoreUnavailable
from podlane.store.admission import asked_name
from podlane.store.rules import at_revision, change
from podlane.store.writes import MAX_BYTES, MAX_OPS, Lost, Outcome, Write, Written, commit

if TYPE_CHECKING:
    from podlane.store.registry import Registry

Quotas = tuple[ResourceQuota, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pod to be made, and how."""

    pod: Pod
    write: Write


@dataclass(slots=True)
class _Attempt:
    """As many pods as fit into one transaction, and the quotas with those in it."""

    quotas: Quotas
    placed: list[int]
    refused: dict[int, Forbidden]
    write: Write


def create(
    registry: Registry, namespace: str, candidates: Mapping[int, Candidate], quotas: Quotas
) -> dict[int, Outcome | Forbidden]:
    """Make pods of one namespace, in order; Lost is one whose name is taken or whose namespace has changed.

    `quotas` are those of the namespace as they were read.
    """
    answers: dict[int, Outcome | Forbidden] = {}
    waiting = list(candidates)
    deadline = registry.deadline()
    try:
        quotas = _counted(registry, quotas)
        while waiting:
            attempt = _attempt(candidates, waiting, quotas)
            outcome = commit(registry.store, attempt.write, registry.fence) if attempt.placed else Written(0)
            if isinstance(outcome, Lost):
                answers.update(_losers(candidates, attempt, outcome))
                registry.check(deadline)
                quotas = _counted(registry, registry.list(ResourceQuota, namespace).items)
            else:
                answers.update(attempt.refused)
                answers.update(dict.fromkeys(attempt.placed, outcome))
                quotas = _raised(quotas, attempt.quotas, outcome.revision)
                deadline = registry.deadline()
            waiting = [i for i in waiting if i not in answers]
    except StoreUnavailable as error:
        answers.update({i: error for i in waiting if i not in answers})
    return answers


def _attempt(candidates: Mapping[int, Candidate], waiting: Sequence[int], before: Quotas) -> _Attempt:
    attempt = _Attempt(before, [], {}, Write((), ()))
    room, size = MAX_OPS - len(before), 0
    for i in waiting:
        pod, write = candidates[i].pod, candidates[i].write
        charged = _charged(attempt.quotas, pod)
        if isinstance(charged, str):
            attempt.refused[i] = Forbidden(f"create {asked_name(pod)}: {charged}")
            continue
        size += write.size
        if attempt.placed and (len(attempt.write.ops) + len(write.ops) > room or size > MAX_BYTES):
            break
        attempt.quotas = charged
        attempt.placed.append(i)
        attempt.write = Write((*attempt.write.compare, *write.compare), (*attempt.write.ops, *write.ops))
    for old, new in zip(before, attempt.quotas, strict=True):
        if new is not old:
            raised = change(old, new)
            attempt.write = Write((*attempt.write.compare, *raised.compare), (*attempt.write.ops, *raised.ops))
    return attempt


def _charged(quotas: Quotas, pod: Pod) -> Quotas | str:
    after: list[ResourceQuota] = []
    for one in quotas:
        charged = quota.charged(one, pod)
        if isinstance(charged, str):
            return charged
        after.append(charged)
    return tuple(after)


def _losers(candidates: Mapping[int, Candidate], attempt: _Attempt, outcome: Lost) -> dict[int, Lost]:
    """Those whose own comparisons do not hold; the others lost with them, or to a quota that has changed."""
    return {
        i: Lost({compare.key: outcome.found.get(compare.key) for compare in candidates[i].write.compare})
        for i in attempt.placed
        if not all(compare.holds_for(outcome.found.get(compare.key)) for compare in candidates[i].write.compare)
    }


def _raised(before: Quotas, after: Quotas, revision: int) -> Quotas:
    return tuple(old if new is old else at_revision(new, revision) for old, new in zip(before, after, strict=True))


def _counted(registry: Registry, quotas: Sequence[ResourceQuota]) -> Quotas:
    """The quotas with their usage known: a new one, which no controller has seen yet, is counted here."""
    deadline = registry.deadline()
    while not all(map(quota.is_counted, quotas)):
        namespace = quotas[0].metadata.namespace
        pods = registry.list(Pod, namespace).items
        for one in quotas:
            if not quota.is_counted(one):
                status = quota.counted(one, pods, utcnow_from(registry.clock.now()))
                try:
                    registry.update(msgspec.structs.replace(one, status=status))
                except (Conflict, NotFound):  # somebody else has counted it, or it is gone
                    registry.check(deadline)
        quotas = registry.list(ResourceQuota, namespace).items
    return tuple(quotas)
