"""A local copy of everything below a prefix, kept up to date for as long as its thread runs.

Owns: list + watch, and what to do when either fails. Invariants: a snapshot is
the store's state as of one revision, never a half list, never half a
transaction; every difference between two states is in `take_changes`, also
when it was found by listing again; what cannot be decoded is treated as
absent, so that the content depends on the store alone and not on the past.

How it survives:
- a broken stream: it watches again from the last revision seen (that one is
  delivered once more and skipped; see Store.watch for why);
- compaction behind its back: it lists again;
- a store that was wiped or exchanged, which a watch cannot notice (a watch
  from a future revision just waits), nor can a reader when the new store has
  overtaken the old one's revision (a cluster started with the same flags even
  has the same id). So before it lists, the mirror takes a lease without keys,
  whose id no other history has; once a watch is open it proves that this
  witness lives and that the revision did not go back, and lists again if not.
  A list counts as the same history only if the witness lives after it too. So
  `view` can say whether what is missing was deleted, or is merely not in this
  store.
Source: client-go's Reflector; the witness is our own.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from podlane.errors import PodlaneError, StoreUnavailable
from podlane.runtime import metrics
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from podlane.runtime.runner import NotReady
from podlane.store.interface import Compacted, KeyValue, LeaseNotFound, Store, Watch, WatchBatch

T = TypeVar("T")
V = TypeVar("V")

LIST_TIMEOUT = 30.0  # seconds for one page
POLL = 1.0
# seconds: first and longest pause between attempts. Together with gRPC's pause before it connects again (1.2 s, see
# endpoints.py) it decides how long after etcd's return a change is seen: less than 2 s, however long etcd was away.
BACKOFF = (0.1, 0.7)
REMIND = 60.0  # seconds between warnings while it goes on failing
MIN_CHANGES_KEPT = 10_000
WITNESS_TTL = 3600  # seconds; renewed every third of it, or of what the store says it lives

_KEYS = metrics.gauge("podlane_mirror_keys", "Keys held.", ["mirror"])
_EVENTS = metrics.counter("podlane_mirror_events_total", "Watch events applied.", ["mirror"])
_LISTS = metrics.counter("podlane_mirror_lists_total", "Complete lists taken.", ["mirror"])
_FAILURES = metrics.counter("podlane_mirror_failures_total", "Lists and watches that failed.", ["mirror"])
_UNDECODABLE = metrics.gauge("podlane_mirror_undecodable", "Keys whose value cannot be read.", ["mirror"])
_CONTACT = metrics.gauge(
    "podlane_mirror_last_contact_timestamp_seconds", "When the watch was last known to live.", ["mirror"]
)


class NotSynced(NotReady):
    """There is no complete list yet."""


class Mirror(Generic[T]):
    """Everything below `prefix`, keyed by `key_prefix` and what follows `prefix` in the key.

    `decode` turns a key and value into what is kept; any ValueError or
    PodlaneError it raises is logged once and the key left out; what it makes the
    same of as before is no change. `on_change` is called after each change and
    after the first list, from the mirror's thread: it must be quick (trigger a
    runner). Readers may be any thread.
    `poll`: seconds a stop may go unnoticed; `changes_kept`: how many changes
    nobody has taken are remembered one by one (or as many as there are items).
    `witness` is a lease known from before a restart, 0 for none, and
    `witness_revision` a revision the store had reached then; `witness_ttl` are
    the seconds for which the mirror's own witness outlives losing the store.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        decode: Callable[[KeyValue], T],
        on_change: Callable[[], None],
        name: str,
        clock: Clock | None = None,
        key_prefix: str = "",
        poll: float = POLL,
        changes_kept: int = MIN_CHANGES_KEPT,
        witness: int = 0,
        witness_revision: int = 0,
        witness_ttl: int = WITNESS_TTL,
    ) -> None:
        self.name = name
        self.prefix = prefix
        self._store = store
        self._decode = decode
        self._on_change = on_change
        self._clock = clock or SystemClock()
        self._key_prefix = key_prefix
        self._poll = poll
        self._changes_kept = changes_kept
        self._log = get_logger("mirror", mirror=name)
        self._lock = threading.Lock()
        self._items: dict[str, T] = {}
        self._revisions: dict[str, int] = {}  # mod_revision of every key, undecodable ones too
        self._undecodable: dict[str, str] = {}
        self._changes: set[str] | None = None  # None: everything
        self._revision = 0
        self._cluster_id = 0
        self._history = 0
        self._witness = witness  # of the history the content is of; 0: that is not known
        self._next_witness = 0  # made for the list that is being taken
        self._witness_ttl = witness_ttl
        self._renew_after = WITNESS_TTL / 3
        self._at_least = witness_revision  # in this history
        self._resumed_from_witness = False
        self._reported: float | None = None  # when a failure was last logged, since all was well
        self._synced = threading.Event()
        self._last_contact: float | None = None
        self._healthy_since: float | None = None

    # --- for readers ---------------------------------------------------------------

    @property
    def synced(self) -> bool:
        """Whether a complete list was seen; stays true when the store goes away later."""
        return self._synced.is_set()

    def wait_synced(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the first complete list."""
        return self._clock.wait(self._synced, timeout)

    def snapshot(self) -> dict[str, T]:
        """Copy of everything as of one revision. Raises NotSynced.

        Call `take_changes` before it, never after: then no change is missed.
        """
        with self._lock:
            self._check_synced()
            return self._items.copy()

    def view(self) -> tuple[dict[str, T], int]:
        """Everything as of one revision, and the number of its history. Raises NotSynced.

        The first list's history is 1. The number grows by one when a list was
        taken from a store that is not provably the one before: then what is
        missing was perhaps never deleted. With the same number it was.
        """
        with self._lock:
            self._check_synced()
            return self._items.copy(), self._history

    def get(self, key: str) -> T | None:
        """One item of the present state. Raises NotSynced."""
        with self._lock:
            self._check_synced()
            return self._items.get(key)

    def take_changes(self) -> frozenset[str] | None:
        """Keys that changed, came or went since the last call; None: treat everything as changed."""
        with self._lock:
            taken, self._changes = self._changes, set()
            return None if taken is None else frozenset(taken)

    @property
    def revision(self) -> int:
        """The store's revision the content is known to be of; 0 before the first list."""
        return self._revision

    @property
    def cluster_id(self) -> int:
        """The cluster id etcd gave at the last list; 0 before it."""
        return self._cluster_id

    @property
    def witness(self) -> int:
        """The lease that stands for the present history, for a restart's `witness`; 0 while there is none.

        Read it before `view`, never after: then a witness that is saved
        beside what was seen never vouches for another store.
        """
        return self._witness if self.synced else 0

    @property
    def resumed_from_witness(self) -> bool:
        """Whether the first list was of the very store that the given `witness` was made in."""
        return self._resumed_from_witness

    @property
    def undecodable(self) -> dict[str, str]:
        """Why, by key, for the keys left out because their value cannot be read."""
        with self._lock:
            return self._undecodable.copy()

    @property
    def healthy_since(self) -> float | None:
        """Monotonic seconds since when list and watch have worked without a failure; None: broken now."""
        return self._healthy_since

    @property
    def last_contact(self) -> float | None:
        """Monotonic seconds of the last proof that the watch lives; None: never."""
        return self._last_contact

    def not_ready(self) -> str | None:
        """For Daemon.add_ready_check: None once synced, else why not."""
        return None if self.synced else f"mirror {self.name}: no complete list of {self.prefix} yet"

    def _check_synced(self) -> None:
        if not self._synced.is_set():
            raise NotSynced(f"read mirror {self.name}: no complete list of {self.prefix} yet")

    # --- the thread ----------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Keep the copy until `stop` is set: the body of one thread."""
        relist, pause = True, BACKOFF[0]
        while not stop.is_set():
            listed = relist
            try:
                if relist:
                    self._list()
                    relist = False
                with self._store.watch(self.prefix, start_revision=self._revision) as watch:
                    relist = not self._same_history()
                    while not relist and not stop.is_set():
                        pause = BACKOFF[0]
                        self._follow(watch, stop, self._clock.monotonic() + self._renew_after)
                        relist = not stop.is_set() and not self._same_history()
                if relist:
                    self._log.info("cannot resume, listing again", revision=self._revision)
                    if listed:
                        pause = self._pause(stop, pause)
            except Compacted as error:
                self._log.info("compacted, listing again", revision=self._revision, oldest=error.revision)
                relist = True
            except PodlaneError as error:
                if stop.is_set():
                    return  # whoever told us to end may have closed the store since: that is no news
                self._failed(error)
                pause = self._pause(stop, pause)

    def _pause(self, stop: threading.Event, pause: float) -> float:
        """Wait about `pause` seconds, not in step with other hosts; returns how long to wait the next time."""
        self._clock.wait(stop, pause * random.uniform(0.5, 1.0))
        return min(BACKOFF[1], pause * 2)

    def _failed(self, error: PodlaneError) -> None:
        self._healthy_since = None
        _FAILURES.labels(self.name).inc()
        now = self._clock.monotonic()
        if self._reported is None or now >= self._reported + REMIND:
            self._reported = now
            self._log.warning("mirror failed", error=str(error), retry_in=BACKOFF[1])
        else:
            self._log.debug("mirror failed", error=str(error))

    def _follow(self, watch: Watch, stop: threading.Event, until: float) -> None:
        while not stop.is_set() and self._clock.monotonic() < until:
            batch = watch.next(self._poll)
            self._contact()  # also without a batch: a dead stream would have raised
            if batch is not None:
                self._apply(batch)

    def _contact(self) -> None:
        self._last_contact = self._clock.monotonic()
        _CONTACT.labels(self.name).set(self._clock.now())
        if self._healthy_since is None:
            self._healthy_since = self._last_contact
            if self._reported is not None:
                self._log.info("mirror works again")
                self._reported = None

    def _same_history(self, since: int = 0) -> bool:
        """Whether the store has surely gone on from the state we hold, and from revision `since`. See the module.

        Renews the witness; one that failed once counts no more, because a
        revision that went back may come up again at any moment.
        """
        if not self._witness:
            return False
        try:
            self._renew_after = min(WITNESS_TTL, self._store.keep_alive(self._witness)) / 3
            result = self._store.txn([], [])
            same = result.revision >= max(self._at_least, since) and self._cluster_id in {0, result.cluster_id}
        except LeaseNotFound:
            same = False
        if not same:
            self._witness = self._at_least = 0
        return same

    def _list(self) -> None:
        """Replace the content by a complete list; what is surely unchanged is not decoded again."""
        resumed = self._same_history()
        if not resumed and not self._next_witness:
            self._next_witness = self._store.grant(self._witness_ttl)
        items: dict[str, T] = {}
        revisions: dict[str, int] = {}
        undecodable: dict[str, str] = {}
        revision = cluster_id = 0
        for page in self._store.pages(self.prefix, timeout=LIST_TIMEOUT):
            revision, cluster_id = page.revision, page.cluster_id
            for kv in page.items:
                key = self._key(kv)
                revisions[key] = kv.mod_revision
                if resumed and self._revisions.get(key) == kv.mod_revision and key in self._items:
                    items[key] = self._items[key]
                else:
                    self._read(key, kv, items, undecodable)
        if resumed and not self._same_history(revision):
            raise StoreUnavailable(f"list {self.prefix}: the store was exchanged meanwhile")
        changed = {key for key, item in items.items() if key not in self._items or self._items[key] != item}
        changed.update(self._items.keys() - items.keys())
        first = not self.synced
        self._resumed_from_witness = resumed if first else self._resumed_from_witness
        with self._lock:
            self._items, self._revisions, self._undecodable = items, revisions, undecodable
            self._revision, self._cluster_id, self._at_least = revision, cluster_id, revision
            if not resumed:
                self._witness, self._next_witness = self._next_witness, 0
            self._history += first or not resumed
            self._note(changed)
            self._synced.set()
        _LISTS.labels(self.name).inc()
        self._contact()
        self._measure()
        if first or changed:
            self._on_change()

    def _apply(self, batch: WatchBatch) -> None:
        """Take in the events that are new. Decoding is done before readers are locked out."""
        events = [event for event in batch.events if event.kv.mod_revision > self._revision]
        items: dict[str, T] = {}
        undecodable: dict[str, str] = {}
        last: dict[str, int] = {}  # mod_revision, 0 for a deletion; a batch may hold a key twice
        for event in events:
            key = self._key(event.kv)
            items.pop(key, None)
            undecodable.pop(key, None)
            last[key] = 0
            if event.type == "put":
                last[key] = event.kv.mod_revision
                self._read(key, event.kv, items, undecodable)
        changed: list[str] = []
        with self._lock:
            for key, mod_revision in last.items():
                if self._items.get(key) != items.get(key):
                    changed.append(key)
                _set_or_drop(self._items, key, items)
                _set_or_drop(self._undecodable, key, undecodable)
                if mod_revision:
                    self._revisions[key] = mod_revision
                else:
                    self._revisions.pop(key, None)
            self._revision = self._at_least = max(self._revision, batch.revision)
            self._note(changed)
        if last:
            _EVENTS.labels(self.name).inc(len(events))
            self._measure()
        if changed:
            self._on_change()

    def _read(self, key: str, kv: KeyValue, items: dict[str, T], undecodable: dict[str, str]) -> None:
        try:
            items[key] = self._decode(kv)
        except (ValueError, PodlaneError) as error:
            undecodable[key] = str(error)
            if self._revisions.get(key) != kv.mod_revision:
                self._log.warning("left out", key=kv.key, revision=kv.mod_revision, error=str(error))

    def _key(self, kv: KeyValue) -> str:
        return self._key_prefix + kv.key[len(self.prefix) :]

    def _note(self, changed: Iterable[str]) -> None:
        """Remember for take_changes. The lock is held; nobody may ever ask, so it is bounded."""
        if self._changes is not None:
            self._changes.update(changed)
            if len(self._changes) > max(self._changes_kept, len(self._items)):
                self._changes = None

    def _measure(self) -> None:
        _KEYS.labels(self.name).set(len(self._items))
        _UNDECODABLE.labels(self.name).set(len(self._undecodable))


def _set_or_drop(into: dict[str, V], key: str, values: dict[str, V]) -> None:
    if key in values:
        into[key] = values[key]
    else:
        into.pop(key, None)
