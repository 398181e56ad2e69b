"""`podlane etcd restore`: a member's data folder from a snapshot, on the member's host.

Owns: the options and what is to be done next; the steps are podlane.store.restore's.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from podlane.cli.command import Command, note, pass_session
from podlane.cli.options import dry_run_option
from podlane.cli.session import Session
from podlane.errors import FieldError, Invalid

_MEBI = 1 << 20


@click.command("restore", cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="etcd's data folder; /var/lib/podlane/etcd on an installed server.",
)
@click.option("--name", required=True, metavar="NAME", help="The member's name (etcd's --name).")
@click.option("--peer-url", required=True, metavar="URL", help="Its peer URL, e.g. https://10.0.0.11:2380.")
@click.option(
    "--initial-cluster",
    default="",
    metavar="NAME=URL,…",
    help="All members, if several are restored from this file; default: this one alone.",
)
@click.option("--force", is_flag=True, help="Move the data that is in the folder aside.")
@dry_run_option
@pass_session
def restore(
    session: Session,
    *,
    file: Path,
    data_dir: Path,
    name: str,
    peer_url: str,
    initial_cluster: str,
    force: bool,
    dry_run: bool,
) -> None:
    """Make a member's data folder from a snapshot. For the host of the member, while its etcd does not run.

    The snapshot is checked before anything is changed. What was in the folder is moved aside, with --force. Daemons
    need no restart afterwards: they notice that the store went back.
    """
    from podlane.store import restore as restoring

    cluster = _parse(initial_cluster)
    wanted = restoring.Restoration(file, data_dir, name, peer_url, cluster, force, restoring.find_tool())
    saved = restoring.check(wanted)
    note(f"{file}: whole, {saved.size / _MEBI:.1f} MiB, sha256 {saved.digest}")
    if dry_run:
        click.echo(shlex.join(wanted.command(saved.digest, data_dir)))
        return
    aside = restoring.carry_out(wanted, saved, session.now())
    if aside:
        note(f"what was there is in {aside}; remove it once all is well")
    click.echo(f"member {name} restored into {data_dir}")
    others = [f"{other} ({url})" for other, url in wanted.members if other != name]
    if others:
        note(f"next: do the same, from the same file, on the hosts of {', '.join(others)}; then start etcd on all")
    else:
        note("next: systemctl start podlane-etcd; podlane etcd status; podlane etcd add-member for each further one")


def _parse(text: str) -> tuple[tuple[str, str], ...]:
    """`NAME=URL,…`. Raises Invalid."""
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    if any(not (member and equals and "://" in url) for member, equals, url in pairs):
        raise Invalid("restore", [FieldError("--initial-cluster", f'expected NAME=URL,…, got "{text}"')])
    return tuple((member, url.rstrip("/")) for member, _, url in pairs)
