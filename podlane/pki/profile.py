"""What a certificate says, decided by the authority and never by who asks for it.

Owns: one function per holder, and the names in its certificate. Invariant: a
node's certificates hold nothing by which anybody reaches another service. The
CN of a client's certificate is its etcd user; etcd knows a peer by
ETCD_PEER_HOSTNAME, which no other certificate has; an agent is known by
`agent_hostname(node)`, in a domain of its own, and by no address: so a stolen
node answers in nobody's place but its own, whatever address it takes. Imports nothing of size:
daemons know each other by these names. See docs/adr/0021.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from podlane.api.names import dns_subdomain_error
from podlane.errors import FieldError, Invalid

OPERATORS = "podlane:operators"
SERVERS = "podlane:servers"
NODES = "podlane:nodes"

ADMINISTRATOR = "root"
NODE_DAEMONS = ("netd", "proxyd", "agent")
SERVER_DAEMONS = ("etcd", "scheduler", "join")
ETCD_PEER_HOSTNAME = "etcd-peer.podlane"
"""For etcd's --peer-cert-allowed-hostname: without it whoever has a certificate of ours could join as a peer."""

_AGENT_DOMAIN = "agent.podlane"
_LOOPBACK = ("127.0.0.1", "::1")
_RESERVED = frozenset({ADMINISTRATOR, "ca", *NODE_DAEMONS, *SERVER_DAEMONS})
_LONGEST = 64
"""Characters of a common name (X.520, ub-common-name)."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Raises Invalid when no certificate can say this."""

    common_name: str
    organization: str
    dns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    server: bool = False
    client: bool = False

    def __post_init__(self) -> None:
        daemon, at, host = self.common_name.rpartition("@")
        problems = [("name", dns_subdomain_error(host)), *(("dns", dns_subdomain_error(name)) for name in self.dns)]
        if len(self.common_name) > _LONGEST:
            room = _LONGEST - len(daemon + at)
            problems.append(("name", f'expected at most {room} characters, got {len(host)}: "{host}"'))
        problems += [("addresses", _address_error(address)) for address in self.addresses]
        if not self.server and not self.client:
            problems.append(("use", "expected server, client or both"))
        errors = [FieldError(field, text) for field, text in problems if text]
        if errors:
            raise Invalid(f"certificate {self.common_name}", errors)


def etcd(server: str, addresses: Iterable[str]) -> Profile:
    """For etcd's client port and towards its peers."""
    names = (server, "localhost", ETCD_PEER_HOSTNAME)
    return Profile(f"etcd@{server}", SERVERS, names, _with_loopback(addresses), server=True, client=True)


def join(server: str, addresses: Iterable[str]) -> Profile:
    """For the join service, also as an etcd user."""
    return Profile(
        f"join@{server}", SERVERS, (server, "localhost"), _with_loopback(addresses), server=True, client=True
    )


def scheduler(server: str) -> Profile:
    return Profile(f"scheduler@{server}", SERVERS, client=True)


def node_daemon(daemon: str, node: str) -> Profile:
    """For netd, proxyd or the agent; the agent's is also its API's. Without addresses: see the module."""
    if daemon not in NODE_DAEMONS:
        raise Invalid(
            "certificate", [FieldError("daemon", f'expected one of {", ".join(NODE_DAEMONS)}, got "{daemon}"')]
        )
    if daemon == "agent":
        return Profile(f"agent@{node}", NODES, (agent_hostname(node),), server=True, client=True)
    return Profile(f"{daemon}@{node}", NODES, client=True)


def agent_hostname(node: str) -> str:
    """What the certificate of a node's agent is checked against."""
    return f"{node}.{_AGENT_DOMAIN}"


def operator(name: str) -> Profile:
    """For a person; `name` is the etcd user, so it may not be that of a part of Podlane."""
    # a name with an @ would be a daemon's
    problem = f'"{name}" is a part of Podlane, choose another' if name in _RESERVED else dns_subdomain_error(name)
    if problem:
        raise Invalid("certificate", [FieldError("name", problem)])
    return Profile(name, OPERATORS, client=True)


def administrator() -> Profile:
    """For etcd's root."""
    return Profile(ADMINISTRATOR, OPERATORS, client=True)


def _with_loopback(addresses: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*addresses, *_LOOPBACK)))


def _address_error(text: str) -> str | None:
    try:
        ip_address(text)
    except ValueError:
        return f'expected an IP address, got "{text}"'
    return None
