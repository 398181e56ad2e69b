"""`podlane describe`: one object in full, for reading, with its events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from podlane.cli.command import Command, fail, note, pass_session
from podlane.cli.complete import resource_arguments
from podlane.cli.options import all_namespaces_option, selector_option
from podlane.cli.session import Session
from podlane.errors import PodlaneError

if TYPE_CHECKING:
    from podlane.api.selectors import Selector
    from podlane.api.types import Event, Object


@click.command("describe", cls=Command)
@click.argument("resources", nargs=-1, metavar="TYPE [NAME…] | TYPE/NAME…", shell_complete=resource_arguments)
@selector_option
@all_namespaces_option
@click.option("--show-events/--no-show-events", default=True, help="With the object's events (the default).")
@pass_session
def describe(
    session: Session,
    *,
    resources: tuple[str, ...],
    selector: Selector | None,
    all_namespaces: bool,
    show_events: bool,
) -> None:
    """Show objects in detail, with what belongs to them and their events."""
    from podlane.cli.description import describe_object
    from podlane.cli.query import fetch_all
    from podlane.cli.resources import parse

    targets = parse(resources)
    namespace = None if all_namespaces else session.namespace
    found = fetch_all(session, targets, namespace=namespace, selector=selector)
    objects = [obj for part in found for obj in part.objects]
    missing = [text for part in found for text in part.missing]
    for position, obj in enumerate(objects):
        if position:
            click.echo("\n")
        events = _events_of(session, obj) if show_events else None
        for line in describe_object(obj, session.now(), events=events, related=_related(session, obj)):
            click.echo(line.rstrip())
    if not objects and not missing:
        note("No resources found" + ("" if all_namespaces else f" in {session.namespace} namespace."))
    if missing:
        fail("\n".join(missing))


def _events_of(session: Session, obj: Object) -> list[Event]:
    """The object's events; those of an earlier object of the same name do not count."""
    from podlane.api.types import Event
    from podlane.cli.query import sort_events

    namespace = obj.metadata.namespace if type(obj).NAMESPACED else None
    return sort_events(
        event
        for event in session.registry.list(Event, namespace).items
        if event.involved_object.kind == type(obj).KIND
        and event.involved_object.name == obj.metadata.name
        and event.involved_object.uid in {"", obj.metadata.uid}
    )


def _related(session: Session, obj: Object) -> tuple[Object, ...]:
    """The pods of a controller or a node, the slices of a service, the quotas of a namespace.

    None if they cannot be read.
    """
    from podlane.api.meta import controller_of
    from podlane.api.types import (
        SERVICE_NAME_LABEL,
        EndpointSlice,
        Namespace,
        Node,
        Pod,
        ReplicationController,
        ResourceQuota,
        Service,
    )

    namespace = obj.metadata.namespace
    try:
        if isinstance(obj, Service):
            slices = session.registry.list(EndpointSlice, namespace).items
            return tuple(s for s in slices if s.metadata.labels.get(SERVICE_NAME_LABEL) == obj.metadata.name)
        if isinstance(obj, ReplicationController):
            pods = session.registry.list(Pod, namespace).items
            owned = ((p, controller_of(p)) for p in pods)
            return tuple(p for p, owner in owned if owner is not None and owner.uid == obj.metadata.uid)
        if isinstance(obj, Namespace):
            return session.registry.list(ResourceQuota, obj.metadata.name).items
        if isinstance(obj, Node):
            pods = session.registry.list(Pod).items
            return tuple(p for p in pods if p.spec.node_name == obj.metadata.name)
    except PodlaneError as error:
        note(f"warning: {error}")
    return ()
