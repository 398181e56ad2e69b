from __future__ import annotations

import pytest
from msgspec.structs import replace
from scheduler_objects import node, pod, rc, service
from scheduler_world import Scheduler, Stored

from podlane.api.meta import get_condition
from podlane.api.types import (
    NODE_LEASE_NAMESPACE,
    ZONE_LABEL,
    EndpointSlice,
    Lease,
    Node,
    Pod,
    ReplicationController,
    Service,
)
from podlane.errors import ApplyError, Fenced
from podlane.store import keys
from podlane.store.interface import Compare, Delete
from scheduler.endpoints_loop import EndpointsLoop
from scheduler.garbage_loop import GarbageLoop
from scheduler.nodes_loop import NodesLoop
from scheduler.placement_loop import PlacementLoop
from scheduler.replication_loop import ReplicationLoop

pytestmark = pytest.mark.unit


class World(Stored):
    def __init__(self) -> None:
        super().__init__()
        self._scheduler: Scheduler | None = None

    @property
    def scheduler(self) -> Scheduler:
        """The leader; it begins when it is first asked for."""
        if self._scheduler is None:
            self._scheduler = Scheduler(self.store, self.clock)
        return self._scheduler

    def join(self, *names: str, **options) -> None:
        for name in names:
            self.registry.create(node(name, **options))
            self.registry.put_node_lease(name, 0, 10)

    def lose(self, name: str) -> None:
        self.store.txn([], [Delete(keys.key_for(Lease, NODE_LEASE_NAMESPACE, name))])

    def pods(self) -> list[Pod]:
        return list(self.registry.list(Pod).items)

    def sync(self, *classes) -> None:
        """As it is with a watch that keeps up."""
        self.scheduler.drain()
        self.scheduler.sync(*classes)

    def ready(self, name: str) -> None:
        """Its node reports it ready."""
        old = self.registry.get(Pod, "default", name)
        status = pod(name, ready=True, ip="10.4.1.9").status
        self.registry.update(replace(old, status=status))


@pytest.fixture
def world() -> World:
    return World()


def test_from_a_controller_to_endpoints(world):
    world.join("n1", "n2", "n3")
    world.registry.create(rc(replicas=3))
    world.registry.create(service(cluster_ip="None"))
    world.sync()
    assert sorted(p.spec.node_name for p in world.pods()) == ["n1", "n2", "n3"]
    for p in world.pods():
        world.ready(p.metadata.name)
    world.sync()
    (item,) = world.registry.list(EndpointSlice).items
    assert len(item.endpoints) == 3
    status = world.registry.get(ReplicationController, "default", "web").status
    assert (status.replicas, status.ready_replicas, status.observed_generation) == (3, 3, 1)
    assert world.scheduler.events.lines[0].startswith("Normal SuccessfulCreate web: Created pod: web-")


def test_the_zones_of_nodes_come_to_endpoints_and_follow_their_labels(world):
    world.join("n1", labels={ZONE_LABEL: "east"})
    world.registry.create(rc(replicas=1))
    world.registry.create(service(cluster_ip="None", traffic_distribution="PreferClose"))
    world.sync()
    world.ready(world.pods()[0].metadata.name)
    for zone in ("east", "west"):
        member = world.registry.get(Node, "", "n1")
        world.registry.update(replace(member, metadata=replace(member.metadata, labels={ZONE_LABEL: zone})))
        world.sync()
        (item,) = world.registry.list(EndpointSlice).items
        (endpoint,) = item.endpoints
        assert (endpoint.zone, [z.name for z in endpoint.hints.for_zones]) == (zone, [zone])


def test_quiet_means_no_writes(world):
    world.join("n1")
    world.registry.create(rc(replicas=2))
    world.registry.create(service(cluster_ip="None"))
    for _ in range(3):
        world.sync()
    before = world.store.list("/").revision
    for _ in range(3):
        world.sync()
    assert world.store.list("/").revision == before


class TestReplication:
    def test_a_mirror_that_shows_nothing_makes_no_extra_pods(self, world):
        world.registry.create(rc(replicas=3))
        for _ in range(4):
            world.scheduler.sync(ReplicationLoop)
        assert len(world.pods()) == 3

    def test_a_lost_answer_makes_no_extra_pods(self, world):
        world.registry.create(rc(replicas=3))
        world.scheduler.drain()
        world.store.faults.drop_after_apply(1)
        with pytest.raises(ApplyError, match="answer lost"):
            world.scheduler.sync(ReplicationLoop)
        world.scheduler.sync(ReplicationLoop)
        assert len(world.pods()) == 3

    def test_a_lost_answer_to_a_deletion_deletes_no_other(self, world):
        world.registry.create(rc(replicas=2))
        world.sync(ReplicationLoop)
        world.registry.modify(
            ReplicationController, "default", "web", lambda c: replace(c, spec=replace(c.spec, replicas=1))
        )
        world.scheduler.drain()
        world.store.faults.drop_after_apply(1)
        with pytest.raises(ApplyError):
            world.scheduler.sync(ReplicationLoop)
        world.scheduler.sync(ReplicationLoop)
        assert len(world.pods()) == 1

    def test_the_pods_of_a_deleted_controller_go(self, world):
        world.registry.create(rc(replicas=2))
        world.sync(ReplicationLoop)
        world.registry.delete(ReplicationController, "default", "web")
        world.sync(ReplicationLoop, GarbageLoop)
        assert world.pods() == []

    def test_not_seeing_the_controller_is_not_its_end(self, world):
        world.scheduler.sync(ReplicationLoop)
        controller = world.registry.create(rc(replicas=1))
        owned = pod("web-a", owner="web")
        reference = replace(owned.metadata.owner_references[0], uid=controller.metadata.uid)
        world.registry.create(replace(owned, metadata=replace(owned.metadata, owner_references=(reference,))))
        world.scheduler.sources[Pod].take(9)
        world.scheduler.sync(ReplicationLoop, GarbageLoop)
        assert len(world.pods()) == 1

    def test_a_deposed_leader_is_fenced(self, world):
        world.registry.create(rc(replicas=1))
        deposed = Scheduler(world.store, world.clock, Compare.created_at(keys.ELECTION_SCHEDULER, 1))
        with pytest.raises(Fenced):
            deposed.sync(ReplicationLoop)
        assert world.pods() == []


class TestPlacement:
    def test_a_lost_answer_does_not_give_the_room_away_twice(self, world):
        world.join("n1", pods="1")
        world.registry.create(pod("z"))
        world.scheduler.drain()
        world.store.faults.drop_after_apply(1)
        with pytest.raises(ApplyError):
            world.scheduler.sync(PlacementLoop)
        # the mirror shows a newcomer, whose turn comes first, before it shows where the other one went
        world.scheduler.sources[Pod].objects["default/a"] = world.registry.create(pod("a"))
        world.scheduler.sync(PlacementLoop)
        assert {p.metadata.name: p.spec.node_name for p in world.pods()} == {"a": "", "z": "n1"}

    def test_unschedulable_says_why_and_is_tried_again_when_there_is_room(self, world):
        world.join("n1", memory="1Gi")
        world.registry.create(pod("big", memory="2Gi"))
        world.sync(PlacementLoop)
        why = "0/1 nodes fit: 1 too little memory (need 2Gi, 1Gi free)"
        condition = get_condition(world.pods()[0].status.conditions, "PodScheduled")
        assert (condition.status, condition.reason, condition.message) == ("False", "Unschedulable", why)
        assert world.scheduler.events.lines == [f"Warning FailedScheduling big: {why}"]
        world.join("n2")
        world.sync(PlacementLoop)
        assert world.pods()[0].spec.node_name == "n2"

    def test_a_message_is_not_rewritten_for_every_number(self, world):
        world.join("n1", memory="4Gi")
        world.registry.create(pod("big", memory="8Gi"))
        world.sync(PlacementLoop)
        world.registry.create(pod("small", memory="1Gi"))
        world.sync(PlacementLoop)
        world.sync(PlacementLoop)
        assert len(world.scheduler.events.lines) == 2  # the first message and small's binding
        assert world.scheduler.wakes[-1] == ("placement", 5.0)
        world.clock.advance(5)
        world.sync(PlacementLoop)
        assert world.scheduler.events.lines[-1].endswith("(need 8Gi, 3Gi free)")

    def test_a_pod_that_changed_meanwhile_is_left_for_the_next_sync(self, world):
        world.join("n1")
        made = world.registry.create(pod("a"))
        world.scheduler.drain()
        world.registry.update(replace(made, metadata=replace(made.metadata, labels={"app": "other"})))
        world.scheduler.sync(PlacementLoop)
        assert world.pods()[0].spec.node_name == ""
        world.sync(PlacementLoop)
        assert world.pods()[0].spec.node_name == "n1"


class TestNodes:
    def place_one(self, world) -> None:
        world.join("n1", "n2", "n3")
        world.registry.create(rc(replicas=3))
        world.registry.create(service(cluster_ip="None"))
        world.sync()
        for p in world.pods():
            world.ready(p.metadata.name)
        world.sync()

    def test_a_dead_node_loses_endpoints_at_once_and_pods_after_the_grace(self, world):
        self.place_one(world)
        world.lose("n2")
        world.sync()
        ready = get_condition(world.registry.get(Node, "", "n2").status.conditions, "Ready")
        assert (ready.status, ready.reason) == ("Unknown", "NodeStatusUnknown")
        (item,) = world.registry.list(EndpointSlice).items
        assert sorted(e.node_name for e in item.endpoints) == ["n1", "n3"]
        assert len(world.pods()) == 3
        world.clock.advance(5)
        world.sync(NodesLoop)
        assert sorted(p.spec.node_name for p in world.pods()) == ["n1", "n3"]
        world.sync()
        assert {p.spec.node_name for p in world.pods()} == {"n1", "n3"}
        assert len(world.pods()) == 3
        assert any("NodeLost" in line for line in world.scheduler.events.lines)

    def test_most_nodes_gone_is_an_error_and_no_eviction(self, world):
        self.place_one(world)
        world.lose("n2")
        world.lose("n3")
        world.sync()
        world.clock.advance(100)
        world.sync()
        assert sorted(p.spec.node_name for p in world.pods()) == ["n1", "n2", "n3"]
        held = [line for line in world.scheduler.events.lines if "EvictionHeld" in line]
        assert held == [
            f"Warning EvictionHeld {n}: 2 of 3 nodes are gone: no pod is given up until most are back"
            for n in ("n2", "n3")
        ]

    def test_pods_of_a_node_that_was_removed(self, world):
        world.join("n1")
        world.registry.create(replace(pod("a"), spec=replace(pod("a").spec, node_name="n9")))
        world.sync(NodesLoop)
        world.clock.advance(5)
        world.sync(NodesLoop)
        assert world.pods() == []

    def test_a_node_we_have_not_seen_yet_is_not_missing(self, world):
        world.scheduler.sync(NodesLoop)
        world.registry.create(node("n9"))
        world.registry.create(replace(pod("a"), spec=replace(pod("a").spec, node_name="n9")))
        world.scheduler.sources[Pod].take(9)
        world.scheduler.sync(NodesLoop)
        world.clock.advance(50)
        world.scheduler.sync(NodesLoop)
        assert len(world.pods()) == 1


def test_slices_of_a_deleted_service_go(world):
    world.join("n1")
    world.registry.create(service(cluster_ip="None"))
    world.registry.create(replace(pod("a"), spec=replace(pod("a").spec, node_name="n1")))
    world.ready("a")
    world.sync(EndpointsLoop)
    assert len(world.registry.list(EndpointSlice).items) == 1
    world.registry.delete(Service, "default", "web")
    world.sync(EndpointsLoop)
    assert world.registry.list(EndpointSlice).items == ()
