"""What the agent makes of an engine that is full, away, or loses images; on the engine in memory."""

from __future__ import annotations

import pytest
from agent_objects import IMAGE, Host, container, pod

from scheduler.agent.runtime import INFRA_IMAGE

pytestmark = pytest.mark.unit

FULL = "no space left on device"


def waits(host: Host, uid: str = "uid-p") -> dict[str, tuple[str, str]]:
    planned = next(p for p in host.look().pods if p.uid == uid)
    return dict(planned.waiting)


def test_a_full_disk_keeps_a_new_pod_waiting_and_harms_no_running_one() -> None:
    host = Host(pod("p", container("web")))
    host.settle()
    host.runtime.full = True
    host.pods["uid-q"] = pod("q", container("web"))
    host.settle()
    assert host.running() == ["web/p#0"]
    reason, message = waits(host, "uid-q")["web"]
    assert reason == "ContainerCreating"
    assert FULL in message
    assert any(text.startswith("q: FailedCreatePodSandBox") and FULL in text for text in host.told.events)
    host.runtime.full = False
    host.clock.advance(60)
    host.settle()
    assert host.running() == ["web/p#0", "web/q#0"]


def test_a_disk_that_fills_while_a_pod_starts_is_said_of_the_container_and_slept_off() -> None:
    host = Host(pod("p", container("web")))
    host.settle()
    host.runtime.full = True
    host.runtime.end("podlane_web_p_default_uid-p_0", 1)
    host.settle()
    reason, message = waits(host)["web"]
    assert reason == "CreateContainerError"
    assert message.endswith(FULL)
    assert [text for text in host.told.events if "Failed" in text and FULL in text]
    tries = host.runtime.calls.count("docker create podlane_web_p_default_uid-p_1")
    host.settle()
    assert host.runtime.calls.count("docker create podlane_web_p_default_uid-p_1") == tries
    host.runtime.full = False
    host.clock.advance(10)
    host.settle()
    assert host.running() == ["web/p#1"]


def test_an_image_that_does_not_fit_is_a_failed_pull() -> None:
    host = Host(pod("p", container("web", image="big:1")))
    host.runtime.registry.add("big:1")
    for each in host.look().pods:
        host.steps.carry_out(each)  # the network; a pull goes beside it
    host.runtime.full = True
    host.settle()
    reason, message = waits(host)["web"]
    assert reason == "ErrImagePull"
    assert FULL in message
    host.runtime.full = False
    host.clock.advance(10)
    host.settle()
    assert host.running() == ["web/p#0"]


@pytest.mark.parametrize(
    ("policy", "reason", "again"),
    [("IfNotPresent", "ErrImagePull", "ImagePullBackOff"), ("Never", "ErrImageNeverPull", "ErrImageNeverPull")],
)
def test_an_image_removed_under_a_container_is_missed_at_its_next_start(policy: str, reason: str, again: str) -> None:
    host = Host(pod("p", container("web", image_pull_policy=policy)))
    host.settle()
    del host.runtime.images[IMAGE]
    host.memory.forget_images()  # as the engine's event has it
    host.settle()
    assert host.running() == ["web/p#0"]
    host.runtime.end("podlane_web_p_default_uid-p_0", 1)
    host.sync()
    assert waits(host)["web"][0] == reason
    host.clock.advance(11)
    host.sync()
    assert waits(host)["web"][0] == again
    host.runtime.add_image(IMAGE)
    host.memory.forget_images()
    host.clock.advance(60)
    host.settle()
    assert host.running() == ["web/p#1"]


def test_an_image_removed_between_look_and_step_is_looked_for_again() -> None:
    host = Host(pod("p", container("web", image_pull_policy="IfNotPresent")))
    planned = host.look()
    del host.runtime.images[IMAGE], host.runtime.images[INFRA_IMAGE]
    host.runtime.registry.add(IMAGE)
    for each in planned.pods:
        host.steps.carry_out(each)
    assert host.all_running() == ["POD/p#0"]  # its image is made anew on the spot
    host.clock.advance(10)
    host.settle()
    assert host.running() == ["web/p#0"]


def test_an_engine_that_is_away_fails_nothing_and_is_asked_again() -> None:
    host = Host(pod("p", container("web")))
    planned = host.look()
    host.runtime.down = True
    (each,) = planned.pods
    assert host.steps.carry_out(each) > 0
    assert host.memory.failures() == {}
    assert not [text for text in host.told.events if "Failed" in text]
    host.runtime.down = False
    host.settle()
    assert host.running() == ["web/p#0"]


def test_a_registry_that_is_away_keeps_a_container_that_is_always_pulled_from_starting() -> None:
    host = Host(pod("p", container("web", image_pull_policy="Always")))
    host.settle()
    assert waits(host)["web"][0] == "ErrImagePull"
    host.runtime.registry.add(IMAGE)
    host.clock.advance(10)
    host.settle()
    assert host.running() == ["web/p#0"]
