"""Init containers and sidecars: what starts when, and what happens when one ends."""

from __future__ import annotations

from typing import Any

import pytest
from agent_objects import IMAGE, Host, container, deleted, name, pod

from podlane.api.types import Container, Pod, Probe
from scheduler.agent.containers import INFRA

pytestmark = pytest.mark.unit


def init(ct: str, **changes: Any) -> Container:
    return container(ct, **changes)


def sidecar(ct: str, **changes: Any) -> Container:
    return container(ct, restart_policy="Always", **changes)


def with_init(*inits: Container, main: tuple[Container, ...] = (), **spec: Any) -> Pod:
    return pod("p", *main, init_containers=inits, **spec)


def end(host: Host, ct: str, code: int = 0, number: int = 0) -> None:
    host.runtime.end(name(ct, "p", number), code)


def test_init_containers_run_one_after_the_other_and_then_the_others_together() -> None:
    host = Host(with_init(init("one"), init("two"), main=(container("web"), container("log"))))
    host.settle()
    assert host.running() == ["one/p#0"]
    end(host, "one")
    host.settle()
    assert host.running() == ["two/p#0"]
    end(host, "two")
    host.settle()
    assert host.running() == ["log/p#0", "web/p#0"]


@pytest.mark.parametrize("policy", ["Always", "OnFailure"])
def test_an_init_container_that_fails_is_tried_again_with_back_off(policy: str) -> None:
    host = Host(with_init(init("one"), restart_policy=policy))
    host.settle()
    end(host, "one", 1)
    host.settle()
    assert host.running() == ["one/p#1"]  # the first time at once
    end(host, "one", 1, 1)
    host.settle()
    assert host.running() == []
    (plan,) = host.look().pods
    assert plan.waiting["one"][0] == "CrashLoopBackOff"
    host.clock.advance(10)
    host.settle()
    end(host, "one", 0, 2)
    host.settle()
    assert host.running() == ["web/p#0"]


def test_with_restart_policy_never_a_failed_init_container_fails_the_pod() -> None:
    host = Host(with_init(sidecar("proxy"), init("one"), restart_policy="Never"))
    host.settle()
    assert host.running() == ["one/p#0", "proxy/p#0"]
    end(host, "one", 1)
    host.settle()
    assert host.all_running() == []
    assert [r.name.split("_")[1] for r in host.runtime.list()] == ["proxy", "one"]


def test_a_main_container_that_restarts_does_not_run_init_containers_again() -> None:
    host = Host(with_init(init("one")))
    host.settle()
    end(host, "one")
    host.settle()
    end(host, "web", 1)
    host.settle()
    assert host.running() == ["web/p#1"]
    host.runtime.remove(name("one", "p"))  # not even when its container was pruned
    host.restart_agent()
    host.settle()
    assert host.running() == ["web/p#1"]


def test_in_a_new_network_everything_runs_again_from_the_first() -> None:
    host = Host(with_init(init("one"), init("two")))
    host.settle()
    end(host, "one")
    host.settle()
    end(host, "two")
    host.settle()
    assert host.running() == ["web/p#0"]
    host.runtime.end(name(INFRA, "p"), 137)
    host.settle()
    assert host.running() == ["one/p#1"]
    end(host, "one", 0, 1)
    host.settle()
    end(host, "two", 0, 1)
    host.settle()
    assert host.running() == ["web/p#1"]


def test_a_sidecar_lets_the_next_begin_when_its_startup_probe_has_passed_and_runs_on() -> None:
    host = Host(with_init(sidecar("proxy", startup_probe=Probe()), init("one")))
    host.settle()
    assert host.running() == ["proxy/p#0"]
    host.started = {r.id for r in host.runtime.list()}
    host.settle()
    assert host.running() == ["one/p#0", "proxy/p#0"]
    end(host, "one")
    host.settle()
    assert host.running() == ["proxy/p#0", "web/p#0"]


def test_a_sidecar_that_ends_is_started_again_whatever_the_policy() -> None:
    host = Host(with_init(sidecar("proxy"), restart_policy="Never"))
    host.settle()
    end(host, "proxy", 0)
    host.settle()
    assert host.running() == ["proxy/p#1", "web/p#0"]


def test_a_sidecar_that_is_lost_while_the_next_runs_keeps_the_one_after_it_waiting_no_longer() -> None:
    host = Host(with_init(sidecar("proxy"), init("one")))
    host.settle()
    end(host, "proxy", 1)
    end(host, "one")
    host.settle()
    assert host.running() == ["proxy/p#1", "web/p#0"]


def test_when_the_work_is_done_sidecars_end_the_last_first_and_the_pod_is_over() -> None:
    host = Host(with_init(sidecar("a"), sidecar("b"), restart_policy="Never"))
    host.settle()
    host.runtime.ignores_term = {name("b", "p")}
    end(host, "web", 0)
    host.settle()
    assert host.running() == ["a/p#0", "b/p#0"]
    assert [call for call in host.runtime.calls if "kill" in call] == [f"docker kill --signal SIGTERM {name('b', 'p')}"]
    host.clock.advance(30)
    host.settle()
    assert host.all_running() == []
    kills = [call.removeprefix("docker kill --signal ") for call in host.runtime.calls if "kill" in call]
    assert kills == [f"SIGTERM {name('b', 'p')}", f"SIGKILL {name('b', 'p')}", f"SIGTERM {name('a', 'p')}"]


def test_a_deleted_pod_ends_its_containers_before_its_sidecars_in_one_grace_period() -> None:
    host = Host(with_init(sidecar("a"), sidecar("b"), main=(container("web"), container("log"))))
    host.settle()
    host.runtime.ignores_term = {name("web", "p"), name("b", "p")}
    host.pods = {uid: deleted(p) for uid, p in host.pods.items()}
    host.settle()
    assert host.running() == ["a/p#0", "b/p#0", "web/p#0"]
    host.clock.advance(29)
    end(host, "web")
    host.settle()
    assert host.running() == ["a/p#0", "b/p#0"]
    host.clock.advance(1)
    host.settle()
    assert host.pods == {}
    kills = [
        call.removeprefix("docker kill --signal ").split("_p_")[0] for call in host.runtime.calls if "kill" in call
    ]
    assert kills == [
        "SIGTERM podlane_web", "SIGTERM podlane_log", "SIGTERM podlane_b", "SIGKILL podlane_a", "SIGKILL podlane_b",
    ]  # fmt: skip


def test_a_bad_image_of_an_init_container_waits_and_says_so() -> None:
    host = Host(with_init(init("one", image="none:1")), pod("q"), images=(IMAGE,))
    host.settle()
    assert host.running() == ["web/q#0"]
    (plan, _) = host.look().pods
    assert plan.waiting == {"one": ("ErrImagePull", plan.waiting["one"][1])}


def test_a_pod_past_its_deadline_is_ended_and_fails() -> None:
    host = Host(with_init(init("one"), active_deadline_seconds=60, termination_grace_period_seconds=5))
    host.settle()
    host.runtime.ignores_term = {name("one", "p")}
    (plan,) = host.look().pods
    assert plan.wake_at == host.clock.now() + 60
    host.clock.advance(60)
    host.settle()
    (plan,) = host.look().pods
    assert plan.failed == ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
    assert host.running() == ["one/p#0"]
    host.clock.advance(5)
    host.settle()
    assert host.all_running() == []
