"""A leader's loops on a memory store, with mirrors that take in only as much as a test lets them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from scheduler_objects import T0

from podlane.api.codec import decode
from podlane.api.types import (
    ClusterConfig,
    EndpointSlice,
    Lease,
    Node,
    Object,
    Pod,
    PodReport,
    ReplicationController,
    Service,
)
from podlane.runtime.clock import FakeClock
from podlane.store import keys
from podlane.store.enrolled import HostRecord, read_record
from podlane.store.interface import Compare, KeyValue
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.cluster import FURTHER, METADATA_ONLY, Snapshot, metadata_only
from scheduler.endpoints_loop import EndpointsLoop
from scheduler.events_loop import EventsLoop
from scheduler.garbage_loop import GarbageLoop
from scheduler.loop import Context
from scheduler.namespaces_loop import NamespacesLoop
from scheduler.nodes_loop import NodesLoop
from scheduler.placement_loop import PlacementLoop
from scheduler.quota_loop import QuotaLoop
from scheduler.replication_loop import ReplicationLoop
from scheduler.reports_loop import ReportsLoop

LOOPS = (
    ReportsLoop,
    ReplicationLoop,
    PlacementLoop,
    EndpointsLoop,
    NodesLoop,
    GarbageLoop,
    NamespacesLoop,
    QuotaLoop,
    EventsLoop,
)
KINDS = (Pod, ReplicationController, Service, EndpointSlice, Node, Lease, *FURTHER)


class LaggingSource:
    """What a mirror shows, but it takes in only as much as the test lets it."""

    def __init__(self, store: MemoryStore, prefix: str, read: Callable[[KeyValue], Any]) -> None:
        self.prefix, self.read = prefix, read
        listing = store.list(prefix)
        self.revision = listing.revision
        self.objects = {}
        self.changes: set[str] = set()
        for kv in listing.items:
            self._put(kv)
        self.watch = store.watch(prefix, start_revision=listing.revision + 1)

    @classmethod
    def of(cls, store: MemoryStore, kind: type[Object]) -> LaggingSource:
        def read(kv: KeyValue) -> Object:
            obj = decode(kind, kv.value, revision=kv.mod_revision)
            return metadata_only(obj) if kind in METADATA_ONLY else obj

        return cls(store, keys.prefix_for(kind), read)

    def _put(self, kv: KeyValue) -> None:
        key = kv.key.removeprefix(self.prefix)
        self.objects[key] = self.read(kv)
        self.changes.add(key)

    def take(self, most: int) -> None:
        for _ in range(most):
            batch = self.watch.next(0)
            if batch is None:
                return
            for event in batch.events:
                if event.type == "put":
                    self._put(event.kv)
                else:
                    key = event.kv.key.removeprefix(self.prefix)
                    self.objects.pop(key, None)
                    self.changes.add(key)
            self.revision = batch.revision

    def snapshot(self) -> dict:
        return dict(self.objects)

    def get(self, key: str):
        return self.objects.get(key)

    def take_changes(self) -> frozenset[str]:
        taken, self.changes = frozenset(self.changes), set()
        return taken


class Events:
    """Keeps what was recorded, as `type reason about: message`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def event(self, about, kind, reason, message) -> None:
        name = about.name if hasattr(about, "name") else about.metadata.name
        self.lines.append(f"{kind} {reason} {name}: {message}")


class Stored:
    """A clock, and a cluster in a store in memory."""

    def __init__(self) -> None:
        self.clock = FakeClock(T0)
        self.store = MemoryStore(self.clock)
        self.registry = Registry(self.store, clock=self.clock, rng=random.Random(5))
        self.registry.init_cluster(ClusterConfig())


class Scheduler:
    """One leadership, with mirrors of its own that begin up to date."""

    def __init__(self, store: MemoryStore, clock: FakeClock, fence: Compare | None = None, seed: int = 1) -> None:
        self.sources = {cls: LaggingSource.of(store, cls) for cls in KINDS}
        self.sources[PodReport] = LaggingSource(store, keys.REPORTS, lambda kv: kv)
        self.sources[HostRecord] = LaggingSource(store, keys.ENROLLED_NODES, read_record)
        names = ("pods", "controllers", "services", "slices", "nodes", "leases")
        registry = Registry(store, clock=clock, rng=random.Random(seed))
        self.events = Events()
        self.silent: set[str] = set()
        self.wakes: list[tuple[str, float]] = []
        self.context = context = Context(
            registry=registry if fence is None else registry.fenced(fence),
            snapshot=Snapshot(
                **{name: self.sources[cls] for name, cls in zip(names, KINDS, strict=False)},
                further={cls: self.sources[cls] for cls in FURTHER},
                reports=self.sources[PodReport],
                enrolled=self.sources[HostRecord],
                silent=lambda: frozenset(self.silent),
            ),
            events=self.events,
            clock=clock,
            rng=random.Random(seed),
            wake=lambda name, seconds: self.wakes.append((name, seconds)),
        )
        self.loops = {cls: cls(context) for cls in LOOPS}

    def sync(self, *classes) -> None:
        for cls in classes or LOOPS:
            self.loops[cls].sync()

    def drain(self) -> bool:
        """Have the mirrors take in all there is; whether that was anything."""
        before = [source.revision for source in self.sources.values()]
        for source in self.sources.values():
            source.take(10_000)
        return before != [source.revision for source in self.sources.values()]
