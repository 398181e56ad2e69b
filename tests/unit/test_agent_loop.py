"""The whole agent, with its threads, on an engine and a store in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_objects import IMAGE, SPEC, Told, container, name

from podlane.api.meta import get_condition, is_pod_ready
from podlane.api.types import Container, ObjectMeta, Pod, PodSpec, Probe, TCPSocketAction
from podlane.errors import NotFound
from podlane.runtime.clock import SystemClock
from podlane.store.bulk import Binding, bind
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.agent.agent import Agent
from scheduler.agent.containers import INFRA
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.podfiles import PodFiles
from scheduler.agent.podnetfake import FakePodNet
from scheduler.agent.probes import Target

pytestmark = pytest.mark.unit

SUBNET_ENV = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"


class Cluster:
    """A store, a node's engine, and an agent that can be started and killed."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryStore()
        self.registry = Registry(self.store)
        self.runtime = FakeRuntime(SystemClock())
        self.runtime.add_image(IMAGE)
        self.podnet = FakePodNet(self.runtime.alive)
        self.folder = folder
        self.subnet_file = folder / "subnet.env"
        self.subnet_file.write_text(SUBNET_ENV)
        self.told = Told()
        self.serving: Callable[[Target], tuple[bool, str]] = lambda _target: (True, "")
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []
        self.agent: Agent | None = None

    def _check(self, target: Target) -> tuple[bool, str]:
        return self.serving(target)

    def start(self) -> Agent:
        self.stop = threading.Event()
        agent = self.agent = Agent(
            node_ip="192.168.64.11",
            runtime=self.runtime,
            podnet=self.podnet,
            files=PodFiles(self.folder / "pods"),
            store=self.registry,
            events=self.told,
            subnet_file=self.subnet_file,
            drain_delay=0.1,
            check=self._check,
        )
        bindings = self.registry.bindings("n1", agent.trigger)
        agent.bindings = bindings
        for body in (bindings.run, agent.follow_events, agent.follow_network, agent.prober.run, agent.runner.run):
            thread = threading.Thread(target=body, args=(self.stop,))
            thread.start()
            self.threads.append(thread)
        return agent

    def kill(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive(), thread
        self.threads.clear()
        if self.agent is not None:
            self.agent.close()

    def bind(self, pod_name: str, *containers: Container, node: str = "n1", **spec: Any) -> Pod:
        pod = self.registry.create(
            Pod(
                metadata=ObjectMeta(name=pod_name, namespace="default"),
                spec=PodSpec(containers=containers or (container(),), **spec),
            )
        )
        meta = pod.metadata
        assert bind(self.registry, [Binding("default", pod_name, node, meta.resource_version)]) == [None]
        return self.get(pod_name)

    def get(self, pod_name: str) -> Pod:
        return self.registry.get(Pod, "default", pod_name)

    def ready(self, *names: str) -> bool:
        return all(is_pod_ready(self.get(n)) for n in names)

    def gone(self, pod_name: str) -> bool:
        try:
            self.get(pod_name)
        except NotFound:
            return True
        return False


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.kill()


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not become true"
        time.sleep(0.01)


def names(pod: Pod, number: int = 0) -> str:
    return name("web", "p", number).replace("uid-p", pod.metadata.uid)


def test_a_bound_pod_becomes_ready_and_a_deleted_one_goes(cluster: Cluster) -> None:
    cluster.start()
    pods = [cluster.bind(f"p{i}") for i in range(5)]
    eventually(lambda: cluster.ready(*(p.metadata.name for p in pods)))
    pod = cluster.get("p0")
    assert (pod.status.phase, pod.status.host_ip) == ("Running", "192.168.64.11")
    assert len({cluster.get(p.metadata.name).status.pod_ip for p in pods}) == 5
    assert get_condition(pod.status.conditions, "PodScheduled") is not None
    assert {"Pulled", "Created", "Started"} <= set(cluster.told.reasons())
    cluster.registry.delete(Pod, "default", "p0")
    eventually(lambda: cluster.gone("p0"))
    assert len(cluster.runtime.running()) == 8
    assert not any("_p0_" in r.name for r in cluster.runtime.list())


def test_pods_wait_for_the_subnet(cluster: Cluster) -> None:
    cluster.subnet_file.unlink()
    agent = cluster.start()
    cluster.bind("p")
    eventually(lambda: "subnet.env" in (agent.network_problem() or ""))
    assert cluster.runtime.running() == ()
    cluster.subnet_file.write_text(SUBNET_ENV)
    eventually(lambda: cluster.ready("p"))
    assert agent.network() == ("10.5.3.0/24", "")
    assert cluster.podnet.ensure(SPEC) == ()


def test_pods_move_when_the_subnet_changed(cluster: Cluster) -> None:
    cluster.start()
    cluster.bind("p")
    eventually(lambda: cluster.ready("p"))
    cluster.subnet_file.write_text(SUBNET_ENV.replace("10.5.3.1", "10.5.77.1"))
    assert cluster.agent is not None
    cluster.agent.trigger()
    eventually(lambda: cluster.get("p").status.pod_ip.startswith("10.5.77.") and cluster.ready("p"))


def test_a_bridge_deleted_by_hand_is_made_again_with_its_pods(cluster: Cluster) -> None:
    cluster.start()
    pods = [cluster.bind(f"p{i}") for i in range(3)]
    eventually(lambda: cluster.ready(*(p.metadata.name for p in pods)))
    running = cluster.runtime.running()
    before = {p.metadata.name: cluster.get(p.metadata.name).status.pod_ip for p in pods}
    cluster.podnet.delete_bridge()
    eventually(lambda: len(cluster.podnet.ports()) == 3)
    eventually(lambda: all(cluster.ready(n) and cluster.get(n).status.pod_ip == ip for n, ip in before.items()))
    assert cluster.runtime.running() == running


def test_a_pod_that_is_not_attached_is_not_ready(cluster: Cluster) -> None:
    cluster.start()
    cluster.bind("p")
    eventually(lambda: cluster.ready("p"))
    cluster.podnet.refusal = "no buffer space available"
    cluster.podnet.delete_bridge()
    eventually(lambda: not cluster.ready("p"))
    assert cluster.get("p").status.pod_ip == ""
    cluster.podnet.refusal = ""
    eventually(lambda: cluster.ready("p"))
    assert cluster.get("p").status.container_statuses[0].restart_count == 0


def test_a_full_subnet_is_told_once_and_a_freed_address_is_used(cluster: Cluster) -> None:
    cluster.subnet_file.write_text(SUBNET_ENV.replace("/24", "/30"))  # one address beside the gateway's
    agent = cluster.start()
    cluster.bind("p")
    eventually(lambda: cluster.ready("p"))
    cluster.bind("q")
    eventually(lambda: "FailedCreatePodSandBox" in cluster.told.reasons())
    for _ in range(3):
        agent.trigger()
        time.sleep(0.1)
    assert cluster.told.reasons().count("FailedCreatePodSandBox") == 1
    assert "q: FailedCreatePodSandBox no free address in 10.5.3.0/30" in cluster.told.events
    cluster.registry.delete(Pod, "default", "p")
    eventually(lambda: cluster.ready("q"))
    assert cluster.get("q").status.pod_ip == "10.5.3.2"


def test_pods_files_come_and_go_with_them(cluster: Cluster) -> None:
    stray = cluster.folder / "pods" / "gone"
    stray.mkdir(parents=True)
    cluster.start()
    pod = cluster.bind("p")
    eventually(lambda: cluster.ready("p"))
    hosts = cluster.folder / "pods" / pod.metadata.uid / "hosts"
    assert hosts.read_text().endswith("10.5.3.2\tp\n")
    assert not stray.exists()
    cluster.registry.delete(Pod, "default", "p")
    eventually(lambda: cluster.gone("p") and not hosts.parent.exists())


def test_a_restarted_agent_adopts_what_runs(cluster: Cluster) -> None:
    probe = Probe(tcp_socket=TCPSocketAction(port=80))
    cluster.start()
    cluster.bind("p", container(readiness_probe=probe))
    eventually(lambda: cluster.ready("p"))
    cluster.kill()
    before, calls = cluster.get("p"), list(cluster.runtime.calls)
    cluster.serving = lambda _target: (False, "starting up")  # a slow answer must not make it unready
    agent = cluster.start()
    eventually(lambda: agent.runner.synced_once)
    time.sleep(0.3)
    assert cluster.get("p") == before
    assert cluster.runtime.calls == calls


def test_a_container_that_dies_makes_its_pod_unready_until_it_runs_again(cluster: Cluster) -> None:
    cluster.start()
    pod = cluster.bind("p")
    eventually(lambda: cluster.ready("p"))
    cluster.runtime.end(names(pod), 1)
    eventually(lambda: names(pod, 1) in cluster.runtime.running() and cluster.ready("p"))
    cluster.runtime.end(names(pod, 1), 1)
    eventually(lambda: not cluster.ready("p"))
    eventually(lambda: cluster.get("p").status.container_statuses[0].state.waiting is not None)
    status = cluster.get("p").status.container_statuses[0]
    assert status.state.waiting is not None
    assert (status.restart_count, status.state.waiting.reason) == (1, "CrashLoopBackOff")
    assert cluster.told.reasons().count("BackOff") == 1


def test_a_dead_infra_container_is_replaced(cluster: Cluster) -> None:
    cluster.start()
    pod = cluster.bind("p")
    eventually(lambda: cluster.ready("p"))
    cluster.runtime.end(names(pod).replace("_web_", f"_{INFRA}_"), 137)
    eventually(lambda: cluster.get("p").status.container_statuses[0].restart_count == 1 and cluster.ready("p"))
    assert names(pod, 1) in cluster.runtime.running()


def test_readiness_follows_the_probe(cluster: Cluster) -> None:
    cluster.serving = lambda _target: (False, "connection refused")
    cluster.start()
    cluster.bind("p", container(readiness_probe=Probe(period_seconds=1, failure_threshold=1)))
    eventually(lambda: cluster.get("p").status.phase == "Running")
    assert not cluster.ready("p")
    cluster.serving = lambda _target: (True, "")
    eventually(lambda: cluster.ready("p"))
    cluster.serving = lambda _target: (False, "connection refused")
    eventually(lambda: not cluster.ready("p"))
    assert "p: Unhealthy Readiness probe failed: connection refused" in cluster.told.events


def test_with_the_store_away_pods_run_on_and_are_reported_later(cluster: Cluster) -> None:
    cluster.start()
    pod = cluster.bind("p")
    eventually(lambda: cluster.ready("p"))
    cluster.store.faults.set_down(True)
    cluster.runtime.end(names(pod), 1)
    eventually(lambda: names(pod, 1) in cluster.runtime.running())
    cluster.store.faults.set_down(False)
    eventually(lambda: cluster.get("p").status.container_statuses[0].restart_count == 1 and cluster.ready("p"))


def test_with_the_engine_away_nothing_is_concluded(cluster: Cluster) -> None:
    agent = cluster.start()
    cluster.bind("p")
    eventually(lambda: cluster.ready("p"))
    before = cluster.runtime.running()
    cluster.runtime.down = True
    agent.trigger()
    eventually(lambda: agent.runner.last_error is not None)
    assert cluster.ready("p")
    cluster.runtime.down = False
    eventually(lambda: agent.runner.last_error is None)
    assert cluster.runtime.running() == before


def test_nothing_is_ended_before_the_first_complete_list(cluster: Cluster) -> None:
    cluster.start()
    cluster.bind("p")
    eventually(lambda: cluster.ready("p"))
    cluster.kill()
    cluster.store.faults.set_down(True)
    cluster.start()
    time.sleep(0.5)
    assert len(cluster.runtime.running()) == 2
    cluster.registry = Registry(cluster.store)
    cluster.store.faults.set_down(False)
    eventually(lambda: cluster.agent is not None and cluster.agent.runner.synced_once)
    assert len(cluster.runtime.running()) == 2


def test_pods_bound_elsewhere_meanwhile_are_ended(cluster: Cluster) -> None:
    cluster.start()
    pod = cluster.bind("p")
    eventually(lambda: cluster.ready("p"))
    cluster.kill()
    cluster.registry.remove(pod)
    cluster.bind("p", node="n2")
    cluster.start()
    eventually(lambda: cluster.runtime.list() == ())
    assert cluster.get("p").spec.node_name == "n2"


def test_others_changes_to_a_pod_are_not_overwritten(cluster: Cluster) -> None:
    cluster.start()
    pod = cluster.bind("p")
    eventually(lambda: cluster.ready("p"))

    def label(old: Pod) -> Pod:
        labels = {**old.metadata.labels, "who": f"{len(old.metadata.labels)}"}
        return msgspec.structs.replace(old, metadata=msgspec.structs.replace(old.metadata, labels=labels))

    for number in range(5):
        if number == 0:
            cluster.runtime.end(names(pod), 1)
        cluster.registry.modify(Pod, "default", "p", label)
    eventually(lambda: cluster.get("p").status.container_statuses[0].restart_count == 1 and cluster.ready("p"))
    assert cluster.get("p").metadata.labels == {"who": "1"}
