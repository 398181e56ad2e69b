"""A rotation that is interrupted at every write, and everybody still talks to everybody: real handshakes."""

from __future__ import annotations

import itertools
import shutil
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from podlane.pki import files, holdings, profile
from podlane.pki.authority import Authority
from podlane.pki.rotation import Plan, plan

pytestmark = pytest.mark.unit

NOW = datetime.now(UTC)


class Interrupted(Exception):
    """As a power cut: nothing after it happens."""


class _Cut:
    """Fails the nth rename from now on, by which each of our files is written: Python tells of it beforehand."""

    left: int | None = None

    def __call__(self, event: str, arguments: Any) -> None:
        del arguments
        if event != "os.rename" or self.left is None:
            return
        if not self.left:
            raise Interrupted
        self.left -= 1


CUT = _Cut()
sys.addaudithook(CUT)


@contextmanager
def cut_after(writes: int) -> Iterator[None]:
    CUT.left = writes
    try:
        yield
    finally:
        CUT.left = None


class Cluster:
    """A server with the authority, and a node, each with files as in /etc/podlane/pki."""

    def __init__(self, folder: Path) -> None:
        self.server, self.node = folder / "server", folder / "node"
        authority = Authority.create(self.server, now=NOW)
        files.issue_into(self.server, "etcd", authority, profile.etcd("s1", []), now=NOW)
        files.issue_into(self.server, "scheduler", authority, profile.scheduler("s1"), now=NOW)
        self.renew_node()

    def renew_node(self) -> None:
        authority = Authority.load(self.server)
        files.issue_into(self.node, "agent", authority, profile.node_daemon("agent", "n1"), now=NOW)

    def rotate(self) -> Plan:
        authority = Authority.load(self.server)
        steps = plan(holdings.state_of(self.server, authority), NOW, authority=True)
        holdings.apply(steps, self.server, authority, now=NOW)
        return steps

    def check(self, *stale: Path) -> None:
        """Each accepts each; `stale` are folders of a host as it was, that goes on with what it has read."""
        servers = [(self.server, "etcd", "localhost"), (self.node, "agent", profile.agent_hostname("n1"))]
        clients = [(self.server, "scheduler"), (self.node, "agent")]
        servers += [(folder, "etcd", "localhost") for folder in stale if (folder / "etcd.pem").exists()]
        clients += [(folder, "scheduler") for folder in stale if (folder / "scheduler.pem").exists()]
        for (folder, name, host), (other, client) in itertools.product(servers, clients):
            shake_hands(
                context(ssl.PROTOCOL_TLS_SERVER, folder, name), context(ssl.PROTOCOL_TLS_CLIENT, other, client), host
            )


def context(protocol: int, folder: Path, name: str) -> ssl.SSLContext:
    made = ssl.SSLContext(protocol)
    made.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    made.load_verify_locations(folder / "ca.pem")
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, hostname: str) -> None:
    near, far = socket.socketpair()
    failures: list[Exception] = []

    def side(run: Callable[[], None]) -> None:
        try:
            run()
        except OSError as error:
            failures.append(error)

    def serve() -> None:
        with server.wrap_socket(far, server_side=True) as tls:
            tls.sendall(tls.recv(1))

    def ask() -> None:
        with client.wrap_socket(near, server_hostname=hostname) as tls:
            tls.sendall(b"?")
            assert tls.recv(1) == b"?"

    serving = threading.Thread(target=side, args=(serve,))
    serving.start()
    side(ask)
    serving.join()
    assert not failures


def completed(cluster: Cluster) -> None:
    """Go on until the rotation has ended."""
    for _ in range(5):
        cluster.rotate()
        cluster.renew_node()
        cluster.check()
        if Authority.load(cluster.server).previous is None:
            return
    raise AssertionError("the rotation does not end")


@pytest.mark.parametrize("writes", range(7))
def test_a_beginning_cut_short(tmp_path: Path, writes: int) -> None:
    cluster = Cluster(tmp_path)
    first = Authority.load(cluster.server).name
    shutil.copytree(cluster.server, tmp_path / "before")
    with cut_after(writes), pytest.raises(Interrupted):
        cluster.rotate()
    cluster.check(tmp_path / "before")
    cluster.renew_node()
    cluster.check(tmp_path / "before")
    completed(cluster)
    assert Authority.load(cluster.server).name != first
    assert not list(cluster.server.glob(".*"))  # no half-written file either


@pytest.mark.parametrize("writes", range(2))
def test_an_end_cut_short(tmp_path: Path, writes: int) -> None:
    cluster = Cluster(tmp_path)
    cluster.rotate()
    cluster.renew_node()
    shutil.copytree(cluster.server, tmp_path / "before")
    with cut_after(writes), pytest.raises(Interrupted):
        cluster.rotate()
    cluster.check(tmp_path / "before")
    completed(cluster)
    cluster.check(tmp_path / "before")


def test_it_does_not_end_before_the_node_has_renewed(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.rotate()
    for _ in range(2):
        assert [leaf.common_name for leaf in cluster.rotate().waits_for] == ["agent@n1"]
        cluster.check()
    cluster.renew_node()
    assert cluster.rotate().end


def test_who_began_with_the_old_bundle_accepts_what_is_signed_after_the_end(tmp_path: Path) -> None:
    """An etcd that nobody has restarted since: it reads its bundle at its start only."""
    cluster = Cluster(tmp_path)
    shutil.copytree(cluster.server, tmp_path / "before")
    completed(cluster)
    shutil.copy(cluster.server / "etcd.pem", tmp_path / "before")  # which it reads anew
    cluster.renew_node()
    server = context(ssl.PROTOCOL_TLS_SERVER, tmp_path / "before", "etcd")
    shake_hands(server, context(ssl.PROTOCOL_TLS_CLIENT, cluster.node, "agent"), "localhost")


def test_a_forced_end_locks_out_whoever_was_late(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.rotate()
    authority = Authority.load(cluster.server)
    forced = plan(holdings.state_of(cluster.server, authority), NOW, authority=True, force=True)
    holdings.apply(forced, cluster.server, authority, now=NOW)
    with pytest.raises(AssertionError):
        cluster.check()
