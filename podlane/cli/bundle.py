"""`./appliance bundle`: build podlane-VERSION.run from this checkout.

Owns: the options. Needs the checkout and its virtual environment, so it is no
sub-command of `podlane`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from podlane.cli.command import failure, note
from podlane.errors import PodlaneError

ROOT = Path(__file__).resolve().parents[2]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--python",
    "pythons",
    metavar="X.Y[,X.Y]",
    help="Pythons of the hosts; 'this' is the one that builds.  [default: what of 3.11 to 3.13 has all wheels]",
)
@click.option("--with-etcd", is_flag=True, help="Take this machine's etcd and etcdctl along, for hosts without.")
@click.option("--with-python", is_flag=True, help="Take this machine's Python along, for hosts without.")
@click.option("--version", "version", metavar="VERSION", help="Another version than pyproject.toml's.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "dist",
    metavar="DIR",
    help="Where to put it.  [default: dist]",
)
def bundle(*, pythons: str | None, with_etcd: bool, with_python: bool, version: str | None, output: Path) -> None:
    """Build podlane-VERSION.run: one file that installs, upgrades and removes Podlane, without a network.

    The same input gives the same file. Prints its name.
    """
    from podlane.host.bundle import PYTHONS, Wanted, build, version_of

    this = f"{sys.version_info[0]}.{sys.version_info[1]}"
    named = tuple(this if each == "this" else each for each in pythons.split(",")) if pythons else PYTHONS
    try:
        wanted = Wanted(version or version_of(ROOT), named, bool(pythons), with_etcd, with_python)
        click.echo(build(ROOT, wanted, output, note))
    except PodlaneError as error:
        raise failure(str(error), error.exit_code) from error


if __name__ == "__main__":
    bundle(prog_name="./appliance bundle")
