"""Whose heartbeat counts: one that its agent writes again, as this scheduler has heard itself."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace
from scheduler_objects import T0

from podlane.api.codec import encode
from podlane.api.types import NODE_LEASE_NAMESPACE, Lease
from podlane.runtime.clock import FakeClock
from podlane.store import keys
from podlane.store.interface import Delete, Put
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.heartbeats import LOOK, Heartbeats

pytestmark = pytest.mark.unit

SECONDS = 10
PATIENCE = 50


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "did not become true"
        time.sleep(0.001)


class Clock(FakeClock):
    """Its time is the test's; who waits looks again in a moment, for mirrors try again by themselves."""

    def wait(self, event: threading.Event, timeout: float) -> bool:
        return event.wait(min(timeout, 0.005))


class World:
    """Nodes n1 and n2, which both beat at first."""

    def __init__(self) -> None:
        self.clock = Clock(T0)
        self.store = MemoryStore()
        self.registry = Registry(self.store, clock=self.clock, rng=random.Random(5))
        self.told = 0
        self.beats = Heartbeats(self.store, self._changed, self.clock)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.beats.mirror.run, args=(self.stop,))
        self.leases = {name: self.registry.put_node_lease(name, 0, SECONDS) for name in ("n1", "n2")}

    def _changed(self) -> None:
        self.told += 1

    def beat(self, *names: str) -> None:
        for name in names:
            self.leases[name] = self.registry.put_node_lease(name, 0, SECONDS, self.leases[name])
        self.heard()

    def heard(self) -> None:
        """All that was written has come."""
        revision = self.store.list("/").revision
        eventually(lambda: self.beats.revision == revision)

    def wait(self, seconds: float) -> None:
        """Looking all the while, as the thread does."""
        for _ in range(int(seconds / LOOK)):
            self.clock.advance(LOOK)
            self.beats.look()

    def alive(self) -> list[str]:
        return sorted(lease.metadata.name for lease in self.beats.snapshot().values())


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    world.thread.start()
    try:
        assert world.beats.mirror.wait_synced(20)
        eventually(lambda: world.beats.mirror.healthy_since is not None)
        yield world
    finally:
        world.stop.set()
        world.thread.join(20)
        assert not world.thread.is_alive()


def test_a_renewal_is_no_change_and_keeps_who_it_is(world: World) -> None:
    world.beats.take_changes()
    told, before = world.told, world.registry.get(Lease, NODE_LEASE_NAMESPACE, "n1")
    world.wait(20)
    world.beat("n1")
    after = world.registry.get(Lease, NODE_LEASE_NAMESPACE, "n1")
    assert before.spec.renew_time is not None
    assert after.spec.renew_time is not None
    assert (after.spec.renew_time - before.spec.renew_time).total_seconds() == 20
    assert replace(after, metadata=before.metadata, spec=before.spec) == before
    assert (after.metadata.uid, after.spec.acquire_time) == (before.metadata.uid, before.spec.acquire_time)
    assert (world.told, world.beats.take_changes()) == (told, frozenset())


def test_a_heartbeat_that_is_kept_and_not_written_counts_no_more(world: World) -> None:
    world.wait(PATIENCE / 2)
    world.beat("n1")
    world.wait(PATIENCE / 2)
    assert world.alive() == ["n1", "n2"]
    world.beats.take_changes()
    told = world.told
    world.wait(LOOK)
    assert (world.alive(), world.beats.silent()) == (["n1"], {"n2"})
    assert (world.told, world.beats.take_changes()) == (told + 1, {"kube-node-lease/n2"})
    assert world.beats.get("kube-node-lease/n2") is None
    world.beat("n2")
    world.wait(LOOK)
    assert (world.alive(), world.beats.silent()) == (["n1", "n2"], frozenset())
    assert (world.told, world.beats.take_changes()) == (told + 2, {"kube-node-lease/n2"})


def test_one_that_ends_is_gone_at_once(world: World) -> None:
    world.store.txn([], [Delete(keys.key_for(Lease, NODE_LEASE_NAMESPACE, "n2"))])
    world.heard()
    assert (world.alive(), world.beats.silent()) == (["n1"], frozenset())


def test_an_agent_before_renewals_is_judged_by_its_key_alone(world: World) -> None:
    lease = world.leases["n2"]
    lease = replace(lease, spec=replace(lease.spec, renew_time=None))
    world.store.txn([], [Put(keys.key_for(Lease, NODE_LEASE_NAMESPACE, "n2"), encode(lease))])
    world.heard()
    world.wait(3 * PATIENCE)
    assert world.alive() == ["n2"]


def test_what_we_could_not_hear_is_not_held_against_anybody(world: World) -> None:
    world.wait(PATIENCE - LOOK)
    world.clock.advance(PATIENCE)  # we stood still
    world.beats.look()
    assert world.alive() == ["n1", "n2"]
    world.wait(PATIENCE - LOOK)
    failed = world.beats.mirror.healthy_since
    world.store.cut()
    eventually(lambda: world.beats.mirror.healthy_since not in {failed, None})
    world.wait(PATIENCE)
    assert world.alive() == ["n1", "n2"]
    world.wait(LOOK)
    assert world.alive() == []
    # who was silent stays so, whatever we miss now
    world.clock.advance(PATIENCE)
    world.beats.look()
    world.beat("n1")
    world.beats.look()
    assert world.alive() == ["n1"]
