"""READY, STATUS and RESTARTS of pods with init containers, as kubectl has them (printers_test.go, printPod)."""

from __future__ import annotations

from typing import Any

import pytest
from cli_shell import NOW, ago, running, terminated, waiting
from msgspec.structs import replace

from podlane.api.types import (
    Condition,
    Container,
    ContainerState,
    ContainerStateTerminated,
    ContainerStatus,
    ObjectMeta,
    Pod,
    PodSpec,
    PodStatus,
)
from podlane.cli.podstatus import summarize

pytestmark = pytest.mark.unit

CREATING = waiting("PodInitializing")
DONE = ContainerStatus(name="one", state=terminated(reason="Completed"), ready=True)
SIDECAR = Container(name="side", restart_policy="Always")


def of(*init: ContainerStatus, main: ContainerStatus = CREATING, initialized: bool = False, **status: Any) -> Pod:
    """A pod with two init containers and a container."""
    told = PodStatus(
        phase="Pending",
        init_container_statuses=init,
        container_statuses=(main,),
        conditions=(Condition(type="Initialized", status="True" if initialized else "False"),),
    )
    spec = PodSpec(init_containers=(Container(name="one"), Container(name="two")), containers=(Container(name="web"),))
    return Pod(metadata=ObjectMeta(name="p"), spec=spec, status=replace(told, **status))


def with_sidecar(pod: Pod) -> Pod:
    return replace(pod, spec=replace(pod.spec, init_containers=(Container(name="one"), SIDECAR)))


def ended(code: int, **changes: Any) -> ContainerStatus:
    state = ContainerState(terminated=ContainerStateTerminated(exit_code=code, **changes))
    return ContainerStatus(name="one", state=state)


def started(*, ready: bool = True, restarts: int = 0) -> ContainerStatus:
    return replace(running("side", ready=ready, restarts=restarts), started=True)


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (of(waiting("PodInitializing", "one"), waiting("PodInitializing", "two")), "0/1 Init:0/2 0"),
        (of(running("one", restarts=3, last=terminated(finished=ago(minutes=3))), waiting("", "two")),
         "0/1 Init:0/2 3 (3m ago)"),
        (of(DONE, running("two")), "0/1 Init:1/2 0"),
        (of(DONE, waiting("CrashLoopBackOff", "two", restarts=2)), "0/1 Init:CrashLoopBackOff 2"),
        (of(waiting("ImagePullBackOff", "one")), "0/1 Init:ImagePullBackOff 0"),
        (of(ended(1, reason="Error")), "0/1 Init:Error 0"),
        (of(ended(7)), "0/1 Init:ExitCode:7 0"),
        (of(ended(0, signal=9)), "0/1 PodInitializing 0"),
        (of(ended(137, signal=9)), "0/1 Init:Signal:9 0"),
        (of(DONE, DONE), "0/1 PodInitializing 0"),
        (of(replace(DONE, restart_count=3), DONE, main=running(restarts=1), initialized=True, phase="Running"),
         "1/1 Running 1"),
        (with_sidecar(of(DONE, running("side", ready=False))), "0/2 Init:1/2 0"),
        (with_sidecar(of(DONE, started(), initialized=True)), "1/2 PodInitializing 0"),
        (with_sidecar(of(DONE, started(ready=False, restarts=2), main=running(), initialized=True, phase="Running")),
         "1/2 Running 2"),
        (with_sidecar(of(DONE, ContainerStatus(name="side", state=terminated(reason="Error", exit_code=1)),
                         main=running(), initialized=True, phase="Running")), "1/2 Init:Error 0"),
        (of(DONE, DONE, main=ended(137, reason="Error"), initialized=True, phase="Failed"), "0/1 Error 0"),
        (of(DONE, DONE, main=ended(137, reason="Error"), initialized=True, phase="Failed", reason="Evicted"),
         "0/1 Evicted 0"),
    ],
)  # fmt: skip
def test_a_pods_summary_is_kubectls(pod: Pod, expected: str) -> None:
    told = summarize(pod)
    assert f"{told.ready}/{told.total} {told.reason} {told.restarts_text(NOW)}" == expected
