"""One leader at a time.

Owns: campaigning for a key. Invariant: what a leader writes with its `fence`
takes effect only while the key is the one it created; so even a leader that
was frozen and does not know that another took over can do no harm. `lost` is
the courtesy (stop working), the fence is the guarantee.
Source: etcd's concurrency recipe (clientv3/concurrency/election.go), with one
key instead of a queue: whoever is there when it goes may have it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from podlane.errors import Fenced, PodlaneError
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from podlane.store.interface import Compacted, Compare, Get, KeyValue, Put, Store
from podlane.store.lease import KeepAlive

STOP_POLL = 0.2  # seconds until a stop is passed on to a leader
POLL = 1.0  # seconds a stop may go unnoticed
LOOKS = 10  # polls of a watch before the key is read again, whatever the watch says
PAUSE = 1.0  # seconds after a failed attempt or a leadership, which leaves the others a chance


@dataclass(frozen=True)
class Leadership:
    """What `lead` gets. `lost` is set when it ends; every write must compare `fence`."""

    fence: Compare
    lost: threading.Event = field(default_factory=threading.Event)


class Election:
    """Campaigns for `key` under the name `identity`; a leader that vanishes is replaced after `ttl` seconds."""

    def __init__(self, store: Store, key: str, identity: str, *, ttl: int = 10, clock: Clock | None = None) -> None:
        self._store = store
        self._key = key
        self._identity = identity
        self._ttl = ttl
        self._clock = clock or SystemClock()
        self._leader = ""
        self._log = get_logger("election", key=key, identity=identity)

    @property
    def leader(self) -> str:
        """The identity of the leader as last seen; "" if none was."""
        return self._leader

    @property
    def is_leader(self) -> bool:
        return self._leader == self._identity

    def run(self, stop: threading.Event, lead: Callable[[Leadership], None]) -> None:
        """Campaign, lead, and campaign again until `stop` is set: the body of one thread.

        `lead` is called in this thread and must return soon after
        `leadership.lost` is set, which a stop does too; it may raise Fenced.
        Returning means resigning.
        """
        while not stop.is_set():
            try:
                self._campaign(stop, lead)
            except Fenced as error:
                self._log.warning("leadership lost", error=str(error))
            except Compacted:
                continue
            except PodlaneError as error:
                self._log.warning("campaign failed", error=str(error), retry_in=PAUSE)
            else:
                continue
            self._clock.wait(stop, PAUSE)

    def _campaign(self, stop: threading.Event, lead: Callable[[Leadership], None]) -> None:
        incumbent, revision = self._look()
        if incumbent is not None:
            self._follow(incumbent)
            self._wait_for_end(revision, stop)
            return
        ended = threading.Event()
        alive = KeepAlive(self._store, self._ttl, clock=self._clock, on_lost=ended.set, check=self._holds)
        alive.start()
        try:
            created = self._take(alive.lease_id)
            if created:
                self._lead(Leadership(Compare.created_at(self._key, created), ended), stop, lead)
        finally:
            self._leader = ""
            alive.stop(revoke=True)
        if created:
            self._clock.wait(stop, PAUSE)

    def _look(self) -> tuple[KeyValue | None, int]:
        result = self._store.txn([], [Get(self._key)])
        return (result.reads[0][0] if result.reads[0] else None), result.revision

    def _take(self, lease: int) -> int:
        """Create the key; returns its create revision, 0 if another was faster."""
        put = Put(self._key, self._identity.encode(), lease)
        result = self._store.txn([Compare.absent(self._key)], [put], [Get(self._key)])
        if result.succeeded:
            return result.revision
        # an answer that was lost, and its transaction repeated below us, leaves our own key there
        return next((kv.create_revision for kv in result.reads[0] if kv.lease == lease), 0)

    def _holds(self, lease: int) -> bool:
        """Whether our key is still there, once we lead: somebody may have deleted it."""
        if not self.is_leader:
            return True
        kv = self._store.get(self._key)
        return kv is not None and kv.lease == lease

    def _lead(self, leadership: Leadership, stop: threading.Event, lead: Callable[[Leadership], None]) -> None:
        self._leader = self._identity
        self._log.info("leading")
        threading.Thread(target=self._pass_on, args=(stop, leadership.lost), name="election-stop", daemon=True).start()
        try:
            lead(leadership)
        finally:
            leadership.lost.set()
            self._log.info("no longer leading")

    def _pass_on(self, stop: threading.Event, lost: threading.Event) -> None:
        while not lost.is_set():
            if stop.wait(STOP_POLL):
                lost.set()

    def _follow(self, incumbent: KeyValue) -> None:
        leader = incumbent.value.decode("utf-8", "replace")
        if leader != self._leader:
            self._log.info("following", leader=leader)
        self._leader = leader

    def _wait_for_end(self, revision: int, stop: threading.Event) -> None:
        """Return when the key may be free, on stop, and in any case soon enough to look again."""
        with self._store.watch(self._key, start_revision=revision) as watch:
            for _ in range(LOOKS):
                batch = watch.next(POLL)
                if stop.is_set() or (batch and any(e.kv.mod_revision > revision for e in batch.events)):
                    return
