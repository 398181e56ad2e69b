"""What Podlane needs of a key-value store: the boundary between us and etcd.

Owns: the vocabulary (keys, revisions, transactions, watches, leases) and the
`Store` protocol that etcd.py and memory.py implement; tests/contract/ holds
both to one suite. Invariants every implementation keeps: a revision is one
atomic change and they only grow; `list` answers as of one revision; a watch
started at revision r yields every event from r on, in order, a revision never
split over two batches, or raises; every call ends by its deadline.
Source: the etcd v3 API (api/etcdserverpb/rpc.proto).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from podlane.errors import PodlaneError

DEFAULT_TIMEOUT = 5.0
"""Seconds a call may take, endpoint fail-over included."""


class Compacted(PodlaneError):
    """The wanted revision is older than the store's memory: list again.

    `revision` is the oldest revision still known, 0 if the store did not say.
    """

    def __init__(self, revision: int = 0) -> None:
        self.revision = revision
        super().__init__(f"read revision: compacted, oldest known is {revision or 'not known'}")


class LeaseNotFound(PodlaneError):
    """The lease expired or was revoked."""


class Refused(PodlaneError):
    """The store will never do this: the request is malformed, too large, or the store is full."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction. Make them with the class methods."""

    key: str
    target: Literal["create", "mod", "version", "value", "lease"]
    operand: int | bytes

    @classmethod
    def absent(cls, key: str) -> Compare:
        return cls(key, "version", 0)

    @classmethod
    def modified_at(cls, key: str, revision: int) -> Compare:
        return cls(key, "mod", revision)

    @classmethod
    def created_at(cls, key: str, revision: int) -> Compare:
        return cls(key, "create", revision)

    @classmethod
    def holds(cls, key: str, value: bytes) -> Compare:
        return cls(key, "value", value)

    def holds_for(self, kv: KeyValue | None) -> bool:
        """Whether it holds when the key is as `kv` says (None: absent), by etcd's rules."""
        if self.target == "value":  # no value, not even the empty one, equals that of an absent key
            return kv is not None and kv.value == self.operand
        if kv is None:
            return self.operand == 0
        actual = {
            "create": kv.create_revision,
            "mod": kv.mod_revision,
            "version": kv.version,
            "lease": kv.lease,
        }
        return actual[self.target] == self.operand


@dataclass(frozen=True, slots=True)
class Put:
    """`lease` 0 means none; a put without the lease detaches the key from it."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key, or with `prefix` every key that starts with `key`."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Get:
    """Read one key, or with `prefix` every key that starts with `key`."""

    key: str
    prefix: bool = False


Op = Put | Delete | Get


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`reads` has one tuple per Get of the branch taken, in order.

    `revision` is the transaction's own when it wrote, else the store's latest.
    """

    succeeded: bool
    revision: int
    reads: tuple[tuple[KeyValue, ...], ...] = ()
    cluster_id: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """All keys below a prefix as of `revision`, sorted by key.

    `cluster_id` is etcd's: it tells one cluster from another, but a cluster
    wiped and started with the same flags has the same.
    """

    items: tuple[KeyValue, ...]
    revision: int
    cluster_id: int = 0


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """`kv.value` is empty and `kv.version` 0 for a delete, whose `kv.mod_revision` is the deletion's."""

    type: Literal["put", "delete"]
    kv: KeyValue


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Events up to and including `revision`; without events it is a progress notice."""

    events: tuple[WatchEvent, ...]
    revision: int


class Watch(Protocol):
    """An open watch; whoever opened it cancels it. Not thread-safe but for `cancel`, which may come from anywhere."""

    def next(self, timeout: float) -> WatchBatch | None:
        """Wait up to `timeout` seconds for the next batch; None when there was none.

        Raises Compacted, or StoreUnavailable when the stream broke: then open
        another from the last revision seen, and skip what was seen.
        """
        ...

    def cancel(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Store(Protocol):
    """Thread-safe. Every call raises StoreUnavailable when `timeout` seconds passed.

    A StoreUnavailable from `txn` leaves open whether it was carried out:
    callers must be able to repeat it (they compare revisions).
    """

    def get(self, key: str, *, timeout: float = DEFAULT_TIMEOUT) -> KeyValue | None: ...

    def list(self, prefix: str, *, since: int = 0, timeout: float = DEFAULT_TIMEOUT) -> Listing:
        """All keys below the prefix, or only those written at revision `since` or later."""
        ...

    def pages(self, prefix: str, *, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Listing]:
        """Give what `list` gives in pieces, all as of one revision, so that never all values are in memory.

        At least one page comes, and `timeout` is each page's. Raises Compacted
        when that revision is compacted meanwhile: begin again.
        """
        ...

    def txn(
        self,
        compare: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> TxnResult:
        """Carry out `then` if every comparison holds, else `otherwise`; at most 128 operations.

        Raises LeaseNotFound when a put names a lease that is gone.
        """
        ...

    def watch(self, prefix: str, *, start_revision: int, timeout: float = DEFAULT_TIMEOUT) -> Watch:
        """Watch every key below `prefix` from `start_revision` on (the first revision delivered).

        Start at the last revision seen rather than at the next: etcd before
        3.4.33 and 3.5.15 forgets deletions at exactly the revision it was
        compacted to, without calling that compacted.
        """
        ...

    def watch_many(self, starts: Mapping[str, int], *, exact: bool = False, timeout: float = DEFAULT_TIMEOUT) -> Watch:
        """Watch many prefixes (`exact`: single keys), each from a revision of its own on, over one connection.

        For a process that stands for many nodes, or follows a few objects of many. Each prefix has
        all that `watch` promises, but what happened in one revision below two prefixes may come in
        two batches, in any order.
        """
        ...

    def grant(self, ttl: int, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Make a lease of `ttl` whole seconds (at least 2) and return its id.

        The store may make it longer, never shorter.
        """
        ...

    def keep_alive(self, lease: int, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Renew a lease and return its seconds to live. Raises LeaseNotFound."""
        ...

    def keep_alive_many(self, leases: Sequence[int], *, timeout: float = DEFAULT_TIMEOUT) -> dict[int, int]:
        """Renew many leases in one go and return the seconds to live of each that is not gone."""
        ...

    def time_to_live(self, lease: int, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Seconds left, without renewing. Raises LeaseNotFound."""
        ...

    def revoke(self, lease: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """End a lease and delete its keys; no error if it is gone already."""
        ...

    def close(self) -> None: ...
