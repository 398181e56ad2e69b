"""`podlane pki issue`: a certificate made by hand, and the users in etcd that go with it.

Owns: what each kind of holder gets. Invariant: etcd knows the holder before the
certificate is signed, and the key it is known by from then on is the one in the
folder, so whatever is interrupted is finished by the same command.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import click

from podlane.cli.command import Command, note, pass_session
from podlane.cli.pki import folder_option
from podlane.cli.session import Session
from podlane.errors import PermissionDenied, StoreUnavailable, UsageError

if TYPE_CHECKING:
    from podlane.api.subnets import Address
    from podlane.host.enrol import Accounts, NewKey
    from podlane.pki.profile import Profile
    from podlane.store.interface import Store

_KINDS = ("etcd", "scheduler", "join", "node", "operator", "root")
_WITH_ADDRESS = ("etcd", "join", "node")


@click.command("issue", cls=Command)
@click.argument("kind", type=click.Choice(_KINDS))
@click.argument("name", required=False, metavar="NAME")
@click.option(
    "--address",
    "addresses",
    metavar="IP[,IP]",
    default="",
    help="etcd and join: where they are reached. node: its address, one of a family, for its subnet.",
)
@folder_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the files go; keys that are there are kept.  [default: ./NAME]",
)
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long it lasts.")
@click.option("--offline", is_flag=True, help="Only sign: do not make the users, roles and subnet in etcd.")
@click.option("--replace", is_flag=True, help="A node or etcd made anew: its new key takes the place of the old one.")
@pass_session
def issue(
    session: Session,
    /,
    *,
    kind: str,
    name: str | None,
    addresses: str,
    folder: Path,
    out: Path | None,
    days: int,
    offline: bool,
    replace: bool,
) -> None:
    """Sign a certificate by hand, on a server with the authority's key: etcd|scheduler|join SERVER, node NODE (its
    three daemons'), operator NAME (a person's), root (etcd's administrator's).

    Its user in etcd is made as well, which needs the administrator's certificate (root's configuration file on a
    server names it). Hosts that join with a token get all of this by themselves.
    """
    from podlane.pki import files
    from podlane.pki.authority import Authority

    wanted = _parsed(kind, name, addresses, offline=offline)
    holders = _holders(wanted)
    authority = Authority.load(folder)
    into = out if out is not None else Path(wanted.name)
    _check_files(into, holders)
    requests = {
        holder: files.request_for(into, files.file_name(holder.common_name), holder.common_name) for holder in holders
    }
    if not offline:
        with _etcd(session) as (store, accounts):
            _enrol(store, accounts, wanted, requests[holders[-1]].csr_pem, replace=replace)
    for holder, request in requests.items():
        file = files.file_name(holder.common_name)
        pem = authority.sign(request.csr_pem, holder, now=session.now(), days=days)
        files.store(into, file, pem, authority.bundle)
        end = files.expiry(files.certificate_file(into, file))
        click.echo(f"issued {holder.common_name} until {end:%Y-%m-%d}: {into}/{file}.pem, {into}/{file}.key")


@dataclass(frozen=True, slots=True)
class _Wanted:
    kind: str
    name: str
    addresses: tuple[Address, ...]


def _parsed(kind: str, name: str | None, addresses: str, *, offline: bool) -> _Wanted:
    """Raises UsageError for what does not go together."""
    if kind == "root":
        if name not in {None, "root"}:
            raise UsageError(f'issue root: it is always called root, got "{name}"')
        name = "root"
    if name is None:
        raise UsageError(f"issue {kind}: NAME is missing")
    if addresses and kind not in _WITH_ADDRESS:
        raise UsageError(f"--address: a certificate for {kind} has no use for it")
    if not addresses and (kind in {"etcd", "join"} or (kind == "node" and not offline)):
        raise UsageError(f"--address: expected an address of {name}")
    try:
        return _Wanted(kind, name, tuple(ip_address(each.strip()) for each in addresses.split(",") if each.strip()))
    except ValueError as error:
        raise UsageError(f"--address: {error}") from error


def _holders(wanted: _Wanted) -> list[Profile]:
    """Of a node the last is its agent's, by whose key it is known. Raises Invalid."""
    from podlane.pki import profile

    name, addresses = wanted.name, tuple(map(str, wanted.addresses))
    match wanted.kind:
        case "etcd":
            return [profile.etcd(name, addresses)]
        case "scheduler":
            return [profile.scheduler(name)]
        case "join":
            return [profile.join(name, addresses)]
        case "node":
            return [profile.node_daemon(daemon, name) for daemon in ("netd", "proxyd", "agent")]
        case "operator":
            return [profile.operator(name)]
    return [profile.administrator()]


def _check_files(into: Path, holders: list[Profile]) -> None:
    """That no other holder's certificate is replaced. Raises UsageError."""
    from podlane.pki import certificates, files

    for holder in holders:
        file = files.certificate_file(into, files.file_name(holder.common_name))
        there = certificates.common_name(files.read(file).subject) if file.exists() else holder.common_name
        if there != holder.common_name:
            raise UsageError(f"issue {holder.common_name}: {file} is {there}'s; give another --out")


@contextmanager
def _etcd(session: Session) -> Iterator[tuple[Store, Accounts]]:
    """As administrator. A refusal names the remedy."""
    from podlane.store.administration import Administration

    try:
        with closing(Administration(session.config)) as accounts:
            yield session.store, accounts
    except (PermissionDenied, StoreUnavailable) as error:
        cause = "this needs the administrator's certificate (CN root)" if isinstance(error, PermissionDenied) else ""
        raise type(error)(f"{error} ({cause or 'is etcd up?'}; --offline only signs)") from error


def _enrol(store: Store, accounts: Accounts, wanted: _Wanted, csr_pem: str, *, replace: bool) -> None:
    """Make what goes with it in etcd; `csr_pem` is of the key that a node or an etcd is known by."""
    from podlane.host.enrol import enrol_node, enrol_server
    from podlane.store import roles

    name, kind = wanted.name, wanted.kind
    if kind == "node":
        key = _key(store, wanted, csr_pem, replace=replace)
        enrolled = enrol_node(store, accounts, node=name, addresses=wanted.addresses, key=key)
        note(f"node {name} has subnet {enrolled.subnets}, and users {', '.join(enrolled.users)}")
        return
    if kind == "etcd":
        key = _key(store, wanted, csr_pem, replace=replace)
        enrol_server(store, accounts, server=name, addresses=wanted.addresses, key=key)
        return
    made = {"scheduler": roles.scheduler_role(), "operator": roles.operator_role()}.get(kind)
    if made is not None:
        accounts.ensure_role(made)
    user = name if kind in {"operator", "root"} else f"{kind}@{name}"
    accounts.ensure_user(user, [made.name if made is not None else roles.ROOT])
    note(f"etcd has a user {user}")


def _key(store: Store, wanted: _Wanted, csr_pem: str, *, replace: bool) -> NewKey:
    """Raises UsageError when the holder is known by another key, and this is not to replace it."""
    from podlane.host.enrol import NewKey, read_hosts
    from podlane.host.joinrules import key_hash

    hosts = read_hosts(store)
    record = (hosts.nodes if wanted.kind == "node" else hosts.servers).get(wanted.name)
    known, new = record.key_hash if record else "", key_hash(csr_pem)
    if known not in {"", new} and not replace:
        raise UsageError(
            f"issue {wanted.kind} {wanted.name}: there is one, known by another key; --replace takes this one instead"
        )
    return NewKey(new, replaces=known)
