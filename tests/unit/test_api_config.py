"""Config maps, secrets, quotas and priority classes: what is refused in them, and what may not change."""

import base64
import io

import pytest

from podlane.api import types
from podlane.api.codec import to_builtins
from podlane.api.manifest import InvalidManifest, load
from podlane.api.priority import prioritized
from podlane.api.validation import validate_update
from podlane.errors import FieldError

pytestmark = pytest.mark.unit

HEADS = {
    "ConfigMap": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\n",
    "Secret": "apiVersion: v1\nkind: Secret\nmetadata: {name: web}\n",
    "ResourceQuota": "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: few}\n",
    "PriorityClass": "apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\n",
}


def read(kind: str, text: str) -> types.Object:
    (manifest,) = load(["-"], io.StringIO(HEADS[kind] + text))
    return manifest.obj


def errors(kind: str, text: str) -> list[str]:
    try:
        read(kind, text)
    except InvalidManifest as wrong:
        return [str(error).partition(": ")[2] for error in wrong.errors]
    return []


KEY = "expected a key of letters, digits, '-', '_' and '.', not beginning with \"..\""
TLS = "kubernetes.io/tls"
SECRET_OF_BASE64 = base64.b64encode(b"pw").decode()


@pytest.mark.parametrize(
    ("kind", "text", "want"),
    [
        ("ConfigMap", "data: {a.conf: x, B_c: y}\nbinaryData: {d: AAE=}\nimmutable: true", []),
        ("ConfigMap", "data: {a/b: x}", [f'data[a/b]: {KEY}, got "a/b"']),
        ("ConfigMap", "data: {..a: x}", [f'data[..a]: {KEY}, got "..a"']),
        ("ConfigMap", "data: {a: x}\nbinaryData: {a: AAE=}", ["data[a]: the key is also in binaryData"]),
        ("ConfigMap", "binaryData: {a: '*'}", ["binaryData[a]: expected base64"]),
        ("ConfigMap", "data: {port: 80}", ["data[port]: expected a string, got 80; quote it"]),
        (
            "ConfigMap",
            f"data: {{a: {'x' * 2**20}}}\nbinaryData: {{b: AAE=}}",
            ["data: expected at most 1048576 bytes in all, got 1048578"],
        ),
        ("Secret", "stringData: {password: hunter2}", []),
        ("Secret", "stringData: {pin: 1234}", ["stringData[pin]: expected a string; quote it"]),
        ("Secret", "data: {password: hunter2!}", ["data[password]: expected base64"]),
        ("Secret", f"type: {TLS}\ndata: {{tls.crt: AAE=}}", [f'data[tls.key]: required where type is "{TLS}"']),
        (
            "Secret",
            "type: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: x}",
            ["data[.dockerconfigjson]: expected JSON"],
        ),
        (
            "Secret",
            "type: kubernetes.io/basic-auth",
            ['data[username]: required where type is "kubernetes.io/basic-auth", or else password'],
        ),
        ("ResourceQuota", "spec: {hard: {pods: 4, requests.cpu: 1.5, limits.memory: 2Gi}}", []),
        ("ResourceQuota", "spec: {hard: {pods: 1.5}}", ["spec.hard[pods]: expected a whole number, got 1.5"]),
        ("ResourceQuota", "spec: {hard: {cpu: -1}}", ["spec.hard[cpu]: expected a quantity ≥ 0, got -1"]),
        (
            "ResourceQuota",
            "spec: {hard: {services: 1}}",
            [
                "spec.hard[services]: not supported by Podlane (supported: pods, count/pods, cpu, memory, "
                "requests.cpu, requests.memory, limits.cpu, limits.memory)"
            ],
        ),
        (
            "ResourceQuota",
            "spec: {hard: {cpu: 1}, scopes: [BestEffort, NotBestEffort, BestEffort]}",
            [
                'spec.hard[cpu]: not where scopes has "BestEffort", whose pods request nothing',
                'spec.scopes: expected "BestEffort" or "NotBestEffort", got both',
                'spec.scopes[2]: duplicate scope "BestEffort"',
            ],
        ),
        ("PriorityClass", "metadata: {name: high}\nvalue: 1000000000\npreemptionPolicy: Never", []),
        (
            "PriorityClass",
            "metadata: {name: high}\nvalue: 1000000001",
            ["value: expected at most 1000000000, got 1000000001"],
        ),
        (
            "PriorityClass",
            "metadata: {name: system-mine}\nvalue: 1",
            ['metadata.name: expected a name without "system-", which is the system\'s, got "system-mine"'],
        ),
    ],
)
def test_rules(kind: str, text: str, want: list[str]) -> None:
    assert errors(kind, text) == want


def test_text_of_a_secret_is_kept_as_base64_and_wins() -> None:
    secret = read("Secret", "stringData: {a: pw}\ndata: {a: AAE=, b: AAE=}")
    assert to_builtins(secret)["data"] == {"a": SECRET_OF_BASE64, "b": "AAE="}
    assert "stringData" not in to_builtins(secret)


@pytest.mark.parametrize(
    ("kind", "before", "after", "want"),
    [
        ("ConfigMap", "data: {a: x}", "data: {a: y}", []),
        ("ConfigMap", "data: {a: x}", "immutable: true", []),
        (
            "ConfigMap",
            "immutable: true\ndata: {a: x}",
            "data: {a: y}",
            [
                "immutable: once true it stays true; delete the object and create it anew",
                "data: immutable: the object says immutable: true; delete it and create it anew",
            ],
        ),
        ("Secret", "", f"type: {TLS}\nstringData: {{tls.crt: a, tls.key: b}}", None),
        (
            "Secret",
            "immutable: true\nstringData: {a: x}",
            "immutable: true\nstringData: {a: y}",
            ["data: immutable: the object says immutable: true; delete it and create it anew"],
        ),
        ("ResourceQuota", "spec: {hard: {pods: 1}}", "spec: {hard: {pods: 2}}", []),
        (
            "ResourceQuota",
            "spec: {hard: {pods: 1}}",
            "spec: {hard: {pods: 1}, scopes: [Terminating]}",
            ["spec.scopes: immutable: it is nothing, got Terminating"],
        ),
        (
            "PriorityClass",
            "metadata: {name: high}\nvalue: 1",
            "metadata: {name: high}\nvalue: 2\npreemptionPolicy: Never\ndescription: x",
            [
                "value: immutable: it is 1, got 2",
                'preemptionPolicy: immutable: it is "PreemptLowerPriority", got "Never"',
            ],
        ),
    ],
)
def test_updates(kind: str, before: str, after: str, want: list[str] | None) -> None:
    if want is None:
        want = [f'type: immutable: it is "Opaque", got "{TLS}"']
    assert [str(error) for error in validate_update(read(kind, before), read(kind, after))] == want


# --- the updates of pods ---------------------------------------------------------------------------


def pod(spec: str) -> types.Pod:
    text = f"apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers: [{{name: a, image: b:1}}]\n{spec}"
    (manifest,) = load(["-"], io.StringIO(text))
    assert isinstance(manifest.obj, types.Pod)
    return manifest.obj


FEWER = "spec.tolerations: a toleration may be added, and none taken away or changed but for its time"


@pytest.mark.parametrize(
    ("before", "after", "want"),
    [
        ("", "activeDeadlineSeconds: 9", []),
        ("activeDeadlineSeconds: 9", "activeDeadlineSeconds: 8", []),
        (
            "activeDeadlineSeconds: 9",
            "activeDeadlineSeconds: 10",
            ["spec.activeDeadlineSeconds: expected an integer 1 to 9: it may only get less, got 10"],
        ),
        (
            "activeDeadlineSeconds: 9",
            "",
            ["spec.activeDeadlineSeconds: expected an integer 1 to 9: it may only get less, got nothing"],
        ),
        ("", "tolerations: [{key: a, operator: Exists}]", []),
        ("tolerations: [{key: a}]", "tolerations: [{key: b}, {key: a}]", []),
        ("tolerations: [{key: a}]", "tolerations: [{key: a, effect: NoSchedule}]", [FEWER]),
        ("tolerations: [{key: a}]", "", [FEWER]),
        (
            "tolerations: [{key: a, effect: NoExecute, tolerationSeconds: 5}]",
            "tolerations: [{key: a, effect: NoExecute, tolerationSeconds: 9}]",
            [],
        ),
    ],
)
def test_what_of_a_pod_may_change(before: str, after: str, want: list[str]) -> None:
    found = validate_update(pod(f"  {before}\n"), pod(f"  {after}\n"))
    assert [str(error) for error in found] == want


# --- priority ----------------------------------------------------------------------------------------


def priority_class(name: str, value: int, *, default: bool = False, never: bool = False) -> types.PriorityClass:
    return types.PriorityClass(
        metadata=types.ObjectMeta(name=name),
        value=value,
        global_default=default,
        preemption_policy="Never" if never else "PreemptLowerPriority",
    )


HIGH = priority_class("high", 1000, never=True)
USUAL = priority_class("usual", 7, default=True)
ALSO_USUAL = priority_class("also-usual", 5, default=True)


@pytest.mark.parametrize(
    ("spec", "classes", "want"),
    [
        ({}, (), (0, "PreemptLowerPriority", "")),
        ({}, (HIGH,), (0, "PreemptLowerPriority", "")),
        ({}, (HIGH, USUAL, ALSO_USUAL), (5, "PreemptLowerPriority", "also-usual")),
        ({"priority_class_name": "high"}, (HIGH, USUAL), (1000, "Never", "high")),
        (
            {"priority_class_name": "system-node-critical"},
            (),
            (2_000_001_000, "PreemptLowerPriority", "system-node-critical"),
        ),
        ({"priority_class_name": "high", "priority": 1000}, (HIGH,), (1000, "Never", "high")),
        (
            {"priority_class_name": "hgih"},
            (HIGH,),
            'spec.priorityClassName: no priority class is named "hgih"',
        ),
        ({"priority": 7}, (), "spec.priority: expected 0, as its priority class says, got 7"),
        (
            {"priority_class_name": "high", "preemption_policy": "PreemptLowerPriority"},
            (HIGH,),
            'spec.preemptionPolicy: expected "Never", as its priority class says, got "PreemptLowerPriority"',
        ),
    ],
)
def test_a_pod_has_the_priority_of_its_class(
    spec: dict[str, object], classes: tuple[types.PriorityClass, ...], want: object
) -> None:
    found = prioritized(types.PodSpec(**spec), classes)
    if isinstance(found, FieldError):
        assert str(found) == want
    else:
        assert (found.priority, found.preemption_policy, found.priority_class_name) == want
        assert prioritized(found, classes) == found
