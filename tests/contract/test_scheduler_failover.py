"""Real scheduler processes on real etcd: a leader frozen past its lease that goes on changes nothing."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from podlane.api.codec import decode
from podlane.api.meta import is_pod_active
from podlane.api.types import (
    ClusterConfig,
    Condition,
    Container,
    Node,
    NodeStatus,
    ObjectMeta,
    Pod,
    PodSpec,
    PodTemplateSpec,
    ReplicationController,
    ReplicationControllerSpec,
)
from podlane.store.config import connect
from podlane.store.interface import Store
from podlane.store.keys import ELECTION_SCHEDULER, prefix_for
from podlane.store.registry import Registry

pytestmark = pytest.mark.contract

MAIN = "from scheduler.cli import main; main()"


class Process:
    """`scheduler run` with its log in a file; it ends with the test, also when that is killed."""

    def __init__(self, identity: str, endpoints: str, folder: Path) -> None:
        self.identity = identity
        self.log = folder / f"{identity}.log"
        argv = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", MAIN, "run", "--identity", identity]
        argv += ["--etcd-endpoints", endpoints, "--leader-ttl", "2", "--healthz-port", "none"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stderr=log, stdout=log)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()


@pytest.fixture
def store(etcd) -> Iterator[Store]:
    with contextlib.closing(connect(etcd.client_config)) as store:
        yield store


@pytest.fixture
def processes(etcd, tmp_path: Path) -> Iterator[list[Process]]:
    started = [Process(name, ",".join(etcd.endpoints), tmp_path) for name in ("s1", "s2")]
    yield started
    for process in started:
        if process.process.poll() is None:
            process.end()
        print(process.identity, process.log.read_text(), sep="\n")


def eventually(what: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def leader_of(store: Store) -> str:
    kv = store.get(ELECTION_SCHEDULER)
    return kv.value.decode() if kv else ""


def most_pods_at_once(store: Store, since: int) -> int:
    """The most active pods there were in any revision."""
    prefix, active, most = prefix_for(Pod), set(), 0
    with store.watch(prefix, start_revision=since) as watch:
        while (batch := watch.next(1.0)) is not None:
            for event in batch.events:
                live = event.type == "put" and is_pod_active(decode(Pod, event.kv.value))
                (active.add if live else active.discard)(event.kv.key)
            most = max(most, len(active))
    return most


def test_a_frozen_leader_that_goes_on_is_fenced(store, processes):
    registry = Registry(store)
    registry.init_cluster(ClusterConfig())
    status = NodeStatus(
        allocatable={"cpu": "4", "memory": "8Gi", "pods": "110"},
        conditions=(Condition(type="Ready", status="True"),),
    )
    registry.create(Node(metadata=ObjectMeta(name="n1"), status=status))
    registry.put_node_lease("n1", 0, 10)
    labels = {"app": "web"}
    template = PodTemplateSpec(
        metadata=ObjectMeta(labels=labels), spec=PodSpec(containers=(Container(name="main", image="web:1"),))
    )
    spec = ReplicationControllerSpec(replicas=3, selector=labels, template=template)
    created = registry.create(ReplicationController(metadata=ObjectMeta(name="web", namespace="default"), spec=spec))
    beginning = int(created.metadata.resource_version)

    def bound() -> int:
        return sum(bool(p.spec.node_name) and is_pod_active(p) for p in registry.list(Pod).items)

    def scale(replicas: int) -> None:
        registry.modify(
            ReplicationController, "default", "web", lambda c: replace(c, spec=replace(c.spec, replicas=replicas))
        )

    eventually(lambda: bound() == 3)
    frozen = next(p for p in processes if p.identity == leader_of(store))
    other = next(p for p in processes if p is not frozen)
    frozen.send(signal.SIGSTOP)
    # what it finds when it goes on is more to do than it knew of
    scale(5)
    eventually(lambda: leader_of(store) == other.identity and bound() == 5)
    scale(7)
    frozen.send(signal.SIGCONT)
    eventually(lambda: bound() == 7)
    eventually(lambda: "no longer leading" in frozen.log.read_text())
    assert leader_of(store) == other.identity
    assert most_pods_at_once(store, beginning) == 7
    # and it is of use again: it takes over when the other ends
    assert other.end() == 0
    scale(4)
    eventually(lambda: leader_of(store) == frozen.identity and bound() == 4)
    assert frozen.end() == 0
