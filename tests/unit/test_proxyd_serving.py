"""What one service means on one node: each of Kubernetes' rules by its name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from proxyd_objects import NODE_ADDRESS, PLACE, VIP, VIP6, addresses, frontend, service, shown, slice_of

from podlane.api.types import EndpointConditions
from proxyd.serving import AFFINITY_HASH, MAGLEV, RANDOM, Place, is_proxied, serve
from proxyd.tables import unpack_frontend

pytestmark = pytest.mark.unit

WEB = frontend(f"{VIP}:80")
LOCAL_IN = {"internal_traffic_policy": "Local"}
LOCAL_OUT = {"type": "NodePort", "external_traffic_policy": "Local"}


def inside(served: Any) -> dict[str, list[str] | None]:
    return {str(unpack_frontend(each)): shown(wanted.inside) for each, wanted in served.frontends.items()}


def web(endpoints: Any, place: Place = PLACE, **spec: Any) -> Any:
    """What is wanted at the cluster IP's port."""
    return serve(service("web", VIP, **spec), [slice_of("web", endpoints)], place).frontends[WEB]


def pods(*endpoints: str, place: Place = PLACE, **spec: Any) -> set[str]:
    """Who serves there."""
    return addresses(each[:-4] for each in web(endpoints, place, **spec).inside)


# --- who is proxied --------------------------------------------------------------------


@pytest.mark.parametrize(
    "each",
    [
        service("db", "None"),
        service("db", ""),
        service("db", VIP, type="ExternalName", external_name="db.example.org"),
        service("db", VIP, labels={"service.kubernetes.io/service-proxy-name": "other"}),
        service("db", VIP, labels={"service.kubernetes.io/headless": ""}),
    ],
    ids=["headless", "unallocated", "external-name", "another-proxy", "headless-label"],
)
def test_services_that_are_not_proxied(each):
    assert not is_proxied(each)
    served = serve(each, [slice_of("db", ["10.5.1.2"])], PLACE)
    assert served == serve(each, [], PLACE)
    assert (dict(served.frontends), served.addresses, served.hairpin) == ({}, (), ())


# --- ports -------------------------------------------------------------------------------


def test_ports_meet_by_name_and_protocol():
    dns = service("dns", VIP, "dns:53/UDP", "dns-tcp:53/TCP", "metrics:9153")
    slices = [slice_of("dns", ["10.5.1.2", "10.5.2.2"], "dns:5353/UDP", "dns-tcp:5353/TCP", "metrics:9153")]
    assert inside(serve(dns, slices, PLACE)) == {
        "10.96.0.1:53/udp": ["10.5.1.2:5353", "10.5.2.2:5353"],
        "10.96.0.1:53/tcp": ["10.5.1.2:5353", "10.5.2.2:5353"],
        "10.96.0.1:9153/tcp": ["10.5.1.2:9153", "10.5.2.2:9153"],
    }


def test_a_named_target_port_may_differ_between_pods():
    # two slices of one service: the controller resolved "web" to 8080 in some pods and to 80 in others
    slices = [slice_of("web", ["10.5.1.2"], "http:8080"), slice_of("web", ["10.5.1.3"], "http:80", suffix="2")]
    assert inside(serve(service("web", VIP, "http:80"), slices, PLACE)) == {
        "10.96.0.1:80/tcp": ["10.5.1.2:8080", "10.5.1.3:80"]
    }


def test_a_port_nobody_serves_is_wanted_empty():
    slices = [slice_of("web", ["10.5.1.2"], "http:8080")]
    assert inside(serve(service("web", VIP, "http:80", "admin:81"), slices, PLACE)) == {
        "10.96.0.1:80/tcp": ["10.5.1.2:8080"],
        "10.96.0.1:81/tcp": [],
    }


def test_sctp_is_a_protocol_as_any():
    served = serve(service("web", VIP, "80/SCTP"), [slice_of("web", ["10.5.1.2"], "8080/SCTP")], PLACE)
    assert inside(served) == {"10.96.0.1:80/sctp": ["10.5.1.2:8080"]}


def test_an_endpoint_in_two_slices_counts_once():
    slices = [slice_of("web", ["10.5.1.2"]), slice_of("web", ["10.5.1.2", "10.5.1.3"], suffix="2")]
    assert inside(serve(service("web", VIP), slices, PLACE)) == {"10.96.0.1:80/tcp": ["10.5.1.2:8080", "10.5.1.3:8080"]}


def test_of_an_endpoints_addresses_the_first_is_used():
    each = slice_of("web", ["10.5.1.2"])
    two = msgspec.structs.replace(each.endpoints[0], addresses=("10.5.1.2", "10.5.1.3"))
    served = serve(service("web", VIP), [msgspec.structs.replace(each, endpoints=(two,))], PLACE)
    assert inside(served) == {"10.96.0.1:80/tcp": ["10.5.1.2:8080"]}


# --- conditions: CategorizeEndpoints -------------------------------------------------------


def test_only_ready_endpoints_serve():
    assert pods("10.5.1.2", "10.5.1.3 unready", "10.5.1.4 ended", "10.5.1.5 ending") == {"10.5.1.2"}


def test_an_endpoint_that_serves_but_is_neither_ready_nor_terminating_does_not():
    each = slice_of("web", ["10.5.1.2"])
    odd = msgspec.structs.replace(each.endpoints[0], conditions=EndpointConditions(ready=False, serving=True))
    served = serve(service("web", VIP), [msgspec.structs.replace(each, endpoints=(odd,))], PLACE)
    assert inside(served) == {"10.96.0.1:80/tcp": []}


def test_absent_conditions_mean_ready():
    each = slice_of("web", ["10.5.1.2"])
    bare = msgspec.structs.replace(each.endpoints[0], conditions=EndpointConditions())
    served = serve(service("web", VIP), [msgspec.structs.replace(each, endpoints=(bare,))], PLACE)
    assert inside(served) == {"10.96.0.1:80/tcp": ["10.5.1.2:8080"]}


def test_without_a_ready_endpoint_those_that_are_terminating_and_serving_do():
    assert pods("10.5.1.2 ending", "10.5.2.2 node2 ending", "10.5.1.3 ended", "10.5.1.4 unready") == {
        "10.5.1.2",
        "10.5.2.2",
    }


def test_publish_not_ready_addresses_comes_as_ready_conditions():
    # the controller writes ready for such a service, so the proxy has no rule of its own
    assert pods("10.5.1.2 unready", publish_not_ready_addresses=True) == set()
    assert pods("10.5.1.2", publish_not_ready_addresses=True) == {"10.5.1.2"}


@pytest.mark.parametrize("policy", [LOCAL_IN, LOCAL_OUT], ids=["internal", "external"])
@pytest.mark.parametrize(
    ("endpoints", "here"),
    [
        (["10.5.1.2", "10.5.1.3 ending", "10.5.2.2 node2"], {"10.5.1.2"}),
        (["10.5.1.2 ending", "10.5.1.3 ended", "10.5.2.2 node2"], {"10.5.1.2"}),
        (["10.5.1.3 ended", "10.5.1.4 unready", "10.5.2.2 node2"], set()),
        (["10.5.2.2 node2 ending"], set()),
        (["10.5.1.2 -", "10.5.2.2 node2"], set()),
    ],
    ids=["ready", "terminating here, ready elsewhere", "none here", "terminating elsewhere", "on no named node"],
)
def test_local_means_ready_endpoints_here_or_else_terminating_ones_here(policy, endpoints, here):
    wanted = web(endpoints, **policy)
    if policy is LOCAL_OUT:
        node_port = serve(service("web", VIP, "80=30080", **policy), [slice_of("web", endpoints)], PLACE).frontends[
            frontend(f"{NODE_ADDRESS}:30080")
        ]
        assert addresses(each[:-4] for each in node_port.outside) == here
    else:
        assert addresses(each[:-4] for each in wanted.inside) == here


# --- internalTrafficPolicy ----------------------------------------------------------------


def test_internal_local_with_endpoints_elsewhere_only_is_dropped():
    wanted = web(["10.5.2.2 node2"], **LOCAL_IN)
    assert (wanted.inside, wanted.drop) == ((), True)


def test_internal_local_with_no_endpoint_at_all_is_refused():
    for endpoints in ([], ["10.5.1.2 unready"], ["10.5.2.2 node2 ended"]):
        wanted = web(endpoints, **LOCAL_IN)
        assert (wanted.inside, wanted.drop) == ((), False)


def test_internal_cluster_with_no_endpoint_is_refused():
    assert not web(["10.5.2.2 node2 unready"]).drop


def test_internal_local_is_for_the_cluster_ip_only():
    served = serve(
        service("web", VIP, "80=30080", type="NodePort", **LOCAL_IN), [slice_of("web", ["10.5.2.2 node2"])], PLACE
    )
    assert inside(served) == {
        "10.96.0.1:80/tcp": [],
        f"{NODE_ADDRESS}:30080/tcp": ["10.5.2.2:8080"],
    }


# --- spreading --------------------------------------------------------------------------------


def test_session_affinity():
    assert web([]).affinity == 0
    assert web([], affinity=60).affinity == 60
    assert web([], session_affinity="ClientIP").affinity == 10800


@pytest.mark.parametrize(
    ("annotation", "balance"),
    [("", RANDOM), ("random", RANDOM), ("maglev", MAGLEV), ("affinity-hash", AFFINITY_HASH), ("round-robin", RANDOM)],
)
def test_the_balance_annotation(annotation, balance):
    assert web([], balance=annotation).balance == balance


# --- hints --------------------------------------------------------------------------------------

NEAR = ("10.5.1.2 @zone1", "10.5.2.2 node2 @zone2")


def test_hints_by_zone():
    assert pods(*NEAR) == {"10.5.1.2"}
    assert pods(*NEAR, place=Place("node1", "zone2")) == {"10.5.2.2"}


def test_hints_by_node_come_before_hints_by_zone():
    both = ("10.5.1.2 @node1 @zone1", "10.5.1.3 @node3 @zone1", "10.5.2.2 node2 @node2 @zone2")
    assert pods(*both) == {"10.5.1.2"}
    assert pods(*both, place=Place("node4", "zone1")) == {"10.5.1.2", "10.5.1.3"}


def test_hints_do_not_count_when_one_ready_endpoint_has_none():
    assert pods("10.5.1.2 @zone1", "10.5.2.2 node2") == {"10.5.1.2", "10.5.2.2"}
    assert pods("10.5.2.2 node2", "10.5.1.2 @zone1") == {"10.5.1.2", "10.5.2.2"}
    assert pods("10.5.1.2 @node1 @zone1", "10.5.2.2 node2 @zone2") == {"10.5.1.2"}  # by zone all have one


def test_hints_of_endpoints_that_are_not_ready_do_not_matter():
    assert pods(*NEAR, "10.5.1.9 unready", "10.5.1.8 ending") == {"10.5.1.2"}


def test_hints_do_not_count_when_none_is_for_this_node_or_zone():
    for place in (Place("node1", "zone3"), Place("node1", "")):
        assert pods(*NEAR, place=place) == {"10.5.1.2", "10.5.2.2"}


def test_hints_do_not_count_among_terminating_endpoints():
    assert pods("10.5.1.2 ending @zone1", "10.5.2.2 node2 ending @zone2") == {"10.5.1.2", "10.5.2.2"}


def test_a_local_policy_comes_before_hints():
    endpoints = ("10.5.1.2 @zone2", "10.5.2.2 node2 @zone1")
    assert pods(*endpoints, **LOCAL_IN) == {"10.5.1.2"}
    assert pods(*endpoints) == {"10.5.2.2"}


# --- families ------------------------------------------------------------------------------------


def test_each_family_has_its_own_slices():
    slices = [slice_of("web", ["10.5.1.2"]), slice_of("web", ["fd00:5::2"], suffix="6")]
    served = serve(service("web", (VIP6, VIP)), slices, PLACE)
    assert inside(served) == {"10.96.0.1:80/tcp": ["10.5.1.2:8080"], "[fd00:96::1]:80/tcp": ["[fd00:5::2]:8080"]}
    assert addresses(served.addresses) == {VIP, VIP6}
    assert addresses(served.hairpin) == {"10.5.1.2", "fd00:5::2"}
    assert inside(serve(service("web", VIP6), slices, PLACE)) == {"[fd00:96::1]:80/tcp": ["[fd00:5::2]:8080"]}


def test_malformed_addresses_do_not_serve():
    served = serve(service("web", VIP), [slice_of("web", ["10.5.1", "10.5.1.2"])], PLACE)
    assert inside(served) == {"10.96.0.1:80/tcp": ["10.5.1.2:8080"]}


def test_an_address_of_the_wrong_family_in_a_slice_does_not_serve():
    each = msgspec.structs.replace(slice_of("web", ["fd00:5::2"]), address_type="IPv4")
    assert inside(serve(service("web", VIP), [each], PLACE)) == {"10.96.0.1:80/tcp": []}


# --- hairpin, health checks ---------------------------------------------------------------------


def test_hairpin_is_for_endpoints_here_or_nowhere_known():
    served = serve(
        service("web", VIP), [slice_of("web", ["10.5.1.2", "10.5.2.2 node2", "10.5.3.2 -", "10.5.1.4 ending"])], PLACE
    )
    assert addresses(served.hairpin) == {"10.5.1.2", "10.5.3.2", "10.5.1.4"}


def test_a_health_check_counts_the_ready_endpoints_here():
    spec = {"type": "LoadBalancer", "external_traffic_policy": "Local", "health_check_node_port": 31000}
    endpoints = slice_of("web", ["10.5.1.2", "10.5.1.3", "10.5.1.4 ending", "10.5.2.2 node2"])
    (found,) = serve(service("web", VIP, **spec), [endpoints], PLACE).health
    assert (found[0], found[1].namespace, found[1].name, found[1].local_endpoints) == (31000, "default", "web", 2)
    for other in ({"type": "NodePort"}, {"external_traffic_policy": "Cluster"}, {"health_check_node_port": 0}):
        assert serve(service("web", VIP, **{**spec, **other}), [endpoints], PLACE).health == ()
