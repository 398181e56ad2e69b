"""A cluster of thousands of nodes that are not there, and pods of some kinds, for the scheduler's benchmarks.

Owns: the objects, as they are and in etcd. Pure but for `commit_nodes`.
Invariant: zones are of equal size, every node has room for its share of the
pods several times over, as in kube-scheduler's own scheduler_perf.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from podlane.api.codec import encode
from podlane.api.types import (
    HOSTNAME_LABEL,
    NODE_LEASE_NAMESPACE,
    ZONE_LABEL,
    Condition,
    Lease,
    Node,
    NodeStatus,
    ObjectMeta,
    OwnerReference,
    Pod,
    PodSpec,
)
from podlane.store import keys
from podlane.store.interface import Put, Store
from podlane.store.writes import MAX_OPS

ZONES = 5
BORN = datetime(2026, 1, 1, tzinfo=UTC)
REQUESTS = {"cpu": "100m", "memory": "500Mi"}  # scheduler_perf's pod-default.yaml

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def make_nodes(count: int) -> list[Node]:
    room = {"cpu": "4", "memory": "32Gi", "pods": "110"}
    return [
        Node(
            kind="Node",
            api_version="v1",
            metadata=ObjectMeta(
                name=f"node-{number:05}",
                uid=f"node-{number:05}",
                labels={
                    HOSTNAME_LABEL: f"node-{number:05}",
                    ZONE_LABEL: f"zone-{number % ZONES}",
                    "disk": "ssd" if number % 2 else "hdd",
                },
            ),
            status=NodeStatus(capacity=room, allocatable=room, conditions=(Condition(type="Ready", status="True"),)),
        )
        for number in range(count)
    ]


def make_pods(count: int, *, apps: int = 1, kinds: Sequence[dict[str, Any]] = ({},), owned: bool = False) -> list[Pod]:
    """Pods of `apps` applications, whose specs take turns at `kinds`. `$app` in a kind is the application.

    `owned`: each application's are siblings, by a controller that is not there: not for a store with a scheduler.
    """
    specs = [
        msgspec.convert(_of_app(kinds[app % len(kinds)], f"app-{app}"), PodSpec, strict=False) for app in range(apps)
    ]
    return [
        Pod(
            kind="Pod",
            api_version="v1",
            metadata=ObjectMeta(
                name=f"pod-{number:05}",
                namespace="default",
                uid=f"pod-{number:05}",
                creation_timestamp=BORN,
                labels={"app": f"app-{number % apps}"},
                owner_references=_owner(f"app-{number % apps}") if owned else (),
            ),
            spec=specs[number % apps],
        )
        for number in range(count)
    ]


def _owner(app: str) -> tuple[OwnerReference, ...]:
    return (OwnerReference(api_version="v1", kind="ReplicationController", name=app, uid=app, controller=True),)


def _of_app(kind: dict[str, Any], app: str) -> dict[str, Any]:
    base = {"containers": [{"name": "main", "image": "web:1", "resources": {"requests": REQUESTS}}]}
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode({**base, **kind}).replace(b"$app", app.encode()))
    return decoded


_SAME_APP = {"matchLabels": {"app": "$app"}}

MIXED: tuple[dict[str, Any], ...] = (
    {},
    # no two of an application on one node
    {"affinity": {"podAntiAffinity": {_REQUIRED: [{"topologyKey": HOSTNAME_LABEL, "labelSelector": _SAME_APP}]}}},
    # evenly over the zones, and rather over the nodes
    {
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": ZONE_LABEL,
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": _SAME_APP,
            },
            {
                "maxSkew": 1,
                "topologyKey": HOSTNAME_LABEL,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": _SAME_APP,
            },
        ]
    },
    # on nodes with an SSD, rather in one zone
    {
        "affinity": {
            "nodeAffinity": {
                _REQUIRED: {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}]
                },
                _PREFERRED: [
                    {
                        "weight": 10,
                        "preference": {
                            "matchExpressions": [{"key": ZONE_LABEL, "operator": "In", "values": ["zone-1"]}]
                        },
                    }
                ],
            }
        }
    },
    # all in the zone of the first, rather not beside each other
    {
        "affinity": {
            "podAffinity": {_REQUIRED: [{"topologyKey": ZONE_LABEL, "labelSelector": _SAME_APP}]},
            "podAntiAffinity": {
                _PREFERRED: [
                    {"weight": 50, "podAffinityTerm": {"topologyKey": HOSTNAME_LABEL, "labelSelector": _SAME_APP}}
                ]
            },
        }
    },
)


def commit_nodes(store: Store, nodes: Iterable[Node], lease: int) -> None:
    """Write the nodes and their heartbeats, all under one etcd lease."""
    puts: list[Put] = []
    for node in nodes:
        name = node.metadata.name
        heartbeat = Lease(metadata=ObjectMeta(name=name, namespace=NODE_LEASE_NAMESPACE))
        puts.append(Put(keys.key_for(Node, "", name), encode(node)))
        puts.append(Put(keys.key_for(Lease, NODE_LEASE_NAMESPACE, name), encode(heartbeat), lease))
    for start in range(0, len(puts), MAX_OPS):
        store.txn([], puts[start : start + MAX_OPS])
