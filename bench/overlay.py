"""What pods on two hosts get out of the network, beside what their hosts get out of the underlay.

Both ends of everything are on this machine and share its cores, so the figures
are for what the packets cost the CPU and not for a wire: the ratio is what
encapsulation and a pod's own link take of it. It may be above 1: what comes out
of a VXLAN device has been through GRO, what comes out of a veth pair has not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bench.hosts import BenchHostsError, Hosts, bench_hosts
from bench.netd_leases import write_config
from bench.rows import Benchmark, Declared, Measured, Progress
from bench.traffic import measure as traffic
from podlane.api.subnets import SubnetFile
from podlane.lab.topology import Host
from podlane.runtime.command import run

ROUNDS = 9
SECONDS = 1.5
EXCHANGES = 5000
A_LOT = 100_000_000  # bytes; far less than a run sends
DEVICE = "flannel.1"
PEER = "the bare underlay, host to host"


@dataclass(frozen=True, slots=True)
class End:
    """A host, and the pod on it."""

    host: str
    address: str
    pod: str
    pod_address: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two of them, joined by netd."""

    client: End
    server: End

    def overlay(self, kind: str, amount: float) -> float:
        return traffic(kind, self.client.pod, self.server.pod, self.server.pod_address, amount)

    def encapsulated(self) -> int:
        """Bytes the client's host has sent through its VXLAN device."""
        shown = run(["ip", "-n", self.client.host, "-j", "-s", "link", "show", DEVICE], timeout=10).stdout
        return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])

    def underlay(self, kind: str, amount: float) -> float:
        return traffic(kind, self.client.host, self.server.host, self.server.address, amount)


@contextmanager
def pair(backend: Mapping[str, object] | None = None) -> Iterator[Pair]:
    """Two hosts with netd and a pod each, ready."""
    with bench_hosts(2) as hosts:
        write_config(hosts.store, backend)
        started = [(host, hosts.start_netd(host)) for host in hosts.nodes]
        for host, netd in started:
            hosts.wait(netd, "netd ready", partial(hosts.is_ready, host))
        yield Pair(*(_pod(hosts, host) for host, _ in started))


def _pod(hosts: Hosts, host: Host) -> End:
    """What Docker does with the subnet file: a gateway on the host, the pod behind it."""
    file = SubnetFile.parse(hosts.subnet_file(host).read_text())
    netns, pod = hosts.netns(host), hosts.topology.netns(f"{host.name}pod")
    assert file.subnets.v4 is not None
    address, length = file.gateway + 1, file.subnets.v4.prefixlen
    run(["ip", "netns", "add", pod], timeout=10)
    on_host = f"link add pod0 mtu {file.mtu} type veth peer name eth0 netns {pod} mtu {file.mtu}\n"
    on_host += f"address add {file.gateway}/{length} dev pod0\nlink set pod0 up\n"
    in_pod = f"address add {address}/{length} dev eth0\nlink set eth0 up\nroute add default via {file.gateway}\n"
    run(["ip", "-n", netns, "-batch", "-"], input=on_host, timeout=10)
    run(["ip", "-n", pod, "-batch", "-"], input=in_pod, timeout=10)
    return End(netns, host.address, pod, str(address))


def compare(name: str, kind: str, amount: float, there: Pair, say: Progress) -> Measured:
    """By turns, so that whatever else the machine does hits both."""
    ours, theirs = [], []
    for turn in range(ROUNDS):
        ours.append(there.overlay(kind, amount))
        theirs.append(there.underlay(kind, amount))
        say(f"{name} round {turn + 1} of {ROUNDS}: {ours[-1]:.4g}, underlay {theirs[-1]:.4g}")
    return Measured.median(name, ours, peer=PEER, peer_samples=theirs)


def measure_vxlan(say: Progress) -> Iterator[Measured]:
    with pair() as there:
        before = there.encapsulated()
        yield compare("overlay.throughput", "bulk", SECONDS, there, say)
        yield compare("overlay.latency_p50", "exchange", EXCHANGES, there, say)
        if there.encapsulated() - before < A_LOT:
            raise BenchHostsError(f"send through {DEVICE}: the packets took another way")


def measure_direct(say: Progress) -> Iterator[Measured]:
    with pair({"DirectRouting": True}) as there:
        before = there.encapsulated()
        yield compare("overlay.direct_throughput", "bulk", SECONDS, there, say)
        if there.encapsulated() - before > A_LOT:
            raise BenchHostsError(f"send past {DEVICE}: the packets went through it")


BENCHMARKS = (
    Benchmark(
        "overlay",
        (
            Declared("overlay.throughput", "bytes per second", "TCP between pods of two hosts, through VXLAN"),
            Declared("overlay.latency_p50", "seconds", "one byte to and fro over TCP between pods, through VXLAN"),
        ),
        measure_vxlan,
    ),
    Benchmark(
        "overlay",
        (
            Declared(
                "overlay.direct_throughput", "bytes per second", "TCP between pods of two hosts, with DirectRouting"
            ),
        ),
        measure_direct,
    ),
)
