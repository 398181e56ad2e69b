from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.cli.merge import LAST_APPLIED, configuration, differences, from_annotation, merge, to_annotation

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("name", "live", "last", "manifest", "expected"),
    [
        ("the manifest wins", {"a": 1}, {"a": 1}, {"a": 2}, {"a": 2}),
        ("a field nobody sets is kept", {"a": 1, "ip": "x"}, {"a": 1}, {"a": 1}, {"a": 1, "ip": "x"}),
        ("a field dropped is removed", {"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 1}, {"a": 1}),
        ("a field dropped that is gone already", {"a": 1}, {"a": 1, "b": 2}, {"a": 1}, {"a": 1}),
        ("nothing was applied before: all is kept", {"a": 1, "b": 2}, None, {"a": 3}, {"a": 3, "b": 2}),
        ("null removes", {"a": 1, "b": 2}, None, {"a": 1, "b": None}, {"a": 1}),
        ("maps merge", {"m": {"x": 1, "y": 2}}, {"m": {"x": 1}}, {"m": {"z": 3}}, {"m": {"y": 2, "z": 3}}),
        ("a map takes the place of a value", {"m": 1}, {"m": 1}, {"m": {"x": 1}}, {"m": {"x": 1}}),
        ("plain lists are replaced", {"l": [1, 2]}, {"l": [1, 2]}, {"l": [2, 3]}, {"l": [2, 3]}),
        ("a list dropped", {"l": [1]}, {"l": [1]}, {}, {}),
    ],
)
def test_three_ways(name, live, last, manifest, expected):
    assert merge(live, last, manifest) == expected, name


CONTAINERS = {
    "containers": [
        {"name": "web", "image": "web:1", "imagePullPolicy": "IfNotPresent", "env": [{"name": "A", "value": "1"}]},
        {"name": "sidecar", "image": "side:1"},
    ]
}


def test_containers_are_known_by_name():
    last = {"containers": [{"name": "web", "image": "web:1", "env": [{"name": "A", "value": "1"}]}]}
    manifest = {"containers": [{"name": "new", "image": "n:1"}, {"name": "web", "image": "web:2"}]}
    assert merge(CONTAINERS, last, manifest) == {
        "containers": [
            {"name": "new", "image": "n:1"},
            # the pull policy is live only and stays; the variables were applied and dropped
            {"name": "web", "image": "web:2", "imagePullPolicy": "IfNotPresent"},
            # someone else's
            {"name": "sidecar", "image": "side:1"},
        ]
    }


def test_a_container_dropped_is_removed():
    last = {"containers": [{"name": "web"}, {"name": "sidecar"}]}
    merged = merge(CONTAINERS, last, {"containers": [{"name": "web", "image": "web:1"}]})
    assert [c["name"] for c in merged["containers"]] == ["web"]


def test_service_ports_are_known_by_port():
    live = {"ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]}
    applied = {"ports": [{"port": 80, "targetPort": 8080}]}
    assert merge(live, applied, {"ports": [{"port": 80, "targetPort": 9090}]}) == {
        "ports": [{"port": 80, "targetPort": 9090, "protocol": "TCP"}]
    }


def test_the_same_port_for_two_protocols_is_not_mixed_up():
    """53/TCP and 53/UDP have no identity by port alone: the manifest's list is taken as it is."""
    both = {"ports": [{"port": 53, "protocol": "TCP", "name": "t"}, {"port": 53, "protocol": "UDP", "name": "u"}]}
    assert merge(copy.deepcopy(both), both, both) == both


def test_the_annotation_round_trips_and_leaves_out_what_is_not_the_manifests():
    raw = {
        "kind": "Pod",
        "metadata": {"name": "x", "annotations": {LAST_APPLIED: "old", "a": "ü"}},
        "status": {"phase": "Running"},
    }
    config = configuration(raw)
    assert config == {"kind": "Pod", "metadata": {"name": "x", "annotations": {"a": "ü"}}}
    assert from_annotation(to_annotation(config)) == config
    assert raw["metadata"]["annotations"][LAST_APPLIED] == "old"


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "3"])
def test_a_broken_annotation_counts_as_none(text):
    assert from_annotation(text) is None


def test_differences_read_as_fields():
    old = {"spec": {"replicas": 4, "x": "a", "list": [{"image": "web:1"}]}}
    new = {"spec": {"replicas": 8, "list": [{"image": "web:2"}, {"image": "b"}], "y": {}}}
    assert differences(old, new) == [
        'spec.list[0].image: "web:1" -> "web:2"',
        'spec.list[1]: (none) -> {"image": "b"}',
        "spec.replicas: 4 -> 8",
        'spec.x: "a" -> (none)',
        "spec.y: (none) -> {}",
    ]
    assert differences(old, old) == []


keys = st.sampled_from(["a", "b", "c", "containers", "ports"])
leaves = st.one_of(st.integers(0, 3), st.text("xy", max_size=2))
items = st.fixed_dictionaries({"name": st.sampled_from("pqr")}, optional={"image": leaves, "port": st.integers(1, 3)})
values = st.recursive(
    leaves, lambda inner: st.one_of(st.dictionaries(keys, inner, max_size=4), st.lists(items, max_size=3)), max_leaves=8
)
objects = st.dictionaries(keys, values, max_size=4)


@given(objects, st.none() | objects, objects)
def test_applying_again_changes_nothing(live, last, manifest):
    once = merge(live, last, manifest)
    assert merge(once, manifest, manifest) == once


@given(objects, objects)
def test_on_what_was_applied_alone_the_manifest_is_the_result(last, manifest):
    """When nobody else wrote, apply makes the object what the manifest says, by fields."""
    result = merge(last, last, manifest)
    assert set(result) == set(manifest)


@given(objects, st.none() | objects, objects)
def test_inputs_are_left_alone(live, last, manifest):
    before = copy.deepcopy((live, last, manifest))
    merge(live, last, manifest)
    assert (live, last, manifest) == before
