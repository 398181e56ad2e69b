"""Where pods go on three hosts, why one goes nowhere, and who makes way for a more important one."""

from __future__ import annotations

from pathlib import Path

import pytest
from driven_lab import Cluster

from podlane.api.meta import is_pod_ready
from podlane.lab.images import WEB_IMAGE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MANIFEST = f"""
apiVersion: v1
kind: ReplicationController
metadata: {{name: apart}}
spec:
  replicas: 4
  selector: {{app: apart}}
  template:
    metadata: {{labels: {{app: apart}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: web, image: {WEB_IMAGE}}}]
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - topologyKey: kubernetes.io/hostname
            labelSelector: {{matchLabels: {{app: apart}}}}
"""

IMPORTANT = f"""
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {{name: important}}
value: 1000
---
apiVersion: v1
kind: Pod
metadata: {{name: boss, labels: {{app: boss}}}}
spec:
  priorityClassName: important
  terminationGracePeriodSeconds: 1
  containers: [{{name: web, image: {WEB_IMAGE}}}]
  affinity:
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector: {{matchLabels: {{app: apart}}}}
"""


def apply(cluster: Cluster, folder: Path, text: str) -> None:
    (folder / "manifest.yaml").write_text(text)
    cluster.podlane("apply", "-f", str(folder / "manifest.yaml"))


def test_one_on_each_host_and_the_more_important_first(cluster, tmp_path):
    apply(cluster, tmp_path, MANIFEST)

    def placed() -> list[str]:
        return sorted(p.spec.node_name for p in cluster.pods("app=apart") if p.spec.node_name)

    def waiting() -> list[str]:
        return [p.metadata.name for p in cluster.pods("app=apart") if not p.spec.node_name]

    hosts = sorted(host.name for host in cluster.nodes)
    cluster.wait("one on each host, one left", lambda: placed() == hosts and len(waiting()) == 1)
    why = "0/3 nodes fit: 3 with pods it must avoid (app=apart by kubernetes.io/hostname)"
    cluster.wait("why it waits", lambda: why in cluster.podlane("describe", "pod", waiting()[0]))

    apply(cluster, tmp_path, IMPORTANT)
    cluster.wait("boss runs", lambda: [p for p in cluster.pods("app=boss") if is_pod_ready(p)])
    (boss,) = cluster.pods("app=boss")
    assert placed() == [name for name in hosts if name != boss.spec.node_name]
    cluster.wait("the victim's event", lambda: "Preempted by pod default/boss" in cluster.podlane("events"))

    cluster.podlane("delete", "pod", "boss")
    cluster.wait("its room is taken again", lambda: placed() == hosts)
    cluster.podlane("delete", "rc", "apart")
    cluster.podlane("delete", "priorityclass", "important")
    cluster.wait("all gone", lambda: not cluster.pods("app=apart") and not cluster.pods("app=boss"))
