"""What is judged garbage (state in, verdict as text out), and that the loop carries it out on a store that fails."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from msgspec.structs import replace
from scheduler_objects import T0, at, node, pod, rc, service
from scheduler_world import Scheduler

from podlane.api.meta import namespaced_name, owner_reference
from podlane.api.types import ConfigMap, Object, ObjectMeta, Pod, ReplicationController, Secret
from podlane.errors import PodlaneError
from podlane.runtime.clock import FakeClock
from podlane.store.deletion import FOREGROUND, ORPHAN
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.garbage import Graph
from scheduler.garbage_loop import GarbageLoop
from scheduler.replication_loop import ReplicationLoop
from scheduler.view import Changes

pytestmark = pytest.mark.unit


def with_meta(obj, **changes):
    return replace(obj, metadata=replace(obj.metadata, **changes))


def owned(obj, *owners, block=True):
    references = tuple(replace(owner_reference(o), controller=False, block_owner_deletion=block) for o in owners)
    return with_meta(obj, owner_references=references)


def ending(obj, *finalizers):
    return with_meta(obj, deletion_timestamp=at(1), finalizers=finalizers)


def judge(*objects: Object) -> str:
    """Every verdict, by name."""
    graph = Graph()
    for cls in {type(o) for o in objects}:
        graph.see(cls.KIND, Changes({namespaced_name(o): o for o in objects if isinstance(o, cls)}, complete=True))
    return "\n".join(str(verdict) for key in sorted(graph.dirty) if (verdict := graph.judge(key)) is not None)


web, api = rc("web"), rc("api")


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([web, owned(pod("a"), web)], ""),
        ([pod("bare"), service()], ""),
        # gone
        ([owned(pod("a"), web)], "delete pod default/a: replicationcontroller web"),
        ([owned(service("svc"), web)], "delete service default/svc: replicationcontroller web"),
        ([with_meta(web, uid="another"), owned(pod("a"), web)], "delete pod default/a: replicationcontroller web"),
        ([ending(owned(pod("a"), web))], ""),
        # of two, one stays
        ([web, owned(pod("a"), web, api)], "update pod default/a without owner replicationcontroller api"),
        # the owner goes at last
        (
            [ending(web, FOREGROUND), owned(pod("a"), web)],
            "delete pod default/a: its owners are going",
        ),
        (
            [ending(web, FOREGROUND), owned(pod("a"), web), owned(pod("b"), owned(pod("a"), web))],
            "delete pod default/a (foreground): its owners are going",
        ),
        ([ending(web, FOREGROUND), ending(owned(pod("a"), web))], ""),
        (
            [ending(web, FOREGROUND), ending(owned(pod("a"), web, block=False))],
            "update replicationcontroller default/web without finalizer foregroundDeletion",
        ),
        (
            [ending(web, FOREGROUND), api, owned(pod("a"), web, api)],
            "update pod default/a without owner replicationcontroller web",
        ),
        # its dependents stay
        (
            [ending(web, ORPHAN), owned(pod("a"), web)],
            "update pod default/a without owner replicationcontroller web",
        ),
        ([ending(web, ORPHAN)], "update replicationcontroller default/web without finalizer orphan"),
        # whom nothing here knows
        ([ending(web, "example.com/mine"), owned(pod("a"), web)], ""),
        (
            [with_meta(pod("a"), owner_references=(replace(owner_reference(web), kind="Crew"),))],
            "",
        ),
        # an owner elsewhere is none
        (
            [web, owned(pod("a", namespace="prod"), web)],
            "delete pod prod/a: replicationcontroller web\n"
            "refuse pod prod/a: owner replicationcontroller web cannot be its",
        ),
        ([web, owned(node("n1"), web)], "refuse node n1: owner replicationcontroller web cannot be its"),
        ([node("n1"), owned(pod("a", namespace="prod"), node("n1"))], ""),
    ],
)
def test_verdicts(objects, expected):
    assert judge(*objects) == expected


def test_a_change_of_status_is_no_reason_to_look_again():
    graph = Graph()
    graph.see("Pod", Changes({"default/a": owned(pod("a"), web)}, complete=True))
    graph.see("ReplicationController", Changes({"default/web": web}, complete=True))
    graph.dirty.clear()
    graph.see("Pod", Changes({"default/a": owned(pod("a", phase="Running", version=7), web)}))
    assert graph.dirty == set()
    graph.see("ReplicationController", Changes({"default/web": None}))
    assert graph.dirty == {("Pod", "default/a")}


class World(RuleBasedStateMachine):
    """Owners of owners, deleted in every way by people who also name owners that are not there.

    Whatever the interleaving and the faults: what is left in the end is what has no owner, or one that is left.
    """

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock(T0)
        self.store = MemoryStore(self.clock)
        self.registry = Registry(self.store, clock=self.clock, rng=random.Random(0))
        self.scheduler = Scheduler(self.store, self.clock)
        self.made: list[Object] = []
        self.count = 0

    @rule(cls=st.sampled_from([Pod, ConfigMap, Secret]), which=st.integers(0, 9), second=st.integers(0, 9))
    def make(self, cls, which: int, second: int) -> None:
        self.count += 1
        owners = {o.metadata.uid: o for o in (self.nth(which), self.nth(second)) if o is not None and which}
        name = f"{cls.KIND.lower()}-{self.count}"
        made = pod(name) if cls is Pod else cls(metadata=ObjectMeta(name=name))
        self.made.append(self.calmly(lambda: self.registry.create(owned(made, *owners.values()))))

    @rule(which=st.integers(0, 9), how=st.sampled_from([None, "Background", "Foreground", "Orphan"]))
    def delete(self, which: int, how) -> None:
        if (target := self.nth(which)) is not None:
            self.calmly(lambda: self.end(target, how))

    def end(self, target: Object, how) -> None:
        with suppress(PodlaneError):
            self.registry.delete(type(target), "default", target.metadata.name, propagation=how)

    @rule(calls=st.integers(1, 3))
    def calls_fail(self, calls: int) -> None:
        self.store.faults.fail_next(calls)

    @rule(calls=st.integers(1, 2))
    def answers_are_lost(self, calls: int) -> None:
        self.store.faults.drop_after_apply(calls)

    @rule(cls=st.sampled_from([Pod, ConfigMap, Secret]), most=st.integers(1, 4))
    def mirror_takes_in(self, cls, most: int) -> None:
        self.scheduler.sources[cls].take(most)

    @rule()
    def sync(self) -> None:
        with suppress(PodlaneError):
            self.scheduler.sync(GarbageLoop)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.store.faults = type(self.store.faults)(self.store)
        for _ in range(12):
            self.scheduler.drain()
            self.scheduler.sync(GarbageLoop)
        left = self.stored()
        uids = {o.metadata.uid for o in left}
        for obj in left:
            assert obj.metadata.deletion_timestamp is None, f"{obj.metadata.name} ends for ever"
            owners = {r.uid for r in obj.metadata.owner_references}
            assert owners <= uids, f"{obj.metadata.name} is left behind"
        before = self.store.list("/").revision
        self.scheduler.drain()
        self.scheduler.sync(GarbageLoop)
        assert self.store.list("/").revision == before

    def stored(self) -> list[Object]:
        return [o for cls in (Pod, ConfigMap, Secret) for o in self.registry.list(cls).items]

    def nth(self, which: int) -> Object | None:
        return self.made[which % len(self.made)] if self.made else None

    def calmly(self, action):
        faults, self.store.faults = self.store.faults, type(self.store.faults)(self.store)
        try:
            return action()
        finally:
            self.store.faults = faults


World.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestConvergence = World.TestCase


class TestControllers:
    """A replication controller with two pods, deleted in each of the three ways."""

    @pytest.fixture
    def cluster(self):
        clock = FakeClock(T0)
        store = MemoryStore(clock)
        registry = Registry(store, clock=clock)
        registry.create(rc(replicas=2))
        scheduler = Scheduler(store, clock)
        self.settle(scheduler)
        for p in registry.list(Pod).items:
            registry.update(replace(p, spec=replace(p.spec, node_name="n1")))
        return registry, scheduler

    def settle(self, scheduler) -> None:
        for _ in range(4):
            scheduler.drain()
            scheduler.sync(ReplicationLoop, GarbageLoop)

    def end(self, cluster, how) -> str:
        """The pods, and the controller if it is there, after everything has settled."""
        registry, scheduler = cluster
        registry.delete(ReplicationController, "default", "web", propagation=how)
        self.settle(scheduler)
        pods = registry.list(Pod).items
        states = [
            "ending" if p.metadata.deletion_timestamp else "owned" if p.metadata.owner_references else "free"
            for p in pods
        ]
        return " ".join([*states, *(["rc"] if registry.list(ReplicationController).items else [])])

    def test_background(self, cluster):
        assert self.end(cluster, "Background") == "ending ending"

    def test_orphan(self, cluster):
        assert self.end(cluster, "Orphan") == "free free"

    def test_orphaned_are_also_those_that_we_do_not_see_yet(self, cluster):
        registry, scheduler = cluster
        web = registry.get(ReplicationController, "default", "web")
        registry.create(owned(pod("late"), web))
        registry.delete(ReplicationController, "default", "web", propagation="Orphan")
        scheduler.sources[ReplicationController].take(9)
        for _ in range(3):
            scheduler.sync(GarbageLoop)
        assert [rc.metadata.finalizers for rc in registry.list(ReplicationController).items] == [("orphan",)]
        self.settle(scheduler)
        assert registry.list(ReplicationController).items == ()
        assert {p.metadata.owner_references for p in registry.list(Pod).items} == {()}
        assert len(registry.list(Pod).items) == 3

    def test_foreground_waits_for_the_pods(self, cluster):
        registry, scheduler = cluster
        assert self.end(cluster, "Foreground") == "ending ending rc"
        for p in registry.list(Pod).items:
            registry.delete_many([p], grace_seconds=0)
        self.settle(scheduler)
        assert registry.list(ReplicationController).items == ()


def test_an_owner_elsewhere_is_told_once_and_the_rest_stays_as_it_is():
    clock = FakeClock(T0)
    store = MemoryStore(clock)
    registry = Registry(store, clock=clock)
    web = registry.create(rc())
    registry.create(owned(node("n1"), web))
    scheduler = Scheduler(store, clock)
    for _ in range(3):
        scheduler.drain()
        scheduler.sync(GarbageLoop)
        registry.update(registry.list(type(node("n1"))).items[0])
    (line,) = scheduler.events.lines
    assert line.startswith("Warning OwnerRefInvalidNamespace n1: ownerRef ReplicationController web")
