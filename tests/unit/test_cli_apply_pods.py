"""A pod with everything is applied again and again: what it was given at its creation is no change."""

from __future__ import annotations

import pytest
from cli_shell import Shell

from podlane.api.types import Pod

pytestmark = pytest.mark.unit

FULL = """
apiVersion: v1
kind: Pod
metadata: {name: full, labels: {app: web}}
spec:
  hostNetwork: true
  initContainers:
  - {name: first, image: "init:1", volumeMounts: [{name: scratch, mountPath: /s, subPath: a}]}
  - {name: side, image: "init:1", restartPolicy: Always, livenessProbe: {tcpSocket: {port: 1}}}
  containers:
  - name: web
    image: web:1
    ports: [{containerPort: 80}]
    envFrom: [{configMapRef: {name: conf, optional: true}}, {prefix: P_, secretRef: {name: pw}}]
    env:
    - {name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    livenessProbe: {grpc: {port: 80}}
    startupProbe: {exec: {command: [test, -f, /ready]}}
    volumeMounts: [{name: conf, mountPath: /conf, readOnly: true}]
    securityContext: {runAsUser: 0, runAsNonRoot: false, capabilities: {drop: [ALL]}}
    lifecycle: {preStop: {sleep: {seconds: 0}}}
  volumes:
  - {name: scratch, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: conf, configMap: {name: conf, items: [{key: a, path: b}]}}
  - {name: nothing}
  tolerations: [{operator: Exists}, {key: a, value: b, effect: NoExecute, tolerationSeconds: 0}]
  affinity:
    podAntiAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
      - {weight: 5, podAffinityTerm: {topologyKey: zone, labelSelector: {}, matchLabelKeys: [app]}}
  topologySpreadConstraints:
  - {maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {}, matchLabelKeys: [app]}
"""


@pytest.fixture
def shell() -> Shell:
    made = Shell()
    assert made.ok("apply", "-f", "-", stdin=FULL) == "pod/full created\n"
    return made


def test_the_same_again_changes_nothing(shell: Shell) -> None:
    assert shell.registry.get(Pod, "default", "full").spec.containers[0].ports[0].host_port == 80
    before = shell.revision()
    assert shell.ok("apply", "-f", "-", stdin=FULL) == "pod/full unchanged\n"
    assert shell.revision() == before


def test_what_get_prints_can_be_applied_and_the_manifest_after_it(shell: Shell) -> None:
    before = shell.registry.get(Pod, "default", "full").spec
    printed = shell.ok("get", "pod", "full", "-o", "yaml")
    shell.ok("apply", "-f", "-", stdin=printed)
    shell.ok("apply", "-f", "-", stdin=FULL)
    assert shell.registry.get(Pod, "default", "full").spec == before


def test_an_image_and_one_more_toleration_may_change_and_a_mount_may_not(shell: Shell) -> None:
    changed = FULL.replace("web:1", "web:2").replace("tolerations: [", "tolerations: [{key: new, operator: Exists}, ")
    assert shell.ok("apply", "-f", "-", stdin=changed) == "pod/full configured\n"
    spec = shell.registry.get(Pod, "default", "full").spec
    assert (spec.containers[0].image, len(spec.tolerations)) == ("web:2", 3)
    refused = shell.fails("apply", "-f", "-", stdin=FULL.replace("/conf", "/conf2"), code=2)
    assert "spec.containers[0].volumeMounts[0].mountPath: immutable" in refused
    assert "spec.tolerations: a toleration may be added, and none taken away" in refused
