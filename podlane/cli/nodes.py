"""`podlane cordon`, `uncordon` and `drain`: taking nodes out of service and back.

Invariant of drain: nothing is deleted before every node named was found and
every pod on them was judged; a pod that no controller would make anew is only
deleted with --force.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from podlane.cli.command import Command, fail, note, pass_session, warn
from podlane.cli.complete import nodes as complete_nodes
from podlane.cli.options import dry_run_option, selector_option, timeout_option
from podlane.cli.session import Session
from podlane.errors import NotFound, PodlaneError, UsageError

if TYPE_CHECKING:
    from podlane.api.selectors import Selector
    from podlane.api.types import Node, Pod

_nodes_argument = click.argument("names", nargs=-1, metavar="NODE…", shell_complete=complete_nodes)


def _find(session: Session, names: Sequence[str], selector: Selector | None) -> list[Node]:
    """The nodes by name or by label. Raises NotFound naming all that are missing."""
    from podlane.api.meta import resource_of
    from podlane.api.types import Node
    from podlane.cli.query import fetch
    from podlane.cli.resources import Target, parse_for

    if bool(names) == (selector is not None):
        raise UsageError("nodes: expected names or --selector")
    target = Target(resource_of(Node), parse_for(Node, names) if names else ())
    found = fetch(session, target, namespace="", selector=selector)
    if found.missing:
        raise NotFound("\n".join(found.missing))
    return [obj for obj in found.objects if isinstance(obj, Node)]


def _set_unschedulable(session: Session, node: Node, unschedulable: bool, *, dry_run: bool) -> None:
    import msgspec

    from podlane.api.types import Node

    word = "cordoned" if unschedulable else "uncordoned"
    name = node.metadata.name
    if node.spec.unschedulable == unschedulable:
        click.echo(f"node/{name} already {word}")
        return

    def change(live: Node) -> Node | None:
        if live.spec.unschedulable == unschedulable:
            return None
        spec = msgspec.structs.replace(live.spec, unschedulable=unschedulable)
        return msgspec.structs.replace(live, spec=spec)

    if not dry_run:
        session.registry.modify(Node, "", name, change)
    click.echo(f"node/{name} {word}" + (" (dry run)" if dry_run else ""))


@click.command("cordon", cls=Command)
@_nodes_argument
@selector_option
@dry_run_option
@pass_session
def cordon(session: Session, names: tuple[str, ...], selector: Selector | None, dry_run: bool) -> None:
    """Mark nodes unschedulable: their pods go on, new ones are placed elsewhere."""
    for node in _find(session, names, selector):
        _set_unschedulable(session, node, True, dry_run=dry_run)


@click.command("uncordon", cls=Command)
@_nodes_argument
@selector_option
@dry_run_option
@pass_session
def uncordon(session: Session, names: tuple[str, ...], selector: Selector | None, dry_run: bool) -> None:
    """Mark nodes schedulable again."""
    for node in _find(session, names, selector):
        _set_unschedulable(session, node, False, dry_run=dry_run)


@click.command("drain", cls=Command)
@_nodes_argument
@selector_option
@click.option("--pod-selector", metavar="QUERY", help="Only pods with these labels.")
@click.option("--force", is_flag=True, help="Also delete pods that have no controller; nothing makes them anew.")
@click.option("--grace-period", type=int, default=-1, metavar="SECONDS", help="For each pod; negative: the pod's own.")
@timeout_option("0", "Give up after this long; 0 is no limit.")
@dry_run_option
@pass_session
def drain(
    session: Session,
    *,
    names: tuple[str, ...],
    selector: Selector | None,
    pod_selector: str | None,
    force: bool,
    grace_period: int,
    timeout: float,
    dry_run: bool,
) -> None:
    """Cordon nodes, delete their pods with grace, and wait until they are gone."""
    from podlane.api.selectors import parse

    nodes = _find(session, names, selector)
    wanted = parse(pod_selector) if pod_selector else None
    for node in nodes:
        _set_unschedulable(session, node, True, dry_run=dry_run)
    pods = _pods_on(session, {node.metadata.name for node in nodes}, wanted)
    _check_controllers(pods, force=force)
    gone = _evict(session, pods, grace_period=grace_period, timeout=timeout, dry_run=dry_run)
    for node in nodes:
        left = [pod for pod in pods if pod.spec.node_name == node.metadata.name and pod not in gone]
        if not left or dry_run:
            click.echo(f"node/{node.metadata.name} drained" + (" (dry run)" if dry_run else ""))
    if len(gone) < len(pods) and not dry_run:
        fail("drain: some pods could not be deleted")


def _pods_on(session: Session, nodes: set[str], selector: Selector | None) -> list[Pod]:
    from podlane.api.types import Pod

    return [
        pod
        for pod in session.registry.list(Pod).items
        if pod.spec.node_name in nodes and (selector is None or selector.matches(pod.metadata.labels))
    ]


def _check_controllers(pods: Sequence[Pod], *, force: bool) -> None:
    """Raises PodlaneError for pods that nothing would make anew, unless `force` or finished."""
    from podlane.api.meta import controller_of, is_pod_finished

    bare = [p for p in pods if controller_of(p) is None and not is_pod_finished(p)]
    if not bare:
        return
    listed = ", ".join(f"{pod.metadata.namespace}/{pod.metadata.name}" for pod in bare)
    if not force:
        raise PodlaneError(f"drain: pods without a controller would be lost: {listed}; --force deletes them")
    warn([f"deleting pods that have no controller: {listed}"])


def _evict(session: Session, pods: Sequence[Pod], *, grace_period: int, timeout: float, dry_run: bool) -> list[Pod]:
    """Delete the pods and wait; returns those that are gone."""
    from podlane.cli.waiting import wait_gone

    deleting: list[Pod] = []
    for pod in pods:
        name = f"{pod.metadata.namespace}/{pod.metadata.name}"
        if dry_run:
            click.echo(f"evicting pod {name} (dry run)")
            continue
        click.echo(f"evicting pod {name}")
        try:
            session.registry.delete(
                type(pod),
                pod.metadata.namespace,
                pod.metadata.name,
                uid=pod.metadata.uid,
                grace_seconds=None if grace_period < 0 else grace_period,
            )
        except NotFound:
            pass  # it is gone, which is what was wanted
        except PodlaneError as error:
            note(f"error: evict pod {name}: {error}")
            continue
        deleting.append(pod)
    if deleting:
        wait_gone(
            session,
            deleting,
            timeout=timeout,
            on_gone=lambda pod: click.echo(f"pod/{pod.metadata.name} evicted"),
        )
    return deleting
