"""Joining a cluster, from the side of the host that joins.

Owns: the keys and certificates that come of it, and `join.json` beside them, which says what
`podlane host renew` needs to know. Invariants: keys are made here and never leave; nothing is
trusted but the authority whose hash is in the token; nothing is written but keys before the
whole answer has been checked, and `join.json` last, so that it is there exactly when all is;
keys of a try whose end is not known are kept, for with them the same token lets this host in
again. See docs/adr/0022.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from podlane.api.names import dns_subdomain_error
from podlane.api.subnets import Address, Subnets
from podlane.errors import PodlaneError, UsageError
from podlane.host.joincall import ServiceUrl, Unreachable, authority_of, call, trusting
from podlane.host.joinmessages import JOIN, HostRole, JoinAnswer, JoinRequest
from podlane.host.jointokens import JoinToken
from podlane.host.revoking import keep
from podlane.pki import certificates as c
from podlane.pki import files
from podlane.pki.authority import BUNDLE_FILE, ISSUED, KEY_FILE, Authority, private_folder
from podlane.pki.profile import NODE_DAEMONS, SERVER_DAEMONS
from podlane.runtime.atomic import write_atomic
from podlane.runtime.clock import Clock, SystemClock

PKI = Path("/etc/podlane/pki")
RECORD = "join.json"


class JoinRecord(msgspec.Struct, frozen=True, rename="camel"):
    """`join.json`: who this host is, and where the join services and etcd were when it last asked."""

    name: str
    role: HostRole
    services: tuple[str, ...]
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """What a host has now. `endpoints` are etcd's client URLs; `subnets` a node's share of the pod network."""

    name: str
    role: HostRole
    folder: Path
    endpoints: tuple[str, ...]
    subnets: Subnets | None

    @property
    def cafile(self) -> Path:
        return self.folder / BUNDLE_FILE

    def certificate(self, daemon: str) -> tuple[Path, Path]:
        """Certificate and key of `netd`, `etcd`, …"""
        return files.certificate_file(self.folder, daemon), files.key_file(self.folder, daemon)


def join(
    server: str,
    token: str,
    node: str,
    addresses: Sequence[Address | str] = (),
    into: Path = PKI,
    *,
    role: HostRole = "node",
    with_node: bool = False,
    clock: Clock | None = None,
) -> Joined:
    """Join this host as `node`, and write its keys and certificates into `into`.

    `server` is the join service's URL, or several with commas. `addresses` are the public ones, one of a family;
    without any, the one that leads to the server. `with_node`: a server that runs pods too. Raises UsageError,
    PodlaneError with one line that says what is wrong.
    """
    urls = [ServiceUrl.parse(each) for each in server.split(",") if each.strip()]
    parsed = JoinToken.parse(token)
    if not urls:
        raise UsageError("join: expected the URL of a join service")
    if wrong := dns_subdomain_error(node):
        raise UsageError(f"join: name of this host: {wrong}")
    _check_folder(into, node)
    daemons = {"node": NODE_DAEMONS, "server": SERVER_DAEMONS}[role] + (NODE_DAEMONS if with_node else ())
    attempt = _Attempt(parsed, node, role, tuple(dict.fromkeys(daemons)), into, clock or SystemClock())
    problem: PodlaneError | None = None
    for url in urls:
        try:
            return attempt.at(url, [str(each) for each in addresses])
        except Unreachable as error:
            problem = problem or error
    assert problem is not None
    raise Unreachable(f"join: {problem}") from problem


@dataclass(frozen=True, slots=True)
class _Attempt:
    token: JoinToken
    name: str
    role: HostRole
    daemons: tuple[str, ...]
    into: Path
    clock: Clock

    def at(self, url: ServiceUrl, addresses: list[str]) -> Joined:
        """Raises Unreachable, PodlaneError."""
        now = datetime.fromtimestamp(self.clock.now(), UTC)
        try:
            context = trusting(authority_of(url, self.token.ca_hash, now))
            new = [daemon for daemon in self.daemons if not files.key_file(self.into, daemon).exists()]
            csrs = {each: files.request_for(self.into, each, f"{each}@{self.name}").csr_pem for each in self.daemons}
            request = JoinRequest(str(self.token), self.role, self.name, tuple(addresses or [_own(url)]), csrs)
            try:
                answer = call(url, context, JOIN, request, JoinAnswer)
            except Unreachable:
                raise
            except PodlaneError:
                self._forget(new)
                raise
        except Unreachable:
            raise
        except PodlaneError as error:
            raise PodlaneError(f"join: {error}") from error
        self._check(answer)
        return self._keep(url, answer)

    def _forget(self, daemons: Iterable[str]) -> None:
        """Keys of a try that was refused: nobody has heard of them."""
        for daemon in daemons:
            files.key_file(self.into, daemon).unlink(missing_ok=True)

    def _check(self, answer: JoinAnswer) -> None:
        """Before anything of it is written."""
        try:
            c.read_certificates(answer.bundle)
            for daemon in self.daemons:
                leaf = c.read_certificates(answer.certificates[daemon])[0]
                key = c.read_key(files.key_file(self.into, daemon).read_text())
                if leaf.public_key() != key.public_key():
                    raise ValueError(f"the certificate of {daemon} is not for its key")
        except (KeyError, ValueError) as error:
            raise PodlaneError(f"join: the answer is not complete: {error}") from error

    def _keep(self, url: ServiceUrl, answer: JoinAnswer) -> Joined:
        for daemon in self.daemons:
            files.store(self.into, daemon, answer.certificates[daemon], answer.bundle)
        if answer.authority:
            write_atomic(self.into / KEY_FILE, answer.authority, mode=0o600)
            Authority.load(self.into).publish()
            private_folder(self.into / ISSUED)
        keep(
            self.into,
            answer.revocations,
            c.read_certificates(answer.bundle),
            datetime.fromtimestamp(self.clock.now(), UTC),
        )
        services = tuple(dict.fromkeys((str(url), *answer.services)))
        write_record(self.into, JoinRecord(self.name, self.role, services, answer.endpoints))
        subnets = Subnets.parse_key(answer.subnets) if answer.subnets else None
        return Joined(self.name, self.role, self.into, answer.endpoints, subnets)


def read_record(folder: Path) -> JoinRecord | None:
    """None: this host did not join. Raises PodlaneError."""
    file = folder / RECORD
    try:
        return msgspec.json.decode(file.read_bytes(), type=JoinRecord)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PodlaneError(f"read {file}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise PodlaneError(f"read {file}: {error}") from error


def write_record(folder: Path, record: JoinRecord) -> None:
    write_atomic(folder / RECORD, msgspec.json.format(msgspec.json.encode(record), indent=1))


def _check_folder(folder: Path, name: str) -> None:
    record = read_record(folder)
    if record is not None and record.name != name:
        raise UsageError(f"join: this host has joined already, as {record.name}; uninstall it first")
    if record is None and (folder / KEY_FILE).exists():
        raise UsageError(f"join: {folder / KEY_FILE} is an authority's key: this is a server of a cluster of its own")


def _own(url: ServiceUrl) -> str:
    """The host's address on the way to the server; nothing is sent to find it out."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise Unreachable(f"{url}: {error.strerror or error}") from error
