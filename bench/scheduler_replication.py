"""How fast replication controllers get their pods: one of 10,000, and a thousand of ten.

Owns: the rows scheduler.replicate_*. A real scheduler process with its default
options leads a cluster of NODES nodes (objects and heartbeats, nothing more) on
real etcd, and places and binds what it makes meanwhile. What counts is the time
from the controllers' creation until every one's status has all its pods, which
is then compared with the pods there are. The peer is the shape that Kubernetes'
controllers have on the same etcd: a request for each pod, PARALLEL at a time,
without the API server that is between them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.hosts import Hosts, bench_hosts
from bench.rows import Benchmark, Declared, Measured, Progress
from bench.scheduler_world import commit_nodes, make_nodes
from podlane.api.codec import decode
from podlane.api.types import (
    ClusterConfig,
    Container,
    ObjectMeta,
    Pod,
    PodSpec,
    PodTemplateSpec,
    ReplicationController,
    ReplicationControllerSpec,
)
from podlane.lab import process
from podlane.store import keys
from podlane.store.interface import Delete
from podlane.store.registry import Registry

NODES = 150
RUNS = 3
SAMPLE = 2000  # pods the peer makes
PARALLEL = 16
LEASE_SECONDS = 3600
WAIT = 300.0  # seconds
PEER = f"a request for each pod, {PARALLEL} at a time"


def controllers(count: int, replicas: int) -> list[ReplicationController]:
    made = []
    for number in range(count):
        name = f"app-{number}"
        labels = {"app": name}
        template = PodTemplateSpec(
            metadata=ObjectMeta(labels=labels), spec=PodSpec(containers=(Container(name="main", image="web:1"),))
        )
        spec = ReplicationControllerSpec(replicas=replicas, selector=labels, template=template)
        made.append(ReplicationController(metadata=ObjectMeta(name=name, namespace="default"), spec=spec))
    return made


def replicate(hosts: Hosts, record: process.Record, count: int, replicas: int) -> float:
    """Seconds from the first controller's creation until all statuses are right; everything is removed afterwards."""
    registry = Registry(hosts.store)
    prefix = keys.prefix_for(ReplicationController)
    waiting = {f"{prefix}default/app-{number}" for number in range(count)}
    with hosts.store.watch(prefix, start_revision=hosts.store.list(prefix).revision + 1) as watch:
        begin = time.monotonic()
        registry.create_many(controllers(count, replicas))
        while waiting:
            batch = watch.next(1.0)
            for event in batch.events if batch else ():
                rc = decode(ReplicationController, event.kv.value)
                if rc.status.replicas == replicas and rc.status.observed_generation == rc.metadata.generation:
                    waiting.discard(event.kv.key)
            if time.monotonic() - begin > WAIT or not process.alive(record):
                raise hosts.failed(record, f"replicate {count} x {replicas}: {len(waiting)} not complete")
        taken = time.monotonic() - begin
    there = sum(len(page.items) for page in hosts.store.pages(keys.prefix_for(Pod)))
    if there != count * replicas:
        raise hosts.failed(record, f"replicate {count} x {replicas}: {there} pods")
    _clear(hosts)
    return taken


def _clear(hosts: Hosts) -> None:
    gone = (keys.prefix_for(ReplicationController), keys.prefix_for(Pod), keys.BINDINGS)
    hosts.store.txn([], [Delete(key, prefix=True) for key in gone])
    time.sleep(2.0)  # until the scheduler has seen it


def one_by_one(hosts: Hosts, replicas: int) -> float:
    """Seconds the peer takes, while no scheduler runs."""
    (rc,) = controllers(1, replicas)
    registry = Registry(hosts.store)
    pods = [
        Pod(metadata=ObjectMeta(name=f"pod-{n}", namespace="default"), spec=rc.spec.template.spec)
        for n in range(replicas)
    ]
    begin = time.monotonic()
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(registry.create, pods))
    return time.monotonic() - begin


def resident(record: process.Record) -> float:
    """Bytes of memory that the process ever had resident."""
    lines = Path(f"/proc/{record.pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def measure(row: str, count: int, replicas: int, say: Progress) -> Iterator[Measured]:
    with bench_hosts(1) as hosts:
        Registry(hosts.store).init_cluster(ClusterConfig())
        commit_nodes(hosts.store, make_nodes(NODES), hosts.store.grant(LEASE_SECONDS))
        record = hosts.start_scheduler()
        hosts.wait(record, "scheduler leads", lambda: hosts.store.get(keys.ELECTION_SCHEDULER) is not None)
        times = []
        for _ in range(RUNS):
            times.append(replicate(hosts, record, count, replicas))
            say(f"{count} x {replicas} in {times[-1]:.2f} s")
        memory = resident(record)
        hosts.end(record)
        theirs = [one_by_one(hosts, SAMPLE)]
        _clear(hosts)
    pods = count * replicas
    yield Measured.median(
        row, [pods / seconds for seconds in times], peer=PEER, peer_samples=[SAMPLE / seconds for seconds in theirs]
    )
    yield Measured(f"{row}.rss", memory, 1)


def _benchmark(row: str, count: int, replicas: int, about: str) -> Benchmark:
    rows = (
        Declared(row, "per second", about),
        Declared(f"{row}.rss", "bytes", "the scheduler's most resident memory in that"),
    )
    return Benchmark(row, rows, lambda say: measure(row, count, replicas, say))


BENCHMARKS = (
    _benchmark("scheduler.replicate_1x10000", 1, 10_000, "pods of one controller, from its creation to its status"),
    _benchmark("scheduler.replicate_1000x10", 1000, 10, "pods of a thousand controllers, to the last one's status"),
)
