"""What belongs to the cluster as a whole: namespaces, events, and Podlane's own configuration."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from podlane.api.types.base import Condition, Object, ObjectReference, Struct, Time


class EventSource(Struct, frozen=True, kw_only=True):
    component: str = ""
    host: str = ""


class Event(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Event"
    involved_object: ObjectReference = ObjectReference()
    reason: str = ""
    message: str = ""
    type: Literal["Normal", "Warning"] = "Normal"
    source: EventSource = EventSource()
    count: int = 1
    first_timestamp: Time | None = None
    last_timestamp: Time | None = None


class NamespaceSpec(Struct, frozen=True, kw_only=True):
    """While `finalizers` has entries the namespace is not removed; "kubernetes" is ours, until it is empty."""

    finalizers: tuple[str, ...] = ()


class NamespaceStatus(Struct, frozen=True, kw_only=True):
    phase: Literal["Active", "Terminating"] = "Active"
    conditions: tuple[Condition, ...] = ()


class Namespace(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Namespace"
    NAMESPACED: ClassVar[bool] = False
    spec: NamespaceSpec = NamespaceSpec()
    status: NamespaceStatus = NamespaceStatus()


class ClusterConfig(Struct, frozen=True, kw_only=True):
    """The value of `/podlane/config`. Times in seconds.

    `service_cidr`: the service range, or one range a family separated by a comma.
    `service_node_port_range`: from and to, both included.
    `node_lease_seconds`: how long a silent node counts as alive (etcd refuses
    less than 2); `node_grace_seconds`: how long after that its pods are replaced;
    `node_not_ready_seconds`: how long those stay on a node that lives and is not ready.
    (Both for pods that have no toleration of their own.) `node_eviction_share`: of all
    nodes, those whose pods may be replaced within ten seconds; at least one.
    """

    service_cidr: str = msgspec.field(default="10.96.0.0/16", name="serviceCIDR")
    service_node_port_range: str = "30000-32767"
    cluster_domain: str = "cluster.local"
    node_lease_seconds: int = 10
    node_grace_seconds: int = 5
    node_not_ready_seconds: int = 300
    node_eviction_share: float = 0.25
    agent_token: str = ""
