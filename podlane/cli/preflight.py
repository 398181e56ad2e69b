"""`podlane preflight`: say what this machine lacks, and the remedy; change nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from podlane.cli.command import fail, failure, note
from podlane.cli.hostinstall import split_commas
from podlane.errors import PodlaneError
from podlane.host.layout import Role
from podlane.host.options import InstallOptions

if TYPE_CHECKING:
    from podlane.host.preflight import Check


@click.command("preflight")
@click.option(
    "--role", type=click.Choice(["server", "node", "all"]), default="all", show_default=True, help="To become."
)
@click.option("--name", default="", metavar="NAME", help="Its name in the cluster.  [default: the host's name]")
@click.option("--iface", default="", metavar="NAME|IP", help="Interface to the other hosts.")
@click.option("--address", "addresses", callback=split_commas, metavar="IP[,IP]", help="How others reach it.")
@click.option("--join", default="", metavar="URL", help="Join service it shall reach.")
@click.option("--etcd", callback=split_commas, metavar="URL[,URL]", help="etcd it shall reach.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Form of the answer.")
def preflight(*, role: Role, output: str, **given: Any) -> None:
    """Say what this machine lacks to become a server or a node, and how to mend it; change nothing.

    Exit code 1 when something is missing that an installation cannot do without.
    """
    from podlane.host.preflight import missing

    if os.geteuid() != 0:
        fail("preflight: needs root, to try the kernel; try sudo")
    try:
        checks = look(InstallOptions(role=role, **given))
    except PodlaneError as error:
        raise failure(str(error), error.exit_code) from error
    show(checks, output)
    if missing(checks):
        fail(f"preflight: {len(missing(checks))} missing")


def look(options: InstallOptions, *, bundled_etcd: bool | None = None) -> list[Check]:
    """Survey this machine and judge it."""
    from netd.kernel import LinuxKernel
    from podlane.host.preflight import judge
    from podlane.host.survey import survey
    from podlane.host.system import RealSystem

    if bundled_etcd is None:
        bundled_etcd = _bundled_etcd()
    return judge(options, survey(options, RealSystem(), LinuxKernel(), bundled_etcd=bundled_etcd))


def _bundled_etcd() -> bool:
    from podlane.cli.hostbundle import unpacked

    try:
        return unpacked().with_etcd
    except PodlaneError:  # not from a bundle
        return os.path.exists("/opt/podlane/current/bin/etcd")


def show(checks: list[Check], output: str = "table") -> None:
    if output == "json":
        import dataclasses
        import json

        click.echo(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
        return
    width = max(len(check.name) for check in checks)
    for check in checks:
        click.echo(f"{check.name:<{width}}  {check.state:<8} {check.detail}")
        if check.remedy and check.state != "ok":
            click.echo(f"{'':<{width}}           {check.remedy}")


def refuse(checks: list[Check]) -> None:
    """End the command when something is missing; tell of the warnings."""
    from podlane.host.preflight import missing

    for check in checks:
        if check.state == "warning":
            note(f"warning: {check.name}: {check.detail}; {check.remedy}")
    if lacks := missing(checks):
        fail("\n".join(f"{check.name}: {check.detail}; {check.remedy}" for check in lacks))
