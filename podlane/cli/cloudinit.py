"""`podlane cloud-init`: user-data with which a new machine becomes a server or a node at its first boot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from podlane.cli.command import Command
from podlane.errors import UsageError

_PLACES = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
"""Names of the files below cloudinit.FOLDER on the machine."""

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("cloud-init", cls=Command)
@click.option("--role", type=click.Choice(["server", "node", "all"]), required=True, help="What the machine becomes.")
@click.option("--bundle", required=True, metavar="URL|PATH", help="podlane-VERSION.run: where the machine gets it.")
@click.option("--sha256", default="", metavar="HEX", help="Sum of the bundle; must be given with http://.")
@click.option("--name", default="", metavar="NAME", help="Name of the machine, its node too.  [default: its own]")
@click.option("--iface", default="", metavar="NAME", help="Interface to the other machines.  [default: found out]")
@click.option("--address", "addresses", default="", metavar="IP[,IP]", help="Address on it.  [default: found out]")
@click.option("--join", default="", metavar="URL", help="Join service of a server, with --token.")
@click.option("--token", default="", metavar="TOKEN", help="As podlane join-token printed it.")
@click.option("--etcd-join", default="", metavar="NAME=URL,…", help="As podlane etcd add-member printed it.")
@click.option("--etcd", default="", metavar="URL[,URL…]", help="An etcd that is there already.")
@click.option("--ca", type=_FILE, help="Authority of that etcd: a file here.")
@click.option("--cert", type=_FILE, help="Client certificate for it: a file here.")
@click.option("--key", type=_FILE, help="Key of that certificate: a file here.")
@click.option(
    "--ssh-key", "ssh_keys", multiple=True, metavar="KEY|FILE", help="Public key that may log in; repeatable."
)
@click.option(
    "--family",
    type=click.Choice(["debian", "fedora"]),
    default="debian",
    show_default=True,
    help="Whose names the packages have.",
)
@click.option("--no-packages", is_flag=True, help="Install none: the machine has them, or cannot (Atomic-style).")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["cloud-config", "ignition"]),
    default="cloud-config",
    show_default=True,
    help="ignition: for Fedora CoreOS; no packages.",
)
@click.argument("arguments", nargs=-1, metavar="[-- ARGUMENT...]")
def cloud_init(**given: Any) -> None:
    """Print user-data that installs Podlane at a machine's first boot.

    It asks no cluster. ARGUMENTs go to the bundle's install as they are, such
    as the settings of a new cluster: -- --network 10.1.0.0/16
    """
    from podlane.host import cloudinit

    setup = _setup(given)
    cloudinit.check(setup)
    write = cloudinit.ignition if given["format_"] == "ignition" else cloudinit.cloud_config
    click.echo(write(setup), nl=False)


def _setup(given: dict[str, Any]) -> Any:
    from podlane.host.cloudinit import FOLDER, Setup
    from podlane.host.options import InstallOptions

    places = {name: f"{FOLDER}/{file}" for name, file in _PLACES.items() if given[name]}
    options = InstallOptions(
        role=given["role"],
        name=given["name"],
        iface=given["iface"],
        addresses=_listed(given["addresses"]),
        etcd=_listed(given["etcd"]),
        join=given["join"],
        etcd_join=_listed(given["etcd_join"]),
        ca=places.get("ca", ""),
        cert=places.get("cert", ""),
        key=places.get("key", ""),
    )
    bare = given["no_packages"] or given["format_"] == "ignition"
    return Setup(
        options=options,
        bundle=given["bundle"],
        sha256=given["sha256"],
        token=given["token"],
        family="none" if bare else given["family"],
        ssh_keys=tuple(_ssh_key(each) for each in given["ssh_keys"]),
        files={place: _text(given[name]) for name, place in places.items()},
        arguments=given["arguments"],
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _ssh_key(given: str) -> str:
    """A key, or the file that holds one."""
    if " " in given.strip():
        return given.strip()
    return _text(Path(given)).strip()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"read {path}: {error}") from error
