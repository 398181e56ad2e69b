"""The frame of a daemon, run as a real child process with a service manager's socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podlane import __version__
from podlane.runtime import metrics
from podlane.runtime.clock import FakeClock
from podlane.runtime.daemon import Daemon

pytestmark = pytest.mark.unit

DEADLINE = 30.0  # seconds after which a test gives up; nothing here takes one


class Manager:
    """Plays the service manager: starts the script, keeps its datagrams, and ends it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.received: list[str] = []
        self.child: subprocess.Popen[str] | None = None

    def start(self, body: str, **environ: str) -> None:
        script = "from podlane.runtime.daemon import Daemon\nimport sys, time, threading\n"
        script += textwrap.dedent(body) + "\nsys.exit(daemon.run())\n"
        self.child = subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "NOTIFY_SOCKET": str(self.folder / "notify"), **environ},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, line: str, count: int = 1) -> None:
        deadline = time.monotonic() + DEADLINE
        while self.received.count(line) < count:
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self.received += self.socket.recv(4096).decode().splitlines()
            except TimeoutError:
                pytest.fail(f"no {line} ×{count}; received {self.received}")

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        """Send a signal, if any, and return exit code, standard output and standard error."""
        assert self.child is not None
        if number is not None:
            self.child.send_signal(number)
        out, err = self.child.communicate(timeout=DEADLINE)
        return self.child.returncode, out, err

    def close(self) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.kill()
            self.child.communicate()
        self.socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    m = Manager(tmp_path)
    yield m
    m.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(manager: Manager, number: signal.Signals) -> None:
    manager.start("""
        daemon = Daemon("test")
        def work(stop):
            stop.wait()
            time.sleep(0.05)
            print("thread ended", flush=True)
        daemon.add_thread("work", work)
        daemon.on_stop(lambda: print("first added", flush=True))
        daemon.on_stop(lambda: print("last added", flush=True))
    """)
    manager.wait_for("READY=1")
    code, out, err = manager.end(number)
    assert code == 0
    assert out == "thread ended\nlast added\nfirst added\n"
    assert f"event=stopping signal={number.name}" in err
    manager.wait_for("STOPPING=1")
    assert manager.received.count("READY=1") == 1


def test_ready_waits_for_the_checks_and_the_status_says_what_for(manager: Manager) -> None:
    manager.start("""
        import pathlib
        daemon = Daemon("test")
        here = lambda name: None if pathlib.Path(name).exists() else f"no {name} yet"
        daemon.add_ready_check("one", lambda: here("one"))
        daemon.add_ready_check("two", lambda: here("two"))
        daemon.add_thread("work", lambda stop: stop.wait())
    """)
    manager.wait_for("STATUS=one: no one yet; two: no two yet")
    (manager.folder / "one").touch()
    manager.wait_for("STATUS=two: no two yet")
    assert "READY=1" not in manager.received
    (manager.folder / "two").touch()
    manager.wait_for("READY=1")
    (manager.folder / "one").unlink()
    manager.wait_for("STATUS=one: no one yet")
    code, _, err = manager.end(signal.SIGTERM)
    assert code == 0
    assert 'event="not ready" reason="one: no one yet"' in err


def test_the_watchdog_gets_signs_of_life_only_while_healthy(manager: Manager) -> None:
    manager.start(
        """
        import pathlib
        daemon = Daemon("test")
        daemon.add_health_check("main-loop", lambda: "stuck" if pathlib.Path("stuck").exists() else None)
        daemon.add_thread("work", lambda stop: stop.wait())
    """,
        WATCHDOG_USEC="100000",
    )
    manager.wait_for("WATCHDOG=1", count=5)
    (manager.folder / "stuck").touch()
    time.sleep(0.3)  # let what was under way arrive
    manager.socket.setblocking(False)
    while True:
        try:
            manager.socket.recv(4096)
        except BlockingIOError:
            break
    manager.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        manager.socket.recv(4096)
    (manager.folder / "stuck").unlink()
    manager.received.clear()
    manager.wait_for("WATCHDOG=1")
    assert "event=unhealthy main_loop=stuck" in manager.end(signal.SIGTERM)[2]


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ("raise RuntimeError('kernel said no')", 'event="thread failed" thread=work error="kernel said no"'),
        ("sys.exit(0)", 'event="thread failed" thread=work'),
        ("return", 'event="thread ended before it was told to" thread=work'),
    ],
    ids=["raises", "exits", "returns"],
)
def test_a_thread_that_ends_takes_the_daemon_down(manager: Manager, work: str, message: str) -> None:
    manager.start(f"""
        daemon = Daemon("test")
        def work(stop):
            {work}
        daemon.add_thread("work", work)
        daemon.add_thread("other", lambda stop: stop.wait())
        daemon.on_stop(lambda: print("cleaned up", flush=True))
    """)
    code, out, err = manager.end()
    assert code == 1
    assert out == "cleaned up\n"
    assert message in err
    assert ("RuntimeError: kernel said no" in err) == ("RuntimeError" in work)


def test_a_thread_that_does_not_end_cannot_hold_it_up(manager: Manager) -> None:
    manager.start("""
        daemon = Daemon("test", stop_timeout=0.2)
        daemon.add_thread("deaf", lambda stop: time.sleep(600))
        daemon.on_stop(lambda: print("cleaned up", flush=True))
    """)
    manager.wait_for("READY=1")
    code, out, err = manager.end(signal.SIGTERM)
    assert code == 1
    assert out == "cleaned up\n"
    assert 'event="thread did not stop" thread=deaf' in err
    assert "time.sleep(600)" in err or "<string>" in err, "the stack shows where it hangs"


def test_a_second_signal_ends_it_at_once(manager: Manager) -> None:
    manager.start("""
        daemon = Daemon("test", stop_timeout=600)
        def deaf(stop):
            stop.wait()
            print("stopping", flush=True)
            time.sleep(600)
        daemon.add_thread("deaf", deaf)
    """)
    manager.wait_for("READY=1")
    assert manager.child is not None
    assert manager.child.stdout is not None
    manager.child.send_signal(signal.SIGTERM)
    assert manager.child.stdout.readline() == "stopping\n"
    assert manager.end(signal.SIGTERM)[0] == 128 + signal.SIGTERM


def test_a_failing_stop_callback_does_not_skip_the_others(manager: Manager) -> None:
    manager.start("""
        daemon = Daemon("test")
        daemon.add_thread("work", lambda stop: stop.wait())
        daemon.on_stop(lambda: print("first added", flush=True))
        daemon.on_stop(lambda: 1 / 0)
    """)
    manager.wait_for("READY=1")
    code, out, err = manager.end(signal.SIGTERM)
    assert code == 1
    assert out == "first added\n"
    assert 'event="stop callback failed" error="division by zero"' in err


def test_a_signal_storm_while_starting_is_one_stop_or_an_immediate_end(manager: Manager) -> None:
    """Handlers take no lock, so no moment is the wrong one; the run must end whatever the timing."""
    manager.start("""
        daemon = Daemon("test")
        daemon.add_thread("work", lambda stop: stop.wait())
    """)
    manager.wait_for("READY=1")
    assert manager.child is not None
    for _ in range(50):
        if manager.child.poll() is None:
            manager.child.send_signal(signal.SIGTERM)
    assert manager.end()[0] in (0, 128 + signal.SIGTERM)


def in_process(build: Callable[[Daemon], None]) -> int:
    daemon = Daemon("test", environ={})
    build(daemon)
    return daemon.run()


def test_it_may_ask_for_its_own_end_and_restores_the_signal_handlers() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    def build(daemon: Daemon) -> None:
        def work(stop: object) -> None:
            daemon.request_stop(3)
            daemon.request_stop(0)

        daemon.add_thread("work", work)

    assert in_process(build) == 3
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_metrics_tell_what_runs_and_whether_it_is_ready() -> None:
    seen = []

    def build(daemon: Daemon) -> None:
        daemon.tick()
        seen.append(metrics.value("podlane_ready"))

        def work(stop: threading.Event) -> None:
            while metrics.value("podlane_ready") != 1 and not stop.wait(0.01):
                pass
            daemon.request_stop()

        daemon.add_thread("work", work)

    assert in_process(build) == 0
    assert seen == [0]
    assert metrics.value("podlane_build_info", daemon="test", version=__version__) == 1


def test_signs_of_life_come_at_half_the_watchdog_interval(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        clock = FakeClock()
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000000"}
        daemon = Daemon("test", clock=clock, environ=environ)
        signs = []
        for second in range(31):
            daemon.tick()
            try:
                while True:
                    if receiver.recv(4096) == b"WATCHDOG=1":
                        signs.append(second)
            except BlockingIOError:
                clock.advance(1)
        assert signs == [0, 10, 20, 30]
