"""New TCP connections as fast as one core makes them, for the service proxy's data path benchmark.

Owns: a client in a tight loop on bare sockets, a process of its own (not `wrk`:
it cannot take another address for each connection), and the listener. One client
measures all ways by turns, a fraction of a second each, so that whatever else
the machine does hits all alike. A connection is timed from connect(2) to its
return, SYN to SYN-ACK; it ends with a reset, which leaves nobody in TIME_WAIT.
The listener waits for data before it bothers a process (TCP_DEFER_ACCEPT), and
none comes: so all the work is the kernels' own, and no server has to keep up.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
import time
from collections.abc import Sequence

import msgspec

from bench.machine import take_precedence
from bench.rows import percentile
from bench.traffic import pin
from podlane.lab.network import inside

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER for no time: close with a reset
_BACKLOG = 4096
_DEFER = 10  # seconds
_GIVE_UP = struct.pack("ll", 3, 0)  # SO_SNDTIMEO, which connect(2) heeds: seconds, microseconds

Addresses = Sequence[tuple[str, int]]


class Way(msgspec.Struct, frozen=True):
    """Connect from this namespace to any of these."""

    netns: str
    addresses: tuple[tuple[str, int], ...]


class Slice(msgspec.Struct, frozen=True):
    """What one way did in one turn: `p50` and `p99` in seconds, `rate` in connections a second."""

    way: str
    p50: float
    p99: float
    rate: float
    connections: int
    failed: int


def listener(port: int) -> socket.socket:
    """Takes connections at any address of the calling thread's namespace, and keeps them from ever being accepted."""
    made = socket.create_server(("", port), backlog=_BACKLOG)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER)
    return made


def connect(addresses: Addresses, duration: float, rng: random.Random) -> tuple[list[float], float, int]:
    """Connect to these in a random order for a while: (seconds of each, connections a second, failures)."""
    order = rng.sample(range(len(addresses)), len(addresses))
    clock = time.perf_counter
    seconds: list[float] = []
    failed, at = 0, 0
    begin = now = clock()
    while now - begin < duration:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _GIVE_UP)
        address = addresses[order[at % len(order)]]
        at += 1
        start = clock()
        try:
            made.connect(address)
            seconds.append(clock() - start)
        except OSError:
            failed += 1
        made.close()
        now = clock()
    return seconds, len(seconds) / (now - begin), failed


def turns(ways: dict[str, Way], rounds: int, duration: float) -> None:
    """Print a Slice a line: every way once a round, in an order that changes."""
    pin(0)
    take_precedence()
    rng = random.Random(0)
    out = sys.stdout.buffer
    for _ in range(rounds):
        for way in rng.sample(sorted(ways), len(ways)):
            with inside(ways[way].netns):
                seconds, rate, failed = connect(ways[way].addresses, duration, rng)
            p50, p99 = (percentile(seconds, percent) if seconds else 0.0 for percent in (50, 99))
            out.write(msgspec.json.encode(Slice(way, p50, p99, rate, len(seconds), failed)) + b"\n")
    out.flush()


def main(argv: list[str]) -> None:
    """`connect ROUNDS SECONDS` with the ways on standard input as JSON."""
    match argv:
        case ["connect", rounds, seconds]:
            ways = msgspec.json.decode(sys.stdin.buffer.read(), type=dict[str, Way])
            turns(ways, int(rounds), float(seconds))
        case _:
            sys.exit("usage: connect ROUNDS SECONDS < WAYS")


if __name__ == "__main__":
    main(sys.argv[1:])
