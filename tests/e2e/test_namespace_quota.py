"""A namespace with a quota and all that pods read in it: as many pods as allowed, and nothing left at its end."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from driven_lab import Cluster

from podlane.api.meta import is_pod_ready
from podlane.api.types import Pod, ResourceQuota
from podlane.lab.images import WEB_IMAGE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MANIFEST = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: prod}}
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {{name: high}}
value: 1000
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: conf, namespace: prod}}
data: {{colour: blue, greeting: hello}}
---
apiVersion: v1
kind: Secret
metadata: {{name: pw, namespace: prod}}
stringData: {{password: hunter2}}
---
apiVersion: v1
kind: ResourceQuota
metadata: {{name: few, namespace: prod}}
spec: {{hard: {{pods: 2, requests.memory: 1Gi}}}}
---
apiVersion: v1
kind: ReplicationController
metadata: {{name: reader, namespace: prod}}
spec:
  replicas: 3
  selector: {{app: reader}}
  template:
    metadata: {{labels: {{app: reader}}}}
    spec:
      priorityClassName: high
      terminationGracePeriodSeconds: 1
      initContainers:
      - name: first
        image: {WEB_IMAGE}
        command: [sh, -c, cp /conf/greeting /shared/]
        resources: {{limits: {{memory: 16Mi}}}}
        volumeMounts: [{{name: conf, mountPath: /conf}}, {{name: shared, mountPath: /shared}}]
      containers:
      - name: web
        image: {WEB_IMAGE}
        resources: {{limits: {{memory: 16Mi}}}}
        env:
        - {{name: COLOUR, valueFrom: {{configMapKeyRef: {{name: conf, key: colour}}}}}}
        - {{name: PASSWORD, valueFrom: {{secretKeyRef: {{name: pw, key: password}}}}}}
        - {{name: NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
        volumeMounts: [{{name: shared, mountPath: /shared, readOnly: true}}]
      volumes:
      - {{name: conf, configMap: {{name: conf}}}}
      - {{name: shared, emptyDir: {{}}}}
"""


def ready(cluster: Cluster) -> list[Pod]:
    listed = msgspec.json.decode(cluster.podlane("get", "pods", "-n", "prod", "-o", "json"))["items"]
    return [pod for pod in msgspec.convert(listed, list[Pod]) if is_pod_ready(pod)]


def used(cluster: Cluster) -> dict[str, str]:
    shown = cluster.podlane("get", "quota", "few", "-n", "prod", "-o", "json")
    return msgspec.json.decode(shown, type=ResourceQuota).status.used


def test_pods_read_what_is_in_their_namespace_within_its_quota_and_end_with_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "prod.yaml").write_text(MANIFEST)
    cluster.podlane("apply", "-f", str(tmp_path))
    cluster.wait("two pods are ready", lambda: len(ready(cluster)) == 2, 90)
    assert used(cluster) == {"pods": "2", "requests.memory": "32Mi"}
    cluster.wait(
        "the third is refused",
        lambda: "exceeded quota: few" in cluster.podlane("describe", "rc/reader", "-n", "prod"),
        90,
    )
    pod = ready(cluster)[0]
    assert (pod.spec.priority, pod.status.qos_class) == (1000, "Burstable")
    script = "echo $(cat /shared/greeting) $COLOUR $PASSWORD $NAME"
    said = cluster.podlane("exec", pod.metadata.name, "-n", "prod", "-c", "web", "--", "sh", "-c", script)
    assert said.split() == ["hello", "blue", "hunter2", pod.metadata.name]

    (tmp_path / "prod.yaml").write_text(MANIFEST.replace("pods: 2", "pods: 5"))
    cluster.podlane("apply", "-f", str(tmp_path))
    cluster.wait("three pods are ready", lambda: len(ready(cluster)) == 3, 90)
    cluster.podlane("scale", "rc/reader", "-n", "prod", "--replicas=1")
    cluster.wait("one is counted", lambda: used(cluster) == {"pods": "1", "requests.memory": "16Mi"}, 90)

    cluster.podlane("delete", "ns", "prod")
    cluster.podlane("delete", "pc", "high")
    assert "prod" not in cluster.podlane("get", "rc,pods,cm,secrets,quota", "-A") + cluster.podlane("get", "ns")
