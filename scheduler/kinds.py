"""Between the kinds that want replicas and the replication core, which knows none of them.

Owns: reading a kind's spec into an `Owner`, and writing what became of it into
its status. Invariant: a status object that would not change is not made.
Another kind joins by one function in each direction and a line in KINDS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from msgspec.structs import replace

from podlane.api.meta import get_condition, owner_reference, set_condition, utcnow_from
from podlane.api.types import Condition, Object, ReplicationController
from scheduler.replication import Counts, Owner

O = TypeVar("O", bound=Object)  # noqa: E741 - an object


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an owner's pods could not be made or removed: FailedCreate or FailedDelete, and the error."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is to be told of an owner. `now` in Unix seconds."""

    counts: Counts
    failure: Failure | None
    now: float


@dataclass(frozen=True, slots=True)
class Kind(Generic[O]):
    """`owner_of` reads it; `with_outcome` returns it with its status brought up to date, None when it is already."""

    cls: type[O]
    owner_of: Callable[[O], Owner]
    with_outcome: Callable[[O, Outcome], O | None]


def owner_of(rc: ReplicationController) -> Owner:
    """The owner a ReplicationController is; an absent selector is the template's labels."""
    return Owner(
        reference=owner_reference(rc),
        namespace=rc.metadata.namespace,
        selector=rc.spec.selector or rc.spec.template.metadata.labels,
        replicas=rc.spec.replicas,
        template=rc.spec.template,
        min_ready_seconds=rc.spec.min_ready_seconds,
        deleting=rc.metadata.deletion_timestamp is not None,
    )


def with_outcome(rc: ReplicationController, outcome: Outcome) -> ReplicationController | None:
    """The controller with its status brought up to date, or None when it is already."""
    counts = outcome.counts
    status = replace(
        rc.status,
        replicas=counts.replicas,
        fully_labeled_replicas=counts.fully_labeled,
        ready_replicas=counts.ready,
        available_replicas=counts.available,
        observed_generation=rc.metadata.generation,
        conditions=with_failure(rc.status.conditions, outcome),
    )
    return None if status == rc.status else replace(rc, status=status)


def with_failure(conditions: tuple[Condition, ...], outcome: Outcome) -> tuple[Condition, ...]:
    """The conditions with ReplicaFailure as it is; there is none while all is well, as in Kubernetes."""
    failure = outcome.failure
    if failure is None:
        return tuple(condition for condition in conditions if condition.type != "ReplicaFailure")
    known = get_condition(conditions, "ReplicaFailure")
    if known is not None and known.reason == failure.reason:
        return conditions  # a message has names and numbers in it that change at every attempt
    condition = Condition(
        type="ReplicaFailure",
        status="True",
        reason=failure.reason,
        message=failure.message,
        last_transition_time=utcnow_from(outcome.now),
    )
    return set_condition(conditions, condition)


REPLICATION_CONTROLLER = Kind(ReplicationController, owner_of, with_outcome)

KINDS: tuple[Kind[Any], ...] = (REPLICATION_CONTROLLER,)
"""Every kind that wants replicas."""
