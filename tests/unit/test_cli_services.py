"""Services by the command line: applied as Kubernetes' manifests, shown, changed."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from cli_shell import Shell, lines
from msgspec.structs import replace

from podlane.api.types import LoadBalancerIngress, LoadBalancerStatus, Service, ServiceStatus
from podlane.store import keys

pytestmark = pytest.mark.unit

BOTH = "10.96.0.0/24,fd00:10:96::/120"


@pytest.fixture
def shell() -> Shell:
    made = Shell()
    config = replace(made.registry.cluster_config(), service_cidr=BOTH)
    made.registry.init_cluster(config, overwrite=True)
    return made


def manifest(**spec: Any) -> str:
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": ports, **spec},
        }
    )


def apply(shell: Shell, **spec: Any) -> str:
    return shell.ok("apply", "-f", "-", stdin=manifest(**spec))


def stored(shell: Shell) -> Service:
    return shell.registry.get(Service, "default", "web")


DNS = [{"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 53}, {"name": "metrics", "port": 9153}]


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "NodePort"},
        {"type": "NodePort", "ports": DNS},
        {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerIP": "192.0.2.9"},
        {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False},
        {"ipFamilyPolicy": "PreferDualStack"},
        {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]},
        {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]},
        {"ipFamilyPolicy": "PreferDualStack", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]},
        {"ipFamilyPolicy": "PreferDualStack", "clusterIP": "None", "ipFamilies": ["IPv4"]},
        {"clusterIP": "None"},
        {"clusterIP": "None", "selector": {}},
        {"type": "ExternalName", "externalName": "db.example.com", "ports": []},
        {"sessionAffinity": "ClientIP"},
        {"externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"},
    ],
)
def test_applied_again_nothing_changes(shell: Shell, spec: dict[str, Any]) -> None:
    assert apply(shell, **spec) == "service/web created\n"
    before = shell.revision()
    assert apply(shell, **spec) == "service/web unchanged\n"
    assert shell.revision() == before
    # and what `get` prints is a manifest of the same
    printed = shell.ok("get", "svc/web", "-o", "yaml")
    live = stored(shell)
    shell.ok("apply", "-f", "-", stdin=printed)
    assert (stored(shell).spec, stored(shell).status) == (live.spec, live.status)


def test_allocated_values_survive_every_other_change(shell: Shell) -> None:
    apply(shell, type="LoadBalancer", externalTrafficPolicy="Local", ipFamilyPolicy="PreferDualStack")
    first = stored(shell).spec
    apply(
        shell,
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        ipFamilyPolicy="PreferDualStack",
        ports=[{"name": "http", "port": 8080}],
        sessionAffinity="ClientIP",
    )
    second = stored(shell).spec
    assert second.ports[0].node_port == first.ports[0].node_port != 0
    assert second.health_check_node_port == first.health_check_node_port != 0
    assert second.cluster_ips == first.cluster_ips
    assert second.session_affinity_config is not None
    apply(shell, ipFamilyPolicy="SingleStack")
    third = stored(shell).spec
    assert (third.ports[0].node_port, third.health_check_node_port, third.session_affinity_config) == (0, 0, None)
    assert third.cluster_ips == first.cluster_ips[:1]
    assert shell.store.list(keys.SERVICE_NODE_PORTS).items == ()


def test_the_second_family_is_taken_away_by_the_policy_only(shell: Shell) -> None:
    both = {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"]}
    apply(shell, **both)
    errors = shell.fails("apply", "-f", "-", stdin=manifest(**{**both, "ipFamilies": ["IPv4"]}), code=2)
    assert 'spec.ipFamilyPolicy: expected "SingleStack", for ipFamilies loses IPv6, got "PreferDualStack"' in errors
    apply(shell, ipFamilyPolicy="SingleStack", ipFamilies=["IPv4"])
    assert stored(shell).spec.ip_families == ("IPv4",)
    assert len(stored(shell).spec.cluster_ips) == 1


def test_a_status_is_not_lost(shell: Shell) -> None:
    apply(shell, type="LoadBalancer")
    theirs = ServiceStatus(load_balancer=LoadBalancerStatus(ingress=(LoadBalancerIngress(ip="198.51.100.1"),)))
    shell.registry.update(replace(stored(shell), status=theirs))
    apply(shell, type="LoadBalancer", loadBalancerIP="192.0.2.9", selector={"app": "other"})
    assert stored(shell).status == theirs
    assert "198.51.100.1" in shell.ok("get", "svc/web")


def test_what_is_not_to_be_had_is_refused_by_its_field(shell: Shell) -> None:
    apply(shell, type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    other = manifest(type="NodePort", ports=[{"port": 80, "nodePort": 30080}]).replace("name: web", "name: other")
    errors = shell.fails("apply", "-f", "-", stdin=other)
    assert lines(errors) == ["error: service/other: spec.ports[0].nodePort: 30080 is allocated already"]
    before = shell.revision()
    errors = shell.fails("apply", "-f", "-", stdin=manifest(clusterIP="10.96.0.3"), code=2)
    assert "stdin Service/web: spec.clusterIP: immutable: it is" in errors
    assert shell.revision() == before


def test_dry_run_shows_the_change(shell: Shell) -> None:
    apply(shell)
    shown = shell.ok("apply", "-f", "-", "--dry-run", stdin=manifest(type="NodePort"))
    assert lines(shown) == [
        "service/web configured (dry run)",
        '  spec.externalTrafficPolicy: (none) -> "Cluster"',
        '  spec.type: "ClusterIP" -> "NodePort"',
    ]


def test_how_it_is_listed(shell: Shell) -> None:
    apply(shell, type="LoadBalancer", loadBalancerIP="192.0.2.9", ports=[{"port": 80, "nodePort": 31234}])
    row = lines(shell.ok("get", "svc"))[1].split()
    assert row[:5] == ["web", "LoadBalancer", stored(shell).spec.cluster_ip, "192.0.2.9", "80:31234/TCP"]
    shown = shell.ok("describe", "svc/web")
    for line in ("LoadBalancer Ingress:     192.0.2.9 (VIP)", "NodePort:                 <unset>  31234/TCP"):
        assert line in shown
