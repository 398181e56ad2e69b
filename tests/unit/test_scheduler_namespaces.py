"""How namespaces end: what is in them in, plan out; and on a store, with objects that take their time."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from scheduler_objects import T0, at, pod, rc, service
from scheduler_world import Scheduler

from podlane.api.meta import get_condition
from podlane.api.types import (
    ClusterConfig,
    Namespace,
    NamespaceSpec,
    ObjectMeta,
    Pod,
    ReplicationController,
    Secret,
    Service,
)
from podlane.errors import NotFound
from podlane.runtime.clock import FakeClock
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler import namespaces
from scheduler.garbage_loop import GarbageLoop
from scheduler.namespaces_loop import NamespacesLoop
from scheduler.replication_loop import ReplicationLoop

pytestmark = pytest.mark.unit

SHOP = Namespace(
    metadata=ObjectMeta(name="shop", uid="uid-shop", deletion_timestamp=at(1)),
    spec=NamespaceSpec(finalizers=("kubernetes", "example.com/mine")),
)


def text(contents: dict, namespace: Namespace = SHOP) -> str:
    return str(namespaces.plan(namespace, contents, T0))


def test_what_nobody_has_deleted_yet_is_deleted_and_the_rest_waited_for():
    contents = {Pod: (pod("a", namespace="shop"), pod("b", namespace="shop", terminating=True)), Service: ()}
    assert text(contents) == "delete pod shop/a\nnote some resources remain: pods (2)"


def test_nothing_is_noted_twice():
    contents = {Pod: (pod("b", namespace="shop", terminating=True),)}
    noted = namespaces.plan(SHOP, contents, T0).update
    assert text(contents, noted) == ""


def test_whose_finalizers_keep_it_is_noted():
    kept = pod("b", namespace="shop", terminating=True)
    kept = replace(kept, metadata=replace(kept.metadata, finalizers=("example.com/slow",)))
    conditions = namespaces.plan(SHOP, {Pod: (kept,)}, T0).update.status.conditions
    assert get_condition(conditions, "NamespaceFinalizersRemaining").message.endswith("example.com/slow")


def test_empty_it_may_go_as_far_as_we_are_concerned():
    plan = namespaces.plan(SHOP, {Pod: ()}, T0)
    assert str(plan) == "finalize namespace shop"
    assert plan.update.spec.finalizers == ("example.com/mine",)
    assert text({Pod: ()}, plan.update) == ""


def test_a_namespace_with_a_controller_whose_pods_take_their_time():
    clock = FakeClock(T0)
    store = MemoryStore(clock)
    registry = Registry(store, clock=clock)
    registry.init_cluster(ClusterConfig())
    registry.create(Namespace(metadata=ObjectMeta(name="shop")))
    scheduler = Scheduler(store, clock)

    def settle() -> None:
        for _ in range(3):
            scheduler.drain()
            scheduler.sync(NamespacesLoop, ReplicationLoop, GarbageLoop)

    def in_shop(obj):
        return replace(obj, metadata=replace(obj.metadata, namespace="shop"))

    registry.create(in_shop(rc(replicas=2)))
    registry.create(in_shop(replace(service(), spec=replace(service().spec, cluster_ip="None"))))
    registry.create(Secret(metadata=ObjectMeta(name="s", namespace="shop")))
    settle()
    for p in registry.list(Pod, "shop").items:
        registry.update(replace(p, spec=replace(p.spec, node_name="n1")))
    registry.delete(Namespace, "", "shop")
    settle()
    assert (
        registry.list(ReplicationController).items == registry.list(Service).items == registry.list(Secret).items == ()
    )
    waiting = registry.list(Pod, "shop").items
    assert [p.metadata.deletion_timestamp is not None for p in waiting] == [True, True]
    assert scheduler.events.lines == [line for line in scheduler.events.lines if "SuccessfulCreate" in line]
    assert scheduler.wakes[-1][0] == "namespaces"
    for p in waiting:
        registry.delete_many([p], grace_seconds=0)
    settle()
    with pytest.raises(NotFound):
        registry.get(Namespace, "", "shop")
    before = store.list("/").revision
    settle()
    assert store.list("/").revision == before
