"""How far the pods that end have been taken out of their services, on every node.

Owns: what is read from the store for it. A pod is quiet, that is, gets no new
connection from any node, when the endpoint slices of the services that select
it no longer have it as ready, and every living node's proxyd has acknowledged
that change (podlane.store.proxies); a node that is not ready is waited for a
second only. Invariants: nothing is read but while a pod
drains; nothing is written; `look` never waits, so no other pod does; without
the store nothing is concluded, and the plan's limit counts.

A headless service, or one left to another proxy, is nobody's to acknowledge:
its pods only linger.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from podlane.api.codec import DecodeError, decode
from podlane.api.types import (
    SERVICE_NAME_LABEL,
    SERVICE_PROXY_NAME_LABEL,
    Endpoint,
    EndpointSlice,
    Pod,
    Service,
)
from podlane.errors import PermissionDenied, PodlaneError
from podlane.runtime.clock import Clock
from podlane.runtime.runner import Runner
from podlane.store import keys, proxies
from podlane.store.interface import Store
from podlane.store.registry import Registry
from scheduler.agent.model import Drain

PAUSES = (0.1, 0.2)
"""Seconds between looks at the store: in the first second of a drain, and later."""
NAMED = 10
"""Nodes named in a message."""
_ALIVE_CHECK = 0.2  # seconds between looks at whether the nodes waited for live
_LOOKED_FOR = 5.0  # seconds until a node found dead is looked at again, and a Node read again
_UNREADY_FOR = 1.0  # seconds a node that is not ready may take: ten times what a proxyd takes


@dataclass(slots=True)
class _Progress:
    """What is known of one pod: None is not yet. `services`: those whose proxies must acknowledge.

    `since`: when (monotonic) there was a revision to wait for.
    """

    services: tuple[str, ...] | None = None
    served: bool = False
    revision: int | None = None
    since: float = 0.0


class Drainer:
    """`on_change` is called when a pod became quiet. `run` is the body of one thread."""

    def __init__(self, registry: Registry, on_change: Callable[[], None], clock: Clock) -> None:
        self._registry = registry
        self._store = registry.store
        self._on_change = on_change
        self._clock = clock
        self._lock = threading.Lock()
        self._pods: dict[str, Pod] = {}
        self._drains: dict[str, Drain] = {}
        # for the thread alone
        self._progress: dict[str, _Progress] = {}
        self._acknowledged = proxies.Acknowledgements(self._store)
        self._began: float | None = None
        self._dead: frozenset[str] = frozenset()
        self._unready: frozenset[str] = frozenset()
        self._read: frozenset[str] = frozenset()
        self._look_again_at = 0.0
        self._sees_nodes = True
        self._check_at = 0.0
        self.runner = Runner(
            self._round, name="drain", clock=clock, min_interval=PAUSES[0], backoff=PAUSES, eager=False
        )

    def look(self, pods: Mapping[str, Pod]) -> dict[str, Drain]:
        """What is known of these pods, which drain from now on; all others are forgotten. By UID."""
        with self._lock:
            new = pods.keys() - self._pods.keys()
            self._pods = dict(pods)
            self._drains = {uid: self._drains.get(uid, Drain(waits_for="the store")) for uid in pods}
            known = dict(self._drains)
        if new:
            self.runner.trigger()
        return known

    def run(self, stop: threading.Event) -> None:
        """Follow what drains until `stop`."""
        self.runner.run(stop)
        self._acknowledged.close()

    # --- the thread ------------------------------------------------------------------------

    def _round(self) -> None:
        with self._lock:
            pending = {uid: pod for uid, pod in self._pods.items() if self._drains[uid].quiet_at is None}
        self._progress = {uid: self._progress.get(uid, _Progress()) for uid in pending}
        if not pending:
            self._acknowledged.close()
            self._began = None
            self._forget()
            return
        now = self._clock.monotonic()
        self._began = now if self._began is None else self._began
        self.runner.trigger_after(PAUSES[0] if now < self._began + 1 else PAUSES[1])
        try:
            self._find_services(pending)
            self._find_revisions(pending)
            self._await_proxies()
        except PodlaneError as error:
            for uid in pending:
                self._tell(uid, Drain(waits_for=str(error)))
            raise

    def _find_services(self, pending: Mapping[str, Pod]) -> None:
        """Which services select each pod that is new."""
        listed: dict[str, tuple[Service, ...]] = {}
        for uid, pod in pending.items():
            progress, namespace = self._progress[uid], pod.metadata.namespace
            if progress.services is not None:
                continue
            if namespace not in listed:
                listed[namespace] = self._registry.list(Service, namespace).items
            mine = [service for service in listed[namespace] if selects(service, pod)]
            progress.served = bool(mine)
            progress.services = tuple(service.metadata.name for service in mine if is_proxied(service))
            if not progress.services:
                self._quiet(uid)

    def _find_revisions(self, pending: Mapping[str, Pod]) -> None:
        """The store revision from which on each pod is no endpoint any more."""
        listed: dict[tuple[str, str], tuple[EndpointSlice, ...]] = {}
        for uid, pod in pending.items():
            progress = self._progress[uid]
            if progress.revision is not None or not progress.services:
                continue
            found: list[EndpointSlice] = []
            for name in progress.services:
                key = (pod.metadata.namespace, name)
                if key not in listed:
                    listed[key] = _slices(self._store, *key)
                found += listed[key]
            progress.revision = out_since(pod, found)
            if progress.revision is None:
                self._tell(uid, Drain(waits_for=f"endpoint slices of {', '.join(progress.services)}"))
            else:
                progress.since = self._clock.monotonic()

    def _await_proxies(self) -> None:
        wanted = {uid: p.revision for uid, p in self._progress.items() if p.revision is not None and p.services}
        if not wanted:
            return
        known = self._acknowledged.look()
        now = self._clock.monotonic()
        self._find_dead(behind(known, max(wanted.values())), now)
        for uid, revision in wanted.items():
            patience = now < self._progress[uid].since + _UNREADY_FOR
            missing = sorted(behind(known, revision) - self._dead - (frozenset() if patience else self._unready))
            if missing:
                self._tell(uid, Drain(waits_for=_names(missing)))
            else:
                self._quiet(uid)

    def _find_dead(self, nodes: Collection[str], now: float) -> None:
        """Look which of the nodes are dead, and which are not ready."""
        if now >= self._look_again_at:
            self._forget()
            self._look_again_at = now + _LOOKED_FOR
        unsure = sorted(set(nodes) - self._dead)[: proxies.MAX_GETS]
        if not unsure or now < self._check_at:
            return
        self._check_at = now + _ALIVE_CHECK
        self._dead |= frozenset(unsure) - proxies.living(self._store, unsure)
        if self._sees_nodes and self._began is not None and now >= self._began + _UNREADY_FOR:
            unread = set(unsure) - self._dead - self._read
            try:
                self._unready |= proxies.unready(self._store, unread)
            except PermissionDenied:  # its role is of an earlier version, which let it read its own Node only
                self._sees_nodes = False
            self._read |= unread

    def _forget(self) -> None:
        self._dead = self._unready = self._read = frozenset()

    def _quiet(self, uid: str) -> None:
        self._tell(uid, Drain(quiet_at=self._clock.now(), served=self._progress[uid].served))
        self._on_change()

    def _tell(self, uid: str, drain: Drain) -> None:
        with self._lock:
            if uid in self._drains and self._drains[uid].quiet_at is None:
                self._drains[uid] = drain


# --- pure ------------------------------------------------------------------------------------


def selects(service: Service, pod: Pod) -> bool:
    selector = service.spec.selector
    return bool(selector) and service.spec.type != "ExternalName" and selector.items() <= pod.metadata.labels.items()


def is_proxied(service: Service) -> bool:
    """The nodes' proxyds send connections to it."""
    return service.spec.cluster_ip != "None" and SERVICE_PROXY_NAME_LABEL not in service.metadata.labels


def out_since(pod: Pod, slices: Iterable[EndpointSlice]) -> int | None:
    """The highest revision of the slices that say the pod is terminating or not ready; None: one says it is ready.

    Where none has it (any more), of all of them: it was taken out of one of them.
    """
    newest = listed = 0
    for item in slices:
        revision = int(item.metadata.resource_version or 0)
        newest = max(newest, revision)
        for endpoint in item.endpoints:
            if not _is_of(endpoint, pod):
                continue
            if endpoint.conditions.ready and not endpoint.conditions.terminating:
                return None
            listed = max(listed, revision)
    return listed or newest


def behind(acknowledged: Mapping[str, int], revision: int) -> frozenset[str]:
    return frozenset(node for node, known in acknowledged.items() if known < revision)


def _is_of(endpoint: Endpoint, pod: Pod) -> bool:
    if endpoint.target_ref is not None and endpoint.target_ref.uid:
        return endpoint.target_ref.uid == pod.metadata.uid
    return pod.status.pod_ip in endpoint.addresses


def _slices(store: Store, namespace: str, service: str) -> tuple[EndpointSlice, ...]:
    """A service's slices, but for those that cannot be read. Their names begin with the service's and a dash."""
    found = []
    for kv in store.list(keys.key_for(EndpointSlice, namespace, f"{service}-")).items:
        try:
            item = decode(EndpointSlice, kv.value, revision=kv.mod_revision)
        except DecodeError:
            continue
        if item.metadata.labels.get(SERVICE_NAME_LABEL) == service:
            found.append(item)
    return tuple(found)


def _names(nodes: list[str]) -> str:
    more = f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
    return f"proxyd on {', '.join(nodes[:NAMED])}{more}"
