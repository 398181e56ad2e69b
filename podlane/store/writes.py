"""Writes that are carried out if what they rest on still holds, many to a transaction.

Owns: how conditional writes are put together into etcd transactions. Invariant:
each write is atomic and independent of the others; one that loses (a
comparison of its own does not hold) is dropped and the rest is tried again, so
a loser costs one more round and not one transaction for each of the others. A
fence is compared in every transaction. Why it can tell who lost: the failed
transaction reads every compared key as of its own revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from podlane.errors import Fenced, StoreUnavailable
from podlane.store.interface import Compare, Delete, Get, KeyValue, Put, Store, TxnResult

MAX_OPS = 100  # below etcd's --max-txn-ops 128, which counts comparisons and operations each
MAX_BYTES = 1_000_000  # below etcd's --max-request-bytes of 1.5 MiB


@dataclass(frozen=True, slots=True)
class Write:
    """`ops` are carried out together if all of `compare` hold."""

    compare: tuple[Compare, ...]
    ops: tuple[Put | Delete, ...]

    def resting_on(self, compares: Iterable[Compare]) -> Write:
        """The same, if these hold too."""
        return Write((*self.compare, *compares), self.ops)

    @property
    def size(self) -> int:
        """The bytes it takes up in a transaction."""
        return sum(len(op.key) + (len(op.value) if isinstance(op, Put) else 0) for op in self.ops)


@dataclass(frozen=True, slots=True)
class Written:
    """The write was carried out at `revision`."""

    revision: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Nothing was written; `found` has the compared keys as they were then (None: absent)."""

    found: dict[str, KeyValue | None]


Outcome = Written | Lost | StoreUnavailable


def commit(store: Store, write: Write, fence: Compare | None = None) -> Written | Lost:
    """Carry out one write. Raises Fenced, StoreUnavailable (then it may or may not have been done)."""
    outcome = commit_all(store, [write], fence)[0]
    if isinstance(outcome, StoreUnavailable):
        raise outcome
    return outcome


def commit_all(store: Store, writes: Sequence[Write], fence: Compare | None = None) -> list[Outcome]:
    """Carry out many; the answers are in the order of `writes`.

    When the store fails, the rest is not tried: those get the StoreUnavailable
    as their outcome. Raises Fenced, with what came before it done.
    """
    outcomes: list[Outcome] = [StoreUnavailable("write: not tried")] * len(writes)
    waiting = list(range(len(writes)))
    while waiting:
        batch, rest = _fill(writes, waiting)
        try:
            result = _transact(store, [writes[i] for i in batch], fence)
        except StoreUnavailable as error:
            for i in waiting:
                outcomes[i] = error
            return outcomes
        if result.succeeded:
            for i in batch:
                outcomes[i] = Written(result.revision)
            waiting = rest
            continue
        found = {kv.key: kv for read in result.reads for kv in read}
        if fence is not None and not fence.holds_for(found.get(fence.key)):
            raise Fenced(f"write: no longer the leader by {fence.key}")
        again = []
        for i in batch:
            if all(c.holds_for(found.get(c.key)) for c in writes[i].compare):
                again.append(i)
            else:
                outcomes[i] = Lost({c.key: found.get(c.key) for c in writes[i].compare})
        waiting = again + rest
    return outcomes


def _fill(writes: Sequence[Write], waiting: list[int]) -> tuple[list[int], list[int]]:
    """As many as fit into one transaction, at least one, and the others."""
    compares: set[Compare] = set()  # what many rest on (a namespace) is compared once
    ops = size = 0
    for n, i in enumerate(waiting):
        compares.update(writes[i].compare)
        ops, size = ops + len(writes[i].ops), size + writes[i].size
        if n and (max(len(compares), ops) > MAX_OPS or size > MAX_BYTES):
            return waiting[:n], waiting[n:]
    return waiting, []


def _transact(store: Store, writes: Sequence[Write], fence: Compare | None) -> TxnResult:
    compare = list(dict.fromkeys(c for write in writes for c in write.compare))
    if fence is not None:
        compare.append(fence)
    keys = dict.fromkeys(c.key for c in compare)
    return store.txn(compare, [op for write in writes for op in write.ops], [Get(key) for key in keys])
