"""Reading what the resource arguments mean.

Owns: targets to objects, with what is missing kept apart, so that a command
can act on what is there and report the rest (kubectl's order: data, then
errors, then exit code 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from podlane.api.types import Event, Object
from podlane.cli.resources import Target, qualified
from podlane.errors import NotFound, UsageError

if TYPE_CHECKING:
    from podlane.api.selectors import Selector
    from podlane.cli.session import Session


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of one target; `missing` are messages, one for each name that is not there."""

    target: Target
    objects: tuple[Object, ...]
    missing: tuple[str, ...] = ()


def missing_text(target: Target, name: str) -> str:
    """`pods "web" not found`, as kubectl words it."""
    return f'{target.resource.plural} "{name}" not found'


def sort_events(events: Iterable[Event]) -> list[Event]:
    """Oldest first, by when they last happened."""

    def when(event: Event) -> tuple[float, int, str]:
        moment = event.last_timestamp or event.first_timestamp or event.metadata.creation_timestamp
        # times have whole seconds; the revision tells what came first within one
        revision = event.metadata.resource_version
        return (moment.timestamp() if moment else 0.0, int(revision or 0), event.metadata.name)

    return sorted(events, key=when)


def in_order(objects: Iterable[Object]) -> list[Object]:
    """Events by time, everything else by namespace and name."""
    items = list(objects)
    if items and isinstance(items[0], Event):
        return [*sort_events(item for item in items if isinstance(item, Event))]
    return sorted(items, key=lambda obj: (obj.metadata.namespace, obj.metadata.name))


def fetch(session: Session, target: Target, *, namespace: str | None, selector: Selector | None = None) -> Found:
    """The objects a target means; a `namespace` of None is all of them.

    Raises UsageError when names are combined with a selector or all namespaces.
    """
    cls = target.resource.cls
    if target.names:
        if selector is not None:
            raise UsageError("--selector: expected no names with it")
        if namespace is None and cls.NAMESPACED:
            raise UsageError("--all-namespaces: expected no names with it")
        objects: list[Object] = []
        missing: list[str] = []
        for name in target.names:
            try:
                objects.append(session.registry.get(cls, namespace or "", name))
            except NotFound:
                missing.append(missing_text(target, name))
        return Found(target, tuple(objects), tuple(missing))
    items = session.registry.list(cls, namespace if cls.NAMESPACED else None).items
    chosen = [obj for obj in items if selector is None or selector.matches(obj.metadata.labels)]
    return Found(target, tuple(in_order(chosen)))


def fetch_all(
    session: Session,
    targets: Sequence[Target],
    *,
    namespace: str | None,
    selector: Selector | None = None,
) -> list[Found]:
    return [fetch(session, target, namespace=namespace, selector=selector) for target in targets]


def qualified_name(target: Target, name: str) -> str:
    """`pod/web-1` for a name of the target's kind."""
    return f"{qualified(target.resource)}/{name}"
