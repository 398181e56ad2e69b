"""Putting netd together from its options: what is made once, and in which order.

Owns: no decisions. Everything that costs a bad start something is checked
before the first thread runs or anything is written.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable

from netd.cache import NetworkCache
from netd.firewall import Firewall
from netd.flags import RunOptions
from netd.identity import StateLock, load_or_create
from netd.kernel import LinuxKernel
from netd.lease import LeaseHolder
from netd.loop import Netd, Settings
from netd.place import Surroundings, Wishes
from netd.prober import Prober
from netd.renewal import Renewal
from netd.settings import HostSettings
from netd.state import State, previous_subnets
from netd.underlay import UnderlayWish, choose_underlay
from netd.watched import Decoder, Entry, known
from podlane.api.subnets import LEASE_TTL
from podlane.errors import PodlaneError
from podlane.runtime import metrics
from podlane.store.config import connect, resolve
from podlane.store.lease import KeepAlive
from podlane.store.mirror import Mirror

_DROPPED = metrics.gauge("netd_vxlan_dropped_packets", "VXLAN packets from unknown sources that were dropped.")


def run_daemon(options: RunOptions) -> int:
    """Run netd until it is told to stop; returns the exit code. Raises PodlaneError, UsageError."""
    daemon = options.daemon.make_daemon("netd")
    kernel = LinuxKernel()
    _check_wish(options.underlay, kernel)
    with StateLock(options.state_dir):
        store = connect(options.store)
        cache = NetworkCache(options.state_dir, clock=daemon.clock)
        # what is remembered of another network is of no use
        same_network = HostSettings.load(options.state_dir).etcd_prefix == options.etcd_prefix
        remembered = cache.load() if same_network else None
        previous = remembered.own if remembered is not None else previous_subnets(options.subnet_file)
        rng = random.Random()
        surroundings = Surroundings(
            Wishes(options.etcd_prefix, options.underlay, lambda: resolve(options.store), options.net_config_path),
            kernel=kernel,
            store=store,
            state=State(options.state_dir),
            remembered=remembered,
            rng=rng,
            previous=previous,
        )
        identity = load_or_create(options.state_dir, host_name=options.node_name)
        decode = Decoder(options.etcd_prefix)

        def mirror(on_change: Callable[[], None]) -> Mirror[Entry]:
            return Mirror(
                store,
                decode.root,
                decode=decode,
                on_change=on_change,
                name="leases",
                clock=daemon.clock,
                witness=remembered.witness if remembered is not None else 0,
                witness_revision=remembered.revision if remembered is not None else 0,
                witness_ttl=LEASE_TTL + options.subnet_quarantine,
            )

        def holder(on_lost: Callable[[], None]) -> LeaseHolder:
            def renewal(ttl: int, lease_id: int) -> Renewal:
                margin = options.renew_margin if ttl >= LEASE_TTL else 0
                return KeepAlive(store, ttl, clock=daemon.clock, on_lost=on_lost, lease_id=lease_id, margin=margin)

            return LeaseHolder(
                store=store,
                prefix=options.etcd_prefix,
                identity=identity,
                renewal=renewal,
                rng=rng,
                previous=previous,
                quarantine=options.subnet_quarantine,
                clock=daemon.clock,
                known=lambda: known(netd.mirror),
            )

        firewall = Firewall()
        netd = Netd(
            Settings(
                options.subnet_file,
                ip_masq=options.ip_masq,
                random_fully=options.random_fully,
                forward_rules=options.forward_rules,
                vxlan_guard=options.vxlan_guard,
                blackhole=options.blackhole_route,
                firewall_resync=options.firewall_resync,
            ),
            surroundings=surroundings,
            mirror=mirror,
            holder=holder,
            prober=lambda on_change: Prober(on_change, interval=options.probe_interval),
            kernel=kernel,
            firewall=firewall,
            cache=cache,
            remembered=remembered,
            clock=daemon.clock,
        )
        for name, target in netd.threads.items():
            daemon.add_thread(name, target)
        for name, check in netd.ready_checks().items():
            daemon.add_ready_check(name, check)
        daemon.add_document("/status", netd.report.encode)
        if options.vxlan_guard:
            _DROPPED.set_function(lambda: _dropped(firewall))
        host_settings(options).save(options.state_dir)
        # what was imported stays; thousands of leases are no garbage, and a look at all of them takes 40 ms
        gc.freeze()
        gc.set_threshold(200_000, 20, 100)
        daemon.on_stop(store.close)
        daemon.on_stop(netd.stop)
        return daemon.run()


def _dropped(firewall: Firewall) -> float:
    try:
        return firewall.dropped()
    except PodlaneError:  # the other metrics are to be had all the same
        return math.nan


def _check_wish(wish: UnderlayWish, kernel: LinuxKernel) -> None:
    """Refuse at the start what the operator named and is not there. Raises NoUnderlay."""
    if wish.ifaces or wish.iface_regexes:
        choose_underlay(kernel.interfaces(), wish, reach=(), route_to=kernel.route_to)


def host_settings(options: RunOptions) -> HostSettings:
    """What other commands need to know of a `netd run`."""
    store, wish = options.store, options.underlay

    def text(value: object) -> str:
        return "" if value is None else str(value)

    return HostSettings(
        etcd_endpoints=",".join(store.endpoints),
        etcd_cafile=store.cafile,
        etcd_certfile=store.certfile,
        etcd_keyfile=store.keyfile,
        etcd_username=store.username,
        etcd_prefix=options.etcd_prefix,
        iface=wish.ifaces,
        iface_regex=wish.iface_regexes,
        iface_can_reach=text(wish.can_reach),
        public_ip=text(wish.public_ip),
        public_ipv6=text(wish.public_ipv6),
        subnet_file=str(options.subnet_file.absolute()),
        healthz_ip=options.daemon.healthz_ip,
        healthz_port=options.daemon.healthz_port or 0,
        ip_blackhole_route=options.blackhole_route,
    )
