"""The `netd` command: `run` is the daemon, the rest is for operators."""

from __future__ import annotations

import sys

import click

from netd.flags import GoCommand, RunOptions, run_options
from podlane.runtime.lazy import LazyGroup

_COMMANDS = {
    "docker-opts": "netd.dockeropts:docker_opts",
    "doctor": "netd.commands:doctor",
    "leases": "netd.commands:list_leases",
    "plan": "netd.commands:show_plan",
    "release": "netd.commands:release_subnet",
    "reserve": "netd.commands:reserve_subnet",
    "status": "netd.commands:status",
    "uninstall": "netd.commands:uninstall",
}


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="podlane", prog_name="netd")
def main() -> None:
    """Lease a subnet for this host and build the overlay network, in flannel's formats."""


@main.command(cls=GoCommand)
@run_options
def run(options: RunOptions) -> None:
    """Run until stopped. Stopping leaves the lease and the overlay in place.

    Takes flanneld's flags, also in Go's syntax, and its FLANNELD_* environment.
    """
    from netd.daemon import run_daemon
    from podlane.errors import PodlaneError
    from podlane.runtime.daemon import leave

    try:
        leave(run_daemon(options))
    except PodlaneError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(prog_name="netd")
