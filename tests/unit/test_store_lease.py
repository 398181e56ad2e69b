"""Leases and elections by a clock that the test moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from podlane.errors import Fenced, StoreUnavailable
from podlane.runtime.clock import FakeClock
from podlane.store.election import Election, Leadership
from podlane.store.interface import Compare, Delete, LeaseNotFound, Put
from podlane.store.lease import KeepAlive
from podlane.store.memory import MemoryStore
from podlane.store.writes import Lost, Write, Written, commit, commit_all

pytestmark = pytest.mark.unit

WAIT = 20.0


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def lost() -> threading.Event:
    return threading.Event()


@pytest.fixture
def kept(store: MemoryStore, clock: FakeClock, lost: threading.Event) -> Iterator[KeepAlive]:
    keeper = KeepAlive(store, 30, clock=clock, on_lost=lost.set)
    keeper.start()
    yield keeper
    keeper.stop()


def pass_time(clock: FakeClock, seconds: int, until: threading.Event | None = None) -> None:
    """Second by second, letting the thread that waits for it act; it ends with the event."""
    for _ in range(seconds):
        if until is not None and until.is_set():
            return
        clock.await_sleepers(1)
        clock.advance(1)
        time.sleep(0.004)


def test_a_lease_is_kept(store: MemoryStore, clock: FakeClock, kept: KeepAlive) -> None:
    store.txn([], [Put("/a", b"", kept.lease_id)])
    pass_time(clock, 120)
    assert store.get("/a") is not None
    assert not kept.lost
    kept.stop(revoke=True)
    assert store.get("/a") is None


def test_stop_without_revoke_leaves_the_lease_to_run_out(
    store: MemoryStore, clock: FakeClock, kept: KeepAlive, lost: threading.Event
) -> None:
    store.txn([], [Put("/a", b"", kept.lease_id)])
    kept.stop(revoke=False)
    assert store.get("/a") is not None
    clock.advance(31)
    assert store.get("/a") is None
    assert not lost.is_set()


def test_a_lease_is_given_up_when_the_store_is_away_too_long(
    store: MemoryStore, clock: FakeClock, kept: KeepAlive, lost: threading.Event
) -> None:
    pass_time(clock, 11)
    store.faults.set_down(True)
    pass_time(clock, 25)
    assert not kept.lost, "renewed at 10, so it is ours until 40"
    pass_time(clock, 5, until=lost)
    assert kept.lost
    assert lost.wait(WAIT)


def test_a_short_outage_is_survived(
    store: MemoryStore, clock: FakeClock, kept: KeepAlive, lost: threading.Event
) -> None:
    pass_time(clock, 9)
    store.faults.set_down(True)
    pass_time(clock, 15)
    store.faults.set_down(False)
    pass_time(clock, 30)
    assert not kept.lost
    assert not lost.is_set()


def test_a_process_that_was_frozen_knows_at_once(clock: FakeClock, kept: KeepAlive) -> None:
    clock.await_sleepers(1)
    clock.advance(31)
    assert kept.lost, "before its thread has had a chance to notice"


def test_a_revoked_lease_is_noticed(
    store: MemoryStore, clock: FakeClock, kept: KeepAlive, lost: threading.Event
) -> None:
    store.revoke(kept.lease_id)
    pass_time(clock, 11, until=lost)
    assert lost.wait(WAIT)
    assert kept.lost


def test_what_the_lease_stands_for_is_checked(store: MemoryStore, clock: FakeClock, lost: threading.Event) -> None:
    keeper = KeepAlive(store, 30, clock=clock, on_lost=lost.set, check=lambda _: store.get("/a") is not None)
    keeper.start()
    store.txn([], [Put("/a", b"", keeper.lease_id)])
    pass_time(clock, 25)
    assert not keeper.lost
    store.txn([], [Delete("/a")])
    pass_time(clock, 11, until=lost)
    assert lost.wait(WAIT)
    keeper.stop()


def test_a_lease_can_be_adopted(store: MemoryStore, clock: FakeClock) -> None:
    lease = store.grant(30)
    keeper = KeepAlive(store, 99, clock=clock, lease_id=lease)
    keeper.start()
    pass_time(clock, 60)
    assert store.time_to_live(lease) > 0
    keeper.stop()
    with pytest.raises(LeaseNotFound):
        KeepAlive(store, 30, clock=clock, lease_id=lease).start()


@pytest.mark.parametrize(("margin", "down_after"), [(25, 6), (40, 2)])
def test_with_a_margin_it_is_renewed_that_early(
    store: MemoryStore, clock: FakeClock, lost: threading.Event, margin: int, down_after: int
) -> None:
    """The store goes away just after the renewal that the margin asks for, for as long as that one lasts."""
    keeper = KeepAlive(store, 30, clock=clock, on_lost=lost.set, margin=margin)
    keeper.start()
    pass_time(clock, down_after)
    store.faults.set_down(True)
    pass_time(clock, 31 - down_after)
    assert not keeper.lost
    assert 0 < keeper.ttl_left() <= down_after
    keeper.stop(revoke=False)


def test_a_margin_never_makes_it_later(store: MemoryStore, clock: FakeClock, lost: threading.Event) -> None:
    keeper = KeepAlive(store, 30, clock=clock, on_lost=lost.set, margin=5)
    keeper.start()
    pass_time(clock, 11)
    assert keeper.ttl_left() > 20, "renewed after a third, not 5 s before the end"
    keeper.stop()


def test_the_seconds_left_are_told(store: MemoryStore, clock: FakeClock, lost: threading.Event) -> None:
    keeper = KeepAlive(store, 30, clock=clock, on_lost=lost.set)
    assert keeper.ttl_left() == 0
    keeper.start()
    assert keeper.ttl_left() == 30
    pass_time(clock, 4)
    assert keeper.ttl_left() == 26
    store.revoke(keeper.lease_id)
    pass_time(clock, 7, until=lost)
    assert lost.wait(WAIT)
    assert keeper.ttl_left() == 0
    keeper.stop()


def test_no_lease_without_a_store(store: MemoryStore, clock: FakeClock) -> None:
    store.faults.fail_next()
    with pytest.raises(StoreUnavailable):
        KeepAlive(store, 30, clock=clock).start()


# --- elections ------------------------------------------------------------------------


class Candidate:
    def __init__(self, store: MemoryStore, name: str, lead: Callable[[Leadership], None] | None = None) -> None:
        self.election = Election(store, "/e", name, ttl=10)
        self.led: list[Leadership] = []
        self._body = lead or (lambda leadership: leadership.lost.wait() and None)
        self.stop_event = threading.Event()
        self._thread = threading.Thread(target=self.election.run, args=(self.stop_event, self._lead))
        self._thread.start()

    def _lead(self, leadership: Leadership) -> None:
        self.led.append(leadership)
        self._body(leadership)

    @property
    def leads(self) -> bool:
        return bool(self.led) and not self.led[-1].lost.is_set()

    def stop(self) -> None:
        self.stop_event.set()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


def test_one_leads_and_resigns_when_told_to_stop() -> None:
    store = MemoryStore()
    candidates = [Candidate(store, f"c{n}") for n in range(4)]
    while candidates:
        eventually(lambda: any(c.leads for c in candidates))
        (leader,) = [c for c in candidates if c.leads]
        eventually(lambda leader=leader: all(c.election.leader == leader.election.leader for c in candidates))
        assert [c.election.is_leader for c in candidates].count(True) == 1
        leader.stop()
        candidates.remove(leader)
    assert store.get("/e") is None


def test_an_answer_that_was_lost_does_not_block_the_election() -> None:
    store = MemoryStore()
    store.faults.drop_after_apply(2)  # the look, and the key that was written
    one = Candidate(store, "one")
    eventually(lambda: one.leads)
    one.stop()


def test_fenced_ends_the_leadership() -> None:
    store = MemoryStore()
    fences: list[Compare] = []

    def lead(leadership: Leadership) -> None:
        fences.append(leadership.fence)
        if len(fences) == 1:
            store.txn([], [Delete("/e")])
            commit(store, Write((), (Put("/w", b""),)), leadership.fence)
        leadership.lost.wait()

    one = Candidate(store, "one", lead)
    eventually(lambda: len(fences) == 2)
    assert one.led[0].lost.is_set()
    assert store.get("/w") is None
    assert isinstance(commit(store, Write((), (Put("/w", b""),)), fences[1]), Written)
    one.stop()


# --- batches of conditional writes -----------------------------------------------------


def test_losers_are_told_and_winners_written() -> None:
    store = MemoryStore()
    store.txn([], [Put("/7", b"x"), Put("/250", b"y")])
    writes = [Write((Compare.absent(f"/{n}"),), (Put(f"/{n}", b"new"),)) for n in range(300)]
    outcomes = commit_all(store, writes)
    lost = {n: o for n, o in enumerate(outcomes) if isinstance(o, Lost)}
    assert lost.keys() == {7, 250}
    assert lost[7].found["/7"] == store.get("/7")
    assert sum(isinstance(o, Written) for o in outcomes) == 298
    assert len({kv.mod_revision for kv in store.list("/").items}) <= 5, "300 writes are few transactions"


def test_large_values_are_spread_over_transactions() -> None:
    store = MemoryStore()
    writes = [Write((), (Put(f"/{n}", bytes(400_000)),)) for n in range(5)]
    outcomes = commit_all(store, writes)
    assert len({o.revision for o in outcomes if isinstance(o, Written)}) == 3


def test_a_failure_in_the_middle_leaves_the_rest_untried() -> None:
    store = MemoryStore()
    writes = [Write((), (Put(f"/{n}", b""),)) for n in range(250)]
    store.faults.drop_after_apply()
    outcomes = commit_all(store, writes)
    assert all(isinstance(o, StoreUnavailable) for o in outcomes)
    assert len(store.list("/").items) == 100


def test_a_fence_stops_everything() -> None:
    store = MemoryStore()
    with pytest.raises(Fenced):
        commit_all(store, [Write((), (Put("/a", b""),))], Compare.created_at("/e", 5))
    assert store.get("/a") is None
