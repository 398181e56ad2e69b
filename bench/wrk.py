"""Load by `wrk` (Debian's package of that name): HTTP requests, each over a connection of its own.

Owns: starting it in a namespace, ending it early, and its figures. Invariant:
what is not answered within PATIENCE seconds counts as failed, like every error
of a connection, and every answer other than 200.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from podlane.errors import PodlaneError
from podlane.lab.network import within

PATIENCE = 5  # seconds
_LONGEST = 600  # seconds a run may take before it ends by itself

# wrk calls `done` at its end; its times are microseconds
_SCRIPT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{"requests":%d,"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d,"slowest":%d}\\n',
    summary.requests, e.connect, e.read, e.write, e.status, e.timeout, latency.max))
end
"""


class WrkError(PodlaneError):
    """wrk is not there, or did not say what it did."""


class Load(msgspec.Struct, frozen=True):
    """What one wrk saw; `requests` were answered, `slowest` of them after so many microseconds."""

    requests: int
    connect: int
    read: int
    write: int
    status: int
    timeout: int
    slowest: int

    @property
    def failed(self) -> int:
        return self.connect + self.read + self.write + self.status + self.timeout

    def __str__(self) -> str:
        errors = {name: getattr(self, name) for name in ("connect", "read", "write", "status", "timeout")}
        shown = ", ".join(f"{count} {name}" for name, count in errors.items() if count)
        return f"{self.requests:,} requests, failed: {shown or 'none'}; slowest {self.slowest / 1e6:.2f} s"


def together(loads: Mapping[str, Load]) -> Load:
    """The sum of all hosts', and the slowest of all."""
    fields = ("requests", "connect", "read", "write", "status", "timeout")
    sums = {field: sum(getattr(load, field) for load in loads.values()) for field in fields}
    return Load(**sums, slowest=max((load.slowest for load in loads.values()), default=0))


@dataclass
class Running:
    """`loads`, by host, is filled when the block of `loading` ends."""

    loads: dict[str, Load]


@contextmanager
def loading(sources: Mapping[str, str], url: str, *, connections: int) -> Iterator[Running]:
    """Load from several hosts (host → namespace) during the block. Raises WrkError."""
    if shutil.which("wrk") is None:
        raise WrkError("run wrk: no such command (Debian: wrk)")
    running = Running({})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        script = Path(folder) / "done.lua"
        script.write_text(_SCRIPT)
        options = ["-t1", f"-c{connections}", f"-d{_LONGEST}s", f"--timeout={PATIENCE}s"]
        argv = ["wrk", *options, "-HConnection: close", "-s", str(script), url]
        started = {host: stack.enter_context(_started(within(netns, argv))) for host, netns in sources.items()}
        yield running
        for process in started.values():
            process.send_signal(signal.SIGINT)
        for host, process in started.items():
            running.loads[host] = _read(host, process)


@contextmanager
def _started(argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _read(host: str, process: subprocess.Popen[str]) -> Load:
    text, _ = process.communicate(timeout=PATIENCE + 10)
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            return msgspec.json.decode(line, type=Load)
    raise WrkError(f"run wrk on {host}: exit {process.returncode}: {text.strip()[-300:]}")
