"""A draining pod and the store: what it waits for, on both stores."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from podlane.api.types import (
    SERVICE_NAME_LABEL,
    ClusterConfig,
    Endpoint,
    EndpointConditions,
    EndpointSlice,
    ObjectMeta,
    ObjectReference,
    Pod,
    Service,
    ServiceSpec,
)
from podlane.runtime.clock import SystemClock
from podlane.store import proxies
from podlane.store.interface import Store
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.agent.drain import Drainer
from scheduler.agent.model import Drain

pytestmark = pytest.mark.contract


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "did not become true"
        time.sleep(0.01)


def a_pod(name: str) -> Pod:
    return Pod(metadata=ObjectMeta(name=name, namespace="default", uid=f"uid-{name}", labels={"app": "web"}))


def endpoint(name: str, *, terminating: bool = False) -> Endpoint:
    return Endpoint(
        addresses=("10.5.3.2",),
        conditions=EndpointConditions(ready=not terminating, serving=True, terminating=terminating),
        target_ref=ObjectReference(uid=f"uid-{name}"),
    )


class World:
    """A drainer with its thread, and what the other daemons do, done by hand."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.registry = Registry(store)
        self.registry.init_cluster(ClusterConfig(service_cidr="10.96.0.0/24"))
        self.changes = threading.Event()
        self.drainer = Drainer(self.registry, self.changes.set, SystemClock())
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.drainer.run, args=(self.stop,))
        self.thread.start()
        self.leases: dict[str, int] = {}

    def close(self) -> None:
        self.stop.set()
        self.thread.join(15)
        assert not self.thread.is_alive()

    def node(self, name: str) -> None:
        self.leases[name] = self.store.grant(60)
        self.registry.put_node_lease(name, self.leases[name], 60)

    def service(self, name: str = "web", **spec: Any) -> None:
        # without the allocation of an address: only what a drain looks at
        spec = {"selector": {"app": "web"}, "cluster_ip": "None", **spec}
        self.registry.create(Service(metadata=ObjectMeta(name=name, namespace="default"), spec=ServiceSpec(**spec)))

    def web(self) -> None:
        """A service with a cluster address."""
        self.service(cluster_ip="")

    def slice(self, *endpoints: Endpoint, name: str = "web-1", service: str = "web") -> int:
        """Write a slice; returns its revision."""
        meta = ObjectMeta(name=name, namespace="default", labels={SERVICE_NAME_LABEL: service})
        item = EndpointSlice(metadata=meta, endpoints=endpoints)
        if any(name == old.metadata.name for old in self.registry.list(EndpointSlice, "default").items):
            old = self.registry.get(EndpointSlice, "default", name)
            written = self.registry.update(replace(old, endpoints=endpoints))
        else:
            written = self.registry.create(item)
        return int(written.metadata.resource_version)

    def look(self, *names: str) -> dict[str, Drain]:
        return {
            uid.removeprefix("uid-"): d for uid, d in self.drainer.look({f"uid-{n}": a_pod(n) for n in names}).items()
        }

    def waits_for(self, text: str, *names: str) -> bool:
        return all(d.quiet_at is None and d.waits_for == text for d in self.look(*(names or ("p",))).values())

    def quiet(self, *names: str) -> bool:
        return all(d.quiet_at is not None for d in self.look(*(names or ("p",))).values())


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    world = World(store)
    yield world
    world.close()


def test_a_pod_that_no_service_selects_waits_for_nothing_and_nothing_is_written(world: World) -> None:
    world.service("db", selector={"app": "db"})
    before = world.store.txn([], []).revision
    assert world.look("p")["p"].quiet_at is None
    eventually(world.quiet)
    assert world.look("p")["p"].served is False
    assert world.store.txn([], []).revision == before
    assert world.changes.is_set()


def test_a_pod_is_quiet_when_its_slices_say_so_and_every_living_node_has_acknowledged_them(world: World) -> None:
    for name in ("n1", "n2"):
        world.node(name)
    world.web()
    world.slice(endpoint("p"), endpoint("q"))
    proxies.acknowledge(world.store, "n1", 1)
    proxies.acknowledge(world.store, "n2", 1)
    eventually(lambda: world.waits_for("endpoint slices of web"))
    out = world.slice(endpoint("p", terminating=True), endpoint("q"))
    eventually(lambda: world.waits_for("proxyd on n1, n2"))
    proxies.acknowledge(world.store, "n1", out)
    eventually(lambda: world.waits_for("proxyd on n2"))
    world.slice(endpoint("p", terminating=True), endpoint("q", terminating=True))  # which is another pod's concern
    proxies.acknowledge(world.store, "n2", out - 1)
    assert world.waits_for("proxyd on n2")
    world.changes.clear()
    before = time.time()
    proxies.acknowledge(world.store, "n2", out)
    eventually(world.quiet)
    assert world.changes.is_set()
    told = world.look("p")["p"]
    assert told.served
    assert told.quiet_at is not None
    assert told.quiet_at >= before


def test_only_living_nodes_with_a_proxyd_are_waited_for(world: World) -> None:
    world.node("n1")
    world.node("n2")
    world.node("without-proxyd")
    world.web()
    out = world.slice(endpoint("p", terminating=True))
    proxies.acknowledge(world.store, "n1", out)
    proxies.acknowledge(world.store, "n2", 1)
    proxies.acknowledge(world.store, "dead", 1)
    eventually(lambda: world.waits_for("proxyd on n2"))
    world.store.revoke(world.leases["n2"])
    eventually(world.quiet)


def test_a_proxyd_that_is_uninstalled_meanwhile_is_waited_for_no_longer(world: World) -> None:
    world.node("n1")
    world.web()
    world.slice(endpoint("p", terminating=True))
    proxies.acknowledge(world.store, "n1", 1)
    eventually(lambda: world.waits_for("proxyd on n1"))
    proxies.withdraw(world.store, "n1")
    eventually(world.quiet)


def test_a_headless_service_has_no_proxies_to_wait_for(world: World) -> None:
    world.node("n1")
    world.service()
    world.slice(endpoint("p"))
    proxies.acknowledge(world.store, "n1", 1)
    world.look("p")
    eventually(world.quiet)
    assert world.look("p")["p"].served


def test_slices_of_a_service_whose_name_begins_alike_do_not_count(world: World) -> None:
    world.web()
    world.slice(endpoint("p"), name="web-admin-1", service="web-admin")
    world.slice(endpoint("p", terminating=True))
    world.look("p")
    eventually(world.quiet)


def test_pods_drain_beside_each_other_and_one_after_the_other(world: World) -> None:
    world.node("n1")
    world.web()
    first = world.slice(endpoint("p", terminating=True), endpoint("q"))
    proxies.acknowledge(world.store, "n1", first - 1)
    eventually(lambda: world.waits_for("proxyd on n1", "p") and world.waits_for("proxyd on n1", "p"))
    world.look("p", "q")
    proxies.acknowledge(world.store, "n1", first)
    eventually(lambda: world.look("p", "q")["p"].quiet_at is not None)
    eventually(lambda: world.look("p", "q")["q"].waits_for == "endpoint slices of web")
    second = world.slice(endpoint("p", terminating=True), endpoint("q", terminating=True))
    proxies.acknowledge(world.store, "n1", second)
    eventually(lambda: world.quiet("p", "q"))
    assert world.look() == {}
    assert world.look("p")["p"].quiet_at is None  # forgotten, so it begins anew


def test_without_the_store_nothing_is_concluded() -> None:
    store = MemoryStore()
    world = World(store)
    try:
        world.node("n1")
        world.web()
        out = world.slice(endpoint("p", terminating=True))
        store.faults.set_down(True)
        eventually(lambda: "the store is down" in world.look("p")["p"].waits_for)
        store.faults.set_down(False)
        proxies.acknowledge(store, "n1", 1)
        eventually(lambda: world.waits_for("proxyd on n1"))
        store.faults.set_down(True)
        eventually(lambda: world.look("p")["p"].waits_for != "proxyd on n1")
        store.faults.set_down(False)
        proxies.acknowledge(store, "n1", out)
        eventually(world.quiet)
    finally:
        world.close()
