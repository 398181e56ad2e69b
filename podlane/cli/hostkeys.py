"""`podlane host keys|enrol|join`: the steps of an installation that need keys or etcd.

Owns: their options. `install` runs them, by the version it has just unpacked; each
can be run again by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from podlane.cli.command import Command, note, pass_session
from podlane.cli.session import Session
from podlane.host.layout import PKI, Role

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_ROLES = click.Choice(["server", "node", "all"])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _who(command: Callable[..., Any]) -> Callable[..., Any]:
    options: list[_Decorator] = [
        click.option("--role", type=_ROLES, required=True, help="What this host is."),
        click.option("--name", required=True, metavar="NAME", help="This host's name in the cluster."),
        click.option("--address", "addresses", required=True, metavar="IP[,IP]", help="Its address, one of a family."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command("keys")
@_who
@click.option(
    "--pki", type=click.Path(file_okay=False, path_type=Path), default=PKI, show_default=True, help="Where to."
)
@click.option("--ca", type=_FILE, help="The authority that signed what is given.")
@click.option(
    "--cert-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="NAME.pem and NAME.key of each daemon.",
)
@click.option("--cert", type=_FILE, help="Instead: one certificate for all daemons.")
@click.option("--key", type=_FILE, help="Its key.")
def keys(
    *,
    role: Role,
    name: str,
    addresses: str,
    pki: Path,
    ca: Path | None,
    cert_dir: Path | None,
    cert: Path | None,
    key: Path | None,
) -> None:
    """Make the authority and this server's certificates, or put given ones in their places."""
    from podlane.host import keys as host_keys
    from podlane.host.layout import NODE_DAEMONS

    if ca is not None:
        server = ("scheduler",) if role != "node" else ()
        daemons = (*server, *(NODE_DAEMONS if role != "server" else ()))
        host_keys.take(pki, host_keys.given(daemons, ca, cert_dir=cert_dir, cert=cert, key=key))
        return
    made = host_keys.found(pki, role, name, tuple(addresses.split(",")), now=datetime.now(UTC))
    note(f"made: {', '.join(made) or 'nothing, all is there'}")


@click.command("enrol", cls=Command)
@_who
@pass_session
def enrol(session: Session, /, *, role: Role, name: str, addresses: str) -> None:
    """Make etcd's roles and users for this host, and have etcd ask everybody who they are."""
    from podlane.host import keys as host_keys

    host_keys.enrol(session.store, session.config, role, name, tuple(addresses.split(",")))


@click.command("join")
@_who
@click.option("--server", required=True, metavar="URL[,URL]", help="The join service.")
def join(*, role: Role, name: str, addresses: str, server: str) -> None:
    """Join the cluster with the token on standard input, and write down where its etcd is."""
    from podlane.host.join import join as join_cluster
    from podlane.host.settings import cluster_file
    from podlane.runtime.atomic import write_atomic

    joined = join_cluster(
        server,
        sys.stdin.readline().strip(),
        name,
        addresses.split(","),
        Path(PKI),
        role="node" if role == "node" else "server",
        with_node=role == "all",
    )
    file = cluster_file(joined.endpoints)
    write_atomic(file.path, file.content, file.mode)
    note(f"joined as {joined.name}{f', pods in {joined.subnets}' if joined.subnets else ''}")
