"""`podlane delete`: by name, label or manifest, with grace and with what depends on it.

Owns: what deleting one object means for others. With --cascade=background a
replication controller's pods are left to the scheduler, which deletes pods
whose controller is gone; with orphan they are cut loose first and go on
running. A namespace goes with everything in it, as in Kubernetes.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from podlane.errors import NotFound, PodlaneError, UsageError

if TYPE_CHECKING:
    from podlane.api.selectors import Selector
    from podlane.api.types import Object, ReplicationController
    from podlane.cli.query import Found

_ORPHAN_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class How:
    """How to delete. `grace` in seconds, None for the object's own."""

    grace: int | None
    orphan: bool
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
    "--cascade", type=click.Choice(["background", "orphan"]), default="background", help="Pods of a controller."
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
    how = How(_grace(grace_period, now=now, force=force), cascade == "orphan", dry_run, output)
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
    from podlane.api.types import Namespace, ReplicationController

    if isinstance(obj, Namespace):
        _empty_namespace(session, obj, how)
    if not how.dry_run:
        if isinstance(obj, ReplicationController) and how.orphan:
            _orphan(session, obj)
        session.registry.delete(
            type(obj),
            obj.metadata.namespace,
            obj.metadata.name,
            uid=obj.metadata.uid,
            grace_seconds=how.grace,
        )
    how.say(obj)


def _orphan(session: Session, rc: ReplicationController) -> None:
    """Cut a controller's pods loose.

    The controller is marked as being deleted first, so that it neither adopts
    them again nor makes others in their place.
    """
    import msgspec

    from podlane.api.types import Pod, ReplicationController

    def mark(live: ReplicationController) -> ReplicationController | None:
        if live.metadata.deletion_timestamp is not None:
            return None
        metadata = msgspec.structs.replace(live.metadata, deletion_timestamp=session.now())
        return msgspec.structs.replace(live, metadata=metadata)

    def release(pod: Pod) -> Pod | None:
        owners = tuple(o for o in pod.metadata.owner_references if o.uid != rc.metadata.uid)
        if owners == pod.metadata.owner_references:
            return None
        return msgspec.structs.replace(pod, metadata=msgspec.structs.replace(pod.metadata, owner_references=owners))

    namespace = rc.metadata.namespace
    session.registry.modify(ReplicationController, namespace, rc.metadata.name, mark)
    # a scheduler that has not seen the mark yet may adopt a pod once more: look until none is owned
    for _ in range(_ORPHAN_ROUNDS):
        owned = [p for p in session.registry.list(Pod, namespace).items if release(p) is not None]
        if not owned:
            return
        for pod in owned:
            try:
                session.registry.modify(Pod, namespace, pod.metadata.name, release)
            except NotFound:
                continue
    raise PodlaneError(f"orphan pods of replicationcontroller/{rc.metadata.name}: they are adopted again and again")


def _empty_namespace(session: Session, namespace: Object, how: How) -> None:
    """Delete what is in a namespace: what makes pods first, pods last."""
    from podlane.api.types import EndpointSlice, Event, Lease, Pod, ReplicationController, Service

    name = namespace.metadata.name
    if name == DEFAULT_NAMESPACE:
        raise PodlaneError(f'delete namespace "{name}": it is always there')
    kinds: Sequence[type[Object]] = (ReplicationController, Service, EndpointSlice, Lease, Pod, Event)
    for cls in kinds:
        for obj in session.registry.list(cls, name).items:
            try:
                if not how.dry_run:
                    session.registry.delete(cls, name, obj.metadata.name, uid=obj.metadata.uid, grace_seconds=how.grace)
            except NotFound:
                continue
            if cls is not Event:
                how.say(obj)
