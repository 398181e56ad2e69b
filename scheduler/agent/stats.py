"""What the node and its pods use, read from the kernel's control groups.

Owns: usage of CPU over a short window and the working set of memory, as `GET /stats`
answers. Invariants: nothing is measured while nobody asks; many who ask at once
share one measurement; a container that ends in between is left out. Not the
engine's own statistics, which cost dockerd a second of sampling for each container.

Working set is what cannot be had back at once: usage without file pages that were
not used lately. Source: the kernel's cgroup-v1/memory.txt, cpuacct.txt and
cgroup-v2.rst; cadvisor's definition of the working set; proc(5).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podlane.errors import PodlaneError
from podlane.runtime.clock import Clock
from scheduler.agent import containers as c
from scheduler.agent.runtime import Record, Runtime

WINDOW = 1.0
"""Seconds between the two looks that a CPU usage is computed from."""
_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """`cpu` in nanoseconds of CPU time since some moment, `memory` (the working set) in bytes."""

    cpu: int
    memory: int


Paths = tuple[Path, Path]
"""The folders with the files of the CPU and of the memory controller."""


class Cgroups:
    """Version 1, version 2, and both at once; `root` is "" but in tests."""

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._mounts = _mounts(Path(f"{root}/proc/self/mountinfo"))

    def paths(self, pid: int) -> Paths | None:
        """Where a process is accounted; None when it is gone or is not accounted."""
        try:
            lines = Path(f"{self._root}/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            return None
        groups: dict[str, str] = {}
        for line in lines:
            _, controllers, path = line.split(":", 2)
            groups |= dict.fromkeys(controllers.split(","), path)
        cpu, memory = (self._folder(groups, controller) for controller in ("cpuacct", "memory"))
        return (cpu, memory) if cpu and memory else None

    def _folder(self, groups: Mapping[str, str], controller: str) -> Path | None:
        # a controller that no hierarchy of version 1 has is version 2's, whose line names none
        name = controller if controller in self._mounts else ""
        if name not in groups or name not in self._mounts:
            return None
        mounted, top = self._mounts[name]
        path = groups[name]
        if top != "/" and path.startswith(f"{top}/"):  # only a part of the hierarchy is mounted here
            path = path[len(top) :]
        return Path(f"{self._root}{mounted}{path}")

    def sample(self, paths: Paths) -> Sample | None:
        """None when the group is gone."""
        cpu, memory = paths
        try:
            usage, inactive = (
                (_number(memory / "memory.current"), "inactive_file")
                if (memory / "memory.current").exists()
                else (_number(memory / "memory.usage_in_bytes"), "total_inactive_file")
            )
            cold = _table(memory / "memory.stat").get(inactive, 0)
            return Sample(_cpu_time(cpu), max(0, usage - cold))
        except (OSError, ValueError):
            return None

    def node(self) -> Sample:
        """Of the whole machine. Raises PodlaneError."""
        try:
            ticks = [int(word) for word in Path(f"{self._root}/proc/stat").read_text().split("\n")[0].split()[1:]]
            memory = _table(Path(f"{self._root}/proc/meminfo"))
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = ticks
            busy = (user + nice + system + irq + softirq + steal) * _NANO // os.sysconf("SC_CLK_TCK")
            return Sample(busy, (memory["MemTotal"] - memory["MemFree"] - memory["Inactive(file)"]) * 1024)
        except (OSError, ValueError, KeyError) as error:
            raise PodlaneError(f"read usage of the machine: {error}") from error


class Stats:
    """`usage` may be called by many threads."""

    def __init__(self, runtime: Runtime, clock: Clock, cgroups: Cgroups | None = None) -> None:
        self._runtime = runtime
        self._clock = clock
        self._cgroups = cgroups or Cgroups()
        self._lock = threading.Lock()
        self._paths: dict[str, Paths | None] = {}
        self._told: tuple[float, dict[str, Any]] | None = None

    def usage(self) -> dict[str, Any]:
        """`cpu` in nanocores, `memory` in bytes. Takes WINDOW, or less when it was asked just before."""
        with self._lock:
            if self._told is None or self._clock.monotonic() - self._told[0] >= WINDOW:
                told = self._measure()
                self._told = self._clock.monotonic(), told
            return self._told[1]

    def _measure(self) -> dict[str, Any]:
        running = [r for r in self._runtime.list() if r.running and c.container_name(r) != c.INFRA]
        known = {r.id: self._paths.get(r.id) or self._find(r) for r in running}
        self._paths = known
        node, begin = self._cgroups.node(), self._clock.monotonic()
        before = {i: self._cgroups.sample(paths) for i, paths in known.items() if paths is not None}
        self._clock.wait(threading.Event(), WINDOW)
        seconds = max(self._clock.monotonic() - begin, 0.001)
        pods: dict[str, dict[str, Any]] = {}
        for record in running:
            first, paths = before.get(record.id), known[record.id]
            last = self._cgroups.sample(paths) if paths else None
            if first is None or last is None:
                continue
            pod = pods.setdefault(c.pod_uid(record), _pod(record))
            pod["containers"].append({"name": c.container_name(record), **_usage(first, last, seconds)})
        total = _usage(node, self._cgroups.node(), seconds)
        return {"timestamp": self._clock.now(), "window": seconds, "node": total, "pods": list(pods.values())}

    def _find(self, record: Record) -> Paths | None:
        try:
            return self._cgroups.paths(self._runtime.process(record.id)[1])
        except PodlaneError:  # it ended
            return None


def _pod(record: Record) -> dict[str, Any]:
    labels = record.labels
    names = {"namespace": labels.get(c.POD_NAMESPACE, ""), "name": labels.get(c.POD_NAME, "")}
    return {**names, "uid": c.pod_uid(record), "containers": []}


def _usage(first: Sample, last: Sample, seconds: float) -> dict[str, int]:
    return {"cpu": max(0, round((last.cpu - first.cpu) / seconds)), "memory": last.memory}


def _mounts(mountinfo: Path) -> dict[str, tuple[str, str]]:
    """By controller ("" for version 2): where its hierarchy is mounted, and which part of it."""
    found: dict[str, tuple[str, str]] = {}
    for line in mountinfo.read_text().splitlines():
        left, _, right = line.partition(" - ")
        top, mounted = left.split()[3:5]
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2":
            found.setdefault("", (mounted, top))
        elif kind == "cgroup":
            for option in options.split(","):
                found.setdefault(option, (mounted, top))
    return found


def _cpu_time(folder: Path) -> int:
    if (folder / "cpuacct.usage").exists():
        return _number(folder / "cpuacct.usage")
    return _table(folder / "cpu.stat")["usage_usec"] * 1000


def _number(file: Path) -> int:
    return int(file.read_text())


def _table(file: Path) -> dict[str, int]:
    rows = (line.split() for line in file.read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
