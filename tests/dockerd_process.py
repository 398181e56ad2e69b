"""A real dockerd for tests: in a network namespace, with folders of its own.

Owns: starting and ending it. Invariant: nothing of it outlives its context, but
the namespace, which is the caller's.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

IMAGE = "podlane-test/busybox:1"
_NAMES = ("sh", "sleep", "cat", "echo", "true", "false", "stty", "httpd", "hostname", "wget")


class Dockerd:
    """`url` as the docker package takes it."""

    def __init__(self, folder: Path, netns: str, *options: str) -> None:
        self.folder = folder
        self.options = list(options)
        self.url = f"unix://{folder}/docker.sock"
        self._netns = netns
        self._process: subprocess.Popen[Any] | None = None

    def _argv(self) -> list[str]:
        folder = self.folder
        return [
            # nsenter, for `ip netns exec` hides the cgroup mounts
            *("nsenter", f"--net=/run/netns/{self._netns}", "dockerd", f"--data-root={folder}/data"),
            *(f"--exec-root={folder}/exec", f"--host={self.url}", f"--pidfile={folder}/pid", "--bridge=none"),
            *self.options,
        ]

    def start(self) -> None:
        """Start it, or let it go on, unless it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            return
        socket = self.folder / "docker.sock"
        socket.unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._argv(), stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"dockerd did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; after SIGSTOP, wait until every thread has stopped."""
        assert self._process is not None
        self._process.send_signal(number)
        tasks = Path(f"/proc/{self._process.pid}/task")
        while number is signal.SIGSTOP and not all(_is_stopped(task) for task in tasks.iterdir()):
            time.sleep(0.01)

    def kill(self) -> None:
        """End it as a crash would, with its containerd; the containers go on."""
        assert self._process is not None
        containerd = Path("/proc", (self.folder / "exec/containerd/containerd.pid").read_text().strip())
        self._process.kill()
        self._process.wait(10)
        self._process = None
        deadline = time.monotonic() + 30
        while containerd.exists():  # the kernel ends it after dockerd; a new dockerd would take it for its own
            assert time.monotonic() < deadline, "containerd outlived dockerd"
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process = None

    def load_busybox(self, name: str = IMAGE, *more: str) -> None:
        """Make an image of the static busybox, and its usual names and `more` of them."""
        argv = ["docker", "-H", self.url, "import", "-", name]
        subprocess.run(argv, input=_busybox((*_NAMES, *more)), stdout=subprocess.DEVNULL, check=True)

    def clean(self) -> None:
        self.stop()
        # one that was killed leaves mounts, some of files and some of a folder on itself, which is_mount does not see
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for left in reversed([mount for mount in mounts if mount.startswith(f"{self.folder}/")]):
            subprocess.run(["umount", "-l", left], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _is_stopped(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(") ")[2].startswith("T")


@contextlib.contextmanager
def dockerd(netns: str, *options: str, data_size: str = "") -> Iterator[Dockerd]:
    """A started dockerd in an existing namespace; `data_size` as in "64m" makes its disk a small one."""
    # the path of a unix socket has at most 107 bytes, so not pytest's own folder
    engine = Dockerd(Path(tempfile.mkdtemp(prefix="plad-")), netns, *options)
    try:
        if data_size:
            data = engine.folder / "data"
            data.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={data_size}", "tmpfs", str(data)], check=True)
        engine.start()
        engine.load_busybox()
        yield engine
    finally:
        engine.clean()


@contextlib.contextmanager
def namespace(prefix: str) -> Iterator[str]:
    """A network namespace with nothing in it."""
    name = f"{prefix}-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


def _busybox(names: Sequence[str]) -> bytes:
    program = Path("/bin/busybox").read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("bin/busybox")
        info.size, info.mode = len(program), 0o755
        archive.addfile(info, io.BytesIO(program))
        for name in names:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return buffer.getvalue()
