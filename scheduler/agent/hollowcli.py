"""`scheduler hollow`: many nodes without containers in one process, for trying the control plane at scale."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

import click

from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.daemon import Daemon, leave
from podlane.runtime.options import DaemonOptions, daemon_options
from podlane.store.config import StoreConfig, connect
from podlane.store.options import store_options
from scheduler.agent.cli import Cluster, parse_capacity_option, parse_pairs_option

if TYPE_CHECKING:
    from scheduler.agent.hollownode import HollowNode, Settings

HEALTHZ_PORT = 10247
FEED = 125
"""Nodes whose watches share a stream."""
THREADS = 1
CALLERS = 5
"""Threads that compute, and that wait for the store. All share one interpreter: each more of them keeps the
heartbeats waiting longer for their turn, until leases are lost. Who wants more takes more processes.
"""
SWITCH_SECONDS = 0.0005


def _parse_network(ctx: click.Context, param: click.Parameter, value: str) -> IPv4Network:
    del ctx, param
    try:
        return IPv4Network(value)
    except ValueError as error:
        raise click.BadParameter(f"expected an IPv4 network in CIDR form, got {value!r}: {error}") from error


@click.command(short_help="Be many nodes without containers.")
@click.option(
    "--nodes",
    type=click.IntRange(1, 5000),
    default=100,
    show_default=True,
    envvar="HOLLOW_NODES",
    show_envvar=True,
    metavar="N",
    help="How many.",
)
@click.option(
    "--first",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    envvar="HOLLOW_FIRST",
    show_envvar=True,
    metavar="N",
    help="Number of the first; several processes need different ones.",
)
@click.option(
    "--name-prefix",
    default="hollow-",
    show_default=True,
    envvar="HOLLOW_NAME_PREFIX",
    show_envvar=True,
    metavar="TEXT",
    help="What is before the number in a node's name.",
)
@click.option(
    "--pod-network",
    default="100.64.0.0/10",
    show_default=True,
    callback=_parse_network,
    envvar="HOLLOW_POD_NETWORK",
    show_envvar=True,
    metavar="CIDR",
    help="Nodes get their /24 of it by their number. No packet is ever sent to it.",
)
@click.option(
    "--start-seconds",
    type=click.FloatRange(0, 600),
    default=0.5,
    show_default=True,
    envvar="HOLLOW_START_SECONDS",
    show_envvar=True,
    metavar="SECONDS",
    help="What starting a pod takes, give or take half.",
)
@click.option(
    "--capacity",
    default="cpu=4,memory=8Gi,pods=110",
    show_default=True,
    envvar="HOLLOW_CAPACITY",
    show_envvar=True,
    metavar="cpu=N,memory=SIZE,pods=N",
    callback=parse_capacity_option,
    help="What each node offers.",
)
@click.option(
    "--node-labels",
    default="",
    envvar="HOLLOW_NODE_LABELS",
    show_envvar=True,
    metavar="NAME=VALUE,…",
    callback=parse_pairs_option,
    help="Labels the nodes are registered with, beside podlane.io/hollow=true.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="HOLLOW_STATE_DIR",
    show_envvar=True,
    help="Where the nodes' subnet files are while it runs.  [default: the folder for temporary files]",
)
@store_options
@daemon_options("hollow", healthz_port=HEALTHZ_PORT)
def hollow(
    *,
    nodes: int,
    first: int,
    name_prefix: str,
    pod_network: IPv4Network,
    start_seconds: float,
    capacity: dict[str, str],
    node_labels: dict[str, str],
    state_dir: Path | None,
    store_config: StoreConfig,
    daemon_options: DaemonOptions,
) -> None:
    """Be many nodes that run their pods without containers, each with a real agent.

    Pods become ready, end, fail and are reported as on real nodes, by the same code; nothing answers at
    their addresses. When the process ends, its nodes are as machines that were switched off.
    """
    from scheduler.agent.hollownode import Settings, subnet_of

    try:
        subnet_of(pod_network, first + nodes - 1)
    except IndexError as error:
        raise click.UsageError(f"--pod-network: {error}, which --first and --nodes ask for") from error
    if state_dir is not None:
        state_dir.mkdir(parents=True, exist_ok=True)
    sys.setswitchinterval(SWITCH_SECONDS)
    clock = SystemClock()
    daemon = daemon_options.make_daemon("hollow", clock=clock)
    with tempfile.TemporaryDirectory(prefix="podlane-hollow-", dir=state_dir) as folder, suppress(KeyboardInterrupt):
        settings = Settings(Path(folder), pod_network, capacity, node_labels, start_seconds)
        numbers = range(first, first + nodes)
        _put_together(daemon, {f"{name_prefix}{number}": number for number in numbers}, settings, store_config, clock)
        code = daemon.run()
    leave(code)


def _put_together(
    daemon: Daemon, nodes: Mapping[str, int], settings: Settings, store_config: StoreConfig, clock: Clock
) -> None:
    from podlane.store.registry import Registry
    from scheduler.agent.hollowcrew import Crew
    from scheduler.agent.hollowfeed import Feed, Heartbeats
    from scheduler.agent.hollownode import HollowNode
    from scheduler.agent.hollowrefs import SharedReferences
    from scheduler.agent.nodewatch import NodeWatch

    registry = Registry(connect(store_config), clock=clock)
    daemon.on_stop(registry.store.close)
    cluster = Cluster(registry, clock)
    crew, callers = Crew(clock), Crew(clock)
    references = SharedReferences(registry.store, clock)
    make = partial(HollowNode, registry=registry, references=references, crew=crew, callers=callers)
    made = [make(name, number, settings) for name, number in nodes.items()]

    def beat(stop: threading.Event) -> None:
        """Begin with the heartbeats when it is known how long a lease is; a node starts once it has its own."""
        while not cluster.known.is_set():
            if clock.wait(stop, 0.1):
                return
        by_name = {node.name: node for node in made}
        heartbeats = Heartbeats(
            list(nodes),
            cluster.config.node_lease_seconds,
            registry=registry,
            clock=clock,
            on_taken=lambda name: by_name[name].start(),
        )
        daemon.add_ready_check("heartbeats", heartbeats.not_ready)
        heartbeats.run(stop)

    daemon.add_thread("cluster", cluster.run)
    daemon.add_ready_check("cluster", cluster.problem)
    for start in range(0, len(made), FEED):
        some = made[start : start + FEED]
        feed = Feed(registry.store, [node.bound for node in some], clock)
        watch = NodeWatch(registry.store, {node.name: node.node_changed for node in some}, clock)
        daemon.add_thread(f"feed-{start // FEED}", feed.run)
        daemon.add_thread(f"node-watch-{start // FEED}", watch.run)
        daemon.add_ready_check(f"feed-{start // FEED}", feed.not_ready)
    daemon.add_ready_check("nodes", partial(_unready, made.copy()))
    daemon.add_thread("references", references.run)
    daemon.add_thread("heartbeats", beat)
    for number in range(THREADS):
        daemon.add_thread(f"crew-{number}", crew.work)
    for number in range(CALLERS):
        daemon.add_thread(f"caller-{number}", callers.work)
    for node in made:
        daemon.on_stop(node.close)


def _unready(waiting: list[HollowNode]) -> str | None:
    """Why the nodes are not ready; those that were once are asked no more."""
    problems = {node.name: problem for node in waiting if (problem := node.problem())}
    waiting[:] = [node for node in waiting if node.name in problems]
    if not problems:
        return None
    name, problem = next(iter(problems.items()))
    return f"{len(problems)} nodes are not: {name}: {problem}"
