"""What a lab is made of: names, addresses and folders. Pure.

Invariant: everything a lab makes can be told from its name alone (namespaces
`plab-<lab>-…`, one folder, one cgroup), so that `down` finds it
after any crash, and two labs never meet. The root namespace gets no interface,
address or route.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from podlane.errors import UsageError
from podlane.store.config import StoreConfig
from podlane.store.roles import OPERATOR

RUN_ROOT = Path("/run/podlane/lab")
NETNS_ROOT = Path("/run/netns")

DEFAULT_NAME = "lab"

UNDERLAY_PREFIX = "192.168.64"
UNDERLAY_PREFIX6 = "fd00:64:"
GATEWAY = f"{UNDERLAY_PREFIX}.1"
GATEWAY6 = f"{UNDERLAY_PREFIX6}:1"
"""The underlay's own addresses: the hosts' default routes and the lab's client from outside."""

POD_NETWORKS = ("10.244.0.0/16", "fd00:10:244::/48")
SERVICE_RANGES = ("10.96.0.0/16", "fd00:10:96::/112")
"""Of a lab with both families. Without IPv6 the defaults of `podlane init` count."""

MAX_NODES = 100
MAX_HOLLOW = 5000
ETCD_CLIENT_PORT = 2379
ETCD_PEER_PORT = 2380
ETCD_METRICS_PORT = 2381
"""etcd's health and metrics on its host's loopback, for whoever asks there, without a certificate."""

HOLLOW = "hollow"
"""The etcd user of all hollow nodes together, and its role."""

HOLLOW_PER_HOST = 250
"""Hollow nodes of one process, whose interpreter uses one processor at most."""

Role = Literal["server", "node", "hollow"]


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace with one interface, eth0, on the underlay bridge."""

    name: str
    role: Role
    address: str

    @property
    def address6(self) -> str:
        """The IPv6 address it has in a lab with both families: the same number."""
        return f"{UNDERLAY_PREFIX6}:{self.address.rpartition('.')[2]}"


class Certificate(NamedTuple):
    """The files that whoever speaks TLS needs: whom to trust, the own certificate, its key."""

    ca: Path
    pem: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Topology:
    """`nodes` run pods; each of `servers` (1 or 3) runs an etcd member, the first `schedulers` of them a scheduler too
    (0: all of them). `hollow` nodes without containers join besides, many to a host.

    With `dual_stack` hosts, pods and services have IPv6 addresses too.
    """

    name: str
    nodes: int = 3
    servers: int = 1
    dual_stack: bool = False
    schedulers: int = 0
    hollow: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be built, naming the option to change."""
        if not re.fullmatch(r"[a-z][a-z0-9]{0,11}", self.name):
            raise UsageError(f"--name: expected 1 to 12 of a-z and 0-9, a letter first, got {self.name!r}")
        fewest = 0 if self.hollow else 1
        if not fewest <= self.nodes <= MAX_NODES:
            raise UsageError(f"--hosts: expected {fewest} to {MAX_NODES}, got {self.nodes}")
        if not 0 <= self.hollow <= MAX_HOLLOW:
            raise UsageError(f"--hollow: expected 0 to {MAX_HOLLOW}, got {self.hollow}")
        if self.servers not in (1, 3):
            raise UsageError(f"--etcd: expected 1 or 3 members, got {self.servers}")
        if not 0 <= self.schedulers <= self.servers:
            raise UsageError(
                f"--schedulers: expected 1 to {self.servers}, one at most for each etcd member, got {self.schedulers}"
            )

    def __str__(self) -> str:
        parts = [f"{self.nodes} hosts", f"{self.servers} etcd"]
        if self.schedulers:
            parts.append(f"{self.schedulers} schedulers")
        if self.hollow:
            parts.append(f"{self.hollow} hollow nodes")
        if self.dual_stack:
            parts.append("IPv4 and IPv6")
        return ", ".join(parts)

    @property
    def hosts(self) -> tuple[Host, ...]:
        servers = (Host(f"server{i}", "server", f"{UNDERLAY_PREFIX}.{10 + i}") for i in self._count(self.servers))
        nodes = (Host(f"node{i}", "node", f"{UNDERLAY_PREFIX}.{100 + i}") for i in self._count(self.nodes))
        hollow = -(-self.hollow // HOLLOW_PER_HOST)
        return (
            *servers,
            *nodes,
            *(Host(f"hollow{i}", "hollow", f"{UNDERLAY_PREFIX}.{50 + i}") for i in self._count(hollow)),
        )

    @staticmethod
    def _count(number: int) -> range:
        return range(1, number + 1)

    def runs_scheduler(self, host: Host) -> bool:
        servers = [h for h in self.hosts if h.role == "server"]
        return host in servers[: self.schedulers or self.servers]

    def hollow_nodes(self, host: Host) -> range:
        """The numbers of the nodes that a host of them stands for."""
        first = (int(host.name.removeprefix("hollow")) - 1) * HOLLOW_PER_HOST + 1
        return range(first, min(first + HOLLOW_PER_HOST, self.hollow + 1))

    def host(self, name: str) -> Host:
        """Raise UsageError naming the hosts there are."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise UsageError(f"host {name!r}: not in lab {self.name}, which has {', '.join(h.name for h in self.hosts)}")

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"https://{h.address}:{ETCD_CLIENT_PORT}" for h in self.hosts if h.role == "server")

    def store_config(self, name: str = OPERATOR, host: Host | None = None) -> StoreConfig:
        """How to reach etcd from inside the lab: as its operator, or with another's certificate."""
        files = self.certificate(name, host)
        return StoreConfig(self.endpoints, cafile=str(files.ca), certfile=str(files.pem), keyfile=str(files.key))

    @property
    def prefix(self) -> str:
        """What the names of this lab's namespaces begin with."""
        return f"plab-{self.name}-"

    @property
    def underlay(self) -> str:
        """The namespace that holds the bridge."""
        return self.prefix + "net"

    def netns(self, host: Host | str) -> str:
        return self.prefix + (host if isinstance(host, str) else host.name)

    @property
    def run_dir(self) -> Path:
        """Everything the lab has on file, in memory: records, sockets, logs, images, containers, etcd."""
        return RUN_ROOT / self.name

    @property
    def data_dir(self) -> Path:
        return self.run_dir / "data"

    @property
    def log_dir(self) -> Path:
        return self.run_dir / "logs"

    @property
    def cgroup(self) -> str:
        """The cgroup above all containers of the lab, as dockerd's --cgroup-parent takes it."""
        return f"/podlane-lab-{self.name}"

    @property
    def init_arguments(self) -> tuple[str, ...]:
        """What `podlane init` is given."""
        if not self.dual_stack:
            return ()
        return (f"--network={','.join(POD_NETWORKS)}", f"--service-cidr={','.join(SERVICE_RANGES)}")

    @property
    def pki_dir(self) -> Path:
        """The authority; the certificates of its operator and administrator, and a folder for those of each host."""
        return self.run_dir / "pki"

    @property
    def revocations(self) -> Path:
        """The list of revoked certificates, which etcd reads at each connection."""
        return self.pki_dir / "crl.pem"

    def certificate(self, name: str, host: Host | None = None) -> Certificate:
        """A host's daemon's, or without a host the operator's or `root`'s."""
        folder = self.pki_dir / host.name if host else self.pki_dir
        return Certificate(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")

    def docker_socket(self, host: Host | str) -> Path:
        return self.run_dir / (host if isinstance(host, str) else host.name) / "docker.sock"

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


def decode(data: bytes) -> Topology:
    return msgspec.json.decode(data, type=Topology)


def netns_path(netns: str) -> Path:
    return NETNS_ROOT / netns
