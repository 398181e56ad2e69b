from datetime import UTC, datetime

import msgspec
import pytest

from podlane.api import types
from podlane.api.defaults import apply_defaults, inherit, pull_policy

pytestmark = pytest.mark.unit


def controller(labels: dict[str, str], selector: dict[str, str], own: dict[str, str]) -> types.ReplicationController:
    return types.ReplicationController(
        metadata=types.ObjectMeta(name="web", labels=own),
        spec=types.ReplicationControllerSpec(
            selector=selector, template=types.PodTemplateSpec(metadata=types.ObjectMeta(labels=labels))
        ),
    )


def test_selector_and_labels_come_from_the_template() -> None:
    filled = apply_defaults(controller({"app": "web"}, {}, {}))
    assert filled.spec.selector == {"app": "web"}
    assert filled.metadata.labels == {"app": "web"}
    assert (filled.kind, filled.api_version, filled.metadata.namespace) == ("ReplicationController", "v1", "default")
    assert filled.spec.template.metadata.namespace == ""


def test_what_was_said_stays() -> None:
    filled = apply_defaults(controller({"app": "web", "v": "1"}, {"app": "web"}, {"team": "a"}), namespace="prod")
    assert filled.spec.selector == {"app": "web"}
    assert filled.metadata.labels == {"team": "a"}
    assert filled.metadata.namespace == "prod"
    assert apply_defaults(filled) == filled


def test_kinds_without_a_namespace_get_none() -> None:
    assert apply_defaults(types.Node(metadata=types.ObjectMeta(name="n"))).metadata.namespace == ""


@pytest.mark.parametrize(
    ("image", "want"),
    [
        ("web", "Always"),
        ("web:latest", "Always"),
        ("web:1", "IfNotPresent"),
        ("example.org:5000/web", "Always"),
        ("example.org:5000/team/web:1.2", "IfNotPresent"),
        ("web@sha256:0123", "IfNotPresent"),
    ],
)
def test_pull_policy_follows_the_tag(image: str, want: str) -> None:
    assert pull_policy(image) == want


def test_containers_get_requests_from_limits_and_probes_their_numbers() -> None:
    probe = types.Probe(http_get=types.HTTPGetAction(port=80, path=""), period_seconds=0, timeout_seconds=0)
    pod = types.Pod(
        spec=types.PodSpec(
            containers=(
                types.Container(
                    name="web",
                    image="web:1",
                    resources=types.ResourceRequirements(limits={"cpu": "1", "memory": "1Gi"}, requests={"cpu": "1m"}),
                    readiness_probe=probe,
                ),
            )
        )
    )
    container = apply_defaults(pod).spec.containers[0]
    assert container.resources.requests == {"cpu": "1m", "memory": "1Gi"}
    assert container.image_pull_policy == "IfNotPresent"
    assert container.readiness_probe == types.Probe(http_get=types.HTTPGetAction(port=80, path="/"))
    assert apply_defaults(apply_defaults(pod)) == apply_defaults(pod)


def test_a_target_port_is_the_port_unless_said() -> None:
    service = types.Service(
        spec=types.ServiceSpec(ports=(types.ServicePort(port=80), types.ServicePort(port=81, target_port="http")))
    )
    assert [port.target_port for port in apply_defaults(service).spec.ports] == [80, "http"]


def test_an_update_keeps_what_the_server_and_the_daemons_set() -> None:
    made = datetime(2026, 1, 1, tzinfo=UTC)
    live = types.Service(
        metadata=types.ObjectMeta(
            name="web", uid="u", resource_version="9", generation=3, creation_timestamp=made, labels={"a": "b"}
        ),
        spec=types.ServiceSpec(cluster_ip="10.96.0.7", cluster_ips=("10.96.0.7",)),
    )
    new = types.Service(metadata=types.ObjectMeta(name="web"), spec=types.ServiceSpec(selector={"app": "web"}))
    kept = inherit(live, new)
    assert kept.metadata == msgspec.structs.replace(live.metadata, labels={})
    assert kept.spec == types.ServiceSpec(selector={"app": "web"}, cluster_ip="10.96.0.7", cluster_ips=("10.96.0.7",))


def test_an_update_keeps_the_pods_node_and_status_and_the_nodes_subnet() -> None:
    live = types.Pod(spec=types.PodSpec(node_name="node1"), status=types.PodStatus(phase="Running"))
    kept = inherit(live, types.Pod(spec=types.PodSpec(hostname="a")))
    assert (kept.spec.node_name, kept.spec.hostname, kept.status.phase) == ("node1", "a", "Running")
    node = types.Node(spec=types.NodeSpec(pod_cidr="10.5.1.0/24"))
    assert inherit(node, types.Node(spec=types.NodeSpec(unschedulable=True))).spec == types.NodeSpec(
        pod_cidr="10.5.1.0/24", unschedulable=True
    )


def test_what_an_update_says_itself_is_not_replaced() -> None:
    live = types.Service(metadata=types.ObjectMeta(uid="u"), spec=types.ServiceSpec(cluster_ip="10.96.0.7"))
    new = types.Service(metadata=types.ObjectMeta(uid="other"), spec=types.ServiceSpec(cluster_ip="10.96.0.8"))
    kept = inherit(live, new)
    assert (kept.metadata.uid, kept.spec.cluster_ip) == ("other", "10.96.0.8")
