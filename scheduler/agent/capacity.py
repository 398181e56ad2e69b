"""What a node has, and what of that pods may have.

Owns: capacity and allocatable. Invariants: what the operator says the node
offers is what it offers; of what was measured, pods get what is left after the
system's reserve and the thresholds at which the node counts as short of it.
Source: the kubelet's node allocatable (pkg/kubelet/cm/node_container_manager).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from podlane.api import quantity
from scheduler.agent.pressure import Amount, Signal, Thresholds, Usage

MAX_PODS = 110
DEFAULT_RESERVED = "cpu=100m,memory=256Mi"
"""What is left to dockerd, Podlane's daemons and the rest of the system."""

STORAGE = "ephemeral-storage"
_OFFERED = ("cpu", "memory", "pods", STORAGE)
_RESERVED = ("cpu", "memory", STORAGE)


def parse_capacity(text: str) -> dict[str, str]:
    """`cpu=4,memory=8Gi` as a mapping. Raises ValueError, naming the part that is wrong."""
    parsed = _parse(text, _OFFERED)
    for name, value in parsed.items():
        if quantity.parse(value) <= 0:
            raise ValueError(f"{name}: expected more than 0, got {value}")
    return parsed


def parse_reserved(text: str) -> dict[str, str]:
    """`cpu=100m,memory=256Mi` over the defaults. Raises ValueError, naming the part that is wrong."""
    parsed = _parse(f"{DEFAULT_RESERVED},{text}", _RESERVED)
    for name, value in parsed.items():
        if quantity.parse(value) < 0:
            raise ValueError(f"{name}: expected 0 or more, got {value}")
    return parsed


def _parse(text: str, names: tuple[str, ...]) -> dict[str, str]:
    parsed: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name not in names:
            known = ", ".join(f"{known}=…" for known in names)
            raise ValueError(f'expected {known}, got "{part}"')
        quantity.parse(value)
        parsed[name] = value
    return parsed


def machine_capacity(given: Mapping[str, str]) -> dict[str, str]:
    """CPUs, memory and pods of this machine, replaced by what the operator gave."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    machine = {
        "cpu": str(os.cpu_count() or 1),
        "memory": f"{pages * size // 1024}Ki",
        "pods": str(MAX_PODS),
    }
    return machine | dict(given)


def with_storage(capacity: Mapping[str, str], usage: Usage) -> dict[str, str]:
    """The capacity with the disk that holds containers, where it was measured and not given."""
    disk = usage.get("imagefs.available")
    if disk is None or STORAGE in capacity:
        return dict(capacity)
    return {**capacity, STORAGE: f"{disk.capacity // 1024}Ki"}


def allocatable(
    capacity: Mapping[str, str], given: Mapping[str, str], reserved: Mapping[str, str], thresholds: Thresholds
) -> dict[str, str]:
    """What pods may have of `capacity`; nothing is kept back of what was `given`."""
    left = dict(capacity)
    if "cpu" not in given:
        milli = quantity.milli_cpu(capacity["cpu"]) - quantity.milli_cpu(reserved.get("cpu", "0"))
        left["cpu"] = quantity.format_cpu(max(0, milli))
    signals: Mapping[str, Signal] = {"memory": "memory.available", STORAGE: "nodefs.available"}
    for name, signal in signals.items():
        if name in given or name not in capacity:
            continue
        total = quantity.bytes_(capacity[name])
        short = thresholds[signal].of(total) if signal in thresholds else 0
        rest = max(0, total - quantity.bytes_(reserved.get(name, "0")) - short)
        left[name] = f"{rest // 1024}Ki"
    return left


@dataclass(frozen=True, slots=True)
class Measures:
    """How this machine is measured, and what is made of it.

    `measure` is told the engine's folder, "" if it is not known; `given` is the
    part of the capacity that is the operator's word.
    """

    measure: Callable[[str], Usage]
    given: Mapping[str, str]
    reserved: Mapping[str, str]
    thresholds: Thresholds

    def capacity(self, usage: Usage) -> dict[str, str]:
        return with_storage(machine_capacity(self.given), usage)

    def allocatable(self, usage: Usage) -> dict[str, str]:
        return allocatable(self.capacity(usage), self.given, self.reserved, self.thresholds)


def measure(state_dir: Path, root: str) -> dict[Signal, Amount]:
    """How much is left on this machine; what cannot be read is left out. `root`: the engine's folder, or ""."""
    usage: dict[Signal, Amount] = {}
    with suppress(OSError, ValueError, KeyError):
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        usage["memory.available"] = Amount(available, total)
    with suppress(OSError):
        usage["nodefs.available"], usage["nodefs.inodesFree"] = _disk(state_dir)
    with suppress(OSError):
        if root:
            usage["imagefs.available"], usage["imagefs.inodesFree"] = _disk(Path(root))
    with suppress(OSError, ValueError, IndexError):
        limits = (int(Path(f"/proc/sys/kernel/{name}").read_text()) for name in ("pid_max", "threads-max"))
        most = min(limits)
        running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
        usage["pid.available"] = Amount(most - running, most)
    return usage


def _disk(folder: Path) -> tuple[Amount, Amount]:
    """Bytes and inodes of the file system. Those without a limit to their inodes have as many as they like."""
    there = os.statvfs(folder)
    blocks = Amount(there.f_bavail * there.f_frsize, there.f_blocks * there.f_frsize)
    return blocks, Amount(there.f_favail, there.f_files)
