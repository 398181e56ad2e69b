"""`podlane etcd defragment`: give the disk back what compaction has freed.

Owns: the order: one member after another, the leader last, each only while the
others have a quorum, and the next only when the one before answers again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from podlane.cli.command import Command, fail, note, pass_session
from podlane.cli.options import dry_run_option, timeout_option
from podlane.cli.session import Session
from podlane.errors import PodlaneError

if TYPE_CHECKING:
    from podlane.store.administration import Administration
    from podlane.store.quorum import Surveyed

POLL = 0.5
_MEBI = 1 << 20


@click.command("defragment", cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME|ID…]")
@click.option("--compact", is_flag=True, help="First forget what every key was before now: needed once it is full.")
@click.option("--disarm", is_flag=True, help="Afterwards take back alarms, so that a full etcd accepts writes again.")
@timeout_option("2m", "How long a member may take to answer again.")
@dry_run_option
@pass_session
def defragment(
    session: Session, *, names: tuple[str, ...], compact: bool, disarm: bool, timeout: float, dry_run: bool
) -> None:
    """Defragment all members, or those named: one after another, the leader last.

    A member answers nothing meanwhile; with three or more nobody notices, a single one pauses the cluster for about
    a second for each 100 MiB.
    """
    from podlane.cli.etcd import administration, look
    from podlane.store import quorum

    with administration(session) as admin:
        survey = look(admin)
        wanted = {survey.find(name).member.id for name in names} or {each.member.id for each in survey.members}
        if compact and not dry_run:
            revision = max((each.status.revision for each in survey.members if each.status), default=0)
            admin.compact(revision)
            note(f"compacted to revision {revision}")
        chosen = [each for each in quorum.one_by_one(survey) if each.member.id in wanted]
        for each in chosen:
            _one(session, admin, each, timeout, dry_run=dry_run)
        if disarm and not dry_run:
            _disarm(admin)
        missing = [each for each in survey.members if each.member.id in wanted and each not in chosen]
    if missing:
        fail("\n".join(f"defragment {each.name}: {each.complaint}" for each in missing))


def _one(session: Session, admin: Administration, target: Surveyed, timeout: float, *, dry_run: bool) -> None:
    from podlane.cli.etcd import look
    from podlane.store import quorum

    quorum.check_pause(look(admin), target)
    before = target.status.size if target.status else 0
    if dry_run:
        click.echo(f"member {target.name}: {before / _MEBI:.1f} MiB, would be defragmented (dry run)")
        return
    begin = session.wall.monotonic()
    admin.defragment(target.endpoint)
    elapsed = session.wall.monotonic() - begin
    after = _await_health(session, admin, target, timeout)
    click.echo(f"member {target.name}: {before / _MEBI:.1f} MiB -> {after / _MEBI:.1f} MiB in {elapsed:.1f} s")


def _await_health(session: Session, admin: Administration, target: Surveyed, timeout: float) -> int:
    """Its size, once it answers and follows a leader."""
    deadline = session.wall.monotonic() + timeout
    while True:
        try:
            status = admin.status(target.endpoint)
            problem = "" if status.leader else "no leader"
        except PodlaneError as error:
            problem = str(error)
        if not problem:
            return status.size
        if session.wall.monotonic() >= deadline:
            fail(f"defragment {target.name}: done, but it is not well after {timeout:g} s: {problem}")
        session.wall.wait(session.stop, POLL)


def _disarm(admin: Administration) -> None:
    raised = admin.alarms()
    admin.disarm()
    for alarm in raised:
        click.echo(f"alarm {alarm.kind} of member {alarm.member:x} taken back")
    if not raised:
        note("no alarm was raised")
