"""What each node's proxyd has in its kernel: the acknowledgement a draining pod waits for.

Owns: `/podlane/proxies/{node}` = `{"revision": N}`, which says "every change of
an endpoint slice up to store revision N is in this node's kernel". Invariants:
a key is not bound to a lease, for the table of a proxyd that died goes on
serving, so it counts for as long as its node lives; only `withdraw` removes
it, when the table is removed. A value that cannot be read is no
acknowledgement to wait for: no proxyd writes such, and whoever did (a stolen
node) holds up nobody. Reading never writes. Kubernetes has nothing of the kind:
there a pod sleeps before it ends and hopes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from podlane.api.codec import DecodeError, decode
from podlane.api.meta import get_condition
from podlane.api.types import NODE_LEASE_NAMESPACE, Lease, Node
from podlane.runtime.log import get_logger
from podlane.store import keys
from podlane.store.interface import Delete, Get, KeyValue, Put, Store, Watch

MAX_GETS = 128
"""Keys read in one transaction: etcd's --max-txn-ops."""


class _Value(msgspec.Struct, frozen=True):
    revision: int


def acknowledge(store: Store, node: str, revision: int) -> None:
    """Say that this node's kernel has everything up to `revision`. Raises StoreUnavailable."""
    store.txn([], [Put(keys.proxy_key(node), msgspec.json.encode(_Value(revision)))])


def withdraw(store: Store, node: str) -> None:
    """Say that this node's kernel serves no more: nobody is to wait for it. Raises StoreUnavailable."""
    store.txn([], [Delete(keys.proxy_key(node))])


def living(store: Store, nodes: Collection[str]) -> frozenset[str]:
    """Those of the nodes that have a heartbeat, read key by key: it is meant for few. Raises StoreUnavailable."""
    return frozenset(_read(store, {name: keys.key_for(Lease, NODE_LEASE_NAMESPACE, name) for name in nodes}))


def unready(store: Store, nodes: Collection[str]) -> frozenset[str]:
    """Those of the nodes whose Node says that they are not ready, or cannot be read. As `living`.

    Raises PermissionDenied too: an agent of an older cluster may read its own Node only.
    """
    read = _read(store, {name: keys.key_for(Node, "", name) for name in nodes})
    return frozenset(name for name, kv in read.items() if not _may_be_ready(kv))


def _read(store: Store, names: Mapping[str, str]) -> dict[str, KeyValue]:
    """What is at the key of each name, where there is something."""
    found: dict[str, KeyValue] = {}
    every = sorted(names)
    for start in range(0, len(every), MAX_GETS):
        some = every[start : start + MAX_GETS]
        reads = store.txn([], [Get(names[name]) for name in some]).reads
        found.update({name: read[0] for name, read in zip(some, reads, strict=True) if read})
    return found


def _may_be_ready(kv: KeyValue) -> bool:
    try:
        ready = get_condition(decode(Node, kv.value).status.conditions, "Ready")
    except DecodeError:
        return False
    return ready is None or ready.status == "True"


class Acknowledgements:
    """All nodes' revisions, followed from the first `look` until `close`. For one thread.

    A list and a watch, and not a Mirror: it lives for seconds, and a Mirror's
    witness would leave a lease behind each time.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watch: Watch | None = None
        self._revisions: dict[str, int] = {}
        self._unreadable: set[str] = set()  # keys, each told once
        self._log = get_logger("proxies")

    def look(self) -> dict[str, int]:
        """Revision by node, as new as what the watch has brought; waits for nothing once it is open.

        What cannot be read is left out, with a warning once.

        Raises what a list and a watch raise; then the next call begins anew.
        """
        if self._watch is None:
            listing = self._store.list(keys.PROXIES)
            self._revisions = {}
            for kv in listing.items:
                self._take(kv)
            self._watch = self._store.watch(keys.PROXIES, start_revision=listing.revision)
        try:
            while (batch := self._watch.next(0.0)) is not None:
                for event in batch.events:
                    if event.type == "put":
                        self._take(event.kv)
                    else:
                        self._revisions.pop(_node(event.kv), None)
        except Exception:  # whatever it was, half-read changes must not be gone on with
            self.close()
            raise
        return dict(self._revisions)

    def close(self) -> None:
        """Follow no longer. `look` begins again."""
        if self._watch is not None:
            self._watch.cancel()
        self._watch = None

    def _take(self, kv: KeyValue) -> None:
        node = _node(kv)
        try:
            self._revisions[node] = msgspec.json.decode(kv.value, type=_Value).revision
        except msgspec.DecodeError as error:
            self._revisions.pop(node, None)
            if kv.key not in self._unreadable:
                self._unreadable.add(kv.key)
                self._log.warning("not waited for", key=kv.key, error=str(error))


def _node(kv: KeyValue) -> str:
    return kv.key.removeprefix(keys.PROXIES)
