"""Pods whose author chose the node: what they are refused for, and that nobody else ever is."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_world import World
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from placement_clusters import clusters
from placement_objects import REQUIRED, node, pod
from scheduler_objects import at, owned_by

from podlane.api.meta import get_condition, namespaced_name
from podlane.api.types import Container, ContainerPort, Node, ObjectMeta, Pod, PodSpec, PodStatus, ResourceRequirements
from podlane.runtime.clock import FakeClock
from scheduler.agent.admission import refusal
from scheduler.agent.agent import Agent
from scheduler.agent.gate import PATIENCE, Gate
from scheduler.agent.node import Facts, Registrar
from scheduler.placement.planner import Planner
from scheduler.view import Changes

pytestmark = pytest.mark.unit

PORT = (ContainerPort(container_port=80, host_port=8080),)
SSD = {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}]}}


def said(it: Pod, on: Node, *others: Pod) -> str:
    why = refusal(it, on, others)
    return "" if why is None else f"{why[0]}: {why[1]}"


@pytest.mark.parametrize(
    ("it", "others", "why"),
    [
        (pod("p", cpu="1"), [], ""),
        (
            pod("p", cpu="64"),
            [pod("o", cpu="100m")],
            "OutOfcpu: Node didn't have enough resource: cpu, requested: 64000, used: 100, capacity: 2000",
        ),
        (
            pod("p", memory="1Gi"),
            [pod("o", memory="3584Mi", terminating=True)],
            "OutOfmemory: Node didn't have enough resource: memory, "
            "requested: 1073741824, used: 3758096384, capacity: 4294967296",
        ),
        (
            pod("p"),
            [pod("o1"), pod("o2"), pod("o3")],
            "OutOfpods: Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3",
        ),
        (pod("p"), [pod("o", cpu="5")], ""),  # the node is too full already, but the pod asks for nothing
        (pod("p", cpu="64", priority=2_000_000_000), [], ""),  # the kubelet would make room
        (
            pod("p", {"nodeSelector": {"disk": "ssd"}}),
            [],
            "NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ),
        (
            pod("p", {"affinity": {"nodeAffinity": SSD}}),
            [],
            "NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ),
        (pod("p", {"nodeSelector": {"disk": "hdd"}}), [], ""),
        (
            pod("p", ports=PORT),
            [pod("o", ports=PORT)],
            "NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        ),
        (pod("p", ports=PORT), [pod("o")], ""),
    ],
)
def test_what_a_pod_is_refused_for(it: Pod, others: list[Pod], why: str):
    assert said(it, node("n1", cpu="2", memory="4Gi", pods="3", labels={"disk": "hdd"}), *others) == why


@pytest.mark.parametrize(
    ("taints", "wants", "why"),
    [
        (
            "bad=yes:NoExecute",
            {},
            "TaintToleration: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
        ),
        ("bad=yes:NoExecute", {"tolerations": [{"key": "bad", "operator": "Exists"}]}, ""),
        ("bad=yes:NoSchedule", {}, ""),
        ("node.kubernetes.io/not-ready=:NoExecute", {}, ""),
    ],
)
def test_only_an_operators_noexecute_taint_keeps_a_pod_away(taints: str, wants: dict, why: str):
    assert said(pod("p", wants), node("n1", taints=taints)) == why


@given(clusters(), st.randoms())
def test_what_the_scheduler_places_is_let_in_whatever_comes_first(cluster, random):
    members, running, _, waiting = cluster
    planner = Planner()
    planner.update(
        pods=Changes({namespaced_name(p): p for p in (*running, *waiting)}, complete=True),
        nodes=Changes({n.metadata.name: n for n in members}, complete=True),
        alive=[n.metadata.name for n in members],
    )
    placed = [(b.node, b.pod) for b in planner.plan().bind]
    random.shuffle(placed)
    by_name = {n.metadata.name: n for n in members}
    there = {name: [p for p in running if p.spec.node_name == name] for name in by_name}
    for name, it in placed:
        assert said(it, by_name[name], *there[name]) == ""
        there[name].append(it)


def test_a_refusal_that_is_not_written_yet_stays():
    clock = FakeClock()
    gate = Gate(lambda: None, lambda _seconds: None, clock)
    gate.read(node("n1", cpu="2"), clock.monotonic())
    late = replace(pod("b", cpu="2", node="n1"), status=PodStatus())
    there = replace(pod("a", cpu="2", node="n1"), status=PodStatus(phase="Running", start_time=at(0)))
    uids = {p.metadata.uid: p for p in (there, late)}
    assert gate.look(uids, ()) == uids
    assert list(gate.rejected()) == [late.metadata.uid]
    assert gate.look({late.metadata.uid: late}, ()) == {late.metadata.uid: late}  # there is room now
    assert list(gate.rejected()) == [late.metadata.uid]
    assert gate.look({}, ()) == {}
    assert gate.rejected() == {}


# --- in the agent's loop ------------------------------------------------------------------


class Node1(World):
    """An agent with its Node, which is read when the agent asks for it, if `reads`."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.cpu = "2"
        self.reads = True
        self.start()

    def start(self) -> Agent:
        agent = super().start()
        agent.checks_pods = True
        self.registrar = Registrar(
            Facts(name="n1", ip="192.168.64.11", port=0, capacity={"cpu": self.cpu, "memory": "4Gi", "pods": "110"}),
            registry=self.registry,
            runtime=self.runtime,
            network=agent.network,
            clock=self.clock,
            on_read=agent.node_read,
        )
        agent.on_node_change = self.registrar.runner.trigger
        agent.on_node_asked = self.registrar.changed
        return agent

    def step(self) -> float:
        return min(super().step(), self.registrar.runner.step() if self.reads else PATIENCE)

    def author(self, name: str, cpu: str = "1", *, owner: str = "", **spec) -> None:
        """Make a pod that names its node itself."""
        self.clock.advance(1)
        asks = ResourceRequirements(requests={"cpu": cpu})
        ct = Container(name="web", image="web:1", image_pull_policy="IfNotPresent", resources=asks)
        meta = ObjectMeta(name=name, namespace="default", owner_references=owned_by(owner) if owner else ())
        spec = {"containers": (ct,), "node_name": "n1", **spec}
        self.registry.create(Pod(metadata=meta, spec=PodSpec(**spec)))

    def label(self, **labels: str) -> None:
        def change(it: Node) -> Node:
            return replace(it, metadata=replace(it.metadata, labels={**it.metadata.labels, **labels}))

        self.registry.modify(Node, "", "n1", change)

    def restart(self) -> None:
        self.kill()
        self.start()

    def told_of(self, name: str) -> str:
        status = self.get(name).status
        return f"{status.phase} {status.reason}".strip()


def test_a_pod_that_does_not_fit_is_failed_for_good_before_anything_is_begun(tmp_path: Path):
    world = Node1(tmp_path)
    world.author("a")
    world.author("b", "1500m", init_containers=(Container(name="i", image="web:1"),))
    world.run(3)
    assert world.ready("a")
    status = world.get("b").status
    why = "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000"
    assert (status.phase, status.reason, status.message) == ("Failed", "OutOfcpu", f"Pod was rejected: {why}")
    assert not status.container_statuses
    assert get_condition(status.conditions, "Ready") is None
    assert [e for e in world.told.events if e.startswith("b: ")] == [f"b: OutOfcpu {why}"]
    version = world.get("b").metadata.resource_version

    world.delete("a", grace=0)  # there is room now, too late
    world.run(3)
    world.restart()
    world.run(10)
    assert world.get("b").metadata.resource_version == version
    assert not world.runtime.running()
    world.delete("b")
    world.run(1)
    assert world.gone("b")


def test_what_was_let_in_stays_whatever_becomes_of_the_node(tmp_path: Path):
    world = Node1(tmp_path)
    world.author("a")
    world.author("slow", containers=(Container(name="web", image="away:1"),))  # its image never comes
    world.run(3)
    world.cpu = "500m"
    world.restart()
    world.run(10)
    assert world.ready("a")
    assert world.told_of("slow") == "Pending"
    world.author("b")
    world.run(3)
    assert world.told_of("b") == "Failed OutOfcpu"


def test_what_the_scheduler_bound_is_not_asked(tmp_path: Path):
    world = Node1(tmp_path)
    world.author("a", "2")
    world.run(3)
    world.bind("s", Container(name="web", image="web:1", resources=ResourceRequirements(requests={"cpu": "64"})))
    world.run(3)
    assert world.ready("a", "s")


def test_a_label_set_just_before_the_pod_counts(tmp_path: Path):
    world = Node1(tmp_path)
    world.run(2)  # the Node was read without it
    world.label(disk="ssd")
    world.author("p", node_selector={"disk": "ssd"})
    world.author("q", node_selector={"disk": "hdd"})
    world.run(2)
    assert world.ready("p")
    assert world.told_of("q") == "Failed NodeAffinity"


def test_without_knowledge_of_the_node_a_pod_is_let_in(tmp_path: Path):
    world = Node1(tmp_path)
    world.reads = False
    world.agent.on_node_change = world.write_node
    world.author("p", "64")
    world.run(PATIENCE - 1)
    assert world.get("p").status.start_time is None
    world.run(3)
    assert world.ready("p")


def test_a_controllers_pods_are_refused_ever_later(tmp_path: Path):
    world = Node1(tmp_path)
    begun = world.clock.now()
    for number in range(5):
        world.author(f"p{number}", "64", owner="web")
        world.until(lambda number=number: world.told_of(f"p{number}") == "Failed OutOfcpu")
    assert world.clock.now() - begun >= 1 + 2 + 4 + 8
