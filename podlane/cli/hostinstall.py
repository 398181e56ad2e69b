"""`podlane host install`: make this machine a server, a node, or both.

Owns: the options, the order check, preflight, plan, apply, and what is said. The
bundle runs it from an unpacked folder (PODLANE_BUNDLE), before anything is installed.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from podlane.cli.command import failure, note
from podlane.cli.hostrun import alone, ready_timeout_option
from podlane.errors import PodlaneError, UsageError
from podlane.host.layout import JOIN_PORT, PKI, Role
from podlane.host.options import InstallOptions, check

if TYPE_CHECKING:
    from podlane.host.keystate import KeyState

_INIT = (
    ("--network", "CIDR[,CIDR]", "Addresses of the pods."),
    ("--service-cidr", "CIDR[,CIDR]", "Addresses of the services."),
    ("--subnet-len", "BITS", "Prefix length of a node's share of the pods' network."),
    ("--service-node-port-range", "FROM-TO", "Ports on every node for services of type NodePort."),
    ("--backend", "vxlan|host-gw", "How packets travel between nodes."),
    ("--mtu", "BYTES", "MTU of the underlay."),
    ("--cluster-domain", "DOMAIN", "DNS domain of the services."),
    ("--node-lease-seconds", "SECONDS", "How long a silent node counts as alive."),
    ("--node-grace-seconds", "SECONDS", "How long after that its pods are replaced."),
)
"""Passed on to `podlane init`; its defaults are its own."""


def split_commas(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    del ctx, param
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


def init_options(command: Any) -> Any:
    for name, metavar, text in reversed(_INIT):
        command = click.option(name, metavar=metavar, help=f"{text} As `podlane init` has it.")(command)
    return command


@click.command("install")
@click.option("--role", type=click.Choice(["server", "node", "all"]), required=True, help="What this machine shall be.")
@click.option("--name", default="", metavar="NAME", help="Its name in the cluster.  [default: the host's name]")
@click.option(
    "--address",
    "addresses",
    callback=split_commas,
    metavar="IP[,IP]",
    help="How other hosts reach it, one of a family.  [default: that of --iface]",
)
@click.option(
    "--iface", default="", metavar="NAME|IP", help="Interface to the other hosts.  [default: the one that leads there]"
)
@click.option("--join", default="", metavar="URL[,URL]", help="Join service of the cluster, with --token.")
@click.option("--token", default="", metavar="TOKEN", envvar="PODLANE_TOKEN", show_envvar=True, help="A join token.")
@click.option("--etcd", callback=split_commas, metavar="URL[,URL]", help="An etcd that is there already.")
@click.option("--ca", default="", metavar="FILE", help="Authority that signed that etcd's certificate.")
@click.option("--cert", default="", metavar="FILE", help="Certificate for etcd, the same for all daemons.")
@click.option("--key", default="", metavar="FILE", help="Its key.")
@click.option("--cert-dir", default="", metavar="DIR", help="Instead: NAME.pem and NAME.key of each daemon.")
@click.option(
    "--etcd-join",
    callback=split_commas,
    metavar="NAME=URL,…",
    help="Members of the etcd that this server becomes one of; `podlane etcd add-member` prints it.",
)
@click.option("--admits", is_flag=True, help="Run a join service here too; the token brings the authority's key.")
@init_options
@click.option("--ip-masq/--no-ip-masq", default=True, help="Masquerade what pods send out of the pods' network.")
@click.option("--firewalld", is_flag=True, help="Let firewalld pass what Podlane needs.")
@click.option("--dry-run", is_flag=True, help="Print every file and command; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@ready_timeout_option
def install(
    *, role: Role, token: str, dry_run: bool, yes: bool, timeout: float, firewalld: bool, ip_masq: bool, **given: Any
) -> None:
    """Make this machine a server, a node, or both.

    The same options again change nothing. Whatever fails, the machine is left as it was.
    """
    init = tuple(f"{name}={value}" for name, _, _ in _INIT if (value := given.pop(name[2:].replace("-", "_"))))
    options = InstallOptions(role=role, init=init, firewalld=firewalld, ip_masq=ip_masq, **_strip(given))
    try:
        check(options, token=token)
        _check_what_is_for_later(options, token)
        with alone("install"):
            _install(options, token, dry_run=dry_run, yes=yes, timeout=timeout)
    except PodlaneError as error:
        raise failure(str(error), error.exit_code) from error


def _check_what_is_for_later(options: InstallOptions, token: str) -> None:
    """Before anything is changed, what only a later step would refuse. Raises UsageError, click.UsageError, Invalid."""
    from podlane.cli.init import check_arguments
    from podlane.host.jointokens import JoinToken

    if token:
        JoinToken.parse(token)
    if options.init:
        check_arguments(options.init)
    if options.ca:
        _check_given_keys(options)


def _check_given_keys(options: InstallOptions) -> None:
    from podlane.host.keys import given
    from podlane.host.keystate import judge

    cert_dir, cert, key = (Path(text) if text else None for text in (options.cert_dir, options.cert, options.key))
    found = given(options.daemons, Path(options.ca), cert_dir=cert_dir, cert=cert, key=key)
    state = judge({name: content for name, (content, _) in found.items()}, datetime.now(UTC), ours=False)
    if state.faults:
        raise UsageError(f"install: of the certificates given: {', '.join(state.faults)}")


def _strip(given: dict[str, Any]) -> dict[str, Any]:
    """File names as they are from anywhere."""
    return {
        name: os.path.abspath(value) if name in ("ca", "cert", "key", "cert_dir") and value else value
        for name, value in given.items()
    }


def _install(options: InstallOptions, token: str, *, dry_run: bool, yes: bool, timeout: float) -> None:
    # heavy modules are imported when it runs, not for --help
    from netd.kernel import LinuxKernel
    from podlane.cli.hostbundle import unpacked
    from podlane.cli.preflight import look, refuse
    from podlane.host import conflict
    from podlane.host import install as host_install
    from podlane.host.apply import Applier
    from podlane.host.machine import observe
    from podlane.host.system import RealSystem
    from podlane.runtime.clock import SystemClock

    bundle, system = unpacked(), RealSystem()
    machine = observe(options, system, LinuxKernel())
    note(f"{machine.name}: {', '.join(machine.addresses)} on {machine.iface} ({machine.why})")
    if not dry_run:
        refuse(look(options, bundled_etcd=bundle.with_etcd))
    wanted = host_install.files(options, machine, bundle)
    keys = host_install.look_at_keys(system, options, datetime.now(UTC), token)
    actual = replace(host_install.look(system, wanted), key_state=keys)
    if problem := conflict.of_installation(actual, options, machine):
        raise UsageError(f"install: {problem}")
    plan = host_install.plan(options, machine, bundle, actual, token=token)
    _tell_of_keys(keys, options)
    if not plan.stages:
        note(f"nothing to change: {machine.name} is {options.role}, of version {bundle.version}, already")
        return
    if dry_run:
        click.echo(plan)
        return
    if not yes and sys.stdin.isatty():
        names = ", ".join(stage.name for stage in plan.stages)
        click.confirm(f"install Podlane {bundle.version} as {options.role}: {names}?", abort=True, err=True)
    Applier(system, SystemClock(), note, timeout).apply(plan)
    for line in (*plan.notes, *_next(options, machine.addresses[0])):
        note(line)


def _tell_of_keys(keys: KeyState, options: InstallOptions) -> None:
    if keys.faults:
        remade = "they are made anew" if options.founds else "the given ones are taken"
        what_now = "this host joins anew" if options.join else remade
        note(f"the keys in {PKI}: {', '.join(keys.faults)}; {what_now}, and all daemons are restarted")


def _next(options: InstallOptions, address: str) -> list[str]:
    lines = ["", f"running: {', '.join(options.daemons)}"]
    if options.founds:
        lines += [
            "look: /opt/podlane/bin/podlane get nodes",
            "next node: run `/opt/podlane/bin/podlane join-token` here, and the line it prints on that host",
            f"(the join service answers at https://{address}:{JOIN_PORT})",
        ]
    return lines
