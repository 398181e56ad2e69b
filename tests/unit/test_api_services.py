"""The rules of services beyond ClusterIP, word for word; what they default to."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest

from podlane.api import types
from podlane.api.codec import to_builtins
from podlane.api.defaults import apply_defaults
from podlane.api.manifest import InvalidManifest, load
from podlane.api.ranges import node_ports, parse_networks, parse_ports, service_networks
from podlane.api.validation import validate
from podlane.errors import Invalid

pytestmark = pytest.mark.unit

DUAL = {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"], "ipFamilyPolicy": "PreferDualStack"}
NODE_PORT = {"type": "NodePort"}
BALANCER = {"type": "LoadBalancer"}
LOCAL = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
NAMED = {"type": "ExternalName", "externalName": "db.example.com", "ports": []}


def service(annotations: dict[str, str] | None = None, **spec: Any) -> types.Service:
    """A service as it is after defaults; `spec` as in a manifest."""
    plain = {
        "metadata": {"name": "web", "namespace": "default", "annotations": annotations or {}},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "web"}, **spec},
    }
    return apply_defaults(msgspec.convert(plain, types.Service))


def wrong(annotations: dict[str, str] | None = None, **spec: Any) -> list[str]:
    return [str(error) for error in validate(service(annotations, **spec))]


@pytest.mark.parametrize(
    "spec",
    [
        NODE_PORT,
        {**NODE_PORT, "ports": [{"port": 80, "nodePort": 30080, "appProtocol": "kubernetes.io/h2c"}]},
        {
            **NODE_PORT,
            "ports": [
                {"name": "a", "port": 53, "nodePort": 30053},
                {"name": "b", "port": 53, "nodePort": 30053, "protocol": "UDP"},
                {"name": "c", "port": 53, "nodePort": 30053, "protocol": "SCTP"},
            ],
        },
        {**BALANCER, "loadBalancerIP": "192.0.2.9", "loadBalancerClass": "example.com/metal"},
        {**BALANCER, "loadBalancerSourceRanges": ["10.0.0.0/8", " fd00::/8", "192.0.2.1/24"]},
        {**BALANCER, "allocateLoadBalancerNodePorts": False},
        {**LOCAL, "healthCheckNodePort": 31000},
        NAMED,
        {**NAMED, "externalName": "db.example.com."},
        {"externalIPs": ["192.0.2.1", "2001:db8::1"], "externalTrafficPolicy": "Local"},
        {"sessionAffinity": "ClientIP"},
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}},
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {}},
        {"internalTrafficPolicy": "Local"},
        {"trafficDistribution": "PreferClose"},
        DUAL,
        {**DUAL, "ipFamilies": ["IPv4"]},
        {"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"},
        {"clusterIP": "None", "selector": {}, "ipFamilies": ["IPv4", "IPv6"]},
        {"clusterIP": "None", "clusterIPs": ["None"], "ipFamilyPolicy": "PreferDualStack"},
        {"loadBalancerIP": "192.0.2.9"},
    ],
)
def test_what_kubernetes_takes(spec: dict[str, Any]) -> None:
    assert wrong(**spec) == []


ONLY_NODE_PORT = 'only where type is "NodePort" or "LoadBalancer", it is'
ONLY_BALANCER = 'only where type is "LoadBalancer", it is'
UNREACHABLE = "expected an address that can be reached from elsewhere, got"


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ({"ports": [{"port": 80, "nodePort": 30080}]}, [f'ports[0].nodePort: {ONLY_NODE_PORT} "ClusterIP"']),
        (
            {**NAMED, "ports": [{"port": 80, "nodePort": 30080}]},
            [f'ports[0].nodePort: {ONLY_NODE_PORT} "ExternalName"'],
        ),
        (
            {**NODE_PORT, "ports": [{"port": 80, "nodePort": 70000}]},
            ["ports[0].nodePort: expected a port number 1 to 65535, got 70000"],
        ),
        (
            {**NODE_PORT, "ports": [{"name": "a", "port": 1, "nodePort": 7}, {"name": "b", "port": 2, "nodePort": 7}]},
            ["ports[1].nodePort: duplicate node port 7/TCP, also ports[0]"],
        ),
        ({**NODE_PORT, "clusterIP": "None"}, ['clusterIP: expected an address, for type is "NodePort", got "None"']),
        ({**BALANCER, "clusterIP": "None"}, ['clusterIP: expected an address, for type is "LoadBalancer", got "None"']),
        (
            {**BALANCER, "ports": [{"port": 10250}]},
            ["ports[0].port: the nodes' own port 10250 is not for outside"],
        ),
        ({**NODE_PORT, "ports": []}, ["ports: required: at least one port, unless clusterIP is None"]),
        (
            {"ports": [{"port": 80, "appProtocol": "a/b/c"}]},
            ['ports[0].appProtocol: expected a DNS name before the "/" of the key, got "a/b/c"'],
        ),
        (
            {**NODE_PORT, "loadBalancerSourceRanges": ["10.0.0.0/8"]},
            [f'loadBalancerSourceRanges: {ONLY_BALANCER} "NodePort"'],
        ),
        ({"loadBalancerClass": "a/b"}, [f'loadBalancerClass: {ONLY_BALANCER} "ClusterIP"']),
        ({"allocateLoadBalancerNodePorts": False}, [f'allocateLoadBalancerNodePorts: {ONLY_BALANCER} "ClusterIP"']),
        (
            {**BALANCER, "loadBalancerSourceRanges": ["10.0.0.0", "ten/8", "10.0.0.0/33"]},
            [
                'loadBalancerSourceRanges[0]: expected a range such as "10.0.0.0/8", got "10.0.0.0"',
                'loadBalancerSourceRanges[1]: expected a range such as "10.0.0.0/8", got "ten/8"',
                'loadBalancerSourceRanges[2]: expected a range such as "10.0.0.0/8", got "10.0.0.0/33"',
            ],
        ),
        ({**BALANCER, "loadBalancerIP": "lb.example"}, ['loadBalancerIP: expected an IP address, got "lb.example"']),
        (
            {**LOCAL, "healthCheckNodePort": 30080, "ports": [{"port": 80, "nodePort": 30080}]},
            ["healthCheckNodePort: duplicate node port 30080, also of ports[0]"],
        ),
        (
            {**BALANCER, "healthCheckNodePort": 30080},
            ['healthCheckNodePort: only where type is "LoadBalancer" and externalTrafficPolicy is "Local"'],
        ),
        (
            {**NODE_PORT, "externalTrafficPolicy": "Local", "healthCheckNodePort": 30080},
            ['healthCheckNodePort: only where type is "LoadBalancer" and externalTrafficPolicy is "Local"'],
        ),
        (
            {"externalTrafficPolicy": "Local"},
            [
                'externalTrafficPolicy: only where traffic comes from outside: type "NodePort" or "LoadBalancer", '
                "or with externalIPs"
            ],
        ),
        ({**NAMED, "externalName": ""}, ['externalName: required: a DNS name, where type is "ExternalName"']),
        (
            {**NAMED, "clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"},
            [
                'clusterIP: not where type is "ExternalName"',
                'ipFamilies: not where type is "ExternalName"',
                'ipFamilyPolicy: not where type is "ExternalName"',
            ],
        ),
        (
            {
                "externalIPs": [
                    "127.0.0.1",
                    "169.254.1.1",
                    "0.0.0.0",
                    "224.0.0.1",
                    "fe80::1",
                    "::1",
                    "x",
                    "fd00::1%eth0",
                ]
            },
            [
                f"externalIPs[0]: {UNREACHABLE} 127.0.0.1 (loopback)",
                f"externalIPs[1]: {UNREACHABLE} 169.254.1.1 (link-local)",
                f"externalIPs[2]: {UNREACHABLE} 0.0.0.0 (unspecified)",
                f"externalIPs[3]: {UNREACHABLE} 224.0.0.1 (multicast)",
                f"externalIPs[4]: {UNREACHABLE} fe80::1 (link-local)",
                f"externalIPs[5]: {UNREACHABLE} ::1 (loopback)",
                'externalIPs[6]: expected an IP address, got "x"',
                'externalIPs[7]: expected an IP address, got "fd00::1%eth0"',
            ],
        ),
        (
            {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}},
            ['sessionAffinityConfig: only where sessionAffinity is "ClientIP", it is "None"'],
        ),
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}},
            ["sessionAffinityConfig.clientIP.timeoutSeconds: expected an integer 1 to 86400, got 0"],
        ),
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}},
            ["sessionAffinityConfig.clientIP.timeoutSeconds: expected an integer 1 to 86400, got 86401"],
        ),
        (
            {**DUAL, "clusterIPs": ["10.96.0.9", "10.96.0.10"]},
            ["clusterIPs: expected at most one address of each family, got 10.96.0.9, 10.96.0.10"],
        ),
        (
            {**DUAL, "ipFamilies": ["IPv6", "IPv4"]},
            [
                "clusterIPs[0]: expected an IPv6 address, as ipFamilies[0] says, got 10.96.0.9",
                "clusterIPs[1]: expected an IPv4 address, as ipFamilies[1] says, got fd00::9",
            ],
        ),
        (
            {**DUAL, "clusterIPs": ["10.96.0.9", "None"]},
            [
                'clusterIPs[1]: expected an IP address, got "None"',
                'clusterIPs: expected nothing beside "None", got 2 entries',
            ],
        ),
        (
            {**DUAL, "ipFamilyPolicy": "SingleStack"},
            [
                'ipFamilyPolicy: expected "PreferDualStack" or "RequireDualStack", for clusterIPs has 2 entries, '
                'got "SingleStack"'
            ],
        ),
        (
            {"ipFamilies": ["IPv4", "IPv6"]},
            [
                'ipFamilyPolicy: expected "PreferDualStack" or "RequireDualStack", for ipFamilies has 2 entries, '
                'got "SingleStack"'
            ],
        ),
        (
            {"ipFamilies": ["IPv4", "IPv4"], "ipFamilyPolicy": "PreferDualStack"},
            ["ipFamilies: expected each family once, got IPv4, IPv4"],
        ),
    ],
)
def test_what_kubernetes_refuses(spec: dict[str, Any], want: list[str]) -> None:
    assert wrong(**spec) == [f"spec.{line}" for line in want]


@pytest.mark.parametrize("balance", ["random", "affinity-hash", "maglev"])
def test_how_to_balance(balance: str) -> None:
    assert wrong({"podlane.io/balance": balance}) == []


def test_no_other_way_to_balance() -> None:
    assert wrong({"podlane.io/balance": "roundrobin"}) == [
        'metadata.annotations[podlane.io/balance]: expected "random" or "affinity-hash" or "maglev", got "roundrobin"'
    ]


def test_a_distribution_excludes_the_older_annotation() -> None:
    annotations = {"service.kubernetes.io/topology-mode": "Auto"}
    assert wrong(annotations) == []
    assert wrong(annotations, trafficDistribution="PreferClose") == [
        "spec.trafficDistribution: not together with the annotation service.kubernetes.io/topology-mode"
    ]


@pytest.mark.parametrize(
    ("ingress", "want"),
    [
        ({"ip": "192.0.2.1", "ipMode": "Proxy"}, []),
        ({"hostname": "lb.example.com"}, []),
        ({"ip": "x"}, ['ip: expected an IP address, got "x"']),
        ({"hostname": "192.0.2.1"}, ['hostname: expected a DNS name, got the address "192.0.2.1"']),
        ({"hostname": "lb.example.com", "ipMode": "VIP"}, ["ipMode: only together with an ip"]),
    ],
)
def test_where_a_load_balancer_serves(ingress: dict[str, Any], want: list[str]) -> None:
    status = msgspec.convert({"loadBalancer": {"ingress": [ingress]}}, types.ServiceStatus)
    found = validate(msgspec.structs.replace(service(**BALANCER), status=status))
    assert [str(error) for error in found] == [f"status.loadBalancer.ingress[0].{line}" for line in want]


@pytest.mark.parametrize(
    ("spec", "policy"),
    [
        ({}, ""),
        (NAMED, ""),
        (NODE_PORT, "Cluster"),
        (BALANCER, "Cluster"),
        (LOCAL, "Local"),
        ({"externalIPs": ["192.0.2.1"]}, "Cluster"),
    ],
)
def test_traffic_from_outside_goes_to_the_cluster_unless_said(spec: dict[str, Any], policy: str) -> None:
    made = service(**spec)
    assert made.spec.external_traffic_policy == policy
    assert apply_defaults(made) == made


def test_a_client_stays_three_hours_unless_said() -> None:
    three_hours = types.SessionAffinityConfig(client_ip=types.ClientIPConfig(timeout_seconds=10800))
    for config in ({}, {"sessionAffinityConfig": {}}, {"sessionAffinityConfig": {"clientIP": {}}}):
        assert service(sessionAffinity="ClientIP", **config).spec.session_affinity_config == three_hours
    assert service().spec.session_affinity_config is None
    assert service(sessionAffinityConfig={"clientIP": None}).spec.session_affinity_config is None


def test_what_is_shown_of_a_service_can_be_given_to_kubernetes() -> None:
    """`allocateLoadBalancerNodePorts: true` is a default of one type and an error with the others."""
    shown = to_builtins(service())["spec"]
    assert "allocateLoadBalancerNodePorts" not in shown
    assert shown["internalTrafficPolicy"] == "Cluster"
    assert to_builtins(service(**BALANCER))["spec"]["allocateLoadBalancerNodePorts"] is True
    assert "internalTrafficPolicy" not in to_builtins(service(**NAMED))["spec"]


# --- manifests as they are found ---------------------------------------------------------------

EXPORT = """
apiVersion: v1
kind: Service
metadata:
  name: traefik
  namespace: default
  annotations: {meta.helm.sh/release-name: traefik}
  finalizers: []
spec:
  allocateLoadBalancerNodePorts: true
  clusterIP: 10.43.157.60
  clusterIPs: [10.43.157.60]
  externalTrafficPolicy: Cluster
  internalTrafficPolicy: Cluster
  ipFamilies: [IPv4]
  ipFamilyPolicy: PreferDualStack
  ports:
  - {name: web, nodePort: 31588, port: 80, protocol: TCP, targetPort: web}
  - {name: websecure, nodePort: 32443, port: 443, protocol: TCP, targetPort: websecure, appProtocol: https}
  selector: {app.kubernetes.io/name: traefik}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}
  type: LoadBalancer
status:
  loadBalancer:
    ingress: [{ip: 192.168.1.10, ipMode: VIP, ports: [{port: 80, protocol: TCP}]}]
"""


def test_an_export_of_a_load_balancer_is_read_unchanged() -> None:
    (manifest,) = load(["-"], io.StringIO(EXPORT))
    assert isinstance(manifest.obj, types.Service)
    spec = manifest.obj.spec
    assert (spec.type, spec.ip_families, spec.ip_family_policy) == ("LoadBalancer", ("IPv4",), "PreferDualStack")
    assert [port.node_port for port in spec.ports] == [31588, 32443]
    assert spec.ports[1].app_protocol == "https"
    assert manifest.obj.status == types.ServiceStatus()


def test_a_manifest_is_refused_by_the_name_of_the_field() -> None:
    text = EXPORT.replace("type: LoadBalancer", "type: ClusterIP").replace("externalTrafficPolicy: Cluster", "")
    with pytest.raises(InvalidManifest) as caught:
        load(["-"], io.StringIO(text))
    assert str(caught.value).splitlines() == [
        f'stdin Service/traefik: spec.ports[0].nodePort: {ONLY_NODE_PORT} "ClusterIP"',
        f'stdin Service/traefik: spec.ports[1].nodePort: {ONLY_NODE_PORT} "ClusterIP"',
    ]


# --- endpoint slices ---------------------------------------------------------------------------


def slice_errors(endpoint: dict[str, Any], port: dict[str, Any] | None = None) -> list[str]:
    plain = {
        "metadata": {"name": "web-1", "namespace": "default"},
        "endpoints": [{"addresses": ["10.5.1.2"], **endpoint}],
        "ports": [{"port": 80, **(port or {})}],
    }
    return [str(error) for error in validate(apply_defaults(msgspec.convert(plain, types.EndpointSlice)))]


def test_endpoints_with_zones_and_hints() -> None:
    hints = {"forZones": [{"name": "zone-a"}, {"name": "zone-b"}], "forNodes": [{"name": "node1"}]}
    assert slice_errors({"zone": "zone-a", "hostname": "web-0", "hints": hints}, {"appProtocol": "http"}) == []


@pytest.mark.parametrize(
    ("endpoint", "want"),
    [
        ({"hostname": "a.b"}, "hostname: expected a DNS label"),
        ({"hints": {"forZones": [{"name": ""}]}}, "hints.forZones[0].name: required"),
        ({"hints": {"forZones": [{"name": "a b"}]}}, "hints.forZones[0].name: expected a value of"),
        ({"hints": {"forNodes": [{"name": "A"}]}}, "hints.forNodes[0].name: expected a DNS name"),
        (
            {"hints": {"forZones": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}},
            'hints.forZones[2].name: duplicate name "a", also of [0]',
        ),
        (
            {"hints": {"forZones": [{"name": f"z{n}"} for n in range(9)]}},
            "hints.forZones: expected at most 8 entries, got 9",
        ),
    ],
)
def test_what_is_wrong_with_an_endpoint(endpoint: dict[str, Any], want: str) -> None:
    (error,) = slice_errors(endpoint)
    assert error.startswith(f"endpoints[0].{want}")


# --- ranges ------------------------------------------------------------------------------------


def test_ranges() -> None:
    both = types.ClusterConfig(service_cidr="10.96.0.0/16, fd00:10:96::/112", service_node_port_range="30000-30009")
    assert [str(network) for network in service_networks(both)] == ["10.96.0.0/16", "fd00:10:96::/112"]
    assert node_ports(both) == range(30000, 30010)
    assert node_ports(types.ClusterConfig()) == range(30000, 32768)
    assert parse_ports("8080") == range(8080, 8081)


@pytest.mark.parametrize("text", ["", "x", "10.96.0.1/16", "10.1.0.0/16,10.2.0.0/16", "10.1.0.0/16,", "fd00::1/64"])
def test_no_service_ranges(text: str) -> None:
    with pytest.raises(Invalid, match="serviceCIDR: "):
        parse_networks(text)


@pytest.mark.parametrize("text", ["", "x", "30000-", "-30000", "32767-30000", "0-10", "30000-70000", "1-2-3"])
def test_no_port_ranges(text: str) -> None:
    with pytest.raises(Invalid, match="serviceNodePortRange: "):
        parse_ports(text)
