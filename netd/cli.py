"""The `netd` command: `run` is the daemon, the rest is for operators."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import click

from netd.flags import GoCommand, RunOptions, run_options

_COMMANDS: Mapping[str, tuple[str, str]] = {
    "docker-opts": ("netd.dockeropts", "docker_opts"),
    "doctor": ("netd.commands", "doctor"),
    "leases": ("netd.commands", "list_leases"),
    "plan": ("netd.commands", "show_plan"),
    "release": ("netd.commands", "release_subnet"),
    "reserve": ("netd.commands", "reserve_subnet"),
    "status": ("netd.commands", "status"),
    "uninstall": ("netd.commands", "uninstall"),
}


class _Lazy(click.Group):
    """A group whose operators' commands are imported when they are used: the daemon does not pay for them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        from importlib import import_module

        module, name = _COMMANDS[cmd_name]
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
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
