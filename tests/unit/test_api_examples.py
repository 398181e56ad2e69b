from pathlib import Path

import pytest

from podlane.api import types
from podlane.api.manifest import load
from podlane.api.selectors import selects

pytestmark = pytest.mark.unit

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_every_example_can_be_applied_as_a_directory() -> None:
    found = load([EXAMPLES])
    names = [(m.obj.kind, m.obj.metadata.name) for m in found]
    assert len(set(names)) == len(names), names
    assert {("Pod", "web-alone"), ("ReplicationController", "web"), ("Service", "web")} <= set(names)


def test_the_service_of_the_web_example_finds_its_pods_and_only_those() -> None:
    objects = [m.obj for m in load([EXAMPLES])]
    (service,) = (o for o in objects if isinstance(o, types.Service) and o.metadata.name == "web")
    (controller,) = (o for o in objects if isinstance(o, types.ReplicationController) and o.metadata.name == "web")
    (alone,) = (o for o in objects if isinstance(o, types.Pod) and o.metadata.name == "web-alone")
    template = controller.spec.template
    assert controller.spec.replicas == 4
    assert selects(service.spec.selector, template.metadata.labels)
    assert not selects(service.spec.selector, alone.metadata.labels)
    assert not selects(controller.spec.selector, alone.metadata.labels)
    (container,) = template.spec.containers
    (port,) = container.ports
    assert service.spec.ports[0].port == 80
    assert service.spec.ports[0].target_port == port.name == "http"
    assert container.image == "podlane/web:1"
    assert container.image_pull_policy == "IfNotPresent"
    assert container.readiness_probe is not None
    assert container.readiness_probe.http_get == types.HTTPGetAction(path="/healthz", port="http")
    assert container.readiness_probe.period_seconds == 1
    assert template.spec.termination_grace_period_seconds == 5


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_each_example_says_how_it_is_used(file: Path) -> None:
    assert f"podlane apply -f docs/examples/{file.name}" in file.read_text()


def test_the_examples_of_services_find_the_web_pods() -> None:
    objects = [m.obj for m in load([EXAMPLES])]
    found = {o.metadata.name: o for o in objects if isinstance(o, types.Service)}
    (controller,) = (o for o in objects if isinstance(o, types.ReplicationController))
    labels = controller.spec.template.metadata.labels
    kinds = {"web-nodeport": "NodePort", "web-loadbalancer": "LoadBalancer", "web-affinity": "ClusterIP"}
    for name, kind in kinds.items():
        service = found[name]
        assert service.spec.type == kind
        assert selects(service.spec.selector, labels)
        assert [port.target_port for port in service.spec.ports] == ["http"]
    assert found["web-loadbalancer"].spec.external_traffic_policy == "Local"
    affine = found["web-affinity"]
    assert affine.spec.session_affinity_config == types.SessionAffinityConfig(
        client_ip=types.ClientIPConfig(timeout_seconds=600)
    )
    assert affine.metadata.annotations[types.BALANCE_ANNOTATION] == "maglev"
