"""Hollow nodes without threads and real time: a crew that is stepped, a store in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from leading import ReportsLeader
from msgspec.structs import replace

from podlane.api.meta import is_pod_ready
from podlane.api.types import (
    ConfigMap,
    ConfigMapEnvSource,
    Container,
    EmptyDirVolumeSource,
    EnvFromSource,
    HostPathVolumeSource,
    Node,
    ObjectMeta,
    Pod,
    PodSpec,
    PodStatus,
    ResourceRequirements,
    Volume,
)
from podlane.errors import NotFound
from podlane.runtime.clock import FakeClock
from podlane.store.bulk import Binding
from podlane.store.memory import MemoryStore
from podlane.store.mirror import NotSynced
from podlane.store.registry import Registry
from scheduler.agent.hollow import lifetime
from scheduler.agent.hollowcrew import Crew, Lane, Turning
from scheduler.agent.hollowfeed import Bound, Feed, Heartbeats
from scheduler.agent.hollownode import HollowNode, Settings, subnet_of
from scheduler.agent.hollowrefs import SharedReferences
from scheduler.agent.runtime import NO_NETWORK, ContainerConfig

pytestmark = pytest.mark.unit

NETWORK = IPv4Network("100.64.0.0/10")


# --- the crew ---------------------------------------------------------------------------------


def run(crew: Crew, clock: FakeClock, seconds: float) -> None:
    """Let time pass, with all that falls due in it."""
    end = clock.monotonic() + seconds
    while True:
        pause = crew.step()
        left = end - clock.monotonic()
        if pause > 0:
            if left <= 0:
                return
            clock.advance(min(pause, left))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def crew(clock: FakeClock) -> Crew:
    return Crew(clock)


def test_work_is_done_at_its_time_and_a_failure_ends_nothing_else(crew: Crew, clock: FakeClock) -> None:
    done: list[str] = []
    crew.later(2, lambda: done.append("late"))
    crew.later(1, lambda: 1 / 0)
    crew.later(1, lambda: done.append("early"))
    run(crew, clock, 0.9)
    assert done == []
    run(crew, clock, 0.2)
    assert done == ["early"]
    run(crew, clock, 1)
    assert done == ["early", "late"]


def test_threads_share_the_work_and_end_when_told(crew: Crew) -> None:
    stop, both = threading.Event(), threading.Barrier(2, timeout=20)
    met = threading.Event()

    def meet() -> None:  # only two threads at once can get past it
        both.wait()
        met.set()

    threads = [threading.Thread(target=crew.work, args=(stop,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    crew.later(0, meet)
    crew.later(0, meet)
    assert met.wait(20)
    stop.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_a_lane_does_so_many_at_once_each_after_its_time(crew: Crew, clock: FakeClock) -> None:
    done: list[int] = []
    lane = Lane(crew, 2, lambda: 1.0, lambda: None)
    for number in range(5):
        lane.submit(done.append, number)
    run(crew, clock, 1)
    assert done == [0, 1]
    run(crew, clock, 1)
    assert done == [0, 1, 2, 3]
    lane.shutdown()
    lane.submit(done.append, 5)
    run(crew, clock, 5)
    assert done == [0, 1, 2, 3, 4]  # what was begun goes on to its end


def test_a_wake_during_a_turn_is_followed_by_another_turn(crew: Crew, clock: FakeClock) -> None:
    turns: list[float] = []

    def turn() -> float:
        turns.append(clock.monotonic())
        if len(turns) == 1:
            turning.wake()
        return 10.0

    turning = Turning(crew, turn)
    turning.wake()
    turning.wake()
    run(crew, clock, 0)
    assert turns == [0, 0]
    run(crew, clock, 10)
    assert turns == [0, 0, 10]
    turning.close()
    run(crew, clock, 100)
    assert len(turns) == 3


def test_an_alarm_of_an_earlier_turn_counts_no_more(crew: Crew, clock: FakeClock) -> None:
    turns: list[float] = []
    turning = Turning(crew, lambda: turns.append(clock.monotonic()) or 10.0)
    turning.wake()
    run(crew, clock, 4)
    turning.wake()
    run(crew, clock, 9)
    assert turns == [0, 4]
    run(crew, clock, 1)
    assert turns == [0, 4, 14]


# --- the engine ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "ends"),
    [(("sleep", "2.5"), (2.5, 0)), (("true",), (0.0, 0)), (("false",), (0.0, 1)), (("web",), None), ((), None)],
)
def test_a_container_ends_as_its_command_would(command: tuple[str, ...], ends: tuple[float, int] | None) -> None:
    assert lifetime(ContainerConfig("c", "i", {}, NO_NETWORK, cmd=command)) == ends


# --- a node ---------------------------------------------------------------------------------


class World:
    """One hollow node on a store in memory."""

    def __init__(self, folder: Path, clock: FakeClock, crew: Crew) -> None:
        self.clock, self.crew = clock, crew
        self.store = MemoryStore(clock)
        self.registry = Registry(self.store, clock=clock)
        self.registry.put_node_lease("hollow-7", 0, 10)
        self.leader = ReportsLeader(self.store, clock)
        settings = Settings(folder, NETWORK, {"cpu": "4", "memory": "8Gi", "pods": "110"}, start_seconds=1.0)
        self.references = SharedReferences(self.store, clock)
        self.node = HollowNode(
            "hollow-7", 7, settings, registry=self.registry, references=self.references, crew=crew, callers=crew
        )
        self.feed = Feed(self.store, [self.node.bound], clock)
        self.node.bound.list(self.store)
        self.watch = self.store.watch_many({self.node.bound.prefix: self.node.bound.revision})
        self.node.start()

    def run(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            self.see()
            run(self.crew, self.clock, min(left, 0.1))
            self.leader.step()
        self.see()

    def see(self) -> None:
        while (batch := self.watch.next(0)) is not None:
            self.feed.take(batch.events)

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        end = self.clock.monotonic() + seconds
        while not condition():
            assert self.clock.monotonic() < end, "did not become true"
            self.run(0.1)

    def bind(self, name: str, volumes: tuple[Volume, ...] = (), **spec: object) -> None:
        containers = (Container(name="web", image="web", **spec),)  # type: ignore[arg-type]
        pod = Pod(
            metadata=ObjectMeta(name=name, namespace="default"),
            spec=PodSpec(containers=containers, volumes=volumes, termination_grace_period_seconds=2),
        )
        version = self.registry.create(pod).metadata.resource_version
        assert self.registry.bind([Binding("default", name, "hollow-7", version)]) == [None]

    def author(self, name: str, cpu: str) -> None:
        """Make a pod that names the node itself."""
        asks = ResourceRequirements(requests={"cpu": cpu})
        spec = PodSpec(containers=(Container(name="web", image="web", resources=asks),), node_name="hollow-7")
        self.registry.create(Pod(metadata=ObjectMeta(name=name, namespace="default"), spec=spec))

    def pod(self, name: str) -> Pod:
        return self.registry.get(Pod, "default", name)

    def gone(self, name: str) -> bool:
        try:
            self.pod(name)
        except NotFound:
            return True
        return False


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock, crew: Crew) -> World:
    return World(tmp_path, clock, crew)


def test_a_node_registers_and_runs_pods_that_take_their_time(world: World) -> None:
    world.bind("a")
    world.bind("b")
    world.run(0.4)
    assert not is_pod_ready(world.pod("a"))  # an engine takes half a second at least
    world.until(lambda: is_pod_ready(world.pod("a")) and is_pod_ready(world.pod("b")))
    assert {world.pod(name).status.pod_ip for name in ("a", "b")} == {"100.64.7.2", "100.64.7.3"}
    node = world.registry.get(Node, "", "hollow-7")
    assert node.metadata.labels["podlane.io/hollow"] == "true"
    assert node.spec.pod_cidr == "100.64.7.0/24"
    assert node.status.addresses[0].address == "100.64.7.1"
    assert world.node.problem() is None


def test_a_deleted_pod_ends_and_goes(world: World) -> None:
    world.bind("a")
    world.until(lambda: is_pod_ready(world.pod("a")))
    world.registry.delete(Pod, "default", "a")
    world.until(lambda: world.gone("a"))


def test_a_container_that_fails_is_started_again_as_on_a_real_node(world: World) -> None:
    world.bind("a", command=("false",))
    world.until(lambda: _restarts(world.pod("a")) >= 1)
    world.until(lambda: _waits(world.pod("a")) == "CrashLoopBackOff")


def test_a_pod_with_volumes_touches_nothing_of_this_machine(world: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    volumes = (
        Volume(name="host", host_path=HostPathVolumeSource(path=str(outside), type="DirectoryOrCreate")),
        Volume(name="empty", empty_dir=EmptyDirVolumeSource(medium="Memory")),
    )
    world.bind("a", volumes)
    world.until(lambda: is_pod_ready(world.pod("a")))
    assert not outside.exists()
    assert [entry.name for entry in (tmp_path / "hollow-7").iterdir()] == ["subnet.env"]


def test_an_object_is_followed_while_a_pod_of_any_node_names_it(clock: FakeClock) -> None:
    def naming(config_map: str) -> Pod:
        source = EnvFromSource(config_map_ref=ConfigMapEnvSource(name=config_map))
        return Pod(
            metadata=ObjectMeta(name="p", namespace="default"),
            spec=PodSpec(containers=(Container(name="web", image="web", env_from=(source,)),)),
        )

    store = MemoryStore(clock)
    Registry(store, clock=clock).create(ConfigMap(metadata=ObjectMeta(name="a", namespace="default"), data={"k": "v"}))
    shared, told = SharedReferences(store, clock), list[str]()
    for node in ("n1", "n2", "n3"):
        shared.view(node, partial(told.append, node))
    assert shared.look("n3", [Pod()]) == {}
    shared.look("n1", [naming("a")])
    shared.look("n2", [naming("a"), naming("b")])
    stop = threading.Event()
    thread = threading.Thread(target=shared.run, args=(stop,))
    thread.start()
    clock.await_sleepers(1)
    while len(known := shared.look("n1", [naming("a")])) < 2:
        clock.advance(0.1)
    assert {ref.name: obj and obj.data for ref, obj in known.items()} == {"a": {"k": "v"}, "b": None}
    assert set(told) == {"n1", "n2"}
    assert {ref.name for ref in shared.look("n2", [])} == {"a"}
    stop.set()
    store.cut()
    thread.join(20)
    assert not thread.is_alive()


def test_every_node_has_a_subnet_of_its_own() -> None:
    assert str(subnet_of(NETWORK, 300)) == "100.65.44.0/24"
    with pytest.raises(IndexError, match="has no /24 number 256"):
        subnet_of(IPv4Network("10.244.0.0/16"), 256)


def _restarts(pod: Pod) -> int:
    return max((status.restart_count for status in pod.status.container_statuses), default=0)


def _waits(pod: Pod) -> str:
    return next((s.state.waiting.reason for s in pod.status.container_statuses if s.state.waiting), "")


# --- what ties it to the store ------------------------------------------------------------------


def test_bindings_are_not_shown_before_their_first_list_and_resume_after_a_compaction(world: World) -> None:
    bound = world.node.bound
    world.bind("a")
    world.see()
    assert bound.snapshot().keys() == {"default/a"}
    world.watch.cancel()
    world.bind("b")
    world.store.compact()
    stop = threading.Event()
    feed = threading.Thread(target=world.feed.run, args=(stop,))
    feed.start()
    deadline = threading.Event()
    while bound.snapshot().keys() != {"default/a", "default/b"}:
        assert not deadline.wait(0.01)
        world.clock.advance(0.5)
    stop.set()
    world.store.cut()
    world.clock.advance(5)
    feed.join(20)
    assert not feed.is_alive()


def test_a_status_that_was_carried_over_is_no_change_to_look_at(clock: FakeClock) -> None:
    store, told = MemoryStore(clock), list[str]()
    registry = Registry(store, clock=clock)
    bound = Bound("n1", lambda: told.append("changed"))
    registry.create(Pod(metadata=ObjectMeta(name="p", namespace="default"), spec=PodSpec(node_name="n1")))
    bound.list(store)
    told.clear()  # of the list
    watch = store.watch_many({bound.prefix: bound.revision + 1})

    def tells(change: Callable[[Pod], Pod]) -> bool:
        told.clear()
        changed = registry.modify(Pod, "default", "p", change)
        batch = watch.next(0)
        assert batch is not None
        bound.apply(batch.events)
        assert bound.snapshot()["default/p"] == changed
        return told == ["changed"]

    assert not tells(lambda pod: replace(pod, status=PodStatus(phase="Running")))
    assert tells(lambda pod: replace(pod, metadata=replace(pod.metadata, labels={"app": "web"})))
    assert tells(lambda pod: replace(pod, status=PodStatus(phase="Failed")))  # not by the agent, perhaps


def test_a_pod_that_names_the_node_and_does_not_fit_is_failed(world: World) -> None:
    world.author("small", "1")
    world.author("large", "64")
    world.run(1)
    assert world.pod("large").status.reason == "OutOfcpu"
    world.until(lambda: is_pod_ready(world.pod("small")))


def test_a_node_without_a_list_says_so(clock: FakeClock, crew: Crew, tmp_path: Path) -> None:
    registry = Registry(MemoryStore(clock), clock=clock)
    references = SharedReferences(registry.store, clock)
    settings = Settings(tmp_path, NETWORK, {})
    node = HollowNode("hollow-1", 1, settings, registry=registry, references=references, crew=crew, callers=crew)
    with pytest.raises(NotSynced, match="read bindings of hollow-1: no complete list yet"):
        node.bound.snapshot()
    assert Feed(registry.store, [node.bound], clock).not_ready() == "no complete list of 1 nodes' bindings yet"


def test_every_node_has_a_lease_that_is_renewed_and_replaced_when_lost(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    beats = Heartbeats(["a", "b"], 10, registry=Registry(store, clock=clock), clock=clock)
    stop = threading.Event()
    key = "/registry/leases/kube-node-lease/{}".format

    def leases() -> list[int]:
        return [kv.lease if (kv := store.get(key(node))) else 0 for node in "ab"]

    assert beats.not_ready() == "the leases of 2 nodes are not held"
    beats.step(stop)
    first = leases()
    assert all(first)
    assert beats.not_ready() is None
    for _ in range(10):
        clock.advance(4)
        beats.step(stop)
    assert leases() == first
    store.revoke(first[0])
    clock.advance(4)
    beats.step(stop)
    assert 0 not in leases()
    assert leases()[1] == first[1]
