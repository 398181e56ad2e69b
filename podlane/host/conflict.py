"""Whether a host can become what is asked, by what it is already. Pure.

Owns: the refusals and their remedies. Invariant: what is not refused, the plan of podlane.host.install
can carry out without taking anything away that cannot be made again.
"""

from __future__ import annotations

from collections.abc import Iterator

from podlane.host.install import Actual
from podlane.host.layout import ETCD_DATA, PKI
from podlane.host.machine import Machine
from podlane.host.options import InstallOptions


def of_installation(actual: Actual, options: InstallOptions, machine: Machine) -> str:
    """Why this host cannot become what is asked; "" when it can."""
    return next(_of_installation(actual, options, machine), "")


def of_upgrade(actual: Actual, options: InstallOptions) -> str:
    """The same of an upgrade. Who has the authority makes its keys anew by itself."""
    faults = actual.key_state.faults
    if not faults or options.founds:
        return ""
    how = "--join URL --token TOKEN" if options.join else "--etcd URL --ca FILE --cert-dir DIR"
    return f"the keys in {PKI}: {', '.join(faults)}; mend that first, with the version that is here: install {how}"


def _of_installation(actual: Actual, options: InstallOptions, machine: Machine) -> Iterator[str]:
    if options.etcd_join and not any(each.startswith(f"{machine.name}=") for each in options.etcd_join):
        yield f"--etcd-join: expected {machine.name} among the members, as `podlane etcd add-member` prints them"
    if options.firewalld and not machine.zone:
        yield "--firewalld: firewalld does not answer; start it (systemctl enable --now firewalld), or leave it out"
    if actual.key_state.foreign and options.own_etcd and actual.etcd_data:
        yield (
            f"{ETCD_DATA} and the keys in {PKI} are of another cluster than the token; "
            "to give them up, uninstall --purge first"
        )
    record = actual.record
    if record is None:
        if options.founds and "join.json" in actual.keys:
            yield f"this host has joined a cluster ({PKI}/join.json); to make one, uninstall --purge first"
        return
    is_now = f"this host is {record.options.role} {record.name} at {','.join(record.addresses)}"
    if (record.name, record.addresses) != (machine.name, machine.addresses):
        what = f"{machine.name} at {','.join(machine.addresses)}"
        yield f"{is_now}, its certificates say so; to make it {what}, uninstall it first"
    if gone := [each for each in record.options.daemons if each not in options.daemons]:
        yield f"{is_now}; to be without {', '.join(gone)}, uninstall it first"
    if record.options.founds != options.founds and options.own_etcd:
        yield f"{is_now}; to become a member of another cluster, uninstall it first"
