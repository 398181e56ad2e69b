"""How objects that depend on others are written and how they end, on memory and on real etcd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from podlane.api.types import ClusterConfig, Container, ObjectMeta, Pod, PodSpec, ReplicationController
from podlane.errors import Conflict, NotFound
from podlane.runtime.clock import FakeClock
from podlane.store.bulk import Change
from podlane.store.config import connect
from podlane.store.interface import Delete, Store
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry

pytestmark = pytest.mark.contract


@pytest.fixture(params=["memory", "etcd"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    real = connect(request.getfixturevalue("shared_etcd").client_config)
    real.txn([], [Delete("/registry/", prefix=True), Delete("/podlane/", prefix=True)])
    yield real
    real.close()


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
