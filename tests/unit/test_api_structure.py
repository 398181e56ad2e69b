"""One field or kind at a time: what is wrong with it, word for word."""

import io
from typing import Any

import msgspec
import pytest

from podlane.api import types, unsupported
from podlane.api.manifest import InvalidManifest, load

pytestmark = pytest.mark.unit

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {containers: [{name: web, image: web:1}]}
"""


def errors(text: str) -> list[str]:
    with pytest.raises(InvalidManifest) as caught:
        load(["-"], io.StringIO(text))
    return str(caught.value).splitlines()


def pod_with(container: str = "", spec: str = "") -> str:
    """A pod manifest with lines added to its container and its spec."""
    lines = ["apiVersion: v1", "kind: Pod", "metadata: {name: web}", "spec:"]
    lines += [f"  {line}" for line in spec.splitlines()]
    lines += ["  containers:", "  - name: web", "    image: web:1"]
    lines += [f"    {line}" for line in container.splitlines()]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("cls", "table"), [pytest.param(cls, table, id=cls.__name__) for cls, table in unsupported.UNSUPPORTED.items()]
)
def test_no_field_is_both_supported_and_not(cls: type[types.Struct], table: dict[str, Any]) -> None:
    assert not {field.encode_name for field in msgspec.structs.fields(cls)} & table.keys()


def test_no_kind_is_both_supported_and_not() -> None:
    assert not unsupported.KINDS & types.KINDS.keys()


# --- fields ------------------------------------------------------------------------------------

YET = "known to Kubernetes but not supported by Podlane yet"
C = "stdin Pod/web: spec.containers[0]"


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("securityContext: {seLinuxOptions: {level: s0}}", f"securityContext.seLinuxOptions: {YET}"),
        (
            "securityContext: {seccompProfile: {type: Unconfined}}",
            f'securityContext.seccompProfile: {YET} (only its default {{"type": "RuntimeDefault"}} is)',
        ),
        ("securityContext: {privileged: 1}", "securityContext.privileged: expected true or false, got 1"),
        ("restartPolicy: Never", f'restartPolicy: "Never" is {YET} (supported: "Always")'),
        (
            "terminationMessagePolicy: X",
            'terminationMessagePolicy: expected "File" or "FallbackToLogsOnError", got "X"',
        ),
        ("imagePullPolcy: Always", 'imagePullPolcy: unknown field; did you mean "imagePullPolicy"?'),
        ("Image: web", 'Image: unknown field; did you mean "image"?'),
        ("livenesProbe: {}", 'livenesProbe: unknown field; did you mean "livenessProbe"?'),
        ("xyzzy: 1", "xyzzy: unknown field"),
        ("env: [{name: A, value: 8080}]", "env[0].value: expected a string, got 8080; quote it"),
        ("env: [{name: A, value: 0x1F}]", "env[0].value: expected a string, got 0x1F; quote it"),
        ("env: [{name: A, value: 1e3}]", "env[0].value: expected a string, got 1e3; quote it"),
        ("env: [{name: A, value: true}]", "env[0].value: expected a string, got true; quote it"),
        ("env: [{name: A, value: on}]", "env[0].value: expected a string, got on, which YAML reads as true; quote it"),
        ("env: [{name: A, value: No}]", "env[0].value: expected a string, got No, which YAML reads as false; quote it"),
        ("env: [{name: A, value: [a]}]", "env[0].value: expected a string, got a list"),
        ("env: [{name: A}, oops]", 'env[1]: expected a map, got "oops"'),
        ("env: [{name: A}, null]", "env[1]: expected a map, got null"),
        ("env: {A: b}", "env: expected a list, got a map"),
        ("env: [{value: a}]", "env[0].name: required"),
        ("args: [a, 5]", "args[1]: expected a string, got 5; quote it"),
        ("args: -v", 'args: expected a list, got "-v"'),
        ("ports: [{}]", "ports[0].containerPort: required"),
        ("ports: [{containerPort: http}]", 'ports[0].containerPort: expected an integer 1 to 65535, got "http"'),
        ("ports: [{containerPort: 8080.5}]", "ports[0].containerPort: expected an integer 1 to 65535, got 8080.5"),
        ("ports: [{containerPort: yes}]", "ports[0].containerPort: expected an integer 1 to 65535, got yes"),
        (
            "ports: [{containerPort: 80, protocol: tcp}]",
            'ports[0].protocol: expected "TCP" or "UDP" or "SCTP", got "tcp"',
        ),
        (
            "imagePullPolicy: Sometimes",
            'imagePullPolicy: expected "Always" or "IfNotPresent" or "Never", got "Sometimes"',
        ),
        (
            "readinessProbe: {tcpSocket: {port: [80]}}",
            "readinessProbe.tcpSocket.port: expected an integer 1 to 65535 or a name, got a list",
        ),
        (
            "readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1s}",
            'readinessProbe.periodSeconds: expected an integer ≥ 1, got "1s"',
        ),
        ("resources: {limits: {cpu: [1]}}", "resources.limits[cpu]: expected a string, got a list"),
        (
            "resources: {limits: {cpu: yes}}",
            "resources.limits[cpu]: expected a string, got yes, which YAML reads as true; quote it",
        ),
        ("readinessProbe: 5", "readinessProbe: expected a map, got 5"),
    ],
)
def test_what_is_wrong_with_a_container(line: str, want: str) -> None:
    assert errors(pod_with(line)) == [f"{C}.{want}"]


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("hostPID: true", f"hostPID: {YET}"),
        ("volumes: [{name: a, nfs: {server: b, path: /c}}]", f"volumes[0].nfs: {YET}"),
        (
            "tolerations: [{key: a, operator: Gt, value: '5'}]",
            f'tolerations[0].operator: "Gt" is {YET} (supported: "Equal" or "Exists")',
        ),
        ("hostUsers: false", f"hostUsers: {YET} (only its default true is)"),
        ("dnsPolicy: None", f'dnsPolicy: {YET} (only its default "ClusterFirst" is)'),
        ("priority: false", "priority: expected an integer, got false"),
        ("restartPolicy: always", 'restartPolicy: expected "Always" or "OnFailure" or "Never", got "always"'),
        ("terminationGracePeriodSeconds: soon", 'terminationGracePeriodSeconds: expected an integer ≥ 0, got "soon"'),
        (
            "terminationGracePeriodSeconds: 9223372036854775808",
            "terminationGracePeriodSeconds: expected an integer of at most 64 bits, got 9223372036854775808",
        ),
        ("nodeSelector: {disk: 1}", "nodeSelector[disk]: expected a string, got 1; quote it"),
        ("nodeSelector: [a]", "nodeSelector: expected a map, got a list"),
    ],
)
def test_what_is_wrong_with_a_pod(line: str, want: str) -> None:
    assert errors(pod_with(spec=line)) == [f"stdin Pod/web: spec.{want}"]


@pytest.mark.parametrize(
    ("line", "want"),
    [
        (
            "type: Nodeport",
            'type: expected "ClusterIP" or "NodePort" or "LoadBalancer" or "ExternalName", got "Nodeport"',
        ),
        ("sessionAffinity: Cookie", 'sessionAffinity: expected "None" or "ClientIP", got "Cookie"'),
        ("externalTrafficPolicy: Global", 'externalTrafficPolicy: expected "Cluster" or "Local", got "Global"'),
        ("ipFamilies: [IPv5]", 'ipFamilies[0]: expected "IPv4" or "IPv6", got "IPv5"'),
        (
            "ipFamilyPolicy: DualStack",
            'ipFamilyPolicy: expected "SingleStack" or "PreferDualStack" or "RequireDualStack", got "DualStack"',
        ),
        (
            "trafficDistribution: Near",
            'trafficDistribution: expected "PreferClose" or "PreferSameZone" or "PreferSameNode", got "Near"',
        ),
        ("healthCheckNodePort: x", 'healthCheckNodePort: expected an integer 1 to 65535, got "x"'),
        (
            "sessionAffinityConfig: {clientIp: {}}",
            'sessionAffinityConfig.clientIp: unknown field; did you mean "clientIP"?',
        ),
        ("publishNotReadyAddresses: 'yes'", 'publishNotReadyAddresses: expected true or false, got "yes"'),
        ("loadBalancerSourceRanges: 10.0.0.0/8", 'loadBalancerSourceRanges: expected a list, got "10.0.0.0/8"'),
    ],
)
def test_what_is_wrong_with_a_service(line: str, want: str) -> None:
    text = f"apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  ports: [{{port: 80}}]\n  {line}\n"
    assert errors(text) == [f"stdin Service/web: spec.{want}"]


def test_times_have_a_zone() -> None:
    text = (
        "apiVersion: v1\nkind: Event\nmetadata: {name: a}\nfirstTimestamp: 2026-01-02T03:04:05Z\n"
        "lastTimestamp: 2026-01-02 03:04\ninvolvedObject: {}\n"
    )
    assert errors(text) == [
        'stdin Event/a: lastTimestamp: expected a time such as "2026-01-02T03:04:05Z", got "2026-01-02 03:04"'
    ]


# --- kinds -------------------------------------------------------------------------------------

SUPPORTED = (
    "supported: ConfigMap, EndpointSlice, Event, Lease, Namespace, Node, Pod, PriorityClass, ReplicationController, "
    "ResourceQuota, Secret, Service"
)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}",
            f'stdin Deployment/d: kind: "Deployment" is {YET} ({SUPPORTED})',
        ),
        ("apiVersion: v1\nkind: pod", f'stdin pod: kind: unknown kind "pod"; did you mean "Pod"? ({SUPPORTED})'),
        ("apiVersion: v1\nkind: Widget", f'stdin Widget: kind: unknown kind "Widget" ({SUPPORTED})'),
        ("apiVersion: v1", f"stdin: kind: required ({SUPPORTED})"),
        ("apiVersion: v1\nkind: 7", f"stdin: kind: expected a string, got 7 ({SUPPORTED})"),
        (POD.replace("v1", "v2"), 'stdin Pod/web: apiVersion: expected "v1" for kind Pod, got "v2"'),
        (POD.replace("apiVersion: v1", ""), 'stdin Pod/web: apiVersion: required: "v1" for kind Pod'),
        ("- a", "stdin: expected an object with a kind, got a list"),
        ("hello", 'stdin: expected an object with a kind, got "hello"'),
        ("kind: List\nitems: {}", "stdin List: items: expected a list of objects"),
        ("kind: List\nitems: [5]", "stdin items[0]: expected an object with a kind, got 5"),
        ("", "stdin: expected at least one object, got none"),
        ("# only a comment", "stdin: expected at least one object, got none"),
    ],
)
def test_what_is_no_object_of_ours(text: str, want: str) -> None:
    assert errors(text) == [want]
