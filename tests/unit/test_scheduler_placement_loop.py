"""Placement carried out on a store: conditions, nominations, victims and events, also when a write is lost."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace
from placement_objects import container, near, node, pod
from scheduler_objects import T0
from scheduler_world import Scheduler

from podlane.api.meta import get_condition
from podlane.api.types import ClusterConfig, Namespace, ObjectMeta, Pod, PriorityClass
from podlane.errors import ApplyError, StoreUnavailable
from podlane.runtime.clock import FakeClock
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.placement_loop import PlacementLoop

pytestmark = pytest.mark.unit


class Store(MemoryStore):
    """Fails one write, the one after `good` others."""

    good = -1

    def txn(self, compare, then, otherwise=(), **options):
        if then:
            self.good -= 1
            if self.good == -1:
                raise StoreUnavailable("txn: the store is away")
        return super().txn(compare, then, otherwise, **options)


class World:
    def __init__(self) -> None:
        self.clock = FakeClock(T0)
        self.store = Store(self.clock)
        self.registry = Registry(self.store, clock=self.clock, rng=random.Random(5))
        self.registry.init_cluster(ClusterConfig())
        for value in (100, 1000):
            self.registry.create(PriorityClass(metadata=ObjectMeta(name=f"p{value}"), value=value))

    def start(self, *objects) -> None:
        for obj in objects:
            self.registry.create(obj)
            if not obj.NAMESPACED and obj.KIND == "Node":
                self.registry.put_node_lease(obj.metadata.name, 0, 10)
        self.scheduler = Scheduler(self.store, self.clock)

    def sync(self) -> list[str]:
        """Returns the events of it."""
        self.scheduler.drain()
        before = len(self.scheduler.events.lines)
        self.scheduler.sync(PlacementLoop)
        return self.scheduler.events.lines[before:]

    def pod(self, name: str) -> Pod:
        return self.registry.get(Pod, "default", name)


@pytest.fixture
def world() -> World:
    return World()


def sized(name: str, memory: str, priority: int = 0, **options) -> Pod:
    made = pod(name, {"containers": [container(memory=memory, name="main", image="web:1")]}, **options)
    spec = replace(made.spec, priority=None, priority_class_name=f"p{priority}" if priority else "")
    return replace(made, spec=spec)


VICTIM = sized("low", "8Gi", node="n1")
URGENT = sized("urgent", "8Gi", priority=100)
WHY = "0/1 nodes fit: 1 too little memory (need 8Gi, 0 free)"


class TestPreemption:
    def test_the_victim_is_told_and_has_its_grace_and_the_room_is_kept(self, world):
        world.start(node("n1"), VICTIM, URGENT)
        assert world.sync() == [
            f"Warning FailedScheduling urgent: {WHY}",
            "Normal Preempted low: Preempted by pod default/urgent on node n1",
        ]
        victim, urgent = world.pod("low"), world.pod("urgent")
        target = get_condition(victim.status.conditions, "DisruptionTarget")
        assert (target.status, target.reason) == ("True", "PreemptionByScheduler")
        assert victim.metadata.deletion_grace_period_seconds == 30
        assert urgent.status.nominated_node_name == "n1"
        world.registry.create(sized("sneaky", "1Gi"))
        world.sync()
        world.registry.delete(Pod, "default", "low", grace_seconds=0)
        assert "Normal Scheduled urgent: Successfully assigned default/urgent to n1" in world.sync()
        assert world.pod("sneaky").spec.node_name == ""
        assert world.pod("urgent").status.nominated_node_name == ""

    def test_nothing_more_is_written_while_the_victim_ends(self, world):
        world.start(node("n1"), VICTIM, URGENT)
        world.sync()
        world.sync()
        revision = world.store.list("/").revision
        for _ in range(3):
            assert world.sync() == []
        assert world.store.list("/").revision == revision

    @pytest.mark.parametrize("writes_before", [0, 1, 2])
    def test_a_store_that_fails_at_any_step_changes_nothing_about_the_outcome(self, world, writes_before):
        world.start(node("n1"), VICTIM, URGENT)
        world.scheduler.drain()
        world.store.good = writes_before
        with pytest.raises(ApplyError):
            world.scheduler.sync(PlacementLoop)
        if world.pod("low").metadata.deletion_timestamp is not None:
            assert world.pod("urgent").status.nominated_node_name == "n1"
        world.sync()
        assert world.pod("low").metadata.deletion_timestamp is not None
        assert world.pod("urgent").status.nominated_node_name == "n1"

    def test_a_nomination_that_came_to_nothing_is_taken_back(self, world):
        world.start(node("n1"), sized("better", "8Gi", node="n1", priority=1000))
        stale = replace(URGENT, status=replace(URGENT.status, nominated_node_name="n1"))
        world.registry.create(stale)
        world.sync()
        assert world.pod("urgent").status.nominated_node_name == ""


def test_thousands_that_fit_nowhere_are_told_in_few_transactions(world):
    world.start(node("n1", memory="1Gi"), *(sized(f"p{i:03}", "2Gi") for i in range(150)))
    before = world.store.list("/").revision
    events = world.sync()
    assert len(events) == 150
    assert world.store.list("/").revision - before <= 3


def test_a_namespace_that_comes_to_carry_a_label_lets_pods_near(world):
    wanted = near("db", "kubernetes.io/hostname", namespaceSelector={"matchLabels": {"stage": "prod"}})
    prod = Namespace(metadata=ObjectMeta(name="prod"))
    world.start(node("n1"), prod, pod("x", app="db", node="n1", namespace="prod"), pod("p", wanted))
    assert "without pods to be near to" in world.sync()[0]
    there = world.registry.get(Namespace, "", "prod")
    world.registry.update(replace(there, metadata=replace(there.metadata, labels={"stage": "prod"})))
    world.sync()
    assert world.pod("p").spec.node_name == "n1"


def test_describe_shows_why(world):
    world.start(node("n1", taints="dedicated=gpu:NoSchedule"), pod("p"))
    world.sync()
    condition = get_condition(world.pod("p").status.conditions, "PodScheduled")
    assert (condition.reason, condition.message) == (
        "Unschedulable",
        "0/1 nodes fit: 1 tainted dedicated=gpu:NoSchedule",
    )
