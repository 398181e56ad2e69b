"""`podlane etcd`: the store's own members, disk and snapshots.

Owns: the list of its sub-commands and what they share: the connection as
administrator, and a look at all members. Whoever lacks etcd's root role is
told which certificate has it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from podlane.cli.command import CommandGroup
from podlane.cli.session import Session
from podlane.errors import PermissionDenied, PodlaneError

if TYPE_CHECKING:
    from podlane.store.administration import Administration
    from podlane.store.adminwire import Member
    from podlane.store.quorum import Survey, Surveyed

COMMANDS: dict[str, tuple[str, str]] = {
    "status": ("podlane.cli.etcdstatus:status", "Show how each member is."),
    "members": ("podlane.cli.etcdstatus:members", "List the members."),
    "add-member": ("podlane.cli.etcdmembers:add_member", "Let a member join, and print what its host is to run."),
    "remove-member": ("podlane.cli.etcdmembers:remove_member", "Take a member out."),
    "snapshot": ("podlane.cli.etcdsnapshot:snapshot", "Save the whole store in a file."),
    "restore": ("podlane.cli.etcdrestore:restore", "Make a member's data folder from a snapshot, on its host."),
    "defragment": ("podlane.cli.etcddefragment:defragment", "Give freed disk space back, member by member."),
}


@click.group("etcd", cls=CommandGroup, lazy=COMMANDS)
def etcd() -> None:
    """Look after etcd: its members, its disk, its snapshots.

    Needs the certificate of the administrator (root), on a server: --etcd-certfile /etc/podlane/pki/root.pem
    --etcd-keyfile /etc/podlane/pki/root.key. Only `status` and `members` do without, and `restore`, which asks no etcd.
    """


@contextmanager
def administration(session: Session) -> Iterator[Administration]:
    """The connection, for as long as it is needed. A refusal names the remedy."""
    from podlane.cli.connection import resolve
    from podlane.store.administration import Administration
    from podlane.store.roles import ROOT

    admin = Administration(resolve(session.options, lab_user=ROOT))
    try:
        yield admin
    except PermissionDenied as error:
        raise PermissionDenied(f"{error} (this needs the administrator's certificate, CN root)") from error
    finally:
        admin.close()


def look(admin: Administration) -> Survey:
    """Ask every member, all at once. Raises StoreUnavailable when nobody says who the members are."""
    from podlane.store.quorum import Survey

    members = admin.members()
    with ThreadPoolExecutor(max_workers=16) as pool:
        ours = dict(pool.map(lambda endpoint: _identify(admin, endpoint), admin.config.endpoints))
        return Survey(tuple(pool.map(lambda member: _survey(admin, member, ours.get(member.id)), members)))


def _identify(admin: Administration, endpoint: str) -> tuple[int, str]:
    """The member behind a URL of the configuration, which may be reached where the one it tells others is not."""
    try:
        return admin.status(endpoint).member, endpoint
    except PodlaneError:
        return 0, endpoint


def _survey(admin: Administration, member: Member, ours: str | None) -> Surveyed:
    from podlane.store.quorum import Surveyed

    problem = "added, not started yet" if not member.name else "it tells no client URL"
    for endpoint in dict.fromkeys([*([ours] if ours else []), *member.client_urls]):
        try:
            admin.status(endpoint)  # the first answer has the handshake in it
            begin = time.monotonic()
            status = admin.status(endpoint)
        except PodlaneError as error:
            problem = str(error).removeprefix(f"get status of {endpoint}: ")
        else:
            return Surveyed(member, endpoint, status, time.monotonic() - begin)
    return Surveyed(member, next(iter(member.client_urls), ""), problem=problem)
