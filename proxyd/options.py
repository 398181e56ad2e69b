"""The options that say where this proxy stands and where the store is: for `run`, and for all that looks at it.

Owns: their names, environment variables and defaults. The commands that look at
a proxyd ask the one that runs here first, on its health port, and take what it
was started with as their defaults: so none needs to be given.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from podlane.store.config import StoreConfig
from podlane.store.options import store_options
from proxyd.addresses import PRIMARY

HEALTHZ_PORT = 10256
"""kube-proxy's."""

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


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


_PLACE = (
    click.option(
        "--node-name",
        default=socket.gethostname,
        show_default="the host's name",
        envvar="NODE_NAME",
        show_envvar=True,
        help="This node's name, as in endpoint slices.",
    ),
    click.option(
        "--etcd-prefix",
        default="/coreos.com/network",
        show_default=True,
        envvar="PROXYD_ETCD_PREFIX",
        show_envvar=True,
        help="Where flannel's network config is: its network is the pods'.",
    ),
    click.option(
        "--cluster-cidr",
        type=Network(),
        multiple=True,
        envvar="PROXYD_CLUSTER_CIDR",
        show_envvar=True,
        help="The pods' network, instead of the stored one. Clients outside it are masqueraded. May be repeated.",
    ),
    click.option(
        "--service-cidr",
        type=Network(),
        multiple=True,
        envvar="PROXYD_SERVICE_CIDR",
        show_envvar=True,
        help="The service range, instead of the cluster config's. May be repeated.",
    ),
    click.option(
        "--nodeport-addresses",
        type=Network(PRIMARY),
        multiple=True,
        envvar="PROXYD_NODEPORT_ADDRESSES",
        show_envvar=True,
        help="Serve node ports at this host's addresses in this network. May be repeated. Default: primary, the "
        "node's main address of each family.",
    ),
)


def place_options(command: F) -> F:
    """Add `node_name`, `etcd_prefix`, `cluster_cidr`, `service_cidr`, `nodeport_addresses`."""
    for option in reversed(_PLACE):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Site:
    """Which proxyd a command is about: where it answers, and what it was, or would be, started with."""

    healthz_ip: str
    healthz_port: int
    store: StoreConfig
    node: str
    etcd_prefix: str
    cluster_cidr: tuple[str, ...] = ()
    service_cidr: tuple[str, ...] = ()
    nodeport_addresses: tuple[str, ...] = ()


def site_options(command: F) -> F:
    """The command gets `site: Site`."""

    @click.option(
        "--healthz-ip",
        default="127.0.0.1",
        metavar="IP",
        show_default=True,
        envvar="PROXYD_HEALTHZ_IP",
        show_envvar=True,
        is_eager=True,
        callback=_use_running,
        help="Where the proxyd of this host answers.",
    )
    @click.option(
        "--healthz-port",
        type=click.IntRange(1, 65535),
        default=HEALTHZ_PORT,
        show_default=True,
        envvar="PROXYD_HEALTHZ_PORT",
        show_envvar=True,
        is_eager=True,
        callback=_use_running,
        help="The same; the other options default to what that proxyd was started with.",
    )
    @place_options
    @store_options
    @functools.wraps(command)
    def with_site(
        *args: Any,
        healthz_ip: str,
        healthz_port: int,
        store_config: StoreConfig,
        node_name: str,
        etcd_prefix: str,
        cluster_cidr: tuple[str, ...],
        service_cidr: tuple[str, ...],
        nodeport_addresses: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        site = Site(
            healthz_ip,
            healthz_port,
            store_config,
            node_name,
            etcd_prefix,
            cluster_cidr,
            service_cidr,
            nodeport_addresses,
        )
        return command(*args, site=site, **kwargs)

    return with_site  # type: ignore[return-value]


def _use_running(ctx: click.Context, param: click.Parameter, value: T) -> T:
    """Make what the proxyd here was started with the defaults of the options that are read after these two."""
    if ctx.resilient_parsing:
        return value
    where = {**ctx.params, str(param.name): value}
    if "healthz_ip" in where and "healthz_port" in where:  # else the other one's turn comes
        from proxyd.explain.answers import ask

        status = ask(where["healthz_ip"], where["healthz_port"]).status or {}
        options = status.get("options")
        if isinstance(options, dict):
            ctx.default_map = {**options, **(ctx.default_map or {})}
    return value
