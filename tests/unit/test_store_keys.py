"""Keys both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.api.types import KINDS, Lease, Node, Object, Pod, Service
from podlane.errors import UsageError
from podlane.store import keys

pytestmark = pytest.mark.unit

NAMES = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=20)


def test_the_public_layout() -> None:
    assert keys.pod_key("default", "a") == "/registry/pods/default/a"
    assert keys.key_for(Service, "default", "a") == "/registry/services/specs/default/a"
    assert keys.key_for(Node, "ignored", "a") == "/registry/minions/a"
    assert keys.key_for(Lease, "kube-node-lease", "n1") == "/registry/leases/kube-node-lease/n1"
    assert keys.prefix_for(Pod) == "/registry/pods/"
    assert keys.prefix_for(Pod, "a") == "/registry/pods/a/"
    assert keys.prefix_for(Node, "a") == "/registry/minions/"
    assert keys.binding_key("n1", "default", "a") == "/podlane/bindings/n1/default/a"
    assert keys.proxy_key("n1") == "/podlane/proxies/n1"
    assert keys.pod_report_key("n1", "default", "a") == "/podlane/reports/n1/pods/default/a"
    assert keys.event_report_key("n1", "agent", "default", "a") == "/podlane/reports/n1/events/agent/default/a"
    assert keys.service_ip_key("10.96.0.1") == "/registry/ranges/serviceips/10.96.0.1"
    assert keys.service_node_port_key(30080) == "/registry/ranges/servicenodeports/30080"


@given(cls=st.sampled_from(sorted(KINDS.values(), key=lambda c: c.KIND)), namespace=NAMES, name=NAMES)
def test_keys_there_and_back(cls: type[Object], namespace: str, name: str) -> None:
    key = keys.key_for(cls, namespace, name)
    assert key.startswith(keys.prefix_for(cls, namespace))
    assert keys.parse_key(key) == keys.ObjectKey(cls, namespace if cls.NAMESPACED else "", name)


@pytest.mark.parametrize(
    "key", ["/registry/pods/a", "/registry/pods/a/b/c", "/registry/pods//b", "/registry/minions/a/b", "/other"]
)
def test_what_is_no_objects_key(key: str) -> None:
    with pytest.raises(ValueError, match="no object has the key"):
        keys.parse_key(key)


@pytest.mark.parametrize("name", ["", "a/b", "/"])
def test_a_name_never_leads_elsewhere(name: str) -> None:
    with pytest.raises(UsageError):
        keys.pod_key("default", name)
    with pytest.raises(UsageError):
        keys.binding_key(name, "default", "a")


@given(node=NAMES, component=NAMES, namespace=NAMES, name=NAMES)
def test_keys_of_reports_there_and_back(node: str, component: str, namespace: str, name: str) -> None:
    of_pod, of_event = keys.ReportKey(node, "", namespace, name), keys.ReportKey(node, component, namespace, name)
    assert keys.parse_report_key(keys.pod_report_key(node, namespace, name)) == of_pod
    assert keys.parse_report_key(keys.event_report_key(node, component, namespace, name)) == of_event
    assert keys.pod_report_key(node, namespace, name).startswith(keys.pod_reports_prefix(node))


@pytest.mark.parametrize("key", ["n1", "n1/pods/a", "n1/pods/a/b/c", "n1/pods//b", "n1/events/a/b", "n1/other/a/b"])
def test_no_keys_of_reports(key: str) -> None:
    with pytest.raises(ValueError, match="no report has the key"):
        keys.parse_report_key(f"/podlane/reports/{key}")
