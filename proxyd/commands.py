"""proxyd's commands for operators: status, services, plan, ruleset, trace, uninstall.

Owns: their options and what they print: tables for people, `-o json` for programs,
data to stdout and everything else to stderr. Each asks the proxyd that runs here what it
was started with, so that on such a host no option needs to be given.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from podlane.errors import PodlaneError, StoreUnavailable
from podlane.runtime import log
from proxyd.options import Site, site_options

F = TypeVar("F", bound=Callable[..., Any])


def _errors_told(command: F) -> F:
    """Print what goes wrong; exit with 1, or 2 for a mistake of the caller's."""

    @functools.wraps(command)
    def told(*args: Any, **kwargs: Any) -> Any:
        log.configure("warning")  # each says itself what it has done
        try:
            return command(*args, **kwargs)
        except PodlaneError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)

    return told  # type: ignore[return-value]


def _output(*formats: str) -> Callable[[F], F]:
    return click.option(
        "-o", "--output", type=click.Choice(formats), default=formats[0], show_default=True, help="Form of the output."
    )


def _note(text: str) -> None:
    click.echo(text, err=True)


# ---- looking ---------------------------------------------------------------------------------------


@click.command()
@site_options
@_output("table", "json")
@_errors_told
def status(site: Site, output: str) -> None:
    """Show whether proxyd keeps this host's kernel right, and what it does not serve.

    Works also when proxyd does not run: it shows what the kernel has. Exits with 1 when proxyd
    is not ready, or something it was asked to serve is not served.
    """
    from proxyd.explain.answers import ask
    from proxyd.explain.report import render
    from proxyd.explain.report import status as make
    from proxyd.explain.view import KernelState, read_kernel

    kernel: KernelState | None = None
    errors = []
    answers = ask(site.healthz_ip, site.healthz_port)
    if not answers.runs:
        try:
            kernel = read_kernel()
        except PodlaneError as error:
            errors.append(str(error))
    found = make(answers, kernel, errors)
    click.echo(json.dumps(found, indent=1) if output == "json" else render(found, time.time()))
    sys.exit(0 if found["ok"] else 1)


def _complete_services(ctx: click.Context, _param: click.Parameter, typed: str) -> list[str]:
    """Services' names from the store; none when it does not answer."""
    from podlane.api.types import Service
    from podlane.store.config import StoreConfig, parse_endpoints
    from podlane.store.registry import Registry
    from proxyd.explain.answers import ask
    from proxyd.explain.view import opened

    try:
        said = (ask("127.0.0.1", ctx.params.get("healthz_port") or 10256).status or {}).get("options", {})
        given = ctx.params.get("etcd_endpoints") or said.get("etcd_endpoints") or "http://127.0.0.1:2379"
        files = {name: said.get(f"etcd_{name}", "") for name in ("cafile", "certfile", "keyfile")}
        site = Site("", 1, StoreConfig(endpoints=parse_endpoints(given), **files), "", "")
        with opened(site) as store:
            listed = Registry(store).list(Service).items
    except PodlaneError:
        return []
    names = [f"{each.metadata.namespace}/{each.metadata.name}" for each in listed]
    names += [each.metadata.name for each in listed if each.metadata.namespace == "default"]
    return sorted(each for each in names if each.startswith(typed))


@click.command("services")
@click.argument("name", required=False, shell_complete=_complete_services)
@site_options
@_output("table", "wide", "json")
@_errors_told
def list_services(site: Site, name: str | None, output: str) -> None:
    """Show where each service can be reached on this node, and who is behind it.

    NAME is namespace/service, or a service of namespace default, or a cluster IP: then everything about
    that one. `-o wide` shows each endpoint with its open connections, and their bytes where
    net.netfilter.nf_conntrack_acct is 1.
    """
    from podlane.errors import NotFound
    from proxyd.explain.answers import ask
    from proxyd.explain.servicelist import owner_of, render, render_one, services
    from proxyd.explain.view import look, opened

    with opened(site) as store:
        seen = look(site, store, ask(site.healthz_ip, site.healthz_port))
    names = sorted(seen.stored.services)
    if name is not None:
        owner = owner_of(seen, name)
        if owner is None:
            raise NotFound(f"show service {name}: there is none; see: proxyd services")
        names = [owner]
    found = services(seen, _counts(), names)
    for key in seen.stored.undecodable:
        _note(f"left out {key}: cannot be read")
    for why in seen.kernel.unreadable.values():
        _note(why)
    if output == "json":
        click.echo(json.dumps({"services": found}, indent=1))
    elif name is not None:
        click.echo(render_one(found[0], wide=output == "wide"))
    elif found:
        click.echo(render(found, wide=output == "wide"))
    else:
        _note("no services")


def _counts() -> Any:
    from proxyd.conntrack import KernelConntrack

    conntrack = KernelConntrack()
    try:
        return conntrack.counts()
    except PodlaneError as error:
        _note(f"connections not counted: {error}")
        return {}
    finally:
        conntrack.close()


@click.command("plan")
@site_options
@_errors_told
def show_plan(site: Site) -> None:
    """Print what proxyd would change in this host's tables now, as an nft script, and change nothing.

    Exits with 0 when everything is as the store wants it, with 1 when something would be changed.
    """
    from proxyd.explain.answers import ask
    from proxyd.explain.difference import difference
    from proxyd.explain.view import look, opened

    with opened(site) as store:
        seen = look(site, store, ask(site.healthz_ip, site.healthz_port))
    if not (seen.stored.pod_networks or seen.stored.service_ranges):
        raise PodlaneError(
            f"plan: no network config at {site.etcd_prefix}/config yet, without which proxyd writes nothing"
        )
    script = difference(seen)
    for key in seen.stored.undecodable:
        _note(f"left out {key}: cannot be read")
    for clash in seen.index.clashes:
        _note(f"left out: {clash}")
    for why in sorted(seen.index.left_out.values()):
        _note(f"left out, for the kernel refused it: {why}")
    click.echo(script or "# nothing to do")
    sys.exit(1 if script else 0)


@click.command("ruleset")
@click.argument("service", required=False, shell_complete=_complete_services)
@site_options
@_errors_told
def show_ruleset(site: Site, service: str | None) -> None:
    """Print proxyd's tables as nft lists them, each element with the service it is about.

    With SERVICE (namespace/service, or a service of namespace default) only what is about that one.
    Works without etcd, and then without names.
    """
    from proxyd.explain.answers import ask
    from proxyd.explain.listing import listing
    from proxyd.explain.names import Names
    from proxyd.explain.view import look, opened, read_kernel

    owner = "" if service is None else service if "/" in service else f"default/{service}"
    try:
        with opened(site) as store:
            seen = look(site, store, ask(site.healthz_ip, site.healthz_port))
        kernel, names = seen.kernel, seen.names
        if owner and owner not in seen.stored.services:
            raise PodlaneError(f"show ruleset of {owner}: there is no such service; see: proxyd services")
    except StoreUnavailable as error:
        if owner:
            raise
        kernel, names = read_kernel(), Names(None)
        _note(f"without the services' names: {error}")
    for why in kernel.unreadable.values():
        _note(why)
    if not kernel.tables:
        raise PodlaneError("show ruleset: the kernel has no table of proxyd's")
    for family, tables in kernel.tables.items():
        click.echo(listing(kernel.skeletons[family], tables, names, owner))


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST[:PORT]", shell_complete=_complete_services)
@click.option(
    "--proto",
    type=click.Choice(["tcp", "udp", "sctp"]),
    help="The packet's protocol.  [default: the one the service has, else tcp]",
)
@click.option("--live", is_flag=True, help="Also send such a packet and see whether it does what is foretold.")
@site_options
@_output("table", "json")
@_errors_told
def trace(site: Site, *, source: str, destination: str, proto: str | None, live: bool, output: str) -> None:
    """Tell what becomes of a new connection from SRC to DST, and why.

    SRC is any address: a pod's, this host's, a client's outside. DST is a service's address, a node's with a node
    port, or a service by name: 10.96.0.10:53, [fd00::10]:53, default/web:http. It is told from the rules and
    elements the kernel has now, rule by rule, with every endpoint that may be picked and its chance.

    --live sends one SYN (an empty datagram over UDP) along the way a packet from SRC takes, shows each nftables
    rule that handled it, and exits with 1 if it was treated otherwise. Its traces are removed; the endpoint sees
    a connection that is reset.
    """
    from proxyd.explain import tracing

    question = tracing.ask(site, source, destination, proto or "", _note)
    if output != "json":
        click.echo(tracing.render_forecast(question))
    seen = tracing.send(question) if live else None
    if output == "json":
        click.echo(json.dumps(tracing.document(question, seen), indent=1))
    elif seen is not None:
        click.echo("\n" + tracing.render_seen(question, seen))
    sys.exit(0 if seen is None or tracing.agrees(question, seen) else 1)


# ---- the end ---------------------------------------------------------------------------------------


@click.command()
@site_options
@_errors_told
def uninstall(site: Site) -> None:
    """Remove what proxyd put into this host: its tables, its routes, and its acknowledgement in etcd.

    Service addresses stop working here. Refused while proxyd runs.
    """
    from proxyd.explain.removal import remove_all

    removed = False
    for line in remove_all(site, _note):
        click.echo(line)
        removed = True
    if not removed:
        click.echo("nothing of proxyd's is left on this host")
