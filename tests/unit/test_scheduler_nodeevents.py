"""Which events of nodes the leader tells, in whose name, and how many."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace
from scheduler_objects import T0, node, pod, service
from scheduler_world import Scheduler

from podlane.api.codec import encode
from podlane.api.meta import reference_to
from podlane.api.types import (
    ClusterConfig,
    Event,
    EventSource,
    Node,
    Object,
    ObjectMeta,
    ObjectReference,
    Pod,
    PodReport,
    Service,
)
from podlane.errors import Fenced
from podlane.runtime.clock import FakeClock
from podlane.store import keys
from podlane.store.events import LIFETIME, SHARED, EventRecorder
from podlane.store.interface import Compare, Put
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.events_loop import EventsLoop
from scheduler.nodeevents import LARGEST, LONGEST_MESSAGE, MOST, RATE, Allowance, refusal

pytestmark = pytest.mark.unit


class World:
    """Two nodes with a pod each, a service, and a leader."""

    def __init__(self) -> None:
        self.clock = FakeClock(T0)
        self.store = MemoryStore(self.clock)
        self.registry = Registry(self.store, clock=self.clock, rng=random.Random(5))
        self.registry.init_cluster(ClusterConfig())
        self.registry.create(node("n1"))
        self.mine = self.registry.create(pod("mine", node="n1"))
        self.theirs = self.registry.create(pod("theirs", node="n2"))
        self.registry.create(service("web"))
        self.scheduler = Scheduler(self.store, self.clock)

    def recorder(self, component: str = "agent") -> EventRecorder:
        return EventRecorder.of_node(self.registry, component, "n1", self.clock, threaded=False)

    def tell(self, about: Object | ObjectReference, component: str = "agent", times: int = 1) -> None:
        recorder = self.recorder(component)
        for number in range(times):
            recorder.event(about, "Normal", "Happened", f"for the {number}. time")
            recorder.write_waiting()

    def sync(self) -> None:
        """All that the leader has to do."""
        self.scheduler.drain()
        self.scheduler.wakes.append(("events", 0.0))
        while self.scheduler.wakes:
            self.scheduler.wakes.clear()
            self.scheduler.sync(EventsLoop)
            self.scheduler.drain()

    def told(self) -> list[str]:
        events = self.registry.list(Event).items
        return [f"{e.source.component}@{e.source.host} {e.involved_object.name} {e.count}" for e in events]

    def reported(self) -> int:
        return len(self.store.list(keys.REPORTS).items)


@pytest.fixture
def world() -> World:
    return World()


def test_an_event_is_told_and_leaves_the_outbox(world: World) -> None:
    world.tell(world.mine)
    world.tell(world.registry.get(Node, "", "n1"))
    world.tell(world.registry.get(Service, "default", "web"), "proxyd")
    assert world.reported() == 3
    world.sync()
    assert sorted(world.told()) == ["agent@n1 mine 1", "agent@n1 n1 1", "proxyd@n1 web 1"]
    assert world.reported() == 0
    world.clock.advance(LIFETIME + SHARED + 1)
    assert world.told() == []


def test_what_happens_again_is_counted(world: World) -> None:
    recorder = world.recorder()
    for _ in range(3):
        recorder.event(world.mine, "Warning", "BackOff", "again")
        recorder.write_waiting()
        world.sync()
    assert world.told() == ["agent@n1 mine 3"]


def test_of_a_pod_that_is_gone_and_of_one_not_seen_yet(world: World) -> None:
    world.sync()
    world.registry.delete(Pod, "default", "mine", grace_seconds=0)
    world.sync()
    world.tell(world.mine)
    late = world.registry.create(pod("late", node="n1"))
    world.tell(late)
    world.scheduler.sources[PodReport].take(9)
    world.scheduler.sync(EventsLoop)
    assert sorted(world.told()) == ["agent@n1 late 1", "agent@n1 mine 1"]


def test_a_node_tells_of_its_own_only(world: World) -> None:
    world.tell(world.theirs)
    world.tell(ObjectReference(kind="Node", name="n2", uid="x"))
    world.tell(replace(reference_to(world.mine), uid="another"))
    world.tell(ObjectReference(kind="Pod", name="none", namespace="default", uid="none"))
    world.tell(world.registry.get(Service, "default", "web"))
    world.tell(world.mine, "netd")
    assert world.reported() == 6
    world.sync()
    assert (world.told(), world.reported()) == ([], 0)


def test_who_says_it_and_where_it_is_kept_are_not_the_nodes_to_say(world: World) -> None:
    lie = Event(
        metadata=ObjectMeta(name="x", namespace="kube-system", labels={"a": "b"}, finalizers=("example.com/x",)),
        involved_object=reference_to(world.mine),
        source=EventSource(component="scheduler", host="n9"),
        message="m" * 5000,
    )
    world.store.txn([], [Put(keys.event_report_key("n1", "agent", "default", "mine.1"), encode(lie))])
    world.store.txn([], [Put(keys.event_report_key("n1", "agent", "default", "theirs.1"), encode(lie))])
    world.store.txn([], [Put(keys.event_report_key("n1", "agent", "other", "mine.2"), encode(lie))])
    world.store.txn([], [Put(keys.event_report_key("n1", "agent", "default", "mine.3"), b"{")])
    huge = replace(lie, message="m" * LARGEST)
    world.store.txn([], [Put(keys.event_report_key("n1", "agent", "default", "mine.4"), encode(huge))])
    world.sync()
    (event,) = world.registry.list(Event).items
    assert (event.metadata.namespace, event.metadata.name, event.metadata.labels) == ("default", "mine.1", {})
    assert (event.metadata.finalizers, event.source) == ((), EventSource(component="agent", host="n1"))
    assert len(event.message) == LONGEST_MESSAGE
    assert world.reported() == 0


def test_why_not() -> None:
    def why(key: str, about: ObjectReference, place: str | None) -> str:
        return refusal(keys.parse_report_key(f"{keys.REPORTS}{key}"), Event(involved_object=about), place)

    p = ObjectReference(kind="Pod", name="p", namespace="default")
    assert why("n1/events/agent/default/p.1", p, "n1") == ""
    assert why("n1/events/agent/default/p.1", p, "n2") == "pod default/p is not there"
    assert why("n1/events/agent/default/p.1", p, None) == "there is no pod default/p"
    assert why("n1/events/proxyd/default/p.1", p, "n1") == "proxyd tells of no Pod"
    assert why("n1/events/agent/other/p.1", p, "n1") == "it is about something in default, and kept in other"
    assert why("n1/events/agent/default/q.1", p, "n1") == "its name does not begin with p"
    assert why("n1/events/agent/default/n2.1", ObjectReference(kind="Node", name="n2"), "n2") == "node n2 is not there"


def test_a_node_that_tells_too_much_is_cut_short_and_no_other(world: World) -> None:
    for number in range(MOST + 50):
        event = Event(involved_object=reference_to(world.mine))
        world.store.txn([], [Put(keys.event_report_key("n1", "agent", "default", f"mine.{number}"), encode(event))])
    other = Event(involved_object=reference_to(world.theirs))
    world.store.txn([], [Put(keys.event_report_key("n2", "agent", "default", "theirs.1"), encode(other))])
    world.sync()
    told = world.told()
    assert (len(told), told.count("agent@n2 theirs 1"), world.reported()) == (MOST + 1, 1, 0)


def test_an_allowance_grows_again() -> None:
    spent = Allowance(left=1.5, at=10.0).spend(10.0)
    assert spent == Allowance(left=0.5, at=10.0)
    assert spent.spend(10.0) is None
    assert spent.spend(11.0) == Allowance(left=0.5 + RATE - 1, at=11.0)
    assert Allowance(left=3, at=0).spend(1e6) == Allowance(left=MOST - 1, at=1e6)


def test_who_leads_no_longer_tells_nothing(world: World) -> None:
    world.store.txn([], [Put("/leader", b"other")])
    former = Scheduler(world.store, world.clock, Compare.holds("/leader", b"me"))
    world.tell(world.mine)
    former.drain()
    with pytest.raises(Fenced):
        former.sync(EventsLoop)
    assert (world.told(), world.reported()) == ([], 1)
