"""When a node's proxyd writes what its kernel has, and that it never says too much."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from podlane.runtime.clock import FakeClock
from podlane.store import keys
from podlane.store.interface import KeyValue, Put
from podlane.store.memory import MemoryStore
from proxyd.acknowledge import FOLLOW, LAZY, URGENT_FOR, Acknowledger

pytestmark = pytest.mark.unit

KEY = keys.proxy_key("n1")


def acknowledged(kv: KeyValue) -> int:
    return int(json.loads(kv.value)["revision"])


class World:
    """An acknowledger with its thread, on a store in memory, and time that a test moves."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        for i in range(200):
            self.store.txn([], [Put(f"/x/{i}", b"")])  # revisions that can be reported
        self.acknowledger = Acknowledger(self.store, "n1", clock=self.clock)
        self.history: list[int] = []
        self.watch = self.store.watch(KEY, start_revision=self.store.revision + 1)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.acknowledger.run, args=(self.stop,))
        self.thread.start()

    def close(self) -> None:
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def written(self) -> list[int]:
        """Every revision written since the beginning, in order."""
        while (batch := self.watch.next(0)) is not None:
            self.history += [acknowledged(event.kv) for event in batch.events if event.type == "put"]
        return self.history

    def idle(self) -> list[int]:
        """What was written once the thread has nothing more to do by now."""
        self.clock.await_sleepers(1)
        time.sleep(0.02)  # let it see a trigger that has just come
        self.clock.await_sleepers(1)
        return self.written()

    def eventually(self, expected: list[int]) -> None:
        deadline = time.monotonic() + 10
        while self.written() != expected:
            assert time.monotonic() < deadline, f"wrote {self.history}, not {expected}"
            time.sleep(0.002)
            self.clock.advance(0.01)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_the_first_is_written_at_once_so_that_the_node_is_known(world: World) -> None:
    world.acknowledger.applied(7, terminating=False)
    world.eventually([7])
    kv = world.store.get(KEY)
    assert kv is not None
    assert (kv.value, kv.lease) == (b'{"revision":7}', 0)


def test_nothing_is_written_before_something_was_applied(world: World) -> None:
    world.acknowledger.applied(0, terminating=True)
    world.clock.advance(3 * LAZY)
    assert world.idle() == []


def test_what_nobody_waits_for_is_written_now_and_then(world: World) -> None:
    world.acknowledger.applied(7, terminating=False)
    world.eventually([7])
    for revision in (8, 9, 10):
        world.acknowledger.applied(revision, terminating=False)
    assert world.idle() == [7]
    world.clock.advance(LAZY + 1)
    world.eventually([7, 10])
    world.clock.advance(LAZY + 1)
    assert world.idle() == [7, 10]  # nor is what is there written again


def test_what_somebody_waits_for_is_written_at_once_and_so_is_what_comes_soon_after(world: World) -> None:
    world.acknowledger.applied(7, terminating=False)
    world.eventually([7])
    world.acknowledger.applied(8, terminating=True)
    world.eventually([7, 8])
    world.acknowledger.applied(9, terminating=False)
    assert world.idle() == [7, 8]
    world.clock.advance(FOLLOW)
    world.eventually([7, 8, 9])
    world.clock.advance(URGENT_FOR)
    world.acknowledger.applied(10, terminating=False)
    assert world.idle() == [7, 8, 9]


def test_an_urgent_report_of_a_revision_that_is_written_already_writes_nothing(world: World) -> None:
    world.acknowledger.applied(8, terminating=True)
    world.eventually([8])
    world.acknowledger.applied(8, terminating=True)
    world.clock.advance(1)
    assert world.idle() == [8]


def test_a_lower_revision_is_never_written(world: World) -> None:
    world.acknowledger.applied(20, terminating=True)
    world.eventually([20])
    world.acknowledger.applied(15, terminating=True)
    world.clock.advance(LAZY + 1)
    assert world.idle() == [20]
    world.acknowledger.applied(21, terminating=True)
    world.eventually([20, 21])


def test_a_store_that_was_restored_is_told_what_is_true_in_it(world: World) -> None:
    restore = world.store.backup()  # at revision 201
    for i in range(5):
        world.store.txn([], [Put(f"/y/{i}", b"")])
    world.acknowledger.applied(206, terminating=True)
    world.eventually([206])
    restore()
    world.watch = world.store.watch(KEY, start_revision=202)
    world.acknowledger.applied(201, terminating=True)
    world.eventually([206, 201])


def test_without_the_store_it_tries_on_and_then_writes_the_newest_once(world: World) -> None:
    world.store.faults.set_down(True)
    for revision in (7, 8, 9):
        world.acknowledger.applied(revision, terminating=True)
    for _ in range(20):
        world.clock.await_sleepers(1)
        world.clock.advance(1)
    world.store.faults.set_down(False)
    world.watch = world.store.watch(KEY, start_revision=1)
    world.clock.advance(6)
    world.eventually([9])


def test_what_comes_while_a_write_is_under_way_is_one_write_more() -> None:
    store, clock = MemoryStore(), FakeClock()
    entered, go_on = threading.Event(), threading.Event()
    written: list[int] = []

    class Slow(MemoryStore):
        def txn(self, *arguments: object, **options: object):  # type: ignore[no-untyped-def]
            entered.set()
            assert go_on.wait(10)
            result = store.txn(*arguments, **options)  # type: ignore[arg-type]
            kv = store.get(KEY)
            assert kv is not None
            written.append(acknowledged(kv))
            return result

    acknowledger = Acknowledger(Slow(), "n1", clock=clock)
    stop = threading.Event()
    thread = threading.Thread(target=acknowledger.run, args=(stop,))
    thread.start()
    acknowledger.applied(1, terminating=True)
    assert entered.wait(10)
    for revision in range(2, 100):
        acknowledger.applied(revision, terminating=True)
    go_on.set()
    _until(lambda: written[-1:] == [99], clock)
    stop.set()
    thread.join(10)
    assert written == [1, 99]


def _until(condition: Callable[[], bool], clock: FakeClock) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        clock.advance(0.01)
        time.sleep(0.002)
