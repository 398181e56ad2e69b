"""The daemon: the parts, joined.

Owns: which thread does what. The mirrors and the watch only trigger; the runner
alone changes the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from podlane.runtime.clock import SystemClock
from podlane.runtime.options import DaemonOptions
from podlane.runtime.runner import Runner
from podlane.store.config import StoreConfig, connect
from proxyd.conntrack import KernelConntrack
from proxyd.host import KernelHost
from proxyd.nft import KernelNft
from proxyd.proxy import VERIFY_INTERVAL, Proxy
from proxyd.source import StoreSource

_SETTLE = 0.01  # seconds between syncs: a roll-out's changes come in bursts


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
    source = StoreSource(
        store,
        network_prefix=network_prefix,
        on_change=lambda: runner.trigger(),  # noqa: PLW0108 - the runner is made below
        clock=clock,
        pod_networks=pod_networks,
        service_ranges=service_ranges,
    )
    proxy = Proxy(
        source=source,
        nft=nft,
        conntrack=conntrack,
        host=KernelHost(),
        node=node,
        clock=clock,
        trigger_after=lambda seconds: runner.trigger_after(seconds),  # noqa: PLW0108 - likewise
    )
    runner = Runner(proxy.sync, name="proxyd", clock=clock, min_interval=_SETTLE, resync=VERIFY_INTERVAL)
    for name, body in source.threads:
        daemon.add_thread(name, body)
    daemon.add_thread("watch", proxy.watch)
    daemon.add_thread("sync", runner.run)
    daemon.add_ready_check("store", source.not_ready)
    daemon.add_ready_check("kernel", proxy.not_ready)
    for close in (store.close, nft.close, conntrack.close):
        daemon.on_stop(close)
    return daemon.run()
