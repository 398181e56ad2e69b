"""logs and exec, against the real agent API on loopback with a container engine in memory."""

from __future__ import annotations

import os
import pty
import signal
import sys
import termios
from threading import Event, Thread

import pytest
from agent_certificate import certificate
from cli_shell import NOW, Shell, lines, owner, pod, rc, waiting
from click.testing import CliRunner
from msgspec.structs import replace

from podlane.api.types import (
    AGENT_CERTIFICATE_ANNOTATION,
    DaemonEndpoint,
    Node,
    NodeAddress,
    NodeDaemonEndpoints,
    NodeStatus,
    ObjectMeta,
    Pod,
    Service,
    ServicePort,
    ServiceSpec,
)
from podlane.cli import terminal
from podlane.cli.main import cli
from podlane.runtime.clock import ScriptedClock
from podlane.runtime.log import configure
from scheduler.agent import containers as c
from scheduler.agent.client import AgentClient
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.guard import TokenGuard
from scheduler.agent.server import AgentServer
from scheduler.agent.trust import Pinned

pytestmark = pytest.mark.unit


class World:
    """A cluster of one node whose agent answers."""

    def __init__(self) -> None:
        self.shell = Shell(ScriptedClock(NOW.timestamp()))
        self.runtime = FakeRuntime(self.shell.clock)
        self.server = AgentServer(
            *("127.0.0.1", 0),
            runtime=self.runtime,
            guard=TokenGuard(certificate(), lambda: "secret"),
            clock=self.shell.clock,
        )
        self.shell.add(
            Node(
                metadata=ObjectMeta(
                    name="node1", annotations={AGENT_CERTIFICATE_ANNOTATION: certificate().fingerprint}
                ),
                status=NodeStatus(
                    addresses=(NodeAddress(type="InternalIP", address="127.0.0.1"),),
                    daemon_endpoints=NodeDaemonEndpoints(kubelet_endpoint=DaemonEndpoint(port=self.server.port)),
                ),
            )
        )

    def run_pod(self, shown) -> None:
        """Store the pod, and run its containers on the node."""
        stored = self.shell.registry.create(shown)
        self.start(stored, 0)

    def start(self, stored, attempt: int) -> None:
        if attempt == 0:
            infra = c.infra_config(stored, 0, "10.244.1.2")
            self.runtime.add_image(infra.image)
            self.runtime.create(infra)
            self.runtime.start(infra.name)
        for container in (*stored.spec.init_containers, *stored.spec.containers):
            self.runtime.add_image(container.image)
            config = c.container_config(stored, container, c.name_of(stored, c.INFRA, 0), attempt, 0)
            self.runtime.create(config)
            self.runtime.start(config.name)

    def name(self, pod_name: str, container: str = "web", attempt: int = 0) -> str:
        return c.name_of(self.shell.registry.get(Pod, "default", pod_name), container, attempt)

    def writes(self, pod_name: str, data: bytes, container: str = "web", attempt: int = 0) -> None:
        self.runtime.write(self.name(pod_name, container, attempt), data)


@pytest.fixture
def world():
    world = World()
    world.run_pod(pod("web-1", containers=2))
    world.run_pod(pod("web-2"))
    for text in (b"one\n", b"two\n", b"three\n"):
        world.writes("web-1", text)
    world.writes("web-1", b"sidecar\n", container="log")
    world.writes("web-2", b"second")
    yield world
    # its server looks for the end twice a second: nobody needs to wait for that
    Thread(target=world.server.close).start()


def test_logs_of_the_first_container(world):
    assert world.shell.ok("logs", "web-1") == "one\ntwo\nthree\n"
    assert world.shell.ok("logs", "pod/web-1", "--tail=2") == "two\nthree\n"
    assert world.shell.ok("logs", "web-1", "--tail=-1") == "one\ntwo\nthree\n"
    assert "--tail" in world.shell.fails("logs", "web-1", "--tail=-2", code=2)


def test_which_container_was_chosen_of_several_is_told_beside_the_output(world):
    assert world.shell.run("logs", "web-1").stderr == 'Defaulted container "web" out of: web, log\n'
    assert world.shell.run("logs", "web-1", "-c", "web").stderr == ""
    assert world.shell.run("logs", "web-2").stderr == ""


def test_logs_of_another_container(world):
    for args in (("web-1", "-c", "log"), ("web-1", "log")):
        assert world.shell.ok("logs", *args) == "sidecar\n"
    errors = world.shell.fails("logs", "web-1", "-c", "nope", code=2)
    assert errors == 'error: pod web-1: no container "nope"; it has web, log\n'


def test_logs_since(world):
    world.shell.clock.advance(100)
    world.writes("web-1", b"young\n")
    world.shell.clock.advance(10)
    assert world.shell.ok("logs", "web-1", "--since=30s") == "young\n"
    assert world.shell.ok("logs", "web-1", "--since-time", "2026-03-01T12:01:00Z") == "young\n"
    assert "expected a time as" in world.shell.fails("logs", "web-1", "--since-time", "noon", code=2)


def test_logs_up_to_a_number_of_bytes(world):
    assert world.shell.ok("logs", "web-1", "--limit-bytes=6") == "one\ntw"
    assert world.shell.ok("logs", "web-1", "--all-containers", "--limit-bytes=2") == "onsi"
    assert "--limit-bytes" in world.shell.run("logs", "web-1", "--limit-bytes=-1").stderr


def test_logs_of_init_containers_and_of_the_default_container(world):
    first = pod("staged", labels={"app": "staged"}, containers=2)
    spec = replace(first.spec, init_containers=(replace(first.spec.containers[0], name="setup"),))
    annotations = {"kubectl.kubernetes.io/default-container": "log"}
    world.run_pod(replace(first, spec=spec, metadata=replace(first.metadata, annotations=annotations)))
    for container in ("setup", "web", "log"):
        world.writes("staged", f"{container}\n".encode(), container=container)
    assert world.shell.ok("logs", "staged") == "log\n"
    assert world.shell.ok("logs", "staged", "-c", "setup") == "setup\n"
    assert world.shell.ok("logs", "-l", "app=staged", "--all-containers") == "setup\nweb\nlog\n"
    assert "it has setup, web, log" in world.shell.fails("logs", "staged", "-c", "nope", code=2)


def test_logs_of_many(world):
    shown = world.shell.ok("logs", "-l", "app=web", "--prefix", "--all-containers")
    assert lines(shown) == [
        "[pod/web-1/web] one",
        "[pod/web-1/web] two",
        "[pod/web-1/web] three",
        "[pod/web-1/log] sidecar",
        "[pod/web-2/web] second",
    ]


def test_followed_logs_of_many_are_whole_lines_with_their_source(world):
    shown = world.shell.ok("logs", "-f", "-l", "app=web")
    assert sorted(lines(shown)) == [
        "[pod/web-1/web] one",
        "[pod/web-1/web] three",
        "[pod/web-1/web] two",
        "[pod/web-2/web] second",
    ]


def test_logs_by_controller_and_service(world):
    controller = world.shell.registry.create(rc())
    world.run_pod(pod("owned", owner=owner(controller), labels={"app": "own"}))
    world.run_pod(pod("unready", owner=owner(controller), ready=False))
    world.writes("owned", b"of the ready one\n")
    assert world.shell.ok("logs", "rc/web") == "of the ready one\n"
    spec = ServiceSpec(selector={"app": "own"}, ports=(ServicePort(port=80),))
    world.shell.add(Service(metadata=ObjectMeta(name="s", namespace="default"), spec=spec))
    assert world.shell.ok("logs", "svc/s") == "of the ready one\n"
    world.shell.add(rc("idle"))
    assert world.shell.fails("logs", "rc/idle") == "error: rc/idle: no pod of it runs\n"


def test_previous_logs(world):
    world.writes("web-2", b"last words\n")
    world.runtime.end(world.name("web-2"), 1)
    world.start(world.shell.registry.get(Pod, "default", "web-2"), 1)
    world.writes("web-2", b"new\n", attempt=1)
    assert world.shell.ok("logs", "web-2") == "new\n"
    assert world.shell.ok("logs", "web-2", "--previous") == "secondlast words\n"
    assert "previous terminated container" in world.shell.fails("logs", "web-1", "-p")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("nope",), 1, 'pods "nope" not found'),
        (("svc/nope",), 1, 'services "nope" not found'),
        (("node/node1",), 2, 'argument "node/node1": expected a pod, a replication controller or a service'),
        ((), 2, "pod: expected a name or --selector"),
        (("web-1", "-l", "a"), 2, "pod: expected a name or --selector"),
        (("web-1", "log", "-c", "log"), 2, "container: given twice"),
        (("web-1", "-f", "-p"), 2, "--previous: expected no --follow with it"),
        (("web-1", "--since=1m", "--since-time=2026-01-01"), 2, "--since and --since-time: expected one"),
        (("unplaced",), 1, "pod unplaced: not placed on a node yet"),
        (("lost",), 1, "pod lost: its node gone is gone"),
        (("bare",), 1, "node old: its agent wants an operator's certificate"),
        (("hollow",), 1, "node hollow-1: its agent has no API, as on hollow nodes"),
        (("starting",), 1, "logs of container web of pod starting: it has not started: ErrImagePull"),
    ],
)
def test_logs_that_cannot_be_had(world, args, code, message):
    here = (NodeAddress(type="InternalIP", address="127.0.0.1"),)
    endpoints = NodeDaemonEndpoints(kubelet_endpoint=DaemonEndpoint(port=1))
    world.shell.add(
        Node(metadata=ObjectMeta(name="hollow-1"), status=NodeStatus(addresses=here)),
        Node(metadata=ObjectMeta(name="old"), status=NodeStatus(addresses=here, daemon_endpoints=endpoints)),
        *(pod("bare", node="old"), pod("hollow", node="hollow-1")),
        pod("unplaced", node=""),
        pod("lost", node="gone"),
        pod("starting", waiting("ErrImagePull"), phase="Pending"),
    )
    assert world.shell.fails("logs", *args, code=code).startswith(f"error: {message}")


def test_an_agent_that_does_not_answer(world):
    world.server.close()
    errors = world.shell.fails("logs", "web-2")
    assert errors.startswith(f"error: logs of pod web-2: reach agent 127.0.0.1:{world.server.port}: ")
    assert len(lines(errors)) == 1


def test_a_wrong_token(world):
    config = world.shell.registry.cluster_config()
    world.shell.registry.init_cluster(replace(config, agent_token="other"), overwrite=True)
    assert "the cluster's bearer token is required" in world.shell.fails("exec", "web-1", "--", "ls")


# --- exec: the engine in memory echoes its input, and `exit N` ends it --------------------


def test_exec_passes_input_output_and_exit_code(world):
    result = world.shell.run("exec", "-i", "web-1", "-c", "log", "--", "sh", "-c", "x", stdin="hello\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "hello\n", "")
    assert world.shell.run("exec", "-i", "web-1", "--", "sh", stdin="exit 7\n").exit_code == 7


def test_exec_needs_a_command_after_two_dashes(world):
    for args in (("web-1",), ("web-1", "--")):
        assert world.shell.fails("exec", *args, code=2).startswith("error: command: missing; it follows --")
    assert world.shell.run("exec", "web-1", "ls").exit_code == 2


def test_exec_where_nothing_runs(world):
    world.runtime.end(world.name("web-2"))
    assert world.shell.fails("exec", "web-2", "--", "ls") == (
        'error: container "web" of pod default/web-2 is not running\n'
    )


def test_a_terminal_is_not_asked_for_without_one(world):
    result = world.shell.run("exec", "-it", "web-2", "--", "sh", stdin="exit 3\n")
    assert result.exit_code == 3
    assert result.stderr == "warning: standard input is no terminal; going on without one\n"


class Keyboard:
    """A terminal, which becomes standard input with `attach`."""

    def __init__(self) -> None:
        self.fingers, self.screen = pty.openpty()
        self.stdin = os.fdopen(os.dup(self.screen), "r")
        # as the kernel has it before anyone changes it: echo, line by line, Ctrl-C is a signal
        self.before = termios.tcgetattr(self.screen)

    def type(self, keys: bytes) -> None:
        os.write(self.fingers, keys)

    def attach(self, monkeypatch) -> None:
        """In the test's own phase: pytest sets the standard streams anew between phases."""
        monkeypatch.setattr(sys, "stdin", self.stdin)

    def close(self) -> None:
        self.stdin.close()
        os.close(self.fingers)
        os.close(self.screen)


@pytest.fixture
def keyboard():
    keyboard = Keyboard()
    yield keyboard
    keyboard.close()


class Seen:
    """A session that lets a test wait for what came out of it."""

    def __init__(self, session) -> None:
        self.session = session
        self.sizes: list[tuple[int, int]] = []
        self.echoed = Event()

    def __getattr__(self, name):
        return getattr(self.session, name)

    def output(self):
        for piece in self.session.output():
            self.echoed.set()
            yield piece

    def resize(self, height: int, width: int) -> None:
        self.sizes.append((height, width))
        self.session.resize(height, width)


def test_a_real_terminal(world, keyboard, monkeypatch, capsysbinary):
    """Raw mode: Ctrl-C is the command's, nothing is echoed here; afterwards all is as it was."""
    configure("error")  # else the server's requests are told on the same output
    keyboard.attach(monkeypatch)
    termios.tcsetwinsize(keyboard.screen, (24, 80))
    client = AgentClient(f"https://127.0.0.1:{world.server.port}", Pinned("secret", certificate().fingerprint))
    session = Seen(client.exec("default", "web-1", "web", ["sh"], tty=True, stdin=True))

    def person() -> None:
        keyboard.type(b"\x03")
        assert session.echoed.wait(10)
        session.echoed.clear()
        termios.tcsetwinsize(keyboard.screen, (50, 132))
        os.kill(os.getpid(), signal.SIGWINCH)
        keyboard.type(b"exit 5\r")

    with terminal.raw_mode(), terminal.follow_size(session):
        assert not termios.tcgetattr(keyboard.screen)[3] & (termios.ISIG | termios.ECHO | termios.ICANON)
        Thread(target=person).start()
        code = terminal.relay(session, stdin=True)
    assert code == 5
    assert capsysbinary.readouterr().out == b"\x03"
    assert list(dict.fromkeys(session.sizes)) == [(24, 80), (50, 132)]
    assert termios.tcgetattr(keyboard.screen) == keyboard.before


def test_the_terminal_is_given_back_after_a_failure(keyboard, monkeypatch):
    keyboard.attach(monkeypatch)
    with pytest.raises(OSError, match="broke"), terminal.raw_mode():
        raise OSError("broke")
    assert termios.tcgetattr(keyboard.screen) == keyboard.before


def test_exec_help_shows_where_the_command_goes():
    assert "[-- COMMAND [ARGS…]]" in CliRunner().invoke(cli, ["exec", "--help"], prog_name="podlane").stdout
