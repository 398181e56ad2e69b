"""What the agent reports of a pod, from what it sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from agent_objects import IMAGE, SPEC, Host, container, deleted, name, pod

from podlane.api.meta import get_condition
from podlane.api.types import Pod, PodStatus, Probe
from scheduler.agent import status
from scheduler.agent.containers import INFRA
from scheduler.agent.network import Segment
from scheduler.agent.report import health_of

pytestmark = pytest.mark.unit


def report(host: Host, *, ready: bool = True, **changes: Any) -> PodStatus:
    """The status of the one pod; `ready`: the probes pass."""
    (plan,) = host.look().pods
    assert plan.pod is not None
    records = host.records()
    health = health_of(host.seen, plan, records, started=host.started, ready={r.id for r in records})
    health = replace(health, **changes) if ready else replace(health, ready=(), **changes)
    return status.compute(plan.pod, records, health, node_ip="192.168.64.11", now=host.clock.now(), failed=plan.failed)


def text(told: PodStatus) -> str:
    """`Running ready 10.5.3.2 | web running x0 ready`."""
    condition = get_condition(told.conditions, "Ready")
    assert condition is not None
    words = [told.phase, "ready" if condition.status == "True" else "unready", told.pod_ip or "-"]
    for one in (*told.init_container_statuses, *told.container_statuses):
        state = one.state
        if state.waiting:
            what = state.waiting.reason
        elif state.terminated:
            what = f"{state.terminated.reason}({state.terminated.exit_code})"
        else:
            what = "running"
        last = one.last_state.terminated
        before = f" last {last.reason}({last.exit_code})" if last else ""
        words.append(f"| {one.name} {what} x{one.restart_count}{' ready' if one.ready else ''}{before}")
    return " ".join(words)


def adopt(host: Host, told: PodStatus) -> None:
    """The status was written and comes back by the mirror."""
    (obj,) = host.pods.values()
    host.pods = {obj.metadata.uid: msgspec.structs.replace(obj, status=told)}


def running(**spec: Any) -> Host:
    host = Host(pod("p", **spec))
    host.sync()
    return host


def test_a_pod_not_begun() -> None:
    told = report(Host(pod("p")))
    assert text(told) == "Pending unready - | web ContainerCreating x0"
    assert told.host_ip == "192.168.64.11"
    assert [c.type for c in told.conditions] == ["PodScheduled", "Initialized", "ContainersReady", "Ready"]


def test_a_running_pod() -> None:
    told = report(running())
    assert text(told) == "Running ready 10.5.3.2 | web running x0 ready"
    one = told.container_statuses[0]
    assert (one.image, one.image_id, one.started) == (IMAGE, f"docker://sha256:{IMAGE}", True)
    assert one.container_id.startswith("docker://0")
    assert told.pod_ips[0].ip == "10.5.3.2"


def test_a_pod_s_addresses_are_reported_the_first_one_first_and_stay_when_it_is_finished() -> None:
    host = running(restart_policy="Never")
    host.spec = replace(SPEC, second=Segment("fd00:5:0:3::/64", "fd00:5:0:3::1"))
    host.podnet.ensure(host.spec)
    before = report(host)
    assert before.pod_ips == ()
    host.sync()
    told = report(host)
    assert (told.pod_ip, [each.ip for each in told.pod_ips]) == ("10.5.3.2", ["10.5.3.2", "fd00:5:0:3::2"])
    assert status.is_urgent(before, told)
    adopt(host, told)
    host.runtime.end(name("web", "p"), 0)
    adopt(host, report(host))
    host.settle(2)
    finished = report(host)
    assert (finished.phase, finished.pod_ips) == ("Succeeded", told.pod_ips)


def test_a_running_pod_whose_probe_does_not_pass() -> None:
    told = report(running(), ready=False)
    assert text(told) == "Running unready 10.5.3.2 | web running x0"
    condition = get_condition(told.conditions, "Ready")
    assert condition is not None
    assert (condition.reason, condition.message) == (
        "ContainersNotReady",
        "containers with unready status: [web]",
    )


def test_nothing_changes_by_looking_again_later() -> None:
    host = running()
    told = report(host)
    adopt(host, told)
    host.clock.advance(100)
    assert report(host) == told


def test_a_transition_time_changes_with_the_status_only() -> None:
    host = running()
    adopt(host, report(host))
    host.clock.advance(100)
    told = report(host, ready=False)
    times = {c.type: c.last_transition_time for c in told.conditions}
    assert times["Ready"] == times["ContainersReady"] != times["Initialized"] == times["PodScheduled"]


def test_a_crash_shows_as_terminated_then_as_back_off() -> None:
    host = running()
    host.runtime.end(name("web", "p"), 3)
    assert text(report(host, waiting={})) == "Running unready 10.5.3.2 | web Error(3) x0"
    host.sync()
    assert text(report(host)) == "Running ready 10.5.3.2 | web running x1 ready last Error(3)"
    host.runtime.end(name("web", "p", 1), 4, oom_killed=True)
    assert text(report(host)) == "Running unready 10.5.3.2 | web CrashLoopBackOff x1 last OOMKilled(4)"


@pytest.mark.parametrize(
    ("policy", "code", "expected"),
    [("Never", 0, "Succeeded"), ("Never", 2, "Failed"), ("OnFailure", 0, "Succeeded"), ("OnFailure", 2, "Running"),
     ("Always", 0, "Running")],
)  # fmt: skip
def test_phases_of_ended_pods(policy: str, code: int, expected: str) -> None:
    host = running(restart_policy=policy)
    host.runtime.end(name("web", "p"), code)
    assert report(host).phase == expected


def test_a_finished_phase_is_final_and_keeps_its_address() -> None:
    host = running(restart_policy="Never")
    adopt(host, report(host))
    host.runtime.end(name("web", "p"), 0)
    adopt(host, report(host))
    host.settle()
    told = report(host)
    assert text(told) == "Succeeded unready 10.5.3.2 | web Completed(0) x0"
    assert host.all_running() == []
    condition = get_condition(told.conditions, "Ready")
    assert condition is not None
    assert condition.reason == "PodCompleted"


def test_a_pod_without_its_network_is_not_ready_and_has_no_address() -> None:
    host = running()
    adopt(host, report(host))
    host.runtime.end(name(INFRA, "p"), 137)
    assert text(report(host)) == "Running unready - | web running x0"


def test_a_pod_being_deleted_is_ready_while_it_serves() -> None:
    host = running()
    adopt(host, report(host))
    host.pods = {uid: deleted(p) for uid, p in host.pods.items()}
    assert text(report(host)) == "Running ready 10.5.3.2 | web running x0 ready"
    assert text(report(host, ready=False)) == "Running unready 10.5.3.2 | web running x0"
    host.runtime.end(name("web", "p"), 0)
    assert text(report(host)) == "Running unready 10.5.3.2 | web Completed(0) x0"


def test_a_pod_with_one_container_that_waits_is_pending() -> None:
    host = Host(pod("p", container("web"), container("far", image="none:1")))
    host.settle(2)
    assert text(report(host)) == "Pending unready 10.5.3.2 | web running x0 ready | far ErrImagePull x0"


def test_a_command_that_cannot_be_run_is_a_start_error() -> None:
    host = Host(pod("p", restart_policy="Never"))
    host.runtime.unstartable[IMAGE] = 'exec: "nonsense": not found'
    host.sync()
    told = report(host)
    assert text(told) == "Failed unready 10.5.3.2 | web StartError(127) x0"
    ended = told.container_statuses[0].state.terminated
    assert ended is not None
    assert ended.message == 'exec: "nonsense": not found'


def test_restarts_go_on_being_counted_when_the_engine_lost_its_containers() -> None:
    host = running()
    host.runtime.end(name("web", "p"), 1)
    host.sync()
    adopt(host, report(host))
    for record in host.runtime.list():
        host.runtime.remove(record.id)
    assert report(host).container_statuses[0].restart_count == 1
    host.sync()
    assert host.running() == ["web/p#2"]


def urgent(old: Pod, new: PodStatus) -> bool:
    return status.is_urgent(old.status, new)


def test_only_what_others_act_on_is_urgent() -> None:
    host = Host(pod("p", container(readiness_probe=Probe())))
    (obj,) = host.pods.values()
    assert not urgent(obj, report(host))
    host.sync()
    up = report(host, ready=False)
    assert urgent(obj, up)
    obj = msgspec.structs.replace(obj, status=up)
    assert not urgent(obj, report(host, ready=False))
    assert urgent(obj, report(host, ready=True))


def test_init_containers_are_told_apart_from_the_others() -> None:
    inits = (container("fetch"), container("proxy", restart_policy="Always"))
    host = Host(pod("p", init_containers=inits))
    host.sync()
    told = report(host)
    assert text(told) == (
        "Pending unready 10.5.3.2 | fetch running x0 | proxy PodInitializing x0 | web PodInitializing x0"
    )
    condition = get_condition(told.conditions, "Initialized")
    assert condition is not None
    assert (condition.status, condition.reason, condition.message) == (
        "False",
        "ContainersNotInitialized",
        "containers with incomplete status: [fetch proxy]",
    )
    host.runtime.end(name("fetch", "p"), 0)
    host.settle()
    told = report(host)
    assert (
        text(told)
        == "Running ready 10.5.3.2 | fetch Completed(0) x0 ready | proxy running x0 ready | web running x0 ready"
    )
    condition = get_condition(told.conditions, "Initialized")
    assert condition is not None
    assert condition.status == "True"
    adopt(host, told)
    host.runtime.remove(name("fetch", "p"))  # its end is remembered
    assert report(host) == told
    host.runtime.end(name("proxy", "p"), 1)
    told = report(host)
    assert text(told).startswith("Running unready")
    ready = get_condition(told.conditions, "Ready")
    assert ready is not None
    assert ready.message == "containers with unready status: [proxy]"


@pytest.mark.parametrize(("policy", "phase"), [("Never", "Failed"), ("Always", "Pending")])
def test_a_failed_init_container_fails_the_pod_only_if_it_is_not_tried_again(policy: str, phase: str) -> None:
    host = Host(pod("p", init_containers=(container("fetch"),), restart_policy=policy))
    host.sync()
    host.runtime.end(name("fetch", "p"), 7)
    assert text(report(host)) == f"{phase} unready 10.5.3.2 | fetch Error(7) x0 | web PodInitializing x0"


def test_a_pod_is_not_finished_while_one_of_its_containers_runs() -> None:
    host = Host(pod("p", init_containers=(container("proxy", restart_policy="Always"),), restart_policy="Never"))
    host.settle()
    adopt(host, report(host))
    host.runtime.ignores_term = {name("proxy", "p")}
    host.runtime.end(name("web", "p"), 0)
    host.settle()
    assert text(report(host)) == "Running unready 10.5.3.2 | proxy running x0 ready | web Completed(0) x0"
    host.clock.advance(30)
    host.settle()
    assert report(host).phase == "Succeeded"
