"""Every rule: one change to a valid object, and the errors it must give, whole."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from podlane.api import types
from podlane.api.codec import to_builtins
from podlane.api.defaults import apply_defaults
from podlane.api.validation import validate, validate_update

pytestmark = pytest.mark.unit

LABEL = "lower case letters, digits and '-', beginning and ending with a letter or digit"
KEY = "letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"

CONTAINER = {"name": "web", "image": "web:1"}
POD: dict[str, Any] = {
    "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
    "spec": {"containers": [CONTAINER]},
}
RC: dict[str, Any] = {
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "selector": {"app": "web"},
        "template": {"metadata": {"labels": {"app": "web", "v": "1"}}, "spec": {"containers": [CONTAINER]}},
    },
}
SERVICE: dict[str, Any] = {
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {"ports": [{"port": 80}], "selector": {"app": "web"}},
}
SLICE: dict[str, Any] = {
    "metadata": {"name": "web-1", "namespace": "default"},
    "addressType": "IPv4",
    "endpoints": [{"addresses": ["10.5.1.2"]}],
    "ports": [{"port": 80}],
}
NODE: dict[str, Any] = {"metadata": {"name": "node1"}}
NAMESPACE: dict[str, Any] = {"metadata": {"name": "prod"}}
EVENT: dict[str, Any] = {
    "metadata": {"name": "web.1", "namespace": "default"},
    "involvedObject": {"kind": "Pod", "namespace": "default", "name": "web"},
}
LEASE: dict[str, Any] = {"metadata": {"name": "node1", "namespace": "kube-node-lease"}}


def changed(base: Any, path: str, value: Any) -> Any:
    """A copy of plain values with one field set: `spec.containers.0.name`."""
    key, _, rest = path.partition(".")
    if isinstance(base, list):
        copy: Any = list(base)
        copy[int(key)] = changed(base[int(key)], rest, value) if rest else value
        return copy
    copy = dict(base or {})
    copy[key] = changed(copy.get(key), rest, value) if rest else value
    return copy


def errors_of(cls: type[types.Object], base: dict[str, Any], path: str, value: Any) -> list[str]:
    obj = apply_defaults(msgspec.convert(changed(base, path, value) if path else base, cls))
    return [str(error) for error in validate(obj)]


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        (types.Pod, POD),
        (types.ReplicationController, RC),
        (types.Service, SERVICE),
        (types.EndpointSlice, SLICE),
        (types.Node, NODE),
        (types.Namespace, NAMESPACE),
        (types.Event, EVENT),
        (types.Lease, LEASE),
    ],
)
def test_the_objects_the_tests_start_from_are_valid(cls: type[types.Object], base: dict[str, Any]) -> None:
    assert errors_of(cls, base, "", None) == []


METADATA_RULES = [
    (
        "metadata.finalizers",
        ["mine"],
        "metadata.finalizers[0]: expected kubernetes, orphan, foregroundDeletion or a name with a domain such as "
        'example.com/x, got "mine"',
    ),
    (
        "metadata.finalizers",
        ["orphan", "example.com/x", "foregroundDeletion"],
        "metadata.finalizers: expected orphan or foregroundDeletion, got both",
    ),
    ("metadata.name", "", "metadata.name: required: a name or a generateName"),
    ("metadata.name", "Web", f"metadata.name: expected a DNS name (labels of {LABEL}, joined by '.'), got \"Web\""),
    ("metadata.name", "a..b", f"metadata.name: expected a DNS name (labels of {LABEL}, joined by '.'), got \"a..b\""),
    ("metadata.name", "web\n", f"metadata.name: expected a DNS name (labels of {LABEL}, joined by '.'), got \"web\n\""),
    ("metadata.name", "a" * 254, "metadata.name: expected at most 253 characters, got 254"),
    (
        "metadata.generateName",
        "_",
        f"metadata.generateName: expected a DNS name (labels of {LABEL}, joined by '.'), got \"_\"",
    ),
    ("metadata.namespace", "a.b", f'metadata.namespace: expected a DNS label ({LABEL}), got "a.b"'),
    ("metadata.namespace", "a" * 64, "metadata.namespace: expected at most 63 characters, got 64"),
    ("metadata.generation", -1, "metadata.generation: expected an integer ≥ 0, got -1"),
    ("metadata.labels", {"a b": "c"}, f'metadata.labels[a b]: expected a key of {KEY}, got "a b"'),
    ("metadata.labels", {"": "c"}, f'metadata.labels[]: expected a key of {KEY}, got ""'),
    (
        "metadata.labels",
        {"A_/x": "c"},
        'metadata.labels[A_/x]: expected a DNS name before the "/" of the key, got "A_/x"',
    ),
    ("metadata.labels", {"/x": "c"}, 'metadata.labels[/x]: expected a DNS name before the "/" of the key, got "/x"'),
    (
        "metadata.labels",
        {"k" * 64: "c"},
        f"metadata.labels[{'k' * 64}]: expected a key of at most 63 characters, got 64",
    ),
    ("metadata.labels", {"a": "c d"}, f'metadata.labels[a]: expected a value of {KEY}, got "c d"'),
    ("metadata.labels", {"a": "v" * 64}, "metadata.labels[a]: expected a value of at most 63 characters, got 64"),
    ("metadata.annotations", {"a b": ""}, f'metadata.annotations[a b]: expected a key of {KEY}, got "a b"'),
    (
        "metadata.annotations",
        {"a": "x" * 262144},
        "metadata.annotations: expected at most 262144 bytes in all, got 262145",
    ),
    (
        "metadata.annotations",
        {"ab": "é" * 131072},
        "metadata.annotations: expected at most 262144 bytes in all, got 262146",
    ),
    (
        "metadata.ownerReferences",
        [{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": ""}],
        "metadata.ownerReferences[0].uid: required",
    ),
    (
        "metadata.ownerReferences",
        [{"apiVersion": "v1", "kind": "Pod", "name": n, "uid": n, "controller": True} for n in "ab"],
        "metadata.ownerReferences: expected at most one owner with controller: true, got Pod/a, Pod/b",
    ),
]


@pytest.mark.parametrize(("path", "value", "want"), METADATA_RULES)
def test_metadata(path: str, value: Any, want: str) -> None:
    assert errors_of(types.Pod, POD, path, value) == [want]


@pytest.mark.parametrize(
    ("cls", "base", "name", "want"),
    [
        (types.Service, SERVICE, "9web", "beginning with a letter and ending with a letter or digit"),
        (types.Service, SERVICE, "a.b", "expected a DNS label"),
        (types.Service, SERVICE, "a" * 64, "expected at most 63 characters"),
        (types.Namespace, NAMESPACE, "a.b", "expected a DNS label"),
        (types.Node, NODE, "node_1", "expected a DNS name"),
    ],
)
def test_names_by_kind(cls: type[types.Object], base: dict[str, Any], name: str, want: str) -> None:
    (error,) = errors_of(cls, base, "metadata.name", name)
    assert error.startswith("metadata.name: ")
    assert want in error


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata", {"namespace": "default", "generateName": "web-"}),
        ("metadata.name", "a" * 253),
        ("metadata.name", "0.example.org"),
        ("metadata.labels", {"app.kubernetes.io/Name_1": "A.b_c-1", "empty": ""}),
        ("metadata.annotations", {"Example.ORG/key": "any\ntext"}),
        ("metadata.annotations", {"a": "x" * 262143}),
    ],
)
def test_metadata_within_the_limits(path: str, value: Any) -> None:
    assert errors_of(types.Pod, POD, path, value) == []


def test_namespaces_are_for_the_kinds_that_have_them() -> None:
    node = types.Node(metadata=types.ObjectMeta(name="n", namespace="default"))
    assert [str(e) for e in validate(node)] == ['metadata.namespace: a Node has no namespace, got "default"']
    pod = msgspec.convert(changed(POD, "metadata.namespace", ""), types.Pod)
    assert [str(e) for e in validate(pod)] == ["metadata.namespace: required"]


C = "spec.containers[0]"
PORT_RANGE = "expected a port number 1 to 65535"
POD_RULES = [
    ("spec.containers", [], ["spec.containers: required: at least one container"]),
    ("spec.containers.0.name", "", [f"{C}.name: required"]),
    ("spec.containers.0.name", "a.b", [f'{C}.name: expected a DNS label ({LABEL}), got "a.b"']),
    (
        "spec.containers",
        [CONTAINER, CONTAINER],
        ['spec.containers[1].name: duplicate name "web", also of containers[0]'],
    ),
    ("spec.containers.0.image", "", [f"{C}.image: required"]),
    ("spec.containers.0.image", "web:1 ", [f'{C}.image: expected an image without spaces around it, got "web:1 "']),
    ("spec.containers.0.ports", [{"containerPort": 0}], [f"{C}.ports[0].containerPort: {PORT_RANGE}, got 0"]),
    ("spec.containers.0.ports", [{"containerPort": 65536}], [f"{C}.ports[0].containerPort: {PORT_RANGE}, got 65536"]),
    (
        "spec.containers.0.ports",
        [{"containerPort": 1, "name": "a-very-long-name"}],
        [f'{C}.ports[0].name: expected a port name of at most 15 characters, got "a-very-long-name" (16)'],
    ),
    (
        "spec.containers.0.ports",
        [{"containerPort": 1, "name": "Http"}],
        [f"{C}.ports[0].name: expected a port name of lower case letters, digits and '-', got \"Http\""],
    ),
    (
        "spec.containers.0.ports",
        [{"containerPort": 1, "name": "80"}],
        [f'{C}.ports[0].name: expected a port name with at least one letter, got "80"'],
    ),
    (
        "spec.containers.0.ports",
        [{"containerPort": 1, "name": "a--b"}],
        [f"{C}.ports[0].name: expected a port name with no '-' at either end and no two together, got \"a--b\""],
    ),
    (
        "spec.containers.0.ports",
        [{"containerPort": 1, "name": "a-"}],
        [f"{C}.ports[0].name: expected a port name with no '-' at either end and no two together, got \"a-\""],
    ),
    (
        "spec.containers.0.ports",
        [{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}],
        [f'{C}.ports[1].name: duplicate name "a", also of ports[0]'],
    ),
    ("spec.containers.0.env", [{"name": ""}], [f"{C}.env[0].name: required"]),
    (
        "spec.containers.0.env",
        [{"name": "A=B"}],
        [f"{C}.env[0].name: expected a name of printable ASCII characters without '=', got \"A=B\""],
    ),
    (
        "spec.containers.0.resources",
        {"requests": {"cpu": "-1"}},
        [f"{C}.resources.requests[cpu]: expected a quantity ≥ 0, got -1"],
    ),
    (
        "spec.containers.0.resources",
        {"limits": {"memory": "64MB"}},
        [f'{C}.resources.limits[memory]: expected a quantity such as "250m", "1.5" or "64Mi", got "64MB"'],
    ),
    (
        "spec.containers.0.resources",
        {"requests": {"memory": "1Gi"}, "limits": {"memory": "1G"}},
        [f"{C}.resources.requests[memory]: expected at most the limit 1G, got 1Gi"],
    ),
    (
        "spec.containers.0.resources",
        {"limits": {"ephemeral-storage": "1Gi"}},
        [
            f"{C}.resources.limits[ephemeral-storage]: known to Kubernetes but not supported by Podlane yet"
            " (supported: cpu, memory)"
        ],
    ),
    (
        "spec.containers.0.resources",
        {"requests": {"gpus": "1"}},
        [f"{C}.resources.requests[gpus]: unknown resource (supported: cpu, memory)"],
    ),
    (
        "spec.nodeName",
        "Node1",
        [f"spec.nodeName: expected a DNS name (labels of {LABEL}, joined by '.'), got \"Node1\""],
    ),
    ("spec.nodeSelector", {"a": "b c"}, [f'spec.nodeSelector[a]: expected a value of {KEY}, got "b c"']),
    ("spec.hostname", "a.b", [f'spec.hostname: expected a DNS label ({LABEL}), got "a.b"']),
    (
        "spec.terminationGracePeriodSeconds",
        -1,
        ["spec.terminationGracePeriodSeconds: expected an integer ≥ 0, got -1"],
    ),
]


@pytest.mark.parametrize(("path", "value", "want"), POD_RULES)
def test_pods(path: str, value: Any, want: list[str]) -> None:
    assert errors_of(types.Pod, POD, path, value) == want


@pytest.mark.parametrize(("path", "value", "want"), POD_RULES)
def test_templates_obey_the_rules_of_pods(path: str, value: Any, want: list[str]) -> None:
    assert errors_of(types.ReplicationController, RC, f"spec.template.{path}", value) == [
        f"spec.template.{error}" for error in want
    ]


P = f"{C}.readinessProbe"
PROBE = {"tcpSocket": {"port": 80}}


@pytest.mark.parametrize(
    ("probe", "want"),
    [
        ({}, [f"{P}: expected exactly one of httpGet, tcpSocket, exec and grpc, got none"]),
        (
            {**PROBE, "exec": {"command": ["true"]}},
            [f"{P}: expected exactly one of httpGet, tcpSocket, exec and grpc, got tcpSocket and exec"],
        ),
        ({**PROBE, "initialDelaySeconds": -1}, [f"{P}.initialDelaySeconds: expected an integer ≥ 0, got -1"]),
        ({**PROBE, "timeoutSeconds": -1}, [f"{P}.timeoutSeconds: expected an integer ≥ 1, got -1"]),
        ({**PROBE, "periodSeconds": -1}, [f"{P}.periodSeconds: expected an integer ≥ 1, got -1"]),
        ({**PROBE, "successThreshold": -1}, [f"{P}.successThreshold: expected an integer ≥ 1, got -1"]),
        (
            {**PROBE, "failureThreshold": 2**31},
            [f"{P}.failureThreshold: expected an integer ≤ 2147483647, got 2147483648"],
        ),
        ({"tcpSocket": {"port": 0}}, [f"{P}.tcpSocket.port: {PORT_RANGE}, got 0"]),
        (
            {"tcpSocket": {"port": "80"}},
            [f'{P}.tcpSocket.port: expected a port name with at least one letter, got "80"'],
        ),
        ({"httpGet": {"port": 70000}}, [f"{P}.httpGet.port: {PORT_RANGE}, got 70000"]),
        (
            {"httpGet": {"port": 80, "httpHeaders": [{"name": "X Y"}]}},
            [f"{P}.httpGet.httpHeaders[0].name: expected an HTTP header name of letters, digits and '-', got \"X Y\""],
        ),
        ({"exec": {}}, [f"{P}.exec.command: required"]),
        ({"httpGet": {"port": "http"}, "periodSeconds": 0, "timeoutSeconds": 0}, []),
    ],
)
def test_probes(probe: dict[str, Any], want: list[str]) -> None:
    assert errors_of(types.Pod, POD, "spec.containers.0.readinessProbe", probe) == want


@pytest.mark.parametrize(
    ("path", "value", "want"),
    [
        ("spec.replicas", -1, ["spec.replicas: expected an integer ≥ 0, got -1"]),
        ("spec.replicas", 0, []),
        ("spec.minReadySeconds", -1, ["spec.minReadySeconds: expected an integer ≥ 0, got -1"]),
        (
            "spec.selector",
            {"app": "web", "v": "2", "w": "x"},
            ["spec.template.metadata.labels: expected what the selector wants (v=2,w=x), got app=web,v=1"],
        ),
        (
            "spec.template.metadata",
            {},
            ["spec.template.metadata.labels: expected what the selector wants (app=web), got no labels"],
        ),
        ("spec.template.metadata.annotations", {"a b": ""}, None),
        (
            "spec.template.spec.restartPolicy",
            "Never",
            ['spec.template.spec.restartPolicy: expected "Always" in a template, got "Never"'],
        ),
    ],
)
def test_replication_controllers(path: str, value: Any, want: list[str] | None) -> None:
    if want is None:
        want = [f'spec.template.metadata.annotations[a b]: expected a key of {KEY}, got "a b"']
    assert errors_of(types.ReplicationController, RC, path, value) == want


def test_a_controller_without_any_label_has_no_selector() -> None:
    spec = {"template": {"spec": {"containers": [CONTAINER]}}}
    assert errors_of(types.ReplicationController, RC, "spec", spec) == [
        "spec.selector: required: a selector, or labels in the template to make one from"
    ]


@pytest.mark.parametrize(
    ("path", "value", "want"),
    [
        ("spec.ports", [], ["spec.ports: required: at least one port, unless clusterIP is None"]),
        ("spec", {"clusterIP": "None"}, []),
        ("spec.ports.0.port", 0, [f"spec.ports[0].port: {PORT_RANGE}, got 0"]),
        ("spec.ports.0.targetPort", 65536, [f"spec.ports[0].targetPort: {PORT_RANGE}, got 65536"]),
        (
            "spec.ports.0.targetPort",
            "80",
            ['spec.ports[0].targetPort: expected a port name with at least one letter, got "80"'],
        ),
        ("spec.ports.0.name", "a.b", [f'spec.ports[0].name: expected a DNS label ({LABEL}), got "a.b"']),
        (
            "spec.ports",
            [{"port": 80}, {"port": 81, "name": "b"}],
            ["spec.ports[0].name: required where a service has several ports"],
        ),
        (
            "spec.ports",
            [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}],
            ['spec.ports[1].name: duplicate name "a", also of ports[0]'],
        ),
        (
            "spec.ports",
            [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}],
            ["spec.ports[1].port: duplicate port 80/TCP, also ports[0]"],
        ),
        ("spec.ports", [{"port": 53, "name": "a"}, {"port": 53, "name": "b", "protocol": "UDP"}], []),
        ("spec.selector", {"a": "b c"}, [f'spec.selector[a]: expected a value of {KEY}, got "b c"']),
        (
            "spec.clusterIP",
            "10.96.0.300",
            ['spec.clusterIP: expected an IP address, "None" or nothing, got "10.96.0.300"'],
        ),
        ("spec.clusterIP", "fd00::1", []),
        ("spec.clusterIP", "10.96.0.10", []),
        (
            "spec.clusterIPs",
            ["10.96.0.10"],
            ['spec.clusterIPs[0]: expected the same as clusterIP, "", got "10.96.0.10"'],
        ),
    ],
)
def test_services(path: str, value: Any, want: list[str]) -> None:
    assert errors_of(types.Service, SERVICE, path, value) == want


E = "endpoints[0].addresses"


@pytest.mark.parametrize(
    ("path", "value", "want"),
    [
        ("endpoints.0.addresses", [], [f"{E}: expected 1 to 100 addresses, got 0"]),
        ("endpoints.0.addresses", ["web"], [f'{E}[0]: expected an IPv4 address, got "web"']),
        ("endpoints.0.addresses", ["fd00::1"], [f'{E}[0]: expected an IPv4 address, got "fd00::1"']),
        (
            "endpoints.0.addresses",
            ["127.0.0.1"],
            [f"{E}[0]: expected an address that can be reached from elsewhere, got 127.0.0.1 (loopback)"],
        ),
        (
            "endpoints.0.addresses",
            ["10.5.1.2", "169.254.1.1"],
            [f"{E}[1]: expected an address that can be reached from elsewhere, got 169.254.1.1 (link-local)"],
        ),
        (
            "endpoints.0.addresses",
            ["0.0.0.0"],
            [f"{E}[0]: expected an address that can be reached from elsewhere, got 0.0.0.0 (unspecified)"],
        ),
        (
            "endpoints.0.addresses",
            ["224.0.0.1"],
            [f"{E}[0]: expected an address that can be reached from elsewhere, got 224.0.0.1 (multicast)"],
        ),
        (
            "endpoints",
            [{"addresses": ["10.5.1.2"]}] * 1001,
            ["endpoints: expected at most 1000 endpoints, got 1001"],
        ),
        ("endpoints.0.nodeName", "N", None),
        ("ports", [{"port": 0}], [f"ports[0].port: {PORT_RANGE}, got 0"]),
        ("ports", [{"port": 1, "name": "A"}], [f'ports[0].name: expected a DNS label ({LABEL}), got "A"']),
        ("ports", [{"port": 1}, {"port": 2}], ['ports[1].name: duplicate name "", also of ports[0]']),
    ],
)
def test_endpoint_slices(path: str, value: Any, want: list[str] | None) -> None:
    if want is None:
        want = [f"endpoints[0].nodeName: expected a DNS name (labels of {LABEL}, joined by '.'), got \"N\""]
    assert errors_of(types.EndpointSlice, SLICE, path, value) == want


@pytest.mark.parametrize(
    ("cls", "base", "path", "value", "want"),
    [
        (
            types.Node,
            NODE,
            "spec.podCIDR",
            "10.5.1.0",
            [],
        ),
        (
            types.Node,
            NODE,
            "spec.podCIDR",
            "10.5.1.1/24",
            ['spec.podCIDR: expected a network such as "10.5.34.0/24", got "10.5.1.1/24"'],
        ),
        (
            types.Node,
            NODE,
            "spec.taints",
            [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule", "value": "b"}],
            ["spec.taints[1]: duplicate key and effect, also of taints[0]"],
        ),
        (
            types.Node,
            NODE,
            "spec.taints",
            [{"key": "a b", "effect": "NoExecute", "value": "b"}, {"key": "a", "effect": "NoExecute"}],
            [f'spec.taints[0].key: expected a key of {KEY}, got "a b"'],
        ),
        (
            types.ReplicationController,
            RC,
            "spec.template.spec.activeDeadlineSeconds",
            9,
            ["spec.template.spec.activeDeadlineSeconds: not in a template of pods that are replaced"],
        ),
        (
            types.Node,
            NODE,
            "status.capacity",
            {"cpu": "-2"},
            ["status.capacity[cpu]: expected a quantity ≥ 0, got -2"],
        ),
        (
            types.Node,
            NODE,
            "status.allocatable",
            {"memory": "x"},
            ['status.allocatable[memory]: expected a quantity such as "250m", "1.5" or "64Mi", got "x"'],
        ),
        (types.Event, EVENT, "count", -1, ["count: expected an integer ≥ 0, got -1"]),
        (
            types.Event,
            EVENT,
            "involvedObject.namespace",
            "prod",
            ['involvedObject.namespace: expected the event\'s own namespace "default", got "prod"'],
        ),
        (
            types.Lease,
            LEASE,
            "spec.leaseDurationSeconds",
            -1,
            ["spec.leaseDurationSeconds: expected an integer ≥ 0, got -1"],
        ),
    ],
)
def test_other_kinds(cls: type[types.Object], base: dict[str, Any], path: str, value: Any, want: list[str]) -> None:
    assert errors_of(cls, base, path, value) == want


def test_all_errors_come_at_once_and_below_the_path_given() -> None:
    obj = msgspec.convert(
        changed(changed(RC, "metadata.name", "Web"), "spec.replicas", -1), types.ReplicationController
    )
    assert [error.field for error in validate(obj, "items[3]")] == [
        "items[3].metadata.name",
        "items[3].spec.replicas",
    ]


# --- updates ---------------------------------------------------------------------------

ONLY_IMAGE = (
    "immutable: of a pod's spec only containers[*].image, initContainers[*].image, activeDeadlineSeconds and "
    "tolerations may change; delete the pod and create it anew"
)


def update_errors(cls: type[types.Object], base: dict[str, Any], path: str, value: Any) -> list[str]:
    old = apply_defaults(msgspec.convert(base, cls))
    new = msgspec.convert(changed(to_builtins(old), path, value), cls)
    return [str(error) for error in validate_update(old, new)]


@pytest.mark.parametrize(
    ("cls", "base", "path", "value", "want"),
    [
        (types.Pod, POD, "spec.containers.0.image", "web:2", []),
        (types.Pod, POD, "metadata.labels", {"app": "other"}, []),
        (types.Pod, POD, "status.phase", "Running", []),
        (types.Pod, POD, "spec.containers.0.args", ["-v"], [f"{C}.args: {ONLY_IMAGE}"]),
        (types.Pod, POD, "spec.containers.0.name", "b", [f"{C}.name: {ONLY_IMAGE}"]),
        (types.Pod, POD, "spec.nodeSelector", {"a": "b"}, [f"spec.nodeSelector[a]: {ONLY_IMAGE}"]),
        (types.Pod, POD, "spec.nodeName", "node1", [f"spec.nodeName: {ONLY_IMAGE}"]),
        (
            types.Pod,
            POD,
            "spec.terminationGracePeriodSeconds",
            1,
            [f"spec.terminationGracePeriodSeconds: {ONLY_IMAGE}"],
        ),
        (
            types.Pod,
            POD,
            "spec.containers",
            [CONTAINER, {**CONTAINER, "name": "b"}],
            ["spec.containers: immutable: a pod keeps its number of containers, 1, got 2"],
        ),
        (types.ReplicationController, RC, "spec.replicas", 7, []),
        (types.ReplicationController, RC, "spec.template.spec.containers.0.image", "web:2", []),
        (
            types.Service,
            changed(SERVICE, "spec.clusterIP", "10.96.0.7"),
            "spec.clusterIP",
            "10.96.0.8",
            ['spec.clusterIP: immutable: it is "10.96.0.7", got "10.96.0.8"'],
        ),
        (types.Service, SERVICE, "spec.clusterIP", "10.96.0.8", []),
        (types.Service, SERVICE, "spec.ports", [{"port": 81}], []),
        (types.EndpointSlice, SLICE, "addressType", "IPv6", ['addressType: immutable: it is "IPv4", got "IPv6"']),
        (
            types.Node,
            changed(NODE, "spec.podCIDR", "10.5.1.0/24"),
            "spec.podCIDR",
            "10.5.2.0/24",
            ['spec.podCIDR: immutable: it is "10.5.1.0/24", got "10.5.2.0/24"'],
        ),
        (types.Node, NODE, "spec.unschedulable", True, []),
        (types.Pod, POD, "metadata.name", "b", ['metadata.name: immutable: it is "web", got "b"']),
        (types.Pod, POD, "metadata.namespace", "b", ['metadata.namespace: immutable: it is "default", got "b"']),
        (types.Pod, POD, "metadata.uid", "b", ['metadata.uid: immutable: it is "", got "b"']),
    ],
)
def test_updates(cls: type[types.Object], base: dict[str, Any], path: str, value: Any, want: list[str]) -> None:
    assert update_errors(cls, base, path, value) == want


def test_an_update_cannot_set_times_or_change_the_kind() -> None:
    pod = msgspec.convert(POD, types.Pod)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    dying = msgspec.structs.replace(pod, metadata=msgspec.structs.replace(pod.metadata, deletion_timestamp=moment))
    assert [str(e) for e in validate_update(pod, dying)] == [
        "metadata.deletionTimestamp: immutable: it is nothing, got 2026-01-01 00:00:00+00:00"
    ]
    assert [str(e) for e in validate_update(pod, types.Node())] == ["kind: immutable: it is Pod, got Node"]
