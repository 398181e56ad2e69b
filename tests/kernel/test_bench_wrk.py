"""What the load of the roll-out benchmark counts: a failure it does not see would be a promise kept by accident."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.wrk import Load, WrkError, loading
from tests.kernel.conftest import eventually, inside

pytestmark = pytest.mark.kernel

URL = "http://127.0.0.1:8080/"
ANSWER = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
SORRY = ANSWER.replace(b"200 OK", b"503 Sorry")


class Server:
    """Every tenth connection is left to `spoil`; `served` counts the connections."""

    def __init__(self, listener: socket.socket, spoil: Callable[[socket.socket], None] | None) -> None:
        self._listener, self._spoil = listener, spoil
        self.served = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            if select.select([self._listener], [], [], 0.1)[0]:
                made, _ = self._listener.accept()
                with made:
                    made.recv(1000)
                    self.served += 1
                    if self._spoil and self.served % 10 == 0:
                        self._spoil(made)
                    else:
                        made.sendall(ANSWER)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)


@contextmanager
def load(ns: Any, spoil: Callable[[socket.socket], None] | None = None, until: int = 200) -> Iterator[list[Load]]:
    """That many requests and some more to a server in the namespace; the list has what wrk saw after the block."""
    ns.run("ip link set lo up")
    with inside(ns):
        listener = socket.create_server(("127.0.0.1", 8080), backlog=100)
    server = Server(listener, spoil)
    sums: list[Load] = []
    try:
        with loading({"host": ns.name}, URL, connections=4, patience=1) as running:
            eventually(lambda: server.served >= until)
            yield sums
        sums.append(running.loads["host"])
    finally:
        server.close()
        listener.close()


def test_every_request_is_a_connection_and_none_failed(netns: Any) -> None:
    with load(netns.add("loaded")) as sums:
        pass
    assert sums[0].requests >= 190
    assert sums[0].failed == 0
    assert 0 < sums[0].slowest < 5e6


def reset(made: socket.socket) -> None:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize(
    ("spoil", "counted"),
    [(reset, "read"), (lambda _: None, "read"), (lambda made: made.sendall(SORRY), "status")],
    ids=["reset", "closed without an answer", "an error as the answer"],
)
def test_each_failure_is_counted(netns: Any, spoil: Callable[[socket.socket], None], counted: str) -> None:
    with load(netns.add("loaded"), spoil) as sums:
        pass
    assert getattr(sums[0], counted) == sums[0].failed
    assert sums[0].failed >= 15


def drop(ns: Any) -> None:
    ns.run(["nft", "-f", "-"], stdin=HOLE)


HOLE = "table ip hole { chain in { type filter hook input priority 0; tcp dport 8080 tcp flags syn / syn,ack drop; }; }"


@pytest.mark.parametrize("how", ["SYN", "answer"])
def test_what_is_never_answered_is_counted(netns: Any, how: str) -> None:
    """A lost SYN, as when conntrack remembers that nothing served; and a server that took the connection and died."""
    ns = netns.add("loaded")
    kept: list[socket.socket] = []
    spoil = None if how == "SYN" else lambda made: kept.append(made.dup())
    with load(ns, spoil, until=40) as sums:
        if how == "SYN":
            drop(ns)
    assert sums[0].hung == 4 == sums[0].failed
    for each in kept:
        each.close()


def test_a_server_that_is_not_there_is_no_load_of_zero_failures(netns: Any) -> None:
    ns = netns.add("loaded")
    ns.run("ip link set lo up")
    with pytest.raises(WrkError, match="unable to connect"), loading({"host": ns.name}, URL, connections=2, patience=1):
        pass
