"""`podlane scale`: the number of replicas, with a precondition and a wait if wanted."""

from __future__ import annotations

import click

from podlane.cli.command import Command, fail, pass_session
from podlane.cli.complete import controllers
from podlane.cli.options import dry_run_option, timeout_option
from podlane.cli.session import Session
from podlane.errors import NotFound, PodlaneError

_POLL = 0.2  # seconds between two looks at a controller that is waited for


@click.command("scale", cls=Command)
@click.argument("controllers", nargs=-1, required=True, metavar="rc/NAME… | rc NAME…", shell_complete=controllers)
@click.option("--replicas", type=click.IntRange(min=0), required=True, help="The number wanted.")
@click.option("--current-replicas", type=click.IntRange(min=0), help="Change it only if this is the number wanted now.")
@click.option("--wait", is_flag=True, help="Wait until that many replicas are there and ready.")
@timeout_option("5m", "How long to --wait; 0 is no limit.")
@dry_run_option
@pass_session
def scale(
    session: Session,
    *,
    controllers: tuple[str, ...],
    replicas: int,
    current_replicas: int | None,
    wait: bool,
    timeout: float,
    dry_run: bool,
) -> None:
    """Change the replicas of a replication controller.

    \b
    podlane scale rc/web --replicas=8
    podlane scale rc/web --replicas=8 --current-replicas=4 --wait
    """  # noqa: D301 - \b is click's mark for a paragraph that is not to be wrapped
    from podlane.api.types import ReplicationController
    from podlane.cli.resources import parse_for

    failures: list[str] = []
    scaled: list[str] = []
    for name in parse_for(ReplicationController, controllers):
        try:
            _scale_one(session, name, replicas, current_replicas, dry_run=dry_run)
            scaled.append(name)
        except PodlaneError as error:
            failures.append(str(error))
    if wait and not dry_run:
        deadline = session.wall.monotonic() + timeout if timeout else None
        failures += [text for name in scaled if (text := _wait(session, name, replicas, deadline))]
    if failures:
        fail("\n".join(failures))


def _scale_one(session: Session, name: str, replicas: int, expected: int | None, *, dry_run: bool) -> None:
    import msgspec

    from podlane.api.types import ReplicationController

    def change(rc: ReplicationController) -> ReplicationController | None:
        have = rc.spec.replicas
        if expected is not None and have != expected:
            raise PodlaneError(f"scale replicationcontroller/{name}: expected {expected} replicas now, got {have}")
        if have == replicas or dry_run:
            return None
        return msgspec.structs.replace(rc, spec=msgspec.structs.replace(rc.spec, replicas=replicas))

    try:
        before = session.registry.get(ReplicationController, session.namespace, name).spec.replicas
        session.registry.modify(ReplicationController, session.namespace, name, change)
    except NotFound as error:
        raise NotFound(f'replicationcontrollers "{name}" not found') from error
    note = f" (dry run: {before} -> {replicas})" if dry_run else ""
    click.echo(f"replicationcontroller/{name} scaled{note}")


def _wait(session: Session, name: str, replicas: int, deadline: float | None) -> str | None:
    """Wait until the status agrees; the error's text if it does not in time."""
    from podlane.api.types import ReplicationController
    from podlane.cli.trouble import Watch

    while True:
        try:
            rc = session.registry.get(ReplicationController, session.namespace, name)
        except NotFound:
            return f"wait for replicationcontroller/{name}: deleted meanwhile"
        status = rc.status
        if rc.spec.replicas != replicas:
            return f"wait for replicationcontroller/{name}: scaled to {rc.spec.replicas} by someone else"
        current = status.observed_generation >= rc.metadata.generation
        if current and status.replicas == replicas and status.ready_replicas == replicas:
            return None
        if deadline is not None and session.wall.monotonic() >= deadline:
            why = Watch(session).reason(rc)
            return (
                f"wait for replicationcontroller/{name}: {status.ready_replicas} ready of {status.replicas}, "
                f"expected {replicas}, when the time was up" + (f": {why}" if why else "")
            )
        if session.wall.wait(session.stop, _POLL):
            return f"wait for replicationcontroller/{name}: stopped"
