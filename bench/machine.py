"""The machine a figure was measured on. A figure without it says nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """`cores` are those this process may use."""

    cpu: str
    cores: int
    kernel: str

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, Linux {self.kernel}"


_FIRST = -20


def take_precedence() -> None:
    """Let this process, and those it starts from now on, run before all others: their time slices are not our figures.

    Works for root; for others it does nothing.
    """
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _FIRST)


def give_precedence(pids: Iterable[int]) -> None:
    """The same for sessions of their own, as a lab's daemons are: the kernel shares out processors by session first.

    Source: sched(7), the autogroup feature.
    """
    for pid in (*pids, os.getpid()):
        with suppress(OSError):  # another user's, or a kernel without it
            Path(f"/proc/{pid}/autogroup").write_text(str(_FIRST))


def this_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    return Machine(_cpu(cpuinfo), len(os.sched_getaffinity(0)), os.uname().release)


def _cpu(cpuinfo: Path) -> str:
    """Return the model's name; ARM kernels give none, then the architecture must do."""
    for line in cpuinfo.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return platform.machine()
