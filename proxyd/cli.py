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
from proxyd.addresses import PRIMARY

HEALTHZ_PORT = 10256  # kube-proxy's


class Network(click.ParamType[str]):
    """A network in CIDR form, or one of the words."""

    name = "cidr"

    def __init__(self, *words: str) -> None:
        self._words = words

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the network without host bits."""
        if str(value) in self._words:
            return str(value)
        try:
            return str(ipaddress.ip_network(str(value), strict=False))
        except ValueError as error:
            words = "".join(f", or {word}" for word in self._words)
            self.fail(
                f'expected a network such as 10.5.0.0/16 or fd00:5::/48{words}, got "{value}": {error}', param, ctx
            )


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
    type=Network(),
    multiple=True,
    envvar="PROXYD_CLUSTER_CIDR",
    show_envvar=True,
    help="The pods' network, instead of the stored one. Clients outside it are masqueraded. May be repeated.",
)
@click.option(
    "--service-cidr",
    type=Network(),
    multiple=True,
    envvar="PROXYD_SERVICE_CIDR",
    show_envvar=True,
    help="The service range, instead of the cluster config's. May be repeated.",
)
@click.option(
    "--nodeport-addresses",
    type=Network(PRIMARY),
    multiple=True,
    envvar="PROXYD_NODEPORT_ADDRESSES",
    show_envvar=True,
    help="Serve node ports at this host's addresses in this network. May be repeated. Default: primary, the node's "
    "main address of each family.",
)
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
    sys.exit(code)


@main.command()
def uninstall() -> None:
    """Remove what proxyd put into this host: its nftables table and its routes. Stop proxyd first."""
    from proxyd.host import KernelHost
    from proxyd.nft import KernelNft
    from proxyd.tables import FAMILIES

    try:
        nft = KernelNft()
        for family in FAMILIES:
            nft.delete(family)
        nft.close()
        KernelHost().remove()
    except PodlaneError as error:
        click.echo(f"proxyd: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo("removed tables ip podlane and ip6 podlane and the routes to the service ranges")
