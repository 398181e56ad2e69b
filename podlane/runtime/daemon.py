"""The frame every daemon runs in: signals, threads, readiness, an orderly end.

Owns: the process's life. Invariants: SIGTERM and SIGINT set the one stop event
and nothing else happens in a signal handler; the end has a fixed order (stop
event, threads joined within a deadline, stop callbacks last-added first,
health server) and always comes: a second signal or a thread that does not end
cannot hold it up; a thread that ends or raises before the stop takes the whole
daemon down with exit code 1, because half a daemon that looks alive is worse
than none and a supervisor can only restart what is dead.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NoReturn

from podlane import __version__
from podlane.runtime import metrics
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.health import Check, Checks, HealthServer, Provider, Reporter
from podlane.runtime.log import get_logger
from podlane.runtime.notify import Notifier

_TICK = 0.2  # seconds between looks at the ready checks until they pass
_STEADY_TICK = 1.0  # and after
_LEAVE_SECONDS = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_READY = metrics.gauge("podlane_ready", "1 while all of the daemon's checks for being ready pass.")
_BUILD = metrics.gauge("podlane_build_info", "Always 1; the labels say what runs.", ["daemon", "version"])


def leave(code: int) -> NoReturn:
    """End the process with this exit code, once `Daemon.run` is over. For a command's own process only.

    A library's thread can keep the interpreter from ending (seen once in 300 ends of proxyd, long after its
    last line): then the stacks of all threads go to stderr and the process ends by force, with exit code 1.
    """
    faulthandler.dump_traceback_later(_LEAVE_SECONDS, exit=True)
    sys.exit(code)


class Daemon:
    """Put it together, then `run` it from the main thread, once.

    `stop_timeout` is how many seconds all threads together get to end.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Clock | None = None,
        health: HealthServer | None = None,
        environ: Mapping[str, str] = os.environ,
        stop_timeout: float = 10.0,
    ) -> None:
        self.name = name
        self.clock = clock or SystemClock()
        self.stop = threading.Event()
        self._health_server = health
        self._ready = health.ready if health else Checks()
        self._health = health.health if health else Checks()
        self._notifier = Notifier(environ)
        self._stop_timeout = stop_timeout
        self._threads: list[tuple[str, Callable[[threading.Event], None]]] = []
        self._on_stop: list[Callable[[], object]] = []
        # the health port answers from its construction on, long before the other checks are added
        self._started = False
        self._ready.add("started", lambda: None if self._started else "not yet")
        self._exit_code = 0
        self._received: int | None = None
        self._status: str | None = None
        self._was_ready = False
        self._next_sign = self.clock.monotonic()
        self._wake_read, self._wake_write = socket.socketpair()
        self._poll = select.poll()  # not select(): it fails on descriptors above 1023
        self._poll.register(self._wake_read, select.POLLIN)
        self._log = get_logger(name)
        _BUILD.labels(name, __version__).set(1)

    def add_thread(self, name: str, target: Callable[[threading.Event], None]) -> None:
        """Run `target(stop)` in a thread; it must return soon after `stop` is set, and not before."""
        self._threads.append((name, target))

    def add_ready_check(self, name: str, check: Check) -> None:
        """Add a condition for being ready: None when met, else why not."""
        self._ready.add(name, check)

    def add_health_check(self, name: str, check: Check) -> None:
        """Add a condition for being healthy: while it fails, the watchdog gets no sign of life."""
        self._health.add(name, check)

    def add_document(self, path: str, provider: Provider, content_type: str = "application/json") -> None:
        """Serve a document beside the checks, for example under `/status`; without a health port nobody sees it."""
        if self._health_server is not None:
            self._health_server.add_document(path, provider, content_type)

    def add_report(self, path: str, reporter: Reporter) -> None:
        """Answer /healthz, /livez or /readyz in a form of the daemon's own; the checks count as before."""
        if self._health_server is not None:
            self._health_server.add_report(path, reporter)

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call it when the threads have ended, last added first. It must have a deadline of its own."""
        self._on_stop.append(callback)

    def request_stop(self, exit_code: int = 0) -> None:
        """End the daemon, from any thread. The first exit code that is not 0 counts."""
        self._exit_code = self._exit_code or exit_code
        self.stop.set()
        self._wake()

    def run(self) -> int:
        """Run until a signal, `request_stop` or a failed thread, and return the exit code."""
        self._wake_write.setblocking(False)
        self._wake_read.setblocking(False)
        previous_fd = signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            self._log.info("starting", pid=os.getpid())
            self._started = True
            threads = [self._start(name, target) for name, target in self._threads]
            while not self.stop.is_set():
                self.tick()
                self._sleep(self._pause())
            self._shut_down(threads)
        finally:
            signal.set_wakeup_fd(previous_fd)
            for number, disposition in previous.items():
                signal.signal(number, disposition)
            self._wake_read.close()
            self._wake_write.close()
        self._log.info("stopped", exit_code=self._exit_code)
        return self._exit_code

    def _on_signal(self, number: int, _frame: object) -> None:
        # Nothing that takes a lock: the main thread may hold it right now. The wakeup fd ends _sleep.
        if self._received is not None:
            os._exit(128 + number)
        self._received = number

    def _wake(self) -> None:
        with suppress(OSError):  # full: it is awake anyway; closed: it has ended
            self._wake_write.send(b"\0")

    def _sleep(self, seconds: float) -> None:
        if self._poll.poll(seconds * 1000):
            with suppress(BlockingIOError):
                self._wake_read.recv(4096)
        if self._received is not None and not self.stop.is_set():
            self._log.info("stopping", signal=signal.Signals(self._received).name)
            self.stop.set()

    def _pause(self) -> float:
        watchdog = self._notifier.watchdog
        tick = _STEADY_TICK if self._was_ready else _TICK
        return tick if watchdog is None else min(tick, watchdog / 4)

    def _start(self, name: str, target: Callable[[threading.Event], None]) -> threading.Thread:
        thread = threading.Thread(target=self._body, args=(name, target), name=name, daemon=True)
        thread.start()
        return thread

    def _body(self, name: str, target: Callable[[threading.Event], None]) -> None:
        try:
            target(self.stop)
        except BaseException as error:
            self._log.error("thread failed", thread=name, error=str(error) or repr(error), exc_info=error)
            self.request_stop(1)
            return
        if not self.stop.is_set():
            self._log.error("thread ended before it was told to", thread=name)
            self.request_stop(1)

    def tick(self) -> None:
        """Look at the checks and tell the service manager what changed. `run` calls it."""
        now = self.clock.monotonic()
        waiting = self._ready.failing()
        status = "; ".join(f"{name}: {reason}" for name, reason in waiting.items()) or "ready"
        if not waiting and not self._was_ready:
            self._log.info("ready")
            self._notifier.send("READY=1", "STATUS=ready")
        elif waiting and self._was_ready:
            self._log.warning("not ready", reason=status)
        if status != self._status and (waiting or self._was_ready):
            self._notifier.send(f"STATUS={status}".replace("\n", " "))
        self._was_ready, self._status = not waiting, status
        _READY.set(not waiting)
        if self._notifier.watchdog is not None and now >= self._next_sign:
            unwell = self._health.failing()
            if not unwell:
                self._notifier.send("WATCHDOG=1")
            else:
                self._log.warning("unhealthy", **{name.replace("-", "_"): why for name, why in unwell.items()})
            self._next_sign = now + self._notifier.watchdog / 2

    def _shut_down(self, threads: list[threading.Thread]) -> None:
        self._notifier.send("STOPPING=1", "STATUS=stopping")
        deadline = self.clock.monotonic() + self._stop_timeout
        for thread in threads:
            thread.join(max(0.0, deadline - self.clock.monotonic()))
        for thread in threads:
            if thread.is_alive():
                self._log.error("thread did not stop", thread=thread.name, stack=_stack(thread))
                self._exit_code = self._exit_code or 1
        for callback in reversed(self._on_stop):
            try:
                callback()
            except Exception as error:
                self._log.error("stop callback failed", error=str(error) or repr(error), exc_info=error)
                self._exit_code = self._exit_code or 1
        if self._health_server is not None:
            self._health_server.close()


def _stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else "gone"
