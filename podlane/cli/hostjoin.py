"""`podlane host join-serve|renew`: the join service's process, and the renewal of certificates.

Owns: their options. Both are systemd units' (podlane-join.service, podlane-renew.service).
"""

from __future__ import annotations

from pathlib import Path

import click

from podlane.host.joinmessages import PORT
from podlane.host.layout import PKI
from podlane.runtime.options import DaemonOptions, daemon_options
from podlane.store.config import StoreConfig
from podlane.store.options import store_options

HEALTHZ_PORT = 10262

_folder = click.option(
    "--pki",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=PKI,
    show_default=True,
    envvar="PODLANE_PKI",
    show_envvar=True,
    help="Where this host's keys and certificates are.",
)


@click.command("join-serve")
@click.option(
    "--name", required=True, metavar="NAME", envvar="PODLANE_JOIN_NAME", show_envvar=True, help="This server's name."
)
@click.option(
    "--address",
    "addresses",
    required=True,
    metavar="HOST[,HOST]",
    envvar="PODLANE_JOIN_ADDRESS",
    show_envvar=True,
    help="By what joining hosts reach this server.",
)
@click.option(
    "--listen-ip",
    default="::",
    metavar="IP",
    show_default=True,
    envvar="PODLANE_JOIN_LISTEN_IP",
    show_envvar=True,
    help="Address to listen on; `::` is all of both families.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=PORT,
    show_default=True,
    envvar="PODLANE_JOIN_PORT",
    show_envvar=True,
    help="Port to listen on.",
)
@_folder
@store_options
@daemon_options("podlane-join", healthz_port=HEALTHZ_PORT)
def join_serve(
    *,
    name: str,
    addresses: str,
    listen_ip: str,
    port: int,
    folder: Path,
    store_config: StoreConfig,
    daemon_options: DaemonOptions,
) -> None:
    """Let hosts join that have a token, and renew the certificates of those that have joined."""
    from podlane.host.joindaemon import run_daemon
    from podlane.runtime.daemon import leave

    reached = [each.strip() for each in addresses.split(",") if each.strip()]
    listen = (listen_ip, port)
    leave(run_daemon(name, reached, listen, folder=folder, store_config=store_config, options=daemon_options))
