"""The whole agent without threads: a store and an engine in memory, and time that passes when a test says so.

Everything the agent would do in threads is done here one after the other, in
the order in which it falls due, so a test always takes the same course however
busy the machine is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent_objects import IMAGE, Told, container, name
from leading import ReportsLeader

from podlane.api.codec import decode
from podlane.api.meta import is_pod_ready, reference_to
from podlane.api.types import (
    SERVICE_NAME_LABEL,
    ClusterConfig,
    Container,
    Endpoint,
    EndpointConditions,
    EndpointSlice,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    ObjectMeta,
    Pod,
    PodSpec,
    Service,
    ServiceSpec,
)
from podlane.cli.podstatus import summarize
from podlane.errors import NotFound, StoreUnavailable
from podlane.runtime.clock import FakeClock
from podlane.store import keys
from podlane.store.bulk import Binding, bind
from podlane.store.memory import MemoryStore
from podlane.store.mirror import NotSynced
from podlane.store.registry import Registry
from podlane.store.reports import Outbox
from scheduler.agent.agent import Agent
from scheduler.agent.drain import Drainer
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.podfiles import PodFiles
from scheduler.agent.podnetfake import FakePodNet
from scheduler.agent.probes import Target

SUBNET_ENV = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"


class Later(Executor):
    """A pool whose work is done when `World` comes to it."""

    def __init__(self, queue: deque[Callable[[], object]]) -> None:
        self._queue = queue
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not self._closed:
            self._queue.append(lambda: fn(*args, **kwargs))
        return Future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        del wait, cancel_futures  # nothing runs by itself
        self._closed = True


class Bound:
    """The pods bound to a node, as a mirror has them: the last it saw while the store is away."""

    def __init__(self, store: MemoryStore, node: str) -> None:
        self._store, self._prefix = store, keys.bindings_prefix(node)
        self._pods: dict[str, Pod] | None = None
        self._revision = 0

    def changed(self) -> bool:
        try:
            listing = self._store.list(self._prefix)
        except StoreUnavailable:
            return False
        before, self._revision = self._revision, listing.revision
        pods = (decode(Pod, kv.value, revision=kv.mod_revision) for kv in listing.items)
        self._pods = {f"{p.metadata.namespace}/{p.metadata.name}": p for p in pods}
        return before != self._revision

    def snapshot(self) -> dict[str, Pod]:
        if self._pods is None:
            raise NotSynced("no complete list yet")
        return self._pods


class World:
    """A store, a node's engine, and an agent that can be started and killed."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        self.registry = Registry(self.store, clock=self.clock)
        self.registry.put_node_lease("n1", 0, 10)
        self.leader = ReportsLeader(self.store, self.clock)
        self.runtime = FakeRuntime(self.clock)
        self.runtime.add_image(IMAGE)
        self.podnet = FakePodNet(self.runtime.alive)
        self.folder = folder
        self.subnet_file = folder / "subnet.env"
        self.subnet_file.write_text(SUBNET_ENV)
        self.told = Told()
        self.serving: Callable[[Target], tuple[bool, str]] = lambda _target: (True, "")
        self.drain_timeout = 10.0
        self.node_written = True
        self.watched = ""
        self.seen: list[str] = []

    # --- the agent ----------------------------------------------------------------------

    def start(self) -> Agent:
        self.tasks: deque[Callable[[], object]] = deque()
        self.agent = agent = Agent(
            node_ip="192.168.64.11",
            runtime=self.runtime,
            podnet=self.podnet,
            files=PodFiles(self.folder / "pods"),
            outbox=Outbox(self.store, "n1"),
            events=self.told,
            subnet_file=self.subnet_file,
            drain_delay=0.1,
            drain_timeout=self.drain_timeout,
            clock=self.clock,
            check=self._check,
            pool=lambda _size, _name: Later(self.tasks),
        )
        self.bound = Bound(self.store, "n1")
        agent.bindings = self.bound
        agent.drains = self.drainer = Drainer(self.registry, agent.trigger, self.clock)
        agent.on_node_change = self.write_node
        self.heard = self.runtime.events()
        return agent

    def write_node(self) -> None:
        """As much of a Node as the leader needs to believe it; later, while the store is away."""
        subnets, _ = self.agent.network()
        spec = NodeSpec(pod_cidr=subnets[0] if subnets else "", pod_cidrs=subnets)
        status = NodeStatus(addresses=(NodeAddress(type="InternalIP", address="192.168.64.11"),))
        node = Node(metadata=ObjectMeta(name="n1"), spec=spec, status=status)
        self.node_written = False
        with suppress(StoreUnavailable):
            try:
                self.registry.update(node)
            except NotFound:
                self.registry.create(node)
            self.node_written = True

    def _check(self, target: Target) -> tuple[bool, str]:
        return self.serving(target)

    def kill(self) -> None:
        """As SIGKILL would: what was not done yet is not done."""
        self.tasks.clear()
        self.agent.close()
        self.heard.close()

    def run(self, seconds: float = 1.0) -> None:
        """Let time pass, with all that falls due in it."""
        end = self.clock.monotonic() + seconds
        while True:
            pause = self.step()
            left = end - self.clock.monotonic()
            if pause > 0 and left <= 0:
                return
            self.clock.advance(max(0.0, min(pause + 1e-6, left)))

    def step(self) -> float:
        """Do what is due now; returns the seconds until something else will be."""
        while self.tasks:
            self.tasks.popleft()()
            self.leader.step()
            self._watch()
        if not self.node_written:
            self.write_node()
        self.leader.step()
        if self.bound.changed():
            self.agent.trigger()
        while not self.heard.queue.empty():
            if (event := self.heard.queue.get()) is not None:
                self.agent.heard(event)
        pause = min(self.agent.prober.step(), self.drainer.runner.step(), self.agent.runner.step())
        return 0.0 if self.tasks else pause

    def watch(self, pod_name: str) -> list[str]:
        """From now on `get pods -w` of a pod, as "READY STATUS RESTARTS"."""
        self.watched, self.seen = pod_name, []
        self._watch()
        return self.seen

    def _watch(self) -> None:
        if self.watched and not self.gone(self.watched):
            told = summarize(self.get(self.watched))
            line = f"{told.ready}/{told.total} {told.reason} {told.restarts}"
            if self.seen[-1:] != [line]:
                self.seen.append(line)

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Let time pass until the condition holds; it may be looked at between any two things that happen."""
        end = self.clock.monotonic() + seconds
        while not condition():
            pause = self.step()
            assert self.clock.monotonic() < end, "did not become true"
            if not condition():
                self.clock.advance(min(pause + 1e-6, 1.0) if pause > 0 else 0.0)

    # --- the cluster ----------------------------------------------------------------------

    def bind(
        self,
        pod_name: str,
        *containers: Container,
        node: str = "n1",
        labels: dict[str, str] | None = None,
        **spec: Any,
    ) -> Pod:
        pod = self.registry.create(
            Pod(
                metadata=ObjectMeta(name=pod_name, namespace="default", labels=labels or {}),
                spec=PodSpec(containers=containers or (container(),), **spec),
            )
        )
        meta = pod.metadata
        assert bind(self.registry, [Binding("default", pod_name, node, meta.resource_version)]) == [None]
        return self.get(pod_name)

    def get(self, pod_name: str) -> Pod:
        return self.registry.get(Pod, "default", pod_name)

    def delete(self, pod_name: str, grace: int | None = None) -> None:
        self.registry.delete(Pod, "default", pod_name, grace_seconds=grace)

    def ready(self, *names: str) -> bool:
        return all(is_pod_ready(self.get(n)) for n in names)

    def restarts(self, pod_name: str) -> int:
        return self.get(pod_name).status.container_statuses[0].restart_count

    def gone(self, pod_name: str) -> bool:
        try:
            self.get(pod_name)
        except NotFound:
            return True
        return False

    def told_to_end(self, pod_name: str) -> bool:
        return any(text.startswith(f"{pod_name}: Killing") for text in self.told.events)

    def serve(self, pod_name: str, *, terminating: bool = False) -> int:
        """Be the endpoints controller for a service of one pod; returns the slice's revision."""
        try:
            self.registry.get(Service, "default", "web")
        except NotFound:
            self.registry.init_cluster(ClusterConfig(service_cidr="10.96.0.0/24"))
            meta = ObjectMeta(name="web", namespace="default")
            self.registry.create(Service(metadata=meta, spec=ServiceSpec(selector={"app": "web"})))
        pod = self.get(pod_name)
        endpoint = Endpoint(
            addresses=(pod.status.pod_ip,),
            conditions=EndpointConditions(ready=not terminating, serving=True, terminating=terminating),
            target_ref=reference_to(pod),
        )
        meta = ObjectMeta(name="web-1", namespace="default", labels={SERVICE_NAME_LABEL: "web"})
        item = EndpointSlice(metadata=meta, endpoints=(endpoint,))
        written = self.registry.update(item) if terminating else self.registry.create(item)
        return int(written.metadata.resource_version)

    def waits_for(self, pod_name: str) -> str:
        """Whom a pod that ends is kept for."""
        known = self.drainer._drains.get(self.get(pod_name).metadata.uid)
        return known.waits_for if known else ""


def named(pod: Pod, number: int = 0, ct: str = "web") -> str:
    """The engine's name of an attempt of a container."""
    return name(ct, pod.metadata.name, number).replace(f"uid-{pod.metadata.name}", pod.metadata.uid)
