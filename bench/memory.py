"""What the daemons take up: resident memory, with 30 pods and one service on three hosts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable

from bench.lab import bench_lab
from bench.pods import apply, controller, service
from bench.rows import Benchmark, Declared, Measured, Progress
from podlane.lab.cluster import DaemonStatus

PODS = 30
NODE_DAEMONS = ("netd", "proxyd", "agent")
SERVER_DAEMONS = ("etcd", "scheduler")
PEER_DAEMONS = ("dockerd",)


def _sums(states: list[DaemonStatus], daemons: tuple[str, ...]) -> list[float]:
    """Bytes by host, for hosts that have any of the daemons."""
    hosts = sorted({s.host for s in states if s.daemon in daemons})
    return [float(sum(s.rss_bytes for s in states if s.host == h and s.daemon in daemons)) for h in hosts]


def measure(say: Progress) -> Iterable[Measured]:
    with bench_lab(say) as watched:
        apply(watched, controller("memory", PODS), service("memory"))

        def settled() -> bool:
            return len(watched.pods("memory")) == PODS == len(watched.ready_at)

        watched.wait("30 pods ready", settled)
        time.sleep(5)
        states = watched.lab.status()
        for state in states:
            say(f"{state.host} {state.daemon}: {state.rss_bytes / 1e6:.0f} MB")
        dockerd = statistics.median(_sums(states, PEER_DAEMONS))
        node = statistics.median(_sums(states, NODE_DAEMONS))
        yield Measured("memory.node", node, 1, "dockerd of the same host", dockerd)
        yield Measured("memory.server", statistics.median(_sums(states, SERVER_DAEMONS)), 1)


BENCHMARKS = (
    Benchmark(
        "memory",
        (
            Declared("memory.node", "bytes", "RSS of netd, proxyd and agent on one of three hosts", aim=180e6),
            Declared("memory.server", "bytes", "RSS of etcd and scheduler", aim=300e6),
        ),
        measure,
    ),
)
