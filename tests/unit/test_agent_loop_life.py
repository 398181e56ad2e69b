"""Whole lives of pods, as `get pods -w` and `events` would show them."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_objects import container
from agent_world import World, named

from podlane.api.types import (
    ExecAction,
    Lifecycle,
    LifecycleHandler,
    Probe,
    SleepAction,
    TCPSocketAction,
)
from scheduler.agent.probestate import Target
from scheduler.agent.runtime import ExecResult

pytestmark = pytest.mark.unit

TCP = TCPSocketAction(port=80)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.start()
    return world


def test_init_containers_a_sidecar_and_two_containers(world: World) -> None:
    pod = world.bind(
        "p",
        container("web"),
        container("log"),
        init_containers=(
            container("fetch"),
            container("proxy", restart_policy="Always", startup_probe=Probe(tcp_socket=TCP)),
            container("migrate"),
        ),
    )
    asked: list[str] = []

    def serving(target: Target) -> tuple[bool, str]:
        asked.append(f"{target.container.name} {target.kind}")
        return True, ""

    world.serving = serving
    seen = world.watch("p")
    world.run(3)
    world.runtime.end(named(pod, ct="fetch"), 1)
    world.run(3)
    world.runtime.end(named(pod, 1, "fetch"), 0)
    world.run(3)
    world.runtime.end(named(pod, ct="migrate"), 0)
    world.until(lambda: world.ready("p"))
    assert seen == [
        "0/3 Pending 0",
        "0/3 Init:0/3 0",
        "0/3 Init:0/3 1",
        "0/3 Init:1/3 1",
        "1/3 Init:2/3 1",
        "3/3 Running 0",
    ]
    assert asked == ["proxy startup"]
    assert [s.ready for s in world.get("p").status.init_container_statuses] == [True, True, True]


def test_a_startup_probe_gates_the_others(world: World) -> None:
    up = {"startup": False, "liveness": True, "readiness": False}
    asked: list[str] = []

    def serving(target: Target) -> tuple[bool, str]:
        asked.append(target.kind)
        return up[target.kind], "not yet"

    world.serving = serving
    probe = Probe(tcp_socket=TCP, period_seconds=1)
    world.bind("p", container(startup_probe=probe, liveness_probe=probe, readiness_probe=probe))
    world.run(2)
    assert set(asked) == {"startup"}
    assert not world.get("p").status.container_statuses[0].started
    up["startup"] = True
    world.run(2)
    assert world.get("p").status.container_statuses[0].started
    asked.clear()
    world.run(5)
    assert set(asked) == {"liveness", "readiness"}
    assert not world.ready("p")
    up["readiness"] = True
    world.until(lambda: world.ready("p"))


def test_what_has_started_is_not_asked_again_by_a_restarted_agent(world: World) -> None:
    probe = Probe(tcp_socket=TCP, period_seconds=10)
    sidecar = container("proxy", restart_policy="Always", startup_probe=probe, readiness_probe=probe)
    world.bind("p", container(startup_probe=probe, liveness_probe=probe), init_containers=(sidecar,))
    world.until(lambda: world.ready("p"))
    before, calls = world.get("p"), list(world.runtime.calls)
    world.kill()
    asked: list[str] = []

    def serving(target: Target) -> tuple[bool, str]:
        asked.append(f"{target.container.name} {target.kind}")
        return False, "busy"

    world.serving = serving
    world.start()
    world.run(19)  # not long enough for three failures
    assert set(asked) == {"proxy readiness", "web liveness"}
    assert (world.get("p"), world.runtime.calls) == (before, calls)


def test_a_container_that_fails_its_liveness_probe_is_restarted(world: World) -> None:
    alive = {"ok": True}
    world.serving = lambda _target: (alive["ok"], "connection refused")
    probe = Probe(tcp_socket=TCP, period_seconds=1, failure_threshold=3)
    pod = world.bind("p", container(liveness_probe=probe), termination_grace_period_seconds=4)
    world.until(lambda: world.ready("p"))
    world.runtime.ignores_term = {named(pod)}
    seen = world.watch("p")
    world.told.events.clear()
    alive["ok"] = False
    world.run(3.5)
    assert world.told.events == [
        *["p: Unhealthy Liveness probe failed: connection refused"] * 3,
        "p: Killing Container web failed liveness probe, will be restarted",
    ]
    alive["ok"] = True
    world.run(5)
    assert named(pod, 1) in world.runtime.running()
    assert seen == ["1/1 Running 0", "0/1 Error 0", "1/1 Running 1"]


def test_an_image_that_may_not_be_pulled_is_told_once(world: World) -> None:
    world.bind("p", container(image="mine:1", image_pull_policy="Never"))
    world.run(30)
    missing = 'p: ErrImageNeverPull Container image "mine:1" is not present with pull policy of Never'
    assert world.told.events == [missing]


def test_an_end_without_grace_is_told_too(world: World) -> None:
    world.serving = lambda _target: (False, "no")
    probe = Probe(tcp_socket=TCP, period_seconds=1, failure_threshold=1)
    world.bind("p", container(liveness_probe=probe), termination_grace_period_seconds=0)
    world.run(3)
    assert "p: Killing Container web failed liveness probe, will be restarted" in world.told.events


def test_a_startup_probe_that_never_passes_ends_in_back_off(world: World) -> None:
    world.serving = lambda _target: (False, "no")
    world.bind("p", container(startup_probe=Probe(tcp_socket=TCP, period_seconds=1, failure_threshold=2)))
    seen = world.watch("p")
    world.run(12)
    assert seen[-1] == "0/1 CrashLoopBackOff 1"
    assert "p: Killing Container web failed startup probe, will be restarted" in world.told.events
    assert any(
        text.startswith("p: BackOff Back-off restarting failed container web in pod p_default(")
        for text in world.told.events
    )


def test_a_pod_is_not_probed_into_a_restart_while_it_ends(world: World) -> None:
    alive = {"ok": True}
    world.serving = lambda _target: (alive["ok"], "no")
    probe = Probe(tcp_socket=TCP, period_seconds=1, failure_threshold=1)
    pod = world.bind("p", container(liveness_probe=probe))
    world.until(lambda: world.ready("p"))
    world.runtime.ignores_term = {named(pod)}
    world.delete("p", 20)
    world.run(1)
    alive["ok"] = False
    world.run(15)
    assert named(pod) in world.runtime.running()
    assert "Unhealthy" not in world.told.reasons()
    world.run(5)
    assert world.gone("p")


def test_hooks_of_a_pod_from_its_start_to_its_end(world: World) -> None:
    run: list[str] = []

    def execs(name: str, command: tuple[str, ...]) -> ExecResult:
        run.append(f"{name.split('_')[1]} {command[0]}")
        return ExecResult(0, b"")

    world.runtime.execs = execs
    hooks = Lifecycle(
        post_start=LifecycleHandler(exec=ExecAction(command=("register",))),
        pre_stop=LifecycleHandler(sleep=SleepAction(seconds=5)),
    )
    seen_before: list[str] = []
    pod = world.bind("p", container("web", lifecycle=hooks), container("log"))
    seen_before = world.watch("p")
    world.until(lambda: world.ready("p"))
    assert run == ["web register"]
    assert seen_before == ["0/2 Pending 0", "0/2 ContainerCreating 0", "2/2 Running 0"]
    world.kill()
    world.start()  # a restarted agent runs no hook again
    world.run(5)
    assert run == ["web register"]
    world.delete("p")
    world.run(3)
    assert world.runtime.running() == (f"{named(pod, ct='POD')}", named(pod))
    world.run(3)
    assert world.gone("p")


def test_a_pod_that_ends_serves_until_its_hook_is_over(world: World) -> None:
    probe = Probe(tcp_socket=TCP, period_seconds=1)
    hook = Lifecycle(pre_stop=LifecycleHandler(sleep=SleepAction(seconds=5)))
    sidecar = container("proxy", restart_policy="Always", startup_probe=probe)
    world.bind("p", container(startup_probe=probe, readiness_probe=probe, lifecycle=hook), init_containers=(sidecar,))
    world.until(lambda: world.ready("p"))
    seen = world.watch("p")
    world.delete("p")
    world.run(4.5)
    assert seen == ["2/2 Running 0", "2/2 Terminating 0"]
    assert world.ready("p")
    world.run(2)
    assert world.gone("p")


def test_a_pod_past_its_deadline(world: World) -> None:
    world.bind("p", container(), active_deadline_seconds=30)
    world.until(lambda: world.ready("p"))
    world.run(25)
    assert world.ready("p")
    world.run(10)
    status = world.get("p").status
    assert (status.phase, status.reason) == ("Failed", "DeadlineExceeded")
    assert world.runtime.running() == ()
    text = "Pod was active on the node longer than the specified deadline"
    assert [e for e in world.told.events if "Deadline" in e] == [f"p: DeadlineExceeded {text}"]
    world.run(60)
    assert world.get("p").status == status


def test_a_job_with_a_sidecar_is_over_when_its_work_is(world: World) -> None:
    pod = world.bind("p", init_containers=(container("proxy", restart_policy="Always"),), restart_policy="OnFailure")
    world.until(lambda: world.ready("p"))
    seen = world.watch("p")
    world.runtime.ignores_term = {named(pod, ct="proxy")}
    world.runtime.end(named(pod), 0)
    world.run(10)
    assert world.get("p").status.phase == "Running"
    world.run(25)
    assert world.get("p").status.phase == "Succeeded"
    assert seen == ["2/2 Running 0", "1/2 Completed 0", "0/2 Completed 0"]


def test_a_bad_image_keeps_no_other_pod_waiting(world: World) -> None:
    hanging = [world.bind(f"bad{n}", container(image=f"none:{n}")) for n in range(5)]
    world.runtime.registry.add("good:1")
    world.bind("p", container(image="good:1"))
    world.until(lambda: world.ready("p"))
    seen = world.watch("bad0")
    world.run(45)
    assert {"0/1 ErrImagePull 0", "0/1 ImagePullBackOff 0"} <= set(seen)
    assert len(hanging) == 5
    pulls = [call for call in world.runtime.calls if call == "docker pull none:0"]
    assert len(pulls) == 3  # at 0, 10 and 30 s


def message(world: World, *, last: bool = False) -> str:
    status = world.get("p").status.container_statuses[0]
    ended = status.last_state.terminated if last else status.state.terminated
    return ended.message if ended is not None else "not ended"


def test_the_last_words_of_a_container_are_in_its_status(world: World) -> None:
    pod = world.bind("p", container(), restart_policy="OnFailure")
    world.until(lambda: world.ready("p"))
    words = world.folder / "pods" / pod.metadata.uid / "last-words" / "web"
    (words / "0").write_text("no such table")
    world.runtime.end(named(pod), 1)
    world.until(lambda: named(pod, 1) in world.runtime.running())
    world.run(1)
    assert message(world, last=True) == "no such table"
    assert (words / "1").read_text() == ""
    world.kill()
    world.start()
    (words / "1").write_text("x" * 5000 + "done")
    world.runtime.end(named(pod, 1), 0)
    world.run(1)
    assert message(world) == "x" * 4092 + "done"


def test_without_last_words_the_end_of_the_log_is_told_of_a_failure_if_the_manifest_says_so(world: World) -> None:
    fallback = container(termination_message_policy="FallbackToLogsOnError")
    pod = world.bind("p", fallback, restart_policy="Never")
    world.until(lambda: world.ready("p"))
    for line in (b"y" * 3000, b"\ntraceback\n"):
        world.runtime.write(named(pod), line)
    world.runtime.end(named(pod), 1)
    world.run(1)
    assert message(world) == "y" * 2037 + "\ntraceback\n"
