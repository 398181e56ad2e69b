"""What the agent needs of a container engine: the boundary between us and Docker.

Owns: the vocabulary (container configurations, records, errors) and the
`Runtime` protocol that docker.py and fake.py implement;
tests/contract/test_agent_runtime.py holds both to one suite. Invariants every
implementation keeps: a container is never started twice (each attempt is a new
container, so an exited record is final); `list` answers with everything that
carries our labels, in one call; a call that names a container may use its name
or its id; every call ends by a deadline. Source: the Docker Engine API 1.41.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from podlane.errors import PodlaneError

QUICK_TIMEOUT = 15.0
"""Seconds an engine may take to answer a question."""
INFRA_IMAGE = "podlane/infra:1"
NO_NETWORK = "none"
"""A network namespace of its own with nothing in it but `lo`: the agent plugs it in (podnet.py)."""
HOST_NETWORK = "host"
"""The engine's own network namespace, which is the node's."""


class RuntimeUnavailable(PodlaneError):
    """The engine does not answer. Worth retrying."""


class RuntimeRefused(PodlaneError):
    """The engine answered, and will not do it: the message is the engine's."""


class NoSuchImage(RuntimeRefused):
    """The image is not on this node."""


class NoSuchContainer(RuntimeRefused):
    """The container is gone."""


class NameInUse(RuntimeRefused):
    """A container of that name is there already."""


class NotRunning(RuntimeRefused):
    """The container cannot be signalled or entered: it does not run."""


ContainerState = Literal["created", "running", "exited"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Control-group settings; 0 means not set. Memory in bytes, the quota in µs per 100 ms.

    `oom_score_adj`: of two processes the kernel ends the one with the higher score first.
    """

    cpu_shares: int = 0
    cpu_quota: int = 0
    memory: int = 0
    oom_score_adj: int = 0


@dataclass(frozen=True, slots=True)
class Security:
    """With which rights a container runs; what is empty is the image's, or the engine's default.

    `user` is "UID", "UID:GID" or a name of the image; capabilities are without their "CAP_".
    """

    user: str = ""
    groups: tuple[str, ...] = ()
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    read_only_root: bool = False
    no_new_privileges: bool = False


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or folder of the node that a container sees at `target`; it must be there when the container starts."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """How to make a container. `network` is NO_NETWORK, HOST_NETWORK, or `container:NAME` to join another's namespace.

    An empty entrypoint or cmd leaves the image's; a given entrypoint hides the
    image's cmd too, which is also what Kubernetes' command and args mean. `hidden`
    are variables whose values are not to be shown.
    """

    name: str
    image: str
    labels: Mapping[str, str]
    network: str
    hostname: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    limits: Limits = Limits()
    mounts: tuple[Mount, ...] = ()
    security: Security = Security()
    hidden: frozenset[str] = frozenset()
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A container as the engine reports it. Times in Unix seconds by this machine's clock.

    A container that could not be started is "exited" with the engine's exit
    code and `error`. `joined` is the id of the container whose network it uses.
    The engine knows of no `ip`: the agent fills it in where it sees the container
    attached to the pod network, and in `ips` all of them, that one first.
    """

    id: str
    name: str
    state: ContainerState
    labels: Mapping[str, str]
    image: str = ""
    image_id: str = ""
    ip: str = ""
    ips: tuple[str, ...] = ()
    joined: str = ""
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""

    @property
    def running(self) -> bool:
        return self.state == "running"


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    name: str
    version: str
    kernel: str
    os_image: str
    architecture: str
    cpus: int
    memory: int
    """Bytes."""
    root: str = ""
    """Folder of this machine where the engine keeps images and containers; "" when it does not tell."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image on this node: its names (tags), its size in bytes, and whether any container is made from it."""

    id: str
    names: tuple[str, ...]
    size: int
    in_use: bool


@dataclass(frozen=True, slots=True)
class RuntimeEvent:
    """Something changed. `action` is the engine's word; nothing but "look again" follows from it."""

    kind: Literal["container", "image", "network"]
    action: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExecResult:
    exit_code: int
    output: bytes


class LogStream(Protocol):
    """What a container wrote on standard output and error, mixed as it came."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None:
        """End the iteration; may be called from another thread."""
        ...


class ExecSession(Protocol):
    """A command running in a container, with its input and output connected."""

    def output(self) -> Iterator[tuple[str, bytes]]:
        """("stdout" | "stderr", bytes) pieces until the command's output ends; with a tty all is stdout."""
        ...

    def send(self, data: bytes) -> None: ...

    def end_input(self) -> None: ...

    def resize(self, height: int, width: int) -> None: ...

    def exit_code(self) -> int:
        """Of the finished command; call it after `output` ended."""
        ...

    def close(self) -> None: ...


class EventStream(Protocol):
    def __iter__(self) -> Iterator[RuntimeEvent]: ...

    def close(self) -> None:
        """End the iteration; may be called from another thread."""
        ...


class Runtime(Protocol):
    """Thread-safe. Every call may raise RuntimeUnavailable; RuntimeRefused (or a kind of it) as noted."""

    def info(self) -> RuntimeInfo: ...

    def list(self) -> tuple[Record, ...]:
        """Every container with our labels, running or not."""
        ...

    def events(self) -> EventStream:
        """What happens to our containers and to images, from now on; ends when the connection does.

        `list` shows what an event tells by the time it is told.
        """
        ...

    def ensure_infra_image(self) -> None:
        """Build INFRA_IMAGE unless it is there; never pulls."""
        ...

    def image(self, name: str) -> str | None:
        """The id of an image on this node, or None."""
        ...

    def image_user(self, name: str) -> str:
        """Whom an image runs as: "" (root), "NAME", "UID" or "UID:GID". Raises NoSuchImage."""
        ...

    def list_images(self) -> tuple[Image, ...]:
        """Every image on this node, whoever brought it; a container of anybody's, running or not, is a use."""
        ...

    def remove_image(self, image: str) -> None:
        """Remove an image (its id) with all its names; no error when it is gone. Raises RuntimeRefused when in use."""
        ...

    def pull(self, name: str) -> str:
        """Fetch an image and return its id; takes as long as the registry goes on sending. Raises RuntimeRefused."""
        ...

    def create(self, config: ContainerConfig) -> str:
        """Make a container and return its id. Raises NoSuchImage, NameInUse, RuntimeRefused."""
        ...

    def start(self, container: str) -> None:
        """Raises NoSuchContainer; RuntimeRefused when its command cannot be run."""
        ...

    def process(self, container: str) -> tuple[str, int]:
        """The id of a running container and the pid of its first process. Raises NoSuchContainer, NotRunning."""
        ...

    def signal(self, container: str, name: str) -> None:
        """Send a signal; "SIGTERM" means the stop signal its image asks for. Raises NoSuchContainer, NotRunning."""
        ...

    def stop(self, container: str, grace: float) -> None:
        """SIGTERM, `grace` seconds later SIGKILL; returns when it has ended. Raises NoSuchContainer."""
        ...

    def remove(self, container: str) -> None:
        """Remove a container, killing it if it runs; no error when it is gone."""
        ...

    def exec(self, container: str, command: tuple[str, ...], timeout: float) -> ExecResult:
        """Run a command to its end. Raises TimeoutError after `timeout` seconds, NoSuchContainer, NotRunning."""
        ...

    def open_exec(self, container: str, command: tuple[str, ...], *, tty: bool, stdin: bool) -> ExecSession:
        """Raises NoSuchContainer, NotRunning."""
        ...

    def logs(
        self,
        container: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        timestamps: bool = False,
    ) -> LogStream:
        """Output of a container, oldest first; `since` in Unix seconds. Raises NoSuchContainer."""
        ...

    def close(self) -> None: ...
