"""`scheduler agent`: options, and how the parts are put together.

Owns: the daemon's composition. Invariant: one agent per state directory (a lock
file), for two on one engine would end each other's pods.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from podlane.api.types import ClusterConfig
from podlane.errors import PodlaneError
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.daemon import Daemon, leave
from podlane.runtime.log import get_logger
from podlane.runtime.options import DaemonOptions, daemon_options
from podlane.store.config import StoreConfig, connect
from podlane.store.options import store_options
from scheduler.agent.apioptions import ApiFiles, api_options, guard_of, revocations_of
from scheduler.agent.engineoptions import engine_options

if TYPE_CHECKING:
    from podlane.store.registry import Registry
    from scheduler.agent.agent import Agent
    from scheduler.agent.node import Heartbeat
    from scheduler.agent.pressure import Thresholds
    from scheduler.agent.prune import Limits

DEFAULT_PORT = 10250
HEALTHZ_PORT = 10248
_REFRESH = 30.0
_RETRY = 1.0


class Cluster:
    """The cluster's configuration, read anew now and then: its token may be changed."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._log = get_logger("agent")
        self._problem = "the cluster config was not read yet"
        self.config = ClusterConfig()
        self.known = threading.Event()

    def problem(self) -> str | None:
        return None if self.known.is_set() else self._problem

    def token(self) -> str:
        return self.config.agent_token

    def run(self, stop: threading.Event) -> None:
        """Read it until `stop`: the body of one thread."""
        while not stop.is_set():
            try:
                self.config = self._registry.cluster_config()
                self.known.set()
            except PodlaneError as error:
                if not self.known.is_set() and str(error) != self._problem:
                    self._log.warning("cluster config not read", error=str(error), retry_in=_RETRY)
                self._problem = str(error)
            self._clock.wait(stop, _REFRESH if self.known.is_set() else _RETRY)


def parse_pairs_option(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, str]:
    del ctx, param
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    for name, equals, _ in pairs:
        if not equals or not name.strip():
            raise click.BadParameter(f'expected NAME=VALUE,…, got "{value}"')
    return {name.strip(): text.strip() for name, _, text in pairs}


def parse_capacity_option(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, str]:
    del ctx, param
    from scheduler.agent.capacity import parse_capacity

    try:
        return parse_capacity(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _parse_reserved(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, str]:
    del ctx, param
    from scheduler.agent.capacity import parse_reserved

    try:
        return parse_reserved(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _parse_thresholds(ctx: click.Context, param: click.Parameter, value: str) -> Thresholds:
    del ctx, param
    from scheduler.agent.pressure import parse_thresholds

    try:
        return parse_thresholds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _own_address(config: StoreConfig) -> str:
    """The address this machine uses towards the store."""
    host, _, port = config.targets[0][0].rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host.strip("[]"), int(port)))  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise click.UsageError(f"--node-ip: cannot tell the address towards {host}: {error}") from error


def _lock(state_dir: Path) -> IO[str]:
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        file = (state_dir / "agent.lock").open("a+")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PodlaneError(f"lock {state_dir}: another agent runs with this state directory") from error
    except OSError as error:
        raise PodlaneError(f"lock {state_dir}: {error.strerror or error}") from error
    return file


def _follow_store(worker: Agent, registry: Registry, daemon: Daemon, clock: Clock) -> None:
    """Give the agent what its pods name in the store, and the node's ports that lead to them."""
    from scheduler.agent.hostports import HostPorts
    from scheduler.agent.references import References
    from scheduler.agent.servicelists import ServiceLists
    from scheduler.agent.storeview import StoreView

    references = References(registry.store, worker.trigger, clock)
    services = ServiceLists(registry.store, worker.trigger, clock)
    worker.store_view = StoreView(references, services)
    worker.host_ports = HostPorts()
    daemon.add_thread("references", references.run)
    daemon.add_thread("services", services.run)


def _beat(cluster: Cluster, clock: Clock, heartbeat: Callable[[int], Heartbeat], stop: threading.Event) -> None:
    """Begin with the heartbeat when it is known how long a lease is: the body of one thread."""
    while not cluster.known.is_set():
        if clock.wait(stop, 0.1):
            return
    heartbeat(cluster.config.node_lease_seconds).run(stop)


@click.command(short_help="Run a node's pods.")
@click.option(
    "--node-name",
    envvar="AGENT_NODE_NAME",
    show_envvar=True,
    default=lambda: os.uname().nodename,
    show_default="host name",
    help="Name of the Node.",
)
@click.option(
    "--node-ip",
    envvar="AGENT_NODE_IP",
    show_envvar=True,
    metavar="IP",
    help="Address of the node, where the agent's API listens.  [default: the one used towards etcd]",
)
@engine_options
@click.option(
    "--subnet-file",
    envvar="AGENT_SUBNET_FILE",
    show_envvar=True,
    default=Path("/run/flannel/subnet.env"),
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where netd (or flanneld) writes the node's subnet.",
)
@click.option(
    "--state-dir",
    envvar="AGENT_STATE_DIR",
    show_envvar=True,
    default=Path("/var/lib/podlane/agent"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Holds pods' files, and the lock that keeps a second agent away.",
)
@click.option(
    "--agent-port",
    envvar="AGENT_PORT",
    show_envvar=True,
    default=DEFAULT_PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port of the API for logs and exec.",
)
@click.option(
    "--capacity",
    envvar="AGENT_CAPACITY",
    show_envvar=True,
    default="",
    metavar="cpu=N,memory=SIZE,pods=N",
    callback=parse_capacity_option,
    help="What the node offers, where it is not the machine's less the reserve; of what is given here none is kept.",
)
@click.option(
    "--system-reserved",
    envvar="AGENT_SYSTEM_RESERVED",
    show_envvar=True,
    default="",
    metavar="cpu=N,memory=SIZE",
    callback=_parse_reserved,
    help="What pods do not get of the machine.  [default: cpu=100m,memory=256Mi]",
)
@click.option(
    "--eviction-hard",
    envvar="AGENT_EVICTION_HARD",
    show_envvar=True,
    default="",
    metavar="SIGNAL<AMOUNT,…",
    callback=_parse_thresholds,
    help="When the node counts as short of something; the kubelet's signals, and its defaults where none is given.",
)
@click.option(
    "--node-labels",
    envvar="AGENT_NODE_LABELS",
    show_envvar=True,
    default="",
    metavar="NAME=VALUE,…",
    callback=parse_pairs_option,
    help="Labels the node is registered with; an operator's later changes win.",
)
@click.option(
    "--drain-delay",
    envvar="AGENT_DRAIN_DELAY",
    show_envvar=True,
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 60),
    metavar="SECONDS",
    help="How long a pod goes on after no node sends it new connections; part of its grace period.",
)
@click.option(
    "--drain-timeout",
    envvar="AGENT_DRAIN_TIMEOUT",
    show_envvar=True,
    default=10.0,
    show_default=True,
    type=click.FloatRange(0, 600),
    metavar="SECONDS",
    help="How long a pod may take to get out of its services on every node, within its grace period.",
)
@api_options
@store_options
@daemon_options("agent", healthz_port=HEALTHZ_PORT)
def agent(
    *,
    node_name: str,
    node_ip: str | None,
    docker_host: str,
    docker_timeout: float,
    image_limits: Limits,
    subnet_file: Path,
    state_dir: Path,
    agent_port: int,
    capacity: dict[str, str],
    system_reserved: dict[str, str],
    eviction_hard: Thresholds,
    node_labels: dict[str, str],
    drain_delay: float,
    drain_timeout: float,
    api_files: ApiFiles | None,
    store_config: StoreConfig,
    daemon_options: DaemonOptions,
) -> None:
    """Register this machine as a node and run, through Docker, the pods bound to it."""
    # heavy modules are imported when the daemon runs, not for --help
    from podlane.store.events import EventRecorder
    from podlane.store.registry import Registry
    from podlane.store.reports import Outbox
    from scheduler.agent.agent import Agent
    from scheduler.agent.capacity import Measures, measure
    from scheduler.agent.docker import DockerRuntime
    from scheduler.agent.drain import Drainer
    from scheduler.agent.eviction import Evictor
    from scheduler.agent.node import Facts, Heartbeat, Registrar, node_facts
    from scheduler.agent.nodewatch import NodeWatch
    from scheduler.agent.podfiles import PodFiles
    from scheduler.agent.podnet import KernelPodNet
    from scheduler.agent.pruner import Pruner
    from scheduler.agent.server import AgentServer
    from scheduler.agent.stats import Stats

    ip = node_ip or _own_address(store_config)
    clock = SystemClock()
    daemon = daemon_options.make_daemon("agent", clock=clock)
    lock = _lock(state_dir)
    runtime = DockerRuntime(docker_host, quick=docker_timeout)
    registry = Registry(connect(store_config), clock=clock)
    cluster = Cluster(registry, clock)
    recorder = EventRecorder.of_node(registry, "agent", node_name, clock)
    worker = Agent(
        node_ip=ip,
        runtime=runtime,
        podnet=KernelPodNet(),
        files=PodFiles(state_dir / "pods"),
        outbox=Outbox(registry.store, node_name),
        events=recorder,
        subnet_file=subnet_file,
        drain_delay=drain_delay,
        drain_timeout=drain_timeout,
        clock=clock,
    )
    worker.bindings = bindings = registry.bindings(node_name, worker.trigger)
    worker.drains = drains = Drainer(registry, worker.trigger, clock)
    _follow_store(worker, registry, daemon, clock)
    revoked = revocations_of(api_files, state_dir, registry.store, daemon, clock)
    guard, fingerprint = guard_of(api_files, state_dir, node_name, cluster.token, revoked)
    server = AgentServer(
        *(ip, agent_port),
        runtime=runtime,
        guard=guard,
        pods=lambda: bindings.snapshot().values(),
        usage=(usage := Stats(runtime, clock).usage),
        clock=clock,
    )
    revoked.on_change = partial(server.end_sessions, revoked)
    measures = Measures(partial(measure, state_dir), capacity, system_reserved, eviction_hard)
    facts = Facts(
        name=node_name,
        ip=ip,
        port=server.port,
        capacity=measures.capacity({}),
        allocatable=measures.allocatable({}),
        labels=node_labels,
        certificate=fingerprint,
    )
    registrar = Registrar(
        facts,
        registry=registry,
        runtime=runtime,
        network=worker.network,
        clock=clock,
        measures=measures,
        on_little_memory=Evictor(usage, lambda: bindings.snapshot().values(), worker.evict, clock).look,
        on_read=worker.node_read,
    )
    worker.node = node_facts(facts)
    pruner = Pruner(
        node_name,
        runtime=runtime,
        pods=lambda: bindings.snapshot().values(),
        busy=worker.busy,
        events=recorder,
        clock=clock,
        limits=image_limits,
    )
    worker.on_node_change, worker.on_node_asked = registrar.runner.trigger, registrar.changed
    worker.checks_pods = True

    heartbeat = partial(Heartbeat, node_name, registry=registry, clock=clock, on_held=registrar.changed)
    threads: dict[str, Callable[[threading.Event], None]] = {
        "cluster": cluster.run,
        "bindings": bindings.run,
        "drain": drains.run,
        "docker-events": worker.follow_events,
        "pod-network": worker.follow_network,
        "prober": worker.prober.run,
        "agent": worker.runner.run,
        "node": registrar.runner.run,
        "node-watch": NodeWatch(registry.store, {node_name: registrar.changed}, clock).run,
        "heartbeat": partial(_beat, cluster, clock, heartbeat),
        "prune": pruner.runner.run,
    }
    for name, body in threads.items():
        daemon.add_thread(name, body)
    daemon.add_ready_check("cluster", cluster.problem)
    daemon.add_ready_check("bindings", bindings.not_ready)
    daemon.add_ready_check("network", worker.network_problem)
    daemon.add_ready_check("agent", worker.runner.ready)
    daemon.add_ready_check("node", registrar.problem)
    for close in (recorder.close, runtime.close, worker.close, server.close):
        daemon.on_stop(close)
    with lock, suppress(KeyboardInterrupt):
        leave(daemon.run())
