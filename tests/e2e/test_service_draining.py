"""What load meets while pods and daemons come and go: nothing, as long as pods end as pods should.

`wrk` on every host, each request over a new connection. Each step has a load of
its own, so that a failure is a step's.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest
from driven_lab import Cluster
from outside import homes, run_pods, settle

from bench.wrk import Load, loading, together
from podlane.lab import network
from podlane.runtime.command import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

AT_LEAST = 50_000  # requests
CONNECTIONS = 2  # of each host at a time: a pod's server has nine waiting at most
PATIENCE = 5  # seconds until an answer counts as none; a SYN may be lost twice (1 + 2 s)


@pytest.fixture(scope="module")
def loadable(service_lab: Cluster) -> Iterator[Cluster]:
    """The lab, without its pods in the end.

    For a minute they remember tens of thousands of connections, which they closed first (TIME_WAIT). Nodes
    masquerade with random ports; a SYN that comes with a remembered port and older timestamps is not accepted
    before the client's next try, a second later (PAWSTimewait in the pod's /proc/net/netstat).
    """
    yield service_lab
    scale(service_lab, 0)


@pytest.fixture
def four(loadable: Cluster) -> Cluster:
    run_pods(loadable, 4)
    return loadable


class Loaded:
    """Takes steps under load from every host (but those named), and keeps what was met."""

    def __init__(self, lab: Cluster) -> None:
        self.lab = lab
        self.loads: dict[str, Load] = {}

    def during(self, name: str, step: Callable[[], object], *without: str) -> Load:
        sources = {h.name: self.lab.topology.netns(h) for h in self.lab.nodes if h.name not in without}
        url = f"http://{self.lab.address()}/"
        with loading(sources, url, connections=CONNECTIONS, patience=PATIENCE) as running:
            time.sleep(1)
            step()  # and so many seconds more, which `loading` adds
        self.loads[name] = together(running.loads)
        return self.loads[name]

    def told(self) -> str:
        """Each step's load, and which pods ended though some node might still send them connections."""
        lines = [f"{name}: {load}" for name, load in self.loads.items()]
        for log in sorted(self.lab.topology.log_dir.glob("*/agent.log")):
            lines += [f"{log.parent.name}: {line}" for line in log.read_text().splitlines() if "undrained" in line]
        return "\n".join(lines)


def scale(lab: Cluster, count: int) -> None:
    lab.podlane("scale", "rc/web", f"--replicas={count}")
    settle(lab, count)


def roll(lab: Cluster) -> None:
    """Delete every pod there is, one by one."""
    for pod in lab.ready():
        lab.podlane("delete", "pod", pod.metadata.name)
        settle(lab, 4)


def kill_daemons(lab: Cluster) -> None:
    """Each kind of daemon dies, a different host's each time, and pods come and go without it.

    Pods that end without one node's proxyd must wait for it: its kernel still sends them connections.
    """
    victims = (("node1", "proxyd", 2), ("node2", "agent", 5), ("node3", "netd", 3), ("server1", "scheduler", 4))
    for host, daemon, count in victims:
        lab.lab.kill(lab.topology.host(host), daemon, signal.SIGKILL)
        lab.podlane("scale", "rc/web", f"--replicas={count}")
        time.sleep(0.5)
        lab.lab.start(lab.topology.host(host), daemon)
        settle(lab, count)


def stop_etcd(lab: Cluster) -> None:
    """For some seconds, and pods that were told to end just before it."""
    server = lab.topology.host("server1")
    lab.podlane("scale", "rc/web", "--replicas=3")
    lab.lab.kill(server, "etcd", signal.SIGTERM)
    time.sleep(4)
    lab.lab.start(server, "etcd")
    scale(lab, 4)


def test_pods_and_daemons_come_and_go_and_no_request_is_lost(four: Cluster) -> None:
    loaded = Loaded(four)
    loaded.during("four, eight, two, four", lambda: [scale(four, count) for count in (8, 2, 4)])
    loaded.during("delete four pods, one by one", lambda: roll(four))
    loaded.during("kill daemons", lambda: kill_daemons(four))
    loaded.during("stop etcd", lambda: stop_etcd(four))
    while (total := together(loaded.loads)).requests < AT_LEAST:
        loaded.during(f"delete them again {len(loaded.loads)}", lambda: roll(four))
    print(loaded.told())
    assert total.failed == 0, loaded.told()


def test_a_killed_container_costs_what_was_under_way_and_what_came_before_the_nodes_knew(four: Cluster) -> None:
    loaded = Loaded(four)
    victim = four.ready()[0]
    docker = ["docker", "-H", f"unix://{four.topology.docker_socket(victim.spec.node_name)}"]
    container = victim.status.container_statuses[0].container_id.removeprefix("docker://")

    def kill() -> None:
        run([*docker, "kill", container], timeout=30)
        settle(four, 4)

    load = loaded.during("kill a container", kill)
    # its address goes on refusing connections until the endpoint is out of every kernel; wrk calls that a write error
    assert load.failed == load.read + load.write, loaded.told()
    assert load.read <= CONNECTIONS * len(four.nodes), loaded.told()
    after = loaded.during("afterwards", lambda: None)
    assert after.requests > 0
    assert after.failed == 0, loaded.told()


def test_a_cut_host_costs_only_what_was_under_way_to_it(four: Cluster) -> None:
    loaded = Loaded(four)
    lost = next(name for name, pods in homes(four).items() if pods)
    host = four.topology.host(lost)

    def cut() -> None:
        network.cut(four.topology, host)
        four.wait("four ready elsewhere", lambda: len([p for p in four.ready() if p.spec.node_name != lost]) == 4, 60)

    try:
        # who is only connecting tries again, and gets another pod once the kernels know
        load = loaded.during(f"cut {lost}", cut, lost)
        assert load.failed <= CONNECTIONS * (len(four.nodes) - 1), loaded.told()
        after = loaded.during("afterwards", lambda: None, lost)
        assert after.requests > load.failed
        assert after.failed == 0, loaded.told()
    finally:
        network.join(four.topology, host)
        four.wait("the node is Ready again", lambda: four.node_states()[lost] == "True", 60)
