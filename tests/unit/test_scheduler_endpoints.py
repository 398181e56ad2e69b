from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scheduler_objects import owned_by, pod, service

from podlane.api.types import ContainerPort, ServicePort
from scheduler import endpoints

pytestmark = pytest.mark.unit


def web(name: str, number: int = 1, **options):
    return pod(name, **{"node": "n1", "ready": True, "ip": f"10.4.1.{number}", **options})


def text(*arguments, **options) -> str:
    """The plan with the hashes of the ports blanked."""
    return re.sub(r"-[0-9a-f]{8}\b", "-*", str(endpoints.plan(*arguments, **options)))


def carry_out(plan, slices=()):
    """The slices as they are after the plan."""
    by_name = {s.metadata.name: s for s in slices}
    for gone in plan.delete:
        del by_name[gone.metadata.name]
    for made in plan.create:
        assert made.metadata.name not in by_name
        by_name[made.metadata.name] = made
    for changed in plan.update:
        assert changed.metadata.name in by_name
        by_name[changed.metadata.name] = changed
    return list(by_name.values())


def test_ready_pods_of_the_service():
    pods = [web("b", 2), web("a", 1), web("db", 3, labels={"app": "db"}), web("else", 4, namespace="prod")]
    assert text([service()], pods, []) == "create default/web-* tcp/8080 10.4.1.1 10.4.1.2"


def test_a_slice_says_whose_it_is():
    made = endpoints.plan([service()], [web("a")], []).create[0]
    assert made.metadata.labels == {
        "kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "scheduler.podlane.io",
    }
    assert made.metadata.owner_references == owned_by("web", "Service")
    endpoint = made.endpoints[0]
    assert (endpoint.node_name, endpoint.target_ref.name, endpoint.target_ref.uid) == ("n1", "a", "uid-a")
    assert endpoint.target_ref.resource_version == ""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (True, True, False)),
        ({"ready": False, "phase": "Running"}, (False, False, False)),
        ({"terminating": True}, (False, True, True)),
        ({"terminating": True, "ready": False}, (False, False, True)),
    ],
)
def test_conditions_as_kubernetes_has_them(options, expected):
    (made,) = endpoints.plan([service()], [web("a", **options)], []).create
    conditions = made.endpoints[0].conditions
    assert (conditions.ready, conditions.serving, conditions.terminating) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ready": False}, (True, False, False)),
        ({"ready": True, "terminating": True}, (True, True, True)),
    ],
)
def test_publish_not_ready_addresses(options, expected):
    (made,) = endpoints.plan([service(publish_not_ready_addresses=True)], [web("a", **options)], []).create
    conditions = made.endpoints[0].conditions
    assert (conditions.ready, conditions.serving, conditions.terminating) == expected


@pytest.mark.parametrize("absent", [{"ip": ""}, {"phase": "Failed"}, {"phase": "Succeeded"}])
def test_pods_that_cannot_serve(absent):
    assert endpoints.plan([service()], [web("a", **absent)], []).empty


def test_pods_on_a_dead_node_are_dropped():
    pods = [web("a", 1), web("b", 2, node="n2")]
    slices = carry_out(endpoints.plan([service()], pods, []))
    assert text([service()], pods, slices, unreachable={"n2"}) == "update default/web-* tcp/8080 10.4.1.1"


def test_named_ports_are_looked_up_on_each_pod():
    pods = [
        web("old", 1),
        web("new", 2, ports=(ContainerPort(container_port=9090, name="http"),)),
        web("none", 3, ports=()),
        web("udp", 4, ports=(ContainerPort(container_port=53, name="http", protocol="UDP"),)),
    ]
    lines = text([service()], pods, []).splitlines()
    assert sorted(lines) == ["create default/web-* tcp/8080 10.4.1.1", "create default/web-* tcp/9090 10.4.1.2"]


def test_several_ports():
    ports = (
        ServicePort(port=80, name="http", target_port="http"),
        ServicePort(port=53, name="dns", protocol="UDP", target_port=5353),
        ServicePort(port=7000, name="same"),
    )
    assert text([service(ports=ports)], [web("a")], []) == ("create default/web-* tcp/8080,udp/5353,tcp/7000 10.4.1.1")


def test_sctp_and_the_protocol_above_it():
    ports = (
        ServicePort(port=36412, name="s1ap", protocol="SCTP", target_port="s1"),
        ServicePort(port=80, name="h2", target_port=8080, app_protocol="kubernetes.io/h2c"),
    )
    named = (
        ContainerPort(container_port=1, name="s1"),
        ContainerPort(container_port=36412, name="s1", protocol="SCTP"),
    )
    (made,) = endpoints.plan([service(ports=ports)], [web("a", ports=named)], []).create
    assert endpoints.describe(made).split(" ")[1] == "sctp/36412,tcp/8080"
    assert [port.app_protocol for port in made.ports] == ["", "kubernetes.io/h2c"]


def test_a_service_without_ports():
    """Headless ones may have none: then only the addresses are of interest."""
    (made,) = endpoints.plan([service(ports=(), cluster_ip="None")], [web("a")], []).create
    assert (made.ports, [e.addresses for e in made.endpoints]) == ((), [("10.4.1.1",)])
    assert made.metadata.labels["service.kubernetes.io/headless"] == ""


def test_a_service_that_is_a_name_elsewhere_has_no_slices():
    name = service(type="ExternalName", external_name="db.example.com")
    assert endpoints.plan([name], [web("a")], []).empty
    slices = carry_out(endpoints.plan([service()], [web("a")], []))
    assert text([name], [web("a")], slices) == "delete default/web-*"


# --- families ------------------------------------------------------------------------------

BOTH = {"ip": "", "ips": ("10.4.1.1", "fd00:4:1::1")}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"ip_families": ("IPv4",)}, ["IPv4 10.4.1.1"]),
        ({"ip_families": ("IPv6",)}, ["IPv6 fd00:4:1::1"]),
        ({"ip_families": ("IPv6", "IPv4")}, ["IPv4 10.4.1.1", "IPv6 fd00:4:1::1"]),
        ({"cluster_ip": "10.96.0.7"}, ["IPv4 10.4.1.1"]),
        ({"cluster_ip": "fd00:96::7"}, ["IPv6 fd00:4:1::1"]),
        ({}, ["IPv4 10.4.1.1"]),
        ({"cluster_ip": "None"}, ["IPv4 10.4.1.1", "IPv6 fd00:4:1::1"]),
        ({"cluster_ip": "None", "ip_families": ("IPv4",)}, ["IPv4 10.4.1.1"]),
    ],
)
def test_slices_of_each_family_that_the_service_has(spec, expected):
    made = endpoints.plan([service(**spec)], [web("a", **BOTH)], []).create
    assert sorted(f"{s.address_type} {' '.join(s.endpoints[0].addresses)}" for s in made) == expected
    assert len({s.metadata.name for s in made}) == len(made)


def test_a_pod_without_an_address_of_a_family_is_in_no_slice_of_it():
    dual = service(ip_families=("IPv4", "IPv6"))
    pods = [web("a", **BOTH), web("b", 2)]
    assert sorted(text([dual], pods, []).splitlines()) == [
        "create default/web-* tcp/8080 10.4.1.1 10.4.1.2",
        "create default/web-* tcp/8080 fd00:4:1::1",
    ]


def test_a_family_that_the_service_gives_up():
    slices = carry_out(endpoints.plan([service(ip_families=("IPv4", "IPv6"))], [web("a", **BOTH)], []))
    plan = endpoints.plan([service(ip_families=("IPv4",))], [web("a", **BOTH)], slices)
    assert [s.address_type for s in plan.delete] == ["IPv6"]
    assert plan.unchanged == 1


# --- zones -----------------------------------------------------------------------------------

ZONES = {"n1": "east", "n2": "west"}


def shown(made) -> list[str]:
    """`a n1/east zones=east nodes=n1` of each endpoint."""
    lines = []
    for endpoint in made.endpoints:
        line = f"{endpoint.target_ref.name} {endpoint.node_name}/{endpoint.zone}"
        if endpoint.hints is not None:
            line += f" zones={','.join(z.name for z in endpoint.hints.for_zones)}"
            line += f" nodes={','.join(n.name for n in endpoint.hints.for_nodes)}"
        lines.append(line)
    return lines


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ("", ["a n1/east", "b n2/west", "c n2/west"]),
        ("PreferClose", ["a n1/east zones=east nodes=", "b n2/west zones=west nodes=", "c n2/west"]),
        ("PreferSameZone", ["a n1/east zones=east nodes=", "b n2/west zones=west nodes=", "c n2/west"]),
        ("PreferSameNode", ["a n1/east zones=east nodes=n1", "b n2/west zones=west nodes=n2", "c n2/west"]),
    ],
)
def test_hints_for_those_nearby(distribution, expected):
    pods = [web("a"), web("b", 2, node="n2"), web("c", 3, node="n2", ready=False)]
    (made,) = endpoints.plan([service(traffic_distribution=distribution)], pods, [], zones=ZONES).create
    assert shown(made) == expected


def test_no_hints_for_zones_if_one_that_is_ready_has_none():
    pods = [web("a"), web("b", 2, node="n3")]
    (made,) = endpoints.plan([service(traffic_distribution="PreferClose")], pods, [], zones=ZONES).create
    assert shown(made) == ["a n1/east", "b n3/"]
    (made,) = endpoints.plan([service(traffic_distribution="PreferSameNode")], pods, [], zones=ZONES).create
    assert shown(made) == ["a n1/east zones= nodes=n1", "b n3/ zones= nodes=n3"]
    pods[1] = web("b", 2, node="n3", ready=False)
    (made,) = endpoints.plan([service(traffic_distribution="PreferClose")], pods, [], zones=ZONES).create
    assert shown(made) == ["a n1/east zones=east nodes=", "b n3/"]


def test_hints_rest_on_all_slices_of_a_service():
    """A named port that differs makes two slices; the endpoint without a zone is in the other one."""
    pods = [web("a"), web("b", 2, node="n3", ports=(ContainerPort(container_port=9090, name="http"),))]
    made = endpoints.plan([service(traffic_distribution="PreferClose")], pods, [], zones=ZONES).create
    assert sorted(line for item in made for line in shown(item)) == ["a n1/east", "b n3/"]


def test_a_node_that_moves_to_another_zone():
    slices = carry_out(endpoints.plan([service()], [web("a")], [], zones=ZONES))
    assert endpoints.plan([service()], [web("a")], slices, zones=ZONES).empty
    (changed,) = endpoints.plan([service()], [web("a")], slices, zones={"n1": "north"}).update
    assert shown(changed) == ["a n1/north"]


# --- what is stored ----------------------------------------------------------------------------


def test_unchanged_is_not_written():
    slices = carry_out(endpoints.plan([service()], [web("a")], []))
    again = endpoints.plan([service()], [web("a", version=77)], slices)
    assert again.empty
    assert again.unchanged == 1


def test_an_update_replaces_the_version_it_saw():
    (made,) = carry_out(endpoints.plan([service()], [web("a")], []))
    stored = replace(made, metadata=replace(made.metadata, uid="u", resource_version="42", generation=3))
    (changed,) = endpoints.plan([service()], [web("a"), web("b", 2)], [stored]).update
    assert (changed.metadata.uid, changed.metadata.resource_version) == ("u", "42")


def test_slices_of_a_deleted_service_and_of_no_endpoint_go():
    slices = carry_out(endpoints.plan([service()], [web("a")], []))
    assert text([], [web("a")], slices) == "delete default/web-*"
    assert text([service()], [], slices) == "delete default/web-*"


def test_a_service_made_anew_owns_its_slices():
    slices = carry_out(endpoints.plan([service()], [web("a")], []))
    anew = replace(service(), metadata=replace(service().metadata, uid="uid-2"))
    (changed,) = endpoints.plan([anew], [web("a")], slices).update
    assert changed.metadata.owner_references[0].uid == "uid-2"


def test_slices_made_by_hand_are_left_alone():
    (made,) = carry_out(endpoints.plan([service()], [web("a")], []))
    by_hand = replace(made, metadata=replace(made.metadata, labels={"kubernetes.io/service-name": "web"}))
    assert endpoints.plan([], [], [by_hand]).empty
    assert endpoints.plan([service(selector={})], [web("a")], [by_hand]).empty


def test_one_change_among_many_endpoints_touches_one_slice():
    pods = [web(f"p{i}", i) for i in range(8)]
    slices = carry_out(endpoints.plan([service()], pods, [], max_endpoints=3))
    assert sorted(len(s.endpoints) for s in slices) == [2, 3, 3]
    # p0 goes, and another comes: it takes the place that became free
    step = endpoints.plan([service()], [*pods[1:], web("a-new-one", 99)], slices, max_endpoints=3)
    assert (len(step.update), step.create, step.delete) == (1, (), ())


@given(
    st.lists(st.dictionaries(st.integers(0, 12), st.tuples(st.booleans(), st.sampled_from([8080, 9090]))), max_size=5)
)
def test_every_pod_has_one_endpoint_whatever_came_before(history):
    slices = []
    for state in history:
        pods = [
            web(f"p{i}", i, ready=ready, ports=(ContainerPort(container_port=port, name="http"),))
            for i, (ready, port) in state.items()
        ]
        slices = carry_out(endpoints.plan([service()], pods, slices, max_endpoints=3), slices)
        assert endpoints.plan([service()], pods, slices, max_endpoints=3).empty
        shown = sorted((e.target_ref.name, s.ports[0].port) for s in slices for e in s.endpoints)
        assert shown == sorted((f"p{i}", port) for i, (_, port) in state.items())
        assert all(0 < len(s.endpoints) <= 3 for s in slices)
