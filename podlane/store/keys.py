"""The name of everything in etcd, both ways.

Owns: the form of every key. Invariant: no other module composes or takes apart
a key, so that the layouts other programs read (Kubernetes' under /registry)
are written in one place. Source: kube-apiserver's registry paths. flannel's
keys are netd's own (their prefix is configurable).
"""

from __future__ import annotations

from dataclasses import dataclass

from podlane.api.types import (
    ConfigMap,
    EndpointSlice,
    Event,
    Lease,
    Namespace,
    Node,
    Object,
    Pod,
    PriorityClass,
    ReplicationController,
    ResourceQuota,
    Secret,
    Service,
)
from podlane.errors import UsageError

REGISTRY = "/registry/"
CLUSTER_CONFIG = "/podlane/config"
ELECTION_SCHEDULER = "/podlane/election/scheduler"
BINDINGS = "/podlane/bindings/"
PROXIES = "/podlane/proxies/"
REPORTS = "/podlane/reports/"
JOIN_TOKENS = "/podlane/join-tokens/"
ADMINISTRATION = "/podlane-admin/"
"""Not below /podlane/, where operators write: who writes here decides who is a server."""
ENROLLED_NODES = "/podlane-admin/enrolled/nodes/"
ENROLLED_SERVERS = "/podlane-admin/enrolled/servers/"
SERVER_JOIN_TOKENS = "/podlane-admin/join-tokens/"
JOIN_SERVICES = "/podlane-admin/join-services/"
ISSUED = "/podlane-admin/issued/"
REVOKED = "/podlane-admin/revoked/"
REVOCATION_LIST = "/podlane-admin/revocation-list"
"""The list that an authority has signed of what is below REVOKED; every agent reads it."""
SERVICE_IPS = "/registry/ranges/serviceips/"
SERVICE_NODE_PORTS = "/registry/ranges/servicenodeports/"

_PREFIXES: dict[type[Object], str] = {
    Pod: "/registry/pods/",
    ReplicationController: "/registry/controllers/",
    Service: "/registry/services/specs/",
    EndpointSlice: "/registry/endpointslices/",
    Node: "/registry/minions/",
    Lease: "/registry/leases/",
    Event: "/registry/events/",
    Namespace: "/registry/namespaces/",
    ConfigMap: "/registry/configmaps/",
    Secret: "/registry/secrets/",
    ResourceQuota: "/registry/resourcequotas/",
    PriorityClass: "/registry/priorityclasses/",
}


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """What an object's key says; `namespace` is "" for kinds without one."""

    cls: type[Object]
    namespace: str
    name: str


def prefix_for(cls: type[Object], namespace: str | None = None) -> str:
    """Below it are all objects of a kind, or those of one namespace. Ends in a slash."""
    prefix = _PREFIXES[cls]
    return f"{prefix}{_part(namespace)}/" if namespace is not None and cls.NAMESPACED else prefix


def key_for(cls: type[Object], namespace: str, name: str) -> str:
    """The key of one object; the namespace counts only for kinds that have one."""
    prefix = _PREFIXES[cls]
    return f"{prefix}{_part(namespace)}/{_part(name)}" if cls.NAMESPACED else f"{prefix}{_part(name)}"


def pod_key(namespace: str, name: str) -> str:
    return key_for(Pod, namespace, name)


def parse_key(key: str) -> ObjectKey:
    """The reverse of `key_for`. Raises ValueError for a key that is no object's."""
    for cls, prefix in _PREFIXES.items():
        if key.startswith(prefix):
            parts = key[len(prefix) :].split("/")
            if all(parts) and len(parts) == (2 if cls.NAMESPACED else 1):
                return ObjectKey(cls, parts[0] if cls.NAMESPACED else "", parts[-1])
    raise ValueError(f'parse key: no object has the key "{key}"')


def bindings_prefix(node: str) -> str:
    """Below it are copies of the pods bound to one node. Ends in a slash."""
    return f"{BINDINGS}{_part(node)}/"


def binding_key(node: str, namespace: str, name: str) -> str:
    return f"{bindings_prefix(node)}{_part(namespace)}/{_part(name)}"


def proxy_key(node: str) -> str:
    """What the proxyd of a node has told of itself; see podlane.store.proxies."""
    return f"{PROXIES}{_part(node)}"


@dataclass(frozen=True, slots=True)
class ReportKey:
    """What the key of a report says: whose it is, and which pod or event it is of.

    `component` is the daemon that tells of an event, "" for the report of a pod.
    """

    node: str
    component: str
    namespace: str
    name: str


def pod_reports_prefix(node: str) -> str:
    """Below it are a node's reports of its pods; see podlane.store.reports. Ends in a slash."""
    return f"{REPORTS}{_part(node)}/pods/"


def pod_report_key(node: str, namespace: str, name: str) -> str:
    return f"{pod_reports_prefix(node)}{_part(namespace)}/{_part(name)}"


def event_reports_prefix(node: str, component: str) -> str:
    """Below it are the events that a daemon of a node tells of. Ends in a slash."""
    return f"{REPORTS}{_part(node)}/events/{_part(component)}/"


def event_report_key(node: str, component: str, namespace: str, name: str) -> str:
    return f"{event_reports_prefix(node, component)}{_part(namespace)}/{_part(name)}"


def parse_report_key(key: str) -> ReportKey:
    """The reverse of `pod_report_key` and `event_report_key`. Raises ValueError for a key that is neither."""
    match key.removeprefix(REPORTS).split("/"):
        case [node, "pods", namespace, name] if node and namespace and name:
            return ReportKey(node, "", namespace, name)
        case [node, "events", component, namespace, name] if node and component and namespace and name:
            return ReportKey(node, component, namespace, name)
    raise ValueError(f'parse key: no report has the key "{key}"')


def is_event_report(key: str) -> bool:
    """Whether a key below REPORTS, given without that, is (or pretends to be) of an event."""
    return key.split("/")[1:2] == ["events"]


def enrolled_node_key(node: str) -> str:
    """That a node has an identity in this cluster; see podlane.host.enrol."""
    return f"{ENROLLED_NODES}{_part(node)}"


def enrolled_server_key(server: str) -> str:
    return f"{ENROLLED_SERVERS}{_part(server)}"


def join_token_key(identity: str, *, server: bool = False) -> str:
    """`server`: of a token that makes a server."""
    return f"{SERVER_JOIN_TOKENS if server else JOIN_TOKENS}{_part(identity)}"


def join_service_key(server: str) -> str:
    """Exists while that server lets nodes join."""
    return f"{JOIN_SERVICES}{_part(server)}"


def issued_to_prefix(common_name: str) -> str:
    """Below it each server has what it has signed for that name; see podlane.store.revocations. Ends in a slash."""
    return f"{ISSUED}{_part(common_name)}/"


def issued_key(common_name: str, server: str) -> str:
    return f"{issued_to_prefix(common_name)}{_part(server)}"


def revoked_key(serial: int) -> str:
    """Exists while a certificate is revoked and would be good otherwise."""
    return f"{REVOKED}{serial:x}"


def service_ip_key(ip: str) -> str:
    """Exists while a service has this cluster IP."""
    return f"{SERVICE_IPS}{_part(ip)}"


def service_node_port_key(port: int) -> str:
    """Exists while a service has this port on every node."""
    return f"{SERVICE_NODE_PORTS}{port}"


def _part(text: str) -> str:
    """One path element: an empty one or one with a slash would name something else."""
    if not text or "/" in text:
        raise UsageError(f'compose key: expected a name without "/", got "{text}"')
    return text
