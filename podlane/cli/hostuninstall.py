"""`podlane host uninstall`: take Podlane off this machine."""

from __future__ import annotations

import sys

import click

from podlane.cli.command import failure, note
from podlane.cli.hostrun import alone
from podlane.errors import PodlaneError


@click.command("uninstall")
@click.option(
    "--purge", is_flag=True, help="Remove the keys, etcd's data and its snapshots as well: they cannot be made again."
)
@click.option("--keep-pods", is_flag=True, help="Leave pods' containers and the network they use.")
@click.option("--dry-run", is_flag=True, help="Print every command; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def uninstall(*, purge: bool, keep_pods: bool, dry_run: bool, yes: bool) -> None:
    """Stop and remove Podlane on this machine: units, pods, overlay, files. Docker and its images stay."""
    try:
        with alone("uninstall"):
            _uninstall(purge=purge, keep_pods=keep_pods, dry_run=dry_run, yes=yes)
    except PodlaneError as error:
        raise failure(str(error), error.exit_code) from error


def _uninstall(*, purge: bool, keep_pods: bool, dry_run: bool, yes: bool) -> None:
    # heavy modules are imported when it runs, not for --help
    from podlane.host import uninstall as host_uninstall
    from podlane.host.apply import Applier
    from podlane.host.system import RealSystem
    from podlane.runtime.clock import SystemClock

    system = RealSystem()
    present = host_uninstall.look(system)
    plan = host_uninstall.plan(present, purge=purge, keep_pods=keep_pods)
    if not plan.stages:
        note("nothing to remove: Podlane is not on this machine")
        return
    if dry_run:
        click.echo(plan)
        return
    if not yes and sys.stdin.isatty():
        what = f"{len(present.containers)} containers of pods, " if present.containers and not keep_pods else ""
        data = "keys, etcd's data and its snapshots, " if purge and present.kept else ""
        click.confirm(f"remove {what}{data}the daemons and their files?", abort=True, err=True)
    try:
        Applier(system, SystemClock(), note).finish(plan)
    finally:
        for line in plan.notes:
            note(line)
    if present.record is not None and present.record.options.role != "server":
        name = present.record.name
        note(f"the cluster still knows this node; on a server: podlane delete node {name}; podlane pki revoke {name}")
