"""`podlane drain`: cordon nodes and move their pods elsewhere, a few at a time.

Invariants: nothing is deleted before every node named was found and every pod
on them was judged; a pod is told by its uid, so another of its name is not
touched; drainplan.py keeps the pace. Interrupted, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import click

from podlane.cli.command import Command, note, pass_session, warn
from podlane.cli.nodes import find, nodes_argument, set_unschedulable
from podlane.cli.options import dry_run_option, selector_option, timeout_option
from podlane.cli.session import Session
from podlane.errors import NotFound, PodlaneError

if TYPE_CHECKING:
    from podlane.api.selectors import Selector
    from podlane.api.types import OwnerReference, Pod
    from podlane.cli.drainplan import Share, Step, Waived

_PAUSE = 0.5
"""Seconds between two looks at the pods."""


def _parse_max_unavailable(ctx: click.Context, param: click.Parameter, value: str) -> Share:
    del ctx, param
    from podlane.cli.drainplan import parse_share

    try:
        return parse_share(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("drain", cls=Command)
@nodes_argument
@selector_option
@click.option("--pod-selector", metavar="QUERY", help="Only pods with these labels.")
@click.option("--force", is_flag=True, help="Also delete pods that have no controller; nothing makes them anew.")
@click.option("--delete-emptydir-data", is_flag=True, help="Also delete pods with emptyDir volumes, data and all.")
@click.option("--ignore-daemonsets", is_flag=True, help="Leave pods of DaemonSets where they are.")
@click.option(
    "--max-unavailable",
    default="1",
    show_default=True,
    metavar="NUMBER|PERCENT",
    callback=_parse_max_unavailable,
    help="Of each controller's pods, how many may be missing at a time; the next goes when its replacement is ready.",
)
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
    delete_emptydir_data: bool,
    ignore_daemonsets: bool,
    max_unavailable: Share,
    grace_period: int,
    timeout: float,
    dry_run: bool,
) -> None:
    """Cordon nodes, move their pods elsewhere, and wait until they are gone.

    No more than --max-unavailable of a controller's pods are missing at a
    time, so a service in front of several loses no request. Interrupted, the
    same command goes on where it was.
    """
    from podlane.api.selectors import parse
    from podlane.api.types import Pod
    from podlane.cli import drainplan

    nodes = find(session, names, selector)
    wanted = parse(pod_selector) if pod_selector else None
    for node in nodes:
        set_unschedulable(session, node, True, dry_run=dry_run)
    waived = drainplan.Waived(force, delete_emptydir_data, ignore_daemonsets)
    chosen = partial(_on, {node.metadata.name for node in nodes}, wanted)
    pods = chosen(session.registry.list(Pod).items)
    if refused := drainplan.refusals(pods, waived):
        raise PodlaneError("\n".join(map(str, refused)))
    _warn_of_losses(pods)
    if dry_run:
        for pod in (pod for pod in pods if not drainplan.is_daemon(pod)):
            click.echo(f"evicting pod {pod.metadata.namespace}/{pod.metadata.name} (dry run)")
    else:
        grace = None if grace_period < 0 else grace_period
        _Drain(session, chosen, waived, max_unavailable, grace).run(timeout)
    for node in nodes:
        click.echo(f"node/{node.metadata.name} drained" + (" (dry run)" if dry_run else ""))


def _on(nodes: Collection[str], selector: Selector | None, pods: Sequence[Pod]) -> list[Pod]:
    """Those of the pods that are on the nodes and have the labels."""
    return [
        pod
        for pod in pods
        if pod.spec.node_name in nodes and (selector is None or selector.matches(pod.metadata.labels))
    ]


def _warn_of_losses(pods: Sequence[Pod]) -> None:
    """What --force and --delete-emptydir-data let go."""
    from podlane.cli.drainplan import Waived, refusals

    for refusal in refusals(pods, Waived(ignore_daemonsets=True)):
        warn([f"{refusal.why.replace('would be', 'will be')}: {', '.join(refusal.pods)}"])


@dataclass
class _Drain:
    """The moving of the pods that `chosen` picks. `grace` in seconds, None is each pod's own."""

    session: Session
    chosen: Callable[[Sequence[Pod]], list[Pod]]
    waived: Waived
    max_unavailable: Share
    grace: int | None
    most: dict[str, int] = field(default_factory=dict)
    """Of controllers that do not say how many pods they want, by UID: the most there were."""

    def run(self, timeout: float) -> None:
        """Until all are gone. Raises PodlaneError after `timeout` seconds (0: none), naming what is left."""
        from podlane.api.types import Pod
        from podlane.cli.drainplan import is_daemon, next_step, refusals

        wall = self.session.wall
        deadline = wall.monotonic() + timeout if timeout else None
        told: dict[str, str] = {}
        failed: dict[str, str] = {}
        left: dict[str, str] = {}
        while True:
            pods = self.session.registry.list(Pod).items
            # also what was placed there at the moment of the cordon; what speaks against deleting that is heeded
            going = [pod for pod in self.chosen(pods) if not is_daemon(pod) and not refusals([pod], self.waived)]
            now = {pod.metadata.uid: pod.metadata.name for pod in going}
            for uid in left.keys() - now.keys():
                click.echo(f"pod/{left[uid]} evicted")
            left = now
            step = next_step(pods, now.keys(), self._replicas(pods, going), self.max_unavailable)
            if step.over:
                return
            for pod in step.evict:
                self._evict(pod, failed)
            for why in sorted({why for name, why in step.waiting.items() if told.get(name) != why}):
                click.echo(f"waiting: {why}")
            told = dict(step.waiting)
            if deadline is not None and wall.monotonic() >= deadline:
                raise PodlaneError(_unfinished(step, failed, timeout))
            if wall.wait(self.session.stop, _PAUSE):
                raise PodlaneError("drain: stopped; the same command goes on where it was")

    def _replicas(self, pods: Sequence[Pod], going: Sequence[Pod]) -> dict[str, int]:
        """What the controllers of the pods that go want, by UID; one that is there no more wants none."""
        from podlane.api.meta import controller_of, is_pod_active
        from podlane.api.types import KINDS

        wanted: dict[str, int] = {}
        for pod in going:
            owner = controller_of(pod)
            if owner is None or owner.uid in wanted:
                continue
            if owner.kind in KINDS:
                wanted[owner.uid] = self._asked_for(owner, pod.metadata.namespace)
            else:
                siblings = sum(is_pod_active(p) and controller_of(p) == owner for p in pods)
                wanted[owner.uid] = self.most[owner.uid] = max(siblings, self.most.get(owner.uid, 0))
        return wanted

    def _asked_for(self, owner: OwnerReference, namespace: str) -> int:
        from podlane.api.types import KINDS

        try:
            found = self.session.registry.get(KINDS[owner.kind], namespace, owner.name)
        except NotFound:
            return 0
        replicas = getattr(getattr(found, "spec", None), "replicas", 0)
        return int(replicas) if found.metadata.uid == owner.uid else 0

    def _evict(self, pod: Pod, failed: dict[str, str]) -> None:
        name = f"{pod.metadata.namespace}/{pod.metadata.name}"
        if name not in failed:
            click.echo(f"evicting pod {name}")
        try:
            self.session.registry.delete(
                type(pod),
                pod.metadata.namespace,
                pod.metadata.name,
                uid=pod.metadata.uid,
                grace_seconds=self.grace,
            )
            failed.pop(name, None)
        except NotFound:
            pass  # it is gone, which is what was wanted
        except PodlaneError as error:
            if failed.get(name) != str(error):
                note(f"evict pod {name}: {error}; it is tried again")
            failed[name] = str(error)


def _unfinished(step: Step, failed: dict[str, str], timeout: float) -> str:
    from podlane.api.meta import namespaced_name

    lines = [f"drain: not finished after {timeout:g} s; the same command goes on where it was"]
    lines += [f"pod {namespaced_name(pod)} is ending" for pod in step.ending]
    lines += [f"pod {namespaced_name(pod)}: {failed.get(namespaced_name(pod), 'told to end')}" for pod in step.evict]
    lines += [f"pod {name} waits: {why}" for name, why in step.waiting.items()]
    return "\n".join(lines)
