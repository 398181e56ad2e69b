"""Two schedulers in one process, on the memory store and on real etcd: leading, standing by, taking over."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from podlane.api.meta import is_pod_active
from podlane.api.types import (
    NODE_LEASE_NAMESPACE,
    ClusterConfig,
    Condition,
    Container,
    ContainerPort,
    EndpointSlice,
    Event,
    Lease,
    Node,
    NodeStatus,
    ObjectMeta,
    Pod,
    PodSpec,
    PodTemplateSpec,
    ReplicationController,
    ReplicationControllerSpec,
    Service,
    ServicePort,
    ServiceSpec,
)
from podlane.errors import Fenced
from podlane.runtime.clock import SystemClock
from podlane.store.config import connect
from podlane.store.election import Election, Leadership
from podlane.store.events import EventRecorder
from podlane.store.interface import Delete, Get, Store
from podlane.store.keys import ELECTION_SCHEDULER, key_for, prefix_for
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.cluster import Cluster
from scheduler.leader import Leader

pytestmark = pytest.mark.contract

LABELS = {"app": "web"}


class FenceAudit:
    """A store that remembers what was written through it, and what of that without comparing the election's key."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.written: set[str] = set()
        self.unfenced: set[str] = set()

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    def txn(self, compare, then, otherwise=(), **options):
        keys = {op.key for op in (*then, *otherwise) if not isinstance(op, Get)}
        self.written |= keys
        if not any(c.key == ELECTION_SCHEDULER and c.target == "create" for c in compare):
            self.unfenced |= keys
        return self._store.txn(compare, then, otherwise, **options)


class Member:
    """One scheduler with threads of its own."""

    def __init__(self, store: Store, identity: str) -> None:
        clock = SystemClock()
        self.stop = threading.Event()
        self.cluster = Cluster(Registry(store), clock)
        self.leader = Leader(self.cluster, lambda fenced: EventRecorder(fenced, "scheduler", identity, clock), clock)
        self.election = Election(store, ELECTION_SCHEDULER, identity, ttl=10, clock=clock)
        self.leaderships: list[Leadership] = []
        bodies: list[Callable[[threading.Event], None]] = [mirror.run for mirror in self.cluster.mirrors]
        bodies.append(lambda stop: self.election.run(stop, self.lead))
        self.threads = [threading.Thread(target=body, args=(self.stop,), daemon=True) for body in bodies]
        for thread in self.threads:
            thread.start()

    def lead(self, leadership: Leadership) -> None:
        self.leaderships.append(leadership)
        self.leader.lead(leadership)

    def leads(self) -> bool:
        return bool(self.leaderships) and not self.leaderships[-1].lost.is_set()

    def close(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(params=["memory", "etcd"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    with contextlib.closing(connect(request.getfixturevalue("etcd").client_config)) as store:
        yield store


@pytest.fixture
def start(store: Store) -> Iterator[Callable[..., Member]]:
    members: list[Member] = []

    def make(identity: str, own_store: Store | None = None) -> Member:
        members.append(Member(own_store or store, identity))
        return members[-1]

    yield make
    for member in members:
        member.close()


@pytest.fixture
def registry(store: Store) -> Registry:
    registry = Registry(store)
    registry.init_cluster(ClusterConfig(node_grace_seconds=1))
    resources = {"cpu": "4", "memory": "8Gi", "pods": "110"}
    for name in ("n1", "n2", "n3"):
        status = NodeStatus(allocatable=resources, conditions=(Condition(type="Ready", status="True"),))
        registry.create(Node(metadata=ObjectMeta(name=name), status=status))
        registry.put_node_lease(name, 0, 3600)
    return registry


def web(replicas: int) -> ReplicationController:
    container = Container(name="main", image="web:1", ports=(ContainerPort(container_port=8080),))
    template = PodTemplateSpec(metadata=ObjectMeta(labels=LABELS), spec=PodSpec(containers=(container,)))
    spec = ReplicationControllerSpec(replicas=replicas, selector=LABELS, template=template)
    return ReplicationController(metadata=ObjectMeta(name="web", namespace="default"), spec=spec)


def scale(registry: Registry, replicas: int) -> None:
    registry.modify(
        ReplicationController, "default", "web", lambda c: replace(c, spec=replace(c.spec, replicas=replicas))
    )


def bound(registry: Registry) -> list[Pod]:
    return [p for p in registry.list(Pod).items if is_pod_active(p) and p.spec.node_name]


def eventually(what: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def web_service() -> Service:
    return Service(
        metadata=ObjectMeta(name="web", namespace="default"),
        spec=ServiceSpec(selector=LABELS, ports=(ServicePort(port=80, target_port=8080),)),
    )


def make_ready(registry: Registry) -> None:
    """Every bound pod runs and is ready, as its agent would say."""
    for i, pod in enumerate(bound(registry)):
        ready = (Condition(type="Ready", status="True"),)
        status = replace(pod.status, phase="Running", pod_ip=f"10.4.1.{i}", conditions=ready)
        registry.modify(Pod, "default", pod.metadata.name, lambda p, status=status: replace(p, status=status))


def test_pods_are_made_placed_and_shown_as_endpoints(store, registry, start):
    member = start("a")
    registry.create(web(6))
    registry.create(web_service())
    eventually(lambda: len(bound(registry)) == 6)
    assert sorted(p.spec.node_name for p in bound(registry)) == ["n1", "n1", "n2", "n2", "n3", "n3"]
    make_ready(registry)
    eventually(lambda: sum(len(s.endpoints) for s in registry.list(EndpointSlice).items) == 6)
    eventually(lambda: registry.get(ReplicationController, "default", "web").status.ready_replicas == 6)
    assert member.leader.not_ready() is None


def test_a_standby_is_ready_and_writes_nothing_until_it_leads(store, registry, start):
    first = start("a")
    eventually(first.leads)
    second = start("b")
    eventually(lambda: second.leader.not_ready() is None)
    registry.create(web(2))
    eventually(lambda: len(bound(registry)) == 2)
    assert not second.leaderships
    first.close()
    eventually(second.leads)
    scale(registry, 4)
    eventually(lambda: len(bound(registry)) == 4)
    assert len(registry.list(Pod).items) == 4


def test_a_leader_whose_key_is_taken_is_fenced_and_stands_again(store, registry, start):
    first = start("a")
    registry.create(web(2))
    eventually(lambda: len(bound(registry)) == 2)
    fence = first.leaderships[0].fence
    second = start("b")
    # the key goes while the leader believes in it, as when its process was frozen past its lease
    store.txn([], [Delete(ELECTION_SCHEDULER)])
    with pytest.raises(Fenced):
        Registry(store).fenced(fence).create(web(9))
    eventually(lambda: first.leads() or second.leads())
    scale(registry, 5)
    eventually(lambda: len(bound(registry)) == 5)
    eventually(first.leaderships[0].lost.is_set)
    assert len(registry.list(Pod).items) == 5


def test_everything_a_leader_writes_compares_its_fence(store, registry, start):
    registry.create(web(6))
    registry.create(web_service())
    audit = FenceAudit(store)
    start("a", audit)
    eventually(lambda: len(bound(registry)) == 6)
    make_ready(registry)
    eventually(lambda: sum(len(s.endpoints) for s in registry.list(EndpointSlice).items) == 6)
    # a node goes: it is marked, its pods are given up and made anew, and events tell of it
    store.txn([], [Delete(key_for(Lease, NODE_LEASE_NAMESPACE, "n3"))])
    eventually(lambda: {e.reason for e in registry.list(Event).items} >= {"NodeNotReady", "NodeLost"})
    eventually(lambda: len(bound(registry)) == 6 and {p.spec.node_name for p in bound(registry)} == {"n1", "n2"})
    scale(registry, 2)
    eventually(lambda: len(bound(registry)) == 2)
    assert audit.unfenced == {ELECTION_SCHEDULER}
    for kind in (Pod, ReplicationController, EndpointSlice, Node, Event):
        assert any(key.startswith(prefix_for(kind)) for key in audit.written), kind
