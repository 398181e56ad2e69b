"""A command in a container, over the connection dockerd hands over for it.

Owns: Docker's stream format: without a terminal each piece has an 8-byte header
(1 stdout, 2 stderr; three zero bytes; length), with one the bytes are bare.
Invariant: `close` from any thread ends a blocked `output`. Source: Docker
Engine API, "Attach to a container", stream format.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from scheduler.agent.runtime import ExecResult, RuntimeUnavailable

_HEADER = struct.Struct(">B3xI")
_CHUNK = 65536
_MAX_OUTPUT = 10 * 1024
"""Bytes of a finished command's output that are kept; the kubelet keeps as many of a probe's."""
_EXIT_TRIES = 50
_EXIT_PAUSE = 0.02


class DockerExec:
    """`channel` is the docker package's socket; `resize` and `exit_code` ask dockerd."""

    def __init__(
        self,
        channel: Any,
        *,
        tty: bool,
        resize: Callable[[int, int], None],
        exit_code: Callable[[], int | None],
    ) -> None:
        self._channel = channel
        self._socket: socket.socket = getattr(channel, "_sock", channel)
        self._tty = tty
        self._resize = resize
        self._exit_code = exit_code
        self._deadline: float | None = None

    def limit(self, seconds: float) -> None:
        """From now on reading raises TimeoutError once `seconds` have passed."""
        self._deadline = time.monotonic() + seconds

    def output(self) -> Iterator[tuple[str, bytes]]:
        while True:
            if self._tty:
                data = self._read(_CHUNK)
                if not data:
                    return
                yield "stdout", data
                continue
            header = self._read_exactly(_HEADER.size)
            if len(header) < _HEADER.size:
                return
            kind, length = _HEADER.unpack(header)
            while length:
                data = self._read(min(length, _CHUNK))
                if not data:
                    return
                length -= len(data)
                yield ("stderr" if kind == 2 else "stdout"), data

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise RuntimeUnavailable(f"send input: {error.strerror or error}") from error

    def end_input(self) -> None:
        with suppress(OSError):  # the command ended first
            self._socket.shutdown(socket.SHUT_WR)

    def resize(self, height: int, width: int) -> None:
        self._resize(height, width)

    def exit_code(self) -> int:
        # dockerd closes the output a moment before it notes the code
        for _ in range(_EXIT_TRIES):
            code = self._exit_code()
            if code is not None:
                return code
            time.sleep(_EXIT_PAUSE)
        raise RuntimeUnavailable("read exit code: dockerd does not know it")

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._channel.close()

    def _read_exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._read(count - len(data))
            if not more:
                break
            data += more
        return data

    def _read(self, count: int) -> bytes:
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        try:
            self._socket.settimeout(left)
            return self._socket.recv(count)
        except TimeoutError:
            raise
        except OSError:
            return b""


def run_to_end(session: DockerExec, timeout: float) -> ExecResult:
    """Collect a command's output. Raises TimeoutError; the command itself then goes on (Docker cannot end it)."""
    session.limit(timeout)
    kept = b""
    try:
        for _, data in session.output():
            kept = (kept + data)[:_MAX_OUTPUT]
        return ExecResult(session.exit_code(), kept)
    finally:
        session.close()
