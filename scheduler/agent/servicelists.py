"""The services of the namespaces whose pods start, as the variables they get.

Owns: when a namespace's services are read. Invariants: a pod gets the services
that were there when it was bound, so its namespace is read until what was read is
as new as the pod itself; nothing is read while no pod starts, for pods that run
do not learn of services any more; `look` never waits; with the store away what
was last known must do. Source: getServiceEnvVarMap (pkg/kubelet/kubelet_pods.go),
which waits for its cache of all services instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping

from podlane.api.codec import DecodeError, decode
from podlane.api.types import Service
from podlane.errors import PodlaneError
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from podlane.runtime.runner import Runner
from podlane.store import keys
from podlane.store.interface import Get, KeyValue, Store
from scheduler.agent.environment import MASTER, services_of
from scheduler.agent.references import Services

_PAUSES = (0.2, 5.0)


class ServiceLists:
    """`on_change` is called when something was read, or the store was found away. `run` is the body of one thread."""

    def __init__(self, store: Store, on_change: Callable[[], None], clock: Clock) -> None:
        self._store = store
        self._on_change = on_change
        self._lock = threading.Lock()
        self._needed: dict[str, int] = {}
        self._known: dict[str, Services] = {}
        self._away = False
        self._log = get_logger("services")
        self._runner = Runner(self._sync, name="services", clock=clock, backoff=_PAUSES, eager=False)

    def look(self, needed: Mapping[str, int], namespaces: Collection[str]) -> tuple[dict[str, Services], bool]:
        """What is known, and whether the store is away. `needed`: at which revision each namespace must be known;
        of namespaces other than `namespaces` everything is forgotten.
        """
        with self._lock:
            self._known = {name: known for name, known in self._known.items() if name in namespaces}
            self._needed = dict(needed)
            missing = self._missing()
            known, away = dict(self._known), self._away
        if missing and not away:  # the runner tries again by itself
            self._runner.trigger()
        return known, away

    def run(self, stop: threading.Event) -> None:
        self._runner.run(stop)

    def _missing(self) -> list[str]:
        """The lock is held."""
        return [ns for ns, at in self._needed.items() if ns not in self._known or self._known[ns].revision < at]

    def _sync(self) -> None:
        with self._lock:
            missing = self._missing()
        for namespace in missing:
            try:
                read = self._read(namespace)
            except PodlaneError:
                self._went_away()
                raise
            with self._lock:
                self._known[namespace], self._away = read, False
            self._on_change()

    def _went_away(self) -> None:
        with self._lock:
            news, self._away = not self._away, True
        if news:
            self._on_change()

    def _read(self, namespace: str) -> Services:
        wanted = [Get(keys.prefix_for(Service, namespace), prefix=True), Get(keys.key_for(Service, *MASTER))]
        result = self._store.txn([], wanted)
        listed, master = result.reads
        return services_of(
            [service for service in map(self._decode, listed) if service is not None],
            self._decode(master[0]) if master else None,
            result.revision,
        )

    def _decode(self, kv: KeyValue) -> Service | None:
        try:
            return decode(Service, kv.value, revision=kv.mod_revision)
        except DecodeError as error:
            self._log.warning("service left out", key=kv.key, error=str(error))
            return None
