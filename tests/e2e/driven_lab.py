"""A running lab, and the few questions the e2e tests ask of it, each through the `podlane` command."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from podlane.api.meta import is_pod_ready
from podlane.api.types import Node, Pod, Service
from podlane.lab import network, residue, traffic
from podlane.lab.cluster import Lab
from podlane.lab.demo import EXAMPLES
from podlane.lab.topology import Host, Topology

PATIENCE = 3.0
"""Seconds a try may take: on a machine that is busy with other tests one may have to wait for a processor."""


class Cluster:
    """A lab, driven from outside as a user drives it."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.lab = Lab(topology, print)

    @property
    def nodes(self) -> list[Host]:
        return [h for h in self.topology.hosts if h.role == "node"]

    def podlane(self, *arguments: str) -> str:
        return self.lab.podlane(*arguments)

    def pods(self, *selector: str) -> list[Pod]:
        """Live pods (not being deleted) of the web controller, or of another selector."""
        listed = self.podlane("get", "pods", "-l", selector[0] if selector else "app=web", "-o", "json")
        pods = msgspec.convert(msgspec.json.decode(listed)["items"], list[Pod])
        return [p for p in pods if p.metadata.deletion_timestamp is None]

    def ready(self) -> list[Pod]:
        return [p for p in self.pods() if is_pod_ready(p)]

    def node_states(self) -> dict[str, str]:
        listed = msgspec.json.decode(self.podlane("get", "nodes", "-o", "json"))["items"]
        nodes = msgspec.convert(listed, list[Node])
        return {n.metadata.name: next((c.status for c in n.status.conditions if c.type == "Ready"), "") for n in nodes}

    def address(self) -> str:
        listed = msgspec.json.decode(self.podlane("get", "service", "web", "-o", "json"))
        return msgspec.convert(listed, Service).spec.cluster_ip

    def wait(self, what: str, done: Callable[[], Any], timeout: float = 40.0) -> float:
        """Poll until true; fail with the pods' state. Returns the seconds it took."""
        begin = time.monotonic()
        while not done():
            if time.monotonic() - begin > timeout:
                pytest.fail(f"waited {timeout:.0f} s in vain: {what}\n{self.podlane('get', 'pods', '-o', 'wide')}")
            time.sleep(0.1)
        return time.monotonic() - begin

    def traffic(self, *without: str) -> traffic.Traffic:
        """Requests to the web service from every node but those named."""
        sources = {h.name: self.topology.netns(h) for h in self.nodes if h.name not in without}
        return traffic.Traffic(sources, self.address(), 80, timeout=PATIENCE)

    def reaches_all(self, count: int) -> bool:
        """Whether every node reaches `count` different pods through the service."""
        address = self.address()
        for host in self.nodes:
            answers = traffic.ask_from(self.topology.netns(host), host.name, address, 80, count=15 * count, tries=1)
            if len({a.backend for a in answers if a.backend}) != count or any(a.error for a in answers):
                return False
        return True

    def run_web(self, replicas: int = 4) -> None:
        """The example controller and service, ready and reached from everywhere."""
        for name in ("web-controller.yaml", "web-service.yaml"):
            self.podlane("apply", "-f", str(EXAMPLES / name))
        self.podlane("scale", "rc/web", f"--replicas={replicas}")
        self.wait(f"{replicas} web pods ready", lambda: len(self.ready()) == len(self.pods()) == replicas)
        self.wait("every node reaches them all", lambda: self.reaches_all(replicas))


def assert_nothing_left(topology: Topology) -> None:
    """No namespace, process, mount, cgroup or folder carries the lab's name."""
    assert network.namespaces(topology.prefix) == []
    assert not topology.run_dir.exists()
    assert residue.find(topology) == residue.Residue()
