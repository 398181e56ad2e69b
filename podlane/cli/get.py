"""`podlane get`: objects as tables, json, yaml or names; once, or as they change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from podlane.cli.command import Command, fail, note, pass_session
from podlane.cli.complete import resource_arguments
from podlane.cli.options import all_namespaces_option, no_headers_option, output_option, selector_option
from podlane.cli.session import Session

if TYPE_CHECKING:
    from podlane.api.selectors import Selector
    from podlane.api.types import Object
    from podlane.cli.output import TablePrinter
    from podlane.cli.query import Found


@click.command("get", cls=Command)
@click.argument("resources", nargs=-1, metavar="TYPE[,TYPE] [NAME…] | TYPE/NAME…", shell_complete=resource_arguments)
@output_option("table", "wide", "json", "yaml", "name", default="table")
@selector_option
@all_namespaces_option
@click.option("-w", "--watch", is_flag=True, help="After listing, go on and print every change.")
@click.option("--show-labels", is_flag=True, help="Print the labels as the last column.")
@no_headers_option
@click.option("--ignore-not-found", is_flag=True, help="A name that is not there is no error.")
@pass_session
def get(
    session: Session,
    *,
    resources: tuple[str, ...],
    output: str,
    selector: Selector | None,
    all_namespaces: bool,
    watch: bool,
    show_labels: bool,
    no_headers: bool,
    ignore_not_found: bool,
) -> None:
    """List objects: pods, replicationcontrollers (rc), services (svc), nodes (no), namespaces (ns),
    events (ev), configmaps (cm), secrets, resourcequotas (quota), priorityclasses (pc), endpointslices,
    leases; or all, which is pods, rc and svc.

    \b
    podlane get pods -o wide
    podlane get pods,rc,svc -l app=web
    podlane get rc/web -o yaml
    """  # noqa: D301 - \b is click's mark for a paragraph that is not to be wrapped
    from podlane.cli.output import OBJECT_FORMATS, TablePrinter, print_objects
    from podlane.cli.query import fetch_all
    from podlane.cli.resources import parse

    targets = parse(resources)
    namespace = None if all_namespaces else session.namespace
    printers = {
        target.resource.cls: TablePrinter(
            target.resource.cls,
            wide=output == "wide",
            headers=not no_headers,
            with_namespace=all_namespaces and target.resource.cls.NAMESPACED,
            with_kind=len(targets) > 1,
            show_labels=show_labels,
        )
        for target in targets
    }
    if watch:
        from podlane.cli.watch import follow

        for objects in follow(session, targets, namespace=namespace, selector=selector):
            if output in OBJECT_FORMATS:
                for obj in objects:
                    print_objects([obj], output, single=True)
            else:
                printers[type(objects[0])].print(objects, session.now())
        return
    found = fetch_all(session, targets, namespace=namespace, selector=selector)
    if output in OBJECT_FORMATS:
        _print_data(found, output)
    else:
        _print_tables(found, printers, session, all_namespaces=all_namespaces, quiet=ignore_not_found)
    missing = [text for part in found for text in part.missing]
    if missing and not ignore_not_found:
        fail("\n".join(missing))


def _print_data(found: Sequence[Found], output: str) -> None:
    from podlane.cli.output import print_objects

    single = sum(len(part.target.names) for part in found) == 1
    objects = [obj for part in found for obj in part.objects]
    if objects or not any(part.missing for part in found):
        print_objects(objects, output, single=single)


def _print_tables(
    found: Sequence[Found],
    printers: Mapping[type[Object], TablePrinter],
    session: Session,
    *,
    all_namespaces: bool,
    quiet: bool,
) -> None:
    filled = [part for part in found if part.objects]
    for position, part in enumerate(filled):
        if position:
            click.echo()
        printers[part.target.resource.cls].print(part.objects, session.now())
    if not filled and not any(part.missing for part in found) and not quiet:
        scoped = not all_namespaces and any(part.target.resource.cls.NAMESPACED for part in found)
        note(f"No resources found in {session.namespace} namespace." if scoped else "No resources found")
