"""What a lab's containers and crashes can leave behind, and its removal.

Owns: processes still in the lab's namespaces or cgroup, mounts at and below its
folder, and its cgroups. Invariant: nothing is touched that is not in a place
named after the lab.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from podlane.lab import network
from podlane.lab.topology import Topology
from podlane.runtime.command import run

CGROUP_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Residue:
    """What is there now: pids, mount points, cgroup folders."""

    pids: frozenset[int] = frozenset()
    mounts: tuple[str, ...] = ()
    cgroups: tuple[Path, ...] = ()


def find(lab: Topology) -> Residue:
    return Residue(_pids(lab), _mounts(lab), tuple(_cgroup_folders(lab)))


def remove(lab: Topology) -> str:
    """End the processes, undo the mounts, remove the cgroups; say how many of each."""
    ended = _end_processes(lab)
    mounts = _unmount(lab)
    cgroups = _remove_cgroups(lab)
    return f"{ended} processes, {mounts} mounts, {cgroups} cgroups removed"


def _pids(lab: Topology) -> frozenset[int]:
    within = {p for n in network.namespaces(lab.prefix) for p in network.pids(n)}
    return frozenset(within | _cgroup_pids(lab)) - {os.getpid()}


def _end_processes(lab: Topology) -> int:
    seen: set[int] = set()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = _pids(lab)
        if not left:
            break
        seen |= left
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    return len(seen)


def _cgroup_folders(lab: Topology) -> list[Path]:
    """The lab's cgroup in every hierarchy (version 1) or in the one (version 2)."""
    name = lab.cgroup.lstrip("/")
    return [p for p in (CGROUP_ROOT / name, *CGROUP_ROOT.glob(f"*/{name}")) if p.is_dir()]


def _cgroup_pids(lab: Topology) -> set[int]:
    return {
        int(line)
        for folder in _cgroup_folders(lab)
        for file in folder.rglob("cgroup.procs")
        for line in file.read_text().split()
    }


def _mounts(lab: Topology) -> tuple[str, ...]:
    folder = str(lab.run_dir)
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return tuple(p for p in points if p == folder or p.startswith(f"{folder}/"))


def _unmount(lab: Topology) -> int:
    ours = _mounts(lab)
    for point in reversed(ours):  # the innermost were mounted last
        run(["umount", "--lazy", point], timeout=10, check=False)
    return len(ours)


def _remove_cgroups(lab: Topology) -> int:
    removed = 0
    for folder in _cgroup_folders(lab):
        for inner in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
            inner.rmdir()
        folder.rmdir()
        removed += 1
    return removed
