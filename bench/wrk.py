"""Load by `wrk` (Debian's package of that name): HTTP requests, each over a connection of its own.

Owns: starting it in a namespace, ending it early, and its figures. Invariant:
what is not answered within its patience counts as failed, like every error
of a connection, and every answer other than 200. wrk itself never counts what
is never answered, so at the end its connections are looked at for as long:
those that are there all the time hang.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from podlane.errors import PodlaneError
from podlane.lab.network import inside, within

PATIENCE = 5  # seconds, unless told otherwise
_LONGEST = 600  # seconds a run may take before it ends by itself
_LOOKS = 3  # at its connections; another one gets the same port too seldom to be seen so often
_NO_INODE = "0"  # in /proc/net/tcp: the kernel's own, which goes on closing what a process left

# wrk calls `done` at its end; its times are microseconds
_SCRIPT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{"requests":%d,"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d,"slowest":%d}\\n',
    summary.requests, e.connect, e.read, e.write, e.status, e.timeout, latency.max))
end
"""


_FAILURES = ("connect", "read", "write", "status", "timeout", "hung")


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
    hung: int = 0

    @property
    def failed(self) -> int:
        return sum(getattr(self, name) for name in _FAILURES)

    def __str__(self) -> str:
        shown = ", ".join(f"{count} {name}" for name in _FAILURES if (count := getattr(self, name)))
        return f"{self.requests:,} requests, failed: {shown or 'none'}; slowest {self.slowest / 1e6:.2f} s"


def together(loads: Mapping[str, Load]) -> Load:
    """The sum of all hosts', and the slowest of all."""
    sums = {field: sum(getattr(load, field) for load in loads.values()) for field in ("requests", *_FAILURES)}
    return Load(**sums, slowest=max((load.slowest for load in loads.values()), default=0))


@dataclass
class Running:
    """`loads`, by host, is filled when the block of `loading` ends."""

    loads: dict[str, Load]


@contextmanager
def loading(sources: Mapping[str, str], url: str, *, connections: int, patience: int = PATIENCE) -> Iterator[Running]:
    """Load from several hosts (host → namespace) during the block and `patience` seconds more. Raises WrkError.

    `url` names an IPv4 address.
    """
    if shutil.which("wrk") is None:
        raise WrkError("run wrk: no such command (Debian: wrk)")
    running = Running({})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        script = Path(folder) / "done.lua"
        script.write_text(_SCRIPT)
        options = ["-t1", f"-c{connections}", f"-d{_LONGEST}s", f"--timeout={patience}s"]
        argv = ["wrk", *options, "-HConnection: close", "-s", str(script), url]
        started = {host: stack.enter_context(_started(within(netns, argv))) for host, netns in sources.items()}
        yield running
        hung = _hung(sources, urlsplit(url).netloc, patience)
        for process in started.values():
            process.send_signal(signal.SIGINT)
        for host, process in started.items():
            running.loads[host] = msgspec.structs.replace(_read(host, process), hung=hung[host])


def _hung(sources: Mapping[str, str], server: str, patience: float) -> dict[str, int]:
    """How many connections to the server each host had all the time, for so many seconds."""
    found = {host: _ports(netns, server) for host, netns in sources.items()}
    for _ in range(_LOOKS - 1):
        time.sleep(patience / (_LOOKS - 1))
        found = {host: ports & _ports(sources[host], server) for host, ports in found.items()}
    return {host: len(ports) for host, ports in found.items()}


def _ports(netns: str, server: str) -> set[str]:
    """Local ports of TCP connections to the server that processes of the namespace have, or are making."""
    address, _, port = server.partition(":")
    remote = f"{int.from_bytes(IPv4Address(address).packed, 'little'):08X}:{int(port or 80):04X}"
    with inside(netns):
        lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    rows = (line.split() for line in lines)
    return {row[1] for row in rows if row[2] == remote and row[9] != _NO_INODE}


@contextmanager
def _started(argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _read(host: str, process: subprocess.Popen[str]) -> Load:
    text, _ = process.communicate(timeout=30)
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            return msgspec.json.decode(line, type=Load)
    raise WrkError(f"run wrk on {host}: exit {process.returncode}: {text.strip()[-300:]}")
