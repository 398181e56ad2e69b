"""`podlane pki rotate`: the host's certificates anew, or a new authority.

Owns: what is printed of a plan (podlane.pki.rotation) and of what comes after it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from podlane.cli.command import Command, fail, note, pass_session, warn
from podlane.cli.options import dry_run_option
from podlane.cli.pki import folder_option
from podlane.cli.session import Session
from podlane.errors import NotFound, PodlaneError
from podlane.pki.rotation import plan, waiting

if TYPE_CHECKING:
    from datetime import datetime

    from podlane.pki.authority import Authority
    from podlane.pki.rotation import Plan, State

_SHOWN = 10


@click.command("rotate", cls=Command)
@folder_option
@click.option("--authority", "whole", is_flag=True, help="Replace the authority: do the next safe part of it.")
@click.option("--force", is_flag=True, help="End the replacement although some have not renewed: they are locked out.")
@dry_run_option
@pass_session
def rotate(session: Session, /, *, folder: Path, whole: bool, force: bool, dry_run: bool) -> None:
    """Renew this host's certificates; the keys stay. On a server with the authority's key.

    With --authority, replace the authority. Run it twice. The first time makes a new one that signs from then on;
    everybody accepts both meanwhile, and renews within a day (`podlane host renew`, by a timer). The second time
    takes trust from the old one; it does nothing while a certificate by it is in use. It may be interrupted at any
    point and run again.
    """
    from podlane.pki import holdings
    from podlane.pki.authority import Authority

    if force and not whole:
        fail("--force: goes with --authority", exit_code=2)
    now = session.now()
    try:
        authority = Authority.load(folder)
    except NotFound as error:
        raise NotFound(f"{error}: elsewhere `podlane host renew` renews, with the join service's help") from error
    steps = plan(holdings.state_of(folder, authority), now, authority=whole, force=force)
    warn([f"{name}.pem: not by this cluster's authority, left alone" for name in steps.foreign])
    if steps.end and not force and (behind := _servers_behind(session, authority)):
        fail(_copy(behind))
    if str(steps):
        click.echo(str(steps))
    if dry_run:
        return
    authority = holdings.apply(steps, folder, authority, now=now)
    after = holdings.state_of(folder, authority)
    if whole and not str(steps):
        fail(_waits(after, now))
    note(_comes_next(steps, after, now))
    if steps.begin and (behind := _servers_behind(session, authority, but=_server_here(after))):
        note(_copy(behind))


def _servers_behind(session: Session, authority: Authority, but: str = "") -> list[str]:
    """Those whose join service signs with another authority. Its key is copied by hand, if they are to have it."""
    from podlane.host.joinservice import read_services
    from podlane.host.jointokens import ca_hash

    ours = ca_hash(authority.bundle)
    try:
        services = read_services(session.store)
    except PodlaneError as error:
        warn([f"whether other servers sign with another authority is not known: {error}"])
        return []
    return sorted(name for name, each in services.items() if each.ca_hash != ours and name != but)


def _server_here(state: State) -> str:
    """Whose join service looks at the authority's file and will tell of it in a moment."""
    return next((leaf.common_name.partition("@")[2] for leaf in state.leaves if leaf.file == "join"), "")


def _copy(servers: list[str]) -> str:
    return (
        f"{', '.join(servers)}: the join service there signs with another authority: copy this ca.key to it, run "
        "`podlane pki rotate` there, and wait a minute"
    )


def _comes_next(steps: Plan, after: State, now: datetime) -> str:
    if steps.end:
        return (
            "done. What runs takes it over by itself, but an etcd that was started before trusts the old one still: "
            "`podlane host renew` restarts it; on each server, one after another"
        )
    if not after.before:
        return "done. `podlane host renew` restarts what works with copies of these files"
    if waiting(after, now):
        return _waits(after, now)
    return "next: `podlane pki rotate --authority` once more, to end the rotation"


def _waits(state: State, now: datetime) -> str:
    late = waiting(state, now)
    names = ", ".join(leaf.common_name for leaf in late[:_SHOWN]) + (", …" if len(late) > _SHOWN else "")
    return (
        f"the rotation waits for {len(late)} certificates by {state.before}: {names}\n"
        "hosts renew within a day, at once by `podlane host renew` there; `podlane pki issue` renews what was issued "
        "by hand, `podlane pki forget` is for what is gone. Then: `podlane pki rotate --authority` once more"
    )
