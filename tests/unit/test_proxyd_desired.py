"""What Service and EndpointSlice mean, and that the index forgets nothing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxyd_objects import service, slice_of

from proxyd.desired import Index, serve
from proxyd.tables import Frontend, Target

pytestmark = pytest.mark.unit

VIP = "10.96.0.1"


def shown(served):
    return {str(frontend): sorted(map(str, targets)) for frontend, targets in served.frontends.items()}


def test_ports_meet_by_name_and_protocol():
    dns = service("dns", VIP, "dns:53/UDP", "dns-tcp:53/TCP", "metrics:9153")
    slices = [slice_of("dns", ["10.5.1.2", "10.5.2.2"], "dns:5353/UDP", "dns-tcp:5353/TCP", "metrics:9153")]
    assert shown(serve(dns, slices, "node1")) == {
        "10.96.0.1:53/udp": ["10.5.1.2:5353", "10.5.2.2:5353"],
        "10.96.0.1:53/tcp": ["10.5.1.2:5353", "10.5.2.2:5353"],
        "10.96.0.1:9153/tcp": ["10.5.1.2:9153", "10.5.2.2:9153"],
    }


def test_a_named_target_port_may_differ_between_pods():
    # two slices of one service: the controller resolved "web" to 8080 in some pods and to 80 in others
    slices = [
        slice_of("web", ["10.5.1.2"], "http:8080"),
        slice_of("web", ["10.5.1.3"], "http:80", suffix="2"),
    ]
    assert shown(serve(service("web", VIP, "http:80"), slices, "node1")) == {
        "10.96.0.1:80/tcp": ["10.5.1.2:8080", "10.5.1.3:80"]
    }


def test_only_ready_endpoints_serve():
    slices = [slice_of("web", ["10.5.1.2"], not_ready=["10.5.1.3"])]
    assert shown(serve(service("web", VIP), slices, "node1")) == {"10.96.0.1:80/tcp": ["10.5.1.2:8080"]}


def test_a_port_nobody_serves_is_wanted_empty():
    slices = [slice_of("web", ["10.5.1.2"], "http:8080")]
    assert shown(serve(service("web", VIP, "http:80", "admin:81"), slices, "node1")) == {
        "10.96.0.1:80/tcp": ["10.5.1.2:8080"],
        "10.96.0.1:81/tcp": [],
    }


def test_an_endpoint_in_two_slices_counts_once():
    slices = [slice_of("web", ["10.5.1.2"]), slice_of("web", ["10.5.1.2", "10.5.1.3"], suffix="2")]
    assert shown(serve(service("web", VIP), slices, "node1")) == {
        "10.96.0.1:80/tcp": ["10.5.1.2:8080", "10.5.1.3:8080"]
    }


@pytest.mark.parametrize(
    "each",
    [
        service("db", "None"),
        service("db", ""),
        service("db", "fd00::1"),
        service("db", VIP, labels={"service.kubernetes.io/service-proxy-name": "other"}),
        service("db", VIP, labels={"service.kubernetes.io/headless": ""}),
    ],
    ids=["headless", "unallocated", "ipv6", "another-proxy", "headless-label"],
)
def test_not_proxied(each):
    assert serve(each, [slice_of("db", ["10.5.1.2"])], "node1") == serve(each, [], "node1")
    assert not serve(each, [slice_of("db", ["10.5.1.2"])], "node1").addresses


def test_addresses_of_another_family_or_malformed_do_not_serve():
    six = msgspec.structs.replace(slice_of("web", ["fd00::2"], suffix="6"), address_type="IPv6")
    odd = slice_of("web", ["10.5.1", "10.5.1.2"])
    assert shown(serve(service("web", VIP), [six, odd], "node1")) == {"10.96.0.1:80/tcp": ["10.5.1.2:8080"]}


def test_hairpin_is_for_endpoints_here_or_nowhere_known():
    slices = [
        slice_of(
            "web",
            ["10.5.1.2", "10.5.2.2", "10.5.3.2"],
            nodes={"10.5.1.2": "node1", "10.5.2.2": "node2", "10.5.3.2": ""},
        )
    ]
    assert serve(service("web", VIP), slices, "node1").hairpin == {"10.5.1.2", "10.5.3.2"}


def test_two_services_on_one_address_the_lower_name_wins_and_the_other_waits():
    index = Index("node1")
    a, b = service("a", VIP), service("b", VIP)
    index.update(
        {"default/b": b}, {"default/b-1": slice_of("b", ["10.5.1.9"]), "default/a-1": slice_of("a", ["10.5.1.2"])}
    )
    frontend = Frontend(VIP, "TCP", 80)
    assert index.targets(frontend) == {Target("10.5.1.9", 8080)}
    index.update({"default/a": a}, {})
    assert index.targets(frontend) == {Target("10.5.1.2", 8080)}
    assert [str(clash) for clash in index.clashes] == [
        "serve default/b: 10.96.0.1:80/tcp already belongs to service default/a"
    ]
    index.update({"default/a": None}, {})
    assert index.targets(frontend) == {Target("10.5.1.9", 8080)}
    assert index.clashes == []


def test_an_update_touches_only_what_it_changed():
    index = Index("node1")
    index.replace(
        {"default/a": service("a", VIP), "default/b": service("b", "10.96.0.2")},
        {"default/a-1": slice_of("a", ["10.5.1.2"]), "default/b-1": slice_of("b", ["10.5.1.3"])},
    )
    touched = index.update({}, {"default/b-1": slice_of("b", ["10.5.1.3", "10.5.1.4"])})
    assert (touched.frontends, touched.addresses, touched.hairpin) == (
        {Frontend("10.96.0.2", "TCP", 80)},
        set(),
        {"10.5.1.4"},
    )
    assert not index.update({"default/a": service("a", VIP)}, {}).frontends


def test_a_slice_that_moves_to_another_service_leaves_the_first():
    index = Index("node1")
    index.replace(
        {"default/a": service("a", VIP), "default/b": service("b", "10.96.0.2")},
        {"default/s": slice_of("a", ["10.5.1.2"])},
    )
    index.update({}, {"default/s": slice_of("b", ["10.5.1.2"])})
    assert not index.targets(Frontend(VIP, "TCP", 80))
    assert index.targets(Frontend("10.96.0.2", "TCP", 80)) == {Target("10.5.1.2", 8080)}


names = st.sampled_from(["a", "b", "c"])
steps = st.one_of(
    st.builds(
        lambda n, ip, ports: ("service", n, service(n, ip, *ports)),
        names,
        st.sampled_from(["10.96.0.1", "10.96.0.2", "None"]),
        st.lists(st.sampled_from(["x:80", "y:81", "x:53/UDP"]), min_size=1, unique=True),
    ),
    st.builds(lambda n: ("service", n, None), names),
    st.builds(
        lambda n, s, pods: ("slice", f"s{s}", slice_of(n, pods, "x:8080", "y:8081", "x:5353/UDP", suffix=str(s))),
        names,
        st.integers(1, 3),
        st.lists(st.sampled_from([f"10.5.1.{i}" for i in range(2, 7)]), unique=True),
    ),
    st.builds(lambda s: ("slice", f"s{s}", None), st.integers(1, 3)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=25))
def test_any_sequence_of_updates_equals_building_afresh(sequence):
    index, services, slices = Index("node1"), {}, {}
    for kind, name, each in sequence:
        into = services if kind == "service" else slices
        key = f"default/{name}"
        before = {f: index.targets(f) for f in index.frontends}
        touched = index.update(*(({key: each}, {}) if kind == "service" else ({}, {key: each})))
        after = {f: index.targets(f) for f in index.frontends}
        if each is None:
            into.pop(key, None)
        else:
            into[key] = each
        nothing = frozenset()
        changed = {f for f in before.keys() | after.keys() if before.get(f, nothing) != after.get(f, nothing)}
        assert changed <= touched.frontends
    fresh = Index("node1")
    fresh.replace(services, slices)
    assert {f: index.targets(f) for f in index.frontends} == {f: fresh.targets(f) for f in fresh.frontends}
    assert dict(index.addresses) == dict(fresh.addresses)
    assert dict(index.hairpin) == dict(fresh.hairpin)
    assert index.clashes == fresh.clashes
    assert index.services == fresh.services
