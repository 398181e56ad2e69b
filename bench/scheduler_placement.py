"""How fast pods are placed on thousands of nodes, decided only and with the real scheduler and etcd.

Deciding is measured from the objects to the plan, everything included that a
scheduler does with news of pods. Binding is measured from the first pod's
creation in etcd until the last is bound there, with the nodes and their leases
in etcd and `scheduler run` beside it: watch, decision, transactions, events.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from bench.hosts import Hosts, bench_hosts
from bench.rows import Benchmark, Declared, Measured, Progress
from bench.scheduler_shape import OneByOne
from bench.scheduler_world import MIXED, commit_nodes, make_nodes, make_pods
from podlane.api.codec import encode
from podlane.api.meta import namespaced_name
from podlane.api.types import ClusterConfig, Node, Pod
from podlane.errors import PodlaneError
from podlane.lab import process
from podlane.store import keys
from podlane.store.bulk import Binding
from podlane.store.interface import Delete, Put
from podlane.store.registry import Registry
from podlane.store.writes import MAX_OPS
from scheduler.placement.planner import Planner
from scheduler.view import Changes

NODES = 5000
PODS = 10_000
SMALLER = (500, 1000)
MIXED_PODS = 5000
MIXED_APPS = 50
SAMPLE = 200  # pods the peers place
RUNS = 3
LEASE_SECONDS = 3600
WAIT = 300.0  # seconds

PEER = "each pod by itself, in kube-scheduler's shape"


class BenchSchedulerError(PodlaneError):
    """Not every pod was placed: a time would mean nothing."""


# --- deciding ------------------------------------------------------------------------


def decide(nodes: Sequence[Node], pods: Sequence[Pod]) -> float:
    """Seconds from the news of the pods to the plan; the nodes are known, as they are to a leader."""
    planner = Planner()
    names = [node.metadata.name for node in nodes]
    planner.update(nodes=Changes({node.metadata.name: node for node in nodes}, complete=True), alive=names)
    news = Changes({namespaced_name(pod): pod for pod in pods})
    gc.collect()
    begin = time.perf_counter()
    planner.update(pods=news)
    plan = planner.plan()
    taken = time.perf_counter() - begin
    if len(plan.bind) != len(pods):
        raise BenchSchedulerError(f"decide {len(pods)} pods on {len(nodes)} nodes: {len(plan.bind)} placed")
    return taken


def decide_one_by_one(nodes: Sequence[Node], pods: Sequence[Pod]) -> float:
    peer = OneByOne(nodes)
    gc.collect()
    begin = time.perf_counter()
    peer.place(pods)
    return time.perf_counter() - begin


def measure_decide(say: Progress) -> Iterator[Measured]:
    pods = make_pods(PODS, owned=True)
    for number in (*SMALLER, NODES):
        nodes = make_nodes(number)
        # the smaller have less room: as many pods as fit several times over
        some = pods[: min(PODS, number * 20)]
        ours = [decide(nodes, some) for _ in range(RUNS)]
        theirs = [decide_one_by_one(nodes, pods[:SAMPLE]) for _ in range(RUNS)]
        say(f"{number} nodes: {len(some) / min(ours):,.0f} pods/s, one by one {SAMPLE / min(theirs):,.0f}")
        row = "scheduler.decide_10000x5000"
        if number == NODES:
            yield Measured.median(row, [PODS / t for t in ours], peer=PEER, peer_samples=[SAMPLE / t for t in theirs])
        yield Measured.median(
            f"{row}.per_pod_{number}",
            [t / len(some) for t in ours],
            peer=PEER,
            peer_samples=[t / SAMPLE for t in theirs],
        )


# --- binding, with etcd ----------------------------------------------------------------


@contextmanager
def scheduler(say: Progress) -> Iterator[tuple[Hosts, process.Record]]:
    """A started scheduler that leads a cluster of NODES nodes."""
    with bench_hosts(1) as hosts:
        Registry(hosts.store).init_cluster(ClusterConfig())
        say(f"writing {NODES} nodes and their leases")
        commit_nodes(hosts.store, make_nodes(NODES), hosts.store.grant(LEASE_SECONDS))
        record = hosts.start_scheduler()
        hosts.wait(record, "scheduler ready", lambda: hosts.is_ready(hosts.server, "scheduler"))
        hosts.wait(record, "scheduler leads", lambda: hosts.store.get(keys.ELECTION_SCHEDULER) is not None)
        yield hosts, record


def bind(hosts: Hosts, record: process.Record, pods: Sequence[Pod]) -> float:
    """Seconds from the first pod's creation until all are bound; they are removed afterwards."""
    puts = [Put(keys.pod_key(pod.metadata.namespace, pod.metadata.name), encode(pod)) for pod in pods]
    revision = hosts.store.list(keys.ELECTION_SCHEDULER).revision
    bound = 0
    with hosts.store.watch(keys.BINDINGS, start_revision=revision + 1) as watch:
        begin = time.monotonic()
        creator = Thread(target=_commit, args=(hosts, puts))
        creator.start()
        while bound < len(pods):
            batch = watch.next(1.0)
            bound += sum(event.type == "put" for event in batch.events) if batch else 0
            if time.monotonic() - begin > WAIT or not process.alive(record):
                raise hosts.failed(record, f"bind {len(pods)} pods: {bound} bound")
        taken = time.monotonic() - begin
        creator.join()
    _commit(hosts, [Delete(put.key) for put in puts])
    hosts.store.txn([], [Delete(keys.BINDINGS, prefix=True)])
    time.sleep(1.0)  # until the scheduler has seen it
    return taken


def _commit(hosts: Hosts, ops: Sequence[Put | Delete]) -> None:
    for start in range(0, len(ops), MAX_OPS):
        hosts.store.txn([], ops[start : start + MAX_OPS])


def bind_one_by_one(hosts: Hosts, nodes: Sequence[Node], pods: Sequence[Pod]) -> float:
    """The peer's decision and a transaction for each pod, while no scheduler runs."""
    registry, peer = Registry(hosts.store), OneByOne(nodes)
    begin = time.monotonic()
    made = [registry.create(pod) for pod in pods]
    for placement in peer.place(made):
        meta = placement.pod.metadata
        binding = Binding(meta.namespace, meta.name, placement.node, meta.resource_version, placement.pod)
        (error,) = registry.bind([binding])
        if error is not None:
            raise BenchSchedulerError(f"bind one by one: {error}")
    return time.monotonic() - begin


def peak(record: process.Record) -> float:
    """Bytes of memory that the process ever had resident."""
    lines = Path(f"/proc/{record.pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def measure_bind(say: Progress) -> Iterator[Measured]:
    yield from _measure_bound(say, "scheduler.bind_10000x5000", make_pods(PODS))


def measure_mixed(say: Progress) -> Iterator[Measured]:
    yield from _measure_bound(say, "scheduler.mixed_affinity", make_pods(MIXED_PODS, apps=MIXED_APPS, kinds=MIXED))


def _measure_bound(say: Progress, row: str, pods: Sequence[Pod]) -> Iterator[Measured]:
    with scheduler(say) as (hosts, record):
        times = []
        for _ in range(RUNS):
            times.append(bind(hosts, record, pods))
            say(f"{len(pods) / times[-1]:,.0f} pods/s created, placed and bound")
        memory = peak(record)
        hosts.end(record)
        theirs = bind_one_by_one(hosts, make_nodes(NODES), pods[:SAMPLE])
    yield Measured.median(row, [len(pods) / t for t in times], peer=PEER, peer_samples=[SAMPLE / theirs])
    yield Measured(f"{row}.rss", memory, 1)


BENCHMARKS = (
    Benchmark(
        "scheduler.decide_10000x5000",
        (
            Declared(
                "scheduler.decide_10000x5000", "per second", "10,000 pods of one kind decided on 5,000 nodes", aim=5000
            ),
            *(
                Declared(
                    f"scheduler.decide_10000x5000.per_pod_{number}",
                    "seconds",
                    f"the same for one pod, on {number} nodes",
                )
                for number in (*SMALLER, NODES)
            ),
        ),
        measure_decide,
    ),
    Benchmark(
        "scheduler.bind_10000x5000",
        (
            Declared(
                "scheduler.bind_10000x5000",
                "per second",
                "10,000 pods created in etcd until bound there, 5,000 nodes",
                aim=1500,
            ),
            Declared("scheduler.bind_10000x5000.rss", "bytes", "the scheduler's most resident memory in that"),
        ),
        measure_bind,
    ),
    Benchmark(
        "scheduler.mixed_affinity",
        (
            Declared(
                "scheduler.mixed_affinity",
                "per second",
                "5,000 pods of 50 applications with affinity, anti-affinity and spread, created until bound",
                aim=1000,
            ),
            Declared("scheduler.mixed_affinity.rss", "bytes", "the scheduler's most resident memory in that"),
        ),
        measure_mixed,
    ),
)
