"""Traffic between two namespaces: a bulk of TCP, and single bytes to and fro.

Owns: both ends, each a process of its own (`python -m bench.traffic`), so that
neither waits for the other's interpreter. A client prints its figure: bytes per
second as the server counted them, or the median seconds of one exchange.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable

from podlane.errors import PodlaneError
from podlane.lab.network import within
from podlane.runtime.command import run

PORT = 5201
CHUNK = 1 << 20
_TOTAL = struct.Struct("!Qd")
_TIMEOUT = 10.0


class TrafficError(PodlaneError):
    """An end could not be started, or did not reach the other."""


# --- the ends ---------------------------------------------------------------------


def take_bulk(connection: socket.socket) -> None:
    """Read to the end, then tell how much came in how long."""
    buffer = bytearray(CHUNK)
    total = connection.recv_into(buffer)
    begin = time.perf_counter()
    while size := connection.recv_into(buffer):
        total += size
    connection.sendall(_TOTAL.pack(total, time.perf_counter() - begin))


def send_bulk(connection: socket.socket, seconds: float) -> float:
    """Send for `seconds`; returns bytes per second by the other end's count."""
    data = bytes(CHUNK)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    total, taken = _TOTAL.unpack(connection.recv(_TOTAL.size, socket.MSG_WAITALL))
    return float(total / taken)


def echo(connection: socket.socket) -> None:
    """Send every byte back."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(1):
        connection.sendall(data)


def exchange(connection: socket.socket, count: float) -> float:
    """Send a byte and wait for it, `count` times; returns the median seconds."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    samples = []
    for _ in range(int(count)):
        begin = time.perf_counter()
        connection.sendall(b"x")
        connection.recv(1)
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


_SERVERS: dict[str, Callable[[socket.socket], None]] = {"bulk": take_bulk, "exchange": echo}
_CLIENTS: dict[str, Callable[[socket.socket, float], float]] = {"bulk": send_bulk, "exchange": exchange}


def pin(end: int) -> None:
    """Keep this end on a core of its own: together on one they exchange a byte five times as fast, at times."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[end % len(cores)]})


def main(argv: list[str]) -> None:
    """`serve KIND` or `connect KIND ADDRESS AMOUNT`. A server takes one connection."""
    if "exchange" in argv:
        pin(argv[0] == "serve")
    match argv:
        case ["serve", kind]:
            with socket.create_server(("", PORT), reuse_port=True) as server:
                server.settimeout(_TIMEOUT)
                print("listening", flush=True)
                with server.accept()[0] as connection:
                    connection.settimeout(None)
                    _SERVERS[kind](connection)
        case ["connect", kind, address, amount]:
            with socket.create_connection((address, PORT), _TIMEOUT) as connection:
                connection.settimeout(None)
                print(_CLIENTS[kind](connection, float(amount)))
        case _:
            sys.exit("usage: serve KIND | connect KIND ADDRESS AMOUNT")


# --- one measurement -----------------------------------------------------------------


def measure(kind: str, client: str, server: str, address: str, amount: float) -> float:
    """One connection from namespace `client` to `address` in namespace `server`; `amount`: seconds or exchanges."""
    command = [sys.executable, "-m", "bench.traffic"]
    taker = subprocess.Popen(
        within(server, [*command, "serve", kind]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert taker.stdout is not None
        if not taker.stdout.readline():
            raise TrafficError(f"serve {kind} in {server}: {taker.communicate(timeout=5)[1].strip()}")
        said = run(within(client, [*command, "connect", kind, address, str(amount)]), timeout=120).stdout
    finally:
        taker.kill()
        taker.communicate()
    return float(said)


if __name__ == "__main__":
    main(sys.argv[1:])
