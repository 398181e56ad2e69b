"""Services from outside the cluster, and by policy from inside, beside a dockerd that minds its own ports."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from driven_lab import Cluster
from outside import (
    CLIENT,
    REFUSED,
    SILENCE,
    Answer,
    ask,
    clients,
    forget_services,
    get,
    homes,
    node_port,
    route,
    run_pods,
    service,
)

from podlane.lab.images import WEB_IMAGE
from podlane.lab.topology import Host
from podlane.runtime.command import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

EXTERNAL, BALANCER = "203.0.113.7", "203.0.113.8"
PUBLISHED = 18080
SHORT = 1.5  # seconds to wait for what must not come


@pytest.fixture(scope="module")
def two(service_lab: Cluster) -> Iterator[Cluster]:
    """Two pods on three nodes: one node has none."""
    run_pods(service_lab, 2)
    assert sorted(len(pods) for pods in homes(service_lab).values()) == [0, 1, 1]
    yield service_lab
    forget_services(service_lab)


@pytest.fixture(scope="module")
def bare(two: Cluster) -> Host:
    """The node without a pod."""
    return next(h for h in two.nodes if not homes(two)[h.name])


def pods(two: Cluster) -> set[str]:
    return {p.metadata.name for p in two.ready()}


def ask_until_all(two: Cluster, address: str, port: int) -> list[Answer]:
    """The answers to thirty requests from outside, once the nodes know the service."""
    outside = two.topology.underlay
    two.wait(f"{address}:{port} answers", lambda: ask(outside, address, port).pod)
    return [ask(outside, address, port) for _ in range(30)]


def test_a_node_port_leads_to_all_pods_at_every_node_also_one_without(two: Cluster) -> None:
    port = node_port(service(two, "door", type="NodePort"))
    assert f"80:{port}/TCP" in two.podlane("get", "svc", "door")
    for host in two.nodes:
        answers = ask_until_all(two, host.address, port)
        assert {a.error for a in answers} == {""}
        assert {a.pod for a in answers} == pods(two)


def test_a_node_port_without_a_pod_behind_it_refuses(two: Cluster) -> None:
    made = service(two, "nobody", type="NodePort", selector={"app": "nobody"})
    for host in two.nodes:
        two.wait(
            f"{host.name} refuses",
            lambda: ask(two.topology.underlay, host.address, node_port(made)).error == REFUSED,  # noqa: B023
        )
        assert ask(two.topology.netns(host), made.spec.cluster_ip, 80).error == REFUSED


def test_an_external_address_is_served_where_the_network_brings_it(two: Cluster, bare: Host) -> None:
    service(two, "external", externalIPs=[EXTERNAL])
    assert EXTERNAL in two.podlane("get", "svc", "external")
    for host in two.nodes:
        route(two, EXTERNAL, host)
        answers = ask_until_all(two, EXTERNAL, 80)
        assert {a.error for a in answers} == {""}, host
        assert {a.pod for a in answers} == pods(two), host
    # from a pod's node too, without leaving the cluster
    two.wait("a node reaches it", lambda: ask(two.topology.netns(bare), EXTERNAL, 80).pod)


def test_a_load_balancer_lets_only_its_source_ranges_in(two: Cluster, bare: Host) -> None:
    stranger = clients(two, 1)[0]
    ranges = [f"{CLIENT}/32", "10.0.0.0/8"]
    made = service(two, "balancer", type="LoadBalancer", loadBalancerIP=BALANCER, loadBalancerSourceRanges=ranges)
    assert BALANCER in two.podlane("get", "svc", "balancer")
    route(two, BALANCER, bare)
    answers = ask_until_all(two, BALANCER, 80)
    assert {a.error for a in answers} == {""}
    assert {a.pod for a in answers} == pods(two)
    outside = two.topology.underlay
    assert ask(outside, BALANCER, 80, source=CLIENT).pod
    assert ask(outside, BALANCER, 80, source=stranger, timeout=SHORT).error == SILENCE
    # the ranges are about the balancer's address
    assert ask(outside, bare.address, node_port(made), source=stranger).pod


def test_local_shows_pods_their_callers_and_balancers_which_nodes_have_pods(two: Cluster, bare: Host) -> None:
    made = service(
        two, "seen", type="LoadBalancer", loadBalancerIP="203.0.113.9", externalTrafficPolicy="Local"
    )  # fmt: skip
    outside, port, health = two.topology.underlay, node_port(made), made.spec.health_check_node_port
    for host in two.nodes:
        mine = homes(two)[host.name]
        two.wait(
            f"the health check of {host.name} knows its pods",
            lambda: get(outside, host.address, health, "/")[0] == (200 if mine else 503),  # noqa: B023
        )
        _, body = get(outside, host.address, health, "/")
        assert msgspec.json.decode(body)["localEndpoints"] == len(mine)
        if mine:
            answers = ask_until_all(two, host.address, port)
            assert {(a.pod, a.caller) for a in answers} == {(mine[0], CLIENT)}
        else:
            assert ask(outside, host.address, port, timeout=SHORT).error == SILENCE
    # where the policy is Cluster, the node stands in for the caller
    port = node_port(service(two, "unseen", type="NodePort"))
    assert CLIENT not in {a.caller for a in ask_until_all(two, bare.address, port)}
    # inside the cluster Local means nothing, not even at the node port
    assert {ask(two.topology.netns(bare), made.spec.cluster_ip, 80).pod for _ in range(20)} == pods(two)


def test_internal_local_keeps_to_the_pods_of_the_node(two: Cluster, bare: Host) -> None:
    address = service(two, "near", internalTrafficPolicy="Local").spec.cluster_ip
    for host in two.nodes:
        netns = two.topology.netns(host)
        if host == bare:
            two.wait("the bare node drops it", lambda: ask(netns, address, 80, timeout=SHORT).error == SILENCE)  # noqa: B023
            continue
        two.wait(f"{host.name} knows it", lambda: ask(netns, address, 80).pod)  # noqa: B023
        assert {ask(netns, address, 80).pod for _ in range(15)} == set(homes(two)[host.name])


def test_a_published_port_of_a_plain_container_works_beside_it(two: Cluster) -> None:
    host = two.nodes[0]
    docker = ["docker", "-H", f"unix://{two.topology.docker_socket(host)}"]
    port = node_port(service(two, "door", type="NodePort"))
    run([*docker, "run", "-d", "--name=plain", f"-p={PUBLISHED}:8080", WEB_IMAGE], timeout=60)
    try:
        name = run([*docker, "inspect", "-f", "{{.Config.Hostname}}", "plain"], timeout=20).stdout.strip()
        outside = two.topology.underlay
        two.wait("the container answers", lambda: ask(outside, host.address, PUBLISHED).pod == name)
        assert {ask(outside, host.address, PUBLISHED).pod for _ in range(10)} == {name}
        assert {ask(outside, host.address, port).pod for _ in range(20)} == pods(two)
        process = run([*docker, "inspect", "-f", "{{.State.Pid}}", "plain"], timeout=20).stdout.strip()
        assert ask(f"/proc/{process}/ns/net", two.address(), 80).pod in pods(two)
    finally:
        run([*docker, "rm", "-f", "plain"], timeout=60)
