"""Lifecycle hooks, failed probes and grace periods: how one container starts and how it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from agent_objects import Host, container, deleted, name, pod

from podlane.api.types import (
    Container,
    ExecAction,
    HTTPGetAction,
    Lifecycle,
    LifecycleHandler,
    Probe,
    SleepAction,
    TCPSocketAction,
)
from scheduler.agent.actions import RunHook
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.model import PodPlan
from scheduler.agent.probestate import Target
from scheduler.agent.runtime import ExecResult, RuntimeRefused

pytestmark = pytest.mark.unit

EXEC = LifecycleHandler(exec=ExecAction(command=("hook",)))


def sleep(seconds: int) -> LifecycleHandler:
    return LifecycleHandler(sleep=SleepAction(seconds=seconds))


def post_start(ct: str, hook: LifecycleHandler = EXEC, **changes: Any) -> Container:
    return container(ct, lifecycle=Lifecycle(post_start=hook), **changes)


def pre_stop(ct: str, hook: LifecycleHandler = EXEC, **changes: Any) -> Container:
    return container(ct, lifecycle=Lifecycle(pre_stop=hook), **changes)


class Refusing(FakeRuntime):
    """Signals nobody."""

    refuses, asked = True, 0

    def signal(self, container: str, name: str) -> None:
        self.asked += 1
        if self.refuses:
            raise RuntimeRefused(f"signal container {container}: no space left on device")
        super().signal(container, name)


def one(host: Host) -> PodPlan:
    (plan,) = host.look().pods
    return plan


def kills(host: Host) -> list[str]:
    return [call.removeprefix("docker kill --signal ") for call in host.runtime.calls if "kill" in call]


def delete(host: Host, grace: int = 30) -> None:
    host.pods = {uid: deleted(p, grace) for uid, p in host.pods.items()}


def liveness_fails(host: Host, probe: Probe) -> None:
    (obj,) = host.pods.values()
    record = next(r for r in host.records() if r.running and "_web_" in r.name)
    host.unhealthy = {record.id: Target(record.id, obj, obj.spec.containers[0], probe, "", kind="liveness")}


# --- postStart ---------------------------------------------------------------------------


def test_the_next_container_waits_for_a_post_start_hook() -> None:
    host = Host(pod("p", post_start("web", sleep(5)), container("log")))
    host.settle()
    assert host.running() == ["web/p#0"]
    assert one(host).waiting == {"web": ("ContainerCreating", ""), "log": ("ContainerCreating", "")}
    assert one(host).wake_at == host.clock.now() + 5
    host.clock.advance(5)
    host.settle()
    assert host.running() == ["log/p#0", "web/p#0"]


def test_a_post_start_hook_that_fails_ends_its_container_which_is_restarted() -> None:
    host = Host(pod("p", post_start("web")))
    host.runtime.execs = lambda _name, _command: ExecResult(3, b"no such table\n")
    host.settle(3)
    assert "p: FailedPostStartHook PostStartHook failed: no such table" in host.told.events
    assert "p: Killing FailedPostStartHook, will be restarted" in host.told.events
    assert kills(host)[0] == f"SIGTERM {name('web', 'p')}"
    host.settle(3)
    assert host.running() == []
    assert one(host).waiting["web"][0] == "CrashLoopBackOff"
    host.runtime.execs = lambda _name, _command: ExecResult(0, b"")
    host.clock.advance(10)
    host.settle()
    assert host.running() == ["web/p#2"]
    assert one(host).waiting == {}


def test_a_hook_that_ended_is_not_run_again_by_a_restarted_agent() -> None:
    asked: list[tuple[str, ...]] = []
    host = Host(pod("p", post_start("web")))

    def execs(_name: str, command: tuple[str, ...]) -> ExecResult:
        asked.append(command)
        return ExecResult(0, b"")

    host.runtime.execs = execs
    host.settle()
    host.report_all()
    host.restart_agent()
    host.settle()
    assert asked == [("hook",)]


# --- preStop and the signals -----------------------------------------------------------


def test_a_pre_stop_hook_comes_before_sigterm_and_takes_from_the_grace_period() -> None:
    host = Host(pod("p", pre_stop("web", sleep(10))))
    host.settle()
    host.runtime.ignores_term = {name("web", "p")}
    delete(host, 30)
    host.settle()
    assert kills(host) == []
    host.clock.advance(10)
    host.settle()
    assert kills(host) == [f"SIGTERM {name('web', 'p')}"]
    host.clock.advance(19)
    host.settle()
    assert len(kills(host)) == 1
    host.clock.advance(1)
    host.settle()
    assert kills(host)[1:] == [f"SIGKILL {name('web', 'p')}"]
    assert host.pods == {}
    assert host.told.reasons().count("Killing") == 1


def test_a_pre_stop_hook_that_takes_all_of_the_grace_period_leaves_two_seconds() -> None:
    host = Host(pod("p", pre_stop("web", sleep(60))))
    host.settle()
    host.runtime.ignores_term = {name("web", "p")}
    delete(host, 5)
    host.settle()
    host.clock.advance(5)
    host.settle()
    assert kills(host) == [f"SIGTERM {name('web', 'p')}"]
    host.clock.advance(1.9)
    host.settle()
    assert len(kills(host)) == 1
    host.clock.advance(0.2)
    host.settle()
    assert host.pods == {}


def test_a_pre_stop_hook_that_fails_is_told_and_the_container_ends_all_the_same() -> None:
    host = Host(pod("p", pre_stop("web")))
    host.settle()
    host.runtime.execs = lambda _name, _command: ExecResult(1, b"")
    delete(host)
    host.settle()
    assert "p: FailedPreStopHook PreStopHook failed: exit code 1" in host.told.events
    assert host.pods == {}


def test_with_a_grace_period_of_0_there_is_no_hook() -> None:
    host = Host(pod("p", pre_stop("web", sleep(10))))
    host.settle()
    delete(host, 0)
    host.settle()
    assert kills(host) == [f"SIGKILL {name('web', 'p')}"]
    assert host.pods == {}


def test_a_shorter_grace_period_given_later_counts() -> None:
    host = Host(pod("p"))
    host.settle()
    host.runtime.ignores_term = {name("web", "p")}
    delete(host, 300)
    host.settle()
    host.clock.advance(2)
    delete(host, 1)
    host.settle()
    assert host.pods == {}


# --- probes that have failed for good -----------------------------------------------------


def test_a_container_whose_liveness_probe_failed_ends_in_its_own_grace_period_and_restarts() -> None:
    probe = Probe(termination_grace_period_seconds=3)
    host = Host(pod("p", pre_stop("web", sleep(1), liveness_probe=probe)))
    host.settle()
    host.runtime.ignores_term = {name("web", "p")}
    liveness_fails(host, probe)
    host.settle()
    assert "p: Killing Container web failed liveness probe, will be restarted" in host.told.events
    assert host.running() == ["web/p#0"]
    host.clock.advance(1)
    host.settle()
    assert kills(host) == [f"SIGTERM {name('web', 'p')}"]
    host.clock.advance(2)
    host.settle()
    assert host.running() == ["web/p#1"]


def test_with_restart_policy_never_it_ends_for_good() -> None:
    host = Host(pod("p", container(), restart_policy="Never"))
    host.settle()
    liveness_fails(host, Probe())
    host.settle()
    assert "p: Killing Container web failed liveness probe" in host.told.events
    assert host.all_running() == []


def test_what_was_told_to_end_ends_though_the_cause_is_forgotten() -> None:
    host = Host(pod("p"))
    host.settle()
    host.runtime.ignores_term = {name("web", "p")}
    liveness_fails(host, Probe())
    host.settle()
    host.unhealthy = {}
    host.clock.advance(30)
    host.settle()
    assert host.running() == ["web/p#1"]


def test_other_containers_of_the_pod_are_seen_to_while_one_ends() -> None:
    host = Host(pod("p", container("web"), container("log")))
    host.settle()
    host.runtime.ignores_term = {name("web", "p")}
    liveness_fails(host, Probe())
    host.settle()
    host.runtime.end(name("log", "p"), 1)
    host.settle()
    assert host.running() == ["log/p#1", "web/p#0"]


def test_a_signal_that_the_engine_refuses_is_tried_again_later_and_not_at_once() -> None:
    host = Host(pod("p"), engine=Refusing)
    assert isinstance(host.runtime, Refusing)
    host.settle()
    delete(host, 30)
    host.settle()
    assert host.runtime.asked == 1
    assert one(host).wake_at == host.clock.now() + 10
    host.runtime.refuses = False
    host.clock.advance(10)
    host.settle()
    assert host.pods == {}


# --- as text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        (EXEC, "docker exec podlane_web_p_default_uid-p_0 hook"),
        (sleep(3), "sleep 3"),
        (LifecycleHandler(http_get=HTTPGetAction(port=80, path="/bye")), "curl http://10.5.3.2:80/bye"),
        (LifecycleHandler(tcp_socket=TCPSocketAction(port=80)), "nc -z 10.5.3.2 80"),
    ],
)
def test_hooks_print_as_what_an_operator_would_type(hook: LifecycleHandler, expected: str) -> None:
    host = Host(pod("p", post_start("web", hook)))
    host.sync()
    (step,) = one(host).hooks
    assert isinstance(step, RunHook)
    assert str(step) == expected
    assert str(replace(step, kind="PreStop")) == expected


def test_a_pod_with_hooks_only_says_so_in_its_plan() -> None:
    host = Host(pod("p", post_start("web")))
    host.sync()
    assert str(host.look()) == "# restart default/p\ndocker exec podlane_web_p_default_uid-p_0 hook"
