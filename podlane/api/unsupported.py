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


# what Kubernetes' admission adds to every pod: the service account's token
_ACCESS_VOLUME = "kube-api-access-"
_ACCESS_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"


def _is_access_volume(item: Mapping[str, Any]) -> bool:
    return str(item.get("name", "")).startswith(_ACCESS_VOLUME) and "projected" in item


def _is_access_mount(item: Mapping[str, Any]) -> bool:
    return item.get("mountPath") == _ACCESS_PATH


DROPPED: dict[tuple[type[types.Struct], str], Callable[[Mapping[str, Any]], bool]] = {
    (types.PodSpec, "volumes"): _is_access_volume,
    (types.Container, "volumeMounts"): _is_access_mount,
}
"""Items of lists that are left out when they are read."""


def _fields(*refused: str, **accepted: Accepts) -> dict[str, Accepts]:
    return {**dict.fromkeys(refused, _nothing), **accepted}


UNSUPPORTED: dict[type[types.Struct], dict[str, Accepts]] = {
    types.ObjectMeta: _fields(managedFields=_anything, selfLink=_anything, clusterName=_anything),
    types.PodSpec: _fields(
        "dnsConfig",
        "ephemeralContainers",
        "hostIPC",
        "hostPID",
        "hostnameOverride",
        "imagePullSecrets",
        "os",
        "overhead",
        "readinessGates",
        "resourceClaims",
        "resources",
        "runtimeClassName",
        "schedulingGates",
        "schedulingGroup",
        "setHostnameAsFQDN",
        "shareProcessNamespace",
        "subdomain",
        "workloadRef",
        automountServiceAccountToken=_only(True, False),
        dnsPolicy=_only("ClusterFirst"),
        hostUsers=_only(True),
        schedulerName=_only("default-scheduler"),
        serviceAccount=_only("default"),
        serviceAccountName=_only("default"),
    ),
    types.Container: _fields(
        "resizePolicy",
        "restartPolicyRules",
        "volumeDevices",
    ),
    types.SecurityContext: _fields(
        "appArmorProfile",
        "seLinuxOptions",
        "windowsOptions",
        procMount=_only("Default"),
        seccompProfile=_only({"type": "RuntimeDefault"}),
    ),
    types.PodSecurityContext: _fields(
        "appArmorProfile",
        "seLinuxChangePolicy",
        "seLinuxOptions",
        "supplementalGroupsPolicy",
        "sysctls",
        "windowsOptions",
        fsGroupChangePolicy=_only("Always"),
        seccompProfile=_only({"type": "RuntimeDefault"}),
    ),
    types.Volume: _fields(
        "awsElasticBlockStore",
        "azureDisk",
        "azureFile",
        "cephfs",
        "cinder",
        "csi",
        "ephemeral",
        "fc",
        "flexVolume",
        "flocker",
        "gcePersistentDisk",
        "gitRepo",
        "glusterfs",
        "image",
        "iscsi",
        "nfs",
        "persistentVolumeClaim",
        "photonPersistentDisk",
        "portworxVolume",
        "projected",
        "quobyte",
        "rbd",
        "scaleIO",
        "storageos",
        "vsphereVolume",
    ),
    types.VolumeMount: _fields("subPathExpr", mountPropagation=_only("None"), recursiveReadOnly=_only("Disabled")),
    types.EnvVarSource: _fields("fileKeyRef"),
    types.Lifecycle: _fields("stopSignal"),
    types.ResourceRequirements: _fields("claims"),
    types.Endpoint: _fields("deprecatedTopology"),
    types.NodeSpec: _fields("configSource", "externalID"),
    types.LeaseSpec: _fields("preferredHolder", "strategy"),
    types.Event: _fields(
        "action", "eventTime", "related", "series", reportingComponent=_anything, reportingInstance=_anything
    ),
    types.ResourceQuotaSpec: _fields("scopeSelector"),
}

VALUES: dict[tuple[type[types.Struct], str], frozenset[str]] = {
    (types.EndpointSlice, "addressType"): frozenset({"FQDN"}),
    (types.Toleration, "operator"): frozenset({"Gt", "Lt"}),
    (types.Container, "restartPolicy"): frozenset({"OnFailure", "Never"}),
    (types.ResourceQuotaSpec, "scopes"): frozenset({"PriorityClass", "CrossNamespacePodAffinity"}),
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
        "PriorityLevelConfiguration",
        "ReplicaSet",
        "ResourceClaim",
        "ResourceClaimTemplate",
        "ResourceSlice",
        "Role",
        "RoleBinding",
        "RuntimeClass",
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
