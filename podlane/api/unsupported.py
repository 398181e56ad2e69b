"""The fields Kubernetes has and Podlane does not, and what may be said in them all the same.

Owns: one table per type. Invariant: a field is in the type (supported), in
this table (refused by name, but for the values listed, which say what Podlane
does anyway), or unknown. The values listed are the defaults that the API
server of a Kubernetes cluster writes, so that what `kubectl get -o yaml`
exports can be applied unchanged. Empty values (null, "", [], {}, false) are
accepted everywhere, except where a false is listed as refused.
Source: the Kubernetes 1.35 v1 API reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from podlane.api import types

Accepts = Callable[[Any], bool]


def _nothing(value: Any) -> bool:
    """Nothing but what is empty."""
    return value is False or value in ("", [], {})


def _only(*values: Any) -> Accepts:
    """These values, and what is empty unless it is a false."""

    def accepts(value: Any) -> bool:
        if isinstance(value, bool):
            return any(value is allowed for allowed in values)
        return value in ("", [], {}) or any(value == allowed and type(value) is type(allowed) for allowed in values)

    accepts.default = next((value for value in values if value), None)  # type: ignore[attr-defined]
    return accepts


def _anything(value: Any) -> bool:
    """Set by the server, without meaning in a manifest."""
    del value
    return True


# what Kubernetes' admission adds to every pod: the service account's token …
_ACCESS_VOLUME = "kube-api-access-"
_ACCESS_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
# … and five minutes' patience with a node that is away
_DEFAULT_TOLERATIONS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def _access_volumes(value: Any) -> bool:
    return value == {} or _each(value, lambda v: str(v.get("name", "")).startswith(_ACCESS_VOLUME) and "projected" in v)


def _access_mounts(value: Any) -> bool:
    return value == {} or _each(value, lambda v: v.get("mountPath") == _ACCESS_PATH)


def _default_tolerations(value: Any) -> bool:
    return value == {} or _each(
        value,
        lambda v: (
            v.get("key") in _DEFAULT_TOLERATIONS
            and v.get("effect") == "NoExecute"
            and v.get("tolerationSeconds") == 300
        ),
    )


def _each(value: Any, test: Callable[[Mapping[str, Any]], bool]) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) and test(item) for item in value)


def _fields(*refused: str, **accepted: Accepts) -> dict[str, Accepts]:
    return {**dict.fromkeys(refused, _nothing), **accepted}


UNSUPPORTED: dict[type[types.Struct], dict[str, Accepts]] = {
    types.ObjectMeta: _fields("finalizers", managedFields=_anything, selfLink=_anything, clusterName=_anything),
    types.PodSpec: _fields(
        "activeDeadlineSeconds",
        "affinity",
        "dnsConfig",
        "ephemeralContainers",
        "hostAliases",
        "hostIPC",
        "hostNetwork",
        "hostPID",
        "hostnameOverride",
        "imagePullSecrets",
        "initContainers",
        "os",
        "overhead",
        "priorityClassName",
        "readinessGates",
        "resourceClaims",
        "resources",
        "runtimeClassName",
        "schedulingGates",
        "schedulingGroup",
        "securityContext",
        "setHostnameAsFQDN",
        "shareProcessNamespace",
        "subdomain",
        "topologySpreadConstraints",
        "workloadRef",
        automountServiceAccountToken=_only(True, False),
        dnsPolicy=_only("ClusterFirst"),
        enableServiceLinks=_only(True, False),
        hostUsers=_only(True),
        preemptionPolicy=_only("PreemptLowerPriority"),
        priority=_only(0),
        schedulerName=_only("default-scheduler"),
        serviceAccount=_only("default"),
        serviceAccountName=_only("default"),
        tolerations=_default_tolerations,
        volumes=_access_volumes,
    ),
    types.Container: _fields(
        "envFrom",
        "lifecycle",
        "livenessProbe",
        "resizePolicy",
        "restartPolicy",
        "restartPolicyRules",
        "securityContext",
        "startupProbe",
        "stdin",
        "stdinOnce",
        "tty",
        "volumeDevices",
        terminationMessagePath=_only("/dev/termination-log"),
        terminationMessagePolicy=_only("File"),
        volumeMounts=_access_mounts,
    ),
    types.ContainerPort: _fields("hostIP", hostPort=_only(0)),
    types.EnvVar: _fields("valueFrom"),
    types.ResourceRequirements: _fields("claims"),
    types.Probe: _fields("grpc", "terminationGracePeriodSeconds"),
    types.Endpoint: _fields("deprecatedTopology"),
    types.NodeSpec: _fields("configSource", "externalID", "providerID", "taints", podCIDRs=_anything),
    types.LeaseSpec: _fields("preferredHolder", "strategy"),
    types.Event: _fields(
        "action", "eventTime", "related", "series", reportingComponent=_anything, reportingInstance=_anything
    ),
    types.NamespaceSpec: _fields(finalizers=_only(["kubernetes"])),
}

VALUES: dict[tuple[type[types.Struct], str], frozenset[str]] = {
    (types.EndpointSlice, "addressType"): frozenset({"FQDN"}),
}
"""Values of supported fields that Kubernetes has and Podlane does not."""

KINDS = frozenset(
    {
        "APIService",
        "Binding",
        "CertificateSigningRequest",
        "ClusterRole",
        "ClusterRoleBinding",
        "ComponentStatus",
        "ConfigMap",
        "ControllerRevision",
        "CronJob",
        "CSIDriver",
        "CSINode",
        "CustomResourceDefinition",
        "DaemonSet",
        "Deployment",
        "DeviceClass",
        "Endpoints",
        "FlowSchema",
        "HorizontalPodAutoscaler",
        "IPAddress",
        "Ingress",
        "IngressClass",
        "Job",
        "LimitRange",
        "MutatingWebhookConfiguration",
        "NetworkPolicy",
        "PersistentVolume",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "PodTemplate",
        "PriorityClass",
        "PriorityLevelConfiguration",
        "ReplicaSet",
        "ResourceClaim",
        "ResourceClaimTemplate",
        "ResourceQuota",
        "ResourceSlice",
        "Role",
        "RoleBinding",
        "RuntimeClass",
        "Secret",
        "ServiceAccount",
        "ServiceCIDR",
        "StatefulSet",
        "StorageClass",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "ValidatingWebhookConfiguration",
        "VolumeAttachment",
    }
)
"""Kinds that Kubernetes has and Podlane does not."""

SERVER_SET = frozenset(
    {
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    }
)
"""Metadata that a manifest may carry (an export does) and that is the server's alone to say."""


def default_of(accepts: Accepts) -> Any:
    """The value of a field that is accepted beside empty ones, for the error; None if there is none."""
    return getattr(accepts, "default", None)
