"""netd's loops: hold a lease, keep the kernel as the leases say, keep the firewall open.

Owns: what runs when. Three runners, so that a store that does not answer holds
up no repair of the kernel, and a busy xtables lock holds up neither.
Invariants: callbacks only trigger; nothing is programmed before the first
complete list and a lease of our own; on the way out the lease and the data
plane stay as they are, so that a restart adopts them and no packet is lost.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Protocol

from netd.desired import Underlay, desired, device_name
from netd.kernel import Kernel
from netd.lease import LeaseHolder, Renewal, Tenancy
from netd.model import Desired
from netd.plan import Refused, Step, plan
from netd.state import State, previous_subnet
from netd.watched import Decoder, Entry, lease_of, leases, network_config
from podlane.api.network import LeaseValue, NetworkConfig, SubnetFile, config_key, subnet_key
from podlane.errors import ApplyError, PodlaneError
from podlane.runtime import metrics
from podlane.runtime.atomic import write_atomic
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from podlane.runtime.runner import NotReady, Runner
from podlane.store.interface import Store
from podlane.store.mirror import Mirror

_ROUNDS = 3
_QUIET = 0.05  # seconds between syncs of the kernel: a burst of changes is one sync
_FIREWALL_RESYNC = 10.0

_PEERS = metrics.gauge("netd_peers", "Peers programmed into the kernel.")
_SKIPPED = metrics.gauge("netd_leases_skipped", "Leases that cannot be used.")
_STEPS = metrics.counter("netd_steps_total", "Steps applied to the kernel.", ["kind"])
_HELD = metrics.gauge("netd_lease_held", "1 while this host holds its subnet lease.")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator asked for."""

    prefix: str
    underlay: Underlay
    subnet_file: Path
    state_dir: Path
    ip_masq: bool = False
    forward_rules: bool = True


class FirewallLike(Protocol):
    def sync(self, network: IPv4Network, *, forward: bool, masquerade: bool) -> None: ...


class Netd:
    """Everything but the process: `threads` are its thread bodies, `stop` leaves the lease in place.

    `renewal` makes the keep-alive of an etcd lease, given what to call when it
    is lost and the id of the lease to adopt, 0 for a new one.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        kernel: Kernel,
        firewall: FirewallLike,
        renewal: Callable[[Callable[[], None], int], Renewal],
        rng: random.Random,
        clock: Clock | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self._settings = settings
        self._underlay = settings.underlay
        self._kernel = kernel
        self._firewall = firewall
        self._rng = rng
        self._log = get_logger("netd")
        self._state = State(settings.state_dir)
        self._said: frozenset[str] = frozenset()
        self._waiting_said = False
        self._changed_said: NetworkConfig | None = None
        self._current: tuple[NetworkConfig, Tenancy] | None = None
        self._mac = ""
        decode = Decoder(settings.prefix)
        self.mirror: Mirror[Entry] = Mirror(
            store, decode.root, decode=decode, on_change=self._store_changed, name="leases", clock=clock
        )
        self.lease_runner = Runner(self.sync_lease, name="lease", clock=clock)
        self.kernel_runner = Runner(self.sync_kernel, name="kernel", clock=clock, min_interval=_QUIET)
        self.firewall_runner = Runner(self.sync_firewall, name="firewall", clock=clock, resync=_FIREWALL_RESYNC)
        self.holder = LeaseHolder(
            store=store,
            prefix=settings.prefix,
            public_ip=settings.underlay.public_ip,
            renewal=lambda lease_id: renewal(self.lease_runner.trigger, lease_id),
            rng=rng,
            previous=previous_subnet(settings.subnet_file),
        )

    @property
    def threads(self) -> dict[str, Callable[[threading.Event], None]]:
        return {
            "leases": self.mirror.run,
            "lease": self.lease_runner.run,
            "kernel": self.kernel_runner.run,
            "firewall": self.firewall_runner.run,
            "netlink": self._listen,
        }

    def ready_checks(self) -> dict[str, Callable[[], str | None]]:
        """Ready: the first complete list was seen, our lease is held, the kernel agrees."""
        return {
            "leases": self.mirror.not_ready,
            "lease": lambda: _last_word(self.lease_runner),
            "kernel": lambda: _last_word(self.kernel_runner),
            "firewall": lambda: _last_word(self.firewall_runner),
        }

    def stop(self) -> None:
        self.holder.stop()

    def _store_changed(self) -> None:
        self.lease_runner.trigger()
        self.kernel_runner.trigger()

    def _listen(self, stop: threading.Event) -> None:
        while self._current is None:
            if stop.wait(0.1):
                return
        self._kernel.listen(device_name(self._current[0]), self._underlay.name, self.kernel_runner.trigger, stop)

    # ---- the lease ----------------------------------------------------------------------------

    def sync_lease(self) -> None:
        """Hold a subnet, and know the config it was taken under."""
        snapshot = self.mirror.snapshot()
        config = self._current[0] if self._current else self._wait_for_config(snapshot)
        self._note_changed_config(config, snapshot)
        if not self._mac:
            self._mac = self._choose_mac(config, snapshot)
        value = LeaseValue.vxlan(self._underlay.public_ip, config.backend.vni, self._mac)
        if self._current and self.holder.holds(*lease_of(snapshot, subnet_key(self._current[1].subnet))):
            _HELD.set(1)
            return
        _HELD.set(0)
        tenancy = self.holder.ensure(config, value)
        _HELD.set(1)
        first = self._current is None
        self._current = (config, tenancy)
        if first:
            self._log.info("subnet leased", subnet=str(tenancy.subnet), network=str(config.network))
            self.kernel_runner.trigger()
            self.firewall_runner.trigger()

    def _wait_for_config(self, snapshot: dict[str, Entry]) -> NetworkConfig:
        config = network_config(snapshot)
        if config is None:
            key = config_key(self._settings.prefix)
            if not self._waiting_said:
                self._log.info("waiting for the network config", key=key)
                self._waiting_said = True
            raise NotReady(f"read network config {key}: there is none yet")
        net, underlay = config.network, self._underlay
        assert net is not None
        if net.overlaps(underlay.address.network):
            raise PodlaneError(
                f"use network {net}: it overlaps {underlay.address.network} of {underlay.name}, "
                "which carries the overlay's own packets"
            )
        return config

    def _note_changed_config(self, config: NetworkConfig, snapshot: dict[str, Entry]) -> None:
        try:
            stored = network_config(snapshot)
        except PodlaneError:
            return  # an unusable config does not replace a good one
        if stored is not None and stored not in (config, self._changed_said):
            self._log.warning("network config changed, restart netd to use it")
            self._changed_said = stored

    def _choose_mac(self, config: NetworkConfig, snapshot: dict[str, Entry]) -> str:
        """The device's, if there is one: peers know it. Else the last one used, else a new one."""
        assert config.network is not None
        actual = self._kernel.observe(device_name(config), config.network)
        mac = actual.device.mac if actual.device else self._state.mac
        if not mac:
            own = (each.value for each in leases(snapshot) if each.value.public_ip == self._underlay.public_ip)
            mac = next((found for value in own if (found := _mac_of(value))), "")
        if not mac:
            octets = [0x02, *(self._rng.randrange(256) for _ in range(5))]  # locally administered, unicast
            mac = ":".join(f"{octet:02x}" for octet in octets)
        self._state.mac = mac
        return mac

    # ---- the kernel ---------------------------------------------------------------------------

    def sync_kernel(self) -> None:
        """Bring device and entries to what the leases say. Raises ApplyError after doing what could be done."""
        if self._current is None:
            raise NotReady("program kernel: no subnet leased yet")
        started = time.monotonic()
        config, tenancy = self._current
        known = leases(self.mirror.snapshot())
        self._refresh_underlay()
        want = desired(config, self._underlay, tenancy.subnet, self._mac, known)
        error: PodlaneError | None = None
        steps: list[Step] = []
        try:
            steps = self._reach(want)
        except ApplyError as failed:
            error = failed
        self._write_subnet_file(config, tenancy, want)
        _PEERS.set(len(want.routes))
        if steps:
            self._log.info("sync complete", **_summary(steps), elapsed=time.monotonic() - started)
        if error is not None:
            raise error

    def _reach(self, want: Desired) -> list[Step]:
        applied: list[Step] = []
        for _ in range(_ROUNDS):
            try:
                todo = plan(want, self._kernel.observe(want.device.name, want.network))
            except Refused as refused:
                raise ApplyError([("plan", refused)]) from refused
            self._say(want.problems + todo.problems)
            if not todo:
                return applied
            self._log.debug("plan", steps=str(todo))
            self._kernel.apply(todo)
            applied += todo.steps
            for step in todo.steps:
                _STEPS.labels(type(step).__name__).inc()
        raise ApplyError([("sync kernel", PodlaneError(f"still differs after {_ROUNDS} rounds, first: {applied[-1]}"))])

    def _refresh_underlay(self) -> None:
        link = self._kernel.link(self._underlay.name)
        if link is None:
            raise PodlaneError(f"use underlay {self._underlay.name}: the interface is gone")
        self._underlay = replace(self._underlay, mtu=link.mtu)

    def _write_subnet_file(self, config: NetworkConfig, tenancy: Tenancy, want: Desired) -> None:
        """Docker is told of the subnet once the device is there to carry it."""
        assert config.network is not None
        device = self._kernel.link(want.device.name)
        if device is None or device.kind != "vxlan" or not device.up:
            return
        content = SubnetFile(config.network, tenancy.subnet, want.device.mtu, self._settings.ip_masq).render()
        path = self._settings.subnet_file
        if not path.exists() or path.read_text(errors="replace") != content:
            write_atomic(path, content)
            self._log.info("subnet file written", path=str(path), subnet=str(tenancy.subnet))

    def _say(self, problems: Iterable[str]) -> None:
        now = frozenset(problems)
        for problem in sorted(now - self._said):
            self._log.warning("lease skipped", reason=problem)
        self._said = now
        _SKIPPED.set(len(now))

    # ---- the firewall -------------------------------------------------------------------------

    def sync_firewall(self) -> None:
        if self._current is None:
            raise NotReady("write firewall rules: no subnet leased yet")
        network = self._current[0].network
        assert network is not None
        self._firewall.sync(network, forward=self._settings.forward_rules, masquerade=self._settings.ip_masq)


def _mac_of(value: LeaseValue) -> str:
    try:
        return value.vtep_mac
    except ValueError:
        return ""


def _last_word(runner: Runner) -> str | None:
    return str(runner.last_error) if runner.last_error else runner.ready()


def _summary(steps: list[Step]) -> dict[str, int]:
    removed = sum(type(step).__name__.startswith("Delete") for step in steps)
    return {"set": len(steps) - removed, "removed": removed}
