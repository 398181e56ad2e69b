"""What a pod requests: CPU, memory and ports of the host.

Owns: the effective request. Source: Kubernetes' PodRequests
(component-helpers/resource) and HostPortInfo. Invariant: init containers run
one after another, so only the largest counts, beside the sidecars (init
containers that are restarted always) started before it; sidecars run on beside
the containers. A limit without a request is a request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from podlane.api.quantity import bytes_, milli_cpu
from podlane.api.types import Container, Pod

# what a pod that requests nothing counts for in the score (never in the filter), so that
# such pods spread too: kube-scheduler's util/pod_resources.go
SCORED_CPU = 100
SCORED_MEMORY = 200 << 20

ANY_ADDRESS = "0.0.0.0"


@dataclass(frozen=True, slots=True)
class Demand:
    """Thousandths of a CPU, and bytes."""

    cpu: int = 0
    memory: int = 0

    @property
    def scored_cpu(self) -> int:
        return self.cpu or SCORED_CPU

    @property
    def scored_memory(self) -> int:
        return self.memory or SCORED_MEMORY

    def __add__(self, other: Demand) -> Demand:
        return Demand(self.cpu + other.cpu, self.memory + other.memory)

    def at_least(self, other: Demand) -> Demand:
        return Demand(max(self.cpu, other.cpu), max(self.memory, other.memory))


@dataclass(frozen=True, slots=True)
class HostPort:
    """`address` 0.0.0.0 is every address of the host."""

    protocol: str
    port: int
    address: str

    def clashes(self, other: HostPort) -> bool:
        """Not both can be taken on one node."""
        return (self.protocol, self.port) == (other.protocol, other.port) and (
            self.address == other.address or ANY_ADDRESS in {self.address, other.address}
        )

    def __str__(self) -> str:
        at = "" if self.address == ANY_ADDRESS else f" of {self.address}"
        return f"{self.protocol} {self.port}{at}"


def demand_of(pod: Pod) -> Demand:
    """What must be free on the node for the pod to run at any moment of its life."""
    sidecars = peak = Demand()
    for container in pod.spec.init_containers:
        asked = _asked(container)
        if _is_sidecar(container):
            sidecars += asked
            peak = peak.at_least(sidecars)
        else:
            peak = peak.at_least(sidecars + asked)
    for container in pod.spec.containers:
        sidecars += _asked(container)
    return sidecars.at_least(peak)


def host_ports_of(pod: Pod) -> frozenset[HostPort]:
    """The ports of the node that the pod takes; in the host's network that is every port."""
    return frozenset(_ports(pod))


def _ports(pod: Pod) -> Iterator[HostPort]:
    sidecars = [c for c in pod.spec.init_containers if _is_sidecar(c)]
    for container in (*sidecars, *pod.spec.containers):
        for port in container.ports:
            number = port.host_port or (port.container_port if pod.spec.host_network else 0)
            if number:
                yield HostPort(port.protocol, number, port.host_ip or ANY_ADDRESS)


def _is_sidecar(container: Container) -> bool:
    return container.restart_policy == "Always"


def _asked(container: Container) -> Demand:
    asked = {**container.resources.limits, **container.resources.requests}
    return Demand(milli_cpu(asked.get("cpu", "0")), bytes_(asked.get("memory", "0")))
