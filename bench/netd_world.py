"""A network of some thousand hosts, of which one is there and runs netd.

Owns: what the netd benchmarks have in common: the leases in etcd, netd started
on them, and the wait for its entries. The other hosts are leases and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench.hosts import Hosts, bench_hosts
from bench.netd_entries import EntriesError, Entry, EntryWatch
from bench.netd_leases import Peer, commit, entries_of, grant, puts, write_config
from podlane.lab import network, process
from podlane.lab.topology import Host

START_TIMEOUT = 60.0


@dataclass
class World:
    """The measured host, its peers' leases (in etcd already), and the watch on its kernel."""

    hosts: Hosts
    host: Host
    lease: int
    peers: tuple[Peer, ...]

    @contextmanager
    def watch(self) -> Iterator[EntryWatch]:
        with network.inside(self.hosts.netns(self.host)):
            watch = EntryWatch()
        with watch:
            yield watch

    def wait(
        self,
        watch: EntryWatch,
        netd: process.Record,
        what: str,
        wanted: Mapping[Entry, bytes | None],
        timeout: float = START_TIMEOUT,
    ) -> float:
        """See EntryWatch.wait. Raises BenchHostsError with the end of netd's log."""
        try:
            return watch.wait(wanted, timeout=timeout, going_on=lambda: process.alive(netd))
        except EntriesError as error:
            raise self.hosts.failed(netd, f"{what}: {error}") from error

    def write(self, some: Sequence[Peer]) -> None:
        commit(self.hosts.store, puts(some, self.lease))


@contextmanager
def world(peers: Sequence[Peer], backend: Mapping[str, object] | None = None) -> Iterator[World]:
    """The leases of these peers in etcd, and a host without netd."""
    with bench_hosts(1) as hosts:
        write_config(hosts.store, backend)
        there = World(hosts, hosts.nodes[0], grant(hosts.store), tuple(peers))
        there.write(there.peers)
        yield there


@contextmanager
def running(there: World, *options: str) -> Iterator[tuple[process.Record, EntryWatch]]:
    """A started netd that is ready and has programmed all peers, and the watch on its host."""
    with there.watch() as watch:
        netd = there.hosts.start_netd(there.host, *options)
        there.wait(watch, netd, "start netd", entries_of(there.peers))
        there.hosts.wait(netd, "netd ready", lambda: there.hosts.is_ready(there.host))
        yield netd, watch


def check_alive(there: World, netd: process.Record) -> None:
    """Raise BenchHostsError when netd ended: its figures would be those of nothing."""
    if not process.alive(netd):
        raise there.hosts.failed(netd, "measure netd")
