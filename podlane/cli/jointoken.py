"""`podlane join-token`: what lets another host into the cluster.

Owns: the options and what is printed. Invariant: `create` writes one line to stdout,
the one to paste; all else goes to stderr.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from podlane.cli.command import Command, LazyGroup, fail, note, pass_session
from podlane.cli.options import DURATION
from podlane.cli.session import Session

if TYPE_CHECKING:
    from podlane.host.joinmessages import HostRole
    from podlane.host.joinservice import ServiceRecord
    from podlane.host.jointokens import Found, TokenRecord

_SERVERS = 3
"""In the line to paste: one of them may be down."""


class _CreateByDefault(LazyGroup):
    """`podlane join-token --uses 5` is `podlane join-token create --uses 5`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.lazy and args[0] not in ctx.help_option_names):
            args = ["create", *args]
        return super().parse_args(ctx, args)


@click.group(
    "join-token",
    cls=_CreateByDefault,
    lazy={
        "create": ("podlane.cli.jointoken:create", "Make a token and print the line to paste on the host (default)."),
        "list": ("podlane.cli.jointoken:list_", "List the tokens that can be used."),
        "delete": ("podlane.cli.jointoken:delete", "Delete tokens before they expire."),
    },
)
def join_token() -> None:
    """Let another host join: print the line to paste there."""


def _output(*formats: str) -> Callable[[Any], Any]:
    return click.option("-o", "--output", type=click.Choice(formats), default=formats[0], help="Output format.")


@click.command("create", cls=Command)
@click.option("--ttl", type=DURATION, default="24h", show_default=True, help="How long it can be used.")
@click.option("--uses", type=int, default=1, show_default=True, metavar="N", help="For how many hosts.")
@click.option("--node", default="", metavar="NAME", help="For this name only, also if there is such a host already.")
@click.option(
    "--role", type=click.Choice(["node", "server"]), default="node", show_default=True, help="What the host becomes."
)
@click.option("--authority-key", is_flag=True, help="A server that joins with it gets the authority's key: all power.")
@click.option("--server", metavar="URL[,URL]", help="By what the host reaches a server.  [default: as servers say]")
@_output("text", "json")
@pass_session
def create(
    session: Session,
    /,
    *,
    ttl: float,
    uses: int,
    node: str,
    role: HostRole,
    authority_key: bool,
    server: str | None,
    output: str,
) -> None:
    """Make a token and print the line to paste on the host.

    Whoever has the token can add a host, so treat the line as a password until it is used.
    """
    from podlane.host import jointokens
    from podlane.host.joincall import ServiceUrl

    services = _services(session)
    record = next(iter(services.values()))
    urls = [str(ServiceUrl.parse(each)) for each in (server or _urls(services)).split(",")]
    token, kept = jointokens.create(
        session.store,
        authority_hash=record.ca_hash,
        now=session.now(),
        ttl=int(ttl),
        uses=uses,
        node=node,
        role=role,
        authority=authority_key,
    )
    argv = ["sudo", "sh", f"podlane-{record.version}.run", "install", "--role", role]
    argv += [*(("--name", node) if node else ()), "--join", ",".join(urls), "--token", str(token)]
    argv += ["--admits"] if authority_key else []
    _remarks(session, token.id, kept)
    if output == "json":
        _print_json(
            {
                **_plain(token.id, kept),
                "token": str(token),
                "caHash": token.ca_hash,
                "servers": urls,
                "command": shlex.join(argv),
            }
        )
    else:
        click.echo(shlex.join(argv))


def _services(session: Session) -> dict[str, ServiceRecord]:
    from podlane.host.joinservice import read_services

    found = read_services(session.store)
    if not found:
        fail("make join token: no join service runs; start it on a server with `systemctl start podlane-join`")
    return found


def _urls(services: dict[str, ServiceRecord]) -> str:
    return ",".join([record.urls[0] for _, record in sorted(services.items()) if record.urls][:_SERVERS])


def _remarks(session: Session, identity: str, record: TokenRecord) -> None:
    """What is good to know before it is pasted."""
    from podlane.host.enrol import read_hosts

    node = record.node
    hosts = f"{record.uses} hosts" if record.uses > 1 else f"host {node}" if node else "one host"
    note(
        f"for {hosts}, as {record.role}, until {record.expires}; to take it back: podlane join-token delete {identity}"
    )
    present = read_hosts(session.store).nodes.get(node) if node else None
    if present is not None and present.revoked:
        note(
            f"warning: {node} was revoked at {present.revoked}: when the host has joined, its old certificates are "
            "good again too, unless the authority was replaced since (podlane pki rotate --authority)"
        )
    elif present is not None:
        note(f"warning: there is a node {node}; the host that joins with this takes its place")
    if record.is_server:
        note("a server joins etcd as well: `podlane etcd add-member` prints what to add to the line")
    if record.authority:
        note("warning: the host gets the authority's key: whoever has that can be anybody in this cluster")


@click.command("list", cls=Command)
@_output("table", "json", "name")
@pass_session
def list_(session: Session, /, *, output: str) -> None:
    """List the tokens that can be used. Their secrets are not kept, so none is shown."""
    from podlane.host.jointokens import listing

    found = listing(session.store)
    if output == "json":
        _print_json([_plain(each.id, each.record) for each in found])
    elif output == "name":
        for each in found:
            click.echo(each.id)
    elif not found:
        note("No join tokens found.")
    else:
        _print_table(session, found)


def _print_table(session: Session, found: list[Found]) -> None:
    from datetime import datetime

    from podlane.runtime.text import human_duration, table

    rows = [["ID", "ROLE", "NODE", "USED", "EXPIRES IN", "BY"]]
    for each in found:
        record = each.record
        left: timedelta = datetime.fromisoformat(record.expires) - session.now()
        used = f"{len(record.used)}/{record.uses}"
        by = ",".join(record.used[:5]) + (",…" if len(record.used) > 5 else "")
        rows.append([each.id, record.role, record.node or "-", used, human_duration(left.total_seconds()), by or "-"])
    click.echo(table(rows))


@click.command("delete", cls=Command)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@pass_session
def delete(session: Session, /, *, ids: tuple[str, ...]) -> None:
    """Delete tokens before they expire. Hosts that have joined with them stay."""
    from podlane.host.jointokens import delete as delete_token

    for each in ids:
        identity = each.partition(".")[0]  # the whole token is fine too
        delete_token(session.store, identity)
        click.echo(f"join-token/{identity} deleted")


def _plain(identity: str, record: TokenRecord) -> dict[str, Any]:
    return {
        "id": identity,
        "role": record.role,
        "node": record.node,
        "uses": record.uses,
        "usedBy": list(record.used),
        "authorityKey": record.authority,
        "created": record.created,
        "expires": record.expires,
    }


def _print_json(value: Any) -> None:
    from podlane.cli.output import to_json

    click.echo(to_json(value))
