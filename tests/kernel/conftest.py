"""Network namespaces for kernel tests.

Owns: `netns`, a maker of fresh namespaces whose names carry a prefix of this
process and test, joined by veth pairs or by an underlay bridge that lives in a
namespace of its own. Invariant: what a test made is removed when it ends, pass
or fail, and nothing else is: processes by their id, namespaces by their name.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

_serial = itertools.count(1)

UNDERLAY = "192.168.64"
"""The underlay's /24: `.1` is the bridge's own namespace, hosts follow from `.11` on."""

UNDERLAY6 = "fd00:c0a8:40:"
"""The same of its IPv6 /64, where somebody asks for one: `::1`, and hosts from `::11` on."""

_PING = """
import os, select, socket, struct, sys, time
destination, count, interval, source, size = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]
six = ":" in destination
level, request, reply, header = (socket.IPPROTO_IPV6, 128, 129, 40) if six else (socket.IPPROTO_IP, 8, 0, 20)
protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, protocol)
if source:
    s.bind((source, 0))
if size:
    s.setsockopt(level, 23 if six else 10, 3)  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE: whole or not at all
data = bytes(int(size) - header - 8 if size else 56)
me, seen = os.getpid() & 0xFFFF, set()
start = time.monotonic()
def collect(until):
    while len(seen) < count and select.select([s], [], [], max(0.0, until - time.monotonic()))[0]:
        packet, address = s.recvfrom(65535)
        kind, _, _, ident, number = struct.unpack_from("!BBHHH", packet, 0 if six else (packet[0] & 15) * 4)
        if kind == reply and ident == me and address[0] == destination:
            seen.add(number)
            print(number, flush=True)
for number in range(count):
    words = (request << 8) + me + number
    total = (words & 0xFFFF) + (words >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    try:  # of ICMPv6 the kernel makes the checksum
        s.sendto(struct.pack("!BBHHH", request, 0, ~total & 0xFFFF, me, number) + data, (destination, 0))
    except OSError as error:
        print(error, file=sys.stderr)
    collect(start + (number + 1) * interval)
collect(time.monotonic() + 1)
"""


def _run(argv: Sequence[str], *, stdin: str | None = None, timeout: float = 30, check: bool = True) -> str:
    done = subprocess.run(list(argv), check=False, capture_output=True, text=True, input=stdin, timeout=timeout)
    if check and done.returncode:
        why = done.stderr.strip() or done.stdout
        raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}: {why}")
    return done.stdout


def eventually(check: Callable[[], Any], timeout: float = 30.0, interval: float = 0.05) -> Any:
    """Call `check` until it returns something true, and return that. AssertionErrors count as not yet."""
    end = time.monotonic() + timeout
    while True:
        error: AssertionError | None = None
        try:
            if result := check():
                return result
        except AssertionError as e:
            error = e
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {error or check}") from error
        time.sleep(interval)


@dataclass
class Netns:
    """One namespace. `name` is its full name, `address` and `address6` the underlay addresses if it has them."""

    name: str
    address: str = ""
    address6: str = ""
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def argv(self, argv: Sequence[str]) -> list[str]:
        # nsenter and not `ip netns exec`, which mounts another /sys and hides the cgroups
        return ["nsenter", f"--net={self.path}", *argv]

    def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 30,
    ) -> str:
        """Run a command inside and return its standard output; failing fails the test unless not `check`."""
        argv = command.split() if isinstance(command, str) else command
        return _run(self.argv(argv), stdin=stdin, timeout=timeout, check=check)

    def ok(self, command: str | Sequence[str], timeout: float = 30) -> bool:
        """Whether the command ends with exit code 0."""
        argv = self.argv(command.split() if isinstance(command, str) else command)
        return subprocess.run(argv, check=False, capture_output=True, timeout=timeout).returncode == 0

    def ping_argv(
        self, destination: str, *, count: int = 1, interval: float = 0.01, source: str = "", size: int = 0
    ) -> list[str]:
        """A command that pings and prints one line per reply, for `popen`. (Not every machine has ping.)"""
        return [sys.executable, "-IS", "-c", _PING, destination, str(count), str(interval), source, str(size or "")]

    def ping(self, destination: str, *, count: int = 1, interval: float = 0.01, source: str = "", size: int = 0) -> int:
        """How many of `count` echo requests, `interval` seconds apart, were answered within a second.

        `size` in bytes is the whole IP packet's, which is then not to be fragmented.
        """
        argv = self.ping_argv(destination, count=count, interval=interval, source=source, size=size)
        return len(self.run(argv, timeout=count * interval + 30).split())

    def popen(
        self,
        argv: Sequence[str],
        *,
        log: Path | IO[bytes] | int = subprocess.DEVNULL,
        stdout: Any = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[Any]:
        """Start a process inside; it ends with the test. stderr and, unless given, stdout go to `log`."""
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(log.open("ab")) if isinstance(log, Path) else log
            process = subprocess.Popen(
                self.argv(argv),
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=out,
                env={**os.environ, **(env or {})},
            )
        self.processes.append(process)
        return process

    def end(self, process: subprocess.Popen[Any], sig: signal.Signals = signal.SIGTERM, wait: float = 20) -> int:
        """Signal one process and wait for it; SIGKILL after `wait` seconds. Returns its exit code."""
        if process.poll() is None:
            process.send_signal(sig)
        try:
            return process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(wait)
            raise AssertionError(f"{process.args}: did not end within {wait} s of {sig.name}") from None


class NetnsMaker:
    """Makes namespaces and joins them. `close` removes exactly what was made."""

    def __init__(self) -> None:
        self.prefix = f"plt{os.getpid()}-{next(_serial)}-"
        self.made: list[Netns] = []
        self._hosts = itertools.count(11)
        self._underlay: Netns | None = None

    def add(self, name: str) -> Netns:
        """A fresh namespace with `lo` up. The real name is `prefix + name`."""
        ns = Netns(self.prefix + name)
        _run(["ip", "netns", "add", ns.name])
        self.made.append(ns)
        ns.run("ip link set lo up")
        return ns

    def link(self, a: Netns, a_name: str, b: Netns, b_name: str, *, mtu: int = 1500) -> None:
        """A veth pair between two namespaces, both ends up."""
        _run(
            f"ip link add {a_name} netns {a.name} mtu {mtu} type veth "
            f"peer name {b_name} netns {b.name} mtu {mtu}".split()
        )
        a.run(f"ip link set {a_name} up")
        b.run(f"ip link set {b_name} up")

    @property
    def underlay(self) -> Netns:
        """The namespace that holds the bridge `underlay`, made at first use, address `.1`."""
        if self._underlay is None:
            ns = self.add("underlay")
            ns.run("ip link add underlay type bridge")
            ns.run(f"ip address add {UNDERLAY}.1/24 dev underlay")
            ns.run("ip link set underlay up")
            ns.address = f"{UNDERLAY}.1"
            self._underlay = ns
        return self._underlay

    def host(self, name: str, *, mtu: int = 1500, v4: bool = True, v6: bool = False, uplink: str = "eth0") -> Netns:
        """A namespace with `uplink` on the underlay bridge, an address and a default route of each family asked for."""
        bridge, ns, number = self.underlay, self.add(name), next(self._hosts)
        if v6:  # or its link's own address, by which neighbours are asked, waits for a second or two
            ns.run("sysctl -qw net.ipv6.conf.default.accept_dad=0")
        self.link(ns, uplink, bridge, f"h{number}", mtu=mtu)
        bridge.run(f"ip link set h{number} master underlay")
        if v4:
            ns.address = f"{UNDERLAY}.{number}"
            ns.run(f"ip address add {ns.address}/24 dev {uplink}")
            ns.run(f"ip route add default via {UNDERLAY}.1")
        if v6:
            if not bridge.address6:
                bridge.address6 = f"{UNDERLAY6}:1"
                bridge.run(f"ip address add {bridge.address6}/64 dev underlay nodad")
            ns.address6 = f"{UNDERLAY6}:{number}"
            ns.run(f"ip address add {ns.address6}/64 dev {uplink} nodad")
            ns.run(f"ip route add default via {UNDERLAY6}:1")
        return ns

    def close(self) -> None:
        for ns in reversed(self.made):
            for process in ns.processes:
                if process.poll() is None:
                    process.kill()
                process.wait(10)
        for ns in reversed(self.made):
            _run(["ip", "netns", "delete", ns.name], check=False)
        self.made.clear()


@pytest.fixture
def netns() -> Iterator[NetnsMaker]:
    """Fresh namespaces for one test. Needs root: without it the test fails rather than being skipped."""
    maker = NetnsMaker()
    try:
        yield maker
    finally:
        maker.close()


@pytest.fixture
def world(netns: NetnsMaker) -> Iterator[Any]:
    """proxyd's world: a node with pods, and proxyd's sync in it (proxyd_world.py)."""
    from tests.kernel.proxyd_world import World

    made = World(netns)
    yield made
    made.close()


@dataclass
class NetnsEtcd:
    """A single-member etcd inside a namespace, reachable by everything on its underlay, over either family."""

    ns: Netns
    data: Path
    endpoint: str
    process: subprocess.Popen[Any] | None = None

    @property
    def endpoint6(self) -> str:
        """The same, once a host has asked for IPv6."""
        return f"http://[{self.ns.address6}]:2379"

    def start(self) -> None:
        """Start it (again, on the same data) and wait until it answers."""
        client, peer = "http://[::]:2379", "http://127.0.0.1:2380"
        flags = {
            "name": "t",
            "data-dir": str(self.data),
            "log-outputs": "stderr",
            "listen-client-urls": client,
            "advertise-client-urls": self.endpoint,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"t={peer}",
        }
        self.process = self.ns.popen(
            ["etcd", *(f"--{flag}={value}" for flag, value in flags.items())],
            log=self.data.parent / "etcd.log",
        )
        health = ("--command-timeout=2s", "endpoint", "health", "-w", "json")
        eventually(lambda: "true" in self.ctl(*health, check=False), timeout=30)

    def ctl(self, *argv: str, check: bool = True) -> str:
        """etcdctl inside the namespace; an exit code other than 0 fails the test unless not `check`."""
        command = ["env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={self.endpoint}", "--command-timeout=15s"]
        return self.ns.run([*command, *argv], check=check)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.ns.end(self.process, sig)
            self.process = None


@pytest.fixture
def netns_etcd(netns: NetnsMaker, etcd_folder: Path) -> Iterator[NetnsEtcd]:
    """A started etcd on the underlay's own namespace (`192.168.64.1:2379`)."""
    ns = netns.underlay
    etcd = NetnsEtcd(ns, etcd_folder / "etcd-data", f"http://{ns.address}:2379")
    etcd.start()
    yield etcd
    etcd.stop(signal.SIGKILL)  # before its folder goes


@pytest.fixture
def proxyd(netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path) -> Iterator[Any]:
    """`proxyd run` in proxyd's world, not started yet, beside an etcd (proxyd_run.py)."""
    from tests.kernel.proxyd_run import Daemon
    from tests.kernel.proxyd_world import World

    world = World(netns, node=netns.host("node", v6=True), client=netns.underlay)
    made = Daemon(world, netns_etcd, tmp_path / "proxyd.log")
    yield made
    print(made.log.read_text() if made.log.exists() else "no log")
    world.close()


@contextlib.contextmanager
def inside(ns: Netns) -> Iterator[None]:
    """Move this thread into the namespace for a while; what it opens and starts meanwhile is in there."""
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newnet = 0x40000000

    def enter(fd: int) -> None:
        if libc.setns(fd, clone_newnet):
            raise OSError(ctypes.get_errno(), "setns")

    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(ns.path, os.O_RDONLY)
    try:
        enter(there)
        yield
    finally:
        enter(home)
        os.close(home)
        os.close(there)
