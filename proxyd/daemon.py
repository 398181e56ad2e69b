"""The daemon: the parts, joined.

Owns: which thread does what. Mirrors and watches only trigger; the two runners
alone change the kernel, one the table, the other the bridge ports.
"""

from __future__ import annotations

from collections.abc import Sequence

from podlane.runtime.clock import SystemClock
from podlane.runtime.options import DaemonOptions
from podlane.runtime.runner import Runner
from podlane.store.config import StoreConfig, connect
from proxyd.conntrack import KernelConntrack
from proxyd.hairpin import Hairpin
from proxyd.host import KernelHost
from proxyd.nft import KernelNft
from proxyd.proxy import VERIFY_INTERVAL, Proxy
from proxyd.source import StoreSource

_SETTLE = 0.01  # seconds between syncs: a roll-out's changes come in bursts
_PORTS_SETTLE = 0.05  # a pod's start is a burst of link notices


def run(
    *,
    options: DaemonOptions,
    store_config: StoreConfig,
    node: str,
    network_prefix: str,
    pod_networks: Sequence[str] = (),
    service_ranges: Sequence[str] = (),
) -> int:
    """Run until told to stop; returns the exit code. Raises PodlaneError when it cannot start."""
    clock = SystemClock()
    daemon = options.make_daemon("proxyd", clock=clock)
    store = connect(store_config)
    nft, conntrack = KernelNft(), KernelConntrack()

    def changed() -> None:
        runner.trigger()
        if not ports.synced_once:
            ports.trigger()

    source = StoreSource(
        store,
        network_prefix=network_prefix,
        on_change=changed,
        clock=clock,
        pod_networks=pod_networks,
        service_ranges=service_ranges,
    )
    hairpin = Hairpin(source.pod_networks)
    ports = Runner(hairpin.sync, name="hairpin", clock=clock, min_interval=_PORTS_SETTLE, resync=VERIFY_INTERVAL)
    proxy = Proxy(
        source=source,
        nft=nft,
        conntrack=conntrack,
        host=KernelHost(),
        node=node,
        clock=clock,
        trigger_after=lambda seconds: runner.trigger_after(seconds),  # noqa: PLW0108 - the runner is made below
    )
    runner = Runner(proxy.sync, name="proxyd", clock=clock, min_interval=_SETTLE, resync=VERIFY_INTERVAL)
    for name, body in source.threads:
        daemon.add_thread(name, body)
    daemon.add_thread("watch", proxy.watch)
    daemon.add_thread("sync", runner.run)
    daemon.add_thread("links", lambda stop: hairpin.watch(stop, ports.trigger))
    daemon.add_thread("hairpin", ports.run)
    daemon.add_ready_check("store", source.not_ready)
    daemon.add_ready_check("kernel", proxy.not_ready)
    daemon.add_ready_check("hairpin", ports.ready)
    for close in (store.close, nft.close, conntrack.close, hairpin.close):
        daemon.on_stop(close)
    return daemon.run()
