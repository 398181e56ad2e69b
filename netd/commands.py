"""netd's commands for operators: status, leases, plan, doctor, reserve, release, uninstall.

Owns: their options and what they print: tables for people, `-o json` for
programs. Each finds the options netd was started with in its state directory,
so that on a host where netd runs or ran none needs to be given.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

import click

from netd.settings import HostSettings
from podlane.api.subnets import Address, Subnets
from podlane.errors import PodlaneError
from podlane.runtime import log
from podlane.runtime.text import human_duration, table
from podlane.store.config import StoreConfig
from podlane.store.options import store_options

STATE_DIR = Path("/var/lib/netd")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Host:
    """Which netd a command is about."""

    folder: Path
    settings: HostSettings
    store_config: StoreConfig


def _use_settings(ctx: click.Context, _param: click.Parameter, folder: Path) -> Path:
    """Make the options netd was started with the defaults of the command's own. Runs before they are read."""
    ctx.default_map = {**asdict(HostSettings.load(folder)), **(ctx.default_map or {})}
    return folder


def host_options(command: F) -> F:
    """The command gets `host: Host`; what goes wrong is printed, exit code 1 or 2."""

    @click.option(
        "--state-dir",
        "folder",
        type=click.Path(file_okay=False, path_type=Path),
        default=STATE_DIR,
        show_default=True,
        envvar="NETD_STATE_DIR",
        show_envvar=True,
        is_eager=True,
        callback=_use_settings,
        help="netd's state directory; the other options default to what that netd was started with.",
    )
    @click.option(
        "--etcd-prefix",
        metavar="PREFIX",
        default=HostSettings().etcd_prefix,
        show_default=True,
        envvar=["NETD_ETCD_PREFIX", "FLANNELD_ETCD_PREFIX"],
        show_envvar=True,
        help="Where the network config and the leases are.",
    )
    @store_options
    @functools.wraps(command)
    def with_host(*args: Any, folder: Path, etcd_prefix: str, store_config: StoreConfig, **kwargs: Any) -> None:
        log.configure("warning")  # each says itself what it has done
        settings = replace(HostSettings.load(folder), etcd_prefix=etcd_prefix)
        try:
            command(*args, host=Host(folder, settings, store_config), **kwargs)
        except PodlaneError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)

    return with_host  # type: ignore[return-value]


def output_option(*formats: str) -> Callable[[F], F]:
    return click.option(
        "-o", "--output", type=click.Choice(formats), default=formats[0], show_default=True, help="Form of the output."
    )


class _Ip(click.ParamType[Address]):
    name = "ip"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        try:
            return ip_address(value)
        except ValueError:
            self.fail(f'expected an IP address, got "{value}"', param, ctx)


class _Subnet(click.ParamType[Subnets]):
    name = "subnet"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Subnets:
        if isinstance(value, Subnets):
            return value
        with suppress(ValueError):
            return Subnets.parse_key(str(value))  # as etcd, status and doctor name it
        v4: IPv4Network | None = None
        v6: IPv6Network | None = None
        for part in str(value).split(","):
            try:
                network = ip_network(part)
            except ValueError as error:
                self.fail(f'expected 10.5.34.0/24 or 10.5.34.0/24,fd00:12:13::/64, got "{value}": {error}', param, ctx)
            if isinstance(network, IPv4Network) and v4 is None:
                v4 = network
            elif isinstance(network, IPv6Network) and v6 is None:
                v6 = network
            else:
                self.fail(f'expected one subnet of each family at most, got "{value}"', param, ctx)
        return Subnets(v4, v6)


# ---- looking ---------------------------------------------------------------------------------------


@click.command()
@host_options
@output_option("table", "json")
def status(host: Host, output: str) -> None:
    """Show this host's lease, device, peers, drift and last errors.

    Works also when netd does not run, or etcd does not answer: it shows what it can.
    Exits with 1 when netd is not ready or the kernel is not as it should be.
    """
    from netd.status import host_status, render_status

    found = host_status(host.settings, host.folder, host.store_config)
    click.echo(json.dumps(found, indent=1) if output == "json" else render_status(found))
    sys.exit(0 if found["ok"] else 1)


@click.command("leases")
@host_options
@output_option("table", "wide", "json")
def list_leases(host: Host, output: str) -> None:
    """List every host's lease. HOST is known while its netd runs; `wide` asks etcd for each lease's time to live."""
    from netd.seen import read_hosts, read_store
    from podlane.store.config import connect

    store = connect(host.store_config)
    stored = read_store(store, host.settings.etcd_prefix)
    hosts = read_hosts(store, host.settings.etcd_prefix)
    rows: list[dict[str, Any]] = []
    for lease in sorted(stored.leases.values(), key=lambda each: [int(net.network_address) for net in each.subnets]):
        etcd_lease = stored.etcd_lease(lease.key)
        row: dict[str, Any] = {
            "subnets": [str(subnet) for subnet in lease.subnets],
            "publicAddresses": [str(address) for address in lease.value.addresses],
            "host": next((hosts[address] for address in lease.value.addresses if address in hosts), None),
            "backend": lease.value.backend_type,
            "backendData": lease.value.backend_data or lease.value.backend_v6_data,
            "reserved": not etcd_lease,
        }
        if output != "table" and etcd_lease:
            row["expiresInSeconds"] = store.time_to_live(etcd_lease)
        rows.append(row)
    store.close()
    if output == "json":
        click.echo(json.dumps({"leases": rows, "undecodable": dict(stored.undecodable)}, indent=1))
        return
    header = ["SUBNET", "PUBLIC ADDRESS", "HOST", "BACKEND", "MAC", "KIND"] + (["EXPIRES"] if output == "wide" else [])
    click.echo(table([header, *(_lease_cells(row, wide=output == "wide") for row in rows)]))
    for key, why in stored.undecodable.items():
        click.echo(f"left out {key}: {why}", err=True)


def _lease_cells(row: Mapping[str, Any], *, wide: bool) -> list[str]:
    cells = [
        ",".join(row["subnets"]),
        ",".join(row["publicAddresses"]) or "-",
        row["host"] or "-",
        row["backend"] or "-",
        str((row["backendData"] or {}).get("VtepMAC", "-")),
        "reserved" if row["reserved"] else "lease",
    ]
    if wide:
        cells.append(human_duration(row["expiresInSeconds"]) if "expiresInSeconds" in row else "never")
    return cells


@click.command("plan")
@host_options
def show_plan(host: Host) -> None:
    """Print what netd would change on this host now, as commands, and change nothing.

    Nothing is printed when everything is as it should be.
    """
    from netd.plan import Refused
    from netd.seen import look
    from netd.status import opened, spelled

    with opened(host.settings, host.folder, host.store_config) as sources:
        seen = look(*sources)
    _say_remembered(seen.store_error, seen.remark)
    try:
        todo = seen.plan()
    except Refused as refused:
        raise PodlaneError(str(refused)) from refused
    click.echo(str(todo), nl=False)
    for key, why in seen.desired.problems.items():
        click.echo(f"left out: lease {spelled(key)}: {why}", err=True)
    for problem in todo.problems:
        click.echo(f"left out: {problem}", err=True)


def _say_remembered(store_error: str, remark: str) -> None:
    if store_error:
        click.echo(f"going by what is remembered of the leases: {store_error}", err=True)
    if remark:
        click.echo(remark, err=True)


@click.command()
@click.argument("peer", required=False)
@host_options
@output_option("table", "json")
def doctor(host: Host, peer: str | None, output: str) -> None:
    """Find out why packets do not pass, and say how to mend it.

    PEER is another host: its public address, or its subnet; without it, every host is probed.
    Needs root. Changes nothing. Exits with 1 when something is wrong.
    """
    from netd.doctor.diagnosis import diagnose
    from netd.doctor.facts import DoctorContext
    from netd.doctor.finding import exit_code
    from netd.doctor.report import render
    from netd.seen import look
    from netd.status import opened

    with opened(host.settings, host.folder, host.store_config) as sources:
        seen = look(*sources)
    _say_remembered(seen.store_error, seen.remark)
    context = DoctorContext(
        seen.config,
        seen.underlay,
        seen.own,
        tuple(seen.hosts),
        {f"{host.settings.etcd_prefix}/{key}": why for key, why in seen.stored.undecodable.items()},
        seen.actual,
        seen.desired,
    )
    findings = diagnose(context, peer, lambda text: click.echo(text, err=True))
    click.echo(render(findings, output), nl=False)
    sys.exit(exit_code(findings))


# ---- the lease table -------------------------------------------------------------------------------


@click.command("reserve")
@click.argument("subnet", type=_Subnet())
@click.option(
    "--public-ip",
    "addresses",
    type=_Ip(),
    multiple=True,
    help="Public address of the host it is for; one of each family.  [default: for nobody, it is kept out of use]",
)
@host_options
def reserve_subnet(host: Host, subnet: Subnets, addresses: tuple[Address, ...]) -> None:
    """Reserve SUBNET for a host, without an end, or keep it out of use.

    SUBNET is 10.5.34.0/24, or 10.5.34.0/24,fd00:12:13::/64 in a dual-stack network. The host takes it at
    netd's next start; a host that leases it now keeps it for good.
    """
    from netd.reserve import reserve
    from netd.seen import read_config
    from netd.status import opened

    with opened(host.settings, host.folder, host.store_config) as (store, *_):
        prefix = host.settings.etcd_prefix
        done = reserve(store, prefix, read_config(store, prefix), subnet, addresses)
    who = " and ".join(map(str, done.value.addresses)) or "nobody"
    how = {"created": "reserved", "converted": "reserved (it was leased)", "unchanged": "reserved already"}[done.done]
    click.echo(f"{done.subnets}: {how} for {who}")


@click.command("release")
@click.argument("subnet", type=_Subnet())
@click.option("--force", is_flag=True, help="Also when it is a host's lease; its pods may be running.")
@host_options
def release_subnet(host: Host, subnet: Subnets, force: bool) -> None:
    """Give SUBNET back: end its reservation, its quarantine, or with --force its lease."""
    from netd.reserve import release
    from netd.status import opened

    with opened(host.settings, host.folder, host.store_config) as (store, *_):
        done = release(store, host.settings.etcd_prefix, subnet, force=force)
    click.echo(f"{done.subnets}: released, it was {_WAS[done.was]}")


_WAS = {"reservation": "reserved", "lease": "leased", "quarantine": "left alone after a lease that ended"}


# ---- the end ---------------------------------------------------------------------------------------


@click.command()
@click.option("--release", "give_back", is_flag=True, help="Also give the subnet lease back.")
@host_options
def uninstall(host: Host, give_back: bool) -> None:
    """Remove all that netd made on this host: devices, routes, firewall rules, subnet file.

    The lease stays (and so the subnet, for a later start) unless --release is given; so does the state
    directory. Refused while netd runs.
    """
    from netd.uninstall import remove_all

    removed = False
    for line in remove_all(host.settings, host.folder, host.store_config, give_back=give_back):
        click.echo(line)
        removed = True
    if not removed:
        click.echo("nothing of netd's is left on this host")
