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
        argv += ["--etcd-endpoints", endpoints, "--healthz-port", "none"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stderr=log, stdout=log)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            return self.process.wait(40)
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


def eventually(what: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def leader_of(store: Store) -> str:
    kv = store.get(ELECTION_SCHEDULER)
    return kv.value.decode() if kv else ""


def pods_in(registry: Registry) -> list[Pod]:
    return [p for p in registry.list(Pod).items if is_pod_active(p)]


class History:
    """What every revision since `since` showed: the most active pods there were at once, and each pod's nodes."""

    def __init__(self, store: Store, since: int) -> None:
        self.most = 0
        self.nodes: dict[str, set[str]] = {}
        active: set[str] = set()
        with store.watch(prefix_for(Pod), start_revision=since) as watch:
            while (batch := watch.next(1.0)) is not None:
                for event in batch.events:
                    pod = decode(Pod, event.kv.value) if event.type == "put" else None
                    (active.add if pod is not None and is_pod_active(pod) else active.discard)(event.kv.key)
                    if pod is not None and pod.spec.node_name:
                        self.nodes.setdefault(pod.metadata.uid, set()).add(pod.spec.node_name)
                self.most = max(self.most, len(active))


def test_a_leader_frozen_with_writes_in_its_hands_is_fenced_when_it_goes_on(store, processes):
    registry = Registry(store)
    registry.init_cluster(ClusterConfig())
    status = NodeStatus(
        allocatable={"cpu": "100", "memory": "100Gi", "pods": "5000"},
        conditions=(Condition(type="Ready", status="True"),),
    )
    for name in ("n1", "n2"):
        registry.create(Node(metadata=ObjectMeta(name=name), status=status))
        registry.put_node_lease(name, 0, 3600)
    labels = {"app": "web"}
    template = PodTemplateSpec(
        metadata=ObjectMeta(labels=labels), spec=PodSpec(containers=(Container(name="main", image="web:1"),))
    )
    spec = ReplicationControllerSpec(replicas=3, selector=labels, template=template)
    created = registry.create(ReplicationController(metadata=ObjectMeta(name="web", namespace="default"), spec=spec))

    def bound() -> int:
        return sum(bool(p.spec.node_name) for p in pods_in(registry))

    def scale(replicas: int) -> None:
        registry.modify(
            ReplicationController, "default", "web", lambda c: replace(c, spec=replace(c.spec, replicas=replicas))
        )

    eventually(lambda: bound() == 3)
    frozen = next(p for p in processes if p.identity == leader_of(store))
    other = next(p for p in processes if p is not frozen)
    wanted = 3
    while len(pods_in(registry)) == wanted:
        # freeze it in the middle of making pods: what it has yet to write is decided already
        wanted += 300
        with store.watch(prefix_for(Pod), start_revision=store.list(prefix_for(Pod)).revision + 1) as watch:
            scale(wanted)
            eventually(lambda watch=watch: (batch := watch.next(1.0)) is not None and bool(batch.events))
        frozen.send(signal.SIGSTOP)
        if len(pods_in(registry)) == wanted:  # it was quicker
            frozen.send(signal.SIGCONT)
            eventually(lambda wanted=wanted: bound() == wanted)
    eventually(lambda: leader_of(store) == other.identity and bound() == wanted)
    wanted += 2
    scale(wanted)
    frozen.send(signal.SIGCONT)
    eventually(lambda: bound() == wanted)
    eventually(lambda: "another scheduler leads" in frozen.log.read_text())
    eventually(lambda: "no longer leading" in frozen.log.read_text())
    assert leader_of(store) == other.identity
    history = History(store, int(created.metadata.resource_version))
    assert history.most == wanted
    assert [nodes for nodes in history.nodes.values() if len(nodes) > 1] == []
    # and it is of use again: it takes over when the other ends
    assert other.end() == 0
    scale(4)
    eventually(lambda: leader_of(store) == frozen.identity and bound() == 4)
    assert frozen.end() == 0
