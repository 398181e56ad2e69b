"""netd's loops: hold a lease, keep the kernel as the leases say, keep the firewall right.

Owns: what runs when. Three runners, so that a store that does not answer holds
up no repair of the kernel, and a busy xtables lock holds up neither.
Invariants: callbacks only trigger; nothing is programmed before this host
knows its subnets, from the store or, when the store does not answer, from its
own memory; peers are withdrawn only when the store is known to be the one they
were in; on the way out the lease and the data plane stay as they are, so that
a restart adopts them and no packet is lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from netd.cache import NetworkCache, Remembered
from netd.desired import Lease, Peers, Underlay, lease_value, overlay_mtu
from netd.keeping import KeptPeers
from netd.kernel import Kernel
from netd.lease import LeaseHolder
from netd.model import Desired
from netd.place import Place, Surroundings
from netd.plan import Refused, Step, plan
from netd.reachability import Silent
from netd.report import Report
from netd.ruleset import FirewallRules, VxlanGuard
from netd.watched import Entry, lease_of, leases
from podlane.api.subnets import Address, SubnetFile, Subnets
from podlane.errors import ApplyError, PodlaneError
from podlane.runtime import metrics
from podlane.runtime.atomic import write_atomic
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from podlane.runtime.runner import NotReady, Runner
from podlane.store.mirror import Mirror

_ROUNDS = 3
_QUIET = 0.05  # seconds between syncs of the kernel: a burst of changes is one sync
_VERIFY = 30.0  # seconds between full looks at the kernel
_PATIENCE = 1.0  # seconds the store may take to answer before what is remembered is used

_PEERS = metrics.gauge("netd_peers", "Peers programmed into the kernel.")
_ENTRIES = metrics.gauge("netd_entries", "Entries programmed into the kernel.", ["kind"])
_SKIPPED = metrics.gauge("netd_leases_skipped", "Leases that cannot be used.")
_STEPS = metrics.counter("netd_steps_total", "Steps applied to the kernel.", ["kind"])
_DRIFT = metrics.counter("netd_drift_repaired_total", "Steps that undid a change made by somebody else.", ["kind"])
_HELD = metrics.gauge("netd_lease_held", "1 while this host holds its subnet lease.")
_AGE = metrics.gauge("netd_lease_age_seconds", "Seconds since this netd got hold of its lease.")
_LEFT = metrics.gauge("netd_lease_expiry_seconds", "Seconds until the lease would end if it were renewed no more.")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator asked for. `quarantine` and `firewall_resync` are seconds."""

    subnet_file: Path
    ip_masq: bool = False
    random_fully: bool = True
    forward_rules: bool = True
    vxlan_guard: bool = False
    blackhole: bool = False
    firewall_resync: float = 5.0


class FirewallLike(Protocol):
    def sync(self, rules: FirewallRules) -> None: ...

    def listen(self, on_change: Callable[[], None], stop: threading.Event) -> None: ...


class ProberLike(Protocol):
    @property
    def direct(self) -> frozenset[Address]: ...

    def unreachable(self) -> Silent: ...

    def set_peers(
        self, own: Subnets, leases: Iterable[Lease], underlay: Underlay, *, auto: bool, devices: Collection[str] = ()
    ) -> None: ...

    def run(self, stop: threading.Event) -> None: ...


class Netd:
    """Everything but the process: `threads` are its thread bodies, `stop` leaves the lease in place."""

    def __init__(
        self,
        settings: Settings,
        *,
        surroundings: Surroundings,
        mirror: Callable[[Callable[[], None]], Mirror[Entry]],
        holder: Callable[[Callable[[], None]], LeaseHolder],
        prober: Callable[[Callable[[], None]], ProberLike],
        kernel: Kernel,
        firewall: FirewallLike,
        cache: NetworkCache,
        remembered: Remembered | None,
        clock: Clock | None = None,
    ) -> None:
        """`mirror`, `holder` and `prober` are made with what to call when something changed."""
        self._clock = clock or SystemClock()
        self._settings = settings
        self._kernel = kernel
        self._firewall = firewall
        self._cache = cache
        self._remembered = remembered
        self._surroundings = surroundings
        self._log = get_logger("netd")
        self._started = self._clock.monotonic()
        self._away = max(0.0, self._clock.now() - remembered.saved) if remembered is not None else 0.0
        self._witness = 0  # of the store that `in_force` is from
        self._changes = 0  # of the store's content
        self._programmed = -1  # how many of them the kernel reflects
        self._verified = -_VERIFY
        self._cause: object = None
        self._leased: Place | None = None  # the lease thread's word
        self._remembered_place: Place | None = None  # the kernel thread's, until there is the other
        self.in_force: Mapping[str, Lease] = {}
        self.place: Place | None = None  # what the kernel thread goes by
        self.held_since = 0.0
        self._peers = Peers()
        self._kept: KeptPeers | None = None
        self._rules: FirewallRules | None = None
        self.want: Desired | None = None
        self.peers_programmed = 0
        self.skipped: dict[str, str] = {}
        self.report = Report(self, self._clock)
        self.lease_runner = Runner(self.sync_lease, name="lease", clock=clock, backoff=(0.2, 5.0))
        self.kernel_runner = Runner(self.sync_kernel, name="kernel", clock=clock, min_interval=_QUIET)
        self.firewall_runner = Runner(
            self.sync_firewall, name="firewall", clock=clock, resync=settings.firewall_resync, backoff=(0.2, 5.0)
        )
        self.mirror = mirror(self._store_changed)
        self.holder = holder(self.lease_runner.trigger)
        self.prober = prober(self.kernel_runner.trigger)

    @property
    def threads(self) -> dict[str, Callable[[threading.Event], None]]:
        return {
            "leases": self.mirror.run,
            "lease": self.lease_runner.run,
            "kernel": self.kernel_runner.run,
            "firewall": self.firewall_runner.run,
            "netlink": lambda stop: self._kernel.listen(self._watched_links, self.kernel_runner.trigger, stop),
            "nftables": lambda stop: self._firewall.listen(self.firewall_runner.trigger, stop),
            "probes": self.prober.run,
        }

    def ready_checks(self) -> dict[str, Callable[[], str | None]]:
        """Ready: the first complete list was seen, our lease is held, every peer is programmed."""
        return {
            "leases": self.mirror.not_ready,
            "lease": lambda: _last_word(self.lease_runner),
            "kernel": lambda: _last_word(self.kernel_runner) or self.peers_missing(),
            "firewall": lambda: _last_word(self.firewall_runner),
        }

    def stop(self) -> None:
        self.holder.stop()
        self._remember(force=True)

    def peers_missing(self) -> str | None:
        return None if self._programmed == self._changes else "leases have changed and are being programmed"

    def _store_changed(self) -> None:
        self._changes += 1
        self.lease_runner.trigger()
        self.kernel_runner.trigger()

    def _watched_links(self) -> list[str]:
        place = self.place
        if place is None:
            return []
        return [place.underlay.name, *place.macs, *self._surroundings.made]

    # ---- the lease ----------------------------------------------------------------------------

    def sync_lease(self) -> None:
        """Hold a subnet under the config there is, and know what this host is in the network."""
        entries, _ = self.mirror.view()
        before = self._leased
        config = self._surroundings.config(entries, before)
        underlay = self._surroundings.underlay(config, before, _public_addresses(leases(entries)))
        macs = self._surroundings.macs(config, underlay, entries)
        value = lease_value(config, underlay, macs)
        tenancy = self.holder.tenancy
        held = tenancy is not None and self.holder.holds(*lease_of(entries, tenancy.subnets.key))
        if tenancy is None or not held or tenancy.value != value or self.holder.verify_due:
            _HELD.set(held)
            self.holder.candidates = self._surroundings.candidates
            tenancy = self.holder.ensure(config, value)
            self.held_since = self.held_since or self._clock.monotonic()
        _HELD.set(1)
        self._leased = Place(config, underlay, tenancy.subnets, macs, confirmed=True)
        if self._leased != before:
            self._log.info("subnet leased", subnet=str(tenancy.subnets), interface=underlay.name, **_public(underlay))
            self.kernel_runner.trigger()

    # ---- the kernel ---------------------------------------------------------------------------

    def sync_kernel(self) -> None:
        """Bring devices and entries to what the leases say. Raises ApplyError after doing what could be done."""
        started = self._clock.monotonic()
        changes = self._changes
        place = self.place = self._present_place()
        known = self._leases_in_force()
        self._set_firewall(place)
        want = self._peers.desired(
            place.config,
            place.underlay,
            place.own,
            place.macs,
            known.values(),
            direct=self.prober.direct,
            blackhole=self._settings.blackhole,
            obsolete=self._surroundings.made,
        )
        cause = (changes, place, self.prober.direct)
        drift, self._cause = cause == self._cause, None
        self._surroundings.will_make(want)
        error: ApplyError | None = None
        steps: list[Step] = []
        try:
            steps = self._reach(want, started)
        except ApplyError as failed:
            error = failed
        self.want = want
        self._write_subnet_file(place, want)
        programmed = [lease for lease in known.values() if any(subnet in want.routes for subnet in lease.subnets)]
        self.peers_programmed = len(programmed)
        self._count(want, steps, drift)
        if steps:
            message = "drift repaired" if drift else "sync complete"
            self._log.info(message, **_summary(steps), elapsed=self._clock.monotonic() - started)
        auto = place.config.backend.direct_routing == "auto"
        self.prober.set_peers(place.own, programmed, place.underlay, auto=auto, devices=want.devices)
        if error is None:
            self._surroundings.has_made(want)
            self._cause, self._programmed = cause, changes
            self._remember()
        if place.problem:
            raise PodlaneError(f"{place.problem}; {error}" if error is not None else place.problem) from error
        if error is not None:
            raise error

    def _reach(self, want: Desired, now: float) -> list[Step]:
        applied: list[Step] = []
        for _ in range(_ROUNDS):
            verify = now - self._verified >= _VERIFY
            actual = self._kernel.observe(want.watched, want.networks, want.sysctls.keys(), verify=verify)
            if verify:
                self._verified = now
            try:
                todo = plan(want, actual)
            except Refused as refused:
                raise ApplyError([("plan", refused)]) from refused
            if not self.mirror.synced:
                todo = todo.withdrawing_nobody(want)  # who came last is perhaps not remembered
            self._say(want.problems, todo.problems)
            if not todo:
                return applied
            if self._log.is_enabled_for(logging.DEBUG):  # the text of 5,000 peers takes 30 ms
                self._log.debug("plan", steps=str(todo))
            applied += todo.steps
            self._verified = -_VERIFY  # unless all goes well
            self._kernel.apply(todo)
            self._verified = now
        raise ApplyError([("sync kernel", PodlaneError(f"still differs after {_ROUNDS} rounds, first: {applied[-1]}"))])

    def _present_place(self) -> Place:
        """Where this host stands, with the underlay as it is now. Raises NotReady, PodlaneError."""
        place = self._leased or self._remembered_place
        if place is None:
            place = self._remembered_place = self._from_memory()
        underlay, problem = self._surroundings.refreshed(place.underlay)
        if underlay != place.underlay:
            self.lease_runner.trigger()  # there may be another address to tell
        return replace(place, underlay=underlay, problem=problem)

    def _from_memory(self) -> Place:
        """What this host was before, when the store has had its time to say what it is now."""
        left = _PATIENCE - (self._clock.monotonic() - self._started)
        if self._remembered is None or left > 0:
            raise NotReady("program kernel: no subnet leased yet")
        place = self._surroundings.place_from(self._remembered)
        self._log.warning(
            "no lease from the store yet, going on with what is remembered",
            subnet=str(place.own),
            leases=len(self._remembered.leases),
        )
        return place

    def _leases_in_force(self) -> Mapping[str, Lease]:
        remembered: Mapping[str, Lease] = self._remembered.leases if self._remembered is not None else {}
        if not self.mirror.synced:
            self.in_force = remembered
            return remembered
        self._witness = self.mirror.witness  # before the content: a later one would vouch for another store's
        entries, history = self.mirror.view()
        if self._kept is None:
            self._kept = KeptPeers(
                remembered,
                same_store=self.mirror.resumed_from_witness,
                kept=self._remembered.kept if self._remembered is not None else {},
                age=self._away,
            )
        self.in_force = self._kept.update(leases(entries), history, self._clock.monotonic())
        return self.in_force

    def _write_subnet_file(self, place: Place, want: Desired) -> None:
        """Docker is told of the subnet once the devices are there to carry it."""
        for name in want.devices:
            device = self._kernel.link(name)
            if device is None or device.kind != "vxlan" or not device.up:
                return
        mtu = overlay_mtu(place.config, place.underlay)
        content = SubnetFile(place.config.networks, place.own, mtu, self._settings.ip_masq).render()
        path = self._settings.subnet_file
        if not path.exists() or path.read_text(errors="replace") != content:
            write_atomic(path, content)
            self._log.info("subnet file written", path=str(path), subnet=str(place.own))

    def _say(self, leases_left_out: Mapping[str, str], entries_left_out: Sequence[str]) -> None:
        now = {**leases_left_out, **dict.fromkeys(entries_left_out, "")}
        for key, why in now.items():
            if self.skipped.get(key) != why:
                self._log.warning("lease skipped", reason=f"use lease {key}: {why}" if why else key)
        self.skipped = now
        _SKIPPED.set(len(now))

    def _count(self, want: Desired, steps: list[Step], drift: bool) -> None:
        _PEERS.set(self.peers_programmed)
        for kind, entries in (("route", want.routes), ("neighbour", want.neighbours), ("fdb", want.fdb)):
            _ENTRIES.labels(kind).set(len(entries))
        for step in steps:
            _STEPS.labels(type(step).__name__).inc()
            if drift:
                _DRIFT.labels(type(step).__name__).inc()
        tenancy = self.holder.tenancy
        if tenancy is not None:
            _AGE.set(self._clock.monotonic() - self.held_since)
            _LEFT.set(self.holder.ttl_left)

    def _remember(self, *, force: bool = False) -> None:
        place = self.place
        if place is None or not place.confirmed or self._kept is None:
            return
        wait = self._cache.save(
            Remembered(
                config=self._surroundings.raw_config,
                own=place.own,
                interface=place.underlay.name,
                devices=tuple(sorted(self._surroundings.made)),
                witness=self._witness,
                revision=self.mirror.revision,
                leases=self.in_force,
                kept=self._kept.kept(self._clock.monotonic()),
                saved=self._clock.now(),
            ),
            force=force,
        )
        if wait:
            self.kernel_runner.trigger_after(wait)  # nothing else might come, and this should not be forgotten

    # ---- the firewall -------------------------------------------------------------------------

    def _set_firewall(self, place: Place) -> None:
        """Decide what the firewall should be; its own thread writes it."""
        guard = None
        if self._settings.vxlan_guard and place.config.backend.type == "vxlan":
            guard = VxlanGuard(place.config.backend.port, frozenset(_public_addresses(self.in_force)))
        rules = FirewallRules(
            place.config.networks,
            place.own,
            forward=self._settings.forward_rules,
            masquerade=self._settings.ip_masq,
            random_fully=self._settings.random_fully,
            guard=guard,
        )
        if rules != self._rules:
            self._rules = rules
            self.firewall_runner.trigger()

    def sync_firewall(self) -> None:
        if self._rules is None:
            raise NotReady("write firewall rules: no subnet leased yet")
        self._firewall.sync(self._rules)


def _last_word(runner: Runner) -> str | None:
    return str(runner.last_error) if runner.last_error else runner.ready()


def _public_addresses(known: Mapping[str, Lease]) -> list[Address]:
    return [address for lease in known.values() for address in lease.value.addresses]


def _public(underlay: Underlay) -> dict[str, str]:
    return {f"public_ipv{a.version}": str(a) for a in (underlay.public_ip, underlay.public_ipv6) if a is not None}


def _summary(steps: list[Step]) -> dict[str, int]:
    removed = sum(type(step).__name__.startswith("Delete") for step in steps)
    return {"set": len(steps) - removed, "removed": removed}
