"""The lab's wires in real namespaces: who reaches whom while hosts are cut off or parted."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import pytest

from podlane.lab import network
from podlane.lab.topology import Host, Topology

pytestmark = pytest.mark.kernel

PORT = 7777


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    """Three hosts without daemons, each with a port that listens."""
    topology = Topology(f"wire{os.getpid() % 10000}", nodes=3)
    with contextlib.ExitStack() as open_sockets:
        try:
            network.build(topology)
            for host in topology.hosts:
                with network.inside(topology.netns(host)):
                    open_sockets.enter_context(socket.create_server((host.address, PORT)))
            yield topology
        finally:
            network.destroy(topology)


def reached(lab: Topology, name: str) -> set[str]:
    """The nodes that a node reaches."""

    def answers(host: Host) -> bool:
        try:
            socket.create_connection((host.address, PORT), timeout=1.0).close()
        except OSError:
            return False
        return True

    with network.inside(lab.netns(name)):
        return {h.name for h in lab.hosts if h.role == "node" and answers(h)}


def reaches(lab: Topology, name: str, others: set[str]) -> bool:
    """Whether a node comes to reach these: whom it just sought in vain, it seeks again a second later (ARP)."""
    deadline = time.monotonic() + 20
    while not others <= (found := reached(lab, name)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found == others


ALL = {"node1", "node2", "node3"}


def test_parted_hosts_miss_each_other_and_nobody_else(lab: Topology) -> None:
    first, second = lab.host("node1"), lab.host("node2")
    assert reaches(lab, "node1", ALL)
    network.part(lab, second, first)
    assert network.parted_hosts(lab) == {("node1", "node2")}
    assert network.cut_hosts(lab) == frozenset()
    assert reaches(lab, "node1", {"node1", "node3"})
    assert reaches(lab, "node2", {"node2", "node3"})
    network.part(lab, first, second)  # once more changes nothing
    network.join(lab, first)
    assert network.parted_hosts(lab) == frozenset()
    assert reaches(lab, "node2", ALL)


def test_joining_a_host_undoes_all_its_faults_and_no_other_hosts(lab: Topology) -> None:
    for name in ("node1", "node3"):
        network.cut(lab, lab.host(name))
    network.part(lab, lab.host("node1"), lab.host("node2"))
    network.build(lab)  # as `lab up` does again: the faults stay
    assert reached(lab, "node1") == {"node1"}
    network.join(lab, lab.host("node1"))
    network.join(lab, lab.host("node1"))  # nothing left to undo
    assert network.cut_hosts(lab) == {"node3"}
    assert reaches(lab, "node1", {"node1", "node2"})
    network.join(lab, lab.host("node3"))
    assert reaches(lab, "node3", ALL)
