"""The control plane on etcd with twenty hollow nodes: pods start, and those of a node that dies start elsewhere."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podlane.api.meta import get_condition, is_pod_active, is_pod_ready
from podlane.api.types import (
    ClusterConfig,
    Container,
    Node,
    ObjectMeta,
    Pod,
    PodSpec,
    PodTemplateSpec,
    ReplicationController,
    ReplicationControllerSpec,
)
from podlane.store.config import connect
from podlane.store.registry import Registry

pytestmark = pytest.mark.contract

MAIN = "from scheduler.cli import main; main()"
NODES, PODS = 20, 100


class Daemons:
    """Processes with their logs in files; they end with the test, also when that is killed."""

    def __init__(self, endpoints: str, folder: Path) -> None:
        self._endpoints, self._folder = endpoints, folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> None:
        argv = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", MAIN, *arguments]
        argv += ["--etcd-endpoints", self._endpoints, "--healthz-port", "none", "--log-level", "warning"]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(argv, stdout=log, stderr=log)

    def end(self, name: str, number: signal.Signals) -> int:
        process = self._processes.pop(name)
        process.send_signal(number)
        try:
            return process.wait(30)
        finally:
            process.kill()

    def end_all(self) -> dict[str, int]:
        return {name: self.end(name, signal.SIGTERM) for name in list(self._processes)}

    def logs(self) -> str:
        return "\n".join(f"{log.name}\n{log.read_text()[-3000:]}" for log in sorted(self._folder.glob("*.log")))


@pytest.fixture
def registry(etcd) -> Iterator[Registry]:
    with contextlib.closing(connect(etcd.client_config)) as store:
        registry = Registry(store)
        registry.init_cluster(ClusterConfig(node_lease_seconds=12, node_grace_seconds=1))
        yield registry


@pytest.fixture
def daemons(etcd, tmp_path: Path, registry: Registry) -> Iterator[Daemons]:
    started = Daemons(",".join(etcd.endpoints), tmp_path)
    try:
        yield started
    finally:
        codes = started.end_all()
        print(codes, started.logs(), sep="\n")
    assert set(codes.values()) == {0}


def eventually(what: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


def is_ready(node: Node) -> bool:
    """Whether pods are placed there; one that has only just joined is not ready yet."""
    condition = get_condition(node.status.conditions, "Ready")
    return condition is not None and condition.status == "True"


def test_pods_of_a_hollow_node_that_dies_become_ready_on_the_others(registry: Registry, daemons: Daemons) -> None:
    daemons.start("scheduler", "run", "--identity", "s1")
    daemons.start("most", "hollow", "--nodes", str(NODES - 1), "--start-seconds", "0.2")
    daemons.start("one", "hollow", "--nodes", "1", "--first", str(NODES), "--start-seconds", "0.2")
    eventually(lambda: [is_ready(node) for node in registry.list(Node).items] == [True] * NODES)

    labels = {"app": "web"}
    template = PodTemplateSpec(
        metadata=ObjectMeta(labels=labels), spec=PodSpec(containers=(Container(name="main", image="web:1"),))
    )
    spec = ReplicationControllerSpec(replicas=PODS, selector=labels, template=template)
    registry.create(ReplicationController(metadata=ObjectMeta(name="web", namespace="default"), spec=spec))

    def ready() -> list[Pod]:
        """All active pods once they are as many as wanted and every one is ready."""
        active = [p for p in registry.list(Pod).items if is_pod_active(p)]
        return active if len(active) == PODS and all(is_pod_ready(p) for p in active) else []

    eventually(lambda: bool(ready()))
    victim = f"hollow-{NODES}"
    before = {p.metadata.uid: p.spec.node_name for p in ready()}
    assert Counter(before.values())[victim] > 0

    daemons.end("one", signal.SIGKILL)
    eventually(lambda: bool(ready()) and all(p.spec.node_name != victim for p in ready()))
    after = {p.metadata.uid: p.spec.node_name for p in ready()}
    kept = {uid for uid, node in before.items() if node != victim}
    assert {uid: after.get(uid) for uid in kept} == {uid: before[uid] for uid in kept}
    addresses = Counter(p.status.pod_ip for p in ready())
    assert len(addresses) == PODS
