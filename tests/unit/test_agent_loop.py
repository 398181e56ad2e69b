"""The whole agent, with its threads, on an engine and a store in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from agent_objects import IMAGE, SPEC, Told, container, name

from podlane.api.meta import get_condition, is_pod_ready, reference_to
from podlane.api.types import (
    SERVICE_NAME_LABEL,
    ClusterConfig,
    Container,
    Endpoint,
    EndpointConditions,
    EndpointSlice,
    ObjectMeta,
    Pod,
    PodSpec,
    Probe,
    Service,
    ServiceSpec,
    TCPSocketAction,
)
from podlane.errors import NotFound
from podlane.runtime.clock import SystemClock
from podlane.store import proxies
from podlane.store.bulk import Binding, bind
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.agent.agent import Agent
from scheduler.agent.containers import INFRA
from scheduler.agent.drain import Drainer
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.model import Drain
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
        self.drain_timeout = 10.0
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
            drain_timeout=self.drain_timeout,
            check=self._check,
        )
        bindings = self.registry.bindings("n1", agent.trigger)
        agent.bindings = bindings
        agent.drains = drains = Drainer(self.registry, agent.trigger, agent.clock)
        for body in (
            bindings.run,
            drains.run,
            agent.follow_events,
            agent.follow_network,
            agent.prober.run,
            agent.runner.run,
        ):
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

    def bind(
        self,
        pod_name: str,
        *containers: Container,
        node: str = "n1",
        labels: dict[str, str] | None = None,
        **spec: Any,
    ) -> Pod:
        pod = self.registry.create(
            Pod(
                metadata=ObjectMeta(name=pod_name, namespace="default", labels=labels or {}),
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

    def serve(self, pod_name: str, *, terminating: bool = False) -> int:
        """Be the endpoints controller for a service of one pod; returns the slice's revision."""
        try:
            self.registry.get(Service, "default", "web")
        except NotFound:
            self.registry.init_cluster(ClusterConfig(service_cidr="10.96.0.0/24"))
            meta = ObjectMeta(name="web", namespace="default")
            self.registry.create(Service(metadata=meta, spec=ServiceSpec(selector={"app": "web"})))
        pod = self.get(pod_name)
        endpoint = Endpoint(
            addresses=(pod.status.pod_ip,),
            conditions=EndpointConditions(ready=not terminating, serving=True, terminating=terminating),
            target_ref=reference_to(pod),
        )
        meta = ObjectMeta(name="web-1", namespace="default", labels={SERVICE_NAME_LABEL: "web"})
        item = EndpointSlice(metadata=meta, endpoints=(endpoint,))
        written = self.registry.update(item) if terminating else self.registry.create(item)
        return int(written.metadata.resource_version)

    def told_to_end(self, pod_name: str) -> bool:
        return any(text.startswith(f"{pod_name}: Killing") for text in self.told.events)

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


def drains_of(agent: Agent) -> dict[str, Drain]:
    assert isinstance(agent.drains, Drainer)
    return agent.drains._drains


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


def test_pods_get_ipv6_when_the_network_does_and_keep_running(cluster: Cluster) -> None:
    agent = cluster.start()
    cluster.bind("p")
    eventually(lambda: cluster.ready("p"))
    assert [each.ip for each in cluster.get("p").status.pod_ips] == ["10.5.3.2"]
    running = cluster.runtime.running()
    ipv6 = "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:3::1/64\n"
    cluster.subnet_file.write_text(SUBNET_ENV + ipv6)
    agent.trigger()
    both = ["10.5.3.2", "fd00:5:0:3::2"]
    eventually(lambda: [each.ip for each in cluster.get("p").status.pod_ips] == both and cluster.ready("p"))
    assert cluster.runtime.running() == running
    cluster.kill()
    cluster.subnet_file.unlink()  # netd restarts too
    before = cluster.get("p")
    agent = cluster.start()
    eventually(lambda: agent.runner.synced_once)
    time.sleep(0.3)
    assert cluster.get("p") == before


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


def test_a_deleted_pod_serves_on_until_no_node_sends_to_it(cluster: Cluster) -> None:
    agent = cluster.start()
    cluster.bind("p", labels={"app": "web"})
    eventually(lambda: cluster.ready("p"))
    for node in ("n1", "n2"):
        cluster.registry.put_node_lease(node, cluster.store.grant(60), 60)
        proxies.acknowledge(cluster.store, node, cluster.serve("p") if node == "n1" else 1)
    cluster.registry.delete(Pod, "default", "p")
    out = cluster.serve("p", terminating=True)
    proxies.acknowledge(cluster.store, "n1", out)
    cluster.bind("q")  # which nothing keeps waiting
    eventually(lambda: cluster.ready("q"))
    eventually(lambda: drains_of(agent)[cluster.get("p").metadata.uid].waits_for == "proxyd on n2")
    assert cluster.ready("p")
    assert not cluster.told_to_end("p")
    proxies.acknowledge(cluster.store, "n2", out)
    eventually(lambda: cluster.gone("p"))
    assert cluster.told_to_end("p")


def test_who_does_not_acknowledge_is_named_once_and_the_pod_ends(cluster: Cluster) -> None:
    cluster.drain_timeout = 0.5
    cluster.start()
    cluster.bind("p", labels={"app": "web"})
    eventually(lambda: cluster.ready("p"))
    cluster.registry.put_node_lease("n2", cluster.store.grant(60), 60)
    proxies.acknowledge(cluster.store, "n2", 1)
    cluster.serve("p")
    with structlog.testing.capture_logs() as logs:
        cluster.registry.delete(Pod, "default", "p")
        cluster.serve("p", terminating=True)
        eventually(lambda: cluster.gone("p"))
    warnings = [(log["event"], log.get("not_acknowledged")) for log in logs if log["log_level"] == "warning"]
    assert warnings == [("ended undrained", "proxyd on n2")]


def test_with_the_store_away_a_pod_ends_at_the_limit(cluster: Cluster) -> None:
    cluster.drain_timeout = 2.0
    agent = cluster.start()
    pod = cluster.bind("p", labels={"app": "web"})
    eventually(lambda: cluster.ready("p"))
    cluster.serve("p")
    cluster.registry.delete(Pod, "default", "p")
    eventually(lambda: pod.metadata.uid in drains_of(agent))
    cluster.store.faults.set_down(True)
    assert names(pod) in cluster.runtime.running()
    eventually(lambda: names(pod) not in cluster.runtime.running())
    cluster.store.faults.set_down(False)
    eventually(lambda: cluster.gone("p"))


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
