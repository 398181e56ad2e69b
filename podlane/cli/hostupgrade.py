"""`podlane host upgrade`: replace the installed version by the bundle's.

Owns: the command. It is the installation's plan with what this host was installed
as, so daemons are restarted one by one and all of it is undone when one fails;
traffic goes on meanwhile, since the kernel and Docker hold it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import click
import msgspec

from podlane.cli.command import failure, note
from podlane.cli.hostrun import alone, ready_timeout_option
from podlane.errors import NotFound, PodlaneError


@click.command("upgrade")
@click.option("--dry-run", is_flag=True, help="Print every file and command; change nothing.")
@ready_timeout_option
def upgrade(*, dry_run: bool, timeout: float) -> None:
    """Replace the installed version by this one: unpacked beside it, then one daemon after the other.

    When a daemon does not become ready, the version before runs again. Pods and their traffic go on.
    """
    try:
        with alone("upgrade"):
            _upgrade(dry_run=dry_run, timeout=timeout)
    except PodlaneError as error:
        raise failure(str(error), error.exit_code) from error


def _upgrade(*, dry_run: bool, timeout: float) -> None:
    # heavy modules are imported when it runs, not for --help
    from netd.kernel import LinuxKernel
    from podlane.cli.hostbundle import unpacked
    from podlane.cli.preflight import look, refuse
    from podlane.host import conflict
    from podlane.host import install as host_install
    from podlane.host.apply import Applier
    from podlane.host.layout import RECORD
    from podlane.host.machine import as_installed
    from podlane.host.system import RealSystem
    from podlane.runtime.clock import SystemClock

    bundle, system = unpacked(), RealSystem()
    found = system.look(RECORD)
    record = host_install.decode(found.content) if found is not None else None
    if record is None:
        raise NotFound(f"upgrade: there is no installation here ({RECORD}); install it")
    machine = as_installed(record.name, record.addresses, system, LinuxKernel())
    if not dry_run:
        # as installed: an address that must not be chosen anew
        refuse(look(msgspec.structs.replace(record.options, addresses=record.addresses), bundled_etcd=bundle.with_etcd))
    wanted = host_install.files(record.options, machine, bundle)
    keys = host_install.look_at_keys(system, record.options, datetime.now(UTC))
    actual = replace(host_install.look(system, wanted), key_state=keys)
    if problem := conflict.of_upgrade(actual, record.options):
        raise PodlaneError(f"upgrade: {problem}")
    plan = host_install.plan(record.options, machine, bundle, actual)
    if not plan.stages:
        note(f"nothing to change: {bundle.name} is installed already")
        return
    if dry_run:
        click.echo(plan)
        return
    note(f"from {record.version} to {bundle.name}")
    Applier(system, SystemClock(), note, timeout).apply(plan)
    note(f"running: {bundle.name}; {record.version} is kept beside it")
