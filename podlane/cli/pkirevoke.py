"""`podlane pki revoke`: a certificate that shall count for nothing.

Owns: the options and what is said. Why there is no list of revoked certificates: etcd gives
nothing to a certificate without a user, so taking the user away is the revocation, at once
and everywhere (see docs/join.md for what it does not reach).
"""

from __future__ import annotations

from contextlib import closing
from datetime import UTC
from pathlib import Path
from typing import Literal

import click

from podlane.cli.command import Command, note, pass_session
from podlane.cli.pki import folder_option
from podlane.cli.session import Session
from podlane.errors import NotFound
from podlane.pki.profile import NODE_DAEMONS, SERVER_DAEMONS

Holder = Literal["node", "server", "operator"]


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
    """Take a host's or a person's power away, at once: its users in etcd go, and of a node its subnet.

    Needs root's certificate. Pods of the node go on until the node is switched off; `podlane delete node NAME` has
    them replaced elsewhere. A stolen key of a server, or of the authority, needs more: see docs/join.md.
    """
    from podlane.host import enrol
    from podlane.store.administration import Administration

    moment = session.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with closing(Administration(session.config)) as accounts:
        if holder == "node":
            had = enrol.remove_node(session.store, accounts, node=name, revoked="" if forget else moment)
            note(f"subnet {had.subnets or 'none'} is free again, addresses {', '.join(had.addresses) or 'none'}")
        elif holder == "server":
            enrol.remove_server(session.store, accounts, server=name)
            note(
                "its etcd certificate is taken by the other members still: `podlane etcd remove-member`, and if its key"
            )
            note("may be in other hands, `podlane pki rotate --authority`")
        else:
            if name not in accounts.users():
                raise NotFound(f"revoke operator {name}: etcd has no such user")
            accounts.delete_user(name)
    _forget(folder, name, holder)
    click.echo(f"{holder}/{name} revoked")


def _forget(folder: Path, name: str, holder: Holder) -> None:
    """What the authority, if it is here, has given out no longer keeps a rotation waiting."""
    from podlane.pki.authority import Authority

    try:
        authority = Authority.load(folder)
    except NotFound:
        return
    daemons = {"node": NODE_DAEMONS, "server": SERVER_DAEMONS, "operator": ()}[holder]
    for common_name in [f"{daemon}@{name}" for daemon in daemons] or [name]:
        authority.forget(common_name)
