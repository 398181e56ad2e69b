"""A lab of three hosts for a benchmark, seen from its underlay.

Owns: making the lab, and removing it whatever happens. The benchmark's process
moves into the lab's underlay for the time, so that it can watch the store with
one connection and stamp what it sees with one clock.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.rows import Progress
from podlane.api.meta import is_pod_ready
from podlane.api.types import Node, Pod
from podlane.errors import PodlaneError
from podlane.lab import network
from podlane.lab.cluster import Lab
from podlane.lab.topology import Host, Topology
from podlane.runtime.clock import SystemClock
from podlane.runtime.log import configure
from podlane.store.config import connect
from podlane.store.mirror import Mirror
from podlane.store.registry import Registry


class BenchLabError(PodlaneError):
    """The lab did not do what a measurement waited for."""


@dataclass(frozen=True, slots=True)
class Ready:
    """When a pod was first seen ready, on the monotonic clock, and where."""

    at: float
    node: str
    ip: str


class Watched:
    """The lab, with the moment each pod was first seen ready (by uid)."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.topology = lab.topology
        self.nodes: list[Host] = [h for h in lab.topology.hosts if h.role == "node"]
        self.store = connect(lab.topology.store_config())
        self.registry = Registry(self.store, clock=SystemClock())
        self.ready_at: dict[str, Ready] = {}
        self._changed = threading.Condition()
        self._mirror: Mirror[Pod] = self.registry.mirror(Pod, self._note)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._mirror.run, args=(self._stop,), daemon=True)

    def __enter__(self) -> Watched:
        self._thread.start()
        if not self._mirror.wait_synced(10):
            raise BenchLabError("no list of pods after 10 s")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        self.store.close()

    def _note(self) -> None:
        now = time.monotonic()
        with self._changed:
            for pod in self._mirror.snapshot().values():
                uid = pod.metadata.uid
                if uid not in self.ready_at and is_pod_ready(pod):
                    self.ready_at[uid] = Ready(now, pod.spec.node_name, pod.status.pod_ip)
            self._changed.notify_all()

    def pods(self, app: str) -> list[Pod]:
        """Pods labelled app=`app`, as last seen."""
        return [p for p in self._mirror.snapshot().values() if p.metadata.labels.get("app") == app]

    def wait(self, what: str, done: Callable[[], bool], timeout: float = 90.0) -> float:
        """Wait for a change that makes `done` true; returns the monotonic time of it."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not done():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise BenchLabError(f"{what}: not so after {timeout:.0f} s")
                self._changed.wait(min(left, 0.2))
            return time.monotonic()

    def node_ready(self, host: Host) -> bool:
        node = self.registry.get(Node, "", host.name)
        return any(c.type == "Ready" and c.status == "True" for c in node.status.conditions)


@contextmanager
def bench_lab(say: Progress, nodes: int = 3) -> Iterator[Watched]:
    """A lab of its own, removed at the end. The calling process is in its underlay meanwhile."""
    configure("error")  # what the mirror logs would stand between the rows
    topology = Topology(f"bench{os.getpid() % 10000}", nodes=nodes)
    lab = Lab(topology, say)
    try:
        lab.up()
        with network.inside(topology.underlay), Watched(lab) as watched:
            yield watched
    finally:
        lab.down()
