"""`podlane rolling-update`: from one controller's pods to another's, a few at a time.

Owns: the command's words, and what is shown on the way (stderr; the result goes
to stdout). updating.py does the work, rollout.py decides.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from podlane.cli.command import Command, note, pass_session
from podlane.cli.complete import controllers
from podlane.cli.options import DURATION, dry_run_option, filename_option, load_manifests, output_option, timeout_option
from podlane.cli.session import Session
from podlane.errors import UsageError

if TYPE_CHECKING:
    from podlane.api.types import ReplicationController
    from podlane.cli.updating import Progress


@click.command("rolling-update", cls=Command)
@click.argument("old", metavar="OLD", shell_complete=controllers)
@click.argument("new", metavar="[NEW]", default="")
@filename_option
@click.option("--image", default="", help="The new image, in place of a new controller's manifest.")
@click.option("--container", default="", help="The container that gets the image, where pods have several.")
@click.option("--max-surge", "surge", default="1", show_default=True, help="Pods, or %, above the number wanted.")
@click.option(
    "--max-unavailable",
    "unavailable",
    default="0",
    show_default=True,
    help="Pods, or %, that may be missing on the way.",
)
@click.option("--update-period", type=DURATION, default="0", show_default=True, help="Pause between two steps.")
@timeout_option("5m", "Pause the update when a step takes longer than this; 0 is no limit.")
@click.option("--rollback", is_flag=True, help="Go back to the old controller, from wherever the update is.")
@click.option(
    "--deployment-label-key",
    "label",
    default="deployment",
    show_default=True,
    help="The label that tells the new image's pods from the old one's.",
)
@output_option("json", "name")
@dry_run_option
@pass_session
def rolling_update(
    session: Session,
    *,
    old: str,
    new: str,
    filenames: tuple[str, ...],
    image: str,
    container: str,
    surge: str,
    unavailable: str,
    update_period: float,
    timeout: float,
    rollback: bool,
    label: str,
    output: str | None,
    dry_run: bool,
) -> None:
    """Replace a replication controller's pods by those of a new one.

    The new one comes from a manifest, or is the old one with another --image;
    then it keeps the old one's name unless NEW is given. One pod more at a
    time, and none fewer, unless --max-surge and --max-unavailable say otherwise;
    a step waits until its pods are ready for minReadySeconds. An update that
    cannot go on pauses: the same command goes on with it, --rollback goes back.

    \b
    podlane rolling-update web-v1 -f web-v2.yaml
    podlane rolling-update web --image=registry.example/web:2
    podlane rolling-update web --rollback
    """  # noqa: D301 - \b is click's mark for a paragraph that is not to be wrapped
    from podlane.cli.updating import Update, Wanted

    old, new = (name.removeprefix("rc/").removeprefix("replicationcontroller/") for name in (old, new))
    _check(old, new, filenames, image)
    wanted = Wanted(old, new, image=image, container=container, label=label, surge=surge, unavailable=unavailable)
    manifest, counted = _manifest(session, filenames)
    with shown() as progress:
        update = Update(session, wanted, period=update_period, timeout=timeout or math.inf, progress=progress)
        if rollback:
            course = update.rollback_course(manifest.metadata.name if manifest else "")
        else:
            course = update.course(manifest, counted=counted)
        if dry_run:
            for line in course.lines():
                click.echo(f"{line} (dry run)")
            return
        try:
            result = update.run(course)
        except KeyboardInterrupt:
            note("interrupted: the same command goes on with the update, with --rollback it goes back")
            raise
    if output is not None:
        from podlane.cli.output import print_objects

        print_objects([result], output, single=True)
        return
    done = "rolled back" if rollback else f'rolling updated to "{result.metadata.name}"'
    click.echo(f"replicationcontroller/{wanted.old} {done}")


def _check(old: str, new: str, filenames: tuple[str, ...], image: str) -> None:
    """Raises UsageError for what can be told without a cluster."""
    from podlane.api.names import dns_subdomain_error

    for where, name in (("OLD", old), ("NEW", new)):
        if (name or where == "OLD") and (error := dns_subdomain_error(name)):
            raise UsageError(f"{where}: {error}")
    if filenames and image:
        raise UsageError("-f: expected no --image with it")
    if filenames and new:
        raise UsageError("NEW: expected none with -f, the manifest has a name")
    if new == old:
        raise UsageError(f'NEW: expected another name than OLD, got "{new}"')


def _manifest(session: Session, filenames: tuple[str, ...]) -> tuple[ReplicationController | None, bool]:
    """The new controller, and whether its manifest says how many replicas. Raises UsageError, Invalid."""
    from podlane.api.types import ReplicationController

    if not filenames:
        return None, False
    found = load_manifests(filenames, namespace=session.namespace)
    obj = found[0].obj
    if len(found) != 1 or not isinstance(obj, ReplicationController):
        kinds = ", ".join(f"{type(m.obj).KIND}/{m.obj.metadata.name}" for m in found)
        raise UsageError(f"-f: expected one ReplicationController, got {kinds}")
    if obj.metadata.namespace != session.namespace:
        raise UsageError(f'metadata.namespace: expected "{session.namespace}", got "{obj.metadata.namespace}"')
    return obj, "replicas" in (found[0].raw.get("spec") or {})


@contextmanager
def shown() -> Iterator[Progress]:
    """On a terminal a table of both controllers that follows them, below the lines; else nothing but the lines."""
    from podlane.cli.updating import Progress

    if not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console  # not before it is needed: it takes a while
    from rich.live import Live
    from rich.table import Table

    console = Console(stderr=True)
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        class Shown(Progress):
            def say(self, line: str) -> None:
                console.print(line, markup=False, highlight=False, soft_wrap=True)

            def look(self, growing: ReplicationController, shrinking: ReplicationController) -> None:
                table = Table("CONTROLLER", "WANTED", "PODS", "READY", "AVAILABLE", box=None, pad_edge=False)
                for rc in (shrinking, growing):
                    status = rc.status
                    numbers = (rc.spec.replicas, status.replicas, status.ready_replicas, status.available_replicas)
                    table.add_row(rc.metadata.name, *map(str, numbers))
                live.update(table)

        yield Shown()
