"""What the scheduler sees of the cluster, and who is told when it changes.

Owns: the mirrors, which run on standbys too so that a new leader starts from
what it knows already, and `Snapshot`, which lays a leader's own writes over
them. Invariants: a standby reads and never writes; a new leader decides
nothing before its mirrors have caught up with everything that was stored when
it became leader (`caught_up`), for its predecessor's last writes may still be
on their way to us.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from podlane.api.meta import namespaced_name
from podlane.api.types import (
    NODE_LEASE_NAMESPACE,
    ZONE_LABEL,
    ConfigMap,
    EndpointSlice,
    Lease,
    Namespace,
    Node,
    Object,
    Pod,
    PodReport,
    PriorityClass,
    ReplicationController,
    ResourceQuota,
    Secret,
    Service,
    Struct,
)
from podlane.errors import StoreUnavailable
from podlane.runtime.clock import Clock
from podlane.store import keys
from podlane.store.enrolled import HostRecord, read_record
from podlane.store.interface import KeyValue
from podlane.store.mirror import Mirror
from podlane.store.registry import ObjectList, Registry
from scheduler import inbox, nodes
from scheduler.heartbeats import Heartbeats
from scheduler.inbox import Inbox
from scheduler.view import Source, View, revision_of

T = TypeVar("T")
O = TypeVar("O", bound=Object)  # noqa: E741 - an object

FURTHER = (Namespace, ResourceQuota, PriorityClass, ConfigMap, Secret)
"""Kinds that few decisions need; they are in the snapshot by kind only (`Snapshot.of_kind`)."""

METADATA_ONLY = frozenset({ConfigMap, Secret})
"""Kinds of which no more than the metadata is held: what is in them is nobody's business here."""

CATCH_UP_SECONDS = 10.0
_LOOK_AGAIN = 0.02


class Cluster:
    """The mirrors of every kind the scheduler reads. `run` them as threads, `listen` for changes."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self.registry = registry
        self._clock = clock
        self._lock = threading.Lock()
        self._listeners: Mapping[type[Struct], tuple[Callable[[], None], ...]] = {}
        self.snapshot: Snapshot | None = None
        self.pods = self._mirror(Pod)
        self.controllers = self._mirror(ReplicationController)
        self.services = self._mirror(Service)
        self.slices = self._mirror(EndpointSlice)
        self.nodes = self._mirror(Node)
        self.heartbeats = Heartbeats(registry.store, self._tells_of(Lease), clock)
        self.further: dict[type[Object], Mirror[Any]] = {cls: self._mirror(cls) for cls in FURTHER}
        # as they are stored: most of what a node says it says again soon, and only what is looked at need be understood
        self.reports = self._keys(keys.REPORTS, lambda kv: kv, PodReport, "report")
        self.enrolled = self._keys(keys.ENROLLED_NODES, read_record, PodReport, "enrolled")

    @property
    def mirrors(self) -> tuple[Mirror[Any], ...]:
        return (
            self.pods,
            self.controllers,
            self.services,
            self.slices,
            self.nodes,
            self.heartbeats.mirror,
            *self.further.values(),
            self.reports,
            self.enrolled,
        )

    def listen(self, listeners: Mapping[type[Struct], Iterable[Callable[[], None]]]) -> None:
        """Call these (quick ones: triggers) from now on when a kind changes, and no others."""
        with self._lock:
            self._listeners = {cls: tuple(callbacks) for cls, callbacks in listeners.items()}

    def _mirror(self, cls: type[O], namespace: str | None = None) -> Mirror[O]:
        keep = metadata_only if cls in METADATA_ONLY else None
        return self.registry.mirror(cls, self._tells_of(cls), namespace, keep=keep)

    def _keys(self, prefix: str, read: Callable[[KeyValue], T], listeners: type[Struct], name: str) -> Mirror[T]:
        """Of keys that are no objects; who listens for `listeners` hears of them."""
        changed = self._tells_of(listeners)
        return Mirror(self.registry.store, prefix, decode=read, on_change=changed, name=name, clock=self._clock)

    def _tells_of(self, cls: type[Struct]) -> Callable[[], None]:
        def changed() -> None:
            for callback in self._listeners.get(cls, ()):
                callback()

        return changed

    def catch_up(self, stop: threading.Event) -> None:
        """Wait until every mirror shows all that is stored now, or `stop` is set.

        But for the reports: what is written because of one rests on its being the latest.
        Raises StoreUnavailable after CATCH_UP_SECONDS.
        """
        deadline = self._clock.monotonic() + CATCH_UP_SECONDS
        self._await(self.pods, self.registry.list(Pod), deadline, stop)
        self._await(self.controllers, self.registry.list(ReplicationController), deadline, stop)
        self._await(self.services, self.registry.list(Service), deadline, stop)
        self._await(self.slices, self.registry.list(EndpointSlice), deadline, stop)
        self._await(self.nodes, self.registry.list(Node), deadline, stop)
        beats, listed = self.heartbeats, self.registry.list(Lease, NODE_LEASE_NAMESPACE)
        self._await(beats.mirror, listed, deadline, stop, beats.heard)
        for cls, mirror in self.further.items():
            self._await(mirror, self.registry.list(cls), deadline, stop)

    def _await(
        self,
        mirror: Mirror[O],
        stored: ObjectList[O],
        deadline: float,
        stop: threading.Event,
        revision_shown: Callable[[O], int] = revision_of,
    ) -> None:
        while not (mirror.synced and caught_up(mirror, stored, revision_shown)):
            if self._clock.wait(stop, _LOOK_AGAIN):
                return
            if self._clock.monotonic() >= deadline:
                raise StoreUnavailable(f"catch up with {mirror.prefix}: still behind after {CATCH_UP_SECONDS:g} s")


def metadata_only(obj: O) -> O:
    """All that is held of some kinds."""
    return type(obj)(kind=obj.kind, api_version=obj.api_version, metadata=obj.metadata)


def caught_up(source: Source[O], stored: ObjectList[O], revision_shown: Callable[[O], int] = revision_of) -> bool:
    """Whether the source shows every write and every deletion that the list does.

    `revision_shown`: as of which an object is that the source shows.
    Its own revision cannot tell: it only moves when something below its prefix does.
    """
    # the revision first: the snapshot may be newer than it, never older
    revision, shown = source.revision, source.snapshot()
    listed = set()
    for obj in stored.items:
        key = namespaced_name(obj)
        listed.add(key)
        # absent is as good as newer when the source has gone past the list
        if key not in shown and revision <= stored.revision:
            return False
        if key in shown and revision_shown(shown[key]) < revision_of(obj):
            return False
    return all(key in listed or revision_shown(obj) > stored.revision for key, obj in shown.items())


class Snapshot:
    """What one leader decides on: the mirrors with its own writes laid over them. Thread-safe."""

    def __init__(
        self,
        *,
        pods: Source[Pod],
        controllers: Source[ReplicationController],
        services: Source[Service],
        slices: Source[EndpointSlice],
        nodes: Source[Node],
        leases: Source[Lease],
        further: Mapping[type[Object], Source[Any]],
        reports: inbox.Source[KeyValue],
        enrolled: inbox.Source[HostRecord],
        silent: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self.silent = silent
        self.reports, self.enrolled = Inbox(reports), Inbox(enrolled)
        self.pods = View(pods)
        self.controllers = View(controllers)
        self.services = View(services)
        self.slices = View(slices)
        self.nodes = View(nodes)
        self.leases = View(leases)
        self._views: dict[type[Object], View[Any]] = {
            Pod: self.pods,
            ReplicationController: self.controllers,
            Service: self.services,
            EndpointSlice: self.slices,
            Node: self.nodes,
            Lease: self.leases,
            **{cls: View(source) for cls, source in further.items()},
        }

    @classmethod
    def of(cls, cluster: Cluster) -> Snapshot:
        """The cluster's only one: a loop of an earlier leadership that has not ended takes no more changes from it."""
        if cluster.snapshot is not None:
            cluster.snapshot.close()
        cluster.snapshot = cls(
            pods=cluster.pods,
            controllers=cluster.controllers,
            services=cluster.services,
            slices=cluster.slices,
            nodes=cluster.nodes,
            leases=cluster.heartbeats,
            further=cluster.further,
            reports=cluster.reports,
            enrolled=cluster.enrolled,
            silent=cluster.heartbeats.silent,
        )
        return cluster.snapshot

    def close(self) -> None:
        for view in self._views.values():
            view.close()
        self.reports.close()
        self.enrolled.close()

    def of_kind(self, cls: type[O]) -> View[O]:
        """The view of a kind."""
        return self._views[cls]

    def alive(self) -> frozenset[str]:
        """The nodes that have a heartbeat."""
        return frozenset(lease.metadata.name for lease in self.leases.snapshot().values())

    def unreachable(self) -> frozenset[str]:
        """The nodes whose pods serve nothing (see nodes.unreachable)."""
        return nodes.unreachable(self.nodes.snapshot().values(), self.alive())

    def zones(self) -> dict[str, str]:
        """The zone of each node that is in one."""
        labels = {node.metadata.name: node.metadata.labels for node in self.nodes.snapshot().values()}
        return {name: zone for name, of in labels.items() if (zone := of.get(ZONE_LABEL))}
