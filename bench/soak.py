"""The soak: a real lab under random faults, looked at after every step.

`./appliance bench soak --minutes 10`. Owns: the run. Each step breaks one or
two things (soak_faults.py), holds that, makes them whole, and waits until
everything is as it must be (soak_seen.py) twice in a row; what is still wrong
after PATIENCE is a violation, and so is at any moment a pod that is bound
twice or an address that two live pods have. The seed is printed: with it, the
same faults are drawn again. Not a benchmark row: it takes minutes by purpose.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace

import click
import msgspec

from bench.pods import controller, service
from bench.soak_faults import Done, Faults, draw
from bench.soak_seen import Seen, observe, shared_addresses, violations
from podlane.api.codec import DecodeError, decode
from podlane.api.types import Pod
from podlane.errors import PodlaneError
from podlane.lab import network, process
from podlane.lab.cluster import Lab, load
from podlane.lab.topology import Topology
from podlane.runtime.clock import SystemClock
from podlane.runtime.log import configure
from podlane.store import keys
from podlane.store.config import connect
from podlane.store.interface import Compacted
from podlane.store.registry import Registry

PATIENCE = 330.0
"""Seconds after a fault is undone within which the cluster must be quiet: a container that was killed again and again
waits up to five minutes for its next start.
"""
LOOK = 1.0
TELL = 20.0
"""Seconds between lines that say what is waited for."""
APPS = {"web": 6, "api": 4, "jobs": 3}
"""Controllers and their replicas at first; all but the last have a service."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Step:
    """What was done, and how many seconds after it was undone the cluster was quiet (None: never)."""

    kinds: tuple[str, ...]
    what: str
    quiet: float | None
    violations: tuple[str, ...] = ()


@dataclass(slots=True)
class Result:
    seed: int
    seconds: float = 0.0
    steps: list[Step] = field(default_factory=list)
    unsafe: list[str] = field(default_factory=list)
    long_leases: int = 0

    @property
    def violations(self) -> list[str]:
        late = [f"step {n}: {text}" for n, step in enumerate(self.steps, 1) for text in step.violations]
        return [*self.unsafe, *late]


class Guard:
    """Follows every pod: none may be bound to two nodes, and no two live ones may have one address, ever."""

    def __init__(self, registry: Registry, say: Say) -> None:
        self._registry = registry
        self._say = say
        self._bound: dict[str, str] = {}
        self._pods: dict[str, Pod] = {}
        self._revision = 0
        self.found: list[str] = []

    def run(self, stop: threading.Event) -> None:
        prefix = keys.prefix_for(Pod)
        while not stop.is_set():
            try:
                if not self._revision:
                    listing = self._registry.list(Pod)
                    self._pods = {p.metadata.name: p for p in listing.items}
                    self._revision = listing.revision
                with self._registry.store.watch(prefix, start_revision=self._revision) as watch:
                    while not stop.is_set():
                        batch = watch.next(0.5)
                        for event in batch.events if batch else ():
                            self._take(event.kv.key, event.kv.value if event.type == "put" else None)
                        if batch and batch.events:
                            self._revision = batch.revision
                            self._tell(shared_addresses(self._pods.values()))
            except Compacted:
                self._revision = 0
            except PodlaneError:
                stop.wait(0.3)

    def _take(self, key: str, value: bytes | None) -> None:
        name = key.rpartition("/")[2]
        if value is None:
            self._pods.pop(name, None)
            return
        with suppress(DecodeError):
            pod = self._pods[name] = decode(Pod, value)
            node = pod.spec.node_name
            before = self._bound.setdefault(pod.metadata.uid, node) if node else node
            if before != node:
                self._tell([f"pod {name} was bound to {before} and is bound to {node}"])

    def _tell(self, texts: list[str]) -> None:
        for text in texts:
            if text not in self.found:
                self.found.append(text)
                self._say(f"VIOLATION {text}")


class Soak:
    """One run on a lab that is up. The calling thread is in its underlay."""

    def __init__(self, lab: Lab, seed: int, say: Say) -> None:
        self.lab = lab
        self.result = Result(seed)
        self._rng = random.Random(seed)
        self._say = say
        self._begin = time.monotonic()
        self.registry = Registry(connect(lab.topology.store_config()), clock=SystemClock())
        self._faults = Faults(lab, self.registry)
        self._stop = threading.Event()
        self._guard = Guard(self.registry, self._tell)

    def run(self, minutes: float) -> Result:
        """Go on until the time is over; the last step is finished."""
        guard = threading.Thread(target=self._guard.run, args=(self._stop,), daemon=True)
        guard.start()
        with closing(self.registry.store):
            try:
                self._settle("at first", self._start())
                while time.monotonic() < self._begin + 60 * minutes:
                    self._step()
                self._settle("all deleted", self._end(), nothing_left=True)
            finally:
                self._stop.set()
                guard.join(5)
        self.result.unsafe = self._guard.found
        self.result.seconds = time.monotonic() - self._begin
        return self.result

    def _start(self) -> Step:
        for name, replicas in APPS.items():
            self._apply(controller(name, replicas))
            if name != "jobs":
                self._apply(service(name))
        return Step(("start",), "three controllers, two services", None)

    def _end(self) -> Step:
        for name in APPS:
            self.lab.podlane("delete", "rc", name)
            self.lab.podlane("delete", "service", name, "--ignore-not-found")
        return Step(("end",), "all of them", None)

    def _apply(self, obj: dict[str, object]) -> None:
        file = self.lab.topology.run_dir / "soak.json"
        file.write_bytes(msgspec.json.encode(obj))
        self.lab.podlane("apply", "-f", str(file))

    def _step(self) -> None:
        made: list[Done] = []
        for drawn in draw(self._rng):
            try:
                made.append(self._faults.make(drawn))
            except PodlaneError as error:
                self._tell(f"{drawn.kind} not done: {str(error).splitlines()[0]}")
        if not made:
            return
        what = "; ".join(f"{done.kind}: {done.what}" + (f" for {done.hold} s" if done.hold else "") for done in made)
        self._tell(what)
        begin = time.monotonic()
        for done in sorted(made, key=lambda done: done.hold):
            time.sleep(max(0.0, begin + done.hold - time.monotonic()))
            done.undo()
        self._settle(what, Step(tuple(done.kind for done in made), what, None))

    def _settle(self, what: str, step: Step, *, nothing_left: bool = False) -> None:
        """Wait until all is well twice in a row; note how long it took, or what is wrong."""
        begin = time.monotonic()
        told = begin
        well_since: float | None = None
        wrong: list[str] = []
        while time.monotonic() < begin + PATIENCE:
            moment = time.monotonic()
            wrong = self._look(nothing_left=nothing_left)
            if wrong:
                well_since = None
                if moment > told + TELL:
                    told = moment
                    self._tell(
                        f"  not yet: {'; '.join(wrong[:3])}" + (f" and {len(wrong) - 3} more" if wrong[3:] else "")
                    )
            elif well_since is None:
                well_since = moment
            else:
                self.result.steps.append(replace(step, quiet=well_since - begin))
                self._tell(f"  quiet after {well_since - begin:.1f} s")
                return
            time.sleep(LOOK)
        self.result.steps.append(replace(step, violations=tuple(wrong)))
        for text in wrong:
            self._tell(f"VIOLATION after {what}: {text}")

    def _supervise(self) -> None:
        """Start a dockerd that gave up, as its unit would: it does when its containerd is slow to come back."""
        for host in self.lab.topology.hosts:
            record = self.lab.record(host, "dockerd") if host.role == "node" else None
            if record is not None and not process.alive(record):
                self._tell(f"  dockerd of {host.name} has ended by itself: started again")
                self.lab.start(host, "dockerd", wait=False)

    def _look(self, *, nothing_left: bool) -> list[str]:
        try:
            self._supervise()
            seen = observe(self.lab, self.registry)
        except PodlaneError as error:
            return [f"cannot look: {str(error).splitlines()[0]}"]
        self.result.long_leases = sum(lease.granted > 60 for lease in seen.leases)
        return violations(seen) + (_left(seen) if nothing_left else [])

    def _tell(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._begin:7.1f} s  {text}")


def _left(seen: Seen) -> list[str]:
    """What is there of pods and services though all were deleted."""
    left = [f"pod {p.metadata.name} is left" for p in seen.pods]
    left += [f"service {s.metadata.name} is left" for s in seen.services]
    left += [f"{name}: {len(host.boxes)} containers are left" for name, host in seen.hosts.items() if host.boxes]
    return left


# --- the report ------------------------------------------------------------------------------


def table(result: Result) -> str:
    """Steps by kind, and how long it took until the cluster was quiet."""
    times: dict[str, list[float]] = {}
    counts: Counter[str] = Counter()
    for step in result.steps:
        for kind in step.kinds:
            counts[kind] += 1
            times.setdefault(kind, [])
            if step.quiet is not None:
                times[kind].append(step.quiet)
    every = [step.quiet for step in result.steps if step.quiet is not None]
    lines = [f"{'KIND':<18}{'STEPS':>6}{'QUIET MEDIAN':>14}{'WORST':>9}"]
    lines += [_line(kind, counts[kind], times[kind]) for kind in sorted(counts)]
    lines.append(_line("all", len(result.steps), every))
    lines.append("")
    lines.append(
        f"seed {result.seed}, {result.seconds:.0f} s, {len(result.violations)} violations, "
        f"{result.long_leases} leases of events and mirrors that run out by themselves"
    )
    lines += [f"VIOLATION {text}" for text in result.violations]
    return "\n".join(lines)


def _line(kind: str, count: int, seconds: list[float]) -> str:
    if not seconds:
        return f"{kind:<18}{count:>6}{'-':>14}{'-':>9}"
    return f"{kind:<18}{count:>6}{statistics.median(seconds):>12.1f} s{max(seconds):>7.1f} s"


@click.command("soak")
@click.option("--minutes", type=click.FloatRange(min=0), default=10.0, show_default=True, help="How long.")
@click.option("--seed", type=int, help="Draw the faults of an earlier run again.  [default: another each time]")
@click.option("--hosts", type=click.IntRange(2, 8), default=3, show_default=True, help="Hosts that run pods.")
@click.option("--lab", "name", help="Use this lab, which is up, and leave it.  [default: one of its own]")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def main(minutes: float, seed: int | None, hosts: int, name: str | None, output: str) -> None:
    """Break things at random in a lab and see that all is as it must be after every step.

    Three etcd members, two schedulers. Exit code 1 if anything was not; progress goes to standard error.
    """
    configure("error")

    def say(text: str) -> None:
        click.echo(f"soak: {text}", err=True)

    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    say(f"seed {seed}, {minutes:g} minutes")
    try:
        result = _run(name, minutes, seed, hosts, say)
    except PodlaneError as error:
        say(str(error))
        sys.exit(1)
    click.echo(msgspec.json.encode(asdict(result)) if output == "json" else table(result))
    sys.exit(1 if result.violations else 0)


def _run(name: str | None, minutes: float, seed: int, hosts: int, say: Say) -> Result:
    if name is not None:
        lab = Lab(load(name))
        with network.inside(lab.topology.underlay):
            return Soak(lab, seed, say).run(minutes)
    lab = Lab(Topology(f"soak{os.getpid() % 10000}", nodes=hosts, servers=3, schedulers=2), say)
    try:
        lab.up()
        with network.inside(lab.topology.underlay):
            return Soak(lab, seed, say).run(minutes)
    finally:
        lab.down()


if __name__ == "__main__":
    main(prog_name="soak")
