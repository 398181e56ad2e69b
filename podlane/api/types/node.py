"""Nodes, and the leases by which they and the schedulers say that they live."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from podlane.api.types.base import Condition, Object, Struct, Time
from podlane.api.types.scheduling import TaintEffect

HOSTNAME_LABEL = "kubernetes.io/hostname"
ZONE_LABEL = "topology.kubernetes.io/zone"
AGENT_CERTIFICATE_ANNOTATION = "podlane.io/agent-certificate-sha256"
"""On a Node: the SHA-256 of the certificate (DER) that its agent's port shows, in hexadecimal."""
NODE_LEASE_NAMESPACE = "kube-node-lease"


class Taint(Struct, frozen=True, kw_only=True):
    """`time_added` counts for NoExecute: from then on tolerationSeconds run."""

    key: str
    effect: TaintEffect
    value: str = ""
    time_added: Time | None = None


class NodeSpec(Struct, frozen=True, kw_only=True):
    """`pod_cidr` is the first of `pod_cidrs`."""

    pod_cidr: str = msgspec.field(default="", name="podCIDR")
    pod_cidrs: tuple[str, ...] = msgspec.field(default=(), name="podCIDRs")
    provider_id: str = msgspec.field(default="", name="providerID")
    unschedulable: bool = False
    taints: tuple[Taint, ...] = ()


class NodeAddress(Struct, frozen=True, kw_only=True):
    type: Literal["InternalIP", "ExternalIP", "Hostname"]
    address: str


class DaemonEndpoint(Struct, frozen=True, kw_only=True, rename={"port": "Port"}):
    port: int = 0


class NodeDaemonEndpoints(Struct, frozen=True, kw_only=True):
    kubelet_endpoint: DaemonEndpoint = DaemonEndpoint()


class NodeSystemInfo(Struct, frozen=True, kw_only=True):
    machine_id: str = msgspec.field(default="", name="machineID")
    system_uuid: str = msgspec.field(default="", name="systemUUID")
    boot_id: str = msgspec.field(default="", name="bootID")
    kernel_version: str = ""
    os_image: str = ""
    container_runtime_version: str = ""
    kubelet_version: str = ""
    kube_proxy_version: str = ""
    operating_system: str = "linux"
    architecture: str = ""


class ContainerImage(Struct, frozen=True, kw_only=True):
    """An image a node has, with every name it goes by."""

    names: tuple[str, ...] = ()
    size_bytes: int = 0


class NodeStatus(Struct, frozen=True, kw_only=True):
    capacity: dict[str, str] = {}
    allocatable: dict[str, str] = {}
    conditions: tuple[Condition, ...] = ()
    addresses: tuple[NodeAddress, ...] = ()
    daemon_endpoints: NodeDaemonEndpoints = NodeDaemonEndpoints()
    node_info: NodeSystemInfo = NodeSystemInfo()
    images: tuple[ContainerImage, ...] = ()


class Node(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Node"
    NAMESPACED: ClassVar[bool] = False
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


LEASE_RENEWALS = 2
"""A node's heartbeat is written again every so many of its `lease_duration_seconds`."""
LEASE_SILENCE = 5
"""One that is kept, but was not written for so many of them, is not its agent's: 50 s by default, Kubernetes' grace."""


class LeaseSpec(Struct, frozen=True, kw_only=True):
    holder_identity: str = ""
    lease_duration_seconds: int = 0
    acquire_time: Time | None = None
    renew_time: Time | None = None
    lease_transitions: int = 0


class Lease(Object, frozen=True, kw_only=True):
    """coordination.k8s.io/v1. A node's is bound to an etcd lease: while it exists the node is alive.

    Anybody can renew an etcd lease, only the node's own agent can write this: so it is
    also to be written again, with a new `renew_time` (LEASE_RENEWALS, LEASE_SILENCE).
    """

    KIND: ClassVar[str] = "Lease"
    API_VERSION: ClassVar[str] = "coordination.k8s.io/v1"
    spec: LeaseSpec = LeaseSpec()
