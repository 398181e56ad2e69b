"""The packet tracer: packets from a pod, the host and outside to every kind of frontend, and what decided."""

from __future__ import annotations

from typing import Any

import pytest
from proxyd_objects import (
    NODE_ADDRESS,
    NODE_ADDRESS6,
    OUTSIDE,
    OUTSIDE6,
    SKELETON,
    SKELETON6,
    VIP,
    VIP6,
    applied,
    frontend,
    service,
    slice_of,
)

from proxyd import hashing
from proxyd.chains import HASH_SEED, OUTSIDE_SLOTS
from proxyd.tables import CLUSTER_IPS, ENDPOINTS, IPV4, IPV6, PICKS, SERVICES, pack_address, pack_mark
from proxyd.walk import Kernel, Packet, choices, consistent, every_outcome, walk

pytestmark = pytest.mark.unit

POD, HOST = "10.5.9.9", NODE_ADDRESS
HERE, THERE = "10.5.1.2:8080", "10.5.2.2:8080"
ENDPOINTS_OF_WEB = slice_of("web", ["10.5.1.2", "10.5.2.2 node2"])
NODE_PORT = (NODE_ADDRESS, 30080)
EXTERNAL_IP, BALANCER = ("198.51.100.1", 80), ("203.0.113.1", 80)
CLUSTER = (VIP, 80)


class Way:
    """What becomes of packets to one node's services."""

    def __init__(self, *objects: Any, family: Any = IPV4) -> None:
        self.tables = applied(*objects, family=family)
        self.kernel = Kernel(self.tables, SKELETON if family is IPV4 else SKELETON6, (NODE_ADDRESS, NODE_ADDRESS6))

    def __call__(self, source: str, where: tuple[str, int], protocol: str = "TCP") -> tuple[str, bool]:
        """Give "HERE|THERE" for those who may be reached, or what happens; and whether it is masqueraded."""
        outcomes = list(every_outcome(Packet(source, *where, protocol), self.kernel))
        targets = sorted({str(each.target) for each in outcomes if each.target})
        (masquerade,) = {each.masquerade for each in outcomes}
        return "|".join(targets) or outcomes[0].action, masquerade

    def steps(self, source: str, where: tuple[str, int], pick: int = 0, **how: Any) -> tuple[str, ...]:
        return walk(Packet(source, *where), Kernel(self.tables, SKELETON, (NODE_ADDRESS,), **how), pick=pick).steps


EVERYTHING = {
    "type": "LoadBalancer",
    "external_ips": ("198.51.100.1",),
    "ingress": ["203.0.113.1"],
}
BOTH = f"{HERE}|{THERE}"


def web(*endpoints: Any, **spec: Any) -> Way:
    return Way(service("web", VIP, "80=30080", **{**EVERYTHING, **spec}), *endpoints)


# --- each feature: from a pod, the host, outside -------------------------------------------


def test_a_cluster_ip():
    way = web(ENDPOINTS_OF_WEB)
    assert way(POD, CLUSTER) == (BOTH, False)
    assert way(HOST, CLUSTER) == (BOTH, True)
    assert way(OUTSIDE, CLUSTER) == (BOTH, True)


@pytest.mark.parametrize("where", [NODE_PORT, EXTERNAL_IP, BALANCER], ids=["node port", "external IP", "balancer"])
def test_external_frontends_with_policy_cluster_masquerade_everybody(where):
    way = web(ENDPOINTS_OF_WEB)
    for source in (POD, HOST, OUTSIDE):
        assert way(source, where) == (BOTH, True)


@pytest.mark.parametrize("where", [NODE_PORT, EXTERNAL_IP, BALANCER], ids=["node port", "external IP", "balancer"])
def test_external_local_keeps_clients_outside_here_with_their_address(where):
    way = web(ENDPOINTS_OF_WEB, external_traffic_policy="Local")
    assert way(OUTSIDE, where) == (HERE, False)
    assert way(POD, where) == (BOTH, False)
    assert way(HOST, where) == (BOTH, True)
    assert way(OUTSIDE, CLUSTER) == (BOTH, True)  # a cluster IP is not external


def test_external_local_with_endpoints_elsewhere_only():
    way = web(slice_of("web", ["10.5.2.2 node2"]), external_traffic_policy="Local")
    assert way(OUTSIDE, NODE_PORT) == ("drop", False)
    assert way(POD, NODE_PORT) == (THERE, False)
    assert way(HOST, NODE_PORT) == (THERE, True)


def test_internal_local():
    way = web(ENDPOINTS_OF_WEB, internal_traffic_policy="Local")
    for source, masquerade in ((POD, False), (HOST, True), (OUTSIDE, True)):
        assert way(source, CLUSTER) == (HERE, masquerade)
    assert way(OUTSIDE, NODE_PORT) == (BOTH, True)


def test_internal_local_with_endpoints_elsewhere_only():
    way = web(slice_of("web", ["10.5.2.2 node2"]), internal_traffic_policy="Local")
    for source in (POD, HOST, OUTSIDE):
        assert way(source, CLUSTER) == ("drop", False)
        assert way(source, NODE_PORT) == (THERE, True)


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_no_endpoint_anywhere_is_refused_at_once(policy):
    way = web(external_traffic_policy=policy, internal_traffic_policy=policy)
    for source in (POD, HOST, OUTSIDE):
        for where in (CLUSTER, NODE_PORT, EXTERNAL_IP, BALANCER):
            assert way(source, where) == ("reset", False)


def test_source_ranges_are_for_everybody_who_comes_by_the_balancers_address():
    way = web(ENDPOINTS_OF_WEB, load_balancer_source_ranges=("192.0.2.0/24", f"{POD}/32"))
    assert way(OUTSIDE, BALANCER) == (BOTH, True)
    assert way(POD, BALANCER) == (BOTH, True)
    for stranger in ("198.51.100.77", "192.0.3.0", "192.0.1.255", HOST):
        assert way(stranger, BALANCER) == ("drop", False)
        assert way(stranger, NODE_PORT) == (BOTH, True)
        assert way(stranger, EXTERNAL_IP) == (BOTH, True)
    assert way("192.0.2.0", BALANCER) == way("192.0.2.255", BALANCER) == (BOTH, True)


def test_source_ranges_and_policy_local_together():
    way = web(ENDPOINTS_OF_WEB, external_traffic_policy="Local", load_balancer_source_ranges=("192.0.2.0/24",))
    assert way(OUTSIDE, BALANCER) == (HERE, False)
    assert way(POD, BALANCER) == ("drop", False)


def test_hairpin():
    way = web(ENDPOINTS_OF_WEB, external_traffic_policy="Local")
    outcomes = {str(each.target): each.masquerade for each in every_outcome(Packet("10.5.1.2", VIP, 80), way.kernel)}
    assert outcomes == {HERE: True, THERE: False}
    assert walk(Packet("10.5.1.2", *NODE_PORT), way.kernel).steps[-1] == (
        "postrouting: 10.5.1.2 was sent to itself, masquerade"
    )


def test_what_is_not_served():
    way = web(ENDPOINTS_OF_WEB)
    assert way(POD, (VIP, 81)) == ("reset", False)
    assert way(POD, CLUSTER, "UDP") == ("unreachable", False)
    assert way(POD, (VIP, 80), "SCTP") == ("unreachable", False)
    assert way(POD, ("10.96.7.7", 80)) == ("drop", False)
    assert way(POD, ("192.0.2.7", 80)) == ("pass", False)
    assert way(POD, (NODE_ADDRESS, 22)) == ("pass", False)
    assert way(POD, ("198.51.100.1", 81)) == ("pass", False)


def test_both_families():
    way = Way(
        service("web", (VIP, VIP6), "80=30080", type="NodePort", external_traffic_policy="Local"),
        slice_of("web", ["fd00:5::2", "fd00:5:0:2::2 node2"], suffix="6"),
        family=IPV6,
    )
    here, there = "[fd00:5::2]:8080", "[fd00:5:0:2::2]:8080"
    assert way("fd00:5::99", (VIP6, 80)) == (f"{there}|{here}", False)
    assert way(OUTSIDE6, (VIP6, 80)) == (f"{there}|{here}", True)
    assert way(OUTSIDE6, (NODE_ADDRESS6, 30080)) == (here, False)
    assert way(NODE_ADDRESS6, (NODE_ADDRESS6, 30080)) == (f"{there}|{here}", True)
    assert way("fd00:5::99", ("fd00:96::77", 80)) == ("drop", False)
    assert way("fd00:5::99", ("2001:db8::77", 80)) == ("pass", False)


def test_hashed_clients_stay_with_their_pod():
    way = web(ENDPOINTS_OF_WEB, balance="maglev")
    found = {}
    for number in range(60):
        packet = Packet(f"192.0.2.{number}", VIP, 80)
        assert choices(packet, way.kernel) == 1
        slot = hashing.slot_of(pack_address(packet.source), 1021, HASH_SEED)
        verdict = walk(packet, way.kernel)
        assert f"hash1021: slot {slot} of 1021, by the hash of {packet.source}, is {verdict.target}" in verdict.steps
        found[packet.source] = verdict.target
        assert walk(Packet(packet.source, *EXTERNAL_IP), way.kernel).target == verdict.target
    assert {str(each) for each in found.values()} == {HERE, THERE}


def test_hashed_and_local():
    way = web(ENDPOINTS_OF_WEB, balance="affinity-hash", external_traffic_policy="Local")
    assert {way(f"192.0.2.{number}", NODE_PORT) for number in range(60)} == {(HERE, False)}
    assert {way(f"10.5.9.{number}", NODE_PORT)[0] for number in range(60)} == {HERE, THERE}


# --- affinity --------------------------------------------------------------------------------


def test_session_affinity_sends_a_known_client_to_its_pod():
    way = web(ENDPOINTS_OF_WEB, affinity=60)
    assert way(POD, CLUSTER) == (BOTH, False)
    at = frontend(f"{VIP}:80")
    for number, target in ((0, HERE), (1, THERE)):
        known = {at + pack_address(POD): way.tables[PICKS][at + pack_mark(number)]}
        kernel = Kernel(way.tables, SKELETON, affinity=known)
        for pick in range(2):
            assert str(walk(Packet(POD, VIP, 80), kernel, pick=pick).target) == target
        # other clients, and other frontends of the same service, are not bound
        assert {str(each.target) for each in every_outcome(Packet("10.5.9.8", VIP, 80), kernel)} == {HERE, THERE}
        assert {str(each.target) for each in every_outcome(Packet(POD, *NODE_PORT), kernel)} == {HERE, THERE}


def test_session_affinity_to_a_pod_that_is_gone_picks_anew():
    way = web(ENDPOINTS_OF_WEB, affinity=60)
    known = {frontend(f"{VIP}:80") + pack_address(POD): pack_mark(1)}
    steps = way.steps(POD, CLUSTER, affinity=known)
    assert steps[1] == "lb2-aff60: 10.5.9.9 was sent to an endpoint that is gone, pick anew"
    assert steps[-1].endswith("is 10.5.1.2:8080")


def test_session_affinity_and_local():
    way = web(ENDPOINTS_OF_WEB, affinity=60, external_traffic_policy="Local")
    assert way(OUTSIDE, NODE_PORT) == (HERE, False)
    assert way(POD, NODE_PORT) == (BOTH, False)


# --- the steps, word for word -----------------------------------------------------------------


def test_the_steps_to_a_cluster_ip():
    way = web(ENDPOINTS_OF_WEB)
    assert way.steps(OUTSIDE, CLUSTER, pick=1) == (
        "services: 10.96.0.1:80/tcp goto lb2",
        "lb2: slot 1 of 2, at random, is 10.5.2.2:8080",
        "postrouting: 192.0.2.1 is outside the pod networks, masquerade",
    )


def test_the_steps_through_source_ranges_and_policies():
    way = web(ENDPOINTS_OF_WEB, external_traffic_policy="Local", load_balancer_source_ranges=("192.0.2.0/24",))
    assert way.steps(OUTSIDE, BALANCER) == (
        "services: 203.0.113.1:80/tcp goto ranged",
        "admitted: 203.0.113.1:80/tcp goto outside-lb1",
        "outside-lb1: slot 0 of 1, at random, is 10.5.1.2:8080",
    )
    assert way.steps("198.51.100.9", BALANCER) == (
        "services: 203.0.113.1:80/tcp goto ranged",
        "ranged: 198.51.100.9 is in none of the source ranges, drop",
    )
    assert way.steps(HOST, NODE_PORT) == (
        "services: 192.168.64.11:30080/tcp goto outside-lb1",
        "outside-lb1: 192.168.64.11 is this host, so all endpoints are open to it",
        "inside: 192.168.64.11:30080/tcp goto lb2",
        "lb2: slot 0 of 2, at random, is 10.5.1.2:8080",
        "postrouting: 192.168.64.11 is this host, masquerade",
    )


def test_the_steps_to_nobody():
    way = web(external_traffic_policy="Local")
    assert way.steps(OUTSIDE, NODE_PORT) == (
        "services: 192.168.64.11:30080/tcp is not there",
        "refused: 192.168.64.11:30080/tcp has no endpoint, refuse",
    )
    assert way.steps(POD, ("10.96.7.7", 80))[-1] == "service_ranges: 10.96.7.7 belongs to no service, drop"
    assert way.steps(POD, CLUSTER)[-1] == "cluster_ips: 10.96.0.1 is a service's, refuse"
    elsewhere = web(slice_of("web", ["10.5.2.2 node2"]), external_traffic_policy="Local")
    assert elsewhere.steps(OUTSIDE, NODE_PORT)[1:] == (
        "outside-lb0: no endpoint on this node for clients outside",
        "outside-lb0: drop",
    )


# --- tables that do not go together --------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda t: t[ENDPOINTS].pop(frontend(f"{VIP}:80") + pack_mark(1)), "no slot 1 in endpoints"),
        (
            lambda t: t[ENDPOINTS].pop(frontend(f"{NODE_ADDRESS}:30080") + pack_mark(OUTSIDE_SLOTS)),
            "no slot 0 in endpoints",
        ),
        (lambda t: t.chains.discard("lb2"), "no chain lb2"),
        (lambda t: t["inside"].clear(), "nobody for clients inside"),
        (lambda t: t[CLUSTER_IPS].clear(), "address is not in cluster_ips"),
    ],
    ids=["slot", "outside slot", "chain", "inside", "cluster ip"],
)
def test_what_does_not_go_together_is_named(damage, problem):
    way = web(ENDPOINTS_OF_WEB, external_traffic_policy="Local")
    assert consistent(way.tables) == []
    damage(way.tables)
    assert any(problem in each for each in consistent(way.tables))


def test_a_chain_that_is_missing_is_no_verdict():
    way = web(ENDPOINTS_OF_WEB)
    way.tables[SERVICES][frontend(f"{VIP}:80")] = "goto lb7"
    with pytest.raises(ValueError, match="chain lb7 does not exist, which the kernel rules out"):
        way(POD, CLUSTER)
