"""What the daemon itself takes up: `proxyd run` on an etcd with 10,000 services and slices as Kubernetes writes them.

The process is the lab's: the same command line, its own namespace, a real etcd
on the underlay. Nothing changes in etcd while it is looked at; what is left of
CPU is keeping watches open, looking at the kernel, and the resyncs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from bench.hosts import Hosts, bench_hosts, cpu_seconds
from bench.netd_leases import commit, write_config
from bench.proxyd_objects import POD_NETWORK, cluster_ip, documents, pod_addresses
from bench.proxyd_world import check
from bench.rows import Benchmark, Declared, Measured, Progress
from podlane.lab import network, process
from podlane.lab.topology import Host
from podlane.store.interface import Put

SERVICES, EACH = 10_000, 5
STARTS, IDLES = 3, 3
IDLE = 60.0  # seconds of each sample: two resyncs
READY_TIMEOUT = 120.0
OPTIONS = (f"--cluster-cidr={POD_NETWORK}", "--node-name=node-0")


def measure(say: Progress) -> Iterator[Measured]:
    with bench_hosts(1) as hosts:
        write_config(hosts.store)
        begin = time.monotonic()
        commit(hosts.store, [Put(key, value) for key, value in documents(SERVICES, EACH)])
        say(f"{SERVICES:,} services are in etcd after {time.monotonic() - begin:.1f} s")
        host = hosts.nodes[0]
        memory, peaks, starts = [], [], []
        shares: list[float] = []
        for turn in range(STARTS):
            hosts.renew(host)
            begin = time.monotonic()
            proxyd = hosts.start_proxyd(host, *OPTIONS)
            ready = hosts.wait(proxyd, "proxyd ready", lambda: hosts.is_ready(host, "proxyd"), READY_TIMEOUT)
            starts.append(ready - begin)
            if not turn:
                _check(hosts, host)
                shares = _idle(proxyd, say)
            else:
                time.sleep(IDLE / 2)
            memory.append(float(process.rss_bytes(proxyd.pid)))
            peaks.append(float(_peak(proxyd.pid)))
            sizes = f"{memory[-1] / 1e6:.0f} MB, peak {peaks[-1] / 1e6:.0f} MB"
            say(f"start {turn + 1} of {STARTS}: ready after {starts[-1]:.1f} s, {sizes}")
            hosts.end(proxyd)
        yield Measured.median("proxyd.rss_10000x5", memory)
        yield Measured.median("proxyd.peak_rss_10000x5", peaks)
        yield Measured.median("proxyd.start_10000x5", starts)
        yield Measured.median("proxyd.idle_cpu_10000x5", shares)


def _check(hosts: Hosts, host: Host) -> None:
    """That it does the work, and is not small because it does not."""
    with network.inside(hosts.netns(host)):
        check((cluster_ip(n) for n in range(SERVICES)), "after proxyd's start")
        check((address for n in range(SERVICES) for address in pod_addresses(n, EACH)), "after proxyd's start")


def _idle(proxyd: process.Record, say: Progress) -> list[float]:
    """Shares of one core."""
    time.sleep(5)
    shares = []
    for _ in range(IDLES):
        begin, used = time.monotonic(), cpu_seconds(proxyd.pid)
        time.sleep(IDLE)
        shares.append((cpu_seconds(proxyd.pid) - used) / (time.monotonic() - begin))
    say("idle: " + ", ".join(f"{share:.2%}" for share in shares) + f" of a core, in {IDLE:.0f} s each")
    return shares


def _peak(pid: int) -> int:
    """Bytes of the highest resident memory so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


BENCHMARKS = (
    Benchmark(
        "proxyd",
        (
            Declared("proxyd.rss_10000x5", "bytes", "RSS of proxyd with 10,000 services × 5 endpoints", aim=150e6),
            Declared("proxyd.peak_rss_10000x5", "bytes", "the most it ever took, which is at its start"),
            Declared("proxyd.start_10000x5", "seconds", "proxyd's start to ready: read etcd, write the kernel"),
            Declared("proxyd.idle_cpu_10000x5", "share", "of one core, while nothing changes", aim=0.01),
        ),
        measure,
    ),
)
