"""The `proxyd` command: `run` is the daemon, the rest is for operators."""

from __future__ import annotations

import sys

import click

from podlane.errors import PodlaneError
from podlane.runtime.lazy import LazyGroup
from podlane.runtime.options import DaemonOptions, daemon_options
from podlane.store.config import StoreConfig
from podlane.store.options import store_options
from proxyd.options import HEALTHZ_PORT, place_options

_COMMANDS = {
    "plan": "proxyd.commands:show_plan",
    "ruleset": "proxyd.commands:show_ruleset",
    "services": "proxyd.commands:list_services",
    "status": "proxyd.commands:status",
    "trace": "proxyd.commands:trace",
    "uninstall": "proxyd.commands:uninstall",
}


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="podlane", prog_name="proxyd")
def main() -> None:
    """Podlane's service proxy: service addresses to pods, in the kernel."""


@main.command()
@place_options
@click.option(
    "--conntrack-tcp-be-liberal/--no-conntrack-tcp-be-liberal",
    default=True,
    show_default=True,
    envvar="PROXYD_CONNTRACK_TCP_BE_LIBERAL",
    show_envvar=True,
    help="Translate TCP segments outside the window, too, which would otherwise reset their connection.",
)
@store_options
@daemon_options("proxyd", healthz_ip="0.0.0.0", healthz_port=HEALTHZ_PORT, metrics_clients="loopback")
def run(
    *,
    nodeport_addresses: tuple[str, ...],
    conntrack_tcp_be_liberal: bool,
    node_name: str,
    etcd_prefix: str,
    cluster_cidr: tuple[str, ...],
    service_cidr: tuple[str, ...],
    store_config: StoreConfig,
    daemon_options: DaemonOptions,
) -> None:
    """Follow services and endpoint slices in etcd and keep this host's nftables table right."""
    from podlane.runtime.daemon import leave
    from proxyd import daemon

    try:
        code = daemon.run(
            daemon_options,
            store_config,
            daemon.Settings(
                node_name,
                etcd_prefix,
                cluster_cidr,
                service_cidr,
                nodeport_addresses,
                tcp_be_liberal=conntrack_tcp_be_liberal,
            ),
        )
    except PodlaneError as error:
        click.echo(f"proxyd: {error}", err=True)
        sys.exit(error.exit_code)
    leave(code)


if __name__ == "__main__":
    main(prog_name="proxyd")
