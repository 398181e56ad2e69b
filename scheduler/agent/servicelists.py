"""The services of the namespaces whose pods start, as the variables they get.

Owns: when a namespace's services are read. Invariants: a pod gets the services
that were there when it was bound, so what was read is used if it is of that
revision or a later one, and no older than FRESH seconds; nothing is read while no
pod starts, for pods that run do not learn of services any more; with the store
away what was last known must do. Source: getServiceEnvVarMap
(pkg/kubelet/kubelet_pods.go), which has a copy of all the cluster's services instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

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

FRESH = 5.0
PATIENCE = 0.05
"""Seconds that `look` waits for the store: an answer takes some milliseconds, another look a tenth of a second."""
_TIMEOUT = 1.0  # seconds until the store counts as away: a container that ended is waiting
_PAUSES = (0.2, 5.0)


@dataclass(frozen=True, slots=True)
class _List:
    """`at`: when it was asked for, by the monotonic clock."""

    services: Services
    revision: int
    at: float


class ServiceLists:
    """`on_change` is called when something was read, or the store was found away. `run` is the body of one thread."""

    def __init__(self, store: Store, on_change: Callable[[], None], clock: Clock) -> None:
        self._store = store
        self._on_change = on_change
        self._clock = clock
        self._state = threading.Condition()
        self._needed: dict[str, int] = {}
        self._known: dict[str, _List] = {}
        self._away = False
        self._log = get_logger("services")
        self._runner = Runner(self._sync, name="services", clock=clock, backoff=_PAUSES, eager=False)

    def look(self, needed: Mapping[str, int], namespaces: Collection[str]) -> dict[str, Services]:
        """The services of the namespaces that are needed, each at its revision or later, as far as they are known.

        Waits for PATIENCE seconds at most. Of all but `namespaces` everything is forgotten.
        """
        with self._state:
            self._known = {name: known for name, known in self._known.items() if name in namespaces}
            self._needed = dict(needed)
            if self._missing():
                if not self._away:  # else the runner tries again by itself
                    self._runner.trigger()
                self._state.wait_for(lambda: self._away or not self._missing(), PATIENCE)
            missing = () if self._away else self._missing()
            return {ns: self._known[ns].services for ns in needed if ns in self._known and ns not in missing}

    def run(self, stop: threading.Event) -> None:
        self._runner.run(stop)

    def _missing(self) -> list[str]:
        """The lock is held."""
        oldest = self._clock.monotonic() - FRESH
        return [
            namespace
            for namespace, revision in self._needed.items()
            if (known := self._known.get(namespace)) is None or known.revision < revision or known.at < oldest
        ]

    def _sync(self) -> None:
        with self._state:
            missing = self._missing()
        for namespace in missing:
            try:
                read = self._read(namespace)
            except PodlaneError:
                self._note(away=True)
                raise
            with self._state:
                self._known[namespace] = read
            self._note(away=False)
            self._on_change()

    def _note(self, *, away: bool) -> None:
        with self._state:
            news, self._away = self._away != away, away
            self._state.notify_all()
        if news and away:
            self._on_change()

    def _read(self, namespace: str) -> _List:
        at = self._clock.monotonic()
        wanted = [Get(keys.prefix_for(Service, namespace), prefix=True), Get(keys.key_for(Service, *MASTER))]
        result = self._store.txn([], wanted, timeout=_TIMEOUT)
        listed, master = result.reads
        services = services_of(
            [service for service in map(self._decode, listed) if service is not None],
            self._decode(master[0]) if master else None,
        )
        return _List(services, result.revision, at)

    def _decode(self, kv: KeyValue) -> Service | None:
        try:
            return decode(Service, kv.value, revision=kv.mod_revision)
        except DecodeError as error:
            self._log.warning("service left out", key=kv.key, error=str(error))
            return None
