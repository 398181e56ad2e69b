"""Services and endpoint slices by the thousand, as Kubernetes writes them.

Pure. Owns: which addresses they have. Invariants: service number n is the same
whatever else there is; no two share an address; a slice says all that the
endpoint slice controller would say (owner, target pods, nodes, zones, managed
fields), because a proxy must read, and need not keep, all of it. Service
addresses are 10.96.0.1 and on, pods' 10.128.0.1 and on, a hundredth of them on
this node. Source: discovery.k8s.io/v1; pkg/controller/endpointslice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import msgspec

from podlane.api.codec import decode
from podlane.api.types import Endpoint, EndpointSlice, Service

NAMESPACE = "bench"
SERVICE_RANGE = "10.96.0.0/16"
POD_NETWORK = "10.128.0.0/9"
THIS_NODE = "node-0"
NODES = 100
PORT, TARGET_PORT = 80, 8080

_FIRST_SERVICE = int(IPv4Address("10.96.0.1"))
_FIRST_POD = int(IPv4Address("10.128.0.1"))
_MAX_SERVICES = (1 << 16) - 2
_MOMENT = "2026-01-02T03:04:05Z"


@dataclass(frozen=True, slots=True)
class Objects:
    """`services[n]` and `slices[n]` belong together."""

    services: list[Service]
    slices: list[EndpointSlice]


def objects(count: int, each: int) -> Objects:
    """`count` services with `each` endpoints, as a mirror has decoded them."""
    return Objects(
        [decode(Service, msgspec.json.encode(service_document(n)), revision=n + 1) for n in range(count)],
        [decode(EndpointSlice, msgspec.json.encode(slice_document(n, each)), revision=n + 1) for n in range(count)],
    )


def name_of(number: int) -> str:
    return f"service-{number:05}"


def cluster_ip(number: int) -> str:
    if not 0 <= number < _MAX_SERVICES:
        raise ValueError(f"address of service {number}: expected 0 to {_MAX_SERVICES - 1}")
    return str(IPv4Address(_FIRST_SERVICE + number))


def pod_addresses(number: int, each: int) -> list[str]:
    first = _FIRST_POD + number * each
    return [str(IPv4Address(first + i)) for i in range(each)]


def changed(number: int, old: EndpointSlice) -> EndpointSlice:
    """The slice after its first pod was replaced by one at another address."""
    first = old.endpoints[0]
    address = int(IPv4Address(first.addresses[0])) ^ (1 << 21)  # 10.128.x to 10.160.x and back
    pod: Endpoint = msgspec.structs.replace(first, addresses=(str(IPv4Address(address)),))
    metadata = msgspec.structs.replace(old.metadata, resource_version=str(number + 1_000_000))
    return msgspec.structs.replace(old, metadata=metadata, endpoints=(pod, *old.endpoints[1:]))


def fewer(old: EndpointSlice) -> EndpointSlice:
    """The slice after its last pod went."""
    return msgspec.structs.replace(old, endpoints=old.endpoints[:-1])


# --- documents -----------------------------------------------------------------------


def documents(count: int, each: int) -> Iterator[tuple[str, bytes]]:
    """Key and value in etcd of all of them, by Kubernetes' layout."""
    for n in range(count):
        name = name_of(n)
        yield f"/registry/services/specs/{NAMESPACE}/{name}", msgspec.json.encode(service_document(n))
        yield f"/registry/endpointslices/{NAMESPACE}/{name}-abcde", msgspec.json.encode(slice_document(n, each))


def service_document(number: int) -> dict[str, Any]:
    name, address = name_of(number), cluster_ip(number)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": _uid(1, number),
            "creationTimestamp": _MOMENT,
            "labels": {"app": name},
            "managedFields": [
                _managed("kubectl-client-side-apply", "v1", {"f:spec": {"f:ports": {}, "f:selector": {}}})
            ],
        },
        "spec": {
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT}],
            "selector": {"app": name},
            "clusterIP": address,
            "clusterIPs": [address],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    }


def slice_document(number: int, each: int) -> dict[str, Any]:
    name = name_of(number)
    owner = {
        "apiVersion": "v1",
        "kind": "Service",
        "name": name,
        "uid": _uid(1, number),
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-abcde",
            "generateName": f"{name}-",
            "namespace": NAMESPACE,
            "uid": _uid(2, number),
            "generation": 3,
            "creationTimestamp": _MOMENT,
            "labels": {
                "app": name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": name,
            },
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": _MOMENT},
            "ownerReferences": [owner],
            "managedFields": [
                _managed("kube-controller-manager", "discovery.k8s.io/v1", {"f:endpoints": {}, "f:ports": {}})
            ],
        },
        "addressType": "IPv4",
        "endpoints": [_endpoint(number, each, i, address) for i, address in enumerate(pod_addresses(number, each))],
        "ports": [{"name": "http", "protocol": "TCP", "port": TARGET_PORT}],
    }


def _endpoint(number: int, each: int, i: int, address: str) -> dict[str, Any]:
    node = (number * each + i) % NODES
    return {
        "addresses": [address],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": f"node-{node}",
        "zone": f"zone-{node % 3}",
        "targetRef": {
            "kind": "Pod",
            "namespace": NAMESPACE,
            "name": f"{name_of(number)}-{i:05}",
            "uid": _uid(3, number * each + i),
        },
    }


def _managed(by: str, version: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "manager": by,
        "operation": "Update",
        "apiVersion": version,
        "time": _MOMENT,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }


def _uid(kind: int, number: int) -> str:
    return f"{kind:08x}-0000-4000-8000-{number:012x}"
