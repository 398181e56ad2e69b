"""The faults of the soak: what is broken, for how long, and how it is made whole again.

Owns: the kinds and how a step is drawn. Invariant: what is drawn depends on the
seed alone (kinds, holds, and numbers that choose among what is there), so a run
can be repeated as far as the cluster takes the same course; every fault can be
undone whatever became of its victim meanwhile.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from podlane.api.types import Pod, ReplicationController
from podlane.errors import PodlaneError
from podlane.lab import network
from podlane.lab.cluster import Lab
from podlane.lab.topology import Host
from podlane.runtime.command import run
from podlane.store import keys
from podlane.store.registry import Registry

T = TypeVar("T")
Undo = Callable[[], object]

MOST_PODS = 8
"""Replicas a controller is scaled to at most."""

# kind: (how often it is drawn, shortest and longest hold in seconds)
KINDS: dict[str, tuple[int, float, float]] = {
    "container": (3, 0, 0),
    "sandbox": (2, 0, 0),
    "agent": (3, 0, 12),
    "netd": (1, 0, 6),
    "proxyd": (1, 0, 6),
    "scheduler": (3, 0, 8),
    "scheduler-pause": (2, 6, 12),
    "dockerd": (2, 0, 6),
    "dockerd-hang": (1, 4, 12),
    "etcd": (3, 1, 10),
    "cut-node": (3, 2, 30),
    "cut-server": (2, 2, 12),
    "part": (2, 5, 15),
    "scale": (3, 0, 0),
    "delete-pod": (2, 0, 0),
}
TWO = 0.5
"""Share of the steps that have two faults at once."""
LEADER = 0.7
"""Share of the faults of a scheduler that hit the leader for certain."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A fault to come: its kind, how long it holds, and numbers from 0 to 1 that choose its victims."""

    kind: str
    hold: float
    picks: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Done:
    """A fault that was made. `undo` makes whole what is broken."""

    kind: str
    what: str
    hold: float
    undo: Undo


def draw(rng: random.Random) -> tuple[Drawn, ...]:
    """The faults of one step."""
    count = 2 if rng.random() < TWO else 1
    names, weights = list(KINDS), [weight for weight, _, _ in KINDS.values()]
    drawn = []
    for kind in rng.choices(names, weights, k=count):
        _, shortest, longest = KINDS[kind]
        hold = round(rng.uniform(shortest, longest), 1)
        drawn.append(Drawn(kind, hold, (rng.random(), rng.random(), rng.random())))
    return tuple(drawn)


class Faults:
    """Makes faults in a lab. The calling thread is in the lab's underlay."""

    def __init__(self, lab: Lab, registry: Registry) -> None:
        self._lab = lab
        self._registry = registry
        self._nodes = [h for h in lab.topology.hosts if h.role == "node"]
        self._servers = [h for h in lab.topology.hosts if h.role == "server"]
        self._schedulers = [h for h in self._servers if lab.topology.runs_scheduler(h)]

    def make(self, drawn: Drawn) -> Done:
        """Break something. Raises PodlaneError when it cannot be done now."""
        what, undo = self._make(drawn)
        return Done(drawn.kind, what, drawn.hold, undo)

    def _make(self, drawn: Drawn) -> tuple[str, Undo]:
        first, second, third = drawn.picks
        match drawn.kind:
            case "container" | "sandbox":
                return self._kill_container(first, second, infra=drawn.kind == "sandbox")
            case "agent" | "netd" | "proxyd" | "dockerd":
                return self._kill(_pick(self._nodes, first), drawn.kind, signal.SIGKILL)
            case "scheduler" | "scheduler-pause":
                number = signal.SIGKILL if drawn.kind == "scheduler" else signal.SIGSTOP
                return self._kill(
                    self._leader() if second < LEADER else _pick(self._schedulers, first), "scheduler", number
                )
            case "dockerd-hang":
                return self._kill(_pick(self._nodes, first), "dockerd", signal.SIGSTOP)
            case "etcd":
                return self._kill(_pick(self._servers, first), "etcd", signal.SIGKILL)
            case _:
                return self._cut_or_change(drawn.kind, first, second, third)

    def _cut_or_change(self, kind: str, first: float, second: float, third: float) -> tuple[str, Undo]:
        lab = self._lab
        if kind in {"cut-node", "cut-server"}:
            host = _pick(self._nodes if kind == "cut-node" else self._servers, first)
            network.cut(lab.topology, host)
            return host.name, lambda: network.join(lab.topology, host)
        if kind == "part":
            host = _pick(self._nodes, first)
            other = _pick([h for h in (*self._nodes, *self._servers) if h != host], second)
            network.part(lab.topology, host, other)
            return f"{host.name} and {other.name}", lambda: network.join(lab.topology, host)
        if kind == "scale":
            name, replicas = _pick(self._controllers(), first).metadata.name, int(third * (MOST_PODS + 1))
            lab.podlane("scale", f"rc/{name}", f"--replicas={replicas}")
            return f"{name} to {replicas}", _nothing
        assert kind == "delete-pod", kind
        name = _pick(self._pods(), first).metadata.name
        lab.podlane("delete", "pod", name, "--wait=false")
        return name, _nothing

    def _leader(self) -> Host:
        """The scheduler that leads, or the first while none does."""
        held = self._registry.store.get(keys.ELECTION_SCHEDULER)
        return next((h for h in self._schedulers if held and h.name == held.value.decode()), self._schedulers[0])

    def _kill(self, host: Host, daemon: str, number: signal.Signals) -> tuple[str, Undo]:
        record = self._lab.kill(host, daemon, number)

        def again() -> None:
            if number == signal.SIGSTOP:
                with suppress(PodlaneError):  # it was killed meanwhile
                    self._lab.kill(host, daemon, signal.SIGCONT)
            self._lab.start(host, daemon, wait=False)

        return f"{daemon} of {host.name} (pid {record.pid}) {number.name}", again

    def _kill_container(self, first: float, second: float, *, infra: bool) -> tuple[str, Undo]:
        """Kill a container, or the one that holds a pod's network, from outside of Docker: its process ends."""
        pod = _pick(self._pods(), first)
        labels = [f"--filter=label=podlane.io/pod-uid={pod.metadata.uid}"]
        container = "POD" if infra else _pick(pod.spec.containers, second).name
        labels.append(f"--filter=label=podlane.io/container-name={container}")
        docker = ["docker", "-H", f"unix://{self._lab.topology.docker_socket(pod.spec.node_name)}"]
        ids = run([*docker, "ps", "-q", *labels], timeout=20).stdout.split()
        if not ids:
            raise PodlaneError(f"kill {container} of {pod.metadata.name}: it does not run")
        run([*docker, "kill", ids[0]], timeout=20)
        return f"{container} of {pod.metadata.name} on {pod.spec.node_name}", _nothing

    def _pods(self) -> list[Pod]:
        pods = [p for p in self._registry.list(Pod).items if p.spec.node_name and not p.metadata.deletion_timestamp]
        if not pods:
            raise PodlaneError("choose a pod: there is none")
        return pods

    def _controllers(self) -> tuple[ReplicationController, ...]:
        return self._registry.list(ReplicationController).items


def _pick(those: Sequence[T], number: float) -> T:
    return those[int(number * len(those))]


def _nothing() -> None:
    return
