"""A whole life of a pod on a real dockerd: init containers, a sidecar, probes, hooks, last words, and its end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerd_process import IMAGE

from podlane.api.types import (
    Container,
    ContainerPort,
    Event,
    ExecAction,
    HostPathVolumeSource,
    HTTPGetAction,
    Lifecycle,
    LifecycleHandler,
    Pod,
    Probe,
    Volume,
    VolumeMount,
)
from podlane.cli.podstatus import summarize
from tests.kernel import agent_rig
from tests.kernel.agent_rig import Rig, begin, one_node

pytestmark = pytest.mark.kernel


@pytest.fixture
def rig(netns: Any, netns_etcd: Any, tmp_path: Path) -> Iterator[Rig]:
    with one_node(netns, netns_etcd, tmp_path) as rig:
        yield rig


def eventually(condition: Callable[[], bool]) -> None:
    """It is a long life, on a machine that may have much else to do."""
    agent_rig.eventually(condition, 120)


def shell(name: str, script: str, **changes: Any) -> Container:
    """Notes its name in /trace/log, then runs the script."""
    return Container(
        name=name,
        image=IMAGE,
        image_pull_policy="Never",
        command=("sh", "-c", f"echo {name} >> /trace/log; {script}"),
        volume_mounts=(VolumeMount(name="trace", mount_path="/trace"),),
        **changes,
    )


def until_term(name: str) -> str:
    return f"trap 'echo {name}-term >> /trace/log; exit 0' TERM; while :; do sleep 0.1; done"


def note(text: str) -> LifecycleHandler:
    """Takes a moment, so that who does not wait for it is seen to come before."""
    return LifecycleHandler(exec=ExecAction(command=("sh", "-c", f"sleep 0.3; >> /trace/log echo {text}")))


def test_a_pods_life(rig: Rig) -> None:
    begin(rig)
    trace = rig.folder / "trace"
    trace.mkdir()
    (trace / "health").write_text("well\n")

    def lines(after: int = 0) -> list[str]:
        return (trace / "log").read_text().split()[after:] if (trace / "log").exists() else []

    again = "test -e /trace/again || { touch /trace/again; echo not yet > /dev/termination-log; exit 3; }"
    up = Probe(exec=ExecAction(command=("cat", "/up")), period_seconds=1, failure_threshold=60, timeout_seconds=20)
    proxy = shell("proxy", f"(sleep 0.5; touch /up) & {until_term('proxy')}", restart_policy="Always", startup_probe=up)
    ask = ExecAction(command=("sh", "-c", "read x < /trace/health; test $x = well"))
    web = shell(
        "web",
        f"httpd -p 8080 -h /trace; {until_term('web')}",
        ports=(ContainerPort(name="http", container_port=8080),),
        readiness_probe=Probe(http_get=HTTPGetAction(port="http", path="/log"), period_seconds=1, timeout_seconds=20),
        liveness_probe=Probe(exec=ask, period_seconds=1, failure_threshold=1, timeout_seconds=20),
        lifecycle=Lifecycle(post_start=note("post-start"), pre_stop=note("pre-stop; echo well > /trace/health")),
    )
    rig.bind(
        "p",
        web,
        shell("log", until_term("log")),
        init_containers=(shell("fetch", again), proxy, shell("migrate", "true")),
        volumes=(Volume(name="trace", host_path=HostPathVolumeSource(path=str(trace))),),
        termination_grace_period_seconds=30,
    )

    eventually(lambda: rig.ready("p"))
    assert lines() == ["fetch", "fetch", "proxy", "migrate", "web", "post-start", "log"]
    status = rig.get("p").status
    fetch = status.init_container_statuses[0]
    assert fetch.last_state.terminated is not None
    assert (fetch.restart_count, fetch.last_state.terminated.exit_code) == (1, 3)
    assert fetch.last_state.terminated.message == "not yet\n"
    told = summarize(rig.get("p"))
    assert (told.ready, told.total, told.reason, told.restarts) == (3, 3, "Running", 0)

    before, begun = rig.containers(), len(lines())
    rig.end_agent(signal.SIGKILL)
    rig.start_agent()
    (trace / "health").write_text("ill\n")
    eventually(lambda: rig.get("p").status.container_statuses[0].restart_count == 1 and rig.ready("p"))
    assert lines(begun) == ["pre-stop", "web-term", "web", "post-start"]
    assert len(set(before) & set(rig.containers())) == len(before) - 1  # nothing but web was restarted
    killed = "Container web failed liveness probe, will be restarted"
    eventually(lambda: killed in {e.message for e in rig.registry.list(Event).items})

    begun = len(lines())
    rig.registry.delete(Pod, "default", "p")
    eventually(lambda: rig.gone("p"))
    ends = lines(begun)
    assert sorted(ends) == ["log-term", "pre-stop", "proxy-term", "web-term"]
    assert ends.index("pre-stop") < ends.index("web-term")
    assert ends[-1] == "proxy-term"  # it served the others to the end
    assert rig.docker("ps", "-aq") == []
