"""Between the kinds that want replicas and the replication core, which knows none of them.

Owns: reading a kind's spec into an `Owner`, and writing counts into its status.
Invariant: a status object that would not change is not made. Another kind joins
by one function in each direction.
"""

from __future__ import annotations

from msgspec.structs import replace

from podlane.api.meta import owner_reference
from podlane.api.types import ReplicationController
from scheduler.replication import Counts, Owner


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


def with_counts(rc: ReplicationController, counts: Counts) -> ReplicationController | None:
    """The controller with its status brought up to date, or None when it is already."""
    status = replace(
        rc.status,
        replicas=counts.replicas,
        fully_labeled_replicas=counts.fully_labeled,
        ready_replicas=counts.ready,
        available_replicas=counts.available,
        observed_generation=rc.metadata.generation,
    )
    return None if status == rc.status else replace(rc, status=status)
