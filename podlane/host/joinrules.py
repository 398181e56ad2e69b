"""Whether a host may join, or have its certificates renewed. Pure.

Owns: every reason to refuse, and what the host then gets. Invariants: without the secret
nothing is told, not even whether a token exists; a name goes to whoever proves that it is
his: once by a token made for it, or by the key it was enrolled with (the request is signed
with it); a node never gets a server's name or address; a revoked name needs a token made for it.
See docs/adr/0022.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from podlane.api.subnets import Address
from podlane.errors import Invalid, PodlaneError
from podlane.host.enrol import Hosts
from podlane.host.joinmessages import JoinRequest
from podlane.host.jointokens import TokenRecord
from podlane.host.options import name_error
from podlane.pki import certificates as c
from podlane.pki import profile
from podlane.pki.profile import NODE_DAEMONS, NODES, SERVER_DAEMONS, SERVERS, Profile
from podlane.store.enrolled import HostRecord

NOT_KNOWN = "the token is not known here: it has expired, was deleted, or is not what was printed"
_NEVER_A_NODE = ("localhost", profile.ADMINISTRATOR)


class Refused(PodlaneError):
    """`status` is the HTTP status that goes with it."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Known:
    """What the cluster knows: `member_names` and `member_urls` are etcd's, `claims` are addresses whose netd runs now.

    `claims` maps an address to the host name its netd tells.
    """

    hosts: Hosts
    member_names: frozenset[str] = frozenset()
    member_urls: tuple[str, ...] = ()
    claims: Mapping[Address, str] | None = None
    network_configured: bool = True


@dataclass(frozen=True, slots=True)
class Admission:
    """Who joins, as what. By file name: `profiles`, and the hashes of the keys in `keys`.

    A node is known by its agent's key from now on, a server by its etcd's.
    """

    name: str
    addresses: tuple[Address, ...]
    profiles: dict[str, Profile]
    keys: dict[str, str]

    @property
    def is_node(self) -> bool:
        return "agent" in self.profiles

    @property
    def is_server(self) -> bool:
        return "etcd" in self.profiles


def key_hash(csr_pem: str) -> str:
    """Of the public key of a request whose sender has the private one. Raises PodlaneError."""
    return public_key_hash(c.requested_key(csr_pem))


def public_key_hash(key: CertificatePublicKeyTypes) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


# ---- joining ---------------------------------------------------------------------------------------


def check_token(record: TokenRecord | None, secret: str) -> TokenRecord:
    """Before anything else is looked at. Raises Refused."""
    # an absent one is compared as well, so that nobody learns from the time it takes
    present = record or TokenRecord("", "", "node", 0, "", "")
    if not present.opens(secret) or record is None:
        raise Refused(401, NOT_KNOWN)
    return record


def admit(request: JoinRequest, token: TokenRecord, known: Known) -> Admission:
    """What the host gets. Raises Refused with the first reason not to."""
    name = request.name
    if error := name_error(name):
        raise Refused(400, f"name: {error}")
    if request.role != token.role:
        raise Refused(403, f"the token is for a {token.role}, not for a {request.role}")
    if token.node and token.node != name:
        raise Refused(403, f"the token is for {token.node} alone, this host is {name}")
    if not token.has_room_for(name):
        used = ", ".join(token.used[:5])
        raise Refused(403, f"the token is used up (by {used}); `podlane join-token` on a server makes another")
    if not known.network_configured:
        raise Refused(409, "the cluster has no network config yet: run `podlane init` first")
    addresses = parsed_addresses(request.addresses)
    admission = Admission(name, addresses, _profiles(request), _keys(request.csrs))
    # a token that was used may have been seen since: then only the key that came with it counts
    proven = token.node == name and name not in token.used
    if admission.is_node:
        _check_node_name(admission, known, proven=proven)
    if admission.is_server:
        _check_server_name(admission, known, proven=proven)
    _check_addresses(admission, known)
    return admission


def parsed_addresses(texts: Iterable[str]) -> tuple[Address, ...]:
    found: list[Address] = []
    for text in texts:
        try:
            address = ip_address(text)
        except ValueError:
            raise Refused(400, f'addresses: expected an IP address, got "{text[:64]}"') from None
        if address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local:
            raise Refused(400, f"addresses: other hosts cannot reach {address}; name the right one with --address")
        found.append(address)
    if len({each.version for each in found}) != len(found):
        raise Refused(400, f"addresses: expected one of each family, got {', '.join(map(str, found))}")
    return tuple(sorted(found, key=lambda each: each.version))


def _profiles(request: JoinRequest) -> dict[str, Profile]:
    wanted, node, server = set(request.csrs), set(NODE_DAEMONS), set(SERVER_DAEMONS)
    allowed = [node] if request.role == "node" else [server, server | node]
    if wanted not in allowed:
        expected = " or ".join(", ".join(sorted(each)) for each in allowed)
        raise Refused(400, f"csrs: expected {expected}, got {', '.join(sorted(wanted))}")
    try:
        return {file: _profile(file, request.name, request.addresses) for file in sorted(wanted)}
    except Invalid as error:
        raise Refused(400, str(error)) from error


def _profile(file: str, host: str, addresses: Iterable[str]) -> Profile:
    if file in NODE_DAEMONS:
        return profile.node_daemon(file, host)
    if file == "scheduler":
        return profile.scheduler(host)
    return (profile.etcd if file == "etcd" else profile.join)(host, addresses)


def _keys(csrs: Mapping[str, str]) -> dict[str, str]:
    """The hash of each key. Raises Refused."""
    hashes: dict[str, str] = {}
    for file, csr in csrs.items():
        try:
            hashes[file] = key_hash(csr)
        except PodlaneError as error:
            raise Refused(400, f"csrs: {file}: {error}") from error
    if len(set(hashes.values())) != len(hashes):
        raise Refused(400, "csrs: expected a key of its own for each")
    return hashes


def _check_node_name(admission: Admission, known: Known, *, proven: bool) -> None:
    name = admission.name
    if not admission.is_server and name in _server_names(known):
        raise Refused(409, f"the name {name} is a server's; choose another with --name")
    record = known.hosts.nodes.get(name)
    if record is None or proven:
        return
    if record.revoked:
        raise Refused(
            409,
            f"node {name} was revoked at {record.revoked}; choose another name, or, if its old keys are surely gone, "
            f"let it in with `podlane join-token --node {name}`",
        )
    if record.key_hash != admission.keys["agent"]:
        raise Refused(
            409,
            f"there is a node {name} already; choose another name, or, if this is the same machine made anew, "
            f"let it in with `podlane join-token --node {name}`",
        )


def _check_server_name(admission: Admission, known: Known, *, proven: bool) -> None:
    name = admission.name
    if proven:
        return
    record = known.hosts.servers.get(name)
    if record is not None and record.key_hash == admission.keys["etcd"]:
        return
    node = known.hosts.nodes.get(name)
    is_this_node = node is not None and admission.is_node  # whose name was checked before
    if record is not None or name in _server_names(known) or (node is not None and not is_this_node):
        raise Refused(
            409,
            f"there is a host {name} already; choose another name, or let it in with "
            f"`podlane join-token --role server --node {name}`",
        )


def _server_names(known: Known) -> set[str]:
    hosts = {urlsplit(url).hostname or "" for url in known.member_urls}
    return {*known.hosts.servers, *known.member_names, *hosts, *_NEVER_A_NODE}


def _check_addresses(admission: Admission, known: Known) -> None:
    """An address decides where the other nodes send packets, and which claim netd may write: never somebody else's."""
    taken = {
        a: f"node {n}'s" for n, r in known.hosts.nodes.items() if n != admission.name for a in r.parsed_addresses()
    }
    servers = {n: r for n, r in known.hosts.servers.items() if n != admission.name}
    taken |= {a: f"server {n}'s" for n, r in servers.items() for a in r.parsed_addresses()}
    if not admission.is_server:
        taken |= dict.fromkeys(_member_addresses(known.member_urls), "an etcd member's")
    own = known.hosts.nodes.get(admission.name, HostRecord()).parsed_addresses()
    for address, host in (known.claims or {}).items():
        if address not in own and host != admission.name:
            taken.setdefault(address, f"in use by the netd of host {host or 'unknown'}")
    for address in admission.addresses:
        if address in taken:
            raise Refused(409, f"address {address} is {taken[address]}; name the right one with --address")


def _member_addresses(urls: Iterable[str]) -> set[Address]:
    found: set[Address] = set()
    for url in urls:
        try:
            found.add(ip_address(urlsplit(url).hostname or ""))
        except ValueError:
            continue
    return found


# ---- renewal ---------------------------------------------------------------------------------------


def renewal(caller: Profile, caller_key: str, csrs: Mapping[str, str], hosts: Hosts) -> dict[str, Profile]:
    """The profiles of what the caller asks for, by file name. `caller` is what its certificate says.

    A node asks with its agent's certificate, a server with its etcd's; for no other host, and with the keys that
    it joined with, so that a copy of a certificate that was replaced is worth nothing here. Raises Refused.
    """
    daemon, at, host = caller.common_name.partition("@")
    is_node = (daemon, caller.organization) == ("agent", NODES)
    if not at or not (is_node or (daemon, caller.organization) == ("etcd", SERVERS)):
        raise Refused(403, f"{caller.common_name}: expected the certificate of a node's agent or a server's etcd")
    record = (hosts.nodes if is_node else hosts.servers).get(host)
    if record is None or record.revoked:
        raise Refused(403, f"{host} is not enrolled any more")
    own = NODE_DAEMONS if is_node else SERVER_DAEMONS
    if foreign := sorted(set(csrs) - set(own)):
        raise Refused(400, f"csrs: expected {', '.join(own)}, got {foreign[0]}")
    if record.key_hash and record.key_hash != caller_key:
        raise Refused(403, f"{host} was enrolled anew with another key since")
    asked = _keys(csrs)
    if daemon in asked and asked[daemon] != caller_key:
        raise Refused(400, f"csrs: {daemon}: a renewal keeps the key; for a new one let the host join anew")
    return {file: _profile(file, host, record.addresses) for file in sorted(csrs)}
