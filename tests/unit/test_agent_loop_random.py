"""The whole agent through random troubles: store and engine away, probes and hooks that fail, restarts, deletions.

What it reports in the end is true, and what is not reported does not run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_objects import container
from agent_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from podlane.api.types import ExecAction, Lifecycle, LifecycleHandler, Pod, Probe, SleepAction, TCPSocketAction
from scheduler.agent.containers import POD_UID
from scheduler.agent.runtime import ExecResult

pytestmark = pytest.mark.unit

PROBE = Probe(tcp_socket=TCPSocketAction(port=80), period_seconds=2, failure_threshold=2)
HOOKS = Lifecycle(
    post_start=LifecycleHandler(exec=ExecAction(command=("hook",))),
    pre_stop=LifecycleHandler(sleep=SleepAction(seconds=3)),
)
INIT = (container("prepare"), container("proxy", restart_policy="Always", startup_probe=PROBE))


def bind(world: World, number: int) -> None:
    name = f"p{len(pods(world))}"
    web = container("web", lifecycle=HOOKS if number % 2 else None, startup_probe=PROBE if number % 3 else None,
                    liveness_probe=PROBE, readiness_probe=PROBE if number % 5 else None)  # fmt: skip
    policy = ("Always", "OnFailure", "Never")[number % 3]
    deadline = 60 if number % 7 == 0 else None
    if world.gone(name):
        world.bind(name, web, container("log"), init_containers=INIT if number % 4 else (), restart_policy=policy,
                   active_deadline_seconds=deadline, termination_grace_period_seconds=(1, 10)[number % 2])  # fmt: skip


def pods(world: World) -> list[Pod]:
    return list(world.registry.list(Pod).items)


def delete(world: World, number: int) -> None:
    if known := pods(world):
        world.delete(known[number % len(known)].metadata.name, (None, 0, 1, 20)[number % 4])


def end(world: World, number: int) -> None:
    if running := world.runtime.running():
        world.runtime.end(running[number % len(running)], (0, 1, 137)[number % 3])


def restart(world: World, _number: int) -> None:
    world.kill()
    world.start()


def store_away(world: World, number: int) -> None:
    world.store.faults.set_down(True)
    world.run(number)
    world.store.faults.set_down(False)


def engine_away(world: World, number: int) -> None:
    world.runtime.down = True
    world.run(number)
    world.runtime.down = False


def answer(world: World, number: int) -> None:
    world.serving = lambda _target: (number % 2 == 0, "no")


def let_hooks_end(world: World, number: int) -> None:
    world.runtime.execs = lambda _name, _command: ExecResult(number % 2, b"")


TROUBLES: tuple[Callable[[World, int], object], ...] = (
    bind, bind, delete, end, end, restart, store_away, engine_away, answer, let_hooks_end,
    lambda world, number: world.run(number / 3),
)  # fmt: skip


def quiet(world: World) -> None:
    """Nothing bad happens any more, and init containers do their work."""
    answer(world, 0)
    let_hooks_end(world, 0)
    for _ in range(40):
        world.run(20)
        for name in world.runtime.running():
            if "_prepare_" in name:
                world.runtime.end(name, 0)


@settings(max_examples=40, deadline=None)
@given(troubles=st.lists(st.tuples(st.sampled_from(TROUBLES), st.integers(0, 30)), max_size=25))
def test_random_troubles(troubles: list[tuple[Callable[[World, int], object], int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.start()
        for trouble, number in troubles:
            trouble(world, number)
        quiet(world)
        owners = [record.labels[POD_UID] for record in world.runtime.list()]
        assert set(owners) <= {pod.metadata.uid for pod in pods(world)}
        for pod in pods(world):
            name = pod.metadata.name
            running = [r.name for r in world.runtime.list() if r.running and r.labels[POD_UID] == pod.metadata.uid]
            assert pod.metadata.deletion_timestamp is None, name
            if pod.status.phase in {"Succeeded", "Failed"}:
                assert pod.spec.restart_policy != "Always" or pod.status.reason == "DeadlineExceeded", name
                assert running == [], name
            elif pod.spec.restart_policy == "Always":
                assert world.ready(name), name
            else:
                assert pod.status.phase == "Running", name
