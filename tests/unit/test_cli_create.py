"""create from the command line, and what get, describe and apply show of the kinds it makes."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import yaml
from cli_shell import Shell, lines

from podlane.api.types import ConfigMap, Namespace, Pod, PriorityClass, ResourceQuota, Secret
from podlane.errors import Forbidden

pytestmark = pytest.mark.unit


@pytest.fixture
def shell() -> Shell:
    return Shell()


def test_a_config_map_of_files_and_literals(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "web.conf").write_text("x=1\ny=2\n")
    (tmp_path / "logo").write_bytes(b"\xff\x00")
    made = shell.ok("create", "configmap", "web", f"--from-file={tmp_path}", "--from-literal=colour=blue=green")
    assert made == "configmap/web created\n"
    stored = shell.registry.get(ConfigMap, "default", "web")
    assert stored.data == {"web.conf": "x=1\ny=2\n", "colour": "blue=green"}
    assert stored.binary_data == {"logo": "/wA="}
    assert shell.ok("get", "cm") == "NAME   DATA   AGE\nweb    3      0s\n"
    assert shell.ok("describe", "cm", "web") == (
        "Name:             web\n"
        "Namespace:        default\n"
        "Labels:           <none>\n"
        "Annotations:      <none>\n"
        "\nData\n====\n"
        "colour:\n----\nblue=green\n\n"
        "web.conf:\n----\nx=1\ny=2\n\n\n"
        "\nBinaryData\n====\n"
        "logo:   2 bytes\n"
        "\nEvents:           <none>\n"
    )


def test_a_file_may_have_another_name(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    shell.ok("create", "cm", "web", f"--from-file=b={tmp_path / 'a.txt'}")
    assert shell.registry.get(ConfigMap, "default", "web").data == {"b": "x"}


def test_a_secret_is_never_shown_but_as_yaml(shell: Shell) -> None:
    assert shell.ok("create", "secret", "generic", "pw", "--from-literal=password=hunter2") == "secret/pw created\n"
    assert shell.ok("get", "secrets") == "NAME   TYPE     DATA   AGE\npw     Opaque   1      0s\n"
    assert shell.ok("describe", "secret", "pw") == (
        "Name:             pw\n"
        "Namespace:        default\n"
        "Labels:           <none>\n"
        "Annotations:      <none>\n"
        "\nType:  Opaque\n"
        "\nData\n====\n"
        "password:   7 bytes\n"
    )
    shown = yaml.safe_load(shell.ok("get", "secret", "pw", "-o", "yaml"))
    assert (shown["kind"], shown["type"]) == ("Secret", "Opaque")
    assert base64.b64decode(shown["data"]["password"]) == b"hunter2"


def test_an_applied_secret_shows_no_data_in_its_annotations(shell: Shell) -> None:
    manifest = "apiVersion: v1\nkind: Secret\nmetadata: {name: pw}\nstringData: {password: hunter2}\n"
    assert shell.ok("apply", "-f", "-", stdin=manifest) == "secret/pw created\n"
    assert shell.ok("apply", "-f", "-", stdin=manifest) == "secret/pw unchanged\n"
    assert "hunter2" not in shell.ok("describe", "secret", "pw")
    changed = manifest.replace("hunter2", "hunter3")
    assert shell.ok("apply", "-f", "-", "--dry-run", stdin=changed) == (
        'secret/pw configured (dry run)\n  data.password: "*** (before)" -> "*** (after)"\n'
    )
    assert shell.ok("apply", "-f", "-", stdin=changed) == "secret/pw configured\n"
    assert shell.registry.get(Secret, "default", "pw").data == {"password": base64.b64encode(b"hunter3").decode()}


def test_a_secret_for_tls(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("cert")
    (tmp_path / "k").write_text("key")
    shell.ok("create", "secret", "tls", "web", f"--cert={tmp_path / 'c'}", f"--key={tmp_path / 'k'}")
    assert shell.registry.get(Secret, "default", "web").type == "kubernetes.io/tls"


def test_namespaces_quotas_and_priority_classes(shell: Shell) -> None:
    assert shell.ok("create", "ns", "prod") == "namespace/prod created\n"
    assert shell.ok("create", "quota", "few", "--hard=pods=2,limits.memory=1Gi", "-n", "prod") == (
        "resourcequota/few created\n"
    )
    assert shell.ok("create", "pc", "high", "--value=1000", "--preemption-policy=Never") == (
        "priorityclass.scheduling.k8s.io/high created\n"
    )
    namespace = shell.registry.get(Namespace, "", "prod")
    assert (namespace.metadata.labels, namespace.spec.finalizers) == (
        {"kubernetes.io/metadata.name": "prod"},
        ("kubernetes",),
    )
    assert lines(shell.ok("get", "pc")) == [
        "NAME                      VALUE        GLOBAL-DEFAULT   AGE   PREEMPTIONPOLICY",
        "high                      1000         false            0s    Never",
        "system-cluster-critical   2000000000   false            0s    PreemptLowerPriority",
        "system-node-critical      2000001000   false            0s    PreemptLowerPriority",
    ]
    assert shell.registry.get(PriorityClass, "", "high").value == 1000
    assert shell.registry.get(ResourceQuota, "prod", "few").spec.hard == {"pods": "2", "limits.memory": "1Gi"}


def test_the_default_namespace_is_always_there(shell: Shell) -> None:
    assert shell.ok("get", "ns") == "NAME      STATUS   AGE\ndefault   Active   0s\n"
    (answer,) = shell.registry.delete_many([shell.registry.get(Namespace, "", "default")])
    assert isinstance(answer, Forbidden)
    with pytest.raises(Forbidden, match="delete namespace/default: it is always there"):
        shell.registry.delete(Namespace, "", "default")


POD = """
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: prod}
spec:
  priorityClassName: CLASS
  containers: [{name: web, image: "web:1", resources: {limits: {memory: 512Mi}}}]
"""


def test_a_pod_has_its_priority_and_counts_for_the_quota(shell: Shell) -> None:
    shell.ok("create", "ns", "prod")
    shell.ok("create", "quota", "few", "--hard=pods=2,limits.memory=1Gi", "-n", "prod")
    shell.ok("create", "pc", "high", "--value=1000")
    for name in ("a", "b"):
        shell.ok("apply", "-f", "-", stdin=POD.replace("NAME", name).replace("CLASS", "high"))
    assert shell.registry.get(Pod, "prod", "a").spec.priority == 1000
    assert shell.ok("apply", "-f", "-", stdin=POD.replace("NAME", "a").replace("CLASS", "high")) == (
        "pod/a unchanged\n"
    )
    assert shell.fails("apply", "-f", "-", stdin=POD.replace("NAME", "c").replace("CLASS", "high")) == (
        "error: create pod/c: exceeded quota: few, requested: limits.memory=512Mi,pods=1, "
        "used: limits.memory=1Gi,pods=2, limited: limits.memory=1Gi,pods=2\n"
    )
    assert "no priority class is named" in shell.fails(
        "apply", "-f", "-", stdin=POD.replace("NAME", "d").replace("CLASS", "hgih")
    )
    assert shell.ok("get", "quota", "-n", "prod") == (
        "NAME   REQUEST     LIMIT                    AGE\nfew    pods: 2/2   limits.memory: 1Gi/1Gi   0s\n"
    )
    assert shell.ok("describe", "quota", "few", "-n", "prod") == (
        "Name:             few\n"
        "Namespace:        prod\n"
        "Resource        Used   Hard\n"
        "--------        ----   ----\n"
        "limits.memory   1Gi    1Gi\n"
        "pods            2      2\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["cm", "x", "--from-literal=a"], 2, '--from-literal: expected KEY=VALUE, got "a"'),
        (["cm", "x", "--from-literal=a=1", "--from-literal=a=2"], 2, '--from-literal: key "a" is there twice'),
        (["cm", "x", "--from-file=/nowhere/a"], 2, "--from-file: read /nowhere/a: No such file or directory"),
        (["cm", "x", "--from-literal=a/b=1"], 2, "ConfigMap/x: data[a/b]: expected a key of letters"),
        (["quota", "x", "--hard=pods"], 2, '--hard: expected RESOURCE=QUANTITY, each resource once, got "pods"'),
        (["quota", "x", "--hard=pods=x"], 2, "ResourceQuota/x: spec.hard[pods]: expected a quantity"),
        (["quota", "x", "--scopes=All"], 2, "--scopes: expected BestEffort, NotBestEffort, Terminating or"),
        (["pc", "x", "--value=1000000001"], 2, "PriorityClass/x: value: expected at most 1000000000"),
        (["cm", "x", "-n", "prod"], 2, 'namespace "prod" not found'),
        (["ns", "default_"], 2, "Namespace/default_: metadata.name: expected a DNS label"),
        (["-f", "x.yaml", "ns", "prod"], 2, "-f: expected no manifests beside ns"),
        ([], 2, "-f: missing; expected a manifest file"),
        (["deployment"], 2, "no such command 'deployment'"),
    ],
)
def test_bad_input_changes_nothing(shell: Shell, arguments: list[str], code: int, said: str) -> None:
    before = shell.revision()
    assert said in shell.fails("create", *arguments, code=code)
    assert shell.revision() == before


def test_a_dry_run_changes_nothing(shell: Shell) -> None:
    before = shell.revision()
    shown = shell.ok("create", "cm", "web", "--from-literal=a=b", "--dry-run=client", "-o", "yaml")
    assert yaml.safe_load(shown) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "web", "namespace": "default"},
        "data": {"a": "b"},
    }
    assert shell.ok("create", "ns", "prod", "--dry-run") == "namespace/prod created (dry run)\n"
    assert shell.revision() == before


def test_what_exists_is_an_error(shell: Shell) -> None:
    shell.ok("create", "cm", "web")
    assert shell.fails("create", "cm", "web") == "error: create configmap/web: already exists\n"
