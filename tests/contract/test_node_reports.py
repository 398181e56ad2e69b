"""Reports and events of nodes on a real etcd: a leader carries them over, and none that leads no more."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from reports_leader import carrying_over

from podlane.api.meta import is_pod_ready
from podlane.api.types import (
    Condition,
    Event,
    Node,
    NodeSpec,
    ObjectMeta,
    Pod,
    PodIP,
    PodReport,
    PodSpec,
    PodStatus,
)
from podlane.errors import Fenced
from podlane.runtime.clock import SystemClock
from podlane.store import keys
from podlane.store.config import connect
from podlane.store.events import EventRecorder
from podlane.store.interface import Compare, Put
from podlane.store.registry import Registry
from podlane.store.reports import Outbox
from scheduler.cluster import Cluster, Snapshot
from scheduler.events_loop import EventsLoop
from scheduler.loop import Context
from scheduler.reports_loop import ReportsLoop

pytestmark = pytest.mark.contract

PODS = 150  # more than one transaction holds


@pytest.fixture
def registry(etcd) -> Iterator[Registry]:
    with contextlib.closing(connect(etcd.client_config)) as store:
        registry = Registry(store)
        registry.create(Node(metadata=ObjectMeta(name="n1"), spec=NodeSpec(pod_cidr="10.5.1.0/24")))
        registry.put_node_lease("n1", store.grant(60), 60)
        yield registry


def eventually(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def bound(registry: Registry, names: list[str], node: str = "n1") -> dict[str, Pod]:
    pods = [Pod(metadata=ObjectMeta(name=name, namespace="default"), spec=PodSpec(node_name=node)) for name in names]
    made = registry.create_many(pods)
    return {f"default/{p.metadata.name}": p for p in made if isinstance(p, Pod)}


def ready(number: int) -> PodStatus:
    ip = f"10.5.1.{number + 2}"
    return PodStatus(
        phase="Running", conditions=(Condition(type="Ready", status="True"),), pod_ip=ip, pod_ips=(PodIP(ip=ip),)
    )


def all_ready(registry: Registry) -> bool:
    return all(map(is_pod_ready, registry.list(Pod).items))


def test_many_pods_become_ready_and_go_and_no_lie_stays(registry: Registry) -> None:
    clock = SystemClock()
    outbox, elsewhere = Outbox(registry.store, "n1"), Outbox(registry.store, "n2")
    pods = bound(registry, [f"p{number}" for number in range(PODS)])
    said = {name: PodReport(uid=pod.metadata.uid, status=ready(n)) for n, (name, pod) in enumerate(pods.items())}
    outbox.write(said)  # before anybody leads
    elsewhere.write({name: PodReport(uid=report.uid) for name, report in said.items()})
    with carrying_over(registry):
        eventually(lambda: all_ready(registry))
        eventually(lambda: not elsewhere.read())
        assert outbox.read() == said
        recorder = EventRecorder.of_node(registry, "agent", "n1", clock)
        recorder.event(pods["default/p0"], "Normal", "Started", "Started container web")
        recorder.close()
        eventually(lambda: [e.source.host for e in registry.list(Event).items] == ["n1"])
        assert registry.store.list(keys.event_reports_prefix("n1", "agent")).items == ()
        registry.delete_many(list(pods.values()))
        outbox.write({name: PodReport(uid=report.uid, removed=True) for name, report in said.items()})
        eventually(lambda: not registry.list(Pod).items)
        assert registry.store.list(keys.REPORTS).items == ()


@pytest.fixture
def former(registry: Registry) -> Iterator[Context]:
    """What a leader works with that was paused for so long that another leads, and does not know it."""
    clock, stop = SystemClock(), threading.Event()
    cluster = Cluster(registry, clock)
    threads = [threading.Thread(target=mirror.run, args=(stop,)) for mirror in cluster.mirrors]
    for thread in threads:
        thread.start()
    try:
        assert all(mirror.wait_synced(60) for mirror in cluster.mirrors)
        yield Context(
            registry=registry.fenced(Compare.holds(keys.ELECTION_SCHEDULER, b"me")),
            snapshot=Snapshot.of(cluster),
            events=EventRecorder(registry, "scheduler", threaded=False),
            clock=clock,
            rng=random.Random(1),
            wake=lambda _name, _seconds: None,
        )
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def test_who_leads_no_more_carries_nothing_over(registry: Registry, former: Context) -> None:
    registry.store.txn([], [Put(keys.ELECTION_SCHEDULER, b"another")])
    pods = bound(registry, ["p", "ending"])
    registry.delete(Pod, "default", "ending")
    said = {name: PodReport(uid=p.metadata.uid, status=ready(0), removed="ending" in name) for name, p in pods.items()}
    Outbox(registry.store, "n1").write(said)
    recorder = EventRecorder.of_node(registry, "agent", "n1", SystemClock())
    recorder.event(pods["default/p"], "Normal", "Started", "Started container web")
    recorder.close()
    before = registry.store.list("/").items
    for loop in (ReportsLoop(former), EventsLoop(former)):
        with pytest.raises(Fenced):
            eventually(lambda loop=loop: loop.sync())  # as soon as its mirrors show what there is to do
    assert registry.store.list("/").items == before
