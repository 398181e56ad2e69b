"""Whether anybody notices: requests during scaling, deletions of pods, and deaths of daemons.

A real lab of three hosts. `wrk` on each of them sends requests to one service,
each over a new connection, while the pods behind it come and go and the nodes'
daemons are killed and started again. Pods end as pods should: they have a grace
period in which they go on serving. Only errors count here, not speed.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bench.lab import BenchLabError, Watched, bench_lab
from bench.pods import apply, controller, service
from bench.rows import Benchmark, Declared, Measured, Progress
from bench.wrk import Load, loading, together
from podlane.api.meta import is_pod_ready
from podlane.api.types import Pod, Service
from podlane.lab.traffic import ask_from

APP = "rollout"
AT_LEAST = 50_000  # requests
CONNECTIONS = 3  # of each host at a time: the lab image's server has nine waiting at most, and drops the SYN of a tenth
GRACE = 10  # seconds a pod has to end
BEFORE, AFTER = 1.0, 2.0  # seconds of load around each step
DEAD = 1.0  # seconds a killed daemon stays dead
DAEMONS = ("proxyd", "agent", "netd")
TIMEOUT = 120.0


@dataclass
class Rollout:
    """The lab, the service's address, and what the load of each step met."""

    watched: Watched
    say: Progress
    url: str = ""
    loads: dict[str, Load] = field(default_factory=dict)

    def begin(self) -> None:
        pods = controller(APP, 4)
        pods["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = GRACE  # type: ignore[index]
        apply(self.watched, pods, service(APP))
        self._settled(4)
        address = self.watched.registry.get(Service, "default", APP).spec.cluster_ip
        self.url = f"http://{address}/"
        for host in self.watched.nodes:
            netns = self.watched.topology.netns(host)
            self.watched.wait(
                f"{host.name} reaches all pods",
                lambda: len({a.backend for a in ask_from(netns, "", address, 80, count=40)} - {""}) == 4,  # noqa: B023
            )

    def under_load(self, name: str, step: Callable[[], None]) -> None:
        sources = {host.name: self.watched.topology.netns(host) for host in self.watched.nodes}
        with loading(sources, self.url, connections=CONNECTIONS) as running:
            time.sleep(BEFORE)
            step()
            time.sleep(AFTER)
        self.loads[name] = together(running.loads)
        self.say(f"{name}: {self.loads[name]}")

    # --- steps -----------------------------------------------------------------------

    def scale(self, count: int) -> None:
        self.watched.lab.podlane("scale", f"rc/{APP}", f"--replicas={count}")
        self._settled(count)

    def delete_each(self) -> None:
        for pod in self._ready():
            self.watched.lab.podlane("delete", "pod", pod.metadata.name)
            gone = pod.metadata.uid
            self.watched.wait(
                f"{pod.metadata.name} gone",
                lambda: all(p.metadata.uid != gone for p in self.watched.pods(APP)),  # noqa: B023
                TIMEOUT,
            )
            self._settled(4)

    def kill_each(self, daemon: str) -> None:
        for host in self.watched.nodes:
            self.watched.lab.kill(host, daemon, signal.SIGKILL)
            time.sleep(DEAD)
            self.watched.lab.start(host, daemon)

    def _ready(self) -> list[Pod]:
        return [p for p in self.watched.pods(APP) if is_pod_ready(p) and p.metadata.deletion_timestamp is None]

    def _settled(self, count: int) -> None:
        self.watched.wait(
            f"{count} pods ready and no other there",
            lambda: len(self._ready()) == count == len(self.watched.pods(APP)),
            TIMEOUT,
        )


def measure(say: Progress) -> Iterator[Measured]:
    with bench_lab(say) as watched:
        rollout = Rollout(watched, say)
        rollout.begin()
        turn = 0
        while not turn or sum(load.requests for load in rollout.loads.values()) < AT_LEAST:
            turn += 1
            _all_steps(rollout, turn)
            if turn > 10:
                raise BenchLabError(f"send {AT_LEAST:,} requests: not done after {turn} turns")
    total = together(rollout.loads)
    yield Measured("proxyd.requests_rollout", total.requests + total.failed, turn)
    yield Measured("proxyd.failed_requests_rollout", total.failed, turn)
    yield Measured("proxyd.slowest_request_rollout", total.slowest / 1e6, turn)


def _all_steps(rollout: Rollout, turn: int) -> None:
    for count in (8, 2, 4):
        rollout.under_load(f"turn {turn}: scale to {count}", lambda: rollout.scale(count))  # noqa: B023
    rollout.under_load(f"turn {turn}: delete four pods, one at a time", rollout.delete_each)
    for daemon in DAEMONS:
        rollout.under_load(f"turn {turn}: kill {daemon} on each host", lambda: rollout.kill_each(daemon))  # noqa: B023


BENCHMARKS = (
    Benchmark(
        "proxyd",
        (
            Declared("proxyd.requests_rollout", "count", "each over a new connection, while pods come and go"),
            Declared("proxyd.failed_requests_rollout", "count", "of these, how many were not answered", aim=0),
            Declared("proxyd.slowest_request_rollout", "seconds", "the longest any of these took"),
        ),
        measure,
    ),
)
