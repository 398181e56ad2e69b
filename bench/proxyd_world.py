"""proxyd's sync in a namespace of its own, fed from memory, and kube-proxy's shape in another.

Owns: both namespaces, removed whatever happens, and the stamps. Invariants: the
sync is the daemon's own (`Proxy` on the kernel), only its store is not etcd; a
time ends when the kernel has acknowledged the transaction; that the kernel then
has what was asked for is checked by `nft list`, which knows nothing of proxyd.
"""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count

from bench import kubeproxy_shape as shape
from bench.proxyd_objects import NAMESPACE, POD_NETWORK, SERVICE_RANGE, THIS_NODE, Objects
from podlane.api.types import EndpointSlice, Service
from podlane.errors import PodlaneError
from podlane.lab import network
from podlane.runtime.clock import SystemClock
from podlane.runtime.command import run
from podlane.runtime.log import configure
from proxyd.conntrack import KernelConntrack
from proxyd.host import KernelHost
from proxyd.nft import KernelNft
from proxyd.plane import RETIRE_AFTER
from proxyd.proxy import Proxy
from proxyd.source import View
from proxyd.tables import TABLE, Transaction

NFT_TIMEOUT = 600.0
PART = 1000  # ports
_serial = count(1)


class BenchProxydError(PodlaneError):
    """The kernel does not have what a measurement was about."""


class MemorySource:
    """A proxyd.source.Source of what was put in. Thread-safe, as the mirrors are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._services: dict[str, Service] = {}
        self._slices: dict[str, EndpointSlice] = {}
        self._changed: tuple[set[str], set[str]] = (set(), set())

    def put(self, *some: Service | EndpointSlice) -> None:
        with self._lock:
            for each in some:
                name = f"{NAMESPACE}/{each.metadata.name}"
                if isinstance(each, Service):
                    self._services[name] = each
                    self._changed[0].add(name)
                else:
                    self._slices[name] = each
                    self._changed[1].add(name)

    def drop(self, *some: Service | EndpointSlice) -> None:
        with self._lock:
            for each in some:
                name = f"{NAMESPACE}/{each.metadata.name}"
                if isinstance(each, Service):
                    del self._services[name]
                    self._changed[0].add(name)
                else:
                    del self._slices[name]
                    self._changed[1].add(name)

    def take(self, *, complete: bool) -> View:
        with self._lock:
            (services, slices), self._changed = self._changed, (set(), set())
            if complete:
                return View(True, dict(self._services), dict(self._slices), (POD_NETWORK,), (SERVICE_RANGE,))
            return View(
                False,
                {name: self._services.get(name) for name in services},
                {name: self._slices.get(name) for name in slices},
                (POD_NETWORK,),
                (SERVICE_RANGE,),
            )


class StampedNft(KernelNft):
    """The kernel, with the moment it acknowledged the last transaction and how many there were."""

    acknowledged = 0.0
    commits = 0

    def commit(self, transaction: Transaction) -> None:
        super().commit(transaction)
        self.acknowledged = time.perf_counter()
        self.commits += 1


class Synced:
    """One proxy on the calling thread's namespace."""

    def __init__(self, some: Objects) -> None:
        self.source, self.nft, self.conntrack = MemorySource(), StampedNft(), KernelConntrack()
        self.source.put(*some.services, *some.slices)
        self.proxy = Proxy(
            source=self.source,
            nft=self.nft,
            conntrack=self.conntrack,
            host=KernelHost(),
            node=THIS_NODE,
            clock=SystemClock(),
            trigger_after=lambda _: None,
        )

    def close(self) -> None:
        self.nft.close()
        self.conntrack.close()

    def sync(self, begin: float | None = None) -> float:
        """Sync; returns the seconds from `begin` (by default: now) to the kernel's last acknowledgement in it."""
        commits = self.nft.commits
        begin = time.perf_counter() if begin is None else begin
        self.proxy.sync()
        if self.nft.commits == commits:
            raise BenchProxydError("sync: wrote nothing")
        return self.nft.acknowledged - begin

    def settle(self) -> None:
        """Let what a change left for later be done."""
        time.sleep(RETIRE_AFTER + 0.02)
        self.proxy.sync()

    def put(self, *some: Service | EndpointSlice) -> float:
        """Hand over changed objects; returns the seconds to the kernel's acknowledgement."""
        begin = time.perf_counter()
        self.source.put(*some)
        return self.sync(begin)

    def drop(self, *some: Service | EndpointSlice) -> float:
        """Hand over deleted objects; the same."""
        begin = time.perf_counter()
        self.source.drop(*some)
        return self.sync(begin)

    def verify(self) -> float:
        """Compare everything with the kernel, as every 30 seconds; returns its seconds."""
        begin = time.perf_counter()
        self.proxy.verify()
        return time.perf_counter() - begin


@contextmanager
def namespace() -> Iterator[str]:
    """A fresh one, by name. The calling thread is in it meanwhile."""
    name = f"plproxy-{os.getpid()}-{next(_serial)}"
    run(["ip", "netns", "add", name], timeout=10)
    try:
        run(["ip", "-n", name, "link", "set", "lo", "up"], timeout=10)
        with network.inside(name):
            yield name
    finally:
        run(["ip", "netns", "delete", name], timeout=60)


@contextmanager
def synced(some: Objects) -> Iterator[tuple[Synced, float]]:
    """A proxy that has brought the objects into a fresh kernel, and the seconds that took."""
    configure("error")
    with namespace(), closing(Synced(some)) as proxy:
        gc.collect()
        yield proxy, proxy.sync()


def check(addresses: Iterable[str], what: str) -> None:
    """Raise BenchProxydError unless each of these is somewhere in podlane's table in the calling thread's namespace."""
    listed = run(["nft", "list", "table", "ip", TABLE], timeout=NFT_TIMEOUT).stdout
    missing = set(addresses) - set(re.findall(r"\d+\.\d+\.\d+\.\d+", listed))
    if missing:
        raise BenchProxydError(f"{what}: {len(missing)} addresses are not in the table, such as {min(missing)}")


class KubeProxyShaped:
    """The peer: the same services as kube-proxy would write them, in the calling thread's namespace."""

    def __init__(self, some: Objects) -> None:
        self.ports = [shape.ports(*pair)[0] for pair in zip(some.services, ([s] for s in some.slices), strict=True)]

    def load(self, script: str) -> float:
        """Returns the seconds nft took."""
        begin = time.perf_counter()
        run(["nft", "-f", "-"], input=script, timeout=NFT_TIMEOUT)
        return time.perf_counter() - begin

    def full(self) -> float:
        return self.load(shape.full(self.ports, pod_network=POD_NETWORK, service_range=SERVICE_RANGE))

    def full_in_parts(self) -> float:
        """Faster for the kernel than in one; see `parts`. Returns the sum of the seconds."""
        parts = shape.parts(self.ports, PART, pod_network=POD_NETWORK, service_range=SERVICE_RANGE)
        return sum(self.load(part) for part in parts)

    def change(self, changed: Sequence[tuple[int, shape.Port]]) -> float:
        """Bring in the new ports of these numbers; chains left over are deleted, which is not counted."""
        pairs = [(self.ports[number], port) for number, port in changed]
        seconds = self.load(shape.change(pairs, pod_network=POD_NETWORK, service_range=SERVICE_RANGE))
        self.load(
            shape.delete(
                chain for old, new in pairs for chain in old.endpoint_chains if chain not in new.endpoint_chains
            )
        )
        for number, port in changed:
            self.ports[number] = port
        return seconds

    def delete(self, number: int) -> float:
        """The same for a service that goes."""
        port = self.ports[number]
        seconds = self.load(shape.delete_service(port, service_range=SERVICE_RANGE))
        self.load(shape.delete((port.chain, *port.endpoint_chains)))
        return seconds

    def list(self) -> float:
        """Returns the seconds that listing the table takes."""
        begin = time.perf_counter()
        run(["nft", "list", "table", *shape.TABLE.split()], timeout=NFT_TIMEOUT)
        return time.perf_counter() - begin
