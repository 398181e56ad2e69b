"""The replication loop against refusals, slow watches and owners that are gone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scheduler_objects import pod, rc
from scheduler_world import KINDS, Scheduler, Stored

from podlane.api.meta import get_condition, is_pod_active
from podlane.api.types import (
    Container,
    Namespace,
    ObjectMeta,
    Pod,
    ReplicationController,
    ResourceQuota,
    ResourceQuotaSpec,
)
from podlane.errors import PodlaneError
from scheduler.garbage_loop import GarbageLoop
from scheduler.quota_loop import QuotaLoop
from scheduler.replication_loop import ReplicationLoop

pytestmark = pytest.mark.unit


class World(Stored):
    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(self.store, self.clock)

    def sync(self, *classes) -> None:
        for _ in range(3):
            self.scheduler.drain()
            self.scheduler.sync(*classes or (QuotaLoop, ReplicationLoop))

    def pods(self) -> list[Pod]:
        return list(self.registry.list(Pod).items)

    def rc(self) -> ReplicationController:
        return self.registry.get(ReplicationController, "default", "web")

    def scale(self, replicas: int) -> None:
        self.registry.modify(
            ReplicationController, "default", "web", lambda c: replace(c, spec=replace(c.spec, replicas=replicas))
        )

    def set_quota(self, pods: int) -> None:
        spec = ResourceQuotaSpec(hard={"pods": str(pods)})
        try:
            self.registry.create(ResourceQuota(metadata=ObjectMeta(name="q", namespace="default"), spec=spec))
        except PodlaneError:
            self.registry.modify(ResourceQuota, "default", "q", lambda q: replace(q, spec=spec))

    def used(self) -> str:
        return self.registry.get(ResourceQuota, "default", "q").status.used["pods"]


@pytest.fixture
def world() -> World:
    return World()


class TestQuota:
    @pytest.fixture
    def limited(self, world) -> World:
        world.set_quota(3)
        world.sync()
        world.registry.create(rc(replicas=20))
        world.sync()
        return world

    def test_what_is_refused_is_told_once_and_tried_again_later(self, limited):
        assert len(limited.pods()) == 3
        condition = get_condition(limited.rc().status.conditions, "ReplicaFailure")
        assert (condition.status, condition.reason) == ("True", "FailedCreate")
        assert "exceeded quota: q" in condition.message
        failed = [line for line in limited.scheduler.events.lines if "FailedCreate" in line]
        assert failed[0].startswith("Warning FailedCreate web: Error creating: ")
        assert limited.scheduler.wakes[-1][0] == "replication"
        before = limited.store.list("/").revision
        limited.sync()
        assert limited.store.list("/").revision == before

    def test_it_goes_on_when_there_is_more(self, limited):
        limited.set_quota(12)
        limited.sync()
        assert len(limited.pods()) == 12
        limited.set_quota(99)
        limited.sync()
        assert len(limited.pods()) == 20
        assert limited.rc().status.conditions == ()

    def test_a_pod_that_goes_makes_room(self, limited):
        victim = limited.pods()[0]
        limited.registry.delete(Pod, "default", victim.metadata.name)
        limited.sync(QuotaLoop)
        assert limited.used() == "2"
        limited.sync()
        assert len(limited.pods()) == 3
        assert limited.used() == "3"

    def test_what_others_wrote_is_put_right(self, limited):
        wrong = replace(limited.registry.get(ResourceQuota, "default", "q"))
        wrong = replace(wrong, status=replace(wrong.status, used={"pods": "77"}))
        limited.registry.update(wrong)
        limited.clock.advance(301)
        limited.sync(QuotaLoop)
        assert limited.used() == "3"

    def test_pods_are_tried_one_then_two_then_four_until_one_is_refused(self, world):
        """Of 500 wanted and 3 allowed, 7 are asked for."""
        world.set_quota(3)
        world.sync()
        world.registry.create(rc(replicas=500))
        asked: list[int] = []
        loop = world.scheduler.loops[ReplicationLoop]

        class Counting:
            def __getattr__(self, name):
                return getattr(world.registry, name)

            def create_many(self, pods):
                asked.append(len(pods))
                return world.registry.create_many(pods)

        loop.registry = Counting()
        world.scheduler.drain()
        world.scheduler.sync(ReplicationLoop)
        assert asked == [1, 2, 4]
        assert len(world.pods()) == 3

    def test_one_owners_trouble_keeps_no_other_waiting(self, limited):
        limited.registry.create(Namespace(metadata=ObjectMeta(name="shop")))
        other = rc(replicas=5)
        limited.registry.create(replace(other, metadata=replace(other.metadata, namespace="shop")))
        limited.sync()
        assert len(limited.registry.list(Pod, "shop").items) == 5


class TestAdoption:
    def orphan(self, world) -> None:
        world.registry.create(
            replace(pod("a"), spec=replace(pod("a").spec, containers=(Container(name="c", image="i"),)))
        )

    def owners(self, world) -> list[tuple]:
        return [p.metadata.owner_references for p in world.pods() if p.metadata.name == "a"]

    def test_an_owner_that_is_gone_adopts_nothing(self, world):
        world.registry.create(rc(replicas=1))
        self.orphan(world)
        world.scheduler.drain()
        world.registry.delete(ReplicationController, "default", "web")
        world.scheduler.sync(ReplicationLoop)
        assert self.owners(world) == [()]

    def test_nor_does_another_one_of_its_name(self, world):
        world.registry.create(rc(replicas=1))
        self.orphan(world)
        world.scheduler.drain()
        world.registry.delete(ReplicationController, "default", "web")
        world.registry.create(rc(replicas=1))
        world.scheduler.sync(ReplicationLoop)
        assert self.owners(world) == [()]

    def test_nor_one_that_is_being_deleted(self, world):
        world.registry.create(rc(replicas=1))
        self.orphan(world)
        world.scheduler.drain()
        world.registry.delete(ReplicationController, "default", "web", propagation="Foreground")
        world.scheduler.sync(ReplicationLoop)
        assert self.owners(world) == [()]

    def test_adopted_it_counts(self, world):
        world.registry.create(rc(replicas=1))
        self.orphan(world)
        world.sync()
        (references,) = self.owners(world)
        assert [r.uid for r in references] == [world.rc().metadata.uid]
        assert len(world.pods()) == 1


watches = st.lists(
    st.one_of(
        st.tuples(st.just("watch"), st.sampled_from(KINDS), st.integers(1, 4)),
        st.tuples(st.just("sync"), st.sampled_from([ReplicationLoop, GarbageLoop])),
        st.tuples(st.just("scale"), st.integers(0, 6)),
        st.tuples(st.just("delete"), st.integers(0, 5)),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(watches)
def test_a_slow_watch_never_makes_extra_pods(steps):
    """However late the mirror shows what the loop itself has done: no more pods than were ever wanted at a time."""
    world = World()
    world.registry.create(rc(replicas=2))
    world.scheduler.drain()
    seen = wanted = 2  # the number that the loop has seen, and the most since it saw a smaller one
    for step, *arguments in steps:
        pods = world.pods()
        if step == "watch":
            world.scheduler.sources[arguments[0]].take(arguments[1])
        elif step == "scale":
            world.scale(arguments[0])
        elif step == "delete" and pods:
            world.registry.delete(Pod, "default", pods[arguments[0] % len(pods)].metadata.name)
        elif step == "sync":
            controllers = world.scheduler.sources[ReplicationController].objects
            seen = next(iter(controllers.values())).spec.replicas
            world.scheduler.sync(*arguments)
            wanted = seen if arguments[0] is ReplicationLoop else max(seen, wanted)
        assert sum(map(is_pod_active, world.pods())) <= max(seen, wanted)
    world.sync()
    assert len(world.pods()) == world.rc().spec.replicas == world.rc().status.replicas
