"""`podlane etcd add-member` and `remove-member`.

Owns: the order of a change of members. Invariant: at each moment the cluster has
a quorum, also when this command is interrupted: a new member listens as a
learner until it has caught up, and only then votes. Doing it again goes on, and
whatever ends it after the change says so; an etcd that is only slow does not.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import click

from podlane.cli.command import Command, fail, note, pass_session
from podlane.cli.options import dry_run_option, timeout_option
from podlane.cli.session import Session
from podlane.errors import FieldError, Invalid, PodlaneError, StoreUnavailable
from podlane.store.interface import Refused

if TYPE_CHECKING:
    from podlane.store.administration import Administration
    from podlane.store.adminwire import Member
    from podlane.store.quorum import Survey

POLL = 1.0
LOOKS, PAUSE = 4, 3.0
"""How often to look at members of which one does not answer, and seconds between: it may only be busy."""

JOIN_URL = "https://SERVER:10261"  # as an operator reads it who has no join service
TOKEN = "TOKEN"  # noqa: S105 - a word in its place


class Voting(Protocol):
    """What waiting for a member needs of podlane.store.administration.Administration."""

    def members(self) -> tuple[Member, ...]: ...

    def promote_member(self, member_id: int) -> None: ...


@click.command("add-member", cls=Command)
@click.argument("name")
@click.option(
    "--peer-url",
    required=True,
    metavar="URL",
    help="Where the other members reach the new one, e.g. https://10.0.0.12:2380.",
)
@click.option(
    "--voter", is_flag=True, help="Not as a learner first: for an etcd before 3.4, or an etcd set up by hand."
)
@timeout_option("10m", "Wait so long until it votes; 0: only let it join, and do this again later.")
@dry_run_option
@pass_session
def add_member(session: Session, *, name: str, peer_url: str, voter: bool, timeout: float, dry_run: bool) -> None:
    """Let a further member NAME join, and print what its host is to run.

    It first listens as a learner, which is no risk for the others, and votes once it has caught up. An interruption
    does no harm: the same command goes on.
    """
    from podlane.cli.etcd import administration
    from podlane.store import quorum

    _check(name, peer_url)
    with administration(session) as admin:
        survey = _look_patiently(session, admin)
        present = quorum.check_addition(survey, name, [peer_url])
        if dry_run:
            note(f"member {name}: would be added (dry run)")
            return
        with _to_be_gone_on_with(name):
            if present is None:
                added = admin.add_member(name, [peer_url], learner=not voter)
                note(f"member {name}: added as {'a learner' if added.learner else 'a voter'}, {added.id:x}")
            else:
                added = present.member
                note(f"member {name}: was added before, {added.id:x}")
            if present is None or not present.started:
                _print_install(session, admin, name, peer_url)
            if timeout:
                await_vote(session, admin, name, added, timeout)


@click.command("remove-member", cls=Command)
@click.argument("name", metavar="NAME|ID")
@dry_run_option
@pass_session
def remove_member(session: Session, *, name: str, dry_run: bool) -> None:
    """Take a member out, by its name or its id. Refused when the rest would have no quorum.

    What is on its host stays: `podlane host uninstall` there, or `systemctl disable --now podlane-etcd`.
    """
    from podlane.cli.etcd import administration, look
    from podlane.store import quorum

    with administration(session) as admin:
        survey = look(admin)
        target = survey.find(name)
        quorum.check_removal(survey, target)
        if not dry_run:
            admin.remove_member(target.member.id)
        left = ", ".join(each.name for each in survey.members if each is not target)
        click.echo(f"member {target.name} removed{' (dry run)' if dry_run else ''}; left: {left}")
        gone = set(target.member.client_urls)
        if gone & set(admin.config.endpoints):
            note(f"it is among this command's endpoints: take {','.join(sorted(gone))} out of its configuration")


def _check(name: str, peer_url: str) -> None:
    from podlane.api.names import dns_subdomain_error

    errors = []
    if error := dns_subdomain_error(name):
        errors.append(FieldError("NAME", error))
    try:
        parts = urlsplit(peer_url)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port and not parts.path.strip("/")
    except ValueError:
        good = False
    if not good:
        errors.append(FieldError("--peer-url", f'expected https://ADDRESS:2380, got "{peer_url}"'))
    if errors:
        raise Invalid("add member", errors)


def _look_patiently(session: Session, admin: Administration) -> Survey:
    from podlane.cli.etcd import look

    survey = look(admin)
    for _ in range(LOOKS - 1):
        if not (silent := [each for each in survey.members if each.started and each.status is None]):
            break
        note(f"no answer from {', '.join(f'{each.name} ({each.problem})' for each in silent)}; asking again")
        session.wall.wait(session.stop, PAUSE)
        survey = look(admin)
    return survey


@contextmanager
def _to_be_gone_on_with(name: str) -> Iterator[None]:
    try:
        yield
    except (StoreUnavailable, KeyboardInterrupt):
        note(f"member {name}: not finished; the same command goes on from where it is")
        raise


def _print_install(session: Session, admin: Administration, name: str, peer_url: str) -> None:
    """The line for the new host, to stdout; what to know of it, to stderr."""
    others = [member for member in admin.members() if member.name and member.name != name]
    known = [f"{member.name}={url}" for member in others for url in member.peer_urls]
    cluster = ",".join([*known, f"{name}={peer_url}"])
    join, token, version = _invitation(session, admin, name)
    line = ["sudo", "sh", f"podlane-{version}.run", "install", "--role", "server", "--name", name]
    line += ["--address", urlsplit(peer_url).hostname or "", "--join", join, "--token", token, "--etcd-join", cluster]
    note("run on the new host (with --role all if it is to run pods too):")
    click.echo(shlex.join(line))
    if token == TOKEN:
        note("SERVER is a host with a join service, TOKEN what `podlane join-token create --role server` prints there")
        note(f"an etcd set up by hand: --name {name} --initial-cluster {cluster} --initial-cluster-state existing")


def await_vote(session: Session, admin: Voting, name: str, added: Member, timeout: float) -> None:
    deadline = session.wall.monotonic() + timeout
    last = ""
    while True:
        try:
            state = _step(admin, added)
            members = ", ".join(map(str, admin.members())) if state == "" else ""
        except StoreUnavailable as error:
            state = f"no answer: {error}"
        if state == "":
            click.echo(f"member {name} votes; members: {members}")
            note("its client URL may now be added to the endpoints of daemons and commands")
            return
        if state != last:
            note(f"member {name}: {state}")
            last = state
        if session.wall.monotonic() >= deadline:
            fail(f"add member {name}: {state}, for {timeout:g} s; do this again once it runs")
        session.wall.wait(session.stop, POLL)


def _step(admin: Voting, added: Member) -> str:
    """Promote it if it can be; else what it is that it does. "" once it votes."""
    found = next((member for member in admin.members() if member.id == added.id), None)
    if found is None:
        raise PodlaneError(f"add member {added.id:x}: somebody has removed it")
    if not found.name:
        return "waits for its host"
    if not found.learner:
        return ""
    try:
        admin.promote_member(found.id)
    except Refused as error:
        if "in sync with leader" in str(error):
            return "catches up"
        if "can only promote a learner" not in str(error):  # it votes: the answer to an attempt before was lost
            raise
    return ""


def _invitation(session: Session, admin: Administration, name: str) -> tuple[str, str, str]:
    """(Join services, a token for this server alone, their version), or words in their place where there are none."""
    from podlane.cli.version import installed_version
    from podlane.host import jointokens
    from podlane.host.joinservice import read_services
    from podlane.store.config import connect

    with closing(connect(admin.config)) as store:
        services = read_services(store)
        for service in services.values():
            token, _ = jointokens.create(
                store, authority_hash=service.ca_hash, now=session.now(), role="server", node=name
            )
            return ",".join(each.urls[0] for each in services.values()), str(token), service.version
    return JOIN_URL, TOKEN, installed_version()
