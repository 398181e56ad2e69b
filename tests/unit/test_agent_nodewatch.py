"""An agent's own Node: read when somebody else has changed it, and not otherwise."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from podlane.api.types import Node, ObjectMeta
from podlane.errors import NotFound, StoreUnavailable
from podlane.runtime.clock import FakeClock, SystemClock
from podlane.store import keys
from podlane.store.interface import KeyValue
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.node import READ_EVERY, Facts, Registrar
from scheduler.agent.nodewatch import NodeWatch

pytestmark = pytest.mark.unit

KEY = keys.key_for(Node, "", "n1")


class Counting(MemoryStore):
    """How often a Node was asked for."""

    gets = 0

    def get(self, key: str, *, timeout: float = 5.0) -> KeyValue | None:
        self.gets += 1
        return super().get(key, timeout=timeout)


class Rig:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = Counting()
        self.registry = Registry(self.store)
        self.read: list[Node] = []
        self.network = ""
        self.registrar = Registrar(
            Facts(name="n1", ip="192.168.64.11", port=10250, capacity={"cpu": "2"}),
            registry=self.registry,
            runtime=FakeRuntime(),
            network=lambda: (("10.5.3.0/24",), self.network),
            clock=self.clock,
            on_read=lambda node, _as_of: self.read.append(node),
        )
        self.registrar.sync()

    def cordon(self) -> int:
        """As an operator does it; returns the revision."""
        changed = self.registry.modify(Node, "", "n1", lambda n: replace(n, spec=replace(n.spec, unschedulable=True)))
        return int(changed.metadata.resource_version)

    def asked(self, do: Callable[[], object]) -> int:
        """How often it asks for its Node meanwhile."""
        before = self.store.gets
        do()
        return self.store.gets - before


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_node_that_nobody_changes_is_read_once_a_minute(rig: Rig) -> None:
    assert rig.asked(rig.registrar.sync) == 0
    rig.clock.advance(READ_EVERY - 1)
    assert rig.asked(rig.registrar.sync) == 0
    rig.cordon()  # and nobody tells
    rig.clock.advance(1)
    assert rig.asked(rig.registrar.sync) == 1
    assert rig.read[-1].spec.unschedulable
    assert rig.asked(rig.registrar.sync) == 0


def test_what_somebody_else_changed_is_read_at_once_and_stays(rig: Rig) -> None:
    revision = rig.cordon()
    rig.registrar.changed(revision)
    assert rig.asked(rig.registrar.sync) == 1
    assert rig.read[-1].spec.unschedulable
    rig.registrar.changed(revision)  # heard again
    assert rig.asked(rig.registrar.sync) == 0
    rig.registrar.changed()
    assert rig.asked(rig.registrar.sync) == 1


def test_what_it_writes_itself_is_no_news(rig: Rig) -> None:
    rig.network = "no subnet"
    rig.registrar.sync()
    stored = rig.registry.get(Node, "", "n1")
    assert {c.type for c in stored.status.conditions if c.status == "True"} == {"NetworkUnavailable"}
    rig.registrar.changed(int(stored.metadata.resource_version))
    assert rig.asked(rig.registrar.sync) == 0


def test_a_node_that_was_deleted_by_hand_is_made_again(rig: Rig) -> None:
    rig.registry.delete(Node, "", "n1")
    rig.registrar.changed(rig.store.revision)
    rig.registrar.sync()
    assert rig.registry.get(Node, "", "n1").status.capacity == {"cpu": "2"}


def test_a_read_that_failed_is_made_up_for(rig: Rig) -> None:
    rig.registrar.changed(rig.cordon())
    rig.store.faults.fail_next()
    with pytest.raises(StoreUnavailable):
        rig.registrar.sync()
    rig.registrar.sync()
    assert rig.read[-1].spec.unschedulable


# --- the watch ------------------------------------------------------------------------------------


class Watched:
    """What two nodes of one watch are told."""

    def __init__(self, store: MemoryStore) -> None:
        self.told: dict[str, list[float]] = {"n1": [], "n2": []}
        self.stop = threading.Event()
        watch = NodeWatch(store, {node: said.append for node, said in self.told.items()}, SystemClock())
        self.thread = threading.Thread(target=watch.run, args=(self.stop,))
        self.thread.start()

    def until(self, **told: list[float]) -> None:
        deadline = time.monotonic() + 60
        while self.told != told:
            assert time.monotonic() < deadline, f"was told {self.told}, not {told}"
            time.sleep(0.005)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def watched(store: MemoryStore) -> Iterator[Watched]:
    watched = Watched(store)
    yield watched
    watched.stop.set()
    watched.thread.join(30)
    assert not watched.thread.is_alive()


ANEW = float("inf")


def test_each_is_told_of_its_own_node_alone(store: MemoryStore, watched: Watched) -> None:
    registry = Registry(store)
    watched.until(n1=[ANEW], n2=[ANEW])
    registry.create(Node(metadata=ObjectMeta(name="n10")))
    registry.create(Node(metadata=ObjectMeta(name="n2")))
    created = store.revision
    registry.delete(Node, "", "n2")
    watched.until(n1=[ANEW], n2=[ANEW, created, store.revision])


def test_all_are_told_when_the_watch_broke(store: MemoryStore, watched: Watched) -> None:
    watched.until(n1=[ANEW], n2=[ANEW])
    store.faults.set_down(True)
    store.cut()
    store.faults.set_down(False)
    watched.until(n1=[ANEW, ANEW], n2=[ANEW, ANEW])


def test_an_operators_hand_is_noticed_while_nothing_else_happens() -> None:
    store = MemoryStore()
    registry = Registry(store)
    clock = FakeClock()  # it stands still: no resync comes to help
    registrar = Registrar(
        Facts(name="n1", ip="192.168.64.11", port=10250, capacity={"cpu": "2"}),
        registry=registry,
        runtime=FakeRuntime(),
        network=lambda: (("10.5.3.0/24",), ""),
        clock=clock,
    )
    watch = NodeWatch(store, {"n1": registrar.changed}, clock)
    stop = threading.Event()
    threads = [threading.Thread(target=body, args=(stop,)) for body in (registrar.runner.run, watch.run)]
    for thread in threads:
        thread.start()
    try:
        first = _uid(registry)
        registry.delete(Node, "", "n1")
        assert _uid(registry) != first
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def _uid(registry: Registry) -> str:
    """The Node's, as soon as there is one."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return registry.get(Node, "", "n1").metadata.uid
        except NotFound:
            assert time.monotonic() < deadline, "no Node"
            time.sleep(0.005)
