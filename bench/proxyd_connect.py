"""What a new connection through a service costs the packets, with 10,000 services in the kernel.

    client ── router with podlane's table ────── server, at every pod's address
    client ── router with kube-proxy's shape ─── server, the same

Both lines are alike but for the table. The peer of each is a connection to a
pod through the same router: it passes the same hooks and the same conntrack,
and is not translated. One process measures all four ways by turns (see
connecting.py); services and pods are taken at random from all there are, so
that a look-up is seldom in a cache.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import msgspec

from bench.connecting import Slice, Way, listener
from bench.proxyd_objects import PORT, TARGET_PORT, Objects, objects
from bench.proxyd_world import BenchProxydError, KubeProxyShaped, Synced
from bench.rows import Benchmark, Declared, Measured, Progress
from podlane.lab import network
from podlane.runtime.command import run
from podlane.runtime.log import configure

SERVICES, EACH = 10_000, 5
ROUNDS, SECONDS = 150, 0.1
PODS = "10.128.0.0/10"  # what objects() uses of the pod network; the lines' own addresses are outside
LEFT, RIGHT = "10.250.0", "10.251.0"  # the router's two sides, in the pod network, so nothing is masqueraded
DIRECT = "to a pod, through the same router"


@dataclass(frozen=True, slots=True)
class Line:
    """Three namespaces in a row."""

    name: str

    def netns(self, place: str) -> str:
        return f"plline-{os.getpid()}-{self.name}-{place}"

    @property
    def router(self) -> str:
        return self.netns("router")

    def build(self) -> None:
        client, router, server = (self.netns(place) for place in ("client", "router", "server"))
        for ns in (client, router, server):
            run(["ip", "netns", "add", ns], timeout=10)
        batches = {
            router: f"link add left type veth peer name eth0 netns {client}\n"
            f"link add right type veth peer name eth0 netns {server}\n"
            f"address add {LEFT}.1/24 dev left\naddress add {RIGHT}.1/24 dev right\n"
            f"link set lo up\nlink set left up\nlink set right up\nroute add {PODS} via {RIGHT}.2\n",
            client: f"address add {LEFT}.2/24 dev eth0\nlink set lo up\nlink set eth0 up\n"
            f"route add default via {LEFT}.1\n",
            # any pod's address is the server's own
            server: f"address add {RIGHT}.2/24 dev eth0\nlink set lo up\nlink set eth0 up\n"
            f"route add default via {RIGHT}.1\nroute add local {PODS} dev lo\n",
        }
        for ns, batch in batches.items():
            run(["ip", "-n", ns, "-batch", "-"], input=batch, timeout=10)
        with network.inside(router):
            run(["sysctl", "-qw", "net.ipv4.ip_forward=1"], timeout=10)

    def tidy(self) -> None:
        """Forget closed connections soon: some 10,000 come each second. To be called when conntrack is in use."""
        with network.inside(self.router):
            run(["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_close=1"], timeout=10)

    def remove(self) -> None:
        for place in ("client", "router", "server"):
            run(["ip", "netns", "delete", self.netns(place)], timeout=60, check=False)

    def ways(self, some: Objects) -> dict[str, Way]:
        """Through the services, and to the pods."""
        client = self.netns("client")
        pods = (e.addresses[0] for each in some.slices for e in each.endpoints)
        return {
            f"{self.name} service": Way(client, tuple((s.spec.cluster_ip, PORT) for s in some.services)),
            f"{self.name} direct": Way(client, tuple((address, TARGET_PORT) for address in pods)),
        }


@contextmanager
def line(name: str) -> Iterator[Line]:
    made = Line(name)
    try:
        made.build()
        with network.inside(made.netns("server")):
            listening = listener(TARGET_PORT)
        with listening:
            yield made
    finally:
        made.remove()


def measure(say: Progress) -> Iterator[Measured]:
    configure("error")
    some = objects(SERVICES, EACH)
    with line("podlane") as ours, line("kube") as theirs, ExitStack() as stack:
        with network.inside(ours.router):
            proxy = stack.enter_context(closing(Synced(some)))
            proxy.sync()
        with network.inside(theirs.router):
            KubeProxyShaped(some).full_in_parts()
        for each in (ours, theirs):
            each.tidy()
        say(f"{SERVICES:,} services are in both; {ROUNDS} rounds of 4 × {SECONDS} s")
        slices = _connect(ours.ways(some) | theirs.ways(some))
    for way, some_slices in slices.items():
        failed = sum(s.failed for s in some_slices)
        say(f"{way}: {sum(s.connections for s in some_slices):,} connections, {failed} failed")
        if failed:
            raise BenchProxydError(f"connect {way}: {failed} connections failed")
    for name, kept in (("connect", "podlane"), ("kube_proxy_connect", "kube")):
        for what, figure in FIGURES.items():
            yield Measured.median(
                f"proxyd.{name}_{what}",
                [figure(s) for s in slices[f"{kept} service"]],
                peer=DIRECT,
                peer_samples=[figure(s) for s in slices[f"{kept} direct"]],
            )


FIGURES: dict[str, Callable[[Slice], float]] = {
    "p50": lambda s: s.p50,
    "p99": lambda s: s.p99,
    "rate": lambda s: s.rate,
}


def _connect(ways: dict[str, Way]) -> dict[str, list[Slice]]:
    argv = [sys.executable, "-m", "bench.connecting", "connect", str(ROUNDS), str(SECONDS)]
    text = msgspec.json.encode(ways).decode()
    printed = run(argv, input=text, timeout=60 + 2 * ROUNDS * SECONDS * len(ways)).stdout
    slices: dict[str, list[Slice]] = {way: [] for way in ways}
    for row in printed.splitlines():
        found = msgspec.json.decode(row, type=Slice)
        slices[found.way].append(found)
    return slices


def _rows(name: str, through: str) -> Sequence[Declared]:
    through = f"a new TCP connection through one of 10,000 services, {through}"
    return (
        Declared(f"proxyd.{name}_p50", "seconds", f"{through}: SYN to SYN-ACK, the median"),
        Declared(f"proxyd.{name}_p99", "seconds", f"{through}: SYN to SYN-ACK, 99 of 100"),
        Declared(f"proxyd.{name}_rate", "per second", f"{through}: how many one client makes"),
    )


BENCHMARKS = (
    Benchmark(
        "proxyd",
        (*_rows("connect", "Podlane's"), *_rows("kube_proxy_connect", "kube-proxy's shape")),
        measure,
    ),
)
