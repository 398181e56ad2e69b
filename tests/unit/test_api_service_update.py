"""An update of a service: what it keeps and drops unsaid, and what may not change."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.api import types
from podlane.api.codec import to_builtins
from podlane.api.defaults import apply_defaults, inherit
from podlane.api.validation import validate, validate_update

pytestmark = pytest.mark.unit

ONE = {
    "clusterIP": "10.96.0.9",
    "clusterIPs": ["10.96.0.9"],
    "ipFamilies": ["IPv4"],
    "ipFamilyPolicy": "SingleStack",
}
TWO = {
    "clusterIP": "10.96.0.9",
    "clusterIPs": ["10.96.0.9", "fd00::9"],
    "ipFamilies": ["IPv4", "IPv6"],
    "ipFamilyPolicy": "PreferDualStack",
}
PORTS = [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "nodePort": 30053}]
NODE_PORT = {**ONE, "type": "NodePort", "ports": PORTS, "externalTrafficPolicy": "Cluster"}
BALANCER = {**ONE, "type": "LoadBalancer", "ports": PORTS, "externalTrafficPolicy": "Cluster"}
LOCAL = {**BALANCER, "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}
NAMED = {"type": "ExternalName", "externalName": "db.example.com", "ports": []}
SERVED = {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}}


def service(status: dict[str, Any] | None = None, **spec: Any) -> types.Service:
    plain = {
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "web"}, **spec},
        "status": status or {},
    }
    return apply_defaults(msgspec.convert(plain, types.Service))


def updated(old: dict[str, Any], new: dict[str, Any], status: dict[str, Any] | None = None) -> types.Service:
    live = service(status, **old)
    kept = inherit(live, service(**new))
    assert inherit(live, kept) == kept
    return kept


def plain(old: dict[str, Any], new: dict[str, Any], *fields: str) -> list[Any]:
    """Fields of the update; None for those it does not have."""
    spec = to_builtins(updated(old, new))["spec"]
    return [spec.get(field) for field in fields]


def wrong(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    kept = updated(old, new)
    return [str(error) for error in (*validate(kept), *validate_update(service(**old), kept))]


ADDRESSES = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy")


@pytest.mark.parametrize(
    ("old", "new", "want"),
    [
        (ONE, {}, [*ONE.values()]),
        (TWO, {}, [*TWO.values()]),
        (TWO, {"clusterIP": "10.96.0.9"}, [*TWO.values()]),
        (TWO, {"ipFamilyPolicy": "SingleStack"}, [*ONE.values()]),
        (TWO, {**TWO, "ipFamilyPolicy": "SingleStack"}, [*ONE.values()]),
        (TWO, {"ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}, [*ONE.values()]),
        (ONE, {"ipFamilyPolicy": "PreferDualStack"}, [*[*ONE.values()][:3], "PreferDualStack"]),
        (ONE, NAMED, [None, None, None, None]),
        (TWO, {**NAMED, **TWO}, [None, None, None, None]),
        (NAMED, {}, [None, None, None, None]),
    ],
)
def test_addresses(old: dict[str, Any], new: dict[str, Any], want: list[Any]) -> None:
    assert plain(old, new, *ADDRESSES) == want
    assert wrong(old, new) == []


IMMUTABLE = 'immutable: it is "10.96.0.9", got'


@pytest.mark.parametrize(
    ("old", "new", "want"),
    [
        (ONE, {"clusterIP": "10.96.0.8"}, [f'clusterIP: {IMMUTABLE} "10.96.0.8"']),
        (ONE, {"clusterIP": "None"}, [f'clusterIP: {IMMUTABLE} "None"']),
        (
            {"clusterIP": "None", "clusterIPs": ["None"]},
            {"clusterIP": "10.96.0.8"},
            ['clusterIP: immutable: it is "None", got "10.96.0.8"'],
        ),
        (
            TWO,
            {**TWO, "clusterIPs": ["10.96.0.9", "fd00::8"]},
            ['clusterIPs[1]: immutable: it is "fd00::9", got "fd00::8"'],
        ),
        (
            TWO,
            {**TWO, "clusterIPs": ["10.96.0.9"]},
            ['ipFamilyPolicy: expected "SingleStack", for clusterIPs loses fd00::9, got "PreferDualStack"'],
        ),
        (
            TWO,
            {"ipFamilies": ["IPv4"], "ipFamilyPolicy": "PreferDualStack"},
            ['ipFamilyPolicy: expected "SingleStack", for ipFamilies loses IPv6, got "PreferDualStack"'],
        ),
        (
            ONE,
            {**ONE, "ipFamilies": ["IPv6"]},
            [
                "clusterIPs[0]: expected an IPv6 address, as ipFamilies[0] says, got 10.96.0.9",
                'ipFamilies[0]: immutable: it is "IPv4", got "IPv6"',
            ],
        ),
        (
            {**BALANCER, "loadBalancerClass": "a/b"},
            {**BALANCER, "loadBalancerClass": "a/c"},
            ['loadBalancerClass: immutable: it is "a/b", got "a/c"'],
        ),
        (BALANCER, {**BALANCER, "loadBalancerClass": "a/c"}, ['loadBalancerClass: immutable: it is "", got "a/c"']),
        (LOCAL, {**LOCAL, "healthCheckNodePort": 31001}, ["healthCheckNodePort: immutable: it is 31000, got 31001"]),
    ],
)
def test_what_may_not_change(old: dict[str, Any], new: dict[str, Any], want: list[str]) -> None:
    assert wrong(old, new) == [f"spec.{line}" for line in want]


def test_headless_without_selector_may_choose_its_families() -> None:
    old = {"clusterIP": "None", "clusterIPs": ["None"], "selector": {}, "ipFamilies": ["IPv4"]}
    assert wrong(old, {**old, "ipFamilies": ["IPv6"]}) == []


def node_ports(old: dict[str, Any], *ports: dict[str, Any], **new: Any) -> list[int]:
    kept = updated(old, {"ports": list(ports), **new})
    return [port.node_port for port in kept.spec.ports]


HTTP, DNS = {"name": "http", "port": 80}, {"name": "dns", "port": 53}


def test_node_ports_are_kept_by_the_names_of_their_ports() -> None:
    typed = {"type": "NodePort"}
    assert node_ports(NODE_PORT, HTTP, DNS, **typed) == [30080, 30053]
    assert node_ports(NODE_PORT, DNS, HTTP, **typed) == [30053, 30080]
    assert node_ports(NODE_PORT, {**HTTP, "port": 8080}, {"name": "new", "port": 1}, **typed) == [30080, 0]
    assert node_ports(NODE_PORT, {**HTTP, "nodePort": 30081}, DNS, **typed) == [30081, 30053]
    # two protocols may share one, two ports of one protocol may not
    udp = {"name": "dns-udp", "port": 53, "protocol": "UDP"}
    shared = {**NODE_PORT, "ports": [PORTS[1], {**udp, "nodePort": 30053}]}
    assert node_ports(shared, udp, DNS, **typed) == [30053, 30053]
    assert node_ports(shared, {**udp, "protocol": "TCP", "port": 54}, DNS, **typed) == [30053, 0]
    # one that another port now has is not given twice
    assert node_ports(NODE_PORT, {**HTTP, "nodePort": 30053}, DNS, **typed) == [30053, 0]
    assert node_ports(NODE_PORT, HTTP, DNS, type="LoadBalancer") == [30080, 30053]


def test_node_ports_go_with_the_type() -> None:
    assert node_ports(NODE_PORT, HTTP, DNS) == [0, 0]
    assert node_ports(NODE_PORT, *PORTS) == [0, 0]
    assert wrong(NODE_PORT, {"ports": [{**PORTS[0], "nodePort": 30099}, PORTS[1]]}) == [
        f'spec.ports[{index}].nodePort: only where type is "NodePort" or "LoadBalancer", it is "ClusterIP"'
        for index in (0, 1)
    ]


def test_a_load_balancer_without_node_ports_gives_back_those_it_names_no_longer() -> None:
    without = {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False}
    assert node_ports(BALANCER, HTTP, DNS, **without) == [0, 0]
    assert node_ports(BALANCER, *PORTS, **without) == [30080, 30053]


@pytest.mark.parametrize(
    ("old", "new", "field", "want"),
    [
        (LOCAL, {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}, "healthCheckNodePort", 31000),
        (LOCAL, {**LOCAL, "externalTrafficPolicy": "Cluster"}, "healthCheckNodePort", None),
        (LOCAL, {**LOCAL, "type": "NodePort"}, "healthCheckNodePort", None),
        (LOCAL, {**LOCAL, "type": "NodePort"}, "externalTrafficPolicy", "Local"),
        (LOCAL, {**LOCAL, "type": "ClusterIP"}, "externalTrafficPolicy", None),
        (
            {**BALANCER, "loadBalancerClass": "a/b"},
            {**NODE_PORT, "loadBalancerClass": "a/b"},
            "loadBalancerClass",
            None,
        ),
        (
            {**BALANCER, "allocateLoadBalancerNodePorts": False},
            {**NODE_PORT, "allocateLoadBalancerNodePorts": False},
            "allocateLoadBalancerNodePorts",
            None,
        ),
        (
            {"externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local"},
            {"externalTrafficPolicy": "Local"},
            "externalTrafficPolicy",
            None,
        ),
        (
            {"sessionAffinity": "ClientIP"},
            {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}},
            "sessionAffinityConfig",
            None,
        ),
    ],
)
def test_what_no_longer_applies_is_dropped(old: dict[str, Any], new: dict[str, Any], field: str, want: Any) -> None:
    assert plain(old, new, field) == [want]
    assert wrong(old, new) == []


def test_a_status_stays_as_long_as_the_type() -> None:
    assert updated(BALANCER, BALANCER, SERVED).status == service(SERVED).status
    assert updated(BALANCER, NODE_PORT, SERVED).status == types.ServiceStatus()


STATES = [ONE, TWO, NODE_PORT, BALANCER, LOCAL, NAMED, {**BALANCER, "loadBalancerClass": "a/b"}, {**ONE, **LOCAL}]


@given(st.sampled_from(STATES), st.sampled_from(STATES))
def test_any_type_can_become_any_other_by_what_a_user_says(old: dict[str, Any], new: dict[str, Any]) -> None:
    """A manifest names no addresses and no allocated ports; nothing of the old type is then in the way."""
    given_fields = {"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "healthCheckNodePort", "ports"}
    said = {key: value for key, value in new.items() if key not in given_fields}
    if old.get("type") == said.get("type") == "LoadBalancer" and old != new:
        said["loadBalancerClass"] = old.get("loadBalancerClass", "")
    assert wrong(old, {**said, "ports": [HTTP, DNS]}) == []
