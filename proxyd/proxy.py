"""The sync: from a view of the store to a kernel that agrees with it.

Owns: the order of a sync, and who is told of it. Invariants:

- Nothing is written before the first complete view; the first sync of a process
  lists the kernel and writes only differences, so a restart disturbs nothing.
- One family's failure leaves the other served; what failed is tried again.
- Ready means: the first complete view was written, and `verify` found it right.
- Endpoints are reported as applied once every family's table has them.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from podlane.api.types import EndpointSlice, IPFamily, Service
from podlane.errors import PodlaneError
from podlane.runtime import metrics
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from podlane.runtime.runner import NotReady
from proxyd import proxymetrics
from proxyd.conntrack import Conntrack
from proxyd.desired import Clash, Index, Touched
from proxyd.healthcheck import ServiceHealth
from proxyd.host import Host
from proxyd.nft import Nft
from proxyd.plan import Plan
from proxyd.plane import Plane
from proxyd.ruleset import Skeleton
from proxyd.serving import Place, Policy
from proxyd.source import Source, View
from proxyd.tables import (
    FAMILIES,
    IPV6,
    MAPS,
    Family,
    Frontend,
    Key,
    Refused,
    Target,
    pack_frontend,
    show_address,
    unpack_frontend,
    unpack_target,
)

VERIFY_INTERVAL = 30.0
CLEAN_AGAIN = (3.0, 20.0)
"""Seconds after a change at which its frontends' conntrack entries are looked at again: connections to a pod that
goes are reset after it went, and are remembered for 10 s then.
"""
_POLICIES: tuple[Policy, ...] = ("internal", "external")

_ELEMENTS = metrics.gauge("podlane_proxyd_elements", "Elements in the kernel.", ["family", "map"])
_CLEANED = metrics.counter("podlane_proxyd_conntrack_deleted_total", "Stale conntrack entries deleted.")
_SERVICES = metrics.gauge("podlane_proxyd_services", "Services proxied.")
_LEFT_OUT = metrics.gauge("podlane_proxyd_left_out", "Frontends the kernel refused, which are not served.")
_VERIFIED = metrics.histogram("podlane_proxyd_verify_duration_seconds", "Time of one comparison with the kernel.")


@dataclass(frozen=True, slots=True)
class Outlets:
    """Who else is told. None of these may block or raise.

    `applied(revision, terminating)`: endpoint slices up to a store revision are in the kernel;
    `left_out(service, message)`: the kernel refused an element of the service's;
    `health(ports, addresses)`: what to answer at health-check node ports.
    """

    applied: Callable[[int, bool], None] = lambda _revision, _terminating: None
    left_out: Callable[[Service, str], None] = lambda _service, _message: None
    health: Callable[[Mapping[int, ServiceHealth], tuple[str, ...]], None] = lambda _ports, _addresses: None
    eligible: Callable[[bool], None] = lambda _eligible: None


class Proxy:
    """One node's service proxy. `sync` and `verify` each belong to a Runner.

    `trigger_after(seconds)` must cause a sync then. `node_addresses` chooses, from the
    node's InternalIPs, at which addresses node ports are served.
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
        node_addresses: Callable[[tuple[str, ...]], tuple[str, ...]] = lambda internal_ips: internal_ips,
        outlets: Outlets | None = None,
    ) -> None:
        self._source = source
        self._nft = nft
        self._conntrack = conntrack
        self._host = host
        self._node = node
        self._clock = clock
        self._trigger_after = trigger_after
        self._node_addresses = node_addresses
        self._outlets = outlets or Outlets()
        self._log = get_logger("proxyd")
        self._lock = threading.Lock()
        self._index = Index(Place(node))
        self._indexed = False
        self._planes: dict[Family, Plane] = {}
        self._ranges: tuple[str, ...] = ()
        self._written = self._ready = False
        self._synced_at: float | None = None  # both in Unix time
        self._verified_at: float | None = None
        self._unclean: set[Key] = set()
        self._unclean_ranges: tuple[str, ...] = ()
        self._unclean_later: list[tuple[float, set[Key]]] = []
        self._clashes: list[Clash] = []

    def not_ready(self) -> str | None:
        """For Daemon.add_ready_check."""
        return None if self._ready else "the kernel has not been brought to the first complete list yet"

    @property
    def families(self) -> list[IPFamily]:
        """The families that are in use."""
        return [family.title for family in tuple(self._planes)]

    def status(self) -> dict[str, object]:
        """What `proxyd status` shows, in JSON's types."""
        with self._lock:
            place, index = self._index.place, self._index
            return {
                "node": self._node,
                "zone": place.zone,
                "ready": self._ready,
                "nodePortAddresses": list(place.node_addresses),
                "services": index.proxied,
                "leftOut": {_shown(key): why for key, why in index.left_out.items()},
                "clashes": [str(clash) for clash in self._clashes],
                "families": {
                    plane.family.title: {
                        "podNetworks": list(plane.skeleton.pod_networks),
                        "serviceRanges": list(plane.skeleton.service_ranges),
                        "elements": {name: len(plane.tables[name]) for name in MAPS} if plane.tables else {},
                        "chains": len(plane.tables.chains) if plane.tables else 0,
                        "retiring": plane.retiring,
                    }
                    for plane in self._planes.values()
                },
                "repairs": sum(plane.repairs for plane in self._planes.values()),
                "verifiedAt": self._verified_at,
                "syncedAt": self._synced_at,
            }

    def sync(self) -> None:
        """Bring the kernel to what the store says. Raises NotReady, PodlaneError; the next sync repairs."""
        with self._lock, nullcontext() if self._written else _without_gc():
            view = self._source.take(complete=not self._indexed)
            started = self._clock.monotonic()
            self._indexed = False  # should this fail half-way, the next sync begins with whole lists
            self._stand(view)
            place = Place(self._node, view.zone, self._node_addresses(view.internal_ips))
            touched, terminating = self._take_in(view, place)
            self._indexed = True
            full = any(plane.tables is None for plane in self._planes.values())
            plans = self._bring(touched)
            self._tell(view, terminating=terminating)
            self._report(plans, self._clock.monotonic() - started, full=full)
            self._clean()
            for plane in self._planes.values():
                if (pause := plane.retire()) is not None:
                    self._trigger_after(pause)
            if full:
                self._ensure_host()

    def verify(self) -> None:
        """Compare the kernel with what was written, beside the syncs. Raises NotReady, PodlaneError; ask again then."""
        started = self._clock.monotonic()
        with self._lock:
            planes = list(self._planes.values())
        found = [plane.listed() for plane in planes]
        with self._lock:
            same = [compare() for compare in found]
            if same and all(same):
                self._ready, self._verified_at = True, self._clock.now()
                _VERIFIED.observe(self._clock.monotonic() - started)
        if False in same:
            self._trigger_after(0.0)
        if not self._ready:
            raise NotReady("compare table: it changed meanwhile, or is not as it was written")
        self._ensure_host()

    def _ensure_host(self) -> None:
        for change in self._host.ensure(self._ranges, ipv6=IPV6 in self._planes):
            self._log.info("host changed", change=change)

    # --- what is wanted ----------------------------------------------------------------

    def _take_in(self, view: View, place: Place) -> tuple[Touched, bool]:
        """Bring the index to the view; also tell whether an endpoint has begun to go.

        Nothing in it can fail: what was touched would be known to nobody.
        """
        terminating = True
        if view.complete:
            services = {name: each for name, each in view.services.items() if each is not None}
            slices = {name: each for name, each in view.slices.items() if each is not None}
            touched = self._index.replace(services, slices)
        else:
            proxymetrics.changed(services=len(view.services), endpoints=len(view.slices))
            terminating = any(_ends(self._index.slice(name), each) for name, each in view.slices.items())
            touched = self._index.update(view.services, view.slices)
        moved = self._index.move(place)
        clashes = self._index.clashes
        for clash in clashes:
            if clash not in self._clashes:
                self._log.warning("service left out", error=str(clash))
        self._clashes = clashes
        return touched | moved, terminating

    def _stand(self, view: View) -> None:
        """Have a plane for each family that is in use, and none for one that is not."""
        self._ranges = view.service_ranges
        for family in FAMILIES:
            skeleton = Skeleton(
                _of_family(view.pod_networks, family), _of_family(view.service_ranges, family), family=family
            )
            plane = self._planes.get(family)
            if not (skeleton.pod_networks or skeleton.service_ranges):
                if plane is not None:
                    self._nft.delete(family)
                    del self._planes[family]
            elif plane is None or plane.skeleton != skeleton:
                self._planes[family] = Plane(skeleton, self._nft, self._index, self._clock, self._leave_out)

    # --- bringing it into the kernel ------------------------------------------------------

    def _bring(self, touched: Touched) -> list[Plan]:
        """One family's failure leaves the other served; it is raised when all are done."""
        plans: list[Plan] = []
        errors: list[PodlaneError] = []
        for plane in self._planes.values():
            try:
                brought = plane.bring(touched)
            except PodlaneError as error:
                proxymetrics.failed([plane.family.title])
                errors.append(error)
                continue
            plans += brought.plans
            for plan in brought.plans:
                self._unclean |= plan.clean
                if plan.clean:
                    now = self._clock.monotonic()
                    self._unclean_later += [(now + pause, plan.clean) for pause in CLEAN_AGAIN]
            if brought.whole or not self._written:
                # flows may have begun while nothing, or something else, was in the kernel
                self._unclean.update(self._index.frontends)
                self._unclean_ranges = self._ranges
        if errors:
            raise errors[0]
        self._written = True
        return plans

    def _leave_out(self, key: Key, error: Refused) -> None:
        self._index.left_out[key] = str(error)
        what = _shown(key)
        for name in self._index.users(key):
            self._log.error("left out, for the kernel refuses it", service=name, frontend=what, error=str(error))
            self._outlets.left_out(self._index.services[name], f"node {self._node} cannot serve {what}: {error}")

    # --- everything else ------------------------------------------------------------------

    def _tell(self, view: View, *, terminating: bool) -> None:
        self._outlets.applied(view.revision, terminating)
        self._outlets.health(self._index.health, self._index.place.node_addresses)
        self._outlets.eligible(not view.leaving)
        _count_programmed(view, self._clock.now())

    def _clean(self) -> None:
        """Delete stale conntrack entries; what fails is tried again by the next sync."""
        now = self._clock.monotonic()
        for due, frontends in self._unclean_later:
            if due <= now:
                self._unclean |= frontends
        self._unclean_later = [each for each in self._unclean_later if each[0] > now]
        if self._unclean_later:
            self._trigger_after(min(due for due, _ in self._unclean_later) - now)
        if not self._unclean and not self._unclean_ranges:
            return
        deleted = self._conntrack.clean(_Serving(self._index, self._unclean), self._unclean_ranges)
        self._unclean, self._unclean_ranges = set(), ()
        if deleted:
            _CLEANED.inc(deleted)
            self._log.info("stale conntrack entries deleted", entries=deleted)

    def _report(self, plans: Collection[Plan], elapsed: float, *, full: bool) -> None:
        self._synced_at = self._clock.now()
        lacking = self._index.without_local()
        for plane in self._planes.values():
            for policy in _POLICIES:
                proxymetrics.no_local_endpoints(plane.family.title, policy, lacking[plane.family.title, policy])
        proxymetrics.synced(self.families, elapsed, self._synced_at, full=full)
        proxymetrics.pending(services=0, endpoints=0)
        _SERVICES.set(self._index.proxied)
        _LEFT_OUT.set(len(self._index.left_out))
        if not any(plans):
            return
        for plane in self._planes.values():
            for name in MAPS:
                _ELEMENTS.labels(plane.family.title, name).set(len(plane.tables[name]) if plane.tables else 0)
        self._log.info(
            "sync complete",
            added=sum(len(keys) for plan in plans for keys in plan.now.add.values()),
            deleted=sum(len(keys) for plan in plans for keys in plan.now.delete.values()),
            retiring=sum(len(plan.retire) for plan in plans),
            services=self._index.proxied,
            elapsed=elapsed,
        )
        for plan in plans:
            self._log.debug("plan", script=plan)


class _Serving(Mapping[Frontend, set[Target]]):
    """Who serves at each of these frontends, told when asked: of ten thousand few have flows."""

    def __init__(self, index: Index, frontends: Collection[Key]) -> None:
        self._index, self._frontends = index, frontends

    def __getitem__(self, frontend: Frontend) -> set[Target]:
        key = pack_frontend(frontend)
        if key not in self._frontends:
            raise KeyError(frontend)
        wanted = self._index.wanted(key)
        return {unpack_target(each) for each in wanted.targets} if wanted else set()

    def __iter__(self) -> Iterator[Frontend]:
        return map(unpack_frontend, self._frontends)

    def __len__(self) -> int:
        return len(self._frontends)


@contextmanager
def _without_gc() -> Iterator[None]:
    """Make tens of thousands of objects that stay, without looking again and again for those that do not."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _shown(key: Key) -> str:
    """A frontend, or an address."""
    return str(unpack_frontend(key)) if len(key) in {12, 24} else show_address(key)


def _ends(old: EndpointSlice | None, new: EndpointSlice | None) -> bool:
    """Whether an endpoint of the slice is terminating, or gone."""
    if new is None or (old is not None and len(new.endpoints) < len(old.endpoints)):
        return True
    return any(endpoint.conditions.terminating for endpoint in new.endpoints)


def _count_programmed(view: View, now: float) -> None:
    """Measure how long after their cause the changed endpoints were in the kernel, where a slice says when that was."""
    if view.complete:
        return
    for each in view.slices.values():
        if each is not None and (happened := proxymetrics.trigger_time(each.metadata.annotations)) is not None:
            proxymetrics.programmed(each.address_type, [happened], now)


def _of_family(networks: Collection[str], family: Family) -> tuple[str, ...]:
    return tuple(sorted(each for each in networks if (":" in each) == (family.width == 16)))
