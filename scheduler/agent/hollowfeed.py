"""What ties many hollow nodes to the store: their bindings and their heartbeats.

Owns: one watch on the store for each node and one renewal of each node's lease,
as often as a real agent's, but all over one stream, so that etcd does what it
would do for as many agents and this process does not need their threads.
Invariants: a node's bindings are never shown before its first complete list; a
node resumes from the last revision it has seen and lists again after a
compaction; a lease that is lost is replaced by another, node by node.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec

from podlane.api.codec import DecodeError, decode
from podlane.api.meta import is_pod_finished
from podlane.api.types import LEASE_RENEWALS, Lease, Pod
from podlane.errors import PodlaneError
from podlane.runtime.clock import Clock
from podlane.runtime.log import Repetition, get_logger
from podlane.store import keys
from podlane.store.interface import Compacted, KeyValue, LeaseNotFound, Store, WatchEvent
from podlane.store.mirror import NotSynced
from podlane.store.registry import Registry

BATCH = 25
"""Leases renewed in one go, so that one that is late does not make hundreds late."""
_PAUSE = 0.5
_POLL = 1.0
_TICK = 0.2


class Bound:
    """The pods bound to one node, keyed "namespace/name". `on_change` must be quick."""

    def __init__(self, node: str, on_change: Callable[[], None]) -> None:
        self.node = node
        self.prefix = keys.bindings_prefix(node)
        self.revision = 0
        """The last one seen; 0 before the first list, and when it must be listed again."""
        self._on_change = on_change
        self._pods: dict[str, Pod] | None = None
        self._log = get_logger("bindings")

    def snapshot(self) -> dict[str, Pod]:
        """Raises NotSynced."""
        if self._pods is None:
            raise NotSynced(f"read bindings of {self.node}: no complete list yet")
        return self._pods.copy()

    @property
    def synced(self) -> bool:
        return self._pods is not None

    def list(self, store: Store) -> None:
        """Replace all by what the store has."""
        listing = store.list(self.prefix)
        pods: dict[str, Pod] = {}
        for kv in listing.items:
            self._read(kv, pods)
        self._pods, self.revision = pods, listing.revision
        self._on_change()

    def apply(self, events: Sequence[WatchEvent]) -> None:
        """Take in the events that are new."""
        new = [event for event in events if event.kv.mod_revision > self.revision]
        if not new:
            return
        before, pods = self.snapshot(), self.snapshot()
        for event in new:
            pods.pop(self._key(event.kv), None)
            if event.type == "put":
                self._read(event.kv, pods)
        self._pods, self.revision = pods, new[-1].kv.mod_revision
        if any(_is_news(before.get(key), pods.get(key)) for key in {self._key(event.kv) for event in new}):
            self._on_change()

    def _read(self, kv: KeyValue, pods: dict[str, Pod]) -> None:
        try:
            pods[self._key(kv)] = decode(Pod, kv.value, revision=kv.mod_revision)
        except DecodeError as error:
            self._log.warning("left out", key=kv.key, error=str(error))

    def _key(self, kv: KeyValue) -> str:
        return kv.key[len(self.prefix) :]


def _is_news(before: Pod | None, after: Pod | None) -> bool:
    """Whether the agent has to look: a status is what it said itself, carried over."""
    if before is None or after is None or is_pod_finished(before) != is_pod_finished(after):
        return True
    metadata = msgspec.structs.replace(after.metadata, resource_version=before.metadata.resource_version)
    return metadata != before.metadata or after.spec != before.spec


class Feed:
    """Keeps many nodes' bindings up to date: `run` is the body of one thread."""

    def __init__(self, store: Store, nodes: Collection[Bound], clock: Clock) -> None:
        self._store = store
        self._nodes = {bound.node: bound for bound in nodes}
        self._clock = clock
        self._repetition = Repetition()
        self._log = get_logger("feed")

    def not_ready(self) -> str | None:
        """For Daemon.add_ready_check."""
        missing = sum(not bound.synced for bound in self._nodes.values())
        return f"no complete list of {missing} nodes' bindings yet" if missing else None

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self._follow(stop)
            except Compacted:
                for bound in self._nodes.values():
                    bound.revision = 0
            except PodlaneError as error:
                new = self._repetition.is_news(str(error), self._clock.monotonic())
                (self._log.warning if new else self._log.debug)("feed failed", error=str(error), retry_in=_PAUSE)
                self._clock.wait(stop, _PAUSE)

    def _follow(self, stop: threading.Event) -> None:
        for bound in self._nodes.values():
            if not bound.revision:
                bound.list(self._store)
        starts = {bound.prefix: bound.revision for bound in self._nodes.values()}
        with self._store.watch_many(starts) as watch:
            self._repetition.over()
            while not stop.is_set():
                batch = watch.next(_POLL)
                if batch is not None:
                    self.take(batch.events)

    def take(self, events: Sequence[WatchEvent]) -> None:
        """Give each node what is its own."""
        by_node: dict[str, list[WatchEvent]] = {}
        for event in events:
            by_node.setdefault(event.kv.key.removeprefix(keys.BINDINGS).partition("/")[0], []).append(event)
        for node, own in by_node.items():
            if node in self._nodes:
                self._nodes[node].apply(own)


@dataclass(slots=True)
class _Beat:
    """One node's lease, 0: none, and what was last `written`. Times are monotonic seconds."""

    lease: int = 0
    due: float = 0.0
    expires: float = 0.0
    written: Lease | None = None
    write_due: float = 0.0


class Heartbeats:
    """Holds one etcd lease for each node, renewed every third of `seconds`: `run` is the body of one thread.

    `on_taken(node)` is called each time a node got a lease.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        seconds: int,
        *,
        registry: Registry,
        clock: Clock,
        on_taken: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._on_taken = on_taken
        self._beats = {node: _Beat() for node in nodes}
        self._seconds = seconds
        self._registry = registry
        self._clock = clock
        self._log = get_logger("heartbeat")

    def not_ready(self) -> str | None:
        """For Daemon.add_ready_check."""
        missing = sum(not beat.lease for beat in self._beats.values())
        return f"the leases of {missing} nodes are not held" if missing else None

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self.step(stop)
                pause = 0.0 if self.not_ready() else _TICK
            except PodlaneError as error:
                self._log.warning("heartbeats failed", error=str(error), retry_in=_PAUSE)
                pause = _PAUSE
            self._clock.wait(stop, pause)

    def step(self, stop: threading.Event) -> None:
        """Renew what is due, and take a lease for who has none. Raises StoreUnavailable."""
        now = self._clock.monotonic()
        due = [node for node, beat in self._beats.items() if beat.lease and beat.due <= now]
        for first in range(0, len(due), BATCH):
            self._renew(due[first : first + BATCH])
        for node, beat in self._beats.items():
            if beat.lease and beat.write_due <= now and not stop.is_set():
                self._write(node, beat)
        missing = [node for node, beat in self._beats.items() if not beat.lease]
        for node in missing[:BATCH]:  # the others must not wait for too long
            if not stop.is_set():
                self._take(node, self._beats[node])
        if missing:
            self._log.info("leases taken", nodes=len(missing[:BATCH]), seconds=self._seconds)

    def _renew(self, nodes: Sequence[str]) -> None:
        asked = self._clock.monotonic()
        left = self._registry.store.keep_alive_many([self._beats[node].lease for node in nodes])
        for node in nodes:
            beat = self._beats[node]
            seconds = left.get(beat.lease, 0)
            if not seconds or asked >= beat.expires:
                self._log.warning("lease lost, taking another", node=node)
                beat.lease = 0
            else:
                beat.due, beat.expires = asked + seconds / 3, asked + seconds

    def _take(self, node: str, beat: _Beat) -> None:
        asked = self._clock.monotonic()
        beat.lease, beat.written = self._registry.store.grant(self._seconds), None
        beat.due, beat.expires = asked + self._seconds / 3, asked + self._seconds
        self._write(node, beat)
        if beat.lease:
            self._on_taken(node)

    def _write(self, node: str, beat: _Beat) -> None:
        beat.write_due = self._clock.monotonic() + LEASE_RENEWALS * self._seconds
        try:
            beat.written = self._registry.put_node_lease(node, beat.lease, self._seconds, beat.written)
        except LeaseNotFound:
            beat.lease = 0
