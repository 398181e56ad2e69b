"""The store in memory: etcd's behaviour without etcd, and with faults on demand.

Owns: the fake that tests/contract/ holds to the same suite as the real thing.
Invariants are those of interface.py. Time is the clock's, so leases expire
when a test says so; expiry is carried out at the next call or by the next
waiting watch. `faults` breaks it in the ways a network and a cluster do.
"""
# ruff: noqa: ARG002 - the interface has deadlines, memory needs none

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from podlane.errors import StoreUnavailable
from podlane.runtime.clock import Clock, SystemClock
from podlane.store.interface import (
    DEFAULT_TIMEOUT,
    Compacted,
    Compare,
    Delete,
    KeyValue,
    LeaseNotFound,
    Listing,
    Op,
    Put,
    Refused,
    TxnResult,
    Watch,
    WatchBatch,
    WatchEvent,
)

MAX_TXN_OPS = 128  # etcd's --max-txn-ops
MIN_TTL = 2


@dataclass
class _Lease:
    ttl: int
    expires: float
    keys: set[str] = field(default_factory=set)


class MemoryStore:
    """Thread-safe. Break it through `.faults`."""

    def __init__(self, clock: Clock | None = None, *, page_size: int = 1000) -> None:
        self._clock = clock or SystemClock()
        self._page_size = page_size
        self._lock = threading.RLock()
        self._lease_ids = itertools.count(1001)
        self._cluster_id = 1
        self._watches: set[_MemoryWatch] = set()
        self._reset()
        self.faults = Faults(self)

    def _reset(self) -> None:
        self._data: dict[str, KeyValue] = {}
        self._history: deque[WatchBatch] = deque()  # one batch a revision
        self._leases: dict[int, _Lease] = {}
        self._revision = 1
        self._compacted = 0

    # --- Store -------------------------------------------------------------------

    def get(self, key: str, *, timeout: float = DEFAULT_TIMEOUT) -> KeyValue | None:
        with self._call("get"):
            return self._data.get(key)

    def list(self, prefix: str, *, since: int = 0, timeout: float = DEFAULT_TIMEOUT) -> Listing:
        with self._call("list"):
            items = tuple(kv for kv in self._below(prefix) if kv.mod_revision >= since)
            return Listing(items, self._revision, self._cluster_id)

    def pages(self, prefix: str, *, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Listing]:
        whole = self.list(prefix, timeout=timeout)
        for start in range(0, max(1, len(whole.items)), self._page_size):
            if start:
                with self._call("list"):
                    if whole.revision < self._compacted:
                        raise Compacted(self._compacted)
            page = whole.items[start : start + self._page_size]
            yield Listing(page, whole.revision, whole.cluster_id)

    def txn(
        self,
        compare: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> TxnResult:
        with self._call("txn"):
            for ops in (then, otherwise):
                _check_ops(ops)
            if len(compare) > MAX_TXN_OPS:
                raise Refused(f"txn: at most {MAX_TXN_OPS} comparisons, got {len(compare)}")
            succeeded = all(c.holds_for(self._data.get(c.key)) for c in compare)
            result = self._apply(then if succeeded else otherwise, succeeded)
            self.faults.after_apply()
            return result

    def watch(self, prefix: str, *, start_revision: int, timeout: float = DEFAULT_TIMEOUT) -> Watch:
        return self.watch_many({prefix: start_revision}, timeout=timeout)

    def watch_many(self, starts: Mapping[str, int], *, exact: bool = False, timeout: float = DEFAULT_TIMEOUT) -> Watch:
        with self._call("watch"):
            start_revision = min(starts.values())
            watch = _MemoryWatch(self, self._clock, tuple(starts), start_revision, exact=exact)
            if start_revision < self._compacted:
                watch.fail(Compacted(self._compacted))
                return watch
            for batch in self._history:
                watch.offer(batch)
            self._watches.add(watch)
            return watch

    def grant(self, ttl: int, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        with self._call("grant"):
            lease_id, ttl = next(self._lease_ids), max(MIN_TTL, ttl)
            self._leases[lease_id] = _Lease(ttl, self._clock.monotonic() + ttl)
            for watch in self._watches:
                watch.wake()  # there is an earlier expiry to wait for now
            return lease_id

    def keep_alive(self, lease: int, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        with self._call("keep lease alive"):
            found = self._lease(lease)
            found.expires = self._clock.monotonic() + found.ttl
            return found.ttl

    def keep_alive_many(self, leases: Sequence[int], *, timeout: float = DEFAULT_TIMEOUT) -> dict[int, int]:
        with self._call("keep leases alive"):
            return {lease: self.keep_alive(lease) for lease in leases if lease in self._leases}

    def time_to_live(self, lease: int, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        with self._call("get time to live"):
            return math.ceil(self._lease(lease).expires - self._clock.monotonic())

    def revoke(self, lease: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        with self._call("revoke lease"):
            self._end_lease(lease)

    def close(self) -> None:
        self.cut("store closed")

    # --- what a test and a watch ask -----------------------------------------------

    @property
    def revision(self) -> int:
        """The store's latest, leases that ran out taken into account."""
        with self._lock:
            self.expire()
            return self._revision

    def compact(self, revision: int | None = None) -> None:
        """Forget everything before `revision` (default: the latest), and deletions at it, as etcd 3.4 does."""
        with self._lock:
            self._compacted = self._revision if revision is None else revision
            while self._history and self._history[0].revision < self._compacted:
                self._history.popleft()
            if self._history and self._history[0].revision == self._compacted:
                puts = tuple(event for event in self._history[0].events if event.type == "put")
                self._history[0] = WatchBatch(puts, self._compacted)

    def wipe(self, cluster_id: int | None = None) -> None:
        """As if etcd had lost its disk: empty, revision 1, watches cut; the same cluster id unless given."""
        with self._lock:
            self._reset()
            self._cluster_id = cluster_id or self._cluster_id
            self.cut("etcd restarted")

    def backup(self) -> Callable[[], None]:
        """Take a backup; calling it puts everything back as it is now, watches cut, older revisions compacted."""
        with self._lock:
            state = copy.deepcopy((self._data, self._leases, self._revision))

        def restore() -> None:
            with self._lock:
                self._data, self._leases, self._revision = copy.deepcopy(state)
                self._history.clear()
                self._compacted = self._revision
                self.cut("etcd restored")

        return restore

    def cut(self, cause: str = "connection lost") -> None:
        """End every open watch as a broken connection would; what was not read yet is lost."""
        with self._lock:
            for watch in list(self._watches):
                watch.fail(StoreUnavailable(f"watch {watch.prefix}: {cause}"))

    def expire(self) -> None:
        """Carry out the leases that have run out."""
        with self._lock:
            now = self._clock.monotonic()
            for lease_id in [i for i, lease in self._leases.items() if lease.expires <= now]:
                self._end_lease(lease_id)

    def next_expiry(self) -> float:
        """When the next lease runs out, by the clock's monotonic time; infinity without leases."""
        with self._lock:
            return min((lease.expires for lease in self._leases.values()), default=math.inf)

    def forget(self, watch: _MemoryWatch) -> None:
        with self._lock:
            self._watches.discard(watch)

    # --- inside --------------------------------------------------------------------

    def _call(self, action: str) -> threading.RLock:
        """The lock, to be held for the call; raises what a fault asks for."""
        self.faults.before(action)
        self.expire()
        return self._lock

    def _below(self, prefix: str) -> tuple[KeyValue, ...]:
        return tuple(self._data[key] for key in sorted(self._data) if key.startswith(prefix))

    def _lease(self, lease: int) -> _Lease:
        try:
            return self._leases[lease]
        except KeyError:
            raise LeaseNotFound(f"lease {lease:x}: not found") from None

    def _end_lease(self, lease_id: int) -> None:
        lease = self._leases.pop(lease_id, None)
        if lease is not None:
            self._apply([Delete(key) for key in sorted(lease.keys)], True)

    def _apply(self, ops: Sequence[Op], succeeded: bool) -> TxnResult:
        for op in ops:
            if isinstance(op, Put) and op.lease:
                self._lease(op.lease)  # refused before anything is changed
        revision = self._revision + 1
        events: list[WatchEvent] = []
        reads: list[tuple[KeyValue, ...]] = []
        for op in ops:
            if isinstance(op, Put):
                events.append(WatchEvent("put", self._put(op, revision)))
            elif isinstance(op, Delete):
                keys = [kv.key for kv in self._below(op.key)] if op.prefix else [op.key]
                events += [self._delete(key, revision) for key in keys if key in self._data]
            elif op.prefix:
                reads.append(self._below(op.key))
            else:
                kv = self._data.get(op.key)
                reads.append((kv,) if kv else ())
        if events:
            self._revision = revision
            batch = WatchBatch(tuple(events), revision)
            self._history.append(batch)
            for watch in self._watches:
                watch.offer(batch)
        return TxnResult(succeeded, self._revision, tuple(reads), self._cluster_id)

    def _put(self, op: Put, revision: int) -> KeyValue:
        old = self._data.get(op.key)
        self._detach(old)
        created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
        kv = self._data[op.key] = KeyValue(op.key, op.value, created, revision, version, op.lease)
        if op.lease:
            self._leases[op.lease].keys.add(op.key)
        return kv

    def _delete(self, key: str, revision: int) -> WatchEvent:
        self._detach(self._data.pop(key))
        return WatchEvent("delete", KeyValue(key, b"", 0, revision, 0))

    def _detach(self, kv: KeyValue | None) -> None:
        if kv is not None and kv.lease in self._leases:
            self._leases[kv.lease].keys.discard(kv.key)


class _MemoryWatch:
    def __init__(
        self, store: MemoryStore, clock: Clock, prefixes: tuple[str, ...], start_revision: int, *, exact: bool
    ) -> None:
        self.prefix, self._prefixes, self._exact = prefixes[0], prefixes, exact
        self._store = store
        self._clock = clock
        self._start = start_revision
        self._pending: deque[WatchBatch] = deque()
        self._error: Exception | None = None
        self._changed = threading.Event()

    def offer(self, batch: WatchBatch) -> None:
        """Take what concerns us of one revision. The store's lock is held."""
        events = tuple(event for event in batch.events if self._concerns(event.kv.key))
        if events and batch.revision >= self._start and self._error is None:
            self._pending.append(WatchBatch(events, batch.revision))
            self._changed.set()

    def _concerns(self, key: str) -> bool:
        return key in self._prefixes if self._exact else key.startswith(self._prefixes)

    def fail(self, error: Exception) -> None:
        self._store.forget(self)
        self._pending.clear()
        self._error = error
        self._changed.set()

    def wake(self) -> None:
        self._changed.set()

    def next(self, timeout: float) -> WatchBatch | None:
        deadline = self._clock.monotonic() + timeout
        while True:
            self._changed.clear()
            self._store.expire()
            if self._error is not None:
                raise self._error
            if self._pending:
                return self._pending.popleft()
            now = self._clock.monotonic()
            if now >= deadline:
                return None
            self._clock.wait(self._changed, min(deadline, self._store.next_expiry()) - now)

    def cancel(self) -> None:
        self.fail(StoreUnavailable(f"watch {self.prefix}: cancelled"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Faults:
    """What goes wrong next. Thread-safe; by default nothing does."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._failures: deque[Exception] = deque()
        self._drops = 0
        self._down = False

    def fail_next(self, count: int = 1, error: Exception | None = None) -> None:
        """Let the next `count` calls fail, without effect, with StoreUnavailable or `error`."""
        with self._lock:
            self._failures.extend([error or StoreUnavailable("injected failure")] * count)

    def drop_after_apply(self, count: int = 1) -> None:
        """Let the next `count` transactions be carried out and their answers be lost."""
        with self._lock:
            self._drops += count

    def set_down(self, down: bool) -> None:
        """Let every call fail until it is set back; open watches are cut."""
        with self._lock:
            self._down = down
        if down:
            self._store.cut()

    def before(self, action: str) -> None:
        with self._lock:
            if self._down:
                raise StoreUnavailable(f"{action}: the store is down")
            if self._failures:
                raise self._failures.popleft()

    def after_apply(self) -> None:
        with self._lock:
            if self._drops:
                self._drops -= 1
                raise StoreUnavailable("txn: answer lost")


def _check_ops(ops: Sequence[Op]) -> None:
    if len(ops) > MAX_TXN_OPS:
        raise Refused(f"txn: at most {MAX_TXN_OPS} operations, got {len(ops)}")
    puts = [op.key for op in ops if isinstance(op, Put)]
    deletes = [op for op in ops if isinstance(op, Delete)]
    clash = any(key == d.key or (d.prefix and key.startswith(d.key)) for d in deletes for key in puts)
    if clash or len(puts) != len(set(puts)):
        raise Refused("txn: duplicate key given in txn request")
