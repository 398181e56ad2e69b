"""The control plane at 500 nodes: real etcd, scheduler and commands, real agents on an engine without containers.

What a pod waits for here is the control plane and the machine's processors; an
engine's work is a pause (half a second, give or take half). `start` scales a
controller to 100 pods every second, `burst` all thirty at once. Times are from
a pod's creation to its Ready status, both as one watch of the store sees them.
"""

from __future__ import annotations

import http.client
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import msgspec
from msgspec.structs import replace

from bench.lab import BenchLabError
from bench.machine import give_precedence, take_precedence
from bench.pods import controller
from bench.rows import Benchmark, Declared, Measured, Progress, percentile
from podlane.api.codec import decode
from podlane.api.meta import is_pod_ready
from podlane.api.types import Pod, ReplicationController
from podlane.lab import network, process
from podlane.lab.cluster import Lab
from podlane.lab.topology import ETCD_METRICS_PORT, Topology
from podlane.runtime.log import configure
from podlane.store import keys
from podlane.store.config import connect
from podlane.store.interface import Store
from podlane.store.registry import Registry

NODES = 500
CONTROLLERS = 30
REPLICAS = 100
PACE = 1.0
"""Seconds from one controller to the next."""
IDLE = 10.0
"""Seconds over which etcd's load is taken while nothing happens."""
TIMEOUT = 300.0


class Cluster:
    """A lab of hollow nodes and nothing else. The calling thread is in its underlay."""

    def __init__(self, lab: Lab, store: Store, say: Progress) -> None:
        self.lab = lab
        self.store = store
        self.registry = Registry(store)
        self.say = say
        names = [
            (h, d) for h in lab.topology.hosts for d in (("etcd", "scheduler") if h.role == "server" else ("hollow",))
        ]
        self.daemons = {f"{daemon} of {host.name}": lab.record(host, daemon) for host, daemon in names}

    def apply(self, objects: list[dict[str, object]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for number, obj in enumerate(objects):
                (Path(folder) / f"{number}.json").write_bytes(msgspec.json.encode(obj))
            self.lab.podlane("apply", "-f", folder)

    def run(self, what: str, pace: float) -> list[float]:
        """Scale one controller after the other and wait until all pods are ready; the seconds each took, sorted."""
        cpu = self._cpu()
        begin = time.monotonic()
        with ThreadPoolExecutor(1) as beside:
            scaled = beside.submit(self._scale, REPLICAS, pace)
            seconds = self._watch(what, begin)
            scaled.result()
        used = ", ".join(f"{name} {after - cpu[name]:.1f}" for name, after in self._cpu().items())
        self.say(
            f"{what}: all ready after {time.monotonic() - begin:.1f} s; a pod took {percentile(seconds, 50):.2f} s "
            f"(median), {percentile(seconds, 99):.2f} s (p99), {seconds[-1]:.2f} s at most; CPU seconds: {used}"
        )
        return seconds

    def empty(self) -> None:
        """Scale all controllers to nothing and wait until their pods are gone."""
        self._scale(0, 0.0)
        deadline = time.monotonic() + TIMEOUT
        while left := len(self.store.list(keys.prefix_for(Pod)).items):
            if time.monotonic() > deadline:
                raise BenchLabError(f"delete pods: {left} left after {TIMEOUT:.0f} s")
            time.sleep(0.5)

    def rss(self) -> dict[str, int]:
        return {name: process.rss_bytes(record.pid) for name, record in self.daemons.items() if record}

    def _cpu(self) -> dict[str, float]:
        return {name: process.cpu_seconds(record.pid) for name, record in self.daemons.items() if record}

    def _scale(self, replicas: int, pace: float) -> None:
        begin = time.monotonic()
        for number in range(CONTROLLERS):
            time.sleep(max(0.0, begin + number * pace - time.monotonic()))
            self.registry.modify(ReplicationController, "default", app(number), partial(_scaled, replicas))

    def _watch(self, what: str, begin: float) -> list[float]:
        created: dict[str, float] = {}
        ready: dict[str, float] = {}
        told = begin
        revision = self.store.list(keys.prefix_for(Pod)).revision
        with self.store.watch(keys.prefix_for(Pod), start_revision=revision + 1) as watch:
            while len(ready) < CONTROLLERS * REPLICAS:
                batch = watch.next(1.0)
                now = time.monotonic()
                for event in batch.events if batch else ():
                    key = event.kv.key
                    if event.type == "put" and key not in ready:
                        created.setdefault(key, now)
                        if is_pod_ready(decode(Pod, event.kv.value)):
                            ready[key] = now
                if now > told + 5:
                    told = now
                    self.say(f"{what}: {len(created)} created, {len(ready)} ready after {now - begin:.0f} s")
                if now > begin + TIMEOUT:
                    raise BenchLabError(f"{what}: {len(ready)} pods ready after {TIMEOUT:.0f} s")
        return sorted(ready[key] - created[key] for key in ready)

    # --- etcd's own figures ------------------------------------------------------------

    def tell_load(self) -> None:
        """What etcd does for the nodes while nothing happens."""
        before = self._etcd()
        time.sleep(IDLE)
        after = self._etcd()

        def rate(name: str) -> float:
            return (after.get(name, 0.0) - before.get(name, 0.0)) / IDLE

        calls = rate("grpc_server_started_total")
        self.say(
            f"etcd, nothing happening: {calls:.0f} calls/s, of them {rate('Range'):.0f} reads/s and {rate('Txn'):.0f} "
            f"transactions/s; {rate('LeaseKeepAlive'):.0f} renewals/s of leases; "
            f"{after.get('etcd_debugging_mvcc_watcher_total', 0):.0f} watchers, "
            f"database {after.get('etcd_mvcc_db_total_size_in_bytes', 0) / 1e6:.0f} MB"
        )

    def _etcd(self) -> dict[str, float]:
        """Etcd's metrics, each summed over its labels; calls by method and renewals besides."""
        connection = http.client.HTTPConnection("127.0.0.1", ETCD_METRICS_PORT, timeout=5)
        with network.inside(self.lab.topology.netns("server1")), closing(connection):
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        sums: dict[str, float] = {}
        for line in lines:
            found = re.match(r"(\w+)(\{.*\})? (\S+)$", line)
            if found is None:
                continue
            name, labels, value = found[1], found[2] or "", float(found[3])
            sums[name] = sums.get(name, 0.0) + value
            method = re.search(r'grpc_method="(\w+)"', labels)
            counted = (
                "grpc_server_msg_received_total" if method and "KeepAlive" in labels else "grpc_server_started_total"
            )
            if method and name == counted:
                sums[method[1]] = sums.get(method[1], 0.0) + value
        return sums


def app(number: int) -> str:
    return f"app{number}"


def _scaled(replicas: int, rc: ReplicationController) -> ReplicationController:
    return replace(rc, spec=replace(rc.spec, replicas=replicas))


@contextmanager
def hollow_lab(say: Progress, nodes: int = NODES) -> Iterator[Cluster]:
    """A lab of its own, removed at the end."""
    configure("error")  # what the store's client logs would stand between the rows
    lab = Lab(Topology(f"bench{os.getpid() % 10000}", nodes=0, hollow=nodes), say)
    try:
        lab.up()
        with network.inside(lab.topology.underlay), closing(connect(lab.topology.store_config())) as store:
            yield Cluster(lab, store, say)
    finally:
        lab.down()


def measure(say: Progress) -> Iterable[Measured]:
    take_precedence()
    with hollow_lab(say) as cluster:
        give_precedence(record.pid for record in cluster.daemons.values() if record)
        cluster.apply([controller(app(number), 0) for number in range(CONTROLLERS)])
        cluster.tell_load()
        seconds = cluster.run("paced", PACE)
        yield Measured("hollow500.start_p50", percentile(seconds, 50), 1)
        yield Measured("hollow500.start_p99", percentile(seconds, 99), 1)
        cluster.tell_load()
        rss = cluster.rss()
        say("memory: " + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in rss.items()))
        yield Measured("hollow500.rss", float(sum(rss.values())), 1)
        cluster.empty()
        seconds = cluster.run("at once", 0.0)
        yield Measured("hollow500.burst_p99", percentile(seconds, 99), 1)


BENCHMARKS = (
    Benchmark(
        "hollow500",
        (
            Declared("hollow500.start_p50", "seconds", "pod created → ready; 3,000 pods, 100/s, on 500 hollow nodes"),
            Declared("hollow500.start_p99", "seconds", "the same, 99th percentile", aim=5.0),
            Declared("hollow500.rss", "bytes", "RSS of etcd, scheduler and the 500 agents with these pods"),
            Declared("hollow500.burst_p99", "seconds", "the same 3,000 pods asked for all at once"),
        ),
        measure,
    ),
)
