"""`podlane events`: what happened, oldest first, once or as it happens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from podlane.cli.command import Command, note, pass_session
from podlane.cli.complete import resource_arguments
from podlane.cli.options import all_namespaces_option, no_headers_option, output_option
from podlane.cli.session import Session
from podlane.errors import UsageError

if TYPE_CHECKING:
    from podlane.api.types import Event, Object
    from podlane.cli.resources import Target


def event_rows(events: Sequence[Event], now: datetime, *, with_namespace: bool) -> list[list[str]]:
    from podlane.cli.tables import event_object, last_seen

    return [
        [event.metadata.namespace] * with_namespace
        + [last_seen(event, now), event.type, event.reason, event_object(event), event.message.strip()]
        for event in events
    ]


def _is_about(event: Event, target: Target | None) -> bool:
    if target is None:
        return True
    about = event.involved_object
    return about.kind == target.resource.cls.KIND and about.name in target.names


@click.command("events", cls=Command)
@click.option("--for", "about", metavar="TYPE/NAME", shell_complete=resource_arguments, help="Only of this object.")
@click.option("--types", metavar="TYPE[,TYPE]", help="Only these types: Normal, Warning.")
@all_namespaces_option
@click.option("-w", "--watch", is_flag=True, help="After listing, go on and print every new one.")
@output_option("table", "json", "yaml", "name", default="table")
@no_headers_option
@pass_session
def events(
    session: Session,
    *,
    about: str | None,
    types: str | None,
    all_namespaces: bool,
    watch: bool,
    output: str,
    no_headers: bool,
) -> None:
    """List events, oldest first."""
    from podlane.api.meta import resource_of
    from podlane.api.types import Event
    from podlane.cli.output import print_objects
    from podlane.cli.query import fetch
    from podlane.cli.resources import Target, parse
    from podlane.runtime.text import TableWriter

    target = parse([about])[0] if about else None
    if target is not None and not target.names:
        raise UsageError(f'--for: expected TYPE/NAME, got "{about}"')
    wanted = _event_types(types)
    namespace = None if all_namespaces else session.namespace
    kind = Target(resource_of(Event))
    writer = TableWriter()
    header = [["NAMESPACE"] * all_namespaces + ["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]]
    rows_before = [] if no_headers else header

    def chosen(objects: Sequence[Object]) -> list[Event]:
        return [e for e in objects if isinstance(e, Event) and e.type in wanted and _is_about(e, target)]

    def show(batch: Sequence[Event]) -> None:
        nonlocal rows_before
        if output != "table":
            for event in batch:
                print_objects([event], output, single=True)
        elif batch:
            rows = event_rows(batch, session.now(), with_namespace=all_namespaces)
            for line in writer.render([*rows_before, *rows]):
                click.echo(line)
            rows_before = []

    if watch:
        from podlane.cli.watch import follow

        for objects in follow(session, [kind], namespace=namespace, selector=None):
            show(chosen(objects))
        return
    found = chosen(fetch(session, kind, namespace=namespace).objects)
    if output != "table":
        print_objects(found, output)
    elif found:
        show(found)
    else:
        note("No events found" + ("." if all_namespaces else f" in {session.namespace} namespace."))


def _event_types(text: str | None) -> frozenset[str]:
    known = {"normal": "Normal", "warning": "Warning"}
    if text is None:
        return frozenset(known.values())
    words = text.lower().split(",")
    if unknown := [word for word in words if word not in known]:
        raise UsageError(f'--types: expected Normal or Warning, got "{unknown[0]}"')
    return frozenset(known[word] for word in words)
