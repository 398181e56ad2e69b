"""The agent with its threads: each is there, is woken when it should be, and ends. See test_agent_loop for the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_world import World
from leading import ReportsLeader

from podlane.runtime.clock import SystemClock
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from podlane.store.reports import Outbox
from scheduler.agent.agent import Agent
from scheduler.agent.drain import Drainer
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.podfiles import PodFiles
from scheduler.agent.podnetfake import FakePodNet

pytestmark = pytest.mark.unit


class Threaded(World):
    """The same world in real time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.store = MemoryStore()
        self.registry = Registry(self.store)
        self.registry.put_node_lease("n1", 0, 10)
        self.leader = ReportsLeader(self.store, SystemClock())
        self.runtime = FakeRuntime(SystemClock())
        self.runtime.add_image("web:1")
        self.podnet = FakePodNet(self.runtime.alive)
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []

    def start(self) -> Agent:
        agent = self.agent = Agent(
            node_ip="192.168.64.11",
            runtime=self.runtime,
            podnet=self.podnet,
            files=PodFiles(self.folder / "pods"),
            outbox=Outbox(self.store, "n1"),
            events=self.told,
            subnet_file=self.subnet_file,
        )
        bindings = self.registry.bindings("n1", agent.trigger)
        agent.bindings = bindings
        agent.on_node_change = self.write_node
        agent.drains = drains = Drainer(self.registry, agent.trigger, agent.clock)
        for body in (
            bindings.run,
            drains.run,
            agent.follow_events,
            agent.follow_network,
            agent.prober.run,
            agent.runner.run,
        ):
            thread = threading.Thread(target=body, args=(self.stop,))
            thread.start()
            self.threads.append(thread)
        return agent

    def kill(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive(), thread
        self.agent.close()

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "did not become true"
            self.leader.step()
            time.sleep(0.01)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Threaded]:
    world = Threaded(tmp_path)
    world.start()
    yield world
    world.kill()


def test_a_pods_life(world: Threaded) -> None:
    pods = [world.bind(f"p{i}").metadata.name for i in range(5)]
    world.until(lambda: world.ready(*pods))
    world.runtime.end(next(name for name in world.runtime.running() if "_web_p1_" in name), 1)
    world.until(lambda: world.restarts("p1") == 1 and world.ready("p1"))
    world.podnet.delete_bridge()
    world.until(lambda: len(world.podnet.ports()) == 5)
    world.delete("p0")
    world.until(lambda: world.gone("p0"))
    assert len(world.runtime.running()) == 8
