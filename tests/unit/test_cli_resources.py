from __future__ import annotations

import pytest

from podlane.api.types import Lease, Node, ReplicationController
from podlane.cli.resources import full_name, parse, parse_for
from podlane.errors import UsageError

pytestmark = pytest.mark.unit


def text(*arguments: str) -> str:
    return " ".join(f"{t.resource.plural}[{','.join(t.names)}]" for t in parse(arguments))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pods"], "pods[]"),
        (["po", "web-1", "web-2", "web-1"], "pods[web-1,web-2]"),
        (["rc/web"], "replicationcontrollers[web]"),
        (["pod/a", "svc/b", "pods/c"], "pods[a,c] services[b]"),
        (["pods,rc,svc"], "pods[] replicationcontrollers[] services[]"),
        (["rc,services", "web"], "replicationcontrollers[web] services[web]"),
        (["all"], "pods[] replicationcontrollers[] services[]"),
        (["pods,all"], "pods[] replicationcontrollers[] services[]"),
        (["ReplicationController/web"], "replicationcontrollers[web]"),
        (["no"], "nodes[]"),
        (["ns"], "namespaces[]"),
        (["ev"], "events[]"),
        (["endpointslices.discovery.k8s.io"], "endpointslices[]"),
        (["lease.coordination.k8s.io/node1"], "leases[node1]"),
    ],
)
def test_what_arguments_mean(arguments, expected):
    assert text(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "resource type: missing"),
        (["podz"], 'resource type "podz": not known; did you mean "pod'),
        (["deployments"], 'resource type "deployments": not known; known are pods, '),
        (["pods.apps"], 'resource type "pods.apps": not known'),
        (["pods", "svc/web"], 'argument "svc/web": TYPE/NAME cannot follow a separate TYPE "pods"'),
        (["pod/a", "b"], 'argument "b": expected TYPE/NAME'),
        (["pod/"], 'argument "pod/": expected TYPE/NAME'),
        (["/a"], 'argument "/a": expected TYPE/NAME'),
        (["pod/a/b"], 'argument "pod/a/b": expected TYPE/NAME'),
        (["pods,,rc"], 'resource types "pods,,rc": an empty name between commas'),
        (["pods", ""], "argument: expected a name, got an empty one"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(UsageError) as caught:
        parse(arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("arguments", [["web"], ["rc/web"], ["rc", "web"], ["replicationcontrollers/web"]])
def test_one_kind(arguments):
    assert parse_for(ReplicationController, arguments) == ("web",)


def test_one_kind_several_names():
    assert parse_for(Node, ["node1", "node2"]) == ("node1", "node2")
    # a node may be called like a kind, if it is the only word
    assert parse_for(Node, ["pods"]) == ("pods",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["svc/web"], "service: expected a replicationcontroller"), ([""], "replicationcontroller: a name is missing")],
)
def test_another_kind_is_refused(arguments, message):
    with pytest.raises(UsageError) as caught:
        parse_for(ReplicationController, arguments)
    assert str(caught.value) == message


def test_names_carry_their_group():
    from podlane.api.types import ObjectMeta

    assert full_name(Lease(metadata=ObjectMeta(name="node1"))) == "lease.coordination.k8s.io/node1"
