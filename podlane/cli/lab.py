"""`podlane lab`: a whole cluster on this machine, hosts as network namespaces."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import click

from podlane.cli.command import fail, note
from podlane.lab import cluster, context, network
from podlane.lab.cluster import DaemonStatus, Lab
from podlane.lab.daemons import netd_state_dir, specs, store_options
from podlane.lab.topology import DEFAULT_NAME, Topology
from podlane.store.roles import OPERATOR, ROOT

_name = click.option(
    "--name",
    envvar="PODLANE_LAB",
    show_envvar=True,
    default=DEFAULT_NAME,
    show_default=True,
    metavar="NAME",
    help="Which lab.",
)


@click.group("lab", short_help="Run a whole cluster on this machine.")
@click.pass_context
def lab(ctx: click.Context) -> None:
    """Run a whole cluster on this machine: each host a network namespace with its own daemons.

    The machine's own network is not touched; `down` leaves nothing behind.
    """
    if ctx.invoked_subcommand and os.geteuid() != 0:
        fail("podlane lab: needs root, to make network namespaces; try sudo")


@lab.command()
@click.option("--hosts", "nodes", default=3, show_default=True, metavar="N", help="Hosts that run pods.")
@click.option("--etcd", "servers", default=1, show_default=True, metavar="1|3", type=int, help="etcd members.")
@click.option("--schedulers", metavar="N", type=int, help="Schedulers, one leads.  [default: one for each etcd member]")
@click.option("--dual-stack", is_flag=True, help="IPv6 beside IPv4: for hosts, pods and services.")
@click.option(
    "--hollow",
    default=0,
    metavar="N",
    type=int,
    help="Nodes without containers that join besides and behave as nodes do; then --hosts may be 0.",
)
@_name
def up(*, name: str, nodes: int, servers: int, schedulers: int | None, dual_stack: bool, hollow: int) -> None:
    """Make a lab, or start what is missing of it."""
    if schedulers == 0:
        fail("--schedulers: expected 1 or more, got 0", 2)
    begin = time.monotonic()
    target = Topology(name, nodes, servers, dual_stack, schedulers or 0, hollow)
    note(f"lab {name}: {target}; logs in {target.log_dir}")
    Lab(target, lambda line: note(f"  {line}")).up()
    note(f"lab {name}: ready after {time.monotonic() - begin:.1f} s")


@lab.command()
@_name
def down(name: str) -> None:
    """Remove a lab and everything a crash may have left of it."""
    if name not in cluster.existing():
        target = Topology(name)
        if not network.namespaces(target.prefix) and not target.run_dir.exists():
            note(f"lab {name}: not there")
            return
    else:
        target = cluster.load(name)
    Lab(target, lambda line: note(f"  {line}")).down()
    note(f"lab {name}: removed")


@lab.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Output format.",
)
@_name
def status(name: str, output: str) -> None:
    """Show hosts and daemons: state, memory, why not ready. Exit code 1 unless all are ready."""
    target = Lab(cluster.load(name))
    states = target.status()
    if output == "json":
        import msgspec

        click.echo(msgspec.json.encode(states))
    else:
        _print_status(target.topology, states)
    if any(s.state != "running" for s in states):
        sys.exit(1)


def _print_status(target: Topology, states: list[DaemonStatus]) -> None:
    cut = network.cut_hosts(target)
    click.echo(f"{'HOST':<10}{'ADDRESS':<17}{'DAEMON':<11}{'STATE':<10}{'PID':>8}{'MEMORY':>9}  DETAIL")
    for s in states:
        address = target.host(s.host).address + ("*" if s.host in cut else "")
        memory = f"{s.rss_bytes / 1e6:.0f} MB"
        click.echo(f"{s.host:<10}{address:<17}{s.daemon:<11}{s.state:<10}{s.pid:>8}{memory:>9}  {s.detail}".rstrip())
    if cut:
        click.echo("* cut off; podlane lab fault join HOST")
    click.echo(f"logs: {target.log_dir}/HOST/DAEMON.log")
    click.echo(f"mutual TLS, certificates: {target.pki_dir}")


@lab.command("list")
def list_() -> None:
    """Name the labs on this machine."""
    for name in context.running():
        click.echo(name)


@lab.command()
@_name
def demo(name: str) -> None:
    """Show the main job: four replicas, one address, faults, scaling."""
    from podlane.lab.demo import Demo

    Demo(Lab(cluster.load(name)), click.echo).run()


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--as",
    "who",
    default=OPERATOR,
    show_default=True,
    metavar="WHO",
    help="To etcd: operator, root, or one of HOST's daemons by its certificate.",
)
@_name
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, who: str, host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in HOST's network namespace, as in: podlane lab exec node1 -- ip route.

    DOCKER_HOST, PODLANE_ETCD_…, ETCDCTL_…, NODE_NAME, NETD_STATE_DIR and PATH are set for it, so that docker,
    podlane, netd and proxyd (netd doctor, proxyd status) are found and are about that host, and they and
    etcdctl act as the lab's operator or as --as says. HOST `net` is the underlay itself, which is outside of
    every host.
    """
    words = list(command[1:] if command[0] == "--" else command)
    if not words:
        fail("COMMAND: missing, as in podlane lab exec node1 -- ip route", 2)
    target = cluster.load(name)
    programs = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}"}
    environment.pop("PODLANE_LAB", None)  # it would say twice where etcd is
    netns = target.underlay
    if host != "net":
        netns = target.netns(target.host(host))
        environment["DOCKER_HOST"] = f"unix://{target.docker_socket(host)}"
        environment["NODE_NAME"] = host
        environment["NETD_STATE_DIR"] = str(netd_state_dir(target, target.host(host)))
    environment |= _etcd_environment(target, host, who)
    network.enter(netns)
    try:
        os.execvpe(words[0], words, environment)  # noqa: S606 - no shell is wanted
    except OSError as error:
        fail(f"run {words[0]}: {error.strerror}", 127)


def _etcd_environment(target: Topology, host: str, who: str) -> dict[str, str]:
    """For podlane's programs and for etcdctl: etcd, and whose certificate to show."""
    Lab(target).check_tls()
    daemons = sorted(file.stem for file in (target.pki_dir / host).glob("*.key"))
    if who not in (known := [OPERATOR, ROOT, *daemons]):
        fail(f"--as: expected one of {', '.join(known)}, got {who!r}", 2)
    config = target.store_config(who, target.host(host) if who in daemons else None)
    return {
        **{f"PODLANE_ETCD_{name.upper()}": value for name, value in store_options(config).items()},
        "ETCDCTL_API": "3",
        "ETCDCTL_ENDPOINTS": ",".join(config.endpoints),
        "ETCDCTL_CACERT": config.cafile,
        "ETCDCTL_CERT": config.certfile,
        "ETCDCTL_KEY": config.keyfile,
    }


@lab.command()
@_name
@click.argument("host")
@click.argument("daemon", required=False)
def start(name: str, host: str, daemon: str | None) -> None:
    """Start what does not run on HOST: one DAEMON, or all."""
    target = Lab(cluster.load(name))
    count = target.start(target.topology.host(host), daemon)
    note(f"{host}: {count} started, ready")


@lab.group()
def fault() -> None:
    """Break something, to see what becomes of it."""


@fault.command()
@_name
@click.argument("host")
def cut(name: str, host: str) -> None:
    """Cut HOST off the network: every frame from and to it is dropped."""
    target = cluster.load(name)
    if host in network.cut_hosts(target):
        note(f"{host}: cut off already")
        return
    network.cut(target, target.host(host))
    note(f"{host}: cut off; podlane lab fault join {host}")


@fault.command()
@_name
@click.argument("host")
@click.argument("other")
def part(name: str, host: str, other: str) -> None:
    """Part HOST from OTHER: every frame between the two is dropped, and only those."""
    target = cluster.load(name)
    network.part(target, target.host(host), target.host(other))
    note(f"{host} and {other}: parted; podlane lab fault join {host}")


@fault.command()
@_name
@click.argument("host")
def join(name: str, host: str) -> None:
    """Join HOST, cut off or parted from others, to the network again."""
    target = cluster.load(name)
    network.join(target, target.host(host))
    note(f"{host}: joined")


@fault.command("list")
@_name
def list_faults(name: str) -> None:
    """Say which hosts are cut off or parted, and which daemons do not run."""
    target = Lab(cluster.load(name))
    lines = [f"{host}: cut off" for host in sorted(network.cut_hosts(target.topology))]
    lines += [f"{one} and {other}: parted" for one, other in sorted(network.parted_hosts(target.topology))]
    lines += [f"{s.host}: {s.daemon} is {s.state}" for s in target.status() if s.state in ("dead", "absent")]
    for line in lines:
        click.echo(line)
    note(f"{len(lines) or 'no'} faults")


@fault.command()
@_name
@click.option("--signal", "number", default="KILL", show_default=True, metavar="NAME", help="As in kill(1).")
@click.argument("host")
@click.argument("daemon")
def kill(name: str, host: str, daemon: str, number: str) -> None:
    """Send DAEMON on HOST a signal; podlane lab start starts it again."""
    try:
        chosen = signal.Signals[f"SIG{number.upper().removeprefix('SIG')}"]
    except KeyError:
        fail(f"--signal: unknown signal {number!r}", 2)
    target = Lab(cluster.load(name))
    record = target.kill(target.topology.host(host), daemon, chosen)
    note(f"{host}: {daemon} (pid {record.pid}) got {chosen.name}")


@lab.command()
@_name
@click.option("--tail", "lines", default=20, show_default=True, metavar="N", help="How many lines.")
@click.argument("host")
@click.argument("daemon")
def log(name: str, host: str, daemon: str, lines: int) -> None:
    """Print the end of a daemon's log."""
    from podlane.lab.process import tail

    target = cluster.load(name)
    if daemon not in (known := [s.name for s in specs(target, target.host(host))]):
        fail(f"daemon {daemon!r}: {host} has {', '.join(known)}", 2)
    click.echo(tail(target.log_dir / host / f"{daemon}.log", lines))
