"""Real etcd for tests: on loopback, on free ports, its data in a folder of the test's own.

Owns: starting and ending etcd processes. Invariant: none outlives the test run,
also when that is killed (setpriv's death signal). `etcd` is one member,
`etcd_cluster` three; both can be stopped, killed, frozen and wiped.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import pytest
import structlog

from podlane.errors import PermissionDenied, PodlaneError
from podlane.store.config import StoreConfig
from podlane.store.etcd import EtcdStore

START_TIMEOUT = 30.0

# How long an example takes depends on what else the machine does, and proves nothing.
hypothesis.settings.register_profile(
    "podlane",
    hypothesis.settings.default,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("podlane")


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """What a test, or a command that runs in it, makes of the logs is not the next one's: `error` hid its warnings."""
    yield
    structlog.reset_defaults()


def free_port() -> int:
    """A port nobody listens on now.

    Not one of those that the kernel gives to connections: while a member is down,
    a client of any other test could get its port, and it could not start again.
    """
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_240, max(ephemeral, 12_288))  # other workers draw at the same time
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Member:
    """One etcd process."""

    name: str
    folder: Path
    extra: tuple[str, ...] = ()
    scheme: str = "http"
    peer_scheme: str = "http"
    client_port: int = field(default_factory=free_port)
    peer_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"{self.peer_scheme}://127.0.0.1:{self.peer_port}"

    @property
    def peer(self) -> str:
        return f"{self.name}={self.peer_url}"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self, initial_cluster: str, state: str = "new") -> None:
        assert self.process is None, f"{self.name} runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        argv = [
            *("setpriv", "--pdeathsig", "KILL", "etcd", "--name", self.name, "--log-level", "warn"),
            *("--data-dir", str(self.folder / self.name), "--logger", "zap"),
            *("--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
            *("--initial-cluster", initial_cluster, "--initial-cluster-state", state, *self.extra),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)

    def stop(self, sig: int = signal.SIGTERM) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)  # a frozen one could not end
        self.process.send_signal(sig)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process = None

    def freeze(self) -> None:
        """Let it neither answer nor close its connections, as a host that lost its network."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)


class Etcd:
    """A cluster of one or three members."""

    def __init__(
        self, folder: Path, size: int = 1, *, extra: tuple[str, ...] = (), scheme: str = "http", **config: str
    ) -> None:
        self._folder = folder
        self._config = config
        self.members = [Member(f"etcd{i}", folder, extra, scheme) for i in range(size)]

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.endpoint for member in self.members)

    @property
    def client_config(self) -> StoreConfig:
        return StoreConfig(endpoints=self.endpoints, **self._config)  # type: ignore[arg-type]

    def start(self) -> None:
        """Start the members that do not run, and wait until the cluster answers."""
        initial_cluster = ",".join(member.peer for member in self.members)
        for member in self.members:
            if member.process is None:
                member.start(initial_cluster)
        self.wait_ready()

    def stop(self, sig: int = signal.SIGTERM) -> None:
        for member in self.members:
            member.stop(sig)

    def wipe(self) -> None:
        """Lose all data; to be called while it is stopped."""
        for member in self.members:
            assert member.process is None
            shutil.rmtree(self._folder / member.name, ignore_errors=True)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        for member in self.members:
            store = EtcdStore(StoreConfig(endpoints=(member.endpoint,), **self._config))  # type: ignore[arg-type]
            with contextlib.closing(store):
                self._wait_for(member, store, deadline)

    def _wait_for(self, member: Member, store: EtcdStore, deadline: float) -> None:
        while True:
            try:
                store.txn([], [], timeout=2.0)
            except PermissionDenied:
                return  # it is there, and wants to know who asks
            except PodlaneError as error:
                ended = member.process is None or member.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    tail = member.log.read_text()[-2000:]
                    raise AssertionError(f"start etcd {member.name}: {error}\n{tail}") from error
            else:
                return

    def leader(self) -> Member:
        """The member that leads now."""
        import grpc
        from etcd3 import etcdrpc

        for member in self.members:
            with grpc.insecure_channel(f"127.0.0.1:{member.client_port}") as channel:
                status = etcdrpc.MaintenanceStub(channel).Status(etcdrpc.StatusRequest(), timeout=5)
                if status.leader == status.header.member_id:
                    return member
        raise AssertionError("no member leads")

    def compact(self, revision: int) -> None:
        import grpc
        from etcd3 import etcdrpc

        with grpc.insecure_channel(f"127.0.0.1:{self.members[0].client_port}") as channel:
            request = etcdrpc.CompactionRequest(revision=revision, physical=True)
            etcdrpc.KVStub(channel).Compact(request, timeout=10)


class Link:
    """A TCP relay in front of one member, to be cut or turned into a black hole."""

    def __init__(self, member: Member) -> None:
        self._target = ("127.0.0.1", member.client_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._answers = threading.Event()
        self.restore()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def cut(self) -> None:
        """Reset every connection; new ones are let through."""
        with self._lock:
            doomed, self._sockets = self._sockets, set()
        for each in doomed:
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def swallow(self) -> None:
        """From now on nothing passes, and nobody is told."""
        self._open.clear()
        self._answers.clear()

    def swallow_answers(self) -> None:
        """From now on only what goes to the member passes."""
        self._answers.clear()

    def restore(self) -> None:
        """Let everything pass again, what was held back first."""
        self._open.set()
        self._answers.set()

    def close(self) -> None:
        self.restore()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        self._open.wait()
        try:
            far = socket.create_connection(self._target)
        except OSError:
            near.close()
            return
        with self._lock:
            self._sockets |= {near, far}
        threading.Thread(target=self._pump, args=(near, far, self._open), daemon=True).start()
        self._pump(far, near, self._answers)

    def _pump(self, source: socket.socket, sink: socket.socket, may_pass: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                may_pass.wait()
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def running(etcd: Etcd) -> Iterator[Etcd]:
    """Start it, and end it whatever happens."""
    try:
        etcd.start()
        yield etcd
    finally:
        etcd.stop(signal.SIGKILL)


@contextlib.contextmanager
def in_memory() -> Iterator[Path]:
    """A folder that vanishes, in memory if there is plenty of it: etcd syncs each write, and a disk that others
    write to as well may keep it waiting for seconds.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_mount() and shutil.disk_usage(memory).free > 4 << 30  # a member allots itself 128 MiB
    for left in memory.glob("podlane-etcd-*-*"):  # of a run that was killed
        if not Path("/proc", left.name.split("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        prefix=f"podlane-etcd-{os.getpid()}-", dir=memory if roomy else None, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


@pytest.fixture
def etcd_folder() -> Iterator[Path]:
    """Where this test's etcd may have its data."""
    with in_memory() as folder:
        yield folder


@pytest.fixture
def etcd(etcd_folder: Path) -> Iterator[Etcd]:
    """One real member, for this test alone."""
    with running(Etcd(etcd_folder)) as one:
        yield one


@pytest.fixture
def link(etcd: Etcd) -> Iterator[Link]:
    """A way to `etcd` that can break."""
    relay = Link(etcd.members[0])
    yield relay
    relay.close()


@pytest.fixture
def etcd_cluster(etcd_folder: Path) -> Iterator[Etcd]:
    """Three real members, for this test alone."""
    with running(Etcd(etcd_folder, 3)) as three:
        yield three


@pytest.fixture(scope="session")
def shared_etcd() -> Iterator[Etcd]:
    """One real member for every test that only reads and writes below a prefix of its own."""
    with in_memory() as folder, running(Etcd(folder)) as one:
        yield one
