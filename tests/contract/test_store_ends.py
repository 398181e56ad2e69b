"""How objects that depend on others are written and how they end, on memory and on real etcd."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from podlane.api.types import (
    ClusterConfig,
    Container,
    Namespace,
    NamespaceSpec,
    ObjectMeta,
    Pod,
    PodSpec,
    ReplicationController,
    Service,
    ServiceSpec,
)
from podlane.errors import Conflict, Invalid, NamespaceTerminating, NotFound
from podlane.runtime.clock import FakeClock
from podlane.store.bulk import Binding, Change
from podlane.store.deletion import Propagation
from podlane.store.interface import Store
from podlane.store.registry import Registry

pytestmark = pytest.mark.contract


@pytest.fixture
def store(registry_store: Store) -> Store:
    return registry_store


@pytest.fixture
def registry(store: Store) -> Registry:
    made = Registry(store, clock=FakeClock(1_700_000_000.0))
    made.init_cluster(ClusterConfig())
    return made


def pod(name: str, **meta: object) -> Pod:
    return Pod(
        metadata=ObjectMeta(name=name, **meta),  # type: ignore[arg-type]
        spec=PodSpec(containers=(Container(name="c", image="i"),)),
    )


def labelled(obj: Pod, value: str) -> Pod:
    return replace(obj, metadata=replace(obj.metadata, labels={"v": value}))


def test_update_many_tells_the_losers(registry: Registry) -> None:
    fresh, stale, gone = (registry.create(pod(name)) for name in ("fresh", "stale", "gone"))
    registry.update(labelled(stale, "theirs"))
    registry.delete(Pod, "default", "gone")
    answers = registry.update_many([Change(p, labelled(p, "ours")) for p in (fresh, stale, gone)])
    assert answers[0] == registry.get(Pod, "default", "fresh")
    assert [type(answer) for answer in answers[1:]] == [Conflict, NotFound]
    assert registry.get(Pod, "default", "stale").metadata.labels == {"v": "theirs"}


def test_an_update_may_rest_on_another_object(registry: Registry) -> None:
    orphan = registry.create(pod("orphan"))
    owner = registry.create(ReplicationController(metadata=ObjectMeta(name="web")))
    registry.delete(ReplicationController, "default", "web")
    (answer,) = registry.update_many([Change(orphan, labelled(orphan, "adopted"), (owner,))])
    assert isinstance(answer, Conflict)
    assert registry.get(Pod, "default", "orphan") == orphan


class TestFinalizers:
    def test_what_has_one_stays_until_it_is_taken_away(self, registry: Registry) -> None:
        registry.create(pod("a", finalizers=("example.com/mine",)))
        marked = registry.delete(Pod, "default", "a")
        assert marked.metadata.deletion_timestamp is not None
        assert registry.get(Pod, "default", "a") == marked
        registry.update(replace(marked, metadata=replace(marked.metadata, finalizers=())))
        assert registry.list(Pod).items == ()

    def test_none_comes_when_the_end_is_set(self, registry: Registry) -> None:
        registry.create(pod("a", finalizers=("example.com/mine",)))
        marked = registry.delete(Pod, "default", "a")
        late = replace(marked, metadata=replace(marked.metadata, finalizers=("example.com/mine", "example.com/late")))
        with pytest.raises(Invalid, match=r"metadata\.finalizers: none can be added while it is being deleted"):
            registry.update(late)

    def test_a_pod_on_a_node_needs_its_agent_and_its_finalizers_to_go(self, registry: Registry) -> None:
        made = registry.create(pod("a", finalizers=("example.com/mine",)))
        registry.bind([Binding("default", "a", "n1", made.metadata.resource_version)])
        (marked,) = registry.delete_many([registry.get(Pod, "default", "a")])
        assert isinstance(marked, Pod)
        assert marked.metadata.deletion_grace_period_seconds == 30
        registry.delete_many([marked], grace_seconds=0)  # the agent has ended it
        left = registry.get(Pod, "default", "a")
        assert left.metadata.deletion_grace_period_seconds == 0
        registry.update_many([Change(left, replace(left, metadata=replace(left.metadata, finalizers=())))])
        assert registry.store.list("/podlane/bindings/").items == ()
        assert registry.list(Pod).items == ()

    @pytest.mark.parametrize(
        ("propagation", "left"),
        [("Background", None), ("Foreground", ("foregroundDeletion",)), ("Orphan", ("orphan",))],
    )
    def test_propagation_is_a_finalizer(
        self, registry: Registry, propagation: Propagation, left: tuple[str, ...] | None
    ) -> None:
        registry.create(ReplicationController(metadata=ObjectMeta(name="web")))
        registry.delete(ReplicationController, "default", "web", propagation=propagation)
        found = registry.list(ReplicationController).items
        assert [rc.metadata.finalizers for rc in found] == ([] if left is None else [left])
        if found:  # a second thought, and a third
            registry.delete(ReplicationController, "default", "web", propagation="Foreground")
            assert registry.list(ReplicationController).items[0].metadata.finalizers == ("foregroundDeletion",)
            registry.delete(ReplicationController, "default", "web", propagation="Background")
            assert registry.list(ReplicationController).items == ()


class TestNamespaces:
    def test_nothing_is_made_where_there_is_none(self, registry: Registry) -> None:
        service = Service(metadata=ObjectMeta(name="s", namespace="shop"), spec=ServiceSpec(cluster_ip="None"))
        for obj in (pod("a", namespace="shop"), service):
            with pytest.raises(NotFound, match='namespace "shop" not found'):
                registry.create(obj)
        (answer,) = registry.create_many([pod("a", namespace="shop")])
        assert isinstance(answer, NotFound)

    def test_one_that_ends_takes_nothing_in_and_goes_when_it_is_finalized(self, registry: Registry) -> None:
        made = registry.create(Namespace(metadata=ObjectMeta(name="shop")))
        assert made.spec.finalizers == ("kubernetes",)
        inside = registry.create(pod("a", namespace="shop"))
        ending = registry.delete(Namespace, "", "shop")
        assert ending.status.phase == "Terminating"
        answers = registry.create_many([pod("b", namespace="shop"), pod("b")])
        assert [type(answer) for answer in answers] == [NamespaceTerminating, Pod]
        registry.update(replace(inside, metadata=replace(inside.metadata, labels={"still": "written"})))
        registry.update(replace(ending, spec=NamespaceSpec()))
        with pytest.raises(NotFound):
            registry.get(Namespace, "", "shop")

    def test_many_in_one_namespace_are_as_many_to_a_transaction(self, registry: Registry) -> None:
        registry.create(Namespace(metadata=ObjectMeta(name="shop")))
        before = registry.store.list("/registry/pods/").revision
        answers = registry.create_many([pod(f"p{i}", namespace="shop") for i in range(99)])
        assert all(isinstance(answer, Pod) for answer in answers)
        assert registry.store.list("/registry/pods/").revision == before + 1
