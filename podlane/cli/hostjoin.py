"""`podlane host join-serve|renew`: the join service's process, and the renewal of certificates.

Owns: their options. Both are systemd units' (podlane-join.service, podlane-renew.service).
"""

from __future__ import annotations

from pathlib import Path

import click

from podlane.cli.command import note
from podlane.host.joinmessages import PORT
from podlane.host.layout import PKI
from podlane.pki.authority import BUNDLE_FILE
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


@click.command("renew")
@_folder
@click.option("--force", is_flag=True, help="Renew all, whenever they end.")
@click.option("--no-restart", is_flag=True, help="Leave it to you to restart daemons that work with copies.")
def renew(*, folder: Path, force: bool, no_restart: bool) -> None:
    """Renew this host's certificates that end soon, or that the cluster's authority of today has not signed.

    A timer does it daily. Daemons read the new ones by themselves; only those that systemd gives copies to are
    restarted. Traffic is not interrupted.
    """
    from datetime import UTC, datetime

    from podlane.host import renew as host
    from podlane.host.renewing import restart_stale, write_endpoints
    from podlane.host.revoking import mend

    mend(folder)
    done = host.renew(folder, now=datetime.now(UTC), force=force)
    for holder, reason in done.reasons.items():
        note(f"renewed {holder}: {reason}")
    if BUNDLE_FILE in done.changed:
        note("the authorities to trust have changed" + (": one is trusted no longer" if done.distrusted else ""))
    if done.revoked:
        note("more certificates are revoked: etcd knows")
    if done.endpoints:
        note(f"etcd is at {', '.join(done.endpoints)} now")
        write_endpoints(done.endpoints)
    if not done.changed and not done.endpoints and not done.revoked:
        note("nothing to renew")
    if not no_restart:
        restart_stale(done, note, folder)
