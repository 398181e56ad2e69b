"""How long a cluster is without a scheduler when the leader is killed.

Owns: the row scheduler.failover. Two real schedulers with their default
options on real etcd lead a cluster of NODES nodes (objects and heartbeats,
nothing more) and PODS pods; the leader gets SIGKILL at a random moment of its
lease, more pods are wanted at once, and what counts is the first of them that
is bound. The killed one is started again before the next run.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from bench.hosts import BenchHostsError, Hosts, bench_hosts
from bench.rows import Benchmark, Declared, Measured, Progress
from podlane.api.types import (
    ClusterConfig,
    Condition,
    Container,
    Node,
    NodeStatus,
    ObjectMeta,
    PodSpec,
    PodTemplateSpec,
    ReplicationController,
    ReplicationControllerSpec,
)
from podlane.lab import daemons, process
from podlane.store.interface import Watch
from podlane.store.keys import BINDINGS, ELECTION_SCHEDULER
from podlane.store.registry import Registry
from scheduler.cli import LEADER_TTL

RUNS = 7
NODES = 100
PODS = 1000
MORE = 20
PATIENCE = 60.0
LABELS = {"app": "web"}


@dataclass
class World:
    """etcd, the cluster in it, and the schedulers by name."""

    hosts: Hosts
    registry: Registry
    schedulers: dict[str, process.Record] = field(default_factory=dict)
    logged: dict[str, int] = field(default_factory=dict)
    """Bytes of each one's log from before its start."""

    def start(self, name: str) -> None:
        server = next(h for h in self.hosts.topology.hosts if h.role == "server")
        spec = next(s for s in daemons.specs(self.hosts.topology, server) if s.name == "scheduler")
        folder, log = (of / server.name for of in (self.hosts.topology.run_dir, self.hosts.topology.log_dir))
        log /= f"scheduler-{name}.log"
        self.logged[name] = log.stat().st_size if log.exists() else 0
        self.schedulers[name] = process.start(
            folder / f"scheduler-{name}.pid.json",
            host=server.name,
            daemon=f"scheduler-{name}",
            netns=self.hosts.netns(server),
            argv=(*spec.argv, f"--identity={name}", "--healthz-port=none"),
            env=dict(spec.env),
            log=log,
        )

    def leader(self) -> str:
        kv = self.hosts.store.get(ELECTION_SCHEDULER)
        return kv.value.decode() if kv else ""

    def stands_by(self, name: str) -> bool:
        """Its mirrors are there and it waits for the leader to go."""
        said = Path(self.schedulers[name].log).read_bytes()[self.logged[name] :]
        return b"event=following" in said

    def scale(self, replicas: int) -> None:
        self.registry.modify(
            ReplicationController, "default", "web", lambda c: replace(c, spec=replace(c.spec, replicas=replicas))
        )

    def all_bound(self, wanted: int) -> bool:
        return len(self.hosts.store.list(BINDINGS).items) == wanted

    def wait(self, name: str, what: str, done: Callable[[], bool]) -> None:
        """Raises BenchHostsError with the end of that scheduler's log."""
        self.hosts.wait(self.schedulers[name], what, done, PATIENCE)


@contextmanager
def _world() -> Iterator[World]:
    with bench_hosts(1) as hosts:
        registry = Registry(hosts.store)
        registry.init_cluster(ClusterConfig())
        room = {"cpu": "64", "memory": "256Gi", "pods": "1000"}
        ready = (Condition(type="Ready", status="True"),)
        for number in range(NODES):
            name = f"node{number}"
            status = NodeStatus(capacity=room, allocatable=room, conditions=ready)
            registry.create(Node(metadata=ObjectMeta(name=name), status=status))
            registry.put_node_lease(name, 0, 3600)
        template = PodTemplateSpec(
            metadata=ObjectMeta(labels=LABELS), spec=PodSpec(containers=(Container(name="main", image="web:1"),))
        )
        spec = ReplicationControllerSpec(replicas=PODS, selector=LABELS, template=template)
        registry.create(ReplicationController(metadata=ObjectMeta(name="web", namespace="default"), spec=spec))
        world = World(hosts, registry)
        for name in ("a", "b"):
            world.start(name)
        yield world


def measure(progress: Progress) -> Iterable[Measured]:
    samples: list[float] = []
    with _world() as world:
        wanted, other = PODS, "a"
        for number in range(RUNS):
            world.wait(other, f"{wanted} pods bound", partial(world.all_bound, wanted))
            leader = world.leader()
            other = next(name for name in world.schedulers if name != leader)
            world.wait(other, f"{other} stands by", partial(world.stands_by, other))
            time.sleep(random.uniform(0, LEADER_TTL / 3))  # renewals are so far apart
            wanted += MORE
            samples.append(_fail_over(world, leader, wanted))
            progress(f"run {number + 1}/{RUNS}: {samples[-1]:.2f} s")
            world.start(leader)
    yield Measured.median("scheduler.failover", samples)


def _fail_over(world: World, leader: str, wanted: int) -> float:
    """Kill the leader, ask for more, and return the seconds until the first of it is bound."""
    revision = world.hosts.store.list(BINDINGS).revision
    with world.hosts.store.watch(BINDINGS, start_revision=revision + 1) as watch:
        killed = time.monotonic()
        process.kill(world.schedulers[leader], signal.SIGKILL)
        world.scale(wanted)
        return _first_binding(watch, killed) - killed


def _first_binding(watch: Watch, since: float) -> float:
    while time.monotonic() < since + PATIENCE:
        batch = watch.next(1.0)
        if batch is not None and batch.events:
            return time.monotonic()
    raise BenchHostsError(f"fail over: nothing bound within {PATIENCE:.0f} s")


BENCHMARKS = (
    Benchmark(
        "scheduler.failover",
        (
            Declared(
                "scheduler.failover",
                "seconds",
                f"from SIGKILL of the leader to the first pod bound by the next, {NODES} nodes, {PODS} pods",
                aim=6.0,
            ),
        ),
        measure,
    ),
)
