"""What Kubernetes refuses in a pod, read from manifests: one line added to a valid pod, and every error it gives."""

import io

import pytest

from podlane.api import types
from podlane.api.manifest import InvalidManifest, load

pytestmark = pytest.mark.unit

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: conf, configMap: {name: web}}
"""
C = "containers[0]"


def pod(*, container: str = "", spec: str = "") -> types.Pod:
    text = POD if not spec.startswith("volumes:") else POD.partition("  volumes:")[0]
    text += "".join(f"  {line}\n" for line in spec.splitlines())
    text += "  containers:\n  - name: web\n    image: web:1\n"
    text += "".join(f"    {line}\n" for line in container.splitlines())
    (manifest,) = load(["-"], io.StringIO(text))
    assert isinstance(manifest.obj, types.Pod)
    return manifest.obj


def errors(*, container: str = "", spec: str = "") -> list[str]:
    try:
        pod(container=container, spec=spec)
    except InvalidManifest as wrong:
        return [str(error).removeprefix("stdin Pod/web: spec.") for error in wrong.errors]
    return []


ENV = f"{C}.env[0].valueFrom"
LIVE = "tcpSocket: {port: 80}"


@pytest.mark.parametrize(
    ("line", "want"),
    [
        # environment
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]", []),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}]", []),
        (
            "env: [{name: A, value: b, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]",
            [f"{ENV}: not beside a value"],
        ),
        (
            "env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.labels}}}]",
            [
                f"{ENV}.fieldRef.fieldPath: expected one of metadata.name, metadata.namespace, metadata.uid, "
                "spec.nodeName, spec.serviceAccountName, status.hostIP, status.hostIPs, status.podIP, status.podIPs, "
                "metadata.labels['KEY'] and metadata.annotations['KEY'], got \"metadata.labels\""
            ],
        ),
        (
            "env: [{name: A, valueFrom: {}}]",
            [f"{ENV}: expected exactly one of fieldRef, resourceFieldRef, configMapKeyRef and secretKeyRef, got none"],
        ),
        ("env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}]", []),
        (
            "env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 2}}}]",
            [f'{ENV}.resourceFieldRef.divisor: expected one of 1m, 1, got "2"'],
        ),
        (
            "env: [{name: A, valueFrom: {configMapKeyRef: {name: web, key: ../a}}}]",
            [
                f"{ENV}.configMapKeyRef.key: expected a key of letters, digits, '-', '_' and '.', "
                'not beginning with "..", got "../a"'
            ],
        ),
        ("env: [{name: A, valueFrom: {secretKeyRef: {key: a}}}]", [f"{ENV}.secretKeyRef.name: required"]),
        ("envFrom: [{prefix: P_, configMapRef: {name: web, optional: true}}, {secretRef: {name: web}}]", []),
        ("envFrom: [{}]", [f"{C}.envFrom[0]: expected exactly one of configMapRef and secretRef, got none"]),
        ("envFrom: [{secretRef: {}}]", [f"{C}.envFrom[0].secretRef.name: required"]),
        # ports
        ("ports: [{containerPort: 80, hostPort: 8080, hostIP: 10.0.0.1}]", []),
        ("ports: [{containerPort: 80, hostPort: 0}]", []),
        (
            "ports: [{containerPort: 80, hostPort: 70000}]",
            [f"{C}.ports[0].hostPort: expected a port number 1 to 65535, got 70000"],
        ),
        (
            "ports: [{containerPort: 80, hostPort: 80, hostIP: node1}]",
            [f'{C}.ports[0].hostIP: expected an IP address, got "node1"'],
        ),
        (
            "ports: [{containerPort: 80, hostPort: 80}, {containerPort: 81, hostPort: 80}]",
            [f"{C}.ports[1].hostPort: duplicate port 80, also of containers[0].ports[0].hostPort"],
        ),
        (
            "ports: [{containerPort: 80, hostPort: 80}, {containerPort: 80, hostPort: 80, protocol: UDP, name: b}]",
            [],
        ),
        # mounts
        ("volumeMounts: [{name: scratch, mountPath: /a, subPath: b/c}, {name: conf, mountPath: /b}]", []),
        (
            "volumeMounts: [{name: data, mountPath: /a}]",
            [f'{C}.volumeMounts[0].name: expected the name of one of the pod\'s volumes, got "data"'],
        ),
        (
            "volumeMounts: [{name: conf, mountPath: /a}, {name: scratch, mountPath: /a}]",
            [f'{C}.volumeMounts[1].mountPath: duplicate path "/a", also of volumeMounts[0]'],
        ),
        (
            "volumeMounts: [{name: scratch, mountPath: a}]",
            [f'{C}.volumeMounts[0].mountPath: expected an absolute path, got "a"'],
        ),
        (
            "volumeMounts: [{name: scratch, mountPath: /a, subPath: b/../../c}]",
            [f'{C}.volumeMounts[0].subPath: expected a relative path without "..", got "b/../../c"'],
        ),
        # probes
        (f"livenessProbe: {{{LIVE}, terminationGracePeriodSeconds: 5}}\nstartupProbe: {{grpc: {{port: 80}}}}", []),
        (
            f"livenessProbe: {{{LIVE}, successThreshold: 2}}",
            [f"{C}.livenessProbe.successThreshold: expected 1, got 2"],
        ),
        (f"startupProbe: {{{LIVE}, successThreshold: 3}}", [f"{C}.startupProbe.successThreshold: expected 1, got 3"]),
        (
            f"livenessProbe: {{{LIVE}, terminationGracePeriodSeconds: 0}}",
            [f"{C}.livenessProbe.terminationGracePeriodSeconds: expected an integer ≥ 1, got 0"],
        ),
        (
            f"readinessProbe: {{{LIVE}, terminationGracePeriodSeconds: 5}}",
            [f"{C}.readinessProbe.terminationGracePeriodSeconds: not in a readinessProbe, which ends no container"],
        ),
        (
            "livenessProbe: {grpc: {port: 0}}",
            [f"{C}.livenessProbe.grpc.port: expected a port number 1 to 65535, got 0"],
        ),
        # hooks
        ("lifecycle: {preStop: {sleep: {seconds: 30}}, postStart: {exec: {command: [a]}}}", []),
        (
            "lifecycle: {preStop: {sleep: {seconds: 31}}}",
            [
                f"{C}.lifecycle.preStop.sleep.seconds: expected an integer 0 to 30, "
                "the terminationGracePeriodSeconds, got 31"
            ],
        ),
        (
            "lifecycle: {preStop: {}}",
            [f"{C}.lifecycle.preStop: expected exactly one of exec, httpGet, tcpSocket and sleep, got none"],
        ),
        # security
        ("securityContext: {runAsUser: 1000, capabilities: {add: [NET_ADMIN], drop: [ALL]}, privileged: false}", []),
        ("securityContext: {runAsUser: -1}", [f"{C}.securityContext.runAsUser: expected an integer ≥ 0, got -1"]),
        (
            "securityContext: {privileged: true, allowPrivilegeEscalation: false}",
            [f"{C}.securityContext.allowPrivilegeEscalation: expected true where privileged is true, got false"],
        ),
        (
            "securityContext: {allowPrivilegeEscalation: false, capabilities: {add: [CAP_SYS_ADMIN]}}",
            [f"{C}.securityContext.allowPrivilegeEscalation: expected true where SYS_ADMIN is added, got false"],
        ),
        ("restartPolicy: Always", [f"{C}.restartPolicy: only in an init container"]),
    ],
)
def test_containers(line: str, want: list[str]) -> None:
    assert errors(container=line) == want


V = "volumes[0]"
OVER = "requiredDuringSchedulingIgnoredDuringExecution"
LIKES = "preferredDuringSchedulingIgnoredDuringExecution"
NODES = f"affinity.nodeAffinity.{OVER}.nodeSelectorTerms"
PODS = f"affinity.podAntiAffinity.{OVER}[0]"
ZONE = "topologyKey: topology.kubernetes.io/zone"


@pytest.mark.parametrize(
    ("line", "want"),
    [
        # init containers
        ("initContainers: [{name: a, image: b:1, volumeMounts: [{name: scratch, mountPath: /a}]}]", []),
        (
            "initContainers: [{name: web, image: b:1}]",
            [f'{C}.name: duplicate name "web", also of initContainers[0]'],
        ),
        (
            f"initContainers: [{{name: a, image: b:1, livenessProbe: {{{LIVE}}}, lifecycle: {{}}}}]",
            [
                f'initContainers[0].{field}: not in an init container, unless its restartPolicy is "Always"'
                for field in ("livenessProbe", "lifecycle")
            ],
        ),
        (f"initContainers: [{{name: a, image: b:1, restartPolicy: Always, startupProbe: {{{LIVE}}}}}]", []),
        # volumes
        ("volumes: [{name: a, emptyDir: {medium: Memory, sizeLimit: 64Mi}}, {name: b}]", []),
        (
            "volumes: [{name: a, emptyDir: {sizeLimit: -1}}]",
            [f"{V}.emptyDir.sizeLimit: expected a quantity ≥ 0, got -1"],
        ),
        ("volumes: [{name: a}, {name: a}]", ['volumes[1].name: duplicate name "a", also of volumes[0]']),
        (
            "volumes: [{name: a, emptyDir: {}, hostPath: {path: /a}}]",
            [f"{V}: expected exactly one source, got emptyDir and hostPath"],
        ),
        (
            "volumes: [{name: a, hostPath: {path: /a, type: Folder}}]",
            [
                f'{V}.hostPath.type: expected "DirectoryOrCreate" or "Directory" or "FileOrCreate" or "File" or '
                '"Socket" or "CharDevice" or "BlockDevice", got "Folder"'
            ],
        ),
        (
            "volumes: [{name: a, hostPath: {path: /a/../b}}]",
            [f'{V}.hostPath.path: expected an absolute path without "..", got "/a/../b"'],
        ),
        ("volumes: [{name: a, configMap: {}}]", [f"{V}.configMap.name: required"]),
        (
            "volumes: [{name: a, secret: {secretName: b, defaultMode: 0o1000}}]",
            [f"{V}.secret.defaultMode: expected a mode 0 to 0777 (511), got 512"],
        ),
        (
            "volumes: [{name: a, configMap: {name: b, items: [{key: c, path: /d}]}}]",
            [f'{V}.configMap.items[0].path: expected a relative path without "..", got "/d"'],
        ),
        (
            "volumes: [{name: a, configMap: {name: b, items: [{key: c, path: ..d}]}}]",
            [f'{V}.configMap.items[0].path: expected a path that does not begin with "..", got "..d"'],
        ),
        (
            "volumes: [{name: a, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}]",
            [],
        ),
        (
            "volumes: [{name: a, downwardAPI: {items: [{path: b, resourceFieldRef: {resource: limits.cpu}}]}}]",
            [f"{V}.downwardAPI.items[0].resourceFieldRef.containerName: required"],
        ),
        # placement
        ("tolerations: [{operator: Exists}, {key: a, value: b, effect: NoExecute, tolerationSeconds: 0}]", []),
        (
            "tolerations: [{value: a}]",
            ['tolerations[0].operator: expected "Exists" where there is no key, got "Equal"'],
        ),
        (
            "tolerations: [{key: a, operator: Exists, value: b}]",
            ['tolerations[0].value: expected nothing where operator is "Exists", got "b"'],
        ),
        (
            "tolerations: [{key: a, effect: NoSchedule, tolerationSeconds: 5}]",
            ['tolerations[0].effect: expected "NoExecute" beside tolerationSeconds, got "NoSchedule"'],
        ),
        (
            f"affinity: {{nodeAffinity: {{{OVER}: {{nodeSelectorTerms: []}}}}}}",
            [f"{NODES}: required: at least one term"],
        ),
        (
            f"affinity: {{nodeAffinity: {{{OVER}: {{nodeSelectorTerms: [{{matchExpressions: "
            "[{key: a, operator: In}, {key: a, operator: Exists, values: [b]}, {key: a, operator: Gt, values: [b]}, "
            "{key: a, operator: Lt, values: ['1', '2']}, {key: a, operator: DoesNotExist}]}]}}}",
            [
                f'{NODES}[0].matchExpressions[0].values: required where operator is "In"',
                f'{NODES}[0].matchExpressions[1].values: expected none where operator is "Exists", got 1',
                f'{NODES}[0].matchExpressions[2].values[0]: expected an integer, got "b"',
                f'{NODES}[0].matchExpressions[3].values: expected exactly one where operator is "Lt", got 2',
            ],
        ),
        (
            f"affinity: {{nodeAffinity: {{{OVER}: {{nodeSelectorTerms: [{{matchFields: "
            "[{key: metadata.uid, operator: In, values: [a, b]}]}]}}}",
            [
                f'{NODES}[0].matchFields[0].key: expected "metadata.name", got "metadata.uid"',
                f"{NODES}[0].matchFields[0].values: expected exactly one, got 2",
            ],
        ),
        (
            f"affinity: {{nodeAffinity: {{{LIKES}: [{{weight: 101, preference: {{}}}}]}}}}",
            [f"affinity.nodeAffinity.{LIKES}[0].weight: expected an integer 1 to 100, got 101"],
        ),
        (
            f"affinity: {{podAffinity: {{{LIKES}: [{{weight: 0, podAffinityTerm: {{{ZONE}}}}}]}}}}",
            [f"affinity.podAffinity.{LIKES}[0].weight: expected an integer 1 to 100, got 0"],
        ),
        (
            f"affinity: {{podAntiAffinity: {{{OVER}: [{{topologyKey: '', namespaces: [A], matchLabelKeys: [v]}}]}}}}",
            [
                f"{PODS}.namespaces[0]: expected a DNS label (lower case letters, digits and '-', beginning and ending "
                'with a letter or digit), got "A"',
                f"{PODS}.topologyKey: required",
                f"{PODS}.matchLabelKeys: not without a labelSelector",
            ],
        ),
        (f"topologySpreadConstraints: [{{maxSkew: 1, {ZONE}, whenUnsatisfiable: DoNotSchedule, minDomains: 2}}]", []),
        (
            f"topologySpreadConstraints: [{{maxSkew: 0, {ZONE}, whenUnsatisfiable: ScheduleAnyway, minDomains: 0}}]",
            [
                "topologySpreadConstraints[0].maxSkew: expected an integer ≥ 1, got 0",
                "topologySpreadConstraints[0].minDomains: expected an integer ≥ 1, got 0",
                'topologySpreadConstraints[0].minDomains: not where whenUnsatisfiable is "ScheduleAnyway"',
            ],
        ),
        (
            "topologySpreadConstraints: "
            f"[{', '.join([f'{{maxSkew: 1, {ZONE}, whenUnsatisfiable: DoNotSchedule}}'] * 2)}]",
            ["topologySpreadConstraints[1]: duplicate topologyKey and whenUnsatisfiable, also of [0]"],
        ),
        (
            f"topologySpreadConstraints: [{{maxSkew: 1, {ZONE}}}]",
            ["topologySpreadConstraints[0].whenUnsatisfiable: required"],
        ),
        # the pod as a whole
        ("activeDeadlineSeconds: 0", ["activeDeadlineSeconds: expected an integer ≥ 1, got 0"]),
        ("hostAliases: [{ip: 10.0.0.1, hostnames: [a, b.c]}]", []),
        ("hostAliases: [{ip: a}]", ['hostAliases[0].ip: expected an IP address, got "a"']),
        ("securityContext: {runAsUser: 0, fsGroup: -1}", ["securityContext.fsGroup: expected an integer ≥ 0, got -1"]),
        ("preemptionPolicy: Always", ['preemptionPolicy: expected "PreemptLowerPriority" or "Never", got "Always"']),
    ],
)
def test_pods(line: str, want: list[str]) -> None:
    assert errors(spec=line) == want


def test_on_the_nodes_network_a_port_is_the_nodes() -> None:
    assert errors(spec="hostNetwork: true", container="ports: [{containerPort: 80, hostPort: 81}]") == [
        f"{C}.ports[0].containerPort: expected the hostPort 81, because hostNetwork is true, got 80"
    ]
    assert errors(spec="hostNetwork: true", container="ports: [{containerPort: 80, hostPort: 80}]") == []


def test_what_kubernetes_fills_in() -> None:
    filled = pod(
        spec="volumes: [{name: a}]\ninitContainers: [{name: i, image: i, resources: {limits: {cpu: 1}}}]",
        container="livenessProbe: {httpGet: {port: 80, path: ''}, periodSeconds: 0}\n"
        "lifecycle: {preStop: {httpGet: {port: 80, path: ''}}}",
    )
    assert filled.spec.volumes == (types.Volume(name="a", empty_dir=types.EmptyDirVolumeSource()),)
    init = filled.spec.init_containers[0]
    assert (init.image_pull_policy, init.resources.requests) == ("Always", {"cpu": "1"})
    web = filled.spec.containers[0]
    assert web.liveness_probe == types.Probe(http_get=types.HTTPGetAction(port=80))
    assert web.lifecycle is not None
    assert web.lifecycle.pre_stop == types.LifecycleHandler(http_get=types.HTTPGetAction(port=80))


def test_a_pod_without_tolerations_gets_none() -> None:
    """Kubernetes adds five minutes for nodes that are away; here the cluster's grace period says how long."""
    assert pod().spec.tolerations == ()
