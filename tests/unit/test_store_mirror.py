"""The mirror against a store that does everything stores do to mirrors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podlane.errors import StoreUnavailable
from podlane.runtime import metrics
from podlane.runtime.clock import FakeClock
from podlane.runtime.runner import NotReady
from podlane.store.interface import Delete, KeyValue, Put
from podlane.store.memory import MemoryStore
from podlane.store.mirror import Mirror, NotSynced

pytestmark = pytest.mark.unit

WAIT = 20.0
P = "/m/"


class NoWait:
    """A clock whose waits are short, so that retries cost a test nothing."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, timeout: float) -> bool:
        return event.wait(min(timeout, 0.005))


def decode(kv: KeyValue) -> str:
    if kv.value == b"bad":
        raise ValueError("cannot read it")
    return kv.value.decode()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Far:
    """The mirror's way to the store, which can be closed while the test goes on writing.

    `before` and `after` hold what happens, once, at the mirror's next call of that name.
    """

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.closed = False
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if self.closed:
                raise StoreUnavailable(f"{name}: no way")
            self.before.pop(name, lambda: None)()
            result = getattr(self._store, name)(*args, **options)
            self.after.pop(name, lambda: None)()
            return result

        return call

    def close(self) -> None:
        self.closed = True
        self._store.cut()

    def open(self) -> None:
        self.closed = False


class Run:
    """A mirror of P and its thread; `changed` collects what take_changes gave at each on_change."""

    def __init__(self, store: MemoryStore, **options: int) -> None:
        self.store = store
        self.far = Far(store)
        self.changed: list[frozenset[str] | None] = []
        self.views: list[tuple[dict[str, str], int]] = []
        # a mirror looks at its stop between polls, and tests stop hundreds
        self.mirror = Mirror(
            self.far, P, decode=decode, on_change=self._on_change, name="unit", clock=NoWait(), poll=0.01, **options
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.mirror.run, args=(self._stop,))

    def _on_change(self) -> None:
        self.changed.append(self.mirror.take_changes())
        self.views.append(self.mirror.view())

    def __enter__(self) -> Run:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()

    def settle(self) -> None:
        """Open the way, and wait until the mirror has seen a key written now."""
        self.far.open()
        at = self.store.txn([], [Put(P + "settled", str(self.store.revision).encode())]).revision
        eventually(lambda: self.mirror.revision >= at and "settled" in self.mirror.snapshot())


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(page_size=3)


@pytest.fixture
def run(store: MemoryStore) -> Iterator[Run]:
    with Run(store) as running:
        yield running


def put(store: MemoryStore, *pairs: tuple[str, str]) -> int:
    return store.txn([], [Put(P + key, value.encode()) for key, value in pairs]).revision


def fresh(store: MemoryStore) -> dict[str, str]:
    return {kv.key[len(P) :]: decode(kv) for kv in store.list(P).items if kv.value != b"bad"}


def test_nothing_is_known_before_the_first_list(store: MemoryStore) -> None:
    mirror = Mirror(store, P, decode=decode, on_change=lambda: None, name="early")
    assert not mirror.synced
    assert mirror.take_changes() is None
    assert "no complete list" in (mirror.not_ready() or "")
    assert mirror.witness == 0
    with pytest.raises(NotSynced):
        mirror.view()
    with pytest.raises(NotSynced) as caught:
        mirror.snapshot()
    assert isinstance(caught.value, NotReady)


def test_the_first_list_is_reported_even_if_empty(run: Run) -> None:
    eventually(lambda: run.changed == [None])
    assert run.mirror.synced
    assert run.mirror.snapshot() == {}
    assert run.mirror.not_ready() is None


def test_a_half_list_is_never_shown(store: MemoryStore) -> None:
    put(store, *((f"{n}", "1") for n in range(10)))
    pages = store.pages

    def broken(prefix: str, **options: float) -> object:
        it = pages(prefix, **options)
        yield next(it)
        store.faults.fail_next(1)
        yield from it

    store.pages = broken  # type: ignore[method-assign, assignment]
    with Run(store) as run:
        eventually(lambda: (metrics.value("podlane_mirror_failures_total", mirror="unit") or 0) > 3)
        assert not run.mirror.synced
        assert run.changed == []
        del store.pages
        eventually(lambda: run.mirror.synced)
        assert len(run.mirror.snapshot()) == 10


def test_a_transaction_is_seen_whole(run: Run, store: MemoryStore) -> None:
    eventually(lambda: run.mirror.synced)
    done = threading.Event()
    torn: list[dict[str, str]] = []

    def look() -> None:
        while not done.is_set():
            seen = run.mirror.snapshot()
            if len({seen.get(f"{n}") for n in range(5)}) != 1:
                torn.append(seen)

    reader = threading.Thread(target=look)
    reader.start()
    for n in range(200):
        put(store, *((f"{key}", f"{n}") for key in range(5)))
    run.settle()
    done.set()
    reader.join(WAIT)
    assert torn == []


def test_changes_name_what_came_went_and_changed(run: Run, store: MemoryStore) -> None:
    eventually(lambda: run.changed == [None])
    put(store, ("a", "1"), ("b", "1"))
    put(store, ("a", "2"))
    store.txn([], [Delete(P + "b"), Put("/elsewhere", b"")])
    eventually(lambda: run.changed[1:] == [{"a", "b"}, {"a"}, {"b"}])
    assert run.mirror.take_changes() == frozenset()


def test_changes_nobody_asks_for_do_not_pile_up(store: MemoryStore) -> None:
    with Run(store, changes_kept=10) as run:
        eventually(lambda: run.mirror.synced)
        run._on_change = lambda: None  # type: ignore[method-assign]
        run.mirror._on_change = lambda: None
        for n in range(15):
            put(store, (f"{n}", "1"))
            store.txn([], [Delete(f"{P}{n}")])
        run.settle()
        assert run.mirror.take_changes() is None


def test_what_cannot_be_read_is_absent_until_it_can(run: Run, store: MemoryStore) -> None:
    put(store, ("a", "1"), ("b", "1"))
    run.settle()
    put(store, ("a", "bad"))
    eventually(lambda: "a" not in run.mirror.snapshot())
    assert run.mirror.undecodable == {"a": "cannot read it"}
    store.compact()
    store.cut()
    run.settle()
    assert run.mirror.undecodable == {"a": "cannot read it"}
    put(store, ("a", "2"))
    eventually(lambda: run.mirror.get("a") == "2")
    assert run.mirror.undecodable == {}


def test_resuming_reports_nothing_twice(run: Run, store: MemoryStore) -> None:
    put(store, ("a", "1"), ("b", "1"))
    eventually(lambda: run.changed[1:] == [{"a", "b"}])
    for _ in range(5):
        store.cut()
        eventually(lambda: run.mirror.healthy_since is not None)
    run.settle()
    assert run.changed[2:] == [{"settled"}]


def test_listing_again_reports_the_difference_only(run: Run, store: MemoryStore) -> None:
    put(store, *((f"{n}", "1") for n in range(8)))
    run.settle()
    run.far.close()
    put(store, ("1", "2"), ("new", "1"))
    store.txn([], [Delete(P + "2")])
    store.compact(put(store, ("3", "2")))
    run.changed.clear()
    run.far.open()
    eventually(lambda: run.changed == [{"1", "2", "3", "new"}])
    assert run.mirror.snapshot() == fresh(store)


def test_a_deletion_at_the_compacted_revision_is_not_missed(run: Run, store: MemoryStore) -> None:
    put(store, ("a", "1"), ("b", "1"))
    run.settle()
    run.far.close()
    store.compact(store.txn([], [Delete(P + "a")]).revision)
    run.settle()
    assert run.mirror.snapshot() == fresh(store)


@pytest.mark.parametrize("cluster_id", [None, 99])
def test_another_store_is_noticed_even_if_it_looks_alike(run: Run, store: MemoryStore, cluster_id: int | None) -> None:
    """Wiped and filled again to the very revision, with a key that was there before."""
    put(store, ("a", "1"), ("b", "1"))
    put(store, ("c", "1"))
    eventually(lambda: run.mirror.revision == 3)
    run.far.close()
    store.wipe(cluster_id)
    put(store, ("a", "2"))
    put(store, ("d", "1"))
    run.far.open()
    eventually(lambda: run.mirror.snapshot() == fresh(store) == {"a": "2", "d": "1"})


def test_a_store_restored_from_a_backup_is_noticed(run: Run, store: MemoryStore) -> None:
    """The witness lives, but the revision went back."""
    put(store, ("a", "1"), ("b", "1"))
    run.settle()
    restore = store.backup()
    store.txn([], [Delete(P + "a"), Put(P + "c", b"1")])
    run.settle()
    run.far.close()
    restore()
    run.far.open()
    eventually(lambda: run.mirror.snapshot() == fresh(store))
    assert run.mirror.snapshot().keys() == {"a", "b", "settled"}


# --- one history or another -------------------------------------------------------------------


def test_metrics_tell_when_the_watch_was_last_known_to_live(run: Run, store: MemoryStore) -> None:
    def heard() -> float:
        return metrics.value("podlane_mirror_last_contact_timestamp_seconds", mirror="unit") or 0

    run.settle()
    begin = heard()
    eventually(lambda: heard() > begin)
    run.far.close()
    compact_behind(run)
    eventually(lambda: run.mirror.healthy_since is None)
    silent = heard()
    failed = metrics.value("podlane_mirror_failures_total", mirror="unit") or 0
    eventually(lambda: (metrics.value("podlane_mirror_failures_total", mirror="unit") or 0) > failed + 3)
    assert heard() == silent


def compact_behind(run: Run) -> None:
    """Make the mirror list again, at once or when the way is opened."""
    run.store.compact(put(run.store, ("compacted", "1")))
    run.store.cut()


def test_the_history_is_one_while_the_store_is(run: Run, store: MemoryStore) -> None:
    put(store, ("a", "1"), ("b", "1"))
    run.settle()
    assert run.mirror.view() == (fresh(store), 1)
    store.cut()
    run.settle()
    run.far.close()
    store.txn([], [Delete(P + "a")])
    compact_behind(run)
    eventually(lambda: run.mirror.healthy_since is None)
    assert run.mirror.view()[1] == 1
    run.settle()
    assert run.mirror.view() == (fresh(store), 1)
    assert "a" not in run.mirror.view()[0]


@pytest.mark.parametrize("cluster_id", [None, 99])
def test_another_store_is_another_history(run: Run, store: MemoryStore, cluster_id: int | None) -> None:
    for history in range(1, 4):
        put(store, ("a", f"{history}"))
        eventually(lambda history=history: run.mirror.view() == (fresh(store), history))
        store.wipe(cluster_id)


def test_a_restored_store_is_another_history_however_fast_it_catches_up(run: Run, store: MemoryStore) -> None:
    """Seen once with a revision that went back; by the time it is listed it is ahead of the mirror."""
    put(store, ("a", "1"))
    run.settle()
    restore = store.backup()
    put(store, ("a", "2"))
    run.settle()
    run.far.close()
    restore()

    def catch_up() -> None:
        for _ in range(9):
            put(store, ("other", "1"))

    run.far.after["txn"] = catch_up
    run.far.open()
    eventually(lambda: run.mirror.view() == (fresh(store), 2))
    assert run.mirror.get("a") == "1"


def test_a_store_that_is_exchanged_while_it_is_listed(run: Run, store: MemoryStore) -> None:
    put(store, ("a", "1"), ("b", "1"))
    run.settle()
    run.far.close()
    compact_behind(run)

    def exchange() -> None:
        store.wipe()
        for _ in range(9):
            put(store, ("a", "2"))

    run.far.before["pages"] = exchange
    run.far.open()
    eventually(lambda: run.mirror.view() == (fresh(store), 2))
    assert all(items["a"] == "1" for items, history in run.views if history == 1 and "a" in items)


def test_an_unfinished_list_of_another_store_proves_nothing(run: Run, store: MemoryStore) -> None:
    """The new store has the old one's keys at the same revisions, and its list breaks off at first."""
    put(store, ("a", "1"), ("b", "1"))
    eventually(lambda: run.mirror.revision == 2)
    run.far.close()
    store.wipe()
    put(store, ("a", "2"), ("b", "2"))
    run.far.before["pages"] = lambda: store.faults.fail_next(1)
    run.far.open()
    eventually(lambda: run.mirror.view() == (fresh(store), 2))


def test_a_restart_knows_the_store_by_its_witness(store: MemoryStore) -> None:
    put(store, ("a", "1"))
    with Run(store) as before:
        before.settle()
        assert not before.mirror.resumed_from_witness
        known = {"witness": before.mirror.witness, "witness_revision": before.mirror.revision}
    with Run(store, **known) as again:
        again.settle()
        assert again.mirror.resumed_from_witness
        assert again.mirror.view() == (fresh(store), 1)
        assert again.mirror.witness == known["witness"], "no restart leaves another lease behind"
        store.wipe()
        eventually(lambda: again.mirror.view() == (fresh(store), 2))
        assert again.mirror.resumed_from_witness, "this is said of the first list"


def test_a_witness_is_renewed_before_it_ends() -> None:
    clock = FakeClock()
    store = MemoryStore(clock)
    witness, stop = store.grant(30), threading.Event()
    mirror = Mirror(store, P, decode=decode, on_change=lambda: None, name="unit", clock=clock, witness=witness)
    thread = threading.Thread(target=mirror.run, args=(stop,))
    thread.start()
    for _ in range(100):
        clock.await_sleepers(1)
        clock.advance(1)
        time.sleep(0.004)
    assert store.time_to_live(witness) > 0
    stop.set()
    clock.advance(60)
    thread.join(WAIT)
    assert not thread.is_alive()
    assert (mirror.witness, mirror.view()[1]) == (witness, 1)


@pytest.mark.parametrize("how", ["wiped", "revoked", "restored", "wiped while it is listed"])
def test_a_restart_is_not_deceived(store: MemoryStore, how: str) -> None:
    put(store, ("a", "1"))
    with Run(store) as before:
        before.settle()
        restore = store.backup()
        put(store, ("a", "2"))
        before.settle()
        known = {"witness": before.mirror.witness, "witness_revision": before.mirror.revision}
    run = Run(store, **known)
    match how:
        case "wiped":
            store.wipe()
        case "revoked":
            store.revoke(known["witness"])
        case "restored":
            restore()
        case _:
            run.far.before["pages"] = store.wipe
    with run:
        eventually(lambda: run.mirror.synced and run.mirror.view() == (fresh(store), 1))
        assert not run.mirror.resumed_from_witness
        assert run.mirror.witness not in {0, known["witness"]}


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.sampled_from(["put", "put", "cut", "compact", "fail", "wipe", "close", "catch up"]), max_size=25),
    traps=st.lists(st.sampled_from(["pages", "keep_alive", "txn", "watch", "grant"]), max_size=4),
)
def test_a_history_never_shows_two_stores(steps: list[str], traps: list[str]) -> None:
    """Each value names the store it was written to. A trap exchanges the store when the mirror next makes that call."""
    store = MemoryStore(page_size=2)
    stores = 0

    def write() -> None:
        put(store, *((key, f"store {stores}") for key in "abc"))

    def exchange() -> None:
        nonlocal stores
        stores += 1
        store.wipe()
        retry(write)

    def catch_up() -> None:
        run.far.open()
        eventually(lambda: run.mirror.snapshot() == fresh(store))

    write()
    with Run(store) as run:
        eventually(lambda: run.mirror.synced)
        for step in steps:
            match step:
                case "put":
                    retry(write)
                case "cut":
                    store.cut()
                case "compact":
                    store.compact()
                    store.cut()
                case "fail":
                    store.faults.fail_next(2)
                case "wipe":
                    exchange()
                case "close":
                    run.far.close()
                case _:
                    if traps:
                        run.far.before[traps.pop()] = exchange
                    retry(catch_up)
        run.far.before.clear()
        retry(catch_up)
        shown: dict[int, str] = {}
        for items, history in run.views:
            for key, value in items.items():
                assert shown.setdefault(history, value) == value, key


# --- any sequence of events -----------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "c", "d", "e"])
VALUES = st.sampled_from(["1", "2", "3", "bad"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, VALUES),
        st.tuples(st.just("swap"), KEYS, KEYS),
        st.tuples(st.just("delete"), KEYS),
        st.tuples(st.just("elsewhere")),
        st.tuples(st.just("compact"), st.integers(0, 5)),
        st.tuples(st.just("cut")),
        st.tuples(st.just("fail"), st.integers(1, 3)),
        st.tuples(st.just("wipe")),
        st.tuples(st.just("close")),
        st.tuples(st.just("close")),
        st.tuples(st.just("open")),
        st.tuples(st.just("settle")),
    ),
    max_size=30,
)


def carry_out(store: MemoryStore, run: Run, step: tuple[object, ...]) -> None:
    match step:
        case ("put", str(key), str(value)):
            put(store, (key, value))
        case ("swap", str(one), str(other)) if one != other:
            store.txn([], [Put(P + one, b"s"), Delete(P + other)])
        case ("delete", str(key)):
            store.txn([], [Delete(P + key)])
        case ("elsewhere",):
            store.txn([], [Put("/elsewhere", b"")])
        case ("compact", int(back)):
            store.compact(max(1, store.revision - back))
        case ("cut",):
            store.cut()
        case ("fail", int(count)):
            store.faults.fail_next(count)
        case ("wipe",):
            store.wipe()
        case ("close",):
            run.far.close()
        case ("open",):
            run.far.open()
        case ("settle",):
            run.settle()


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_the_mirror_becomes_the_list(steps: list[tuple[object, ...]]) -> None:
    store = MemoryStore(page_size=2)
    view: dict[str, str] = {}  # what a reader has who copies only the keys it is told of

    with Run(store) as run:

        def copy() -> None:
            changed = run.mirror.take_changes()
            now = run.mirror.snapshot()
            for key in now.keys() | view.keys() if changed is None else changed:
                if key in now:
                    view[key] = now[key]
                else:
                    view.pop(key, None)

        run.mirror._on_change = copy
        eventually(lambda: run.mirror.synced)
        for step in steps:
            retry(lambda step=step: carry_out(store, run, step))
        retry(run.settle)
        eventually(lambda: run.mirror.snapshot() == fresh(store))
        eventually(lambda: view == fresh(store))


def retry(call: Callable[[], None]) -> None:
    """Injected failures hit the test's own calls too."""
    while True:
        try:
            call()
        except StoreUnavailable:
            continue
        return
