"""What one service means besides its cluster IP: node ports, external addresses, source ranges, traffic policies."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from proxyd_objects import NODE_ADDRESS, NODE_ADDRESS6, PLACE, VIP, VIP6, frontend, service, shown, slice_of

from podlane.api.types import LoadBalancerIngress
from proxyd.serving import Place, serve
from proxyd.tables import show_address, unpack_frontend

pytestmark = pytest.mark.unit

LOCAL_IN = {"internal_traffic_policy": "Local"}


def inside(served: Any) -> dict[str, list[str] | None]:
    return {str(unpack_frontend(each)): shown(wanted.inside) for each, wanted in served.frontends.items()}


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
