"""What every Store does, held against memory and real etcd alike."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from podlane.errors import StoreUnavailable
from podlane.store.config import connect
from podlane.store.etcd import PAGE
from podlane.store.interface import (
    Compacted,
    Compare,
    Delete,
    Get,
    KeyValue,
    LeaseNotFound,
    Put,
    Refused,
    Store,
    Watch,
    WatchEvent,
)
from podlane.store.memory import MemoryStore

pytestmark = pytest.mark.contract

WAIT = 10.0


@dataclass
class Subject:
    """A store under test, and what its cluster can do to it."""

    store: Store
    compact: object
    p: str  # a prefix of this test's own

    def put(self, name: str, value: bytes = b"", lease: int = 0) -> int:
        return self.store.txn([], [Put(self.p + name, value, lease)]).revision

    def delete(self, name: str) -> int:
        return self.store.txn([], [Delete(self.p + name)]).revision

    def get(self, name: str) -> KeyValue | None:
        return self.store.get(self.p + name)

    def watch(self, start_revision: int) -> Watch:
        return self.store.watch(self.p, start_revision=start_revision)


@pytest.fixture(params=["memory", "etcd"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    prefix = f"/{uuid.uuid4().hex}/"
    if request.param == "memory":
        memory = MemoryStore()
        yield Subject(memory, memory.compact, prefix)
        return
    etcd = request.getfixturevalue("shared_etcd")
    store = connect(etcd.client_config)
    yield Subject(store, etcd.compact, prefix)
    store.close()


def events_until(watch: Watch, count: int) -> list[WatchEvent]:
    """The next `count` events, however they are batched."""
    events: list[WatchEvent] = []
    while len(events) < count:
        batch = watch.next(WAIT)
        assert batch is not None, f"only {len(events)} events of {count}"
        assert all(event.kv.mod_revision <= batch.revision for event in batch.events)
        events += batch.events
    assert len(events) == count
    return events


# --- keys and revisions ----------------------------------------------------------


def test_a_key_counts_its_changes(subject: Subject) -> None:
    assert subject.get("a") is None
    first = subject.put("a", b"1")
    second = subject.put("a", b"2")
    assert second == first + 1
    assert subject.get("a") == KeyValue(subject.p + "a", b"2", first, second, 2, 0)
    subject.delete("a")
    assert subject.get("a") is None
    third = subject.put("a", b"3")
    assert subject.get("a") == KeyValue(subject.p + "a", b"3", third, third, 1, 0)


def test_what_changes_nothing_makes_no_revision(subject: Subject) -> None:
    revision = subject.put("a")
    assert subject.delete("absent") == revision
    assert subject.store.txn([], []).revision == revision
    assert subject.put("a") == revision + 1  # the same value again is a change


def test_an_empty_value_is_not_an_absent_key(subject: Subject) -> None:
    subject.put("a", b"")
    found = subject.get("a")
    assert found is not None
    assert found.value == b""


def test_list_is_sorted_and_knows_its_revision(subject: Subject) -> None:
    assert subject.store.list(subject.p).items == ()
    for name in ("b", "a/2", "a/10", "c"):
        revision = subject.put(name, name.encode())
    listing = subject.store.list(subject.p)
    assert [kv.key for kv in listing.items] == [subject.p + name for name in ("a/10", "a/2", "b", "c")]
    assert listing.revision == revision
    assert [kv.value for kv in subject.store.list(subject.p + "a/").items] == [b"a/10", b"a/2"]
    assert subject.store.txn([], []).cluster_id == listing.cluster_id != 0


def test_a_prefix_is_not_its_neighbour(subject: Subject) -> None:
    for name in ("pods/a", "podsx", "pods", "pods0"):
        subject.put(name)
    assert [kv.key for kv in subject.store.list(subject.p + "pods/").items] == [subject.p + "pods/a"]


def test_pages_are_one_list_as_of_one_revision(subject: Subject) -> None:
    total = PAGE + 150
    for start in range(0, total, 100):
        names = range(start, min(total, start + 100))
        subject.store.txn([], [Put(f"{subject.p}{n:06}", b"old") for n in names])
    pages = subject.store.pages(subject.p)
    first = next(pages)
    subject.store.txn([], [Put(f"{subject.p}{total - 1:06}", b"new"), Delete(f"{subject.p}{total - 2:06}")])
    rest = list(pages)
    assert rest, "the list was to be longer than a page"
    assert {page.revision for page in rest} == {first.revision}
    items = [kv for page in (first, *rest) for kv in page.items]
    assert [kv.key for kv in items] == [f"{subject.p}{n:06}" for n in range(total)]
    assert {kv.value for kv in items} == {b"old"}


def test_pages_say_so_when_their_revision_is_compacted(subject: Subject) -> None:
    for start in range(0, PAGE + 100, 100):
        subject.store.txn([], [Put(f"{subject.p}{n:06}", b"") for n in range(start, start + 100)])
    pages = subject.store.pages(subject.p)
    next(pages)
    subject.compact(subject.put("zzz"))
    with pytest.raises(Compacted):
        list(pages)


def test_an_empty_prefix_has_one_empty_page(subject: Subject) -> None:
    revision = subject.store.txn([], []).revision
    (page,) = subject.store.pages(subject.p)
    assert page.items == ()
    assert page.revision == revision


# --- transactions ------------------------------------------------------------------


def test_a_transaction_takes_one_branch(subject: Subject) -> None:
    a, b = subject.p + "a", subject.p + "b"
    made = subject.store.txn([Compare.absent(a)], [Put(a, b"1"), Put(b, b"1")], [Get(a)])
    assert made.succeeded
    again = subject.store.txn([Compare.absent(a)], [Put(a, b"2")], [Get(a), Get(subject.p + "none"), Get(b)])
    assert not again.succeeded
    assert [[kv.value for kv in read] for read in again.reads] == [[b"1"], [], [b"1"]]
    assert again.revision == made.revision
    assert subject.get("a") == KeyValue(a, b"1", made.revision, made.revision, 1, 0)


def test_comparisons(subject: Subject) -> None:
    key, none = subject.p + "a", subject.p + "none"
    created = subject.put("a", b"1")
    modified = subject.put("a", b"2")
    holds = {
        Compare.absent(key): False,
        Compare.absent(none): True,
        Compare.modified_at(key, modified): True,
        Compare.modified_at(key, created): False,
        Compare.modified_at(none, 0): True,
        Compare.created_at(key, created): True,
        Compare.created_at(key, modified): False,
        Compare.created_at(none, created): False,
        Compare.holds(key, b"2"): True,
        Compare.holds(key, b"1"): False,
        Compare.holds(none, b""): False,
        Compare(key, "version", 2): True,
        Compare(key, "lease", 0): True,
    }
    for compare, expected in holds.items():
        assert subject.store.txn([compare], []).succeeded is expected, compare
        found = subject.store.get(compare.key)
        assert compare.holds_for(found) is expected, compare
    together = [compare for compare, expected in holds.items() if expected]
    assert subject.store.txn(together, []).succeeded
    assert not subject.store.txn([*together, Compare.absent(key)], []).succeeded


def test_a_transaction_is_one_revision(subject: Subject) -> None:
    subject.put("gone")
    subject.put("pre/1")
    subject.put("pre/2")
    result = subject.store.txn(
        [], [Put(subject.p + "a", b"1"), Delete(subject.p + "gone"), Delete(subject.p + "pre/", prefix=True)]
    )
    with subject.watch(result.revision) as watch:
        events = events_until(watch, 4)
    assert [(e.type, e.kv.key.removeprefix(subject.p), e.kv.mod_revision) for e in events] == [
        ("put", "a", result.revision),
        ("delete", "gone", result.revision),
        ("delete", "pre/1", result.revision),
        ("delete", "pre/2", result.revision),
    ]
    assert events[1].kv == KeyValue(subject.p + "gone", b"", 0, result.revision, 0)
    assert [kv.key for kv in subject.store.list(subject.p).items] == [subject.p + "a"]


def test_reads_in_a_transaction_see_its_writes(subject: Subject) -> None:
    key = subject.p + "a"
    result = subject.store.txn([], [Put(key, b"1"), Get(key), Get(subject.p, prefix=True)])
    assert [[kv.value for kv in read] for read in result.reads] == [[b"1"], [b"1"]]


@pytest.mark.parametrize(
    "ops",
    [
        pytest.param([Put("k", b"1"), Put("k", b"2")], id="two-puts-of-one-key"),
        pytest.param([Put("k", b"1"), Delete("k")], id="put-and-delete"),
        pytest.param([Delete("k", prefix=True), Put("key", b"1")], id="put-below-a-deleted-prefix"),
        pytest.param([Put(f"k{n}", b"") for n in range(129)], id="too-many"),
    ],
)
def test_a_malformed_transaction_is_refused_and_does_nothing(subject: Subject, ops: list[Put | Delete]) -> None:
    placed = [
        Put(subject.p + op.key, op.value) if isinstance(op, Put) else Delete(subject.p + op.key, op.prefix)
        for op in ops
    ]
    with pytest.raises(Refused):
        subject.store.txn([], placed)
    assert subject.store.list(subject.p).items == ()


def test_128_operations_fit(subject: Subject) -> None:
    compare = [Compare.absent(f"{subject.p}{n:03}") for n in range(128)]
    assert subject.store.txn(compare, [Put(f"{subject.p}{n:03}", b"") for n in range(128)]).succeeded
    assert len(subject.store.list(subject.p).items) == 128


def test_concurrent_compare_and_swap_loses_no_update(subject: Subject) -> None:
    key = subject.p + "counter"
    subject.put("counter", b"0")

    def add() -> None:
        for _ in range(10):
            done = False
            while not done:
                kv = subject.store.get(key)
                assert kv is not None
                new = Put(key, str(int(kv.value) + 1).encode())
                done = subject.store.txn([Compare.modified_at(key, kv.mod_revision)], [new]).succeeded

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = subject.get("counter")
    assert found is not None
    assert found.value == b"40"


# --- watches -----------------------------------------------------------------------


def test_a_watch_delivers_from_its_start_revision_on(subject: Subject) -> None:
    subject.put("before")
    start = subject.put("a", b"1")
    subject.put("a", b"2")
    with subject.watch(start) as watch:
        past = events_until(watch, 2)
        subject.delete("a")
        subject.put("b", b"3")
        now = events_until(watch, 2)
    seen = [(e.type, e.kv.key.removeprefix(subject.p), e.kv.value, e.kv.mod_revision) for e in past + now]
    assert seen == [
        ("put", "a", b"1", start),
        ("put", "a", b"2", start + 1),
        ("delete", "a", b"", start + 2),
        ("put", "b", b"3", start + 3),
    ]
    assert [e.kv.version for e in now] == [0, 1]  # 0: it is not there


def test_a_watch_sees_only_its_prefix(subject: Subject) -> None:
    start = subject.put("in/a")
    with subject.store.watch(subject.p + "in/", start_revision=start) as watch:
        subject.store.txn([], [Put(subject.p + "out", b""), Put(subject.p + "in/b", b"")])
        subject.put("inn")
        subject.put("in/c")
        keys = [event.kv.key.removeprefix(subject.p) for event in events_until(watch, 3)]
    assert keys == ["in/a", "in/b", "in/c"]


def test_a_watch_from_the_future_waits_for_it(subject: Subject) -> None:
    revision = subject.put("a")
    with subject.watch(revision + 3) as watch:
        for n in range(4):
            subject.put("b", str(n).encode())
        assert [event.kv.value for event in events_until(watch, 2)] == [b"2", b"3"]


def test_a_quiet_watch_returns_nothing(subject: Subject) -> None:
    with subject.watch(subject.put("a") + 1) as watch:
        assert watch.next(0.0) is None
        assert watch.next(0.05) is None


def test_a_watch_of_a_compacted_revision_says_so(subject: Subject) -> None:
    start = subject.put("a", b"1")
    subject.put("a", b"2")
    subject.compact(subject.put("a", b"3"))
    with subject.watch(start) as watch, pytest.raises(Compacted) as caught:
        events_until(watch, 1)
    assert caught.value.revision == start + 2


def test_compaction_does_not_harm_an_open_watch(subject: Subject) -> None:
    with subject.watch(subject.put("a", b"1")) as watch:
        events_until(watch, 1)
        subject.compact(subject.put("a", b"2"))
        subject.put("a", b"3")
        assert [event.kv.value for event in events_until(watch, 2)] == [b"2", b"3"]


def test_a_watch_from_a_deletion_at_the_compacted_revision_may_miss_it(subject: Subject) -> None:
    """Why one resumes from the last revision seen and not from the next: then it is Compacted."""
    seen = subject.put("a")
    subject.compact(subject.delete("a"))
    with subject.watch(seen) as watch, pytest.raises(Compacted):
        events_until(watch, 1)


def test_many_revisions_arrive_complete_and_in_order(subject: Subject) -> None:
    start = subject.put("n", b"0")
    for n in range(1, 1500):
        subject.put("n", str(n).encode())
    with subject.watch(start) as watch:
        values = [int(event.kv.value) for event in events_until(watch, 1500)]
    assert values == list(range(1500))


def test_cancel_ends_a_wait(subject: Subject) -> None:
    watch = subject.watch(subject.put("a") + 1)
    ended: list[Exception] = []

    def wait() -> None:
        try:
            watch.next(WAIT)
        except StoreUnavailable as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    watch.cancel()
    thread.join(WAIT)
    assert len(ended) == 1
    watch.cancel()  # twice does no harm


# --- leases ------------------------------------------------------------------------


def test_a_lease_takes_its_keys_along(subject: Subject) -> None:
    lease = subject.store.grant(60)
    start = subject.put("a", b"", lease)
    subject.put("b", b"", lease)
    subject.put("freed", b"", lease)
    subject.put("freed", b"")
    found = subject.get("a")
    assert found is not None
    assert found.lease == lease
    subject.store.revoke(lease)
    assert [kv.key for kv in subject.store.list(subject.p).items] == [subject.p + "freed"]
    with subject.watch(start + 4) as watch:
        events = events_until(watch, 2)
    assert {(e.type, e.kv.key.removeprefix(subject.p)) for e in events} == {("delete", "a"), ("delete", "b")}
    assert len({e.kv.mod_revision for e in events}) == 1


def test_a_lease_that_is_gone(subject: Subject) -> None:
    lease = subject.store.grant(60)
    assert 0 < subject.store.time_to_live(lease) <= 60
    assert subject.store.keep_alive(lease) == 60
    subject.store.revoke(lease)
    subject.store.revoke(lease)
    with pytest.raises(LeaseNotFound):
        subject.store.keep_alive(lease)
    with pytest.raises(LeaseNotFound):
        subject.store.time_to_live(lease)
    with pytest.raises(LeaseNotFound):
        subject.store.txn([], [Put(subject.p + "a", b"", lease)])
    assert subject.get("a") is None


def test_a_lease_lasts_two_seconds_at_least(subject: Subject) -> None:
    assert subject.store.keep_alive(subject.store.grant(1)) == 2


def test_a_lease_runs_out_unless_renewed(subject: Subject) -> None:
    kept, lost = subject.store.grant(2), subject.store.grant(2)
    start = subject.store.txn([], [Put(subject.p + "kept", b"", kept), Put(subject.p + "lost", b"", lost)]).revision
    with subject.watch(start + 1) as watch:
        batch = None
        while batch is None:
            subject.store.keep_alive(kept)
            batch = watch.next(0.3)
    assert [(e.type, e.kv.key) for e in batch.events] == [("delete", subject.p + "lost")]
    assert subject.get("kept") is not None


# --- the end -------------------------------------------------------------------------


def test_close_ends_watches(subject: Subject) -> None:
    watch = subject.watch(subject.put("a") + 1)
    subject.store.close()
    with pytest.raises(StoreUnavailable):
        watch.next(WAIT)


def test_one_watch_may_have_many_prefixes_each_from_its_own_revision(subject: Subject) -> None:
    first = subject.put("a/1")
    second = subject.put("b/1")
    subject.put("c/1")
    with subject.store.watch_many({f"{subject.p}a/": first, f"{subject.p}b/": second + 1}) as watch:
        last = subject.put("b/2")
        seen: set[str] = set()
        deadline = time.monotonic() + WAIT
        while not {"a/1", "b/2"} <= seen:
            assert time.monotonic() < deadline
            batch = watch.next(WAIT)
            seen |= {event.kv.key.removeprefix(subject.p) for event in batch.events} if batch else set()
            assert batch is None or batch.revision <= last
    assert "c/1" not in seen


def test_a_watch_of_keys_sees_none_that_only_begin_like_one(subject: Subject) -> None:
    first = subject.put("a/1")
    with subject.store.watch_many({f"{subject.p}a/1": first}, exact=True) as watch:
        subject.put("a/12")
        last = subject.put("a/1")
        seen: list[tuple[str, int]] = []
        deadline = time.monotonic() + WAIT
        while not seen or seen[-1][1] < last:
            assert time.monotonic() < deadline
            batch = watch.next(WAIT)
            seen += [(e.kv.key.removeprefix(subject.p), e.kv.mod_revision) for e in batch.events] if batch else []
    assert seen == [("a/1", first), ("a/1", last)]


def test_many_leases_are_renewed_in_one_go_and_those_gone_are_missing(subject: Subject) -> None:
    leases = [subject.store.grant(60) for _ in range(5)]
    subject.store.revoke(leases[2])
    assert subject.store.keep_alive_many(leases) == {lease: 60 for lease in leases if lease != leases[2]}
    assert subject.store.keep_alive_many([]) == {}
