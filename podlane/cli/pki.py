"""`podlane pki`: the cluster's authority and what it signs.

Owns: the list of its sub-commands, the option they share, and the small ones. All
work on files, as root on the server that has the authority's key; `issue` also makes
the users in etcd that go with what it signs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from podlane.cli.command import LazyGroup, fail, note, pass_session
from podlane.cli.session import Session

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_FOLDER = Path("/etc/podlane/pki")

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("podlane.cli.pki:init", "Make the authority."),
    "issue": ("podlane.cli.pkiissue:issue", "Sign a certificate for a server, a node or a person."),
    "list": ("podlane.cli.pkilist:list_", "List certificates: whose, signed by whom, until when."),
    "rotate": ("podlane.cli.pkirotate:rotate", "Renew this host's certificates, or replace the authority."),
    "revoke": ("podlane.cli.pkirevoke:revoke", "Take a host's or a person's power away, at once."),
    "forget": ("podlane.cli.pki:forget", "Take names off the list of what was signed."),
}


@click.group("pki", cls=LazyGroup, lazy=COMMANDS)
def pki() -> None:
    """Look after the cluster's authority and its certificates."""


def folder_option(command: F) -> F:
    """`--dir`: passes `folder: Path`."""
    return click.option(
        "--dir",
        "folder",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="PODLANE_PKI_DIR",
        default=DEFAULT_FOLDER,
        show_default=True,
        help="The authority's folder, and this host's certificates.",
    )(command)


@click.command("init")
@folder_option
@click.option(
    "--days", type=click.IntRange(1, 36500), default=3650, show_default=True, help="How long the authority lasts."
)
@pass_session
def init(session: Session, /, *, folder: Path, days: int) -> None:
    """Make the authority of a cluster, once: its key signs whoever belongs to it.

    The key (ca.key) stays on servers; who has it can be anybody in the cluster. Keep a copy of it where a fire does
    not reach.
    """
    from podlane.pki.authority import Authority

    authority = Authority.create(folder, now=session.now(), days=days)
    click.echo(f"made {authority.name} in {folder}, until {authority.certificate.not_valid_after_utc:%Y-%m-%d}")
    click.echo(f"SHA-256 of its certificate: {authority.fingerprint}")


@click.command("forget")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@folder_option
def forget(*, names: tuple[str, ...], folder: Path) -> None:
    """Take names (as in `podlane pki list`) off the list of what the authority has signed, as their holders are gone.

    Nothing is revoked by it, and it takes the record that `podlane pki revoke` needs: what may be in other hands is
    revoked instead.
    """
    from podlane.pki.authority import Authority

    authority = Authority.load(folder)
    known = authority.issued()
    if unknown := [name for name in names if name not in known]:
        fail(f"forget {', '.join(unknown)}: {authority.name} has signed no such name")
    for name in names:
        authority.forget(name)
        note(f"forgot {name}")
