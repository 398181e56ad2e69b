"""The sync: from a view of the store to a kernel that agrees with it.

Owns: when the kernel is listed and compared (`verify`), when only what changed
is written, and what is left for later. Invariants:

- Nothing is written before the first complete view; the first sync of a process
  lists the kernel and writes only differences, so a restart disturbs nothing.
- `_tables` is what the kernel has as far as our own commits say, or None when
  that is not known: after any error the next sync lists and compares.
- A change by someone else shows in nftables' generation number, which every
  commit increases by one; more than our own increase means: compare.
- Ready means: the first complete view was written, listed again and found right.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping

from podlane.errors import PodlaneError
from podlane.runtime import metrics
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from proxyd.conntrack import Conntrack
from proxyd.desired import Clash, Index, Touched
from proxyd.host import Host
from proxyd.nft import Nft
from proxyd.plan import Plan, plan_all, plan_changes, plan_retire, unused_chains
from proxyd.ruleset import Skeleton
from proxyd.source import Source, View
from proxyd.tables import MAPS, Frontend, Key, Tables, Target, Transaction

RETIRE_AFTER = 0.25
"""Seconds a slot outlives its use. A look-up on its way takes microseconds; a paused virtual CPU, longer."""

VERIFY_INTERVAL = 30.0
WATCH_INTERVAL = 0.5  # seconds between looks at the generation number, some 10 µs each
_VERIFY_SHARE = 20  # other people's commits make us compare at most 1/20 of the time

_ELEMENTS = metrics.gauge("podlane_proxyd_elements", "Elements in the kernel.", ["map"])
_COMMITS = metrics.counter("podlane_proxyd_commits_total", "nftables transactions by result.", ["result"])
_REPAIRS = metrics.counter("podlane_proxyd_repairs_total", "Times the kernel differed from what was written.")
_CLEANED = metrics.counter("podlane_proxyd_conntrack_deleted_total", "Stale conntrack entries deleted.")
_SERVICES = metrics.gauge("podlane_proxyd_services", "Services proxied.")


class Proxy:
    """One node's service proxy. `sync` belongs to a Runner, `watch` to a thread of its own.

    `trigger_after(seconds)` must cause a sync then.
    """

    def __init__(
        self,
        *,
        source: Source,
        nft: Nft,
        conntrack: Conntrack,
        host: Host,
        node: str,
        clock: Clock,
        trigger_after: Callable[[float], None],
    ) -> None:
        self._source = source
        self._nft = nft
        self._conntrack = conntrack
        self._host = host
        self._clock = clock
        self._trigger_after = trigger_after
        self._log = get_logger("proxyd")
        self._lock = threading.Lock()
        self._index = Index(node)
        self._indexed = False
        self._tables: Tables | None = None
        self._skeleton: Skeleton | None = None
        self._generation: int | None = None
        self._verified_at = 0.0
        self._verify_took = 0.0
        self._verify_wanted = False
        self._ready = False
        self._retired: dict[Key, float] = {}
        self._unclean: dict[Frontend, frozenset[Target]] = {}
        self._unclean_ranges: tuple[str, ...] = ()
        self._clashes: list[Clash] = []

    def not_ready(self) -> str | None:
        """For Daemon.add_ready_check."""
        return None if self._ready else "the kernel has not been brought to the first complete list yet"

    def sync(self) -> None:
        """Bring the kernel to what the store says. Raises NotReady, PodlaneError; the next sync repairs."""
        with self._lock:
            view = self._source.take(complete=not self._indexed)
            started = self._clock.monotonic()
            touched = self._take_in(view)
            skeleton = Skeleton(view.pod_networks, view.service_ranges)
            due = self._verify_wanted or started - self._verified_at >= VERIFY_INTERVAL
            if self._tables is None or skeleton != self._skeleton or due:
                plan = self._verify(skeleton)
            else:
                plan = self._write(self._tables, plan_changes(self._tables, self._index, touched))
            self._clean(plan.clean)
            self._retire()
            now = self._clock.monotonic()
            if plan:
                self._report(plan, now - started)
            self._trigger_after(max(0.0, self._verified_at + VERIFY_INTERVAL - now))

    def watch(self, stop: threading.Event) -> None:
        """Look twice a second until `stop`: the body of one thread."""
        while not self._clock.wait(stop, WATCH_INTERVAL):
            self.look()

    def look(self) -> None:
        """See whether someone else changed nftables, and ask for a sync if so."""
        with self._lock:
            if self._generation is None or self._tables is None:
                return
            quiet = self._clock.monotonic() - self._verified_at
            try:
                meddled = self._nft.generation() != self._generation
            except PodlaneError as error:
                self._log.debug("cannot read generation", error=str(error))
                return
            wanted = meddled and quiet >= self._verify_took * _VERIFY_SHARE
            self._verify_wanted |= wanted
        if wanted:
            self._trigger_after(0.0)

    # --- what is wanted ----------------------------------------------------------------

    def _take_in(self, view: View) -> Touched:
        self._indexed = False  # should this fail half-way, the next sync begins with whole lists
        if view.complete:
            services = {name: each for name, each in view.services.items() if each is not None}
            slices = {name: each for name, each in view.slices.items() if each is not None}
            touched = self._index.replace(services, slices)
        else:
            touched = self._index.update(view.services, view.slices)
        self._indexed = True
        clashes = self._index.clashes
        for clash in clashes:
            if clash not in self._clashes:
                self._log.warning("service left out", error=str(clash))
        self._clashes = clashes
        return touched

    # --- bringing it into the kernel ------------------------------------------------------

    def _verify(self, skeleton: Skeleton) -> Plan:
        """List the kernel, compare everything, write the differences."""
        known, self._tables = self._tables, None  # unknown until all went well
        # the host's settings do not show in the generation, so they have their own time
        if not self._verify_wanted:
            for change in self._host.ensure(skeleton.service_ranges):
                self._log.info("host changed", change=change)
        intact = skeleton == self._skeleton and self._nft.intact()
        if not intact:
            self._nft.load(skeleton)
        started = self._clock.monotonic()
        generation = self._nft.generation()
        tables = self._nft.dump()
        plan = plan_all(tables, self._index)
        self._verify_took = self._clock.monotonic() - started
        if known is not None and (not intact or tables.maps != known.maps) and skeleton == self._skeleton:
            _REPAIRS.inc()
            self._log.warning("table was changed by someone else, repairing", static=not intact, elements=len(plan.now))
        self._skeleton = skeleton
        self._generation = generation
        self._write(tables, plan)
        self._write(tables, Plan(now=Transaction(drop_chains=unused_chains(tables))))
        if not self._ready:
            self._prove()
        if not self._ready or plan.now:
            # flows may have begun while nothing, or something else, was in the kernel
            self._unclean.update({f: self._index.targets(f) for f in self._index.frontends})
            self._unclean_ranges = skeleton.service_ranges
        self._tables = tables
        self._ready = True
        self._verify_wanted = False
        self._verified_at = self._clock.monotonic()
        return plan

    def _prove(self) -> None:
        """List once more: what we believe to have written must be what is there."""
        if rest := plan_all(self._nft.dump(), self._index).now:
            raise PodlaneError(f"verify table: {len(rest)} elements are still not as they should be")

    def _write(self, tables: Tables, plan: Plan) -> Plan:
        """Commit what is to be done now and note what is for later."""
        self._commit(tables, plan.now)
        if plan.retire:
            due = self._clock.monotonic() + RETIRE_AFTER
            self._retired.update((key, due) for key in plan.retire if key not in self._retired)
            self._trigger_after(RETIRE_AFTER)
        return plan

    def _commit(self, tables: Tables, transaction: Transaction) -> None:
        if not transaction:
            return
        try:
            self._nft.commit(transaction)
            tables.apply(transaction)
        except PodlaneError:
            # refused, or unknown whether done: either way we no longer know what the kernel has
            self._tables = None
            _COMMITS.labels("error").inc()
            raise
        _COMMITS.labels("ok").inc()
        if self._generation is not None:
            # if another commit came between, this falls behind the kernel's number, and `watch` sees it
            self._generation += 1

    def _retire(self) -> None:
        """Delete the slots whose time has come; the others ask for another sync."""
        if not self._retired or self._tables is None:
            return
        now = self._clock.monotonic()
        due = [key for key, at in self._retired.items() if at <= now]
        self._commit(self._tables, plan_retire(self._tables, due))
        for key in due:
            del self._retired[key]
        if self._retired:
            self._trigger_after(max(0.0, min(self._retired.values()) - now))

    def _clean(self, frontends: Mapping[Frontend, Collection[Target]]) -> None:
        """Delete stale conntrack entries; what fails is tried again by the next sync."""
        self._unclean.update((frontend, frozenset(targets)) for frontend, targets in frontends.items())
        if not self._unclean and not self._unclean_ranges:
            return
        deleted = self._conntrack.clean(self._unclean, self._unclean_ranges)
        self._unclean, self._unclean_ranges = {}, ()
        if deleted:
            _CLEANED.inc(deleted)
            self._log.info("stale conntrack entries deleted", entries=deleted)

    def _report(self, plan: Plan, elapsed: float) -> None:
        assert self._tables is not None
        for name in MAPS:
            _ELEMENTS.labels(name).set(len(self._tables[name]))
        _SERVICES.set(self._index.services)
        self._log.info(
            "sync complete",
            added=sum(map(len, plan.now.add.values())),
            deleted=sum(map(len, plan.now.delete.values())),
            retiring=len(plan.retire),
            services=self._index.services,
            endpoints=len(self._tables["endpoints"]),
            elapsed=elapsed,
        )
        self._log.debug("plan", script=plan)
