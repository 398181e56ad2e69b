"""The `scheduler` command: `run` is the control plane, `agent` runs pods on a node, `hollow` is many nodes without.

The agent is imported only when it is asked for: it brings Docker's client,
which the control plane has no use for.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

import click

from podlane.errors import PodlaneError
from podlane.runtime.options import DaemonOptions, daemon_options
from podlane.store.config import StoreConfig
from podlane.store.options import store_options

HEALTHZ_PORT = 10259
"""kube-scheduler's."""

LEADER_TTL = 3
"""Seconds. So short because a host may take etcd's leader with it: the next one is elected in one to two seconds and
gives every lease its whole time again, and still another scheduler should lead after some six seconds."""


class _Lazy(click.Group):
    """A group whose sub-commands `agent` and `hollow` are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "agent", "hollow"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "agent":
            from scheduler.agent.cli import agent

            return agent
        if cmd_name == "hollow":
            from scheduler.agent.hollowcli import hollow

            return hollow
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="podlane", prog_name="scheduler")
def main() -> None:
    """Keep replication controllers at their number, place pods on nodes, and run them there."""


@main.command()
@click.option(
    "--identity",
    default=socket.gethostname,
    envvar="SCHEDULER_IDENTITY",
    show_envvar=True,
    help="Our name in the leader election, unlike any other scheduler's.  [default: the host's name]",
)
@click.option(
    "--leader-ttl",
    type=click.IntRange(min=2),
    default=LEADER_TTL,
    show_default=True,
    envvar="SCHEDULER_LEADER_TTL",
    show_envvar=True,
    help="Seconds after which a silent leader is replaced.",
)
@store_options
@daemon_options("scheduler", healthz_port=HEALTHZ_PORT)
def run(identity: str, leader_ttl: int, store_config: StoreConfig, daemon_options: DaemonOptions) -> None:
    """Run the control plane: one leads, any number stand by."""
    from podlane.runtime.daemon import leave
    from scheduler.daemon import run_daemon

    _exit(lambda: leave(run_daemon(identity, leader_ttl, store_config, daemon_options)))


def _exit(command: Callable[[], Any]) -> None:
    try:
        code = command()
    except PodlaneError as error:
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
    sys.exit(code)
