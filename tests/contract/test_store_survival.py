"""What the store lives through, each with a real etcd that really fails."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from podlane.errors import Fenced, StoreUnavailable
from podlane.store.config import StoreConfig, connect
from podlane.store.election import Election, Leadership
from podlane.store.interface import Compare, Delete, Get, Put, Store, Watch
from podlane.store.lease import KeepAlive
from podlane.store.mirror import Mirror
from podlane.store.writes import Write, commit
from tests.conftest import Etcd, Link

pytestmark = [pytest.mark.contract, pytest.mark.timeout(180)]

WAIT = 40.0
PREFIX = "/m/"


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until it holds; the deadline is for a hung test and no claim about speed."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.02)


def insist(call: Callable[[], object]) -> None:
    """Repeat a harmless write until the store takes it."""
    deadline = time.monotonic() + WAIT
    while True:
        try:
            call()
        except StoreUnavailable:
            assert time.monotonic() < deadline
        else:
            return


def watch_until_it_ends(watch: Watch) -> None:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        watch.next(1.0)


def put(store: Store, name: str, value: bytes = b"") -> int:
    return store.txn([], [Put(PREFIX + name, value)]).revision


@contextlib.contextmanager
def opened(*endpoints: str, timeout: float = 2.0) -> Iterator[Store]:
    store = connect(StoreConfig(endpoints=endpoints, timeout=timeout))
    try:
        yield store
    finally:
        store.close()


class Watched:
    """A mirror that runs, and the keys it reported."""

    def __init__(self, store: Store, **options: int) -> None:
        self.calls = 0
        self.mirror = Mirror(
            store, PREFIX, decode=lambda kv: kv.value, on_change=self._changed, name="survival", **options
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.mirror.run, args=(self._stop,))

    def _changed(self) -> None:
        self.calls += 1

    def __enter__(self) -> Watched:
        self._thread.start()
        assert self.mirror.wait_synced(WAIT)
        assert self.mirror.take_changes() is None
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(WAIT)
        assert not self._thread.is_alive(), "the mirror must end when it is told to"

    def comes_to(self, expected: dict[str, bytes]) -> None:
        eventually(lambda: self.mirror.snapshot() == expected, f"mirror is {expected}")


# --- the mirror --------------------------------------------------------------------


def test_mirror_survives_an_etcd_restart(etcd: Etcd) -> None:
    with opened(*etcd.endpoints) as store:
        put(store, "a", b"1")
        with Watched(store) as watched:
            etcd.stop(signal.SIGKILL)
            eventually(lambda: watched.mirror.healthy_since is None, "the mirror notices")
            assert watched.mirror.snapshot() == {"a": b"1"}
            etcd.start()
            insist(lambda: put(store, "b", b"2"))
            watched.comes_to({"a": b"1", "b": b"2"})
            assert watched.mirror.take_changes() == {"b"}
            assert watched.mirror.view() == ({"a": b"1", "b": b"2"}, 1), "it is still the same store"
            assert watched.mirror.healthy_since is not None


def test_mirror_yields_the_difference_after_compaction_behind_its_back(etcd: Etcd, link: Link) -> None:
    with opened(*etcd.endpoints) as direct, opened(link.endpoint) as store:
        for name in ("stays", "changes", "goes"):
            put(direct, name, b"1")
        with Watched(store) as watched:
            before = watched.mirror.snapshot()
            link.swallow()
            link.cut()
            put(direct, "changes", b"2")
            put(direct, "comes", b"1")
            etcd.compact(direct.txn([], [Delete(PREFIX + "goes")]).revision)
            assert watched.mirror.snapshot() == before
            link.restore()
            watched.comes_to({"stays": b"1", "changes": b"2", "comes": b"1"})
            assert watched.mirror.take_changes() == {"changes", "comes", "goes"}
            assert watched.mirror.view()[1] == 1, "what is missing was deleted"


def test_mirror_survives_cuts_in_the_middle_of_a_stream(etcd: Etcd, link: Link) -> None:
    with opened(*etcd.endpoints) as direct, opened(link.endpoint) as store, Watched(store) as watched:
        expected = {}
        for n in range(300):
            name = f"{n % 50}"
            if n % 7 == 3:
                direct.txn([], [Delete(PREFIX + name)])
                expected.pop(name, None)
            else:
                put(direct, name, str(n).encode())
                expected[name] = str(n).encode()
            if n % 60 == 30:
                link.cut()
        watched.comes_to(expected)


def test_mirror_notices_a_black_hole(etcd: Etcd, link: Link) -> None:
    with opened(link.endpoint, *etcd.endpoints) as store, Watched(store) as watched:
        link.swallow()
        insist(lambda: put(store, "a", b"1"))
        watched.comes_to({"a": b"1"})


def test_mirror_lists_again_when_etcd_was_wiped(etcd: Etcd) -> None:
    with opened(*etcd.endpoints) as store:
        for n in range(20):
            put(store, "old", str(n).encode())
        with Watched(store) as watched:
            etcd.stop()
            etcd.wipe()
            etcd.start()
            insist(lambda: put(store, "new", b"1"))
            watched.comes_to({"new": b"1"})
            assert watched.mirror.take_changes() == {"old", "new"}
            assert watched.mirror.view() == ({"new": b"1"}, 2), "what is missing was never deleted"
            assert watched.mirror.revision < 20


def test_mirror_lists_again_when_a_wiped_etcd_has_overtaken_it(etcd: Etcd, link: Link) -> None:
    """The revision went on, the cluster id is the same: only the witness tells."""
    with opened(*etcd.endpoints) as direct, opened(link.endpoint) as store:
        put(direct, "old", b"1")
        with Watched(store) as watched:
            link.swallow()
            link.cut()
            etcd.stop()
            etcd.wipe()
            etcd.start()
            insist(lambda: put(direct, "new", b"0"))
            for n in range(30):
                put(direct, "other", str(n).encode())
            assert direct.list(PREFIX).revision > watched.mirror.revision
            link.restore()
            watched.comes_to({"new": b"0", "other": b"29"})
            assert watched.mirror.view()[1] == 2


@pytest.mark.parametrize("wiped", [False, True])
def test_a_restarted_mirror_knows_whether_it_is_the_same_store(etcd: Etcd, wiped: bool) -> None:
    with opened(*etcd.endpoints) as store:
        put(store, "a")
        with Watched(store) as before:
            witness, revision = before.mirror.witness, before.mirror.revision
    etcd.stop(signal.SIGKILL)
    if wiped:
        etcd.wipe()
    etcd.start()
    with opened(*etcd.endpoints) as store, Watched(store, witness=witness, witness_revision=revision) as again:
        assert again.mirror.resumed_from_witness is not wiped
        assert again.mirror.view() == ({} if wiped else {"a": b""}, 1)
        assert (again.mirror.witness == witness) is not wiped


# --- fail-over ------------------------------------------------------------------------


def test_calls_and_watches_outlive_the_endpoint_they_use(etcd_cluster: Etcd) -> None:
    with opened(*etcd_cluster.endpoints) as store, Watched(store) as watched:
        for n, member in enumerate(etcd_cluster.members):
            member.stop(signal.SIGKILL)
            assert store.get(PREFIX + "none") is None  # a read needs no second try by its caller
            insist(lambda n=n: put(store, f"{n}", b"1"))
            watched.comes_to({f"{m}": b"1" for m in range(n + 1)})
            etcd_cluster.start()


def test_a_leader_change_is_survived(etcd_cluster: Etcd) -> None:
    with opened(*etcd_cluster.endpoints) as store, Watched(store) as watched:
        lease = store.grant(60)
        etcd_cluster.leader().freeze()
        insist(lambda: put(store, "a", b"1"))
        watched.comes_to({"a": b"1"})
        assert store.keep_alive(lease) == 60
        for member in etcd_cluster.members:
            member.thaw()


def test_a_member_cut_off_from_the_others_is_left(etcd_cluster: Etcd) -> None:
    """It answers, but has no leader: nothing it says is current."""
    lonely, *others = etcd_cluster.members
    with opened(lonely.endpoint) as alone, opened(*etcd_cluster.endpoints) as store:
        put(store, "a", b"1")
        watch = alone.watch(PREFIX, start_revision=1)
        for member in others:
            member.freeze()
        with pytest.raises(StoreUnavailable):
            watch_until_it_ends(watch)
        with pytest.raises(StoreUnavailable, match="leader"):
            alone.get(PREFIX + "a")
        for member in others:
            member.thaw()
        insist(lambda: put(store, "b", b"1"))


@pytest.mark.parametrize("dead", ["refuses", "swallows"])
def test_a_dead_endpoint_costs_no_call(etcd: Etcd, link: Link, dead: str) -> None:
    if dead == "refuses":
        link.close()
    else:
        link.swallow()
    for _ in range(4):  # each starts at a random endpoint
        with opened(link.endpoint, *etcd.endpoints, timeout=1.0) as store:
            revision = put(store, "a")  # a write too: it surely was not sent before
            assert store.txn([], [Get(PREFIX + "a")]).reads[0][0].mod_revision == revision
            with store.watch(PREFIX, start_revision=revision) as watch:
                assert watch.next(WAIT) is not None


def test_a_call_ends_by_its_deadline(etcd: Etcd, link: Link) -> None:
    with opened(link.endpoint) as store:
        put(store, "a")
        link.swallow()
        ended = threading.Event()

        def call() -> None:
            for attempt in (
                lambda: store.get(PREFIX + "a", timeout=0.3),
                lambda: put(store, "b"),
                lambda: store.watch(PREFIX, start_revision=1, timeout=0.3),
                lambda: store.grant(10, timeout=0.3),
                lambda: store.keep_alive(1, timeout=0.3),
            ):
                with pytest.raises(StoreUnavailable):
                    attempt()
            ended.set()

        threading.Thread(target=call, daemon=True).start()
        assert ended.wait(WAIT)


def test_an_unsure_write_is_not_repeated(etcd: Etcd, link: Link) -> None:
    """The answer is lost after etcd did it: it is done once, and the caller is told that nothing is sure."""
    with opened(*etcd.endpoints) as direct, opened(link.endpoint) as store:
        before = put(store, "a")
        link.swallow_answers()
        outcome: list[Exception] = []

        def write() -> None:
            try:
                put(store, "a", b"again")
            except StoreUnavailable as error:
                outcome.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        eventually(lambda: direct.txn([], []).revision == before + 1, "the write arrives")
        link.cut()
        link.restore()
        writer.join(WAIT)
        assert len(outcome) == 1
        assert direct.txn([], []).revision == before + 1


# --- leases --------------------------------------------------------------------------


def test_keep_alive_keeps_a_lease_over_an_etcd_restart(etcd: Etcd) -> None:
    with opened(*etcd.endpoints) as store:
        lost = threading.Event()
        kept = KeepAlive(store, 6, on_lost=lost.set)
        kept.start()
        store.txn([], [Put(PREFIX + "a", b"", kept.lease_id)])
        etcd.stop(signal.SIGKILL)
        etcd.start()
        assert not lost.wait(8)
        assert store.get(PREFIX + "a") is not None
        kept.stop(revoke=True)
        assert store.get(PREFIX + "a") is None


def test_keep_alive_notices_a_lease_revoked_behind_its_back(etcd: Etcd) -> None:
    with opened(*etcd.endpoints) as store:
        lost = threading.Event()
        kept = KeepAlive(store, 3, on_lost=lost.set)
        kept.start()
        assert not kept.lost
        store.revoke(kept.lease_id)
        assert lost.wait(WAIT)
        assert kept.lost
        kept.stop()


def test_keep_alive_gives_up_when_etcd_is_away_for_longer_than_the_ttl(etcd: Etcd) -> None:
    with opened(*etcd.endpoints) as store:
        lost = threading.Event()
        kept = KeepAlive(store, 3, on_lost=lost.set)
        kept.start()
        etcd.stop(signal.SIGKILL)
        assert lost.wait(WAIT)
        assert kept.lost
        kept.stop(revoke=False)


# --- elections -------------------------------------------------------------------------


class Candidate:
    """Campaigns; `freeze` is what happens to a process that is stopped by its host."""

    def __init__(self, store: Store, name: str) -> None:
        self.election = Election(store, "/election", name, ttl=2)
        self.led: list[Leadership] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.election.run, args=(self._stop, self._lead))
        self._thread.start()

    def _lead(self, leadership: Leadership) -> None:
        self.led.append(leadership)
        leadership.lost.wait()

    @property
    def leads(self) -> bool:
        return bool(self.led) and not self.led[-1].lost.is_set()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


def test_the_loser_takes_over_when_the_leaders_lease_ends(etcd: Etcd, link: Link) -> None:
    with opened(link.endpoint) as far, opened(*etcd.endpoints) as near:
        old = Candidate(far, "old")
        eventually(lambda: old.leads, "the only candidate leads")
        new = Candidate(near, "new")
        eventually(lambda: new.election.leader == "old", "the other follows")
        fence = old.led[0].fence
        assert not isinstance(commit(near, Write((), (Put("/w", b"old"),)), fence), StoreUnavailable)
        link.swallow()
        eventually(lambda: new.leads, "the other takes over")
        assert old.led[0].lost.is_set(), "the old leader knew before the new one began"
        with pytest.raises(Fenced):
            commit(near, Write((), (Put("/w", b"late"),)), fence)
        commit(near, Write((), (Put("/w", b"new"),)), new.led[0].fence)
        kv = near.get("/w")
        assert kv is not None
        assert kv.value == b"new"
        link.restore()
        eventually(lambda: old.election.leader == "new", "the old leader follows")
        new.stop()
        eventually(lambda: old.leads, "resigning lets the other in at once")
        old.stop()
        assert near.get("/election") is None


def test_a_leader_whose_key_is_deleted_steps_down(etcd: Etcd) -> None:
    with opened(*etcd.endpoints) as store:
        one = Candidate(store, "one")
        eventually(lambda: one.leads, "it leads")
        store.txn([Compare.holds("/election", b"one")], [Delete("/election")])
        eventually(lambda: len(one.led) == 2, "it campaigns again")
        assert one.led[0].lost.is_set()
        assert one.led[0].fence != one.led[1].fence
        one.stop()
