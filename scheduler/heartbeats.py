"""Which nodes live: their heartbeats, less those that only somebody else keeps.

Owns: the mirror of the nodes' Leases and what is made of their renewals. A
heartbeat is there for as long as its etcd lease, which its agent renews every few
seconds. But whoever is let into etcd can renew any lease, so one that has a
renewTime must also be written again, which only its own agent's certificate
allows. Invariants:
- to readers a silent heartbeat is one that has ended: nothing else in the
  scheduler knows of it;
- silence is counted by this process's clock, and only while it could have heard:
  from the watch's last failure, and from the last time this process stood still;
- a renewal is no change to anybody: it wakes no loop.
See docs/adr/0024.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from podlane.api.codec import decode
from podlane.api.meta import namespaced_name
from podlane.api.types import LEASE_SILENCE, NODE_LEASE_NAMESPACE, Lease, LeaseSpec, ObjectMeta
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from podlane.store import keys
from podlane.store.interface import KeyValue, Store
from podlane.store.mirror import Mirror

LOOK = 1.0
"""Seconds between looks at who has fallen silent."""
STALL = 5.0
"""When looks are so far apart (seconds), renewals may wait unread."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """A heartbeat's latest revision, when it came (monotonic seconds), and for how long it is good; 0: for ever."""

    revision: int
    at: float
    patience: float


class Heartbeats:
    """The Leases of the nodes that live, by "namespace/name". Thread-safe; `mirror.run` and `run` are threads."""

    def __init__(self, store: Store, on_change: Callable[[], None], clock: Clock) -> None:
        self.mirror = Mirror(
            store,
            keys.prefix_for(Lease, NODE_LEASE_NAMESPACE),
            decode=self._read,
            on_change=on_change,
            name="lease",
            clock=clock,
            key_prefix=f"{NODE_LEASE_NAMESPACE}/",
        )
        self._on_change = on_change
        self._clock = clock
        self._lock = threading.Lock()
        self._heard: dict[str, _Heard] = {}
        self._silent: dict[str, int] = {}  # with the revision after which they were
        self._moved: set[str] = set()
        self._looked = self._listening = clock.monotonic()
        self._log = get_logger("heartbeats")

    # --- for readers: what a mirror has, less who is silent ------------------------------------

    @property
    def revision(self) -> int:
        """As a mirror's."""
        return self.mirror.revision

    def snapshot(self) -> dict[str, Lease]:
        """As a mirror's. Raises NotSynced."""
        leases = self.mirror.snapshot()
        with self._lock:
            for key in self._silent:
                leases.pop(key, None)
        return leases

    def get(self, key: str) -> Lease | None:
        """As a mirror's. Raises NotSynced."""
        with self._lock:
            silent = key in self._silent
        return None if silent else self.mirror.get(key)

    def take_changes(self) -> frozenset[str] | None:
        """As a mirror's."""
        changes = self.mirror.take_changes()
        with self._lock:
            moved, self._moved = self._moved, set()
        return None if changes is None else changes | moved

    def silent(self) -> frozenset[str]:
        """The names of the nodes whose heartbeats are kept, and not by their agents."""
        with self._lock:
            return frozenset(key.rpartition("/")[2] for key in self._silent)

    def heard(self, lease: Lease) -> int:
        """The revision at which it was last written."""
        with self._lock:
            heard = self._heard.get(namespaced_name(lease))
        return heard.revision if heard is not None else 0

    # --- listening ----------------------------------------------------------------------------

    def _read(self, kv: KeyValue) -> Lease:
        """What is held of a heartbeat: the same for as long as nothing but its renewal changes."""
        lease = decode(Lease, kv.value, revision=kv.mod_revision)
        meta, spec = lease.metadata, lease.spec
        patience = 0.0 if spec.renew_time is None else float(LEASE_SILENCE * max(0, spec.lease_duration_seconds))
        key = namespaced_name(lease)
        with self._lock:
            if key not in self._heard or self._heard[key].revision != kv.mod_revision:
                self._heard[key] = _Heard(kv.mod_revision, self._clock.monotonic(), patience)
        return Lease(
            metadata=ObjectMeta(name=meta.name, namespace=meta.namespace),
            spec=LeaseSpec(holder_identity=spec.holder_identity, lease_duration_seconds=spec.lease_duration_seconds),
        )

    def run(self, stop: threading.Event) -> None:
        """Look now and then: the body of one thread."""
        while not self._clock.wait(stop, LOOK):
            if self.mirror.synced:
                self.look()

    def look(self) -> None:
        """See who has fallen silent, and who is heard again."""
        now = self._clock.monotonic()
        if now > self._looked + STALL:
            self._listening = now
        self._looked = now
        if (healthy := self.mirror.healthy_since) is None:
            return  # nobody can be heard
        listening = max(self._listening, healthy)
        there = self.mirror.snapshot()
        with self._lock:
            # one that was read a moment ago is about to be there
            self._heard = {k: heard for k, heard in self._heard.items() if k in there or now < heard.at + STALL}
            silent = {key: heard for key, heard in self._heard.items() if self._is_silent(key, heard, listening, now)}
            moved = silent.keys() ^ self._silent.keys()
            self._silent = {key: heard.revision for key, heard in silent.items()}
            self._moved |= moved
        for key in sorted(moved):
            if key in silent:
                self._log.warning("heartbeat kept but not written", key=key, seconds=silent[key].patience)
            else:
                self._log.info("heartbeat written again, or ended", key=key)
        if moved:
            self._on_change()

    def _is_silent(self, key: str, heard: _Heard, listening: float, now: float) -> bool:
        """Who is silent stays so until the next renewal, whatever we have missed ourselves."""
        if self._silent.get(key) == heard.revision:
            return True
        return heard.patience > 0 and now > max(heard.at, listening) + heard.patience
