"""Decides which of the events that nodes report are to be told. Pure.

Owns: whom is believed what happened to what. Invariants: a node tells only of
itself, and of the pods that are bound to it or were; its proxyd of services too,
which are no node's; whatever it says, the event names that node as the one who
says so; a node tells no more than MOST events at once and RATE in a second, so
that a stolen one does not bury what the others say. See ADR 20.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from podlane.api.defaults import DEFAULT_NAMESPACE
from podlane.api.types import EndpointSlice, Event, EventSource, Node, Object, ObjectMeta, Pod, Service
from podlane.store.events import NAME_LIMIT
from podlane.store.keys import ReportKey

MOST = 1000
"""More than a node tells when all the pods it can run begin at once."""
RATE = 20.0
LARGEST = 16 * 1024
"""Bytes of an event."""
LONGEST_MESSAGE = 1024
LONGEST_REASON = 128
"""Both are Kubernetes' limits."""

COMPONENTS: Mapping[str, tuple[type[Object], ...]] = {
    "agent": (Node, Pod),
    "proxyd": (Node, Service, EndpointSlice),
}
"""The daemons of a node that tell of events, and of what."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many events a node may still tell, as of `at` (monotonic seconds)."""

    left: float = MOST
    at: float = 0.0

    def spend(self, now: float) -> Allowance | None:
        """What is left after one more; None when there is none left."""
        left = min(MOST, self.left + RATE * max(0.0, now - self.at))
        return Allowance(left - 1, now) if left >= 1 else None


def refusal(key: ReportKey, event: Event, place: str | None) -> str:
    """Why the event is not to be told; "" when it is.

    `place` is the node that what it is about is or was on, "" for what is on none; None: there is no such object.
    """
    about = event.involved_object
    if about.kind not in {cls.KIND for cls in COMPONENTS.get(key.component, ())}:
        return f"{key.component} tells of no {about.kind or 'object without a kind'}"
    if (about.namespace or DEFAULT_NAMESPACE) != key.namespace:
        return f"it is about something in {about.namespace or DEFAULT_NAMESPACE}, and kept in {key.namespace}"
    if not key.name.startswith(f"{about.name[:NAME_LIMIT]}."):
        return f"its name does not begin with {about.name}"
    what = f"{about.kind.lower()} {about.namespace}/{about.name}".replace(" /", " ")
    if place is None:
        return f"there is no {what}"
    return "" if place in {"", key.node} else f"{what} is not there"


def as_told(key: ReportKey, event: Event) -> Event:
    """The event as it is stored: by whom it is and where it is kept are not the node's to say."""
    metadata = ObjectMeta(
        name=key.name,
        namespace=key.namespace,
        uid=event.metadata.uid,
        creation_timestamp=event.metadata.creation_timestamp,
    )
    return msgspec.structs.replace(
        event,
        metadata=metadata,
        source=EventSource(component=key.component, host=key.node),
        reason=event.reason[:LONGEST_REASON],
        message=event.message[:LONGEST_MESSAGE],
    )
