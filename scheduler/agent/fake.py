"""A container engine in memory that refuses what Docker would refuse.

Owns: state and rules, for tests and for nodes without containers. Invariants:
those of `Runtime`, and nothing happens by itself: a container runs until
`end` or a signal ends it (unless its image is known to end). `calls` tells
what was done, as the commands an operator would have typed.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from podlane.runtime.clock import Clock, SystemClock
from scheduler.agent.runtime import (
    HOST_NETWORK,
    INFRA_IMAGE,
    NO_NETWORK,
    ContainerConfig,
    ExecResult,
    Image,
    NameInUse,
    NoSuchContainer,
    NoSuchImage,
    NotRunning,
    Record,
    RuntimeEvent,
    RuntimeInfo,
    RuntimeRefused,
    RuntimeUnavailable,
)

_SIGKILL_CODE = 137
_SIGTERM_CODE = 143


@dataclass(slots=True)
class _Container:
    record: Record
    config: ContainerConfig
    output: list[tuple[float, bytes]] = field(default_factory=list)


class FakeEvents:
    def __init__(self, close: Callable[[FakeEvents], None]) -> None:
        self.queue: queue.SimpleQueue[RuntimeEvent | None] = queue.SimpleQueue()
        self._close = close

    def __iter__(self) -> Iterator[RuntimeEvent]:
        while (event := self.queue.get()) is not None:
            yield event

    def close(self) -> None:
        self._close(self)
        self.queue.put(None)


class FakeLogs:
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces

    def close(self) -> None:
        self._pieces = []


class FakeExec:
    """Echoes its input; `exit N` as the input ends it with that code."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        self._input: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._code = 0
        self._ended = False

    def output(self) -> Iterator[tuple[str, bytes]]:
        while (data := self._input.get()) is not None:
            if data.startswith(b"exit "):
                self._code = int(data.split()[1])
                self._ended = True
                return
            yield "stdout", data

    def send(self, data: bytes) -> None:
        if self._ended:
            raise RuntimeUnavailable("send input: the command has ended")
        self._input.put(data)

    def end_input(self) -> None:
        self._input.put(None)

    def resize(self, height: int, width: int) -> None:
        self.sizes.append((height, width))

    def exit_code(self) -> int:
        return self._code

    def close(self) -> None:
        self._ended = True
        self._input.put(None)


class FakeRuntime:
    """`registry` are images that can be pulled; `images` those on the node (name to id).

    `down` makes every call fail, `full` those that need room on the disk;
    `image_sizes` has bytes by id; `ignores_term` are containers that go on after
    SIGTERM, `unstartable` maps an image to the error its start gives, and
    `execs` answers `exec` (container name, command).
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.images: dict[str, str] = {}
        self.users: dict[str, str] = {}
        self.registry: set[str] = set()
        self.calls: list[str] = []
        self.down = False
        self.full = False
        self.image_sizes: dict[str, int] = {}
        self.ignores_term: set[str] = set()
        self.unstartable: dict[str, str] = {}
        self.execs: Callable[[str, tuple[str, ...]], ExecResult] = lambda _name, _command: ExecResult(0, b"")
        self._lock = threading.RLock()
        self._containers: dict[str, _Container] = {}
        self._numbers = itertools.count(1)
        self._watchers: list[FakeEvents] = []

    # --- what a test does ----------------------------------------------------------

    def add_image(self, name: str) -> None:
        with self._lock:
            self.images[name] = f"sha256:{name}"
            self._tell(RuntimeEvent("image", "tag", name))

    def end(self, container: str, code: int = 0, *, oom_killed: bool = False) -> None:
        """The container's process ends by itself."""
        with self._lock:
            self._end(self._find(container), code, oom_killed=oom_killed)

    def write(self, container: str, data: bytes) -> None:
        """The container's process writes."""
        with self._lock:
            self._find(container).output.append((self.clock.now(), data))

    def alive(self, pid: int) -> bool:
        """Whether this is the first process of a running container."""
        with self._lock:
            return any(x.record.running and _pid(x.record) == pid for x in self._containers.values())

    def running(self) -> tuple[str, ...]:
        """Names of the running containers, sorted."""
        with self._lock:
            return tuple(sorted(x.record.name for x in self._containers.values() if x.record.running))

    # --- Runtime -----------------------------------------------------------------------

    def info(self) -> RuntimeInfo:
        with self._lock:
            self._check()
        return RuntimeInfo("fake", "1", "0", "none", "none", 4, 8 * 1024**3)

    def list(self) -> tuple[Record, ...]:
        with self._lock:
            self._check()
            return tuple(x.record for x in self._containers.values() if x.record.labels)

    def events(self) -> FakeEvents:
        with self._lock:
            self._check()
            stream = FakeEvents(self._watchers.remove)
            self._watchers.append(stream)
            return stream

    def ensure_infra_image(self) -> None:
        with self._lock:
            self._check()
            self.images.setdefault(INFRA_IMAGE, "sha256:infra")

    def image(self, name: str) -> str | None:
        with self._lock:
            self._check()
            return self.images.get(name)

    def image_user(self, name: str) -> str:
        with self._lock:
            self._check()
            if name not in self.images:
                raise NoSuchImage(f"inspect image {name}: not here")
            return self.users.get(name, "")

    def list_images(self) -> tuple[Image, ...]:
        with self._lock:
            self._check()
            used = {x.record.image_id for x in self._containers.values()}
            names: dict[str, list[str]] = {}
            for name, identity in self.images.items():
                names.setdefault(identity, []).append(name)
            return tuple(Image(i, tuple(sorted(n)), self.image_sizes.get(i, 1), i in used) for i, n in names.items())

    def remove_image(self, image: str) -> None:
        with self._lock:
            self._check()
            self.calls.append(f"docker rmi {image}")
            if any(x.record.image_id == image for x in self._containers.values()):
                raise RuntimeRefused(f"remove image {image}: a container uses it")
            for name in [name for name, identity in self.images.items() if identity == image]:
                del self.images[name]
                self._tell(RuntimeEvent("image", "untag", name))

    def pull(self, name: str) -> str:
        with self._lock:
            self._check()
            self.calls.append(f"docker pull {name}")
            self._check_space(f"pull image {name}")
            if name not in self.registry:
                raise RuntimeRefused(f"pull image {name}: not in the registry")
            self.add_image(name)
            return self.images[name]

    def create(self, config: ContainerConfig) -> str:
        with self._lock:
            self._check()
            self.calls.append(f"docker create {config.name}")
            if any(x.record.name == config.name for x in self._containers.values()):
                raise NameInUse(f"create container {config.name}: the name is in use")
            if config.image not in self.images:
                raise NoSuchImage(f"create container {config.name}: no such image: {config.image}")
            self._check_space(f"create container {config.name}")
            joined = ""
            if config.network.startswith("container:"):
                joined = config.network.removeprefix("container:")
                # Docker too resolves what is there, and leaves the rest to the start
                joined = next((x.record.id for x in self._containers.values() if x.record.name == joined), joined)
            elif config.network not in {NO_NETWORK, HOST_NETWORK}:
                raise RuntimeRefused(f"create container {config.name}: no network {config.network}")
            identity = f"{next(self._numbers):011x}{0:053x}"  # as with Docker, the first digits tell them apart
            record = Record(
                identity,
                config.name,
                "created",
                dict(config.labels),
                image=config.image,
                image_id=self.images[config.image],
                joined=joined,
                created_at=float(int(self.clock.now())),
            )
            self._containers[identity] = _Container(record, config)
            return identity

    def start(self, container: str) -> None:
        with self._lock:
            self._check()
            found = self._find(container)
            record = found.record
            self.calls.append(f"docker start {record.name}")
            if record.state != "created":
                raise AssertionError(f"start container {record.name}: was started before, is {record.state}")
            if record.joined and not self._runs(record.joined):
                raise RuntimeRefused(f"start container {record.name}: the joined container is not running")
            self._check_space(f"start container {record.name}")
            now = self.clock.now()
            error = self.unstartable.get(record.image)
            if error is not None:
                found.record = replace(record, state="exited", exit_code=127, error=error)
                raise RuntimeRefused(f"start container {record.name}: {error}")
            found.record = replace(record, state="running", started_at=now)

    def process(self, container: str) -> tuple[str, int]:
        with self._lock:
            self._check()
            found = self._find(container)
            if not found.record.running:
                raise NotRunning(f"find process of container {container}: it is not running")
            return found.record.id, _pid(found.record)

    def signal(self, container: str, name: str) -> None:
        with self._lock:
            self._check()
            found = self._find(container)
            self.calls.append(f"docker kill --signal {name} {found.record.name}")
            if not found.record.running:
                raise NotRunning(f"signal container {container}: it is not running")
            if name == "SIGKILL":
                self._end(found, _SIGKILL_CODE)
            elif name == "SIGTERM" and found.record.name not in self.ignores_term:
                self._end(found, _SIGTERM_CODE)

    def stop(self, container: str, grace: float) -> None:
        with self._lock:
            self._check()
            found = self._find(container)
            self.calls.append(f"docker stop --time {int(grace)} {found.record.name}")
            if found.record.running:
                self._end(found, _SIGKILL_CODE if found.record.name in self.ignores_term else _SIGTERM_CODE)

    def remove(self, container: str) -> None:
        with self._lock:
            self._check()
            try:
                found = self._find(container)
            except NoSuchContainer:
                return
            self.calls.append(f"docker rm --force {found.record.name}")
            if found.record.running:
                self._end(found, _SIGKILL_CODE)
            del self._containers[found.record.id]
            self._tell(RuntimeEvent("container", "destroy", found.record.name, found.record.labels))

    def exec(self, container: str, command: tuple[str, ...], timeout: float) -> ExecResult:
        del timeout  # nothing here takes time
        with self._lock:
            self._check()
            found = self._running(container)
        return self.execs(found.record.name, command)

    def open_exec(self, container: str, command: tuple[str, ...], *, tty: bool, stdin: bool) -> FakeExec:
        del command, tty, stdin  # whatever the command is, it echoes
        with self._lock:
            self._check()
            self._running(container)
            return FakeExec()

    def logs(
        self,
        container: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        timestamps: bool = False,
    ) -> FakeLogs:
        del follow, timestamps  # the fake's logs have an end and no times
        with self._lock:
            self._check()
            lines = [data for at, data in self._find(container).output if since is None or at >= since]
            return FakeLogs(lines if tail is None else lines[max(0, len(lines) - tail) :])

    def close(self) -> None:
        with self._lock:
            for watcher in list(self._watchers):
                watcher.close()

    # --- inside -------------------------------------------------------------------------

    def _check(self) -> None:
        if self.down:
            raise RuntimeUnavailable("reach engine: it is down")

    def _check_space(self, what: str) -> None:
        if self.full:
            raise RuntimeRefused(f"{what}: no space left on device")

    def _find(self, container: str) -> _Container:
        for found in self._containers.values():
            if container in {found.record.id, found.record.name}:
                return found
        raise NoSuchContainer(f"find container {container}: no such container")

    def _running(self, container: str) -> _Container:
        found = self._find(container)
        if not found.record.running:
            raise NotRunning(f"exec in {container}: it is not running")
        return found

    def _runs(self, identity: str) -> bool:
        found = self._containers.get(identity)
        return found is not None and found.record.running

    def _end(self, found: _Container, code: int, *, oom_killed: bool = False) -> None:
        found.record = replace(
            found.record,
            state="exited",
            exit_code=code,
            oom_killed=oom_killed,
            finished_at=self.clock.now(),
        )
        self._tell(RuntimeEvent("container", "die", found.record.name, found.record.labels))

    def _tell(self, event: RuntimeEvent) -> None:
        for watcher in self._watchers:
            watcher.queue.put(event)


def _pid(record: Record) -> int:
    return 1000 + int(record.id[:11], 16)
