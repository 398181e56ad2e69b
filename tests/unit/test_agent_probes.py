"""Probes: when a container is asked, and what its answers mean."""

from __future__ import annotations

import http.server
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator

import pytest
from agent_objects import container, pod
from agent_world import Later

from podlane.api.types import ContainerPort, ExecAction, HTTPGetAction, HTTPHeader, Probe, TCPSocketAction
from podlane.runtime.clock import FakeClock
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.probes import Prober, checker
from scheduler.agent.probestate import ProbeState, Target
from scheduler.agent.runtime import ExecResult

pytestmark = pytest.mark.unit


def answers(state: ProbeState, *oks: bool) -> list[tuple[float, bool, bool]]:
    """(when asked, counted as a failure, ready after) for each answer, each given at once."""
    told = []
    for ok in oks:
        at = state.due
        counted = state.answer(ok, at)
        told.append((round(at, 2), counted, state.passing))
    return told


def test_the_first_success_is_sought_quickly_and_its_failures_do_not_count() -> None:
    assert answers(ProbeState(Probe(), 0.0), False, False, False, False, True, True) == [
        (0.0, False, False), (0.05, False, False), (0.15, False, False), (0.35, False, False),
        (0.75, False, True), (10.75, False, True),
    ]  # fmt: skip


def test_after_the_first_period_failures_count_and_come_once_a_period() -> None:
    state = ProbeState(Probe(period_seconds=1), 0.0)
    told = answers(state, *[False] * 8)
    assert [at for at, _, _ in told] == [0.0, 0.05, 0.15, 0.35, 0.75, 1.75, 2.75, 3.75]
    assert [counted for _, counted, _ in told] == [False] * 4 + [True] * 4
    assert not state.passing


def test_exec_probes_are_repeated_less_quickly() -> None:
    state = ProbeState(Probe(exec=ExecAction(command=("true",))), 0.0)
    assert [at for at, _, _ in answers(state, False, False, False, True)] == [0.0, 0.25, 0.65, 1.05]


def test_the_initial_delay_counts_from_the_start_of_the_container() -> None:
    assert ProbeState(Probe(initial_delay_seconds=5), 100.0, running_for=2).due == 103.0
    assert ProbeState(Probe(initial_delay_seconds=5), 100.0, running_for=9).due == 100.0


def test_thresholds() -> None:
    state = ProbeState(Probe(success_threshold=2, failure_threshold=2), 0.0)
    assert [r for _, _, r in answers(state, True, True, False, True, False, False)] == [
        False, True, True, True, True, False,
    ]  # fmt: skip
    assert [r for _, _, r in answers(state, True, True)] == [False, True]


def test_what_was_ready_before_the_agent_restarted_stays_so_until_it_fails() -> None:
    state = ProbeState(Probe(), 0.0, was_ready=True)
    assert state.passing
    assert answers(state, False, False, False) == [(0.0, True, True), (10.0, True, True), (20.0, True, False)]


def test_a_startup_probe_is_asked_until_it_passes_or_has_failed_for_good() -> None:
    state = ProbeState(Probe(period_seconds=1, failure_threshold=2), 0.0, kind="startup")
    assert answers(state, False, True) == [(0.0, False, False), (0.05, False, True)]
    assert (state.over, state.failed) == (True, False)
    state = ProbeState(Probe(period_seconds=1, failure_threshold=2), 0.0, kind="startup")
    assert answers(state, *[False] * 6)[-2:] == [(0.75, True, False), (1.75, True, False)]
    assert (state.over, state.failed) == (True, True)
    assert ProbeState(Probe(), 0.0, kind="startup", was_ready=True).over


def test_a_liveness_probe_passes_until_it_has_failed_for_good() -> None:
    state = ProbeState(Probe(), 0.0, kind="liveness")
    assert state.passing
    assert answers(state, False, False, True, False, False) == [
        (0.0, True, True), (10.0, True, True), (20.0, False, True), (30.0, True, True), (40.0, True, True),
    ]  # fmt: skip
    assert not state.failed
    state.answer(False, 50.0)
    assert state.failed


def test_after_a_restart_of_the_agent_the_first_probes_are_spread() -> None:
    due = [ProbeState(Probe(), 0.0, kind="liveness", spread=f"container{n}").due for n in range(200)]
    assert all(0 <= at < 10 for at in due)
    assert all(sum(low <= at < low + 2.5 for at in due) > 25 for low in (0, 2.5, 5, 7.5))


# --- asking -------------------------------------------------------------------------------------


class Page(http.server.BaseHTTPRequestHandler):
    over = threading.Event()

    def do_GET(self) -> None:
        status = int(self.path.strip("/") or 200)
        if self.headers.get("X-Slow"):
            self.over.wait(60)
        self.send_response(status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    Page.over.set()
    server.shutdown()
    server.server_close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def target(probe: Probe, port: int = 80) -> Target:
    ct = container(ports=(ContainerPort(container_port=port, name="http"),), readiness_probe=probe)
    return Target(id="c1", pod=pod("p", ct), container=ct, probe=probe, ip="127.0.0.1")


@pytest.mark.parametrize(("path", "ok"), [("/200", True), ("/301", True), ("/404", False), ("/503", False)])
def test_http_statuses(port: int, path: str, ok: bool) -> None:
    probe = Probe(http_get=HTTPGetAction(port="http", path=path))
    told, message = checker(FakeRuntime())(target(probe, port))
    assert told is ok
    assert ok or message == f"HTTP probe failed with statuscode: {path[1:]}"


def test_http_failures_say_what_happened(port: int) -> None:
    check = checker(FakeRuntime())
    slow = HTTPGetAction(port=port, http_headers=(HTTPHeader(name="X-Slow", value="1"),))
    assert check(target(Probe(http_get=slow))) == (False, "no answer within 1 s")
    refused = check(target(Probe(http_get=HTTPGetAction(port=closed_port()))))
    assert not refused[0]
    assert "refused" in refused[1]
    unknown = check(target(Probe(http_get=HTTPGetAction(port="admin"))))
    assert unknown == (False, 'container web has no port named "admin"')


def test_tcp(port: int) -> None:
    check = checker(FakeRuntime())
    assert check(target(Probe(tcp_socket=TCPSocketAction(port=port)))) == (True, "")
    assert not check(target(Probe(tcp_socket=TCPSocketAction(port=closed_port()))))[0]


def test_exec() -> None:
    runtime = FakeRuntime()
    host_id = _running(runtime)
    runtime.execs = lambda _name, command: ExecResult(0 if command == ("good",) else 4, b"told\n")
    check = checker(runtime)

    def ask(command: str) -> tuple[bool, str]:
        probe = Probe(exec=ExecAction(command=(command,)))
        ct = container(readiness_probe=probe)
        return check(Target(id=host_id, pod=pod("p", ct), container=ct, probe=probe, ip="127.0.0.1"))

    assert ask("good")[0] is True
    assert ask("bad") == (False, "told")
    runtime.end(host_id)
    assert not ask("good")[0]


def _running(runtime: FakeRuntime) -> str:
    from scheduler.agent.runtime import INFRA_IMAGE, NO_NETWORK, ContainerConfig

    runtime.ensure_infra_image()
    identity = runtime.create(ContainerConfig("x", INFRA_IMAGE, {"a": "b"}, NO_NETWORK))
    runtime.start(identity)
    return identity


class Asking:
    """A prober without threads, and what it told."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.waiting: deque[Callable[[], object]] = deque()
        self.answer = {"c1": False, "c2": True}
        self.told: list[str] = []
        self.prober = Prober(
            lambda t: (self.answer[t.id], "no"),
            on_change=lambda: self.told.append("changed"),
            on_answer=lambda t, ok, message: self.told.append(f"{t.id}: {ok} {message}"),
            clock=self.clock,
            pool=lambda _size, _name: Later(self.waiting),
        )

    def run(self, seconds: float) -> list[str]:
        """What was told in that time."""
        self.told.clear()
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            pause = self.prober.step()
            while self.waiting:
                self.waiting.popleft()()
            self.clock.advance(min(pause + 0.001, end - self.clock.monotonic()))
        return self.told


def test_the_prober_follows_what_it_is_told() -> None:
    asking = Asking()
    probe = Probe(period_seconds=1, failure_threshold=1)
    one = target(probe)
    two = Target(id="c2", pod=one.pod, container=one.container, probe=probe, ip="127.0.0.1")
    asking.prober.set([one, two])
    assert asking.run(0.5) == ["c2: True no", "changed"]
    assert asking.prober.ready() == {"c2"}
    asking.answer["c1"] = True
    assert "changed" in asking.run(1)
    assert asking.prober.ready() == {"c1", "c2"}
    asking.answer["c2"] = False
    assert "c2: False no" in asking.run(1.5)
    assert asking.prober.ready() == {"c1"}
    asking.prober.set([two])
    assert asking.prober.ready() == frozenset()


def test_the_probers_thread_asks_and_ends() -> None:
    asked = threading.Event()
    prober = Prober(lambda _target: (True, ""), on_change=asked.set, on_answer=lambda *_told: None)
    stop = threading.Event()
    thread = threading.Thread(target=prober.run, args=(stop,))
    thread.start()
    prober.set([target(Probe())])
    assert asked.wait(60)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def test_a_container_that_has_not_answered_is_not_asked_again() -> None:
    asking = Asking()
    asking.answer["c1"] = True
    asking.prober.set([target(Probe(period_seconds=1))])
    for _ in range(5):
        asking.prober.step()
        asking.clock.advance(1)
    assert len(asking.waiting) == 1
    asking.waiting.popleft()()
    asking.clock.advance(1)
    asking.prober.step()
    assert len(asking.waiting) == 1
