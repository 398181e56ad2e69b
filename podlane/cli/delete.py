"""`podlane delete`: by name, label or manifest, with grace and with what depends on it.

Owns: what is asked for; the scheduler does the rest. What an object owns (a
replication controller its pods) goes after it with --cascade=background, before
it with foreground, and is cut loose and stays with orphan. A namespace goes with
everything in it. All as in Kubernetes.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from podlane.cli.command import Command, fail, note, pass_session, warn
from podlane.cli.complete import resource_arguments
from podlane.cli.options import (
    all_namespaces_option,
    dry_run_option,
    filename_option,
    load_manifests,
    output_option,
    selector_option,
    timeout_option,
)
from podlane.cli.session import DEFAULT_NAMESPACE, Session
from podlane.errors import NotFound, PermissionDenied, PodlaneError, UsageError

if TYPE_CHECKING:
    from podlane.api.selectors import Selector
    from podlane.api.types import Object
    from podlane.cli.query import Found
    from podlane.store.deletion import Propagation


PROPAGATIONS: dict[str, Propagation] = {"background": "Background", "foreground": "Foreground", "orphan": "Orphan"}


@dataclass(frozen=True, slots=True)
class How:
    """How to delete. `grace` in seconds, None for the object's own."""

    grace: int | None
    propagation: Propagation
    dry_run: bool
    output: str | None

    def say(self, obj: Object) -> None:
        from podlane.cli.resources import full_name, qualified, resource_of_object

        if self.output == "name":
            click.echo(full_name(obj))
            return
        forced = "force " if self.grace == 0 else ""
        note_ = " (dry run)" if self.dry_run else ""
        click.echo(f'{qualified(resource_of_object(obj))} "{obj.metadata.name}" {forced}deleted{note_}')


@click.command("delete", cls=Command)
@click.argument("resources", nargs=-1, metavar="[TYPE NAME… | TYPE/NAME…]", shell_complete=resource_arguments)
@filename_option
@selector_option
@all_namespaces_option
@click.option("--all", "all_", is_flag=True, help="All objects of the types in the namespace.")
@click.option(
    "--grace-period",
    type=int,
    default=-1,
    metavar="SECONDS",
    help="Time a pod has to end; negative: its own; 0 only with --force.",
)
@click.option("--now", is_flag=True, help="The same as --grace-period=1.")
@click.option("--force", is_flag=True, help="Forget pods at once, without waiting for their node.")
@click.option(
    "--cascade",
    type=click.Choice(list(PROPAGATIONS)),
    default="background",
    show_default=True,
    help="What an object owns goes after it, before it, or stays.",
)
@click.option("--wait/--no-wait", default=True, help="Wait until the objects are gone (the default).")
@timeout_option("0", "Give up waiting after this long; 0 is no limit.")
@click.option("--ignore-not-found", is_flag=True, help="A name that is not there is no error.")
@output_option("name")
@dry_run_option
@pass_session
def delete(
    session: Session,
    *,
    resources: tuple[str, ...],
    filenames: tuple[str, ...],
    selector: Selector | None,
    all_namespaces: bool,
    all_: bool,
    grace_period: int,
    now: bool,
    force: bool,
    cascade: str,
    wait: bool,
    timeout: float,
    ignore_not_found: bool,
    output: str | None,
    dry_run: bool,
) -> None:
    """Delete objects.

    \b
    podlane delete pod web-1 --now
    podlane delete rc/web svc/web
    podlane delete pods -l app=web
    podlane delete -f web.yaml
    """  # noqa: D301 - \b is click's mark for a paragraph that is not to be wrapped
    how = How(_grace(grace_period, now=now, force=force), PROPAGATIONS[cascade], dry_run, output)
    if filenames:
        if resources or selector is not None or all_:
            raise UsageError("-f: expected no types, names, --selector or --all with it")
        objects, missing = _from_manifests(session, filenames)
    else:
        found = _from_arguments(session, resources, selector, all_=all_, all_namespaces=all_namespaces)
        objects = [obj for part in found for obj in part.objects]
        missing = [text for part in found for text in part.missing]
    failures = [] if ignore_not_found else missing
    if not objects and not failures:
        note("No resources found")
    deleted: list[Object] = []
    for obj in objects:
        try:
            _delete(session, obj, how)
            deleted.append(obj)
        except NotFound:
            continue
        except PodlaneError as error:
            failures.append(str(error))
    if wait and deleted and not dry_run:
        from podlane.cli.waiting import wait_gone

        wait_gone(session, deleted, timeout=timeout)
    if failures:
        fail("\n".join(failures))


def _grace(period: int, *, now: bool, force: bool) -> int | None:
    """The grace in seconds; None for the pod's own. Raises UsageError for contradictions."""
    if now and period >= 0:
        raise UsageError("--now: expected no --grace-period with it")
    if now:
        period = 1
    if force and period > 0:
        raise UsageError("--force: expected no grace period above 0 with it")
    if period == 0 and not force:
        raise UsageError("--grace-period=0: only with --force; --now gives a pod 1 s")
    if force:
        warn(["--force does not wait for a node to confirm that a pod has ended; it may go on running there"])
        return 0
    return None if period < 0 else period


def _from_manifests(session: Session, filenames: tuple[str, ...]) -> tuple[list[Object], list[str]]:
    from podlane.cli.query import fetch
    from podlane.cli.resources import Target, resource_of_object

    objects: list[Object] = []
    missing: list[str] = []
    for manifest in load_manifests(filenames, namespace=session.namespace):
        obj = manifest.obj
        target = Target(resource_of_object(obj), (obj.metadata.name,))
        found = fetch(session, target, namespace=obj.metadata.namespace)
        objects += found.objects
        missing += found.missing
    return objects, missing


def _from_arguments(
    session: Session,
    resources: tuple[str, ...],
    selector: Selector | None,
    *,
    all_: bool,
    all_namespaces: bool,
) -> list[Found]:
    from podlane.cli.query import fetch_all
    from podlane.cli.resources import parse

    targets = parse(resources)
    if any(not target.names for target in targets) and not all_ and selector is None:
        raise UsageError("objects: missing; expected names, --selector or --all")
    if all_ and any(target.names for target in targets):
        raise UsageError("--all: expected no names with it")
    if all_ and selector is not None:
        raise UsageError("--all: expected no --selector with it")
    namespace = None if all_namespaces else session.namespace
    return fetch_all(session, targets, namespace=namespace, selector=selector)


def _delete(session: Session, obj: Object, how: How) -> None:
    from podlane.api.types import Namespace, Node

    name = obj.metadata.name
    if isinstance(obj, Namespace) and name == DEFAULT_NAMESPACE:
        raise PodlaneError(f'delete namespace "{name}": it is always there')
    if not how.dry_run:
        session.registry.delete(
            type(obj),
            obj.metadata.namespace,
            name,
            uid=obj.metadata.uid,
            grace_seconds=how.grace,
            propagation=how.propagation,
        )
    how.say(obj)
    if isinstance(obj, Node) and not how.dry_run:
        _say_if_enrolled(session, name)


def _say_if_enrolled(session: Session, node: str) -> None:
    from podlane.host.enrol import read_hosts

    record = None
    with suppress(PermissionDenied):  # of one who may delete nodes, but not see what they may
        record = read_hosts(session.store).nodes.get(node)
    if record is not None and not record.revoked:
        note(f"node {node} keeps its certificates and its subnet; `podlane pki revoke {node}` takes both away")
