"""`podlane version`: what is installed here; asks no cluster."""

from __future__ import annotations

import click

from podlane.cli.command import Command


def installed_version() -> str:
    """The distribution's version, e.g. "0.1.0"."""
    from importlib.metadata import version as distribution_version

    return distribution_version("podlane")


@click.command("version", cls=Command)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Output format.")
def version(output: str) -> None:
    """Print the version of podlane on this machine."""
    if output == "json":
        import json

        click.echo(json.dumps({"clientVersion": {"gitVersion": f"v{installed_version()}"}}))
    else:
        click.echo(f"podlane {installed_version()}")
