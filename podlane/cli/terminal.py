"""The person's side of a command that runs in a container.

Owns: raw mode, the terminal's size, and the copying between the terminal (or
pipes) and the session. Invariant: the terminal is given back as it was found,
whatever happens. Standard input is read by file descriptor and not through
Python's buffer: a thread that blocks in the buffer when the interpreter ends
aborts the process (CPython 3.11).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING

from podlane.errors import PodlaneError

if TYPE_CHECKING:
    from scheduler.agent.client import AgentExec

_CHUNK = 65536
_SIZE_AGAIN = (0.05, 0.2, 0.8)  # seconds between the tellings of the first size


def stdin_is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


@contextmanager
def raw_mode() -> Iterator[None]:
    """Every key goes to the container, Ctrl-C and Ctrl-D too."""
    import termios
    import tty

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    handlers = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def follow_size(session: AgentExec) -> Iterator[None]:
    """Tell the session the size of our terminal, now and whenever it changes.

    The first telling is repeated: an engine that has not started the command
    yet loses it (docker's own command line tries again, too). The same size
    once more disturbs nobody. The signal only wakes a thread: it interrupts the
    main thread anywhere, also where that holds what sending needs.
    """
    wake: SimpleQueue[bool] = SimpleQueue()  # of which put may interrupt itself

    def on_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        wake.put(True)

    def tell() -> None:
        pauses = iter(_SIZE_AGAIN)
        going_on = True
        while going_on:
            # a size that cannot be had or told is no reason to stop
            with suppress(OSError, PodlaneError):
                size = os.get_terminal_size(sys.stdin.fileno())
                session.resize(size.lines, size.columns)
            with suppress(Empty):
                going_on = wake.get(timeout=next(pauses, None))

    before = signal.signal(signal.SIGWINCH, on_signal)
    Thread(target=tell, daemon=True, name="terminal size").start()
    try:
        yield
    finally:
        wake.put(False)
        signal.signal(signal.SIGWINCH, before)


def _read_input() -> bytes:
    try:
        descriptor = sys.stdin.fileno()
    except OSError:  # not a file: a test's
        return sys.stdin.buffer.read(_CHUNK)
    return os.read(descriptor, _CHUNK)


def _send_input(session: AgentExec) -> None:
    """The body of a thread: our input to the command until either ends."""
    try:
        while data := _read_input():
            session.send(data)
        session.end_input()
    except (OSError, PodlaneError):
        return


def relay(session: AgentExec, *, stdin: bool) -> int:
    """Copy both ways until the command has ended; its exit code. Raises PodlaneError."""
    if stdin:
        Thread(target=_send_input, args=(session,), daemon=True, name="stdin").start()
    streams = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    try:
        for name, data in session.output():
            streams[name].write(data)
            streams[name].flush()
        return session.exit_code()
    finally:
        session.close()
