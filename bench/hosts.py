"""Hosts in namespaces with one etcd, and netd or proxyd on them as a benchmark says.

Owns: a topology of the lab's kind without its other daemons, on mutual TLS but
where everybody may do everything. Invariant: it is removed whatever happens,
daemons by their recorded pid, namespaces by the prefix of this process; after a
SIGKILL of the benchmark `podlane lab down` still finds it. The benchmark's process
is in the underlay's namespace for the time, so that its one connection to etcd and
its one clock see everything.
"""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from podlane.errors import PodlaneError
from podlane.lab import credentials, network, process
from podlane.lab.cluster import Lab
from podlane.lab.daemons import specs, subnet_file
from podlane.lab.topology import ETCD_CLIENT_PORT, Host, Topology
from podlane.runtime.atomic import write_atomic
from podlane.runtime.command import run
from podlane.runtime.log import configure
from podlane.store.config import connect
from podlane.store.interface import Store

ETCD_START = 30.0  # seconds
SETTLE = 1.0  # seconds the kernel gets to free what a namespace held


class BenchHostsError(PodlaneError):
    """A daemon did not do what a measurement waited for; the message ends with its log's."""


class Hosts:
    """Use `bench_hosts`. `store` is connected; `nodes` are the hosts netd may run on."""

    def __init__(self, topology: Topology, store: Store) -> None:
        self.topology = topology
        self.store = store
        self.nodes = tuple(h for h in topology.hosts if h.role == "node")
        self.etcd: process.Record | None = None
        self.server = next(h for h in topology.hosts if h.role == "server")

    def netns(self, host: Host) -> str:
        return self.topology.netns(host)

    def run(self, host: Host, *argv: str, text: str = "", check: bool = True) -> str:
        """Run a command on a host with `text` on its standard input; returns what it printed."""
        done = run(network.within(self.netns(host), argv), input=text or None, timeout=60, check=check)
        return done.stdout

    def renew(self, host: Host) -> None:
        """Give the host a new namespace, and take away what netd keeps on file: a machine just installed."""
        run(["ip", "netns", "delete", self.netns(host)], timeout=20)
        for folder in (self.topology.run_dir / host.name, self.topology.data_dir / host.name):
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(SETTLE)
        network.build(self.topology)

    # --- daemons ------------------------------------------------------------------

    def start_netd(self, host: Host, *options: str) -> process.Record:
        return self._start(host, "netd", *options)

    def start_proxyd(self, host: Host, *options: str) -> process.Record:
        return self._start(host, "proxyd", *options)

    def start_scheduler(self, *options: str) -> process.Record:
        """On the server's host, beside etcd."""
        return self._start(self.server, "scheduler", *options)

    def end(self, record: process.Record) -> None:
        process.stop([record], timeout=15)

    def start_etcd(self) -> None:
        """Start it on the data there is; returns at the moment it answers."""
        record = self.etcd = self._start(self.server, "etcd")
        deadline = time.monotonic() + ETCD_START
        while not self.etcd_answers():
            if time.monotonic() > deadline or not process.alive(record):
                raise self.failed(record, f"start etcd: no answer within {ETCD_START:.0f} s")
            time.sleep(0.005)

    def stop_etcd(self) -> None:
        if self.etcd is not None:
            self.end(self.etcd)

    def etcd_answers(self) -> bool:
        return self.is_ready(self.server, "etcd")

    def put_at_once(self, key: str, value: bytes) -> None:
        """Write by HTTP: a gRPC channel that has seen etcd go pauses before it tries again."""
        body = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value).decode()}
        config = self.topology.store_config()
        context = ssl.create_default_context(cafile=config.cafile)
        context.load_cert_chain(config.certfile, config.keyfile)
        address = (self.server.address, ETCD_CLIENT_PORT)
        with closing(http.client.HTTPSConnection(*address, timeout=2, context=context)) as connection:
            try:
                connection.request("POST", "/v3/kv/put", msgspec.json.encode(body))
                answer = connection.getresponse().read()
            except (OSError, http.client.HTTPException) as error:
                answer = str(error).encode()
        if b"revision" not in answer:
            raise BenchHostsError(f"put {key}: etcd did not take it: {answer.decode()}")

    def _start(self, host: Host, daemon: str, *options: str) -> process.Record:
        spec = next(s for s in specs(self.topology, host) if s.name == daemon)
        return process.start(
            self.topology.run_dir / host.name / f"{daemon}.pid.json",
            host=host.name,
            daemon=daemon,
            netns=self.netns(host),
            argv=(*spec.argv, *options),
            env=dict(spec.env),
            log=self.topology.log_dir / host.name / f"{daemon}.log",
        )

    # --- looking --------------------------------------------------------------------

    def failed(self, record: process.Record, what: str) -> BenchHostsError:
        how = "" if process.alive(record) else " (it ended)"
        return BenchHostsError(f"{what}{how}\n--- {record.log}\n{process.tail(record.log)}")

    def wait(self, record: process.Record, what: str, done: Callable[[], bool], timeout: float = 60.0) -> float:
        """Wait until `done`; returns the monotonic time. Raises BenchHostsError with the end of the daemon's log."""
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline or not process.alive(record):
                raise self.failed(record, f"{what}: not so after {timeout - (deadline - time.monotonic()):.0f} s")
            time.sleep(0.01)
        return time.monotonic()

    def subnet_file(self, host: Host) -> Path:
        return subnet_file(self.topology, host)

    def is_ready(self, host: Host, daemon: str = "netd") -> bool:
        """Whether a daemon of a host says so."""
        ready = next(s.ready for s in specs(self.topology, host) if s.name == daemon)
        address, _, path = str(ready).removeprefix("http://").partition("/")
        with network.inside(self.netns(host)), closing(http.client.HTTPConnection(address, timeout=2)) as connection:
            try:
                connection.request("GET", f"/{path}")
                return connection.getresponse().status == http.client.OK
            except (OSError, http.client.HTTPException):
                return False


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of its children that ended (nft, iptables)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def bench_hosts(nodes: int = 1) -> Iterator[Hosts]:
    """Hosts of this process's own with a started etcd, all in memory, removed at the end."""
    configure("error")  # what the store's client logs would stand between the rows
    topology = Topology(f"bench{os.getpid() % 10000}", nodes=nodes)
    try:
        topology.run_dir.mkdir(parents=True, exist_ok=True)
        source = f"podlane-lab-{topology.name}"
        run(["mount", "-t", "tmpfs", "-o", "mode=0755", source, str(topology.run_dir)], timeout=10)
        credentials.issue(topology)
        write_atomic(topology.run_dir / "lab.json", topology.encode())
        network.build(topology)
        with network.inside(topology.underlay), closing(connect(topology.store_config())) as store:
            hosts = Hosts(topology, store)
            hosts.start_etcd()
            yield hosts
    finally:
        Lab(topology).down()
