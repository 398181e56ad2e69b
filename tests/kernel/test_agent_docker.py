"""The agent as it is: its own process, a real dockerd, a real etcd, real packets."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerd_process import IMAGE

from podlane.api.types import ClusterConfig, Container, Event, ExecAction, Node, Pod, Probe
from tests.kernel.agent_rig import SUBNET_ENV, TOKEN, Rig, begin, eventually, node_ready, one_node, web

pytestmark = pytest.mark.kernel


@pytest.fixture
def rig(netns: Any, netns_etcd: Any, tmp_path: Path) -> Iterator[Rig]:
    with one_node(netns, netns_etcd, tmp_path) as rig:
        yield rig


def test_a_pod_from_binding_to_end(rig: Rig) -> None:
    rig.start_agent()  # before there is a cluster config, and before netd has a subnet
    rig.registry.init_cluster(ClusterConfig(agent_token=TOKEN, node_lease_seconds=4))
    rig.bind("p", web(), Container(name="side", image=IMAGE, command=("sleep", "1000"), image_pull_policy="Never"))
    time.sleep(1)
    assert rig.containers() == []
    rig.subnet_file.write_text(SUBNET_ENV)
    eventually(lambda: rig.ready("p"))
    eventually(lambda: node_ready(rig))
    node = rig.registry.get(Node, "", "n1")
    assert (node.spec.pod_cidr, node.status.capacity["cpu"]) == ("10.99.7.0/24", "2")

    status = rig.get("p").status
    assert status.pod_ip.startswith("10.99.7.")
    assert rig.fetch(status.pod_ip)
    link = rig.netns.run("ip -d link show podlane0")
    assert "mtu 1400" in link
    assert "bridge" in link
    assert rig.docker("network", "ls", "-q", "--filter", "driver=bridge") == []  # Docker has no part in it
    side = f"podlane_side_p_default_{rig.get('p').metadata.uid}_0"
    assert f"{status.pod_ip} p" in " ".join(rig.docker("exec", side, "cat", "/etc/hosts"))
    assert rig.docker("exec", side, "cat", "/etc/resolv.conf") == Path("/etc/resolv.conf").read_text().split()
    folder = rig.folder / "state" / "pods" / rig.get("p").metadata.uid
    assert folder.is_dir()
    assert rig.docker("exec", f"podlane_side_p_default_{rig.get('p').metadata.uid}_0", "hostname") == ["p"]
    reasons = {e.reason for e in rig.registry.list(Event).items}
    assert {"Pulled", "Created", "Started"} <= reasons

    rig.registry.delete(Pod, "default", "p")
    eventually(lambda: not rig.ready("p") if not rig.gone("p") else True, 5)
    eventually(lambda: rig.gone("p"))
    assert rig.docker("ps", "-aq") == []
    assert not rig.fetch(status.pod_ip)
    eventually(lambda: not folder.exists())


def test_what_is_unplugged_by_hand_is_plugged_in_again_and_restarts_nothing(rig: Rig) -> None:
    begin(rig)
    for name in ("p", "q"):
        rig.bind(name, web())
    eventually(lambda: rig.ready("p") and rig.ready("q"))
    before, address = rig.containers(), rig.get("p").status.pod_ip
    port = rig.netns.run("ip -o link show master podlane0").split()[1].split("@")[0]
    for harm in ("link delete podlane0", f"link delete {port}", "address flush dev podlane0"):
        rig.netns.run(f"ip {harm}")
        eventually(lambda: all(rig.fetch(rig.get(name).status.pod_ip) for name in ("p", "q")))
        eventually(lambda: rig.ready("p") and rig.ready("q"))
    assert rig.containers() == before
    assert rig.get("p").status.pod_ip == address


def test_a_pod_whose_agent_died_before_it_was_attached_is_attached(rig: Rig) -> None:
    begin(rig)
    uid = rig.bind("p", web()).metadata.uid
    eventually(lambda: rig.ready("p"))
    rig.end_agent(signal.SIGKILL)
    before = rig.containers()
    for line in rig.netns.run("ip -o link show master podlane0").splitlines():
        rig.netns.run(f"ip link set {line.split()[1].split('@')[0]} nomaster")
    assert not rig.fetch(rig.get("p").status.pod_ip)
    rig.start_agent()
    eventually(lambda: rig.fetch(rig.get("p").status.pod_ip) and rig.ready("p"))
    assert rig.containers() == before
    assert rig.get("p").metadata.uid == uid


def test_a_moved_subnet_moves_the_pods(rig: Rig) -> None:
    begin(rig)
    rig.bind("p", web())
    eventually(lambda: rig.ready("p"))
    rig.subnet_file.write_text(SUBNET_ENV.replace("10.99.7.1", "10.99.9.1"))
    # something happens: a sync; or one has happened by itself, and the container is gone already
    rig.docker("kill", f"podlane_web_p_default_{rig.get('p').metadata.uid}_0", check=False)
    eventually(lambda: rig.get("p").status.pod_ip.startswith("10.99.9.") and rig.ready("p"))
    assert rig.fetch(rig.get("p").status.pod_ip)


def test_killing_the_agent_restarts_nothing_and_the_next_one_adopts(rig: Rig) -> None:
    begin(rig)
    rig.bind("p", web())
    eventually(lambda: rig.ready("p"))
    before, pod = rig.containers(), rig.get("p")
    rig.end_agent(signal.SIGKILL)
    assert rig.fetch(pod.status.pod_ip)
    gone = rig.bind("gone", web())
    rig.start_agent()
    eventually(lambda: rig.ready("gone"))
    assert set(before) <= set(rig.containers())
    assert rig.get("p") == pod

    rig.end_agent()
    rig.registry.delete_many([gone], grace_seconds=0)
    rig.start_agent()
    eventually(lambda: rig.containers() == before)
    assert rig.get("p") == pod


def test_containers_and_networks_that_die_are_replaced(rig: Rig) -> None:
    begin(rig)
    uid = rig.bind("p", web()).metadata.uid
    eventually(lambda: rig.ready("p"))
    address = rig.get("p").status.pod_ip
    rig.docker("kill", f"podlane_web_p_default_{uid}_0")
    eventually(lambda: rig.get("p").status.container_statuses[0].restart_count == 1 and rig.ready("p"))
    assert rig.get("p").status.pod_ip == address  # the infra container kept it
    rig.docker("kill", f"podlane_POD_p_default_{uid}_0")
    eventually(lambda: rig.get("p").status.container_statuses[0].restart_count == 2 and rig.ready("p"))
    assert rig.fetch(rig.get("p").status.pod_ip)
    rig.docker("kill", f"podlane_web_p_default_{uid}_2")
    eventually(lambda: not rig.ready("p"))
    waiting = eventually(lambda: rig.get("p").status.container_statuses[0].state.waiting)
    assert waiting.reason == "CrashLoopBackOff"


def test_a_restarted_dockerd_means_rebuilt_pods(rig: Rig) -> None:
    begin(rig)
    rig.bind("p", web())
    eventually(lambda: rig.ready("p"))
    rig.engine.stop()
    eventually(lambda: not node_ready(rig))
    rig.engine.start()
    eventually(lambda: rig.get("p").status.container_statuses[0].restart_count == 1 and rig.ready("p"))
    eventually(lambda: node_ready(rig))
    assert rig.fetch(rig.get("p").status.pod_ip)


def test_etcd_away_changes_nothing_and_the_report_comes_later(rig: Rig) -> None:
    begin(rig)
    uid = rig.bind("p", web()).metadata.uid
    eventually(lambda: rig.ready("p"))
    address = rig.get("p").status.pod_ip
    rig.etcd.stop()
    rig.docker("kill", f"podlane_web_p_default_{uid}_0")
    eventually(lambda: rig.fetch(address))
    time.sleep(5)  # longer than the node's lease
    assert rig.fetch(address)
    rig.etcd.start()
    eventually(lambda: rig.get("p").status.container_statuses[0].restart_count == 1 and rig.ready("p"))


def test_readiness_by_command_and_one_bad_image_blocks_nobody(rig: Rig) -> None:
    begin(rig)
    probe = Probe(exec=ExecAction(command=("cat", "/ready")), period_seconds=1, failure_threshold=1)
    rig.bind("bad", web(image="127.0.0.1:1/none:1", image_pull_policy="IfNotPresent"))
    rig.bind("broken", web(command=("nonsense",), readiness_probe=None), restart_policy="Never")
    uid = rig.bind("p", web(command=("sleep", "1000"), readiness_probe=probe)).metadata.uid
    eventually(lambda: rig.get("p").status.phase == "Running")
    assert not rig.ready("p")
    rig.docker("exec", f"podlane_web_p_default_{uid}_0", "sh", "-c", "echo > /ready")
    eventually(lambda: rig.ready("p"))
    waiting = eventually(lambda: rig.get("bad").status.container_statuses[0].state.waiting)
    assert eventually(lambda: rig.get("bad").status.container_statuses[0].state.waiting.reason) in {
        "ErrImagePull",
        "ImagePullBackOff",
    }
    assert waiting is not None
    eventually(lambda: rig.get("broken").status.phase == "Failed")
    ended = rig.get("broken").status.container_statuses[0].state.terminated
    assert ended is not None
    assert (ended.reason, ended.exit_code) == ("StartError", 127)


def test_logs_and_exec_through_the_agent(rig: Rig) -> None:
    begin(rig)
    rig.bind("p", web(command=("sh", "-c", "echo started; httpd -f -p 8080 -h /bin")))
    eventually(lambda: rig.ready("p"))
    assert rig.client("print(b''.join(c.logs('default','p','web')))") == "b'started\\n'\n"
    script = (
        "s = c.exec('default','p','web',['sh','-c','read x; echo got $x; echo oops >&2; exit 5'], stdin=True);"
        "s.send(b'it\\n'); print(sorted(s.output()), s.exit_code())"
    )
    assert rig.client(script) == "[('stderr', b'oops\\n'), ('stdout', b'got it\\n')] 5\n"
    script = (
        "s = c.exec('default','p','web',['sh','-c','read x; stty size'], stdin=True, tty=True);"
        "s.resize(40, 132); s.send(b'\\n'); print(b'40 132' in b''.join(d for _, d in s.output()), s.exit_code())"
    )
    assert rig.client(script) == "True 0\n"
    script = (
        "s = c.stats(); (p,) = s['pods']; (w,) = p['containers'];"
        "print(p['name'], w['name'], w['cpu'] >= 0, 0 < w['memory'] < s['node']['memory'], s['node']['cpu'] > 0)"
    )
    assert rig.client(script) == "p web True True True\n"
    for scheme in ("http", "https"):
        argv = [
            "busybox",
            "wget",
            "--no-check-certificate",
            "-q",
            "-O",
            "-",
            f"{scheme}://127.0.0.1:10250/logs/default/p/web",
        ]
        assert rig.netns.run(argv, check=False) == ""


def test_a_second_agent_is_turned_away(rig: Rig) -> None:
    begin(rig)
    eventually(lambda: node_ready(rig))
    first = rig.agent
    rig.start_agent()
    assert rig.agent is not None
    assert rig.agent.wait(20) == 1
    rig.agent = first
    assert rig.end_agent() == 0
