"""The daemon: the parts, joined.

Owns: which thread does what. Mirrors and watches only trigger; the runners alone
change the kernel: one the tables, one the bridge ports; a third compares the
tables with what was written and never keeps the first waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from podlane.runtime.clock import SystemClock
from podlane.runtime.options import DaemonOptions
from podlane.runtime.runner import Runner
from podlane.store.config import StoreConfig, connect
from podlane.store.events import EventRecorder
from podlane.store.registry import Registry
from proxyd import proxymetrics
from proxyd.acknowledge import Acknowledger
from proxyd.addresses import NodeAddresses
from proxyd.conntrack import KernelConntrack
from proxyd.hairpin import Hairpin
from proxyd.healthcheck import HealthCheckServer, ServiceHealth
from proxyd.host import KernelHost
from proxyd.nft import KernelNft
from proxyd.proxy import VERIFY_INTERVAL, Outlets, Proxy
from proxyd.proxyhealth import ProxyHealth
from proxyd.source import StoreSource
from proxyd.status import StatusReport

_SETTLE = 0.01  # seconds between syncs: a roll-out's changes come in bursts
_PORTS_SETTLE = 0.05  # a pod's start is a burst of link notices
_VERIFY_SETTLE = 0.1  # and so are somebody's changes of the ruleset
_VERIFY_SHARE = 1000
"""How many times longer than a comparison the pause after it is: it is for what no notice told of."""
_LONGEST_UNVERIFIED = 300.0


@dataclass(frozen=True, slots=True)
class Settings:
    """`pod_networks`, `service_ranges`: in place of the stored ones. `nodeport_addresses`: networks, or "primary"."""

    node: str
    network_prefix: str
    pod_networks: Sequence[str] = ()
    service_ranges: Sequence[str] = ()
    nodeport_addresses: Sequence[str] = ()
    tcp_be_liberal: bool = True


def run(options: DaemonOptions, store_config: StoreConfig, settings: Settings) -> int:
    """Run until told to stop; returns the exit code. Raises PodlaneError when it cannot start."""
    clock = SystemClock()
    daemon = options.make_daemon("proxyd", clock=clock)
    store = connect(store_config)
    nft, conntrack = KernelNft(), KernelConntrack()
    health = ProxyHealth(clock, VERIFY_INTERVAL)
    checks = HealthCheckServer(health.live)
    acknowledger = Acknowledger(store, settings.node, clock=clock)
    events = EventRecorder.of_node(Registry(store, clock=clock), "proxyd", settings.node, clock)

    def changed() -> None:
        health.queued()
        proxymetrics.queued(proxy.families, clock.now())
        runner.trigger()
        if not ports.synced_once:
            ports.trigger()

    source = StoreSource(
        store,
        node=settings.node,
        network_prefix=settings.network_prefix,
        on_change=changed,
        clock=clock,
        pod_networks=settings.pod_networks,
        service_ranges=settings.service_ranges,
    )
    addresses = _Addresses(settings.nodeport_addresses)
    hairpin = Hairpin(source.pod_networks)
    ports = Runner(hairpin.sync, name="hairpin", clock=clock, min_interval=_PORTS_SETTLE, resync=VERIFY_INTERVAL)
    proxy = Proxy(
        source=source,
        nft=nft,
        conntrack=conntrack,
        host=KernelHost(tcp_be_liberal=settings.tcp_be_liberal),
        node=settings.node,
        clock=clock,
        trigger_after=lambda seconds: runner.trigger_after(seconds),  # noqa: PLW0108 - the runner is made below
        node_addresses=addresses,
        outlets=Outlets(
            applied=lambda revision, terminating: acknowledger.applied(revision, terminating=terminating),
            left_out=lambda service, message: events.event(service, "Warning", "NotProgrammed", message),
            health=_Once(checks),
            eligible=health.set_eligible,
        ),
    )

    def sync() -> None:
        started = clock.monotonic()
        proxy.sync()
        health.synced(started)
        if proxy.not_ready():
            verify.trigger()

    def compare() -> None:
        started = clock.monotonic()
        proxy.verify()
        verify.trigger_after(max(VERIFY_INTERVAL, _VERIFY_SHARE * (clock.monotonic() - started)))

    runner = Runner(sync, name="proxyd", clock=clock, min_interval=_SETTLE, resync=VERIFY_INTERVAL)
    verify = Runner(
        compare, name="verify", clock=clock, min_interval=_VERIFY_SETTLE, resync=_LONGEST_UNVERIFIED, eager=False
    )
    for name, body in source.threads:
        daemon.add_thread(name, body)
    daemon.add_thread("sync", runner.run)
    daemon.add_thread("verify", verify.run)
    daemon.add_thread("ruleset", lambda stop: nft.watch(stop, verify.trigger))
    daemon.add_thread("links", lambda stop: hairpin.watch(stop, ports.trigger))
    daemon.add_thread("hairpin", ports.run)
    daemon.add_thread("addresses", lambda stop: addresses.watch(stop, changed))
    daemon.add_thread("acknowledge", acknowledger.run)
    daemon.add_thread("health-checks", checks.serve)
    daemon.add_ready_check("store", source.not_ready)
    daemon.add_ready_check("kernel", proxy.not_ready)
    daemon.add_ready_check("hairpin", ports.ready)
    daemon.add_report("/healthz", health.healthz)
    daemon.add_report("/livez", health.livez)
    report = StatusReport(proxy, checks, acknowledger, options=_options(store_config, settings), started=clock.now())
    daemon.add_document("/status", report.document)
    for close in (store.close, nft.close, conntrack.close, hairpin.close, addresses.close, checks.close, events.close):
        daemon.on_stop(close)
    return daemon.run()


def _options(store: StoreConfig, settings: Settings) -> dict[str, object]:
    """What the commands that look at this proxyd need of its options, by their names. No password."""
    return {
        "etcd_endpoints": ",".join(store.endpoints),
        "etcd_cafile": store.cafile,
        "etcd_certfile": store.certfile,
        "etcd_keyfile": store.keyfile,
        "etcd_username": store.username,
        "etcd_prefix": settings.network_prefix,
        "node_name": settings.node,
        "cluster_cidr": list(settings.pod_networks),
        "service_cidr": list(settings.service_ranges),
        "nodeport_addresses": list(settings.nodeport_addresses),
    }


class _Addresses:
    """The node-port addresses, asked of the kernel only when it told of a change or the InternalIPs did."""

    def __init__(self, ranges: Sequence[str]) -> None:
        self._kernel = NodeAddresses()
        self._ranges = ranges
        self._known: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self.close = self._kernel.close

    def __call__(self, internal_ips: tuple[str, ...]) -> tuple[str, ...]:
        known = self._known
        if known is None or known[0] != internal_ips:
            known = self._known = (internal_ips, self._kernel.select(self._ranges, internal_ips))
        return known[1]

    def watch(self, stop: threading.Event, trigger: Callable[[], None]) -> None:
        def changed() -> None:
            self._known = None
            trigger()

        self._kernel.watch(stop, changed)


class _Once:
    """Tells the health checks what to answer when that is something new."""

    def __init__(self, checks: HealthCheckServer) -> None:
        self._checks = checks
        self._told: object = ({}, ())

    def __call__(self, ports: Mapping[int, ServiceHealth], addresses: tuple[str, ...]) -> None:
        if (dict(ports), addresses if ports else ()) != self._told:
            self._told = (dict(ports), addresses if ports else ())
            self._checks.set(ports, addresses)
