"""Who still sends to a pod that ends: the decisions, and an agent whose role is of an earlier version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from agent_objects import pod
from msgspec.structs import replace

from podlane.api.types import (
    SERVICE_NAME_LABEL,
    SERVICE_PROXY_NAME_LABEL,
    ClusterConfig,
    Condition,
    Endpoint,
    EndpointConditions,
    EndpointSlice,
    Node,
    NodeStatus,
    ObjectMeta,
    ObjectReference,
    Pod,
    PodStatus,
    Service,
    ServiceSpec,
)
from podlane.errors import PermissionDenied
from podlane.runtime.clock import FakeClock
from podlane.store import keys, proxies
from podlane.store.interface import Compare, Get, Op, TxnResult
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.agent import drain

pytestmark = pytest.mark.unit


def labelled(name: str = "p", **labels: str) -> Pod:
    obj = pod(name)
    return replace(obj, metadata=replace(obj.metadata, labels=labels), status=PodStatus(pod_ip="10.5.3.2"))


def service(labels: dict[str, str] | None = None, **spec: Any) -> Service:
    meta = ObjectMeta(name="web", namespace="default", labels=labels or {})
    return Service(metadata=meta, spec=ServiceSpec(**{"selector": {"app": "web"}, "cluster_ip": "10.96.0.1", **spec}))


def endpoint(uid: str = "uid-p", *, ready: bool = True, terminating: bool = False) -> Endpoint:
    return Endpoint(
        addresses=("10.5.3.2",),
        conditions=EndpointConditions(ready=ready, serving=True, terminating=terminating),
        target_ref=ObjectReference(uid=uid) if uid else None,
    )


def slice_at(revision: int, *endpoints: Endpoint) -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(name=f"web-{revision}", resource_version=str(revision)), endpoints=endpoints
    )


@pytest.mark.parametrize(
    ("spec", "labels", "expected"),
    [
        ({}, {"app": "web", "tier": "x"}, True),
        ({}, {"app": "db"}, False),
        ({}, {}, False),
        ({"selector": {}}, {"app": "web"}, False),
        ({"type": "ExternalName"}, {"app": "web"}, False),
    ],
)
def test_which_services_a_pod_serves(spec: dict[str, Any], labels: dict[str, str], expected: bool) -> None:
    assert drain.selects(service(**spec), labelled(**labels)) is expected


def test_which_services_the_proxies_serve() -> None:
    assert drain.is_proxied(service())
    assert not drain.is_proxied(service(cluster_ip="None"))
    assert not drain.is_proxied(service({SERVICE_PROXY_NAME_LABEL: "mesh"}))


OTHER = endpoint("uid-other")


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        ([slice_at(5, OTHER, endpoint())], None),
        ([slice_at(5, OTHER, endpoint(ready=False, terminating=True))], 5),
        ([slice_at(5, endpoint(ready=False))], 5),
        # a service that publishes what is not ready never has it otherwise
        ([slice_at(5, endpoint(ready=True, terminating=True))], 5),
        # several ports or families: all must know
        ([slice_at(5, endpoint(ready=False, terminating=True)), slice_at(4, endpoint())], None),
        ([slice_at(5, endpoint(ready=False)), slice_at(4, endpoint(ready=False))], 5),
        # what has not to do with it may be acknowledged late
        ([slice_at(5, endpoint(ready=False)), slice_at(9, OTHER)], 5),
        # it was taken out of one of them
        ([slice_at(7, OTHER), slice_at(9, OTHER)], 9),
        ([], 0),
        # made by hand, without a reference
        ([slice_at(5, endpoint(""))], None),
    ],
)
def test_from_which_revision_on_a_pod_is_no_endpoint(slices: list[EndpointSlice], expected: int | None) -> None:
    assert drain.out_since(labelled(), slices) == expected


def test_who_is_behind() -> None:
    assert drain.behind({"n1": 4, "n2": 5, "n3": 0}, 5) == {"n1", "n3"}


class OwnNodeOnly(MemoryStore):
    """To whoever asks for a Node of others: no."""

    def txn(
        self, compare: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = (), *, timeout: float = 5.0
    ) -> TxnResult:
        if any(isinstance(op, Get) and op.key.startswith(keys.prefix_for(Node)) for op in then):
            raise PermissionDenied("txn: permission denied")
        return super().txn(compare, then, otherwise, timeout=timeout)


@pytest.mark.parametrize(("store", "waits_for"), [(MemoryStore, ""), (OwnNodeOnly, "proxyd on n2")])
def test_who_may_not_read_nodes_waits_for_those_that_are_not_ready(store: type[MemoryStore], waits_for: str) -> None:
    clock = FakeClock()
    registry = Registry(store(clock), clock=clock)
    registry.init_cluster(ClusterConfig(service_cidr="10.96.0.0/24"))
    registry.put_node_lease("n2", registry.store.grant(60), 60)
    status = NodeStatus(conditions=(Condition(type="Ready", status="False"),))
    registry.create(Node(metadata=ObjectMeta(name="n2"), status=status))
    proxies.acknowledge(registry.store, "n2", 1)
    registry.create(service(cluster_ip=""))
    meta = ObjectMeta(name="web-1", namespace="default", labels={SERVICE_NAME_LABEL: "web"})
    registry.create(EndpointSlice(metadata=meta, endpoints=(endpoint(ready=False, terminating=True),)))
    drainer = drain.Drainer(registry, lambda: None, clock)
    for _ in range(20):
        told = drainer.look({"uid-p": labelled(app="web")})["uid-p"]
        drainer.runner.step()
        clock.advance(0.1)
    assert told.waits_for == waits_for
    assert (told.quiet_at is None) == bool(waits_for)
