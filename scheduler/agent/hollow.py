"""A container engine without containers that takes its time, as a real one does.

Owns: what pods on hollow nodes look like to the agent. The rules are those of
the fake (fake.py); what is added is that things happen by themselves: every
image is there or can be pulled, a container told to end does so a moment later,
and one whose command is `sleep N`, `true` or `false` ends as that would.
Invariant: nothing is remembered of what is over, so a node may run for ever.
"""

# ruff: noqa: ARG002 - what is asked for is not done

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from podlane.errors import PodlaneError
from podlane.runtime.clock import Clock
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.podfiles import PodFiles
from scheduler.agent.probes import Answer, Target
from scheduler.agent.runtime import ContainerConfig, RuntimeEvent, RuntimeInfo
from scheduler.agent.volumes import SubPath, VolumeSetUp

STOP_SECONDS = 0.1
"""From SIGTERM to the end of a well-behaved process."""
LISTEN_SECONDS = 0.2
"""From the start of a process to its being ready to serve."""

Later = Callable[[float, Callable[[], object]], None]


class _Forgotten(list[str]):
    """A list of calls nobody will ask for."""

    def append(self, item: str, /) -> None:
        del item


class HollowRuntime(FakeRuntime):
    """`later` does something in so many seconds, `on_event` hears what happens to containers and images."""

    def __init__(self, clock: Clock, later: Later, on_event: Callable[[RuntimeEvent], None]) -> None:
        super().__init__(clock)
        self.calls = _Forgotten()
        self._later = later
        self._on_event = on_event

    def info(self) -> RuntimeInfo:
        return RuntimeInfo("hollow", "1", "none", "none", "none", 0, 0)

    def image(self, name: str) -> str | None:
        with self._lock:
            self._check()
            return self.images.setdefault(name, f"sha256:{name}")

    def pull(self, name: str) -> str:
        with self._lock:
            self.registry.add(name)
        return super().pull(name)

    def start(self, container: str) -> None:
        super().start(container)
        with self._lock:
            found = self._find(container)
            ends = lifetime(found.config)
        if ends is not None:
            seconds, code = ends
            self._later(seconds, lambda: self._end_by_itself(found.record.id, code))

    def signal(self, container: str, name: str) -> None:
        with self._lock:
            record = self._find(container).record
        if name == "SIGTERM" and record.running:
            self._later(STOP_SECONDS, lambda: self._end_by_itself(record.id, 128 + 15))
        else:
            super().signal(container, name)

    def check(self, target: Target) -> Answer:
        """Answer a probe: the process serves some time after its start."""
        with self._lock:
            try:
                record = self._find(target.id).record
            except PodlaneError as error:
                return False, str(error)
            if not record.running or record.started_at is None:
                return False, "it does not run"
            if self.clock.now() < record.started_at + LISTEN_SECONDS:
                return False, "connection refused"
        return True, ""

    def _end_by_itself(self, container: str, code: int) -> None:
        with self._lock:
            found = self._containers.get(container)
            if found is not None and found.record.running:
                self._end(found, code)

    def _tell(self, event: RuntimeEvent) -> None:
        super()._tell(event)
        self._on_event(event)


class HollowFiles(PodFiles):
    """No file is made, no volume mounted, and no path of this machine touched, whatever a pod asks for."""

    def write_hosts(
        self, path: str, hostname: str, ips: Sequence[str], *, aliases: Sequence[str] = (), on_host: bool = False
    ) -> None:
        return

    def make_empty(self, path: str) -> None:
        return

    def set_up(self, volume: VolumeSetUp) -> None:
        return

    def bind(self, part: SubPath) -> None:
        return

    def left_over(self, uids: Collection[str]) -> list[str]:
        return []

    def has_volumes(self, uid: str) -> bool:
        return False


def lifetime(config: ContainerConfig) -> tuple[float, int] | None:
    """After how many seconds a container ends by itself, and with what exit code; None: never."""
    match (*config.entrypoint, *config.cmd):
        case ("sleep", seconds) if seconds.replace(".", "", 1).isdigit():
            return float(seconds), 0
        case ("true",):
            return 0.0, 0
        case ("false",):
            return 0.0, 1
    return None
