"""Daemons of a lab: started in a namespace, found again, ended by pid.

Invariant: a process is only ever signalled when both its pid and its start time
are those we recorded, so a reused pid is never hit. A record is a small JSON
file in the lab's run folder, written before the process does any work. Nothing
restarts a daemon that died: `status` says so and `podlane lab start` starts it,
so that an experiment sees what really happens.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from podlane.errors import PodlaneError
from podlane.lab.network import within
from podlane.runtime.atomic import write_atomic


@dataclass(frozen=True, slots=True)
class Record:
    """One started process; `start_time` in clock ticks since boot (proc(5), stat field 22)."""

    host: str
    daemon: str
    pid: int
    start_time: int
    log: str


def start(
    record_file: Path,
    *,
    host: str,
    daemon: str,
    netns: str,
    argv: Sequence[str],
    env: dict[str, str],
    log: Path,
) -> Record:
    """Start a process in a namespace, detached from this one, its output appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    record_file.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                within(netns, argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            raise PodlaneError(f"start {daemon} on {host}: {error.strerror}") from error
    record = Record(host, daemon, child.pid, _start_time(child.pid), str(log))
    write_atomic(record_file, msgspec.json.encode(record))
    return record


def load(record_file: Path) -> Record | None:
    """The record in a file, or None when there is none or it cannot be read."""
    try:
        return msgspec.json.decode(record_file.read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None


def alive(record: Record) -> bool:
    return record.start_time != 0 and _start_time(record.pid) == record.start_time


def kill(record: Record, number: int = signal.SIGKILL) -> None:
    """Send a signal if the process is still the one recorded."""
    if alive(record):
        try:
            os.kill(record.pid, number)
        except ProcessLookupError:
            return
    reap(record.pid)


def stop(records: Sequence[Record], *, timeout: float) -> list[Record]:
    """SIGTERM all, SIGKILL those left after `timeout` seconds; return the ones that had to be killed."""
    for record in records:
        kill(record, signal.SIGTERM)
    left = wait_ended(records, timeout=timeout)
    for record in left:
        kill(record, signal.SIGKILL)
    wait_ended(left, timeout=5)
    return left


def wait_ended(records: Sequence[Record], *, timeout: float) -> list[Record]:
    """Wait until all ended or `timeout` seconds passed; return those still there."""
    deadline = time.monotonic() + timeout
    while True:
        for record in records:
            reap(record.pid)
        left = [r for r in records if alive(r)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def reap(pid: int) -> None:
    """Collect the exit of our own child, so that it does not stay behind as a zombie."""
    with suppress(ChildProcessError):  # it may have been started by another process than this one
        os.waitpid(pid, os.WNOHANG)


def rss_bytes(pid: int) -> int:
    """Resident memory of a process, 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """User and system time a process has used, 0 when it is gone."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def tail(log: str | Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        text = Path(log).read_bytes()[-16384:].decode(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:])


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from `state` on; empty when gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in "ZX" else fields


def _start_time(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[19]) if fields else 0
