"""top, against real agents' ports on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from threading import Thread

import pytest
from agent_certificate import certificate
from cli_shell import NOW, Shell, lines, pod

from podlane.api.types import (
    AGENT_CERTIFICATE_ANNOTATION,
    DaemonEndpoint,
    Namespace,
    Node,
    NodeAddress,
    NodeDaemonEndpoints,
    NodeStatus,
    ObjectMeta,
    Pod,
)
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.guard import TokenGuard
from scheduler.agent.server import AgentServer

pytestmark = pytest.mark.unit

MEBI = 1 << 20


def used(name: str, cpu: int, mebibytes: int) -> dict[str, object]:
    return {"name": name, "cpu": cpu * 1_000_000, "memory": mebibytes * MEBI}


def told(node: dict[str, object], *pods: tuple[Pod, list[dict[str, object]]]) -> dict[str, object]:
    listed = [{"uid": p.metadata.uid, "containers": containers} for p, containers in pods]
    return {"timestamp": NOW.timestamp(), "window": 1.0, "node": node, "pods": listed}


class World:
    """Two nodes that answer, and one that does not."""

    def __init__(self) -> None:
        self.shell = Shell()
        self.servers: list[AgentServer] = []
        self.shell.add(Namespace(metadata=ObjectMeta(name="apart")))
        shown = (pod("web1", containers=2), pod("web2", node="node2"))
        other = pod("other", namespace="apart", labels={"app": "db"})
        web1, web2, other = (self.shell.registry.create(p) for p in (*shown, other))
        parts = [used("web", 120, 30), used("log", 3, 12)]
        one = told(used("", 500, 1024), (web1, parts), (other, [used("web", 2, 400)]))
        two = told(used("", 1500, 512), (web2, [used("web", 250, 20)]))
        for number, usage in enumerate((one, two), 1):
            server = AgentServer(
                *("127.0.0.1", 0),
                runtime=FakeRuntime(),
                guard=TokenGuard(certificate(), lambda: "secret"),
                usage=lambda usage=usage: usage,
            )
            self.servers.append(server)
            self.node(f"node{number}", server.port)

    def node(self, name: str, port: int, cpu: str = "2", memory: str = "2Gi") -> None:
        annotations = {AGENT_CERTIFICATE_ANNOTATION: certificate().fingerprint}
        status = NodeStatus(
            addresses=(NodeAddress(type="InternalIP", address="127.0.0.1"),),
            daemon_endpoints=NodeDaemonEndpoints(kubelet_endpoint=DaemonEndpoint(port=port)),
            allocatable={"cpu": cpu, "memory": memory},
        )
        self.shell.add(Node(metadata=ObjectMeta(name=name, annotations=annotations), status=status))


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for server in world.servers:
        Thread(target=server.close).start()


def words(text: str) -> list[list[str]]:
    return [line.split() for line in lines(text)]


def test_pods(world: World) -> None:
    assert words(world.shell.ok("top", "pods")) == [
        ["NAME", "CPU(cores)", "MEMORY(bytes)"],
        ["web1", "123m", "42Mi"],
        ["web2", "250m", "20Mi"],
    ]
    assert words(world.shell.ok("top", "pod", "web2", "--no-headers")) == [["web2", "250m", "20Mi"]]
    assert words(world.shell.ok("top", "po", "-A", "--sort-by=memory"))[1:] == [
        ["apart", "other", "2m", "400Mi"],
        ["default", "web1", "123m", "42Mi"],
        ["default", "web2", "250m", "20Mi"],
    ]
    assert words(world.shell.ok("top", "pods", "-l", "app=web", "--containers", "--sort-by", "cpu")) == [
        ["POD", "NAME", "CPU(cores)", "MEMORY(bytes)"],
        ["web2", "web", "250m", "20Mi"],
        ["web1", "web", "120m", "30Mi"],
        ["web1", "log", "3m", "12Mi"],
    ]


def test_nodes(world: World) -> None:
    assert words(world.shell.ok("top", "nodes", "--sort-by=cpu")) == [
        ["NAME", "CPU(cores)", "CPU%", "MEMORY(bytes)", "MEMORY%"],
        ["node2", "1500m", "75%", "512Mi", "25%"],
        ["node1", "500m", "25%", "1024Mi", "50%"],
    ]


def test_json_has_the_form_of_the_metrics_api(world: World) -> None:
    shown = json.loads(world.shell.ok("top", "pods", "web1", "-o", "json"))
    assert (shown["apiVersion"], shown["kind"]) == ("metrics.k8s.io/v1beta1", "PodMetricsList")
    (item,) = shown["items"]
    assert item["metadata"] == {"name": "web1", "namespace": "default", "labels": {"app": "web"}}
    assert (item["timestamp"], item["window"]) == ("2026-03-01T12:00:00Z", "1.000s")
    assert item["containers"][0] == {"name": "web", "usage": {"cpu": "120000000n", "memory": "30720Ki"}}
    (item,) = json.loads(world.shell.ok("top", "nodes", "node2", "-o=json"))["items"]
    assert item["usage"] == {"cpu": "1500000000n", "memory": "524288Ki"}


def test_a_node_that_does_not_answer_is_said_and_the_others_are_shown(world: World) -> None:
    world.servers[1].close()
    result = world.shell.run("top", "nodes")
    assert result.exit_code == 1
    assert words(result.stdout)[1:] == [
        ["node1", "500m", "25%", "1024Mi", "50%"],
        ["node2", "<unknown>", "<unknown>", "<unknown>", "<unknown>"],
    ]
    assert result.stderr.startswith("error: usage of node node2: reach agent 127.0.0.1:")
    result = world.shell.run("top", "pods")
    assert (result.exit_code, words(result.stdout)[1:]) == (1, [["web1", "123m", "42Mi"]])


def test_amounts_that_cannot_be_read_are_named_and_the_rest_is_shown(world: World) -> None:
    world.node("node3", world.servers[1].port, cpu="many")
    world.node("node4", world.servers[1].port, memory="-1")
    result = world.shell.run("top", "nodes", "--sort-by=cpu")
    assert words(result.stdout)[1:] == [
        ["node2", "1500m", "75%", "512Mi", "25%"],
        ["node3", "1500m", "<unknown>", "512Mi", "25%"],
        ["node4", "1500m", "75%", "512Mi", "<unknown>"],
        ["node1", "500m", "25%", "1024Mi", "50%"],
    ]
    expected = 'expected a quantity such as "250m", "1.5" or "64Mi", got "many"'
    assert (result.exit_code, result.stderr) == (1, f"error: allocatable cpu of node node3: {expected}\n")


def test_a_node_whose_agent_has_no_api_is_unknown_and_no_failure(world: World) -> None:
    world.node("hollow-1", 0)
    assert words(world.shell.ok("top", "nodes", "hollow-1"))[1:] == [["hollow-1", *["<unknown>"] * 4]]


def test_what_is_asked_wrongly_is_said(world: World) -> None:
    assert "expected pods or nodes" in world.shell.fails("top", "services", code=2)
    assert "expected pods or nodes" in world.shell.fails("top", "pods,nodes", code=2)
    assert "expected pods with them" in world.shell.fails("top", "nodes", "--containers", code=2)
    assert 'pods "none" not found' in world.shell.fails("top", "pods", "none")
    assert world.shell.run("-n", "empty", "top", "pods").stderr == "No resources found in empty namespace.\n"
