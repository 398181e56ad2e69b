"""What the leader does about nodes in the store: conditions, taints, and pods told to end."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace
from scheduler_objects import T0, node, pod
from scheduler_world import Scheduler

from podlane.api.meta import is_pod_ready, utcnow_from
from podlane.api.taints import spelled
from podlane.api.types import NODE_LEASE_NAMESPACE, ClusterConfig, Condition, Lease, Node, Pod, Taint
from podlane.errors import ApplyError
from podlane.runtime.clock import FakeClock
from podlane.store import keys
from podlane.store.interface import Delete
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.nodes_loop import SILENT, NodesLoop

pytestmark = pytest.mark.unit


class World:
    """Three nodes that live, a pod on each, and a leader that has looked once."""

    def __init__(self) -> None:
        self.clock = FakeClock(T0)
        self.store = MemoryStore(self.clock)
        self.registry = Registry(self.store, clock=self.clock, rng=random.Random(5))
        self.registry.init_cluster(ClusterConfig())
        for name in ("n1", "n2", "n3"):
            self.registry.create(node(name))
            self.registry.put_node_lease(name, 0, 10)
            self.registry.create(pod(f"on-{name}", node=name, ready=True))
        self.scheduler = Scheduler(self.store, self.clock)
        self.sync()

    def sync(self, after: float = 0.0) -> int:
        """Let `after` seconds pass, let the leader see everything and act; returns how often it wrote."""
        self.clock.advance(after)
        before = self.store.list("/").revision
        self.scheduler.drain()
        self.scheduler.sync(NodesLoop)
        return self.store.list("/").revision - before

    def node(self, name: str) -> Node:
        return self.registry.get(Node, "", name)

    def pod(self, name: str) -> Pod:
        return self.registry.get(Pod, "default", name)

    def pods(self) -> list[str]:
        return [item.metadata.name for item in self.registry.list(Pod).items]

    def lose(self, name: str) -> None:
        self.store.txn([], [Delete(keys.key_for(Lease, NODE_LEASE_NAMESPACE, name))])

    def change(self, name: str, *conditions: Condition, taints: tuple[Taint, ...] = ()) -> None:
        old = self.node(name)
        status = replace(old.status, conditions=conditions or old.status.conditions)
        self.registry.update(replace(old, status=status, spec=replace(old.spec, taints=taints)))


@pytest.fixture
def world() -> World:
    return World()


def test_the_first_node_of_a_cluster_is_no_alarm_before_its_heartbeat(world):
    for name in ("n1", "n2", "n3"):
        world.lose(name)
        world.registry.delete(Node, "", name)
        world.registry.delete(Pod, "default", f"on-{name}")
    world.registry.create(node("first"))
    world.sync()
    assert [line for line in world.scheduler.events.lines if "EvictionHeld" in line] == []


def test_nothing_is_known_of_a_silent_node_and_its_taints_say_so(world):
    quiet = [Condition(type=kind, status="False") for kind in ("NetworkUnavailable", "MemoryPressure", "DiskPressure")]
    world.change("n2", *quiet, Condition(type="Ready", status="True"))
    assert world.sync() == 0
    world.lose("n2")
    assert world.sync() == 2  # conditions and taints are one write; the pod is another
    assert [(c.type, c.status) for c in world.node("n2").status.conditions] == [
        ("NetworkUnavailable", "False"),  # what netd has made is there
        ("MemoryPressure", "Unknown"),
        ("DiskPressure", "Unknown"),
        ("Ready", "Unknown"),
    ]
    assert [spelled(t) for t in world.node("n2").spec.taints] == [
        "node.kubernetes.io/unreachable:NoSchedule",
        "node.kubernetes.io/unreachable:NoExecute",
    ]
    assert all(t.time_added is not None for t in world.node("n2").spec.taints)
    assert world.sync() == 0
    assert world.sync(after=5) == 1
    assert world.pods() == ["on-n1", "on-n3"]
    # it comes back and says what it is
    world.registry.put_node_lease("n2", 0, 10)
    ready = Condition(type="Ready", status="True", message="the agent runs")
    world.change("n2", *quiet, ready, taints=world.node("n2").spec.taints)
    assert world.sync() == 1
    assert world.node("n2").spec.taints == ()
    assert world.scheduler.events.lines == [
        "Warning NodeNotReady on-n2: Node is not ready",
        "Warning NodeNotReady n2: its heartbeat ended: the node, its agent or the network to it is down",
        "Warning NodeLost on-n2: Deleted: node n2 is gone",
        "Normal NodeReady n2: the agent runs",
    ]


def test_a_node_whose_heartbeat_somebody_else_keeps_says_that(world):
    world.lose("n2")  # so it seems to the leader
    world.scheduler.silent.add("n2")
    world.sync()
    ready = {c.type: c for c in world.node("n2").status.conditions}["Ready"]
    assert (ready.status, ready.message) == ("Unknown", SILENT)


def test_a_node_under_pressure_keeps_its_pods_and_gets_no_more(world):
    world.change("n1", Condition(type="MemoryPressure", status="True"), Condition(type="Ready", status="True"))
    assert world.sync() == 1
    assert [spelled(t) for t in world.node("n1").spec.taints] == ["node.kubernetes.io/memory-pressure:NoSchedule"]
    assert world.sync(after=1000) == 0
    assert len(world.pods()) == 3


def test_a_pod_that_does_not_tolerate_an_operators_taint_is_told_to_end(world):
    world.change("n1", taints=(Taint(key="dedicated", value="db", effect="NoExecute"),))
    assert world.sync() == 1
    told = world.pod("on-n1")
    assert told.metadata.deletion_grace_period_seconds == told.spec.termination_grace_period_seconds
    assert world.sync(after=1000) == 0
    assert world.scheduler.events.lines == [
        "Warning TaintManagerEviction on-n1: Told to end: node n1 has the taint dedicated=db:NoExecute"
    ]
    # one that comes there later is told, too, though only a pod has changed
    world.registry.create(pod("late", node="n1"))
    assert world.sync() == 1
    assert world.pod("late").metadata.deletion_timestamp is not None


def test_pods_that_come_and_go_where_all_is_well_change_nothing(world):
    world.registry.create(pod("more", node="n1"))
    world.registry.delete_many([world.pod("on-n2")], grace_seconds=0)
    assert world.sync() == 0
    world.lose("n1")
    world.sync()
    world.sync(after=5)
    assert world.pods() == ["on-n3"]


def test_what_could_not_be_written_is_tried_again_though_nothing_has_changed(world):
    world.lose("n2")
    world.sync()
    world.clock.advance(5)
    world.scheduler.drain()
    world.store.faults.fail_next()
    with pytest.raises(ApplyError):
        world.scheduler.sync(NodesLoop)
    assert world.sync() == 1
    assert world.pods() == ["on-n1", "on-n3"]


def test_nothing_of_a_pod_changes_but_that_it_is_not_ready(world):
    before = world.pod("on-n2")
    world.lose("n2")
    assert world.sync(after=1) == 2
    pod, now = world.pod("on-n2"), utcnow_from(world.clock.now())
    ready = [Condition(type="Ready", status="False", last_transition_time=now)]
    assert list(pod.status.conditions) == ready
    assert replace(pod.status, conditions=before.status.conditions) == before.status
    assert pod.spec == before.spec
    assert world.sync() == 0


def test_a_pod_that_changed_meanwhile_is_looked_at_again(world):
    world.lose("n2")
    world.scheduler.drain()
    # the agent's last words, which the leader's mirror does not show yet
    old = world.pod("on-n2")
    world.registry.update(replace(old, status=replace(old.status, message="last words")))
    world.scheduler.sync(NodesLoop)
    assert is_pod_ready(world.pod("on-n2"))
    assert not any("on-n2" in line for line in world.scheduler.events.lines)
    assert world.sync() == 1
    assert not is_pod_ready(world.pod("on-n2"))
    assert world.pod("on-n2").status.message == "last words"
    world.sync()
    assert sum("on-n2" in line for line in world.scheduler.events.lines) == 1


def test_a_pod_that_could_not_be_marked_is_marked_later(world):
    world.lose("n2")
    world.sync()
    world.registry.create(pod("late", node="n2", ready=True))
    world.scheduler.drain()
    world.store.faults.fail_next()
    with pytest.raises(ApplyError):
        world.scheduler.sync(NodesLoop)
    assert is_pod_ready(world.pod("late"))
    assert world.sync() == 1
    assert not is_pod_ready(world.pod("late"))
