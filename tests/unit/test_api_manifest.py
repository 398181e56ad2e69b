"""Manifests in, objects or every error out; the errors are compared whole, as a person reads them."""

import io
import json
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from podlane.api import types
from podlane.api.codec import to_builtins
from podlane.api.defaults import apply_defaults
from podlane.api.manifest import InvalidManifest, Manifest, load
from podlane.errors import FieldError, UsageError

pytestmark = pytest.mark.unit

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {containers: [{name: web, image: web:1}]}
"""


def read(text: str) -> list[Manifest]:
    return load(["-"], io.StringIO(textwrap.dedent(text)))


def errors(text: str) -> list[str]:
    with pytest.raises(InvalidManifest) as caught:
        read(text)
    return str(caught.value).splitlines()


def outcome(text: str) -> tuple[list[Manifest], list[FieldError]]:
    """The objects, or the errors."""
    try:
        return load(["-"], io.StringIO(text)), []
    except InvalidManifest as error:
        return [], error.errors


def pod_with(container: str = "", spec: str = "") -> str:
    """A pod manifest with lines added to its container and its spec."""
    lines = ["apiVersion: v1", "kind: Pod", "metadata: {name: web}", "spec:"]
    lines += [f"  {line}" for line in spec.splitlines()]
    lines += ["  containers:", "  - name: web", "    image: web:1"]
    lines += [f"    {line}" for line in container.splitlines()]
    return "\n".join(lines)


# --- what is read ------------------------------------------------------------------------


def test_one_document() -> None:
    (manifest,) = read(POD)
    assert manifest.source == "stdin"
    assert manifest.obj == apply_defaults(
        types.Pod(
            metadata=types.ObjectMeta(name="web"),
            spec=types.PodSpec(containers=(types.Container(name="web", image="web:1"),)),
        )
    )
    assert manifest.raw == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "web", "image": "web:1"}]},
    }


def test_empty_documents_and_comments_do_not_count() -> None:
    text = f"---\n# nothing\n---\n{POD}\n---\n{POD}\n---\n"
    assert [manifest.source for manifest in read(text)] == ["stdin#1", "stdin#2"]


def test_json_and_several_json_documents(tmp_path: Path) -> None:
    document = json.dumps(yaml.safe_load(POD), indent="\t")
    file = tmp_path / "pods.json"
    file.write_text(f"{document}\n{document}\n")
    assert [m.source for m in load([file])] == [f"{file}#1", f"{file}#2"]
    assert read(document)[0].obj == read(POD)[0].obj


def test_a_list_is_its_items() -> None:
    item = yaml.safe_load(POD)
    both = read(json.dumps({"apiVersion": "v1", "kind": "List", "items": [item, item]}))
    assert [m.source for m in both] == ["stdin items[0]", "stdin items[1]"]
    bare = {key: value for key, value in item.items() if key not in {"kind", "apiVersion"}}
    (listed,) = read(json.dumps({"apiVersion": "v1", "kind": "PodList", "items": [bare]}))
    assert listed.obj == both[0].obj


def test_a_directory_is_its_manifests_by_name(tmp_path: Path) -> None:
    for name in ("b.yml", "a.yaml", "c.json"):
        (tmp_path / name).write_text(json.dumps(yaml.safe_load(POD)))
    (tmp_path / "notes.txt").write_text("not a manifest")
    (tmp_path / "sub.yaml").mkdir()
    assert [Path(m.source).name for m in load([tmp_path])] == ["a.yaml", "b.yml", "c.json"]


def test_files_and_stdin_in_the_order_given(tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(POD)
    stdin = io.TextIOWrapper(io.BytesIO(POD.encode()), encoding="latin-1")
    assert [m.source for m in load([file, "-"], stdin)] == [str(file), "stdin"]


def test_utf8_with_and_without_a_mark(tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    text = pod_with("env: [{name: A, value: Grüße}]")
    for mark in (b"", b"\xef\xbb\xbf"):
        file.write_bytes(mark + text.encode())
        (manifest,) = load([file])
        assert isinstance(manifest.obj, types.Pod)
        assert manifest.obj.spec.containers[0].env[0].value == "Grüße"


def test_the_namespace_of_the_command_is_for_those_that_name_none() -> None:
    named = POD.replace("{name: web}", "{name: web, namespace: prod}")
    node = "apiVersion: v1\nkind: Node\nmetadata: {name: n}"
    found = load(["-"], io.StringIO(f"{POD}---\n{named}---\n{node}"), namespace="test")
    assert [m.obj.metadata.namespace for m in found] == ["test", "prod", ""]


def test_numbers_are_quantities_and_anchors_and_merges_work() -> None:
    (manifest,) = read(
        """
        apiVersion: v1
        kind: Pod
        metadata: {name: web}
        spec:
          containers:
          - &base
            name: a
            image: web:1
            resources: {requests: {cpu: 0.10, memory: 1e6}, limits: {cpu: 1}}
          - <<: *base
            name: b
        """
    )
    pod = manifest.obj
    assert isinstance(pod, types.Pod)
    assert [c.name for c in pod.spec.containers] == ["a", "b"]
    for container in pod.spec.containers:
        assert container.resources.requests == {"cpu": "0.10", "memory": "1e6"}
        assert container.resources.limits == {"cpu": "1"}
    assert manifest.raw["spec"]["containers"][1]["resources"]["limits"] == {"cpu": "1"}


def test_scalars_are_read_as_kubectl_reads_them() -> None:
    text = "metadata: {name: web, annotations: {a: 2026-01-02, b: 12:30:45, c: 1.2.3, d: y, e: 08-15}}"
    (manifest,) = read(POD.replace("metadata: {name: web}", text))
    assert manifest.obj.metadata.annotations == {
        "a": "2026-01-02",
        "b": "12:30:45",
        "c": "1.2.3",
        "d": "y",
        "e": "08-15",
    }


def test_null_is_absent_for_the_object_and_kept_for_merging() -> None:
    (manifest,) = read(pod_with("workingDir: null\nenv: [{name: A, value: null}]", "nodeSelector: null\nhostname:"))
    assert isinstance(manifest.obj, types.Pod)
    assert manifest.obj.spec.containers[0].working_dir == ""
    assert manifest.raw["spec"]["hostname"] is None
    assert manifest.raw["spec"]["containers"][0]["workingDir"] is None
    assert manifest.raw["spec"]["containers"][0]["env"] == [{"name": "A"}]


# --- what Kubernetes writes ------------------------------------------------------------------

EXPORT = """
apiVersion: v1
kind: List
metadata: {resourceVersion: ""}
items:
- apiVersion: v1
  kind: ReplicationController
  metadata:
    creationTimestamp: "2025-01-01T00:00:00Z"
    generation: 3
    labels: {app: web}
    managedFields: [{manager: kubectl}]
    name: web
    namespace: default
    resourceVersion: "123"
    selfLink: /api/v1/x
    uid: 1a9e
  spec:
    replicas: 2
    selector: {app: web}
    template:
      metadata: {creationTimestamp: null, labels: {app: web}}
      spec:
        containers:
        - image: web:1
          imagePullPolicy: IfNotPresent
          name: web
          ports: [{containerPort: 80, protocol: TCP, hostPort: 0}]
          readinessProbe:
            failureThreshold: 3
            httpGet: {path: /, port: 80, scheme: HTTP}
            periodSeconds: 10
            successThreshold: 1
            timeoutSeconds: 1
          resources: {}
          terminationMessagePath: /dev/termination-log
          terminationMessagePolicy: File
        dnsPolicy: ClusterFirst
        restartPolicy: Always
        schedulerName: default-scheduler
        securityContext: {}
        terminationGracePeriodSeconds: 30
  status: {availableReplicas: 2, unheardOf: {}}
- apiVersion: v1
  kind: Pod
  metadata:
    deletionTimestamp: "2025-01-01T00:00:00Z"
    deletionGracePeriodSeconds: 30
    name: web-1
  spec:
    containers:
    - image: web:1
      name: web
      volumeMounts:
      - {mountPath: /var/run/secrets/kubernetes.io/serviceaccount, name: kube-api-access-x, readOnly: true}
    enableServiceLinks: true
    hostNetwork: false
    nodeName: kind-worker
    preemptionPolicy: PreemptLowerPriority
    priority: 0
    serviceAccount: default
    serviceAccountName: default
    tolerations:
    - {effect: NoExecute, key: node.kubernetes.io/not-ready, operator: Exists, tolerationSeconds: 300}
    - {effect: NoExecute, key: node.kubernetes.io/unreachable, operator: Exists, tolerationSeconds: 300}
    volumes: [{name: kube-api-access-x, projected: {defaultMode: 420}}]
- apiVersion: v1
  kind: Service
  metadata: {name: web}
  spec:
    clusterIP: 10.96.0.7
    clusterIPs: [10.96.0.7]
    internalTrafficPolicy: Cluster
    ipFamilies: [IPv4]
    ipFamilyPolicy: SingleStack
    ports: [{port: 80, protocol: TCP, targetPort: 80}]
    selector: {app: web}
    sessionAffinity: None
    type: ClusterIP
  status: {loadBalancer: {}}
- apiVersion: v1
  kind: Namespace
  metadata: {name: prod, labels: {kubernetes.io/metadata.name: prod}}
  spec: {finalizers: [kubernetes]}
  status: {phase: Active}
"""


def test_an_export_with_kubernetes_defaults_is_applied_unchanged() -> None:
    controller, pod, service, namespace = (m.obj for m in read(EXPORT))
    assert controller.metadata == types.ObjectMeta(name="web", namespace="default", labels={"app": "web"})
    assert isinstance(controller, types.ReplicationController)
    assert controller.status == types.ReplicationControllerStatus()
    assert pod.metadata == types.ObjectMeta(name="web-1", namespace="default")
    assert isinstance(service, types.Service)
    assert service.spec.cluster_ip == "10.96.0.7"
    assert namespace.metadata.name == "prod"


def test_what_podlane_prints_can_be_applied() -> None:
    for manifest in read(EXPORT):
        stored = msgspec.structs.replace(
            manifest.obj, metadata=msgspec.structs.replace(manifest.obj.metadata, uid="u", resource_version="7")
        )
        (again,) = read(yaml.safe_dump(to_builtins(stored)))
        assert again.obj == manifest.obj


YET = "known to Kubernetes but not supported by Podlane yet"

# --- text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a: b: c\n", "stdin: line 1: mapping values are not allowed in this context"),
        (
            "a:\n\t- b\n",
            "stdin: line 2: while scanning for the next token, found character that cannot start any token",
        ),
        ("a: *b\n", "stdin: line 1: found undefined alias"),
        ("a: &a {b: *a}\n", "stdin: line 1: an alias contains itself"),
        ("a: !!python/object:os.system x\nkind: Pod", "the tag python/object:os.system has no meaning here"),
        ("kind: Pod\non: push\n", "line 2: expected a string as key, got on; quote it"),
        ("kind: Pod\n? [a]\n: b\n", "line 2: expected a string as key, got a sequence"),
        ("kind: Pod\n<<: 5\n", "line 2: expected a map, or a list of maps, to merge"),
        ("[" * 1000, "stdin: line 1: nested deeper than 200 levels"),
        ('{"kind": "Pod", "kind": "Pod"}', 'duplicate key "kind"'),
    ],
)
def test_yaml_that_cannot_be_read_says_in_which_line(text: str, want: str) -> None:
    assert any(want in line for line in errors(text))


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert errors("\n".join(lines)) == ["stdin: expected at most 2000000 values after aliases are expanded"]


def test_duplicate_keys_name_both_lines_and_their_place() -> None:
    assert errors(pod_with("ports: []\nports: []")) == [
        'stdin Pod/web: spec.containers[0]: line 9: duplicate key "ports", also in line 8',
    ]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('{"kind": "Pod"\n "x": 1}', "line 2: expecting ',' delimiter"),
        ('{"a": NaN}', "expected JSON, got NaN"),
        ('{"a": "\\ud83d"}', "expected whole characters, got half a surrogate pair"),
        ("[" * 100_000, "nested too deeply to be read"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, text: str, want: str) -> None:
    file = tmp_path / "pod.json"
    file.write_text(text)
    with pytest.raises(InvalidManifest) as caught:
        load([file])
    assert str(caught.value) == f"{file}: {want}"


def test_files_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"a: b\nc: \xff\n")
    with pytest.raises(InvalidManifest) as caught:
        load([tmp_path / "absent.yaml", tmp_path / "empty", tmp_path / "latin.yaml", "-"], None)
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/absent.yaml: read: No such file or directory",
        f"{tmp_path}/empty: expected *.yaml, *.yml or *.json files in it, got none",
        f"{tmp_path}/latin.yaml: line 2: expected UTF-8",
        "stdin: expected manifests, got no input",
    ]


# --- all errors at once --------------------------------------------------------------------------


def test_every_error_of_every_document_of_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("web.yaml").write_text(
        textwrap.dedent(
            """
            apiVersion: v1
            kind: Service
            metadata: {name: web}
            spec: {selectr: {app: web}, ports: [{port: 80}, {port: 0, name: b}]}
            ---
            apiVersion: v1
            kind: ReplicationController
            metadata: {name: web}
            spec:
              replicas: "four"
              selector: {app: web, version: 1.0}
              template:
                metadata: {labels: {app: web, version: 1.0}}
                spec:
                  hostPID: true
                  containers: [{name: web, image: web:1}, {name: web}]
            """
        )
    )
    Path("good.yaml").write_text(POD)
    Path("broken.yaml").write_text(POD + "---\na: b: c\n")
    with pytest.raises(InvalidManifest) as caught:
        load(["web.yaml", "good.yaml", "broken.yaml"])
    assert str(caught.value).splitlines() == [
        'web.yaml#1 Service/web: spec.selectr: unknown field; did you mean "selector"?',
        "web.yaml#1 Service/web: spec.ports[0].name: required where a service has several ports",
        "web.yaml#1 Service/web: spec.ports[1].port: expected a port number 1 to 65535, got 0",
        'web.yaml#2 ReplicationController/web: spec.replicas: expected an integer ≥ 0, got "four"',
        "web.yaml#2 ReplicationController/web: spec.selector[version]: expected a string, got 1.0; quote it",
        "web.yaml#2 ReplicationController/web: spec.template.metadata.labels[version]: "
        "expected a string, got 1.0; quote it",
        f"web.yaml#2 ReplicationController/web: spec.template.spec.hostPID: {YET}",
        "web.yaml#2 ReplicationController/web: spec.template.spec.containers[1].image: required",
        "web.yaml#2 ReplicationController/web: spec.template.spec.containers[1].name: "
        'duplicate name "web", also of containers[0]',
        "broken.yaml: line 7: mapping values are not allowed in this context",
    ]
    assert isinstance(caught.value, UsageError)
    assert caught.value.exit_code == 2


def test_a_wrong_type_is_not_reported_twice_by_the_rules() -> None:
    assert errors("apiVersion: v1\nkind: Pod\nmetadata: {name: 5}\nspec: {containers: 3}") == [
        "stdin Pod: metadata.name: expected a string, got 5; quote it",
        "stdin Pod: spec.containers: expected a list, got 3",
    ]
    assert errors("apiVersion: v1\nkind: Pod\nmetadata: []\nspec: 1") == [
        "stdin Pod: metadata: expected a map, got a list",
        "stdin Pod: spec: expected a map, got 1",
    ]


# --- anything at all -----------------------------------------------------------------------------

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6)
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
PLACES = [
    ("metadata",),
    ("metadata", "labels"),
    ("metadata", "ownerReferences"),
    ("spec",),
    ("spec", "containers"),
    ("spec", "nodeSelector"),
    ("spec", "containers", 0, "env"),
    ("spec", "containers", 0, "ports"),
    ("spec", "containers", 0, "resources"),
    ("spec", "containers", 0, "readinessProbe"),
]


@given(st.sampled_from(PLACES), anything)
def test_whatever_stands_in_a_field_the_answer_is_an_object_or_its_errors(place: tuple[Any, ...], value: Any) -> None:
    document = yaml.safe_load(POD)
    target = document
    for part in place[:-1]:
        target = target[part]
    target[place[-1]] = value
    found, wrong = outcome(json.dumps(document))
    assert len(found) + bool(wrong) == 1
    for manifest in found:
        assert msgspec.convert(to_builtins(manifest.obj), types.Pod) == manifest.obj


@given(st.text(max_size=60))
def test_whatever_the_text_the_answer_is_objects_or_errors(text: str) -> None:
    found, wrong = outcome(text)
    assert bool(found) != bool(wrong)
