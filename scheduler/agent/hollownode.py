"""One hollow node: a real agent, node object and drainer on an engine without containers.

Owns: how they are put together, and the node's turn. Invariant: what decides is
the very code that runs on real nodes (agent.py, plan.py, status.py, drain.py,
probes.py, node.py); only its threads are lanes of a crew, and what it looks at
is in memory.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Literal

from podlane.api.types import Node, Object, ObjectReference
from podlane.store.events import EventRecorder
from podlane.store.registry import Registry
from podlane.store.reports import Outbox
from scheduler.agent.agent import Agent
from scheduler.agent.drain import Drainer
from scheduler.agent.hollow import HollowFiles, HollowRuntime
from scheduler.agent.hollowcrew import Crew, Lane, Turning
from scheduler.agent.hollowfeed import Bound
from scheduler.agent.hollowrefs import SharedReferences
from scheduler.agent.node import Facts, Registrar
from scheduler.agent.podnetfake import FakePodNet
from scheduler.agent.runtime import RuntimeEvent

HOLLOW_LABEL = "podlane.io/hollow"
MTU = 1450
SPREAD = 0.5
"""A start takes its seconds give or take this share of them."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What all hollow nodes of a process have in common. `start_seconds`: what starting a pod takes an engine."""

    folder: Path
    pod_network: IPv4Network
    capacity: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)
    start_seconds: float = 0.5
    drain_delay: float = 1.0
    drain_timeout: float = 10.0


class HollowNode:
    """The node number `index` of a network: its subnet is the /24 of that number. `start` begins its turns.

    What only computes is done by `crew`, what waits for the store by `callers`.
    """

    def __init__(
        self,
        name: str,
        index: int,
        settings: Settings,
        *,
        registry: Registry,
        references: SharedReferences,
        crew: Crew,
        callers: Crew,
    ) -> None:
        self.name = name
        self._settings = settings
        self._crew, self._callers = crew, callers
        self._rng = random.Random(name)
        self._turning = Turning(crew, self._turn)
        self._calling = Turning(callers, self._call)
        self._runtime = HollowRuntime(crew.clock, crew.later, self._heard)
        self._recorder = EventRecorder.of_node(registry, "agent", name, crew.clock, threaded=False)
        self._events = self._lane(1, "events")
        subnet = subnet_of(settings.pod_network, index)
        folder = settings.folder / name
        self.agent = Agent(
            node_ip=str(subnet[1]),
            runtime=self._runtime,
            podnet=FakePodNet(self._runtime.alive),
            files=HollowFiles(folder / "pods"),
            outbox=Outbox(registry.store, name),
            events=self,
            subnet_file=_write_subnet_file(folder, settings.pod_network, subnet),
            drain_delay=settings.drain_delay,
            drain_timeout=settings.drain_timeout,
            clock=crew.clock,
            check=self._runtime.check,
            pool=self._lane,
        )
        self.bound = Bound(name, self._agent_wanted)
        self.agent.bindings = self.bound
        self.agent.store_view = references.view(name, self._agent_wanted)
        self.drainer = Drainer(registry, self._agent_wanted, crew.clock)
        self.agent.drains = self.drainer
        labels = {HOLLOW_LABEL: "true", **settings.labels}
        facts = Facts(name=name, ip=str(subnet[1]), port=0, capacity=settings.capacity, labels=labels)
        self.registrar = Registrar(
            facts,
            registry=registry,
            runtime=self._runtime,
            network=self.agent.network,
            clock=crew.clock,
            on_read=self._node_read,
        )
        self.agent.on_node_change = self._node_wanted
        self.agent.on_node_asked = self.node_changed
        self.agent.checks_pods = True

    def start(self) -> None:
        """Begin; no harm if it has begun."""
        self._turning.wake()
        self._calling.wake()

    def close(self) -> None:
        self._turning.close()
        self._calling.close()
        self.agent.close()

    def problem(self) -> str | None:
        """Why the node is not ready, as a ready check wants it."""
        return self.agent.runner.ready() or self.agent.network_problem() or self.registrar.problem()

    def event(
        self,
        about: Object | ObjectReference,
        type: Literal["Normal", "Warning"],  # noqa: A002 - the field's name
        reason: str,
        message: str,
    ) -> None:
        """Record an event, as an EventRecorder with a thread does."""
        self._recorder.event(about, type, reason, message)
        self._events.submit(self._recorder.write_waiting)

    def node_changed(self, revision: float = math.inf) -> None:
        """The stored Node may be another, since this revision of the store. From any thread."""
        self.registrar.changed(revision)
        self._calling.wake()

    def _node_wanted(self) -> None:
        self.registrar.runner.trigger()
        self._calling.wake()

    def _turn(self) -> float:
        """Do what is due on this node; returns the seconds until something else will be."""
        pause = self.agent.runner.step()
        if not pause:  # a sync may have found a pod to drain, or a change of the network
            self._calling.wake()
        return min(pause, self.agent.prober.step())

    def _call(self) -> float:
        """Do what is due of that which waits for the store."""
        return min(self.drainer.runner.step(), self.registrar.runner.step())

    def _heard(self, event: RuntimeEvent) -> None:
        self.agent.heard(event)
        self._turning.wake()

    def _node_read(self, node: Node, as_of: float) -> None:
        if self.agent.node_read(node, as_of):
            self._turning.wake()

    def _agent_wanted(self) -> None:
        self.agent.trigger()
        self._turning.wake()

    def _lane(self, size: int, name: str) -> Executor:
        """A pool of the agent's. Its workers take the time an engine would, and then do all at once."""
        if name in {"worker", "pull"}:
            return Lane(self._crew, size, self._start_seconds, self._turning.wake)
        if name == "probe":
            return Lane(self._crew, size, _at_once, self._turning.wake)
        return Lane(self._callers, size, _at_once, self._turning.wake if name != "events" else _nothing)

    def _start_seconds(self) -> float:
        return self._settings.start_seconds * self._rng.uniform(1 - SPREAD, 1 + SPREAD)


def _at_once() -> float:
    return 0.0


def _nothing() -> None:
    return


def subnet_of(network: IPv4Network, index: int) -> IPv4Network:
    """The /24 of that number in the network. Raises IndexError when it has not so many."""
    first = int(network.network_address) + index * 256
    subnet = IPv4Network((first, 24))
    if not subnet.subnet_of(network):
        raise IndexError(f"{network} has no /24 number {index}")
    return subnet


def _write_subnet_file(folder: Path, network: IPv4Network, subnet: IPv4Network) -> Path:
    """As netd writes it."""
    file = folder / "subnet.env"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={subnet[1]}/24\nFLANNEL_MTU={MTU}\nFLANNEL_IPMASQ=false\n"
    )
    return file
