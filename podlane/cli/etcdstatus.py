"""`podlane etcd status` and `members`: a row for each member.

Owns: the columns, and what is said of this host's snapshots. A member that does not
answer is a row too, and the exit code is 1 when one does not, has no leader, or raised
an alarm.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from podlane.cli.command import Command, fail, pass_session
from podlane.cli.options import no_headers_option, output_option
from podlane.cli.session import Session
from podlane.errors import PodlaneError
from podlane.host.layout import BACKUPS

if TYPE_CHECKING:
    from podlane.store.adminwire import Member
    from podlane.store.quorum import Survey, Surveyed
    from podlane.store.snapshots import Dated

_MEBI = 1 << 20
_UNKNOWN = "-"
_SNAPSHOT_LATE = timedelta(days=1, hours=6)
_COLUMNS = ["NAME", "ID", "ENDPOINT", "VERSION", "SIZE", "IN USE", "ROLE"]
_COLUMNS += ["TERM", "INDEX", "BEHIND", "LATENCY", "PROBLEM"]


@click.command("status", cls=Command)
@output_option("table", "json", default="table")
@no_headers_option
@click.option(
    "--backups",
    type=click.Path(file_okay=False, path_type=Path),
    default=BACKUPS,
    show_default=True,
    metavar="FOLDER",
    help="This server's snapshots, of which the newest is told.",
)
@pass_session
def status(session: Session, *, output: str, no_headers: bool, backups: Path) -> None:
    """Show how each member is: who leads, how far each is, how large its database is.

    BEHIND counts log entries that are not applied yet; IN USE is what `podlane etcd defragment` would leave of SIZE.
    """
    from podlane.cli.etcd import administration, look

    with administration(session) as admin:
        survey = look(admin)
        auth = _authentication(admin)
    found = _snapshots(backups)
    if output == "json":
        from podlane.cli.output import to_json

        told = {"authentication": auth, "members": [_json(each, survey) for each in survey.members]}
        click.echo(to_json(told | {"lastSnapshot": _snapshot_json(found)}))
    else:
        click.echo(table_of(survey, headers=not no_headers))
        word = {True: "on", False: "off", None: "unknown"}[auth]
        click.echo(f"\nauthentication: {word}")
        if found is not None:
            click.echo(f"last snapshot here: {last_snapshot(found, backups, session.now())}")
    if ill := [f"member {each.name}: {_with_remedy(each.complaint)}" for each in survey.members if each.complaint]:
        fail("\n".join(ill))


@click.command("members", cls=Command)
@output_option("table", "json", default="table")
@no_headers_option
@pass_session
def members(session: Session, *, output: str, no_headers: bool) -> None:
    """List the members as etcd knows them, whether they run or not."""
    from podlane.cli.etcd import administration
    from podlane.runtime.text import table

    with administration(session) as admin:
        found = admin.members()
    if output == "json":
        from podlane.cli.output import to_json

        click.echo(to_json({"members": [_known(member) for member in found]}))
        return
    rows = [
        [
            member.name or "<not started>",
            f"{member.id:x}",
            "learner" if member.learner else "voter",
            ",".join(member.peer_urls),
            ",".join(member.client_urls) or _UNKNOWN,
        ]
        for member in found
    ]
    click.echo(table([*([] if no_headers else [["NAME", "ID", "ROLE", "PEER URLS", "CLIENT URLS"]]), *rows]))


def _snapshots(folder: Path) -> list[Dated] | None:
    """The newest first; None: not a server, or not root there."""
    from podlane.store import snapshots

    try:
        return snapshots.whole(folder)
    except PodlaneError:
        return None


def last_snapshot(found: list[Dated], folder: Path, now: datetime) -> str:
    """For people: how old it is, and what to look at when that is too much."""
    from podlane.runtime.text import age

    look = "look: systemctl status podlane-snapshot.timer podlane-snapshot"
    if not found:
        return f"none in {folder} yet; {look}"
    late = f"; there should be one a day, {look}" if now - found[0].taken > _SNAPSHOT_LATE else ""
    return f"{age(found[0].taken, now)} ago, {found[0].path} ({_size(found[0].size)}){late}"


def _snapshot_json(found: list[Dated] | None) -> dict[str, Any] | None:
    if not found:
        return None
    return {"file": str(found[0].path), "taken": f"{found[0].taken:%Y-%m-%dT%H:%M:%SZ}", "sizeBytes": found[0].size}


def _authentication(admin: Any) -> bool | None:
    try:
        return bool(admin.auth_enabled())
    except PodlaneError:
        return None


def _known(member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        "id": f"{member.id:x}",
        "learner": member.learner,
        "peerURLs": list(member.peer_urls),
        "clientURLs": list(member.client_urls),
    }


def table_of(survey: Survey, *, headers: bool = True) -> str:
    from podlane.runtime.text import table

    return table([*([_COLUMNS] if headers else []), *(_row(each, survey) for each in survey.members)])


def _with_remedy(complaint: str) -> str:
    full = "NOSPACE" in complaint
    return f"{complaint}: it takes no writes; podlane etcd defragment --compact --disarm" if full else complaint


def _role(each: Surveyed) -> str:
    if not each.votes:
        return "learner"
    return _UNKNOWN if each.status is None else "leader" if each.leads else "follower"


def _row(each: Surveyed, survey: Survey) -> list[str]:
    at = each.status
    if at is None:
        about = [_UNKNOWN, _UNKNOWN, _UNKNOWN, _role(each), *[_UNKNOWN] * 4]
    else:
        in_use = _size(at.in_use) if at.in_use else _UNKNOWN
        about = [at.version, _size(at.size), in_use, _role(each), str(at.term), str(at.index)]
        about += [str(survey.behind[each.member.id]), f"{each.latency * 1000:.1f} ms"]
    name = each.member.name or "<not started>"
    return [name, f"{each.member.id:x}", each.endpoint or _UNKNOWN, *about, each.complaint or _UNKNOWN]


def _json(each: Surveyed, survey: Survey) -> dict[str, Any]:
    found = {**_known(each.member), "endpoint": each.endpoint, "role": _role(each), "problem": each.complaint}
    if at := each.status:
        found |= {
            "cluster": f"{at.cluster:x}",
            "version": at.version,
            "sizeBytes": at.size,
            "inUseBytes": at.in_use,
            "term": at.term,
            "index": at.index,
            "behind": survey.behind[each.member.id],
            "revision": at.revision,
            "latencySeconds": round(each.latency, 6),
            "alarms": list(each.alarms),
        }
    return found


def _size(count: int) -> str:
    return f"{count / _MEBI:.1f} MiB"
