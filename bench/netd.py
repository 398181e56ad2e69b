"""How fast netd programs a network of 5,000 hosts, follows its changes, and what that costs.

For comparison, the real flanneld 0.28.9 on a machine with two cores and 5,000
leases, measured once and not here: 3.7 s from start to all entries with 1.55 s
of CPU and 45 MB; 1,000 more leases in ten transactions 0.74 s; a new lease seen
2 to 16 s (median 9) after an etcd outage.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from bench.hosts import cpu_seconds
from bench.netd_entries import Entry
from bench.netd_leases import commit, deletes, entries_of, forget_own, peers, puts
from bench.netd_world import World, check_alive, running, world
from bench.rows import Benchmark, Declared, Measured, Progress
from podlane.lab import process
from podlane.store.interface import Op

SCALE = 5000
MORE = 1000
START_ROUNDS = 5
CHANGE_ROUNDS = 7
RETURN_ROUNDS = 5
OUTAGE = 30.0  # seconds etcd is away: long enough for every pause between attempts to have grown
IDLE = 90.0  # seconds: three of the resyncs that look at everything
CHANGE_PAUSE = 2.0  # seconds in which netd comes to rest

# --- the start ------------------------------------------------------------------------


def measure_start(say: Progress) -> Iterator[Measured]:
    """On a host that never ran netd: from its process's start to the last entry, its own lease included."""
    samples: list[float] = []
    with world(peers(0, SCALE)) as there:
        for turn in range(START_ROUNDS):
            samples.append(_start(there, say))
            say(f"round {turn + 1} of {START_ROUNDS}: {samples[-1]:.2f} s")
    yield Measured.median("netd.cold_start_5000", samples)


def _start(there: World, say: Progress) -> float:
    forget_own(there.hosts.store, there.peers)
    there.hosts.renew(there.host)
    with there.watch() as watch:
        begin = time.monotonic()
        netd = there.hosts.start_netd(there.host)
        try:
            end = there.wait(watch, netd, "start netd", entries_of(there.peers))
            say(f"used {cpu_seconds(netd.pid):.2f} s of CPU")
        finally:
            there.hosts.end(netd)
    return end - begin


# --- at rest -----------------------------------------------------------------------------


def measure_rest(say: Progress) -> Iterator[Measured]:
    """Nothing changes: what netd still uses, the commands it runs included."""
    with world(peers(0, SCALE)) as there, running(there) as (netd, _):
        time.sleep(5)
        begin, used = time.monotonic(), cpu_seconds(netd.pid)
        time.sleep(IDLE)
        check_alive(there, netd)
        share = (cpu_seconds(netd.pid) - used) / (time.monotonic() - begin)
        say(f"{share * 100:.2f} % of a core over {IDLE:.0f} s")
        yield Measured("netd.idle_cpu_5000", share, 1)
        yield Measured("netd.rss_5000", float(process.rss_bytes(netd.pid)), 1)


# --- changes ---------------------------------------------------------------------------------


def measure_changes(say: Progress) -> Iterator[Measured]:
    """A thousand hosts come and go, in ten transactions each time."""
    more = peers(SCALE, MORE)
    added: list[float] = []
    removed: list[float] = []
    with world(peers(0, SCALE)) as there, running(there) as (netd, watch):
        wanted = entries_of(more)

        def change(what: str, ops: Sequence[Op], wanted: Mapping[Entry, bytes | None]) -> float:
            watch.forget()
            begin = commit(there.hosts.store, ops)
            return there.wait(watch, netd, what, wanted) - begin

        for turn in range(CHANGE_ROUNDS):
            time.sleep(CHANGE_PAUSE)
            added.append(change("add 1,000 peers", puts(more, there.lease), wanted))
            time.sleep(CHANGE_PAUSE)
            removed.append(change("remove 1,000 peers", deletes(more), dict.fromkeys(wanted)))
            say(f"round {turn + 1} of {CHANGE_ROUNDS}: added in {added[-1]:.3f} s, removed in {removed[-1]:.3f} s")
    yield Measured.median("netd.add_1000", added)
    yield Measured.median("netd.remove_1000", removed)


# --- an etcd that was away ---------------------------------------------------------------------


def measure_return(say: Progress) -> Iterator[Measured]:
    """From etcd answering again to a lease written at that moment being programmed."""
    samples: list[float] = []
    with world(peers(0, SCALE)) as there, running(there) as (netd, watch):
        for turn, late in enumerate(peers(SCALE, RETURN_ROUNDS)):
            there.hosts.stop_etcd()
            time.sleep(OUTAGE)
            watch.forget()
            there.hosts.start_etcd()
            begin = time.monotonic()
            there.hosts.put_at_once(late.key, late.value.encode())
            samples.append(there.wait(watch, netd, "follow after etcd's return", late.entries) - begin)
            say(f"round {turn + 1} of {RETURN_ROUNDS}: {samples[-1]:.2f} s")
    yield Measured.median("netd.etcd_return", samples)


BENCHMARKS = (
    Benchmark(
        "netd",
        (
            Declared(
                "netd.cold_start_5000",
                "seconds",
                "netd's start on a new host → the entries of 5,000 peers in the kernel",
                aim=1.0,
            ),
        ),
        measure_start,
    ),
    Benchmark(
        "netd",
        (
            Declared("netd.idle_cpu_5000", "share", "of one core, with 5,000 peers and nothing to do", aim=0.01),
            Declared("netd.rss_5000", "bytes", "RSS of that netd", aim=80e6),
        ),
        measure_rest,
    ),
    Benchmark(
        "netd",
        (
            Declared(
                "netd.add_1000", "seconds", "1,000 leases in ten transactions → all entries, beside 5,000", aim=0.15
            ),
            Declared("netd.remove_1000", "seconds", "1,000 leases deleted in ten transactions → no entries"),
        ),
        measure_changes,
    ),
    Benchmark(
        "netd",
        (
            Declared(
                "netd.etcd_return", "seconds", "etcd back after 30 s → a lease written then is programmed", aim=2.0
            ),
        ),
        measure_return,
    ),
)
