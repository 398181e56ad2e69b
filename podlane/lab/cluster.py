"""Bringing a lab up, looking at it, and taking it down.

Invariants: `up` makes what is missing and leaves alone what runs, so it can be
repeated after any failure; `down` removes everything that carries the lab's
name, whatever a crash left, and signals no process but those in the lab's
namespaces and cgroup. Failures name the daemon and show the end of its log.
"""

from __future__ import annotations

import fcntl
import http.client
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from podlane.errors import PodlaneError
from podlane.lab import images, network, process, residue
from podlane.lab.daemons import DaemonSpec, specs, store_options
from podlane.lab.topology import RUN_ROOT, Host, Topology, decode
from podlane.runtime.atomic import write_atomic
from podlane.runtime.command import run

READY_TIMEOUT = 60.0
"""Seconds a daemon may take from start to ready."""

ENROL_TIMEOUT = 120.0
"""Seconds for all hosts together."""


class LabError(PodlaneError):
    """A lab could not be brought to the wanted state; says which daemon, and the end of its log."""


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """`state`: running (and ready), starting (not ready, `detail` says why), dead, or absent (never started)."""

    host: str
    daemon: str
    state: str
    pid: int = 0
    rss_bytes: int = 0
    cpu_seconds: float = 0.0
    detail: str = ""


def existing() -> list[str]:
    """Names of the labs that are there, whole or in part."""
    if not RUN_ROOT.is_dir():
        return []
    return sorted(p.name for p in RUN_ROOT.iterdir() if (p / "lab.json").is_file())


def load(name: str) -> Topology:
    """Raise LabError when there is no such lab, naming those there are."""
    try:
        return decode((RUN_ROOT / name / "lab.json").read_bytes())
    except OSError as error:
        there = ", ".join(existing()) or "none"
        raise LabError(f"lab {name!r}: not there (labs now: {there}); podlane lab up --name {name}") from error


class Lab:
    """One lab. `say` is told each step that is done, for people to read."""

    def __init__(self, topology: Topology, say: Callable[[str], None] = lambda _: None) -> None:
        self.topology = topology
        self._say = say

    # --- up -----------------------------------------------------------------

    def up(self) -> None:
        """Make the lab, or what is missing of it, and wait until every daemon is ready."""
        lab = self.topology
        lab.run_dir.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._check_same()
            self._mount()
            with self._step("certificates") as note:
                from podlane.lab import credentials  # loads much that no other command of the lab needs

                note(f"{credentials.issue(lab)} issued")
            write_atomic(lab.run_dir / "lab.json", lab.encode())
            with self._step("network") as note:
                new = network.build(lab)
                note(f"{len(lab.hosts)} hosts on one bridge, {new} new")
            with self._step("etcd and dockerd") as note:
                first = ("etcd", "dockerd")
                started = self._start(lab.hosts, only=first)
                self._wait_ready(lab.hosts, only=first)
                note(f"{started} started, {sum(h.role == 'server' for h in lab.hosts)} etcd members")
            with self._step("image") as note:
                nodes = [h for h in lab.hosts if h.role == "node"]
                with ThreadPoolExecutor(4) as pool:
                    loaded = sum(pool.map(lambda host: images.load(lab, host), nodes))
                note(f"{images.WEB_IMAGE}, imported on {loaded} hosts")
            with self._step("cluster config") as note:
                note(self.podlane("init", *lab.init_arguments).strip().splitlines()[-1])
            with self._step("enrolment") as note:
                note(self._enrol())
            with self._step("daemons") as note:
                started = self._start(lab.hosts)
                self._wait_ready(lab.hosts)
                note(f"netd, proxyd, agent, scheduler: {started} started, all ready")

    def start(self, host: Host, daemon: str | None = None, *, wait: bool = True) -> int:
        """Start what is not running on a host (one daemon, or all); return how many were started."""
        self.check_tls()
        only = (daemon,) if daemon else None
        if daemon is not None:
            self.spec(host, daemon)
        started = self._start([host], only=only)
        if wait:
            self._wait_ready([host], only=only)
        return started

    def kill(self, host: Host, daemon: str, number: int = signal.SIGKILL) -> process.Record:
        """Send a daemon a signal; raise LabError when it does not run."""
        self.spec(host, daemon)
        record = self.record(host, daemon)
        if record is None or not process.alive(record):
            raise LabError(f"signal {daemon} on {host.name}: it does not run")
        process.kill(record, number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            left = process.wait_ended([record], timeout=self.spec(host, daemon).stop_timeout)
            if left:
                raise LabError(f"signal {daemon} on {host.name}: still running")
        return record

    # --- status ---------------------------------------------------------------

    def status(self) -> list[DaemonStatus]:
        """Every daemon's state, asked now."""
        pairs = [(host, spec) for host in self.topology.hosts for spec in specs(self.topology, host)]
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda pair: self._status(*pair), pairs))

    def record(self, host: Host, daemon: str) -> process.Record | None:
        return process.load(self._record_file(host, daemon))

    def spec(self, host: Host, daemon: str) -> DaemonSpec:
        """Raise LabError naming the daemons the host has."""
        there = specs(self.topology, host)
        for spec in there:
            if spec.name == daemon:
                return spec
        raise LabError(f"daemon {daemon!r}: {host.name} has {', '.join(s.name for s in there)}")

    def podlane(self, *arguments: str, timeout: float = 150.0) -> str:
        """Run the `podlane` command against this lab and return what it printed."""
        lab = self.topology
        options = (f"--etcd-{name}={value}" for name, value in store_options(lab.store_config()).items())
        argv = [str(Path(sys.executable).parent / "podlane"), *options, *arguments]
        return run(network.within(lab.underlay, argv), timeout=timeout).stdout

    def _enrol(self) -> str:
        """In a process of its own, because a thread of gRPC stays in the network namespace of whoever made it."""
        argv = [sys.executable, "-P", "-m", "podlane.lab.enrolment", self.topology.name]
        return run(network.within(self.topology.underlay, argv), timeout=ENROL_TIMEOUT).stdout

    # --- down -------------------------------------------------------------------

    def down(self) -> None:
        """Remove the lab and everything a crash may have left of it; no error when there is nothing."""
        lab = self.topology
        lab.run_dir.mkdir(parents=True, exist_ok=True)
        with self._locked():
            with self._step("daemons") as note:
                note(f"{self._stop_daemons()} stopped")
            with self._step("leftovers") as note:
                note(residue.remove(lab))
            with self._step("network") as note:
                note(f"{network.destroy(lab)} namespaces removed")
            shutil.rmtree(lab.run_dir)

    def _stop_daemons(self) -> int:
        """First what starts containers, then the containers, then what they and the daemons stand on."""
        lab = self.topology
        records = [r for f in sorted(lab.run_dir.glob("*/*.pid.json")) if (r := process.load(f)) is not None]
        running = [r for r in records if process.alive(r)]
        bottom = [r for r in running if r.daemon in ("dockerd", "etcd")]
        process.stop([r for r in running if r not in bottom], timeout=15)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._remove_containers, [r.host for r in bottom if r.daemon == "dockerd"]))
        process.stop(bottom, timeout=25)
        return len(running)

    def _remove_containers(self, host: str) -> None:
        docker = ["docker", "-H", f"unix://{self.topology.docker_socket(host)}"]
        listed = run([*docker, "ps", "-aq"], timeout=20, check=False)
        if listed.stdout.split():
            run([*docker, "rm", "-f", *listed.stdout.split()], timeout=120, check=False)

    # --- pieces -------------------------------------------------------------------

    def _mount(self) -> None:
        """Keep all files in memory: a lab does not outlive its machine, and on a disk pods start a tenth slower."""
        folder = self.topology.run_dir
        if not folder.is_mount():
            source = f"podlane-lab-{self.topology.name}"
            run(["mount", "-t", "tmpfs", "-o", "mode=0755", source, str(folder)], timeout=10)

    def _record_file(self, host: Host, daemon: str) -> Path:
        return self.topology.run_dir / host.name / f"{daemon}.pid.json"

    def _start(self, hosts: Sequence[Host], only: Sequence[str] | None = None) -> int:
        lab, started = self.topology, 0
        for host in hosts:
            for spec in specs(lab, host):
                record = self.record(host, spec.name)
                if (only and spec.name not in only) or (record is not None and process.alive(record)):
                    continue
                process.start(
                    self._record_file(host, spec.name),
                    host=host.name,
                    daemon=spec.name,
                    netns=lab.netns(host),
                    argv=spec.argv,
                    env=dict(spec.env),
                    log=lab.log_dir / host.name / f"{spec.name}.log",
                )
                started += 1
        return started

    def _wait_ready(self, hosts: Sequence[Host], only: Sequence[str] | None = None) -> None:
        waiting = [(h, s) for h in hosts for s in specs(self.topology, h) if not only or s.name in only]
        deadline = time.monotonic() + READY_TIMEOUT
        while waiting:
            states = [(pair, self._status(*pair)) for pair in waiting]
            for (host, spec), status in states:
                late = time.monotonic() > deadline
                if status.state in ("dead", "absent") or (late and status.state != "running"):
                    log = self.topology.log_dir / host.name / f"{spec.name}.log"
                    why = f"not ready after {READY_TIMEOUT:.0f} s: {status.detail}" if late else "it ended"
                    raise LabError(f"start {spec.name} on {host.name}: {why}\n--- {log}\n{process.tail(log)}")
            waiting = [pair for pair, status in states if status.state != "running"]
            if waiting:
                time.sleep(0.1)

    def _status(self, host: Host, spec: DaemonSpec) -> DaemonStatus:
        record = self.record(host, spec.name)
        if record is None:
            return DaemonStatus(host.name, spec.name, "absent")
        if not process.alive(record):
            process.reap(record.pid)
            return DaemonStatus(host.name, spec.name, "dead", record.pid)
        why_not = self._probe(host, spec)
        return DaemonStatus(
            host.name,
            spec.name,
            "running" if why_not is None else "starting",
            record.pid,
            process.rss_bytes(record.pid),
            process.cpu_seconds(record.pid),
            why_not or "",
        )

    def _probe(self, host: Host, spec: DaemonSpec) -> str | None:
        """None when ready, else why not."""
        if isinstance(spec.ready, Path):
            return _unix_http_ok(spec.ready)
        try:
            with network.inside(self.topology.netns(host)):
                return _http_ok(spec.ready)
        except PodlaneError as error:
            return str(error)

    def _check_same(self) -> None:
        try:
            there = load(self.topology.name)
        except LabError:
            return
        if there != self.topology:
            raise LabError(
                f"lab {there.name!r} has {there} already; "
                f"podlane lab down --name {there.name} first, or choose another --name"
            )

        self.check_tls()

    def check_tls(self) -> None:
        """Raise LabError when this lab was made by a Podlane whose labs had no certificates."""
        lab = self.topology
        if not lab.pki_dir.is_dir():
            raise LabError(
                f"lab {lab.name!r}: an older Podlane made it, without TLS; podlane lab down --name {lab.name}, then up"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One up or down at a time for one lab."""
        with (RUN_ROOT / f"{self.topology.name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LabError(f"lab {self.topology.name!r}: another up or down is at work on it") from None
            yield
            if not self.topology.run_dir.exists():
                Path(file.name).unlink(missing_ok=True)

    @contextmanager
    def _step(self, name: str) -> Iterator[Callable[[str], None]]:
        begin, notes = time.monotonic(), list[str]()
        yield notes.append
        self._say(f"{name:<18} {time.monotonic() - begin:5.1f} s   {'; '.join(notes)}")


def _http_ok(url: str) -> str | None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=2)
    return _answer(connection, parts.path)


def _unix_http_ok(path: Path) -> str | None:
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(5)
    try:
        connection.sock.connect(str(path))
    except OSError as error:
        connection.close()
        return f"{path}: {error.strerror or error}"
    return _answer(connection, "/_ping")


def _answer(connection: http.client.HTTPConnection, path: str) -> str | None:
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(2000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return None if response.status == 200 else body.replace("\n", "; ")
