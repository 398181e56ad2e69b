"""`podlane pki revoke`: certificates that shall count for nothing.

Owns: the options and what is said, and the order: first the users in etcd go, which is at once and
needs nobody else; then the serial numbers are marked, and the list of them is signed here or by a
server that can (podlane.host.revoking). Invariant: the same command again does what an interruption
has left out.
"""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from podlane.cli.command import Command, note, pass_session
from podlane.cli.pki import folder_option
from podlane.cli.session import Session
from podlane.errors import NotFound, StoreUnavailable
from podlane.pki.profile import ADMINISTRATOR, NODE_DAEMONS, SERVER_DAEMONS

if TYPE_CHECKING:
    from podlane.store.administration import Administration
    from podlane.store.interface import Store

Holder = Literal["node", "server", "operator"]

_DAEMONS: dict[Holder, tuple[str, ...]] = {"node": NODE_DAEMONS, "server": SERVER_DAEMONS, "operator": ()}


@click.command("revoke", cls=Command)
@click.argument("name")
@click.option(
    "--role",
    "holder",
    type=click.Choice(["node", "server", "operator"]),
    default="node",
    show_default=True,
    help="What NAME is.",
)
@click.option(
    "--forget", is_flag=True, help="The keys are surely gone: let another host have the name as if it were new."
)
@folder_option
@pass_session
def revoke(session: Session, /, *, name: str, holder: Holder, forget: bool, folder: Path) -> None:
    """Take a host's or a person's power away, at once: its users in etcd go, of a node its subnet, and agents and etcd
    refuse its certificates from then on.

    Needs root's certificate, and is best run on a server with the authority's key. Certificates that the name gets
    later are good; of root's the one that is used for this stays good. Pods of the node go on until the node is
    switched off; `podlane delete node NAME` has them replaced elsewhere. A stolen key of a server, or of the authority,
    needs more: see docs/join.md.
    """
    from podlane.host import revoking
    from podlane.pki import files
    from podlane.pki.authority import Authority
    from podlane.store.administration import Administration

    try:
        authority = Authority.load(folder)
    except NotFound:
        authority = None
    now = session.now().astimezone(UTC)
    names = [f"{daemon}@{name}" for daemon in _DAEMONS[holder]] or [name]
    with closing(Administration(session.config)) as accounts:
        gone = _take_users(session.store, accounts, name, holder, revoked="" if forget else f"{now:%Y-%m-%dT%H:%M:%SZ}")
        spared = files.read(Path(session.config.certfile)).serial_number if name == ADMINISTRATOR else 0
        new = revoking.mark(session.store, names, authority, now, spared=spared)
    if gone is not None and not new and not revoking.is_marked(session.store, names):
        raise gone
    _publish(session.store, folder, now, new=len(new))
    click.echo(f"{holder}/{name} revoked")


def _take_users(store: Store, accounts: Administration, name: str, holder: Holder, *, revoked: str) -> NotFound | None:
    """What of the cluster is its own. Returns the error when it was gone already."""
    from podlane.host import enrol

    try:
        if holder == "node":
            had = enrol.remove_node(store, accounts, node=name, revoked=revoked)
            note(f"subnet {had.subnets or 'none'} is free again, addresses {', '.join(had.addresses) or 'none'}")
        elif holder == "server":
            enrol.remove_server(store, accounts, server=name)
            note("its member of etcd stays until `podlane etcd remove-member`")
            note("if ca.key was on it, and may be in other hands: `podlane pki rotate --authority`")
        elif name == ADMINISTRATOR:
            note("etcd cannot be without its user: only certificates are revoked")
        elif name in accounts.users():
            accounts.delete_user(name)
        else:
            return NotFound(f"revoke operator {name}: etcd has no such user")
    except NotFound as error:
        return error
    return None


def _publish(store: Store, folder: Path, now: datetime, *, new: int) -> None:
    """Have the list signed, and say who heeds it when."""
    from podlane.host import revoking
    from podlane.host.joinservice import newest_authority

    try:
        authority = newest_authority(store, folder)
    except (NotFound, StoreUnavailable) as error:
        note(f"marked as revoked: {new} more certificates; the list of them is not signed here ({error}):")
        note("a server whose join service runs does it within seconds")
    else:
        text = revoking.sign(store, authority, now)
        revoking.keep(folder, text, authority.trusted, now)
        revoking.heed(authority, text)
        note(
            f"on the list of revoked certificates: {new} more; agents heed it within seconds, etcd on servers with the"
        )
        note("authority's key as well, on others within a day, or by `podlane host renew` there")
