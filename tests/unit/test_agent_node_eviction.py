"""Which pod goes when a node has too little memory, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_objects import container
from agent_world import World
from msgspec.structs import replace
from scheduler_objects import pod

from podlane.errors import PodlaneError
from podlane.runtime.clock import FakeClock
from scheduler.agent.eviction import PAUSE, Evictor, choose

pytestmark = pytest.mark.unit

MI = 1024**2


def important(item, priority: int):
    return replace(item, spec=replace(item.spec, priority=priority))


def first(pods, **used: int) -> str:
    chosen = choose(pods, {f"uid-{name}": amount * MI for name, amount in used.items()})
    return chosen[0].metadata.name if chosen else ""


def test_who_goes_first():
    modest, greedy, little = pod("modest", memory="500Mi"), pod("greedy", memory="100Mi"), pod("little")
    # who uses more than it requests, however little that is
    assert first([modest, greedy], modest=499, greedy=101) == "greedy"
    # then the less important, though it uses less
    assert first([important(greedy, 10), little], greedy=900, little=5) == "little"
    # then who is furthest beyond
    assert first([greedy, little], greedy=150, little=40) == "greedy"
    # and within the requests all the same
    assert first([modest, important(greedy, 5)], modest=10, greedy=10) == "modest"


def test_who_does_not_go():
    critical = important(pod("critical"), 2_000_000_000)
    ending, over = pod("ending", terminating=True), pod("over", phase="Failed")
    assert first([critical, ending, over, pod("unknown")], critical=900, ending=900, over=900) == ""


def test_what_is_said():
    _, message = choose([pod("web", memory="8Mi")], {"uid-web": 20 * MI + 5})
    assert message == "The node was low on resource: memory. The pod was using 20Mi, its request is 8Mi."


def test_one_at_a_time():
    clock = FakeClock()
    pods = [pod("a"), pod("b")]
    gone: list[str] = []
    usage = {"pods": [{"uid": f"uid-{n}", "containers": [{"memory": 5 * MI}]} for n in ("a", "b")]}
    evictor = Evictor(lambda: usage, lambda: pods, lambda p, _: gone.append(p.metadata.name), clock)
    evictor.look()
    pods = pods[1:]
    evictor.look()
    assert gone == ["a"]
    clock.advance(PAUSE)
    evictor.look()
    assert gone == ["a", "b"]


def test_nothing_is_done_while_nothing_is_known():
    def unknown():
        raise PodlaneError("read usage of the machine: no")

    Evictor(unknown, lambda: [pod("a")], lambda *_: pytest.fail("evicted"), FakeClock()).look()


def test_an_evicted_pod_ends_at_once_and_is_failed_for_good(tmp_path: Path):
    world = World(tmp_path)
    agent = world.start()
    evicted = world.bind("p", container())
    world.bind("q", container())
    world.until(lambda: world.ready("p", "q"))
    agent.evict(evicted, "The node was low on resource: memory.")
    world.until(lambda: world.get("p").status.phase == "Failed")
    status = world.get("p").status
    assert (status.reason, status.message) == ("Evicted", "The node was low on resource: memory.")
    assert not any("_p_" in name for name in world.runtime.running())
    assert [e for e in world.told.events if "Evicted" in e] == ["p: Evicted The node was low on resource: memory."]
    # also for an agent that knows nothing of it
    world.kill()
    world.start()
    world.run(30)
    assert world.get("p").status.reason == "Evicted"
    assert world.ready("q")
