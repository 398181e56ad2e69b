"""What one service means on one node: each of Kubernetes' rules by its name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from proxyd_objects import NODE_ADDRESS, NODE_ADDRESS6, PLACE, VIP, VIP6, addresses, frontend, service, shown, slice_of

from podlane.api.types import EndpointConditions, LoadBalancerIngress
from proxyd.serving import AFFINITY_HASH, MAGLEV, RANDOM, Place, is_proxied, serve
from proxyd.tables import show_address, unpack_frontend

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
        (["10.5.1.2 -", "10.5.2.2 node2"], {"10.5.1.2"}),
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


# --- externalTrafficPolicy ------------------------------------------------------------------

EVERYWHERE = service(
    "web",
    VIP,
    "80=30080",
    type="LoadBalancer",
    external_traffic_policy="Local",
    external_ips=("198.51.100.1",),
    ingress=["203.0.113.1"],
)
EXTERNAL = [f"{NODE_ADDRESS}:30080/tcp", "198.51.100.1:80/tcp", "203.0.113.1:80/tcp"]


def test_external_local_is_for_clients_outside_and_pods_reach_all():
    served = serve(EVERYWHERE, [slice_of("web", ["10.5.1.2", "10.5.2.2 node2"])], PLACE)
    found = {str(unpack_frontend(each)): wanted for each, wanted in served.frontends.items()}
    assert sorted(found) == sorted(["10.96.0.1:80/tcp", *EXTERNAL])
    assert found["10.96.0.1:80/tcp"].outside is None
    assert not found["10.96.0.1:80/tcp"].external
    for each in EXTERNAL:
        assert shown(found[each].outside) == ["10.5.1.2:8080"]
        assert shown(found[each].inside) == ["10.5.1.2:8080", "10.5.2.2:8080"]
        assert found[each].external


def test_external_local_with_endpoints_elsewhere_only_has_nobody_outside():
    served = serve(EVERYWHERE, [slice_of("web", ["10.5.2.2 node2"])], PLACE)
    wanted = served.frontends[frontend("198.51.100.1:80")]
    assert (shown(wanted.outside), shown(wanted.inside)) == ([], ["10.5.2.2:8080"])


def test_external_cluster_does_not_tell_clients_apart():
    served = serve(
        service("web", VIP, "80=30080", type="NodePort"), [slice_of("web", ["10.5.1.2", "10.5.2.2 node2"])], PLACE
    )
    wanted = served.frontends[frontend(f"{NODE_ADDRESS}:30080")]
    assert (wanted.outside, shown(wanted.inside)) == (None, ["10.5.1.2:8080", "10.5.2.2:8080"])


def test_services_without_an_endpoint_here_are_counted_by_family_and_policy():
    both = {"type": "NodePort", "external_traffic_policy": "Local", **LOCAL_IN}
    dual = service("web", (VIP, VIP6), **both)
    four, six = slice_of("web", ["10.5.2.2 node2"]), slice_of("web", ["fd00:5::2"], suffix="6")
    assert serve(dual, [four, six], PLACE).without_local == {("IPv4", "internal"), ("IPv4", "external")}
    assert not serve(dual, [slice_of("web", ["10.5.2.2 node2 unready"]), six], PLACE).without_local
    assert not serve(service("web", VIP), [four], PLACE).without_local


# --- external addresses -------------------------------------------------------------------


def test_a_node_port_is_served_at_every_node_address_of_the_family():
    dual = service("web", (VIP, VIP6), "80=30080", type="NodePort")
    served = serve(dual, [slice_of("web", ["10.5.1.2"]), slice_of("web", ["fd00:5::2"], suffix="6")], PLACE)
    assert inside(served) == {
        "10.96.0.1:80/tcp": ["10.5.1.2:8080"],
        f"{NODE_ADDRESS}:30080/tcp": ["10.5.1.2:8080"],
        "[fd00:96::1]:80/tcp": ["[fd00:5::2]:8080"],
        f"[{NODE_ADDRESS6}]:30080/tcp": ["[fd00:5::2]:8080"],
    }
    assert inside(serve(dual, [], Place("node1"))) == {"10.96.0.1:80/tcp": [], "[fd00:96::1]:80/tcp": []}


def test_a_cluster_ip_service_has_no_node_port_but_its_external_ips():
    served = serve(service("web", VIP, "80=30080", external_ips=("198.51.100.1", "2001:db8::1")), [], PLACE)
    assert inside(served) == {"10.96.0.1:80/tcp": [], "198.51.100.1:80/tcp": []}


def test_a_load_balancer_that_is_a_proxy_itself_is_not_bypassed():
    each = service("web", VIP, type="LoadBalancer")
    modes = (("203.0.113.1", "Proxy"), ("203.0.113.2", "VIP"), ("203.0.113.3", ""), ("", "VIP"))
    ingress = tuple(LoadBalancerIngress(ip=ip, ip_mode=mode) for ip, mode in modes)  # type: ignore[arg-type]
    status = msgspec.structs.replace(
        each.status, load_balancer=msgspec.structs.replace(each.status.load_balancer, ingress=ingress)
    )
    served = serve(msgspec.structs.replace(each, status=status), [], PLACE)
    assert sorted(inside(served)) == ["10.96.0.1:80/tcp", "203.0.113.2:80/tcp", "203.0.113.3:80/tcp"]


def test_status_addresses_count_for_load_balancers_only():
    served = serve(service("web", VIP, "80=30080", type="NodePort", ingress=["203.0.113.1"]), [], Place("node1"))
    assert list(inside(served)) == ["10.96.0.1:80/tcp"]


# --- source ranges --------------------------------------------------------------------------


def ranges(*texts: str, at: str = "203.0.113.1:80", **spec: Any) -> list[str] | None:
    each = service(
        "web",
        (VIP, VIP6),
        "80=30080",
        type="LoadBalancer",
        ingress=["203.0.113.1", "2001:db8:2::1"],
        external_ips=("198.51.100.1",),
        load_balancer_source_ranges=texts,
        **spec,
    )
    found = serve(each, [slice_of("web", ["10.5.1.2"])], PLACE).frontends[frontend(at)].ranges
    if found is None:
        return None
    return [f"{show_address(each[: len(each) // 2])}-{show_address(each[len(each) // 2 :])}" for each in found]


def test_source_ranges_are_for_the_load_balancers_addresses_only():
    assert ranges("192.0.2.0/24") == ["192.0.2.0-192.0.2.255"]
    for other in ("10.96.0.1:80", "198.51.100.1:80", f"{NODE_ADDRESS}:30080"):
        assert ranges("192.0.2.0/24", at=other) is None
    assert ranges() is None


def test_source_ranges_do_not_overlap_and_may_have_host_bits_and_spaces():
    assert ranges("192.0.2.0/25", " 192.0.2.128/25", "192.0.2.64/26", "198.51.100.7/31", "x") == [
        "192.0.2.0-192.0.2.255",
        "198.51.100.6-198.51.100.7",
    ]


def test_source_ranges_of_the_other_family_only_let_nobody_in():
    assert ranges("192.0.2.0/24", at="[2001:db8:2::1]:80") == []
    assert ranges("192.0.2.0/24", "2001:db8::/126", at="[2001:db8:2::1]:80") == ["2001:db8::-2001:db8::3"]
    assert ranges("0.0.0.0/0") == ["0.0.0.0-255.255.255.255"]


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
