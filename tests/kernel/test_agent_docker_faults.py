"""What becomes of pods when Docker fails: hung, killed, replaced, robbed of images and shims, or out of disk.

docs/agent.md has the table that these hold.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from dockerd_process import IMAGE

from podlane.api.types import ContainerStatus, Event
from scheduler.agent.runtime import INFRA_IMAGE
from tests.kernel.agent_rig import Rig, begin, eventually, node_condition, node_ready, one_node, web

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]


# once told to, says more than a pipe holds
TALKER = """
trap 'i=0; while [ $i -lt 4000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done
echo all > /dev/shm/said' USR1
while true; do sleep 0.1; done
"""


def status(rig: Rig, pod: str) -> ContainerStatus:
    return rig.get(pod).status.container_statuses[0]


def restarts(rig: Rig, pod: str) -> int:
    return status(rig, pod).restart_count


def container(rig: Rig, pod: str, attempt: int = 0, name: str = "web") -> str:
    return f"podlane_{name}_{pod}_default_{rig.get(pod).metadata.uid}_{attempt}"


def waits_for(rig: Rig, pod: str) -> tuple[str, str]:
    """Reason and message; empty while nothing is reported."""
    found = [s.state.waiting for s in rig.get(pod).status.container_statuses if s.state.waiting]
    return (found[0].reason, found[0].message) if found else ("", "")


def served(rig: Rig, *pods: str) -> bool:
    return all(rig.fetch(rig.get(pod).status.pod_ip) for pod in pods)


def pid_of(rig: Rig, name: str) -> int:
    return int(rig.docker("inspect", "-f", "{{.State.Pid}}", name)[0])


def shim_of(rig: Rig, name: str) -> int:
    return int(Path(f"/proc/{pid_of(rig, name)}/stat").read_text().rpartition(") ")[2].split()[1])


def test_docker_hangs_loses_shims_and_images_and_is_killed(netns: Any, netns_etcd: Any, tmp_path: Path) -> None:
    with one_node(netns, netns_etcd, tmp_path) as rig:
        begin(rig, docker_timeout="2")
        rig.bind("p", web())
        eventually(lambda: rig.ready("p") and node_ready(rig))
        a_hanging_dockerd_is_waited_for(rig)
        a_killed_shim_ends_its_container(rig)
        images_are_missed_when_they_are_needed(rig)
        a_killed_dockerd_means_rebuilt_pods(rig)


def a_hanging_dockerd_is_waited_for(rig: Rig) -> None:
    before = rig.containers()
    rig.engine.signal(signal.SIGSTOP)
    rig.bind("q", web())
    condition = eventually(lambda: not node_ready(rig) and node_condition(rig))
    assert condition.reason == "ContainerRuntimeNotReady"
    assert "dockerd has not answered within 2 s" in condition.message
    assert rig.ready("p")
    assert served(rig, "p")
    assert rig.get("q").status.phase == "Pending"
    rig.engine.signal(signal.SIGCONT)
    eventually(lambda: rig.ready("q") and node_ready(rig))
    assert set(before) < set(rig.containers())
    assert len(rig.docker("ps", "-aq")) == 4  # each of two pods has one container and its network, once
    assert (restarts(rig, "p"), restarts(rig, "q")) == (0, 0)


def a_killed_shim_ends_its_container(rig: Rig) -> None:
    os.kill(shim_of(rig, container(rig, "p")), signal.SIGKILL)
    eventually(lambda: restarts(rig, "p") == 1 and rig.ready("p"))
    ended = status(rig, "p").last_state.terminated
    assert ended is not None
    assert ended.exit_code != 0
    os.kill(shim_of(rig, container(rig, "q", name="POD")), signal.SIGKILL)
    eventually(lambda: restarts(rig, "q") == 1 and rig.ready("q") and served(rig, "q"))
    assert len(rig.docker("ps", "-q")) == 4


def images_are_missed_when_they_are_needed(rig: Rig) -> None:
    rig.docker("rmi", "-f", IMAGE)
    rig.docker("tag", rig.docker("images", "-q", INFRA_IMAGE)[0], "podlane-test/spare:1")
    rig.docker("rmi", "-f", INFRA_IMAGE)
    assert served(rig, "p", "q")  # what runs needs no image
    rig.bind("r", web())
    reason, message = eventually(lambda: all(waits_for(rig, "r")) and waits_for(rig, "r"))
    assert reason == "ErrImageNeverPull"
    assert message == f'Container image "{IMAGE}" is not present with pull policy of Never'
    rig.engine.load_busybox()
    eventually(lambda: rig.ready("r"))
    assert rig.docker("images", "-q", INFRA_IMAGE)  # made anew for it
    assert restarts(rig, "p") == 1


def a_killed_dockerd_means_rebuilt_pods(rig: Rig) -> None:
    """Without live-restore a new dockerd ends what it finds running: nothing may be left over, or run twice."""
    before = {pod: (restarts(rig, pod), pid_of(rig, container(rig, pod, restarts(rig, pod)))) for pod in "pqr"}
    rig.engine.kill()
    eventually(lambda: not node_ready(rig))
    assert served(rig, *"pqr")  # nothing is concluded from a dockerd that is away
    rig.engine.start()
    eventually(lambda: all(restarts(rig, pod) == count + 1 for pod, (count, _) in before.items()))
    eventually(lambda: all(map(rig.ready, "pqr")) and node_ready(rig) and served(rig, *"pqr"))
    assert not any(Path(f"/proc/{pid}").exists() for _, pid in before.values())
    assert len(rig.docker("ps", "-q")) == 6
    ports = rig.netns.run("ip -o link show type veth").splitlines()
    assert len(ports) == 3


def test_with_live_restore_dockerd_may_go_and_come(netns: Any, netns_etcd: Any, tmp_path: Path) -> None:
    with one_node(netns, netns_etcd, tmp_path, "--live-restore") as rig:
        begin(rig)
        rig.bind("p", web())
        eventually(lambda: rig.ready("p") and node_ready(rig))
        before, address = rig.containers(), rig.get("p").status.pod_ip
        for end in (rig.engine.stop, rig.engine.kill):
            end()
            eventually(lambda: not node_ready(rig))
            assert served(rig, "p")
            rig.engine.start()
            eventually(lambda: node_ready(rig) and rig.ready("p"))
        assert (rig.containers(), rig.get("p").status.pod_ip, restarts(rig, "p")) == (before, address, 0)
        rig.docker("kill", container(rig, "p"))  # it is watched again
        eventually(lambda: restarts(rig, "p") == 1 and rig.ready("p"))


def test_a_full_disk_is_said_and_emptied_of_what_nobody_needs(netns: Any, netns_etcd: Any, tmp_path: Path) -> None:
    with one_node(netns, netns_etcd, tmp_path, data_size="64m") as rig:
        begin(rig, image_gc="85,80")
        rig.bind("p", web(), web(name="talker", command=("sh", "-c", TALKER), readiness_probe=None))
        eventually(lambda: rig.ready("p"))
        filler = rig.engine.folder / "data" / "filler"
        fill(filler)
        rig.bind("q", web())
        told = eventually(lambda: [e for e in rig.registry.list(Event).items if "no space left" in e.message])
        assert {(e.type, e.involved_object.name) for e in told} == {("Warning", "q")}
        assert eventually(lambda: "no space left on device" in waits_for(rig, "q")[1])
        assert rig.ready("p")
        assert served(rig, "p")
        talker = container(rig, "p", name="talker")
        rig.docker("kill", "--signal=USR1", talker)  # its output is lost and does not hold it up
        eventually(lambda: rig.docker("exec", talker, "cat", "/dev/shm/said", check=False) == ["all"])
        filler.unlink()
        eventually(lambda: rig.ready("q"))
        rig.end_agent()  # what is there when it starts counts as old
        rig.engine.load_busybox("podlane-test/spare:1", "more")
        fill(filler, leave=2 << 20)
        rig.start_agent(image_gc="85,80")
        eventually(lambda: not rig.docker("images", "-q", "podlane-test/spare:1"))
        assert rig.docker("images", "-q", IMAGE)
        assert (restarts(rig, "p"), restarts(rig, "q")) == (0, 0)


def fill(file: Path, leave: int = 0) -> None:
    """Let a file take the room there is on its file system, but for `leave` bytes."""
    room = os.statvfs(file.parent)
    size = room.f_bavail * room.f_frsize - leave
    with file.open("wb") as out:
        os.posix_fallocate(out.fileno(), 0, size)
