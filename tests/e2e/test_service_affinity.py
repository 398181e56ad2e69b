"""Which pod a client gets: the one it had, or the one its address is hashed to, from outside the cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from driven_lab import Cluster
from outside import ask, clients, forget_services, node_port, run_pods, service, settle

from podlane.lab.topology import Host

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

CLIENTS = 12  # all of them at one of four pods: once in four million runs
REPEATS = 4
STICKY = {"clientIP": {"timeoutSeconds": 600}}


@pytest.fixture(scope="module")
def four(service_lab: Cluster) -> Iterator[Cluster]:
    run_pods(service_lab, 4)
    yield service_lab
    forget_services(service_lab)


def chosen(four: Cluster, host: Host, port: int, sources: list[str]) -> dict[str, set[str]]:
    """The pods that each client gets at a node, asking several times; "" is for no answer."""
    asked = {source: [ask(four.topology.underlay, host.address, port, source=source) for _ in range(REPEATS)]
             for source in sources}  # fmt: skip
    return {source: {a.pod or a.error for a in answers} for source, answers in asked.items()}


def test_a_client_keeps_its_pod_until_the_pod_goes(four: Cluster) -> None:
    sources, host = clients(four, CLIENTS), four.nodes[0]
    port = node_port(service(four, "sticky", type="NodePort", sessionAffinity="ClientIP", sessionAffinityConfig=STICKY))
    four.wait("the node port answers", lambda: ask(four.topology.underlay, host.address, port).pod)
    before = chosen(four, host, port, sources)
    pods = {p.metadata.name for p in four.ready()}
    assert {len(got) for got in before.values()} == {1}
    had = {source: got.pop() for source, got in before.items()}
    assert set(had.values()) <= pods
    assert len(set(had.values())) > 1

    gone = had[sources[0]]
    four.podlane("delete", "pod", gone)
    settle(four, 4)
    after = chosen(four, host, port, sources)
    pods = {p.metadata.name for p in four.ready()}
    assert {len(got) for got in after.values()} == {1}
    for source, got in after.items():
        if had[source] == gone:
            assert got <= pods
        else:
            assert got == {had[source]}, source


@pytest.mark.parametrize("balance", ["maglev", "affinity-hash"])
def test_a_client_gets_the_same_pod_at_every_node(four: Cluster, balance: str) -> None:
    sources = clients(four, CLIENTS)
    port = node_port(service(four, balance, type="NodePort", annotations={"podlane.io/balance": balance}))
    for host in four.nodes:
        four.wait(f"{host.name} answers", lambda: ask(four.topology.underlay, host.address, port).pod)  # noqa: B023
    first, *others = (chosen(four, host, port, sources) for host in four.nodes)
    assert {len(got) for got in first.values()} == {1}
    assert others == [first, first]
    used = set.union(*first.values())
    assert used <= {p.metadata.name for p in four.ready()}
    assert len(used) > 1
