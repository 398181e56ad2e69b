"""The whole agent, with everything it talks to in memory: what is bound in, what runs and is reported out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import structlog
from agent_objects import SPEC, container
from agent_world import SUBNET_ENV, World, named

from podlane.api.meta import get_condition, set_condition
from podlane.api.types import Condition, Node, NodeStatus, ObjectMeta, Pod, Probe, TCPSocketAction
from podlane.store import proxies
from scheduler.agent.containers import INFRA

pytestmark = pytest.mark.unit


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def container_line(pod: Pod) -> str:
    """`#1 waiting: CrashLoopBackOff, last Error 1`: the status of a pod's first container."""
    status = pod.status.container_statuses[0]
    state, last = status.state, status.last_state.terminated
    words = f"#{status.restart_count} "
    if state.waiting:
        words += f"waiting: {state.waiting.reason}"
    elif state.terminated:
        words += f"terminated: {state.terminated.reason} {state.terminated.exit_code}"
    else:
        words += "running"
    return words + (f", last {last.reason} {last.exit_code}" if last else "")


def test_a_bound_pod_becomes_ready_and_a_deleted_one_goes(world: World) -> None:
    world.start()
    pods = [world.bind(f"p{i}") for i in range(5)]
    world.until(lambda: world.ready(*(p.metadata.name for p in pods)))
    pod = world.get("p0")
    assert (pod.status.phase, pod.status.host_ip) == ("Running", "192.168.64.11")
    assert len({world.get(p.metadata.name).status.pod_ip for p in pods}) == 5
    assert get_condition(pod.status.conditions, "PodScheduled") is not None
    assert {"Pulled", "Created", "Started"} <= set(world.told.reasons())
    world.delete("p0")
    world.until(lambda: world.gone("p0"))
    assert len(world.runtime.running()) == 8
    assert not any("_p0_" in r.name for r in world.runtime.list())


def test_pods_wait_for_the_subnet(world: World) -> None:
    world.subnet_file.unlink()
    agent = world.start()
    world.bind("p")
    world.until(lambda: "subnet.env" in (agent.network_problem() or ""))
    assert world.runtime.running() == ()
    world.subnet_file.write_text(SUBNET_ENV)
    world.until(lambda: world.ready("p"))
    assert agent.network() == (("10.5.3.0/24",), "")
    assert world.podnet.ensure(SPEC) == ()


def test_pods_move_when_the_subnet_changed(world: World) -> None:
    world.start()
    world.bind("p")
    world.until(lambda: world.ready("p"))
    world.subnet_file.write_text(SUBNET_ENV.replace("10.5.3.1", "10.5.77.1"))
    world.agent.trigger()
    world.until(lambda: world.get("p").status.pod_ip.startswith("10.5.77.") and world.ready("p"))


def test_pods_get_ipv6_when_the_network_does_and_keep_running(world: World) -> None:
    agent = world.start()
    world.bind("p")
    world.until(lambda: world.ready("p"))
    assert [each.ip for each in world.get("p").status.pod_ips] == ["10.5.3.2"]
    running = world.runtime.running()
    ipv6 = "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:3::1/64\n"
    world.subnet_file.write_text(SUBNET_ENV + ipv6)
    agent.trigger()
    both = ["10.5.3.2", "fd00:5:0:3::2"]
    world.until(lambda: [each.ip for each in world.get("p").status.pod_ips] == both and world.ready("p"))
    assert world.runtime.running() == running
    world.kill()
    world.subnet_file.unlink()  # netd restarts too
    before = world.get("p")
    agent = world.start()
    world.run(60)
    assert agent.runner.synced_once
    assert world.get("p") == before


def test_a_bridge_deleted_by_hand_is_made_again_with_its_pods(world: World) -> None:
    world.start()
    pods = [world.bind(f"p{i}") for i in range(3)]
    world.until(lambda: world.ready(*(p.metadata.name for p in pods)))
    running = world.runtime.running()
    before = {p.metadata.name: world.get(p.metadata.name).status.pod_ip for p in pods}
    world.podnet.delete_bridge()
    world.until(lambda: len(world.podnet.ports()) == 3)
    world.until(lambda: all(world.ready(n) and world.get(n).status.pod_ip == ip for n, ip in before.items()))
    assert world.runtime.running() == running


def test_a_pod_that_is_not_attached_is_not_ready(world: World) -> None:
    world.start()
    world.bind("p")
    world.until(lambda: world.ready("p"))
    world.podnet.refusal = "no buffer space available"
    world.podnet.delete_bridge()
    world.until(lambda: not world.ready("p"))
    assert world.get("p").status.pod_ip == ""
    world.podnet.refusal = ""
    world.until(lambda: world.ready("p"))
    assert world.restarts("p") == 0


def test_a_full_subnet_is_told_once_and_a_freed_address_is_used(world: World) -> None:
    world.subnet_file.write_text(SUBNET_ENV.replace("/24", "/30"))  # one address beside the gateway's
    world.start()
    world.bind("p")
    world.until(lambda: world.ready("p"))
    world.bind("q")
    world.until(lambda: "FailedCreatePodSandBox" in world.told.reasons())
    world.run(60)
    assert world.told.reasons().count("FailedCreatePodSandBox") == 1
    assert "q: FailedCreatePodSandBox no free address in 10.5.3.0/30" in world.told.events
    world.delete("p")
    world.until(lambda: world.ready("q"))
    assert world.get("q").status.pod_ip == "10.5.3.2"


def test_pods_files_come_and_go_with_them(world: World) -> None:
    stray = world.folder / "pods" / "gone"
    stray.mkdir(parents=True)
    world.start()
    pod = world.bind("p")
    world.until(lambda: world.ready("p"))
    hosts = world.folder / "pods" / pod.metadata.uid / "hosts"
    assert hosts.read_text().endswith("10.5.3.2\tp\n")
    assert not stray.exists()
    world.delete("p")
    world.until(lambda: world.gone("p") and not hosts.parent.exists())


def test_a_deleted_pod_serves_on_until_no_node_sends_to_it(world: World) -> None:
    world.start()
    world.bind("p", labels={"app": "web"})
    world.until(lambda: world.ready("p"))
    for node in ("n1", "n2"):
        world.registry.put_node_lease(node, world.store.grant(60), 60)
        proxies.acknowledge(world.store, node, world.serve("p") if node == "n1" else 1)
    world.delete("p")
    out = world.serve("p", terminating=True)
    proxies.acknowledge(world.store, "n1", out)
    world.bind("q")  # which nothing keeps waiting
    world.until(lambda: world.ready("q"))
    world.until(lambda: world.waits_for("p") == "proxyd on n2")
    world.run(2)
    assert world.ready("p")
    assert not world.told_to_end("p")
    proxies.acknowledge(world.store, "n2", out)
    world.until(lambda: world.gone("p"))
    assert world.told_to_end("p")


def test_who_does_not_acknowledge_is_named_once_and_the_pod_ends(world: World) -> None:
    world.start()
    world.bind("p", labels={"app": "web"})
    world.until(lambda: world.ready("p"))
    world.registry.put_node_lease("n2", world.store.grant(60), 60)
    proxies.acknowledge(world.store, "n2", 1)
    world.serve("p")
    with structlog.testing.capture_logs() as logs:
        world.delete("p")
        world.serve("p", terminating=True)
        world.run(9)
        assert not world.told_to_end("p")
        world.run(2)
    assert world.gone("p")
    warnings = [(log["event"], log.get("not_acknowledged")) for log in logs if log["log_level"] == "warning"]
    assert warnings == [("ended undrained", "proxyd on n2")]


def test_a_node_that_is_not_ready_is_waited_for_a_second(world: World) -> None:
    world.start()
    world.bind("p", labels={"app": "web"})
    world.until(lambda: world.ready("p"))
    world.registry.put_node_lease("n2", world.store.grant(60), 60)
    proxies.acknowledge(world.store, "n2", 1)
    status = NodeStatus(conditions=(Condition(type="Ready", status="Unknown"),))
    world.registry.create(Node(metadata=ObjectMeta(name="n2"), status=status))
    world.serve("p")
    world.delete("p")
    world.serve("p", terminating=True)
    world.run(0.9)
    assert world.waits_for("p") == "proxyd on n2"
    world.run(1)
    assert world.told_to_end("p")


def test_with_the_store_away_a_pod_ends_at_the_limit(world: World) -> None:
    world.start()
    pod = world.bind("p", labels={"app": "web"})
    world.until(lambda: world.ready("p"))
    world.serve("p")
    world.delete("p")
    world.run(0.5)
    world.store.faults.set_down(True)
    world.run(9)
    assert named(pod) in world.runtime.running()
    world.run(2)
    assert named(pod) not in world.runtime.running()
    world.store.faults.set_down(False)
    world.until(lambda: world.gone("p"))


def test_a_restarted_agent_adopts_what_runs(world: World) -> None:
    probe = Probe(tcp_socket=TCPSocketAction(port=80))
    world.start()
    world.bind("p", container(readiness_probe=probe))
    world.until(lambda: world.ready("p"))
    world.kill()
    before, calls = world.get("p"), list(world.runtime.calls)
    world.serving = lambda _target: (False, "starting up")  # a slow answer must not make it unready
    agent = world.start()
    world.run(15)
    assert agent.runner.synced_once
    assert world.get("p") == before
    assert world.runtime.calls == calls


def test_a_container_that_dies_is_told_of_until_it_runs_again(world: World) -> None:
    world.start()
    pod = world.bind("p")
    world.until(lambda: world.ready("p"))
    world.runtime.end(named(pod), 1)
    world.until(lambda: not world.ready("p"))  # its successor is being made
    assert container_line(world.get("p")) == "#0 terminated: Error 1"
    world.until(lambda: world.ready("p"))
    assert container_line(world.get("p")) == "#1 running, last Error 1"
    world.runtime.end(named(pod, 1), 2)
    world.run(5)
    assert container_line(world.get("p")) == "#1 waiting: CrashLoopBackOff, last Error 2"
    assert not world.ready("p")
    assert world.told.reasons().count("BackOff") == 1
    world.run(10)
    assert container_line(world.get("p")) == "#2 running, last Error 2"


def test_a_dead_infra_container_is_replaced(world: World) -> None:
    world.start()
    pod = world.bind("p")
    world.until(lambda: world.ready("p"))
    world.runtime.end(named(pod).replace("_web_", f"_{INFRA}_"), 137)
    world.until(lambda: world.restarts("p") == 1 and world.ready("p"))
    assert named(pod, 1) in world.runtime.running()


def test_readiness_follows_the_probe(world: World) -> None:
    world.serving = lambda _target: (False, "connection refused")
    world.start()
    world.bind("p", container(readiness_probe=Probe(period_seconds=1, failure_threshold=1)))
    world.until(lambda: world.get("p").status.phase == "Running")
    assert not world.ready("p")
    world.serving = lambda _target: (True, "")
    world.until(lambda: world.ready("p"))
    world.serving = lambda _target: (False, "connection refused")
    world.until(lambda: not world.ready("p"))
    assert "p: Unhealthy Readiness probe failed: connection refused" in world.told.events


def test_with_the_store_away_pods_run_on_and_are_reported_later(world: World) -> None:
    world.start()
    pod = world.bind("p")
    world.until(lambda: world.ready("p"))
    world.store.faults.set_down(True)
    world.runtime.end(named(pod), 1)
    world.until(lambda: named(pod, 1) in world.runtime.running())
    world.store.faults.set_down(False)
    world.until(lambda: world.restarts("p") == 1 and world.ready("p"))


def test_with_the_engine_away_nothing_is_concluded(world: World) -> None:
    agent = world.start()
    world.bind("p")
    world.until(lambda: world.ready("p"))
    before = world.runtime.running()
    world.runtime.down = True
    agent.trigger()
    world.until(lambda: agent.runner.last_error is not None)
    assert world.ready("p")
    world.runtime.down = False
    world.until(lambda: agent.runner.last_error is None)
    assert world.runtime.running() == before


def test_nothing_is_ended_before_the_first_complete_list(world: World) -> None:
    world.start()
    world.bind("p")
    world.until(lambda: world.ready("p"))
    world.kill()
    world.store.faults.set_down(True)
    world.start()
    world.run(60)
    assert len(world.runtime.running()) == 2
    world.store.faults.set_down(False)
    world.until(lambda: world.agent.runner.synced_once)
    assert len(world.runtime.running()) == 2


def test_pods_bound_elsewhere_meanwhile_are_ended(world: World) -> None:
    world.start()
    pod = world.bind("p")
    world.until(lambda: world.ready("p"))
    world.kill()
    world.registry.delete_many([pod], grace_seconds=0)
    world.bind("p", node="n2")
    world.start()
    world.until(lambda: world.runtime.list() == ())
    assert world.get("p").spec.node_name == "n2"


def test_others_changes_to_a_pod_are_not_overwritten(world: World) -> None:
    world.start()
    pod = world.bind("p")
    world.until(lambda: world.ready("p"))

    def label(old: Pod) -> Pod:
        labels = {**old.metadata.labels, "who": f"{len(old.metadata.labels)}"}
        return msgspec.structs.replace(old, metadata=msgspec.structs.replace(old.metadata, labels=labels))

    for number in range(5):
        if number == 0:
            world.runtime.end(named(pod), 1)
        world.registry.modify(Pod, "default", "p", label)
    world.until(lambda: world.restarts("p") == 1 and world.ready("p"))
    assert world.get("p").metadata.labels == {"who": "1"}


def test_a_pod_marked_not_ready_while_its_node_was_away_is_told_of_as_it_is(world: World) -> None:
    world.start()
    world.bind("p")
    world.until(lambda: world.ready("p"))
    before = world.get("p").status

    def mark(old: Pod) -> Pod:
        said = get_condition(old.status.conditions, "Ready")
        assert said is not None
        conditions = set_condition(old.status.conditions, msgspec.structs.replace(said, status="False"))
        return msgspec.structs.replace(old, status=msgspec.structs.replace(old.status, conditions=conditions))

    world.registry.modify(Pod, "default", "p", mark)
    world.until(lambda: world.ready("p"))
    # and so does an agent that was started anew
    world.kill()
    world.registry.modify(Pod, "default", "p", mark)
    world.start()
    world.until(lambda: world.ready("p"))
    assert world.get("p").status.container_statuses == before.container_statuses
    assert world.restarts("p") == 0
