"""The `netd` command."""

from __future__ import annotations

import random
import sys
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

import click

from podlane.api.network import DEFAULT_PREFIX, LEASE_TTL
from podlane.errors import PodlaneError
from podlane.runtime.options import DaemonOptions, daemon_options
from podlane.store.config import StoreConfig
from podlane.store.options import store_options

HEALTHZ_PORT = 10457


class _Address(click.ParamType[IPv4Address]):
    name = "ip"

    def convert(
        self, value: str | IPv4Address, param: click.Parameter | None, ctx: click.Context | None
    ) -> IPv4Address:
        try:
            return IPv4Address(value)
        except AddressValueError:
            self.fail(f'expected an IPv4 address, got "{value}"', param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="podlane", prog_name="netd")
def main() -> None:
    """Lease a subnet for this host and build the overlay network, in flannel's formats."""


@main.command()
@click.option(
    "--etcd-prefix",
    default=DEFAULT_PREFIX,
    show_default=True,
    envvar="NETD_ETCD_PREFIX",
    show_envvar=True,
    metavar="PREFIX",
    help="Where the network config and the leases are.",
)
@click.option(
    "--iface",
    default="",
    envvar="NETD_IFACE",
    show_envvar=True,
    metavar="NAME|IP",
    help="Interface that carries the overlay.  [default: the default route's]",
)
@click.option(
    "--public-ip",
    type=_Address(),
    envvar="NETD_PUBLIC_IP",
    show_envvar=True,
    help="Address that peers send to.  [default: the interface's]",
)
@click.option(
    "--subnet-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default="/run/flannel/subnet.env",
    show_default=True,
    envvar="NETD_SUBNET_FILE",
    show_envvar=True,
    help="File that tells Docker and others which subnet this host has.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default="/var/lib/netd",
    show_default=True,
    envvar="NETD_STATE_DIR",
    show_envvar=True,
    help="Where netd keeps what must survive a reboot (its MAC address).",
)
@click.option(
    "--node-name",
    default="",
    envvar="NETD_NODE_NAME",
    show_envvar=True,
    metavar="NAME",
    help="This node's name in the logs.",
)
@click.option(
    "--ip-masq/--no-ip-masq",
    default=False,
    show_default=True,
    envvar="NETD_IP_MASQ",
    show_envvar=True,
    help="Masquerade what pods send out of the pod network.",
)
@click.option(
    "--iptables-forward-rules/--no-iptables-forward-rules",
    default=True,
    show_default=True,
    envvar="NETD_IPTABLES_FORWARD_RULES",
    show_envvar=True,
    help="Accept pod traffic in iptables' FORWARD chain, whatever its policy is.",
)
@store_options
@daemon_options("netd", healthz_port=HEALTHZ_PORT)
def run(
    *,
    etcd_prefix: str,
    iface: str,
    public_ip: IPv4Address | None,
    subnet_file: Path,
    state_dir: Path,
    node_name: str,
    ip_masq: bool,
    iptables_forward_rules: bool,
    store_config: StoreConfig,
    daemon_options: DaemonOptions,
) -> None:
    """Run until stopped. Stopping leaves the lease and the overlay in place."""
    from netd.firewall import Firewall
    from netd.kernel import LinuxKernel
    from netd.loop import Netd, Settings
    from netd.underlay import choose_underlay
    from podlane.runtime.log import get_logger
    from podlane.store.config import connect
    from podlane.store.lease import KeepAlive

    try:
        daemon = daemon_options.make_daemon("netd")
        kernel = LinuxKernel()
        underlay = choose_underlay(kernel.interfaces(), iface=iface, public_ip=public_ip)
        get_logger("netd").info(
            "underlay chosen",
            node=node_name,
            interface=underlay.name,
            address=str(underlay.address),
            public_ip=str(underlay.public_ip),
            mtu=underlay.mtu,
        )
        store = connect(store_config)
        netd = Netd(
            Settings(etcd_prefix, underlay, subnet_file, state_dir, ip_masq, iptables_forward_rules),
            store=store,
            kernel=kernel,
            firewall=Firewall(),
            renewal=lambda lost, lease_id: KeepAlive(
                store, LEASE_TTL, clock=daemon.clock, on_lost=lost, lease_id=lease_id
            ),
            rng=random.Random(),
        )
        for name, target in netd.threads.items():
            daemon.add_thread(name, target)
        for name, check in netd.ready_checks().items():
            daemon.add_ready_check(name, check)
        daemon.on_stop(store.close)
        daemon.on_stop(netd.stop)
        code = daemon.run()
    except PodlaneError as error:
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main()
