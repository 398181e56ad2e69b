"""proxyd's command line."""

from __future__ import annotations

import ipaddress
import socket
import sys

import click

from podlane.errors import PodlaneError
from podlane.runtime.options import DaemonOptions, daemon_options
from podlane.store.config import StoreConfig
from podlane.store.options import store_options

HEALTHZ_PORT = 10256  # kube-proxy's


class Ipv4Network(click.ParamType[str]):
    """An IPv4 network in CIDR form."""

    name = "cidr"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the network without host bits."""
        try:
            return str(ipaddress.IPv4Network(str(value), strict=False))
        except ValueError as error:
            self.fail(f'expected an IPv4 network such as 10.5.0.0/16, got "{value}": {error}', param, ctx)


@click.group()
@click.version_option(package_name="podlane")
def main() -> None:
    """Podlane's service proxy: service addresses to pods, in the kernel."""


@main.command()
@click.option(
    "--node-name",
    default=socket.gethostname,
    show_default="the host's name",
    envvar="NODE_NAME",
    show_envvar=True,
    help="This node's name, as in endpoint slices.",
)
@click.option(
    "--etcd-prefix",
    default="/coreos.com/network",
    show_default=True,
    envvar="PROXYD_ETCD_PREFIX",
    show_envvar=True,
    help="Where flannel's network config is: its network is the pods'.",
)
@click.option(
    "--cluster-cidr",
    type=Ipv4Network(),
    multiple=True,
    envvar="PROXYD_CLUSTER_CIDR",
    show_envvar=True,
    help="The pods' network, instead of the stored one. Clients outside it are masqueraded. May be repeated.",
)
@click.option(
    "--service-cidr",
    type=Ipv4Network(),
    multiple=True,
    envvar="PROXYD_SERVICE_CIDR",
    show_envvar=True,
    help="The service range, instead of the cluster config's. May be repeated.",
)
@store_options
@daemon_options("proxyd", healthz_port=HEALTHZ_PORT)
def run(
    *,
    node_name: str,
    etcd_prefix: str,
    cluster_cidr: tuple[str, ...],
    service_cidr: tuple[str, ...],
    store_config: StoreConfig,
    daemon_options: DaemonOptions,
) -> None:
    """Follow services and endpoint slices in etcd and keep this host's nftables table right."""
    from proxyd import daemon

    try:
        code = daemon.run(
            options=daemon_options,
            store_config=store_config,
            node=node_name,
            network_prefix=etcd_prefix,
            pod_networks=cluster_cidr,
            service_ranges=service_cidr,
        )
    except PodlaneError as error:
        click.echo(f"proxyd: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(code)


@main.command()
def uninstall() -> None:
    """Remove what proxyd put into this host: its nftables table and its routes. Stop proxyd first."""
    from proxyd.host import KernelHost
    from proxyd.nft import KernelNft

    try:
        nft = KernelNft()
        nft.delete()
        nft.close()
        KernelHost().remove()
    except PodlaneError as error:
        click.echo(f"proxyd: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo("removed table ip podlane and the routes to the service range")
