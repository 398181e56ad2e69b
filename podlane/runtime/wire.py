"""A TLS connection that one thread reads while another writes, with limits on what the other side may take.

Owns: all waiting for the network on ports of ours that speak TLS, and in the clients of the agent's.
Invariants: OpenSSL's state of a connection is used by one thread at a time
(CPython before 3.13 does not see to that), and nobody waits while using it; with
`limit`, reading ends by a deadline for all that is read until then, however
slowly single bytes come, and after so many bytes; `shut` from any thread ends
whoever waits.
"""

from __future__ import annotations

import io
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Subject(NamedTuple):
    """Whose certificate it is; empty for one that was not checked, and for none."""

    organization: str = ""
    name: str = ""
    serial: int = 0


_RECORD = 16384
"""Bytes of the longest TLS record: a write that has to be repeated is not longer than one."""
_KEEPALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}


class Wire(io.RawIOBase):
    """`connection` has been wrapped without a handshake; TimeoutError and other OSErrors come from every call."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._tls = connection
        self._using = threading.Lock()
        self._writing = threading.Lock()
        self._deadline: float | None = None
        self._left: int | None = None
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a peer that is gone is noticed by silence
        for option, value in _KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def limit(self, seconds: float | None, size: int | None = None) -> None:
        """From now on: at most so many seconds for all waiting, and bytes to read; None: no end."""
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._left = size

    def handshake(self) -> None:
        self._until_done(self._tls.do_handshake)

    def certificate(self) -> bytes:
        """The other side's, in DER."""
        return self._tls.getpeercert(binary_form=True) or b""

    def subject(self) -> Subject:
        """Of the other side's certificate, after a handshake that has checked it."""
        shown: Any = self._tls.getpeercert() or {}
        said = dict(part for parts in shown.get("subject", ()) for part in parts)
        serial = int(shown.get("serialNumber", "0"), 16)
        return Subject(said.get("organizationName", ""), said.get("commonName", ""), serial)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        if self._left is not None:
            if not self._left:
                raise OSError("the other side sent more than it may")
            view = view[: self._left]
        count = self._until_done(lambda: self._tls.recv_into(view))
        if self._left is not None:
            self._left -= count
        return count

    def write(self, data: Any) -> int:
        """All of it, however long that takes."""
        view = memoryview(data)
        with self._writing:
            sent = 0
            while sent < len(view):
                part = view[sent : sent + _RECORD]
                sent += self._until_done(lambda part=part: self._tls.send(part))  # type: ignore[misc]
        return sent

    def shut(self) -> None:
        """End both directions; whoever reads or writes notices."""
        with suppress(OSError):
            # not SSLSocket's own, after which it would go on without encryption
            socket.socket.shutdown(self._tls, socket.SHUT_RDWR)

    def linger(self, seconds: float) -> None:
        """Say that all is said, and drop what the other side is still sending, or it may lose what we said last."""
        self.limit(seconds)
        with suppress(OSError, ValueError):
            socket.socket.shutdown(self._tls, socket.SHUT_WR)
            while self.read(_RECORD):
                pass

    def drain(self, seconds: float) -> None:
        """As `linger`, after a handshake that failed: else the other side may lose the alert that says why."""
        self.limit(seconds)
        with suppress(OSError, ValueError):
            socket.socket.shutdown(self._tls, socket.SHUT_WR)
            while self._until_done(self._receive_raw):
                pass

    def _receive_raw(self) -> bytes:
        try:
            return socket.socket.recv(self._tls, _RECORD)
        except BlockingIOError as error:
            raise ssl.SSLWantReadError from error

    def close(self) -> None:
        if not self.closed:
            self.shut()
            self._tls.close()
        super().close()

    def fileno(self) -> int:
        return self._tls.fileno()

    def _until_done(self, step: Callable[[], T]) -> T:
        while True:
            with self._using:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    event = select.POLLIN
                except ssl.SSLWantWriteError:
                    event = select.POLLOUT
            self._wait(event)

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._tls, event)
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if not poll.poll(None if left is None else left * 1000):
            raise TimeoutError("timed out")
