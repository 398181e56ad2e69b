"""The container engine as it is: Docker's API behind the `Runtime` protocol.

Owns: every call to dockerd; the docker package is imported nowhere else.
Invariants: a call ends by the client's read timeout (streams excepted, which
end when closed); an inspection is remembered for as long as its answer cannot
change, so listing a quiet node is one request. Notes on dockerd 20.10: a
container that could not be started stays "created" with an exit code and an
error; `State.StartedAt` of a very short-lived one may be after its FinishedAt;
the `names` filter of networks matches parts of names. Source: Docker Engine
API 1.41.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import docker
import docker.errors
import docker.utils
import requests.exceptions
import urllib3.exceptions

from scheduler.agent import containers as c
from scheduler.agent.dockerexec import DockerExec, run_to_end
from scheduler.agent.dockerforms import container_body, state_of, time_of
from scheduler.agent.infra import image_archive
from scheduler.agent.runtime import (
    INFRA_IMAGE,
    ContainerConfig,
    ExecResult,
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

T = TypeVar("T")

QUICK_TIMEOUT = 15
"""Seconds for questions, which dockerd answers from memory."""
WORK_TIMEOUT = 120
"""Seconds for steps; under load dockerd takes its time to start a container."""
_POOL = 32
# create and start are our own doing (the worker says when it is done), exec_* are the probes'
_EVENTS = ["die", "destroy", "oom", "pull", "import", "load", "tag", "untag", "delete"]


class DockerRuntime:
    """`base_url` as in `unix:///run/docker.sock`. Nothing is sent before the first call."""

    def __init__(self, base_url: str, *, quick: float = QUICK_TIMEOUT, work: float = WORK_TIMEOUT) -> None:
        self._url = base_url
        self._timeouts: dict[str, float | None] = {"quick": quick, "work": work, "stream": None}
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}
        self._version = ""
        self._seen: dict[str, tuple[str, Mapping[str, Any]]] = {}  # id -> (state, inspected State)

    # --- what is there ---------------------------------------------------------

    def info(self) -> RuntimeInfo:
        told = self._ask("inspect engine", lambda api: api.info())
        return RuntimeInfo(
            name="docker",
            version=told.get("ServerVersion", ""),
            kernel=told.get("KernelVersion", ""),
            os_image=told.get("OperatingSystem", ""),
            architecture=told.get("Architecture", ""),
            cpus=int(told.get("NCPU", 0)),
            memory=int(told.get("MemTotal", 0)),
        )

    def list(self) -> tuple[Record, ...]:
        items = self._ask("list containers", lambda api: api.containers(all=True, filters={"label": c.POD_UID}))
        records = tuple(r for r in map(self._record, items) if r is not None)
        known = {item["Id"] for item in items}
        with self._lock:
            self._seen = {i: seen for i, seen in self._seen.items() if i in known}
        return records

    def _record(self, item: Mapping[str, Any]) -> Record | None:
        identity, state = item["Id"], state_of(item["State"])
        labels = item.get("Labels") or {}
        infra = labels.get(c.CONTAINER_NAME) == c.INFRA
        details: Mapping[str, Any] = {}
        if not (infra and state == "running"):
            try:
                details = self._details(identity, item["State"])
            except NoSuchContainer:
                return None
        error = details.get("Error", "")
        if state == "created" and details.get("ExitCode", 0):
            state = "exited"
            error = error or f"not started, exit code {details['ExitCode']}"
        mode = (item.get("HostConfig") or {}).get("NetworkMode", "")
        started, finished = time_of(details.get("StartedAt")), time_of(details.get("FinishedAt"))
        if started and finished:
            started = min(started, finished)
        return Record(
            id=identity,
            name=item["Names"][0].lstrip("/") if item.get("Names") else identity,
            state=state,
            labels=labels,
            image=item.get("Image", ""),
            image_id=item.get("ImageID", ""),
            joined=mode.removeprefix("container:") if mode.startswith("container:") else "",
            created_at=float(item.get("Created", 0)),
            started_at=started,
            finished_at=finished if state == "exited" else None,
            exit_code=int(details.get("ExitCode", 0)) if state == "exited" else 0,
            oom_killed=bool(details.get("OOMKilled")),
            error=error if state == "exited" else "",
        )

    def _details(self, identity: str, state: str) -> Mapping[str, Any]:
        with self._lock:
            seen = self._seen.get(identity)
        if seen is not None and seen[0] == state:
            return seen[1]
        told = self._ask(
            f"inspect container {identity[:12]}", lambda api: api.inspect_container(identity), NoSuchContainer
        )
        details: Mapping[str, Any] = told["State"]
        with self._lock:
            self._seen[identity] = (str(details.get("Status", state)), details)
        return details

    def events(self) -> DockerEvents:
        filters = {"type": ["container", "image"], "event": _EVENTS}
        stream = self._call("stream", "follow events", lambda api: api.events(filters=filters, decode=True))
        return DockerEvents(stream, self._settle)

    def _settle(self, identity: str) -> None:
        """Wait until `list` shows that a container died.

        dockerd 20.10 says "die" before it updates what its list is made from; an
        inspection waits for the container's lock, which is held until then.
        """
        with suppress(NoSuchContainer, RuntimeRefused, RuntimeUnavailable):
            self._ask("inspect container", lambda api: api.inspect_container(identity), NoSuchContainer)

    # --- images -----------------------------------------------------------------

    def ensure_infra_image(self) -> None:
        if self.image(INFRA_IMAGE) is not None:
            return
        archive, command = image_archive()
        name, tag = INFRA_IMAGE.split(":")
        words = ", ".join(f'"{word}"' for word in command)
        self._do(
            f"build image {INFRA_IMAGE}",
            lambda api: api.import_image_from_data(archive, repository=name, tag=tag, changes=[f"CMD [{words}]"]),
        )

    def image(self, name: str) -> str | None:
        try:
            told = self._ask(f"inspect image {name}", lambda api: api.inspect_image(name), NoSuchImage)
        except NoSuchImage:
            return None
        return str(told["Id"])

    def pull(self, name: str) -> str:
        repository, tag = docker.utils.parse_repository_tag(name)

        def fetch(api: Any) -> None:
            for line in api.pull(repository, tag=tag or "latest", stream=True, decode=True):
                if "error" in line:
                    raise RuntimeRefused(f"pull image {name}: {line['error']}")

        self._do(f"pull image {name}", fetch)
        identity = self.image(name)
        if identity is None:
            raise RuntimeRefused(f"pull image {name}: fetched, and not there afterwards")
        return identity

    # --- containers -----------------------------------------------------------------

    def create(self, config: ContainerConfig) -> str:
        told = self._do(
            f"create container {config.name}",
            lambda api: api.create_container_from_config(container_body(config), config.name),
            NoSuchImage,
            NameInUse,
        )
        return str(told["Id"])

    def start(self, container: str) -> None:
        try:
            self._do(f"start container {container}", lambda api: api.start(container), NoSuchContainer)
        except RuntimeRefused:
            with self._lock:  # what was inspected of it before is not so any more
                self._seen = {i: seen for i, seen in self._seen.items() if seen[0] != "created"}
            raise

    def process(self, container: str) -> tuple[str, int]:
        told = self._ask(
            f"inspect container {container}", lambda api: api.inspect_container(container), NoSuchContainer
        )
        pid = int(told["State"].get("Pid", 0))
        if not pid:
            raise NotRunning(f"find process of container {container}: it is not running")
        return str(told["Id"]), pid

    def signal(self, container: str, name: str) -> None:
        if name == "SIGTERM":
            told = self._ask(
                f"inspect container {container}", lambda api: api.inspect_container(container), NoSuchContainer
            )
            name = (told.get("Config") or {}).get("StopSignal") or name
        self._do(f"signal container {container}", lambda api: api.kill(container, name), NoSuchContainer, NotRunning)

    def stop(self, container: str, grace: float) -> None:
        self._do(f"stop container {container}", lambda api: api.stop(container, timeout=int(grace)), NoSuchContainer)

    def remove(self, container: str) -> None:
        with suppress(NoSuchContainer, NameInUse):
            self._do(
                f"remove container {container}",
                lambda api: api.remove_container(container, force=True, v=True),
                NoSuchContainer,
                NameInUse,  # 409: its removal is in progress
            )

    def exec(self, container: str, command: tuple[str, ...], timeout: float) -> ExecResult:
        session = self._open(container, command, tty=False, stdin=False)
        return run_to_end(session, timeout)

    def open_exec(self, container: str, command: tuple[str, ...], *, tty: bool, stdin: bool) -> DockerExec:
        return self._open(container, command, tty=tty, stdin=stdin)

    def _open(self, container: str, command: tuple[str, ...], *, tty: bool, stdin: bool) -> DockerExec:
        made = self._ask(
            f"exec in {container}",
            lambda api: api.exec_create(container, [*command], tty=tty, stdin=stdin),
            NoSuchContainer,
            NotRunning,
        )
        identity = made["Id"]
        channel = self._call(
            "stream",
            f"exec in {container}",
            lambda api: api.exec_start(identity, tty=tty, socket=True),
            NoSuchContainer,
            NotRunning,
        )

        def resize(height: int, width: int) -> None:
            with suppress(RuntimeRefused):  # the command ended meanwhile
                self._ask("resize terminal", lambda api: api.exec_resize(identity, height, width))

        def exit_code() -> int | None:
            code = self._ask("inspect exec", lambda api: api.exec_inspect(identity))["ExitCode"]
            return None if code is None else int(code)

        return DockerExec(channel, tty=tty, resize=resize, exit_code=exit_code)

    def logs(
        self,
        container: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        timestamps: bool = False,
    ) -> DockerLogs:
        stream = self._call(
            "stream",
            f"read logs of {container}",
            lambda api: api.logs(
                container,
                stream=True,
                follow=follow,
                tail="all" if tail is None else tail,
                since=since,
                timestamps=timestamps,
            ),
            NoSuchContainer,
        )
        return DockerLogs(stream)

    def close(self) -> None:
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()

    # --- calls ----------------------------------------------------------------------

    def _ask(self, what: str, call: Callable[[Any], Any], *kinds: type[RuntimeRefused]) -> Any:
        return self._call("quick", what, call, *kinds)

    def _do(self, what: str, call: Callable[[Any], Any], *kinds: type[RuntimeRefused]) -> Any:
        return self._call("work", what, call, *kinds)

    def _call(self, client: str, what: str, call: Callable[[Any], T], *kinds: type[RuntimeRefused]) -> T:
        """`kinds`: what HTTP 404 means for this call, then what 409 means."""
        try:
            return call(self._client(client))
        except docker.errors.APIError as error:
            text = f"{what}: {error.explanation or error}".replace("\n", " ")
            code = error.status_code
            if code == 404 and kinds:
                raise kinds[0](text) from error
            if code == 409 and len(kinds) > 1:
                raise kinds[1](text) from error
            if code == 500 and "is not running" in text and NotRunning in kinds:
                raise NotRunning(text) from error
            raise RuntimeRefused(text) from error
        except (
            docker.errors.DockerException,
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            raise RuntimeUnavailable(f"{what}: {error}") from error

    def _client(self, kind: str) -> Any:
        with self._lock:
            client: Any = self._clients.get(kind)
            if client is None:
                # asking for the version is a call too, so no client without an engine
                client = docker.APIClient(
                    self._url,
                    version=self._version or "auto",
                    timeout=QUICK_TIMEOUT,
                    max_pool_size=_POOL,
                )
                # else each call looks for proxies and a .netrc, which costs as much as packing the request
                client.trust_env = False
                self._version = client.api_version
                client.timeout = self._timeouts[kind]
                self._clients[kind] = client
            return client


class DockerEvents:
    """What dockerd says happened, reduced to our own containers and to images."""

    def __init__(self, stream: Any, settle: Callable[[str], None]) -> None:
        self._stream = stream
        self._settle = settle

    def __iter__(self) -> Iterator[RuntimeEvent]:
        for event in self._stream:
            labels = event.get("Actor", {}).get("Attributes", {})
            if event["Type"] == "container" and c.POD_UID in labels:
                if event["Action"] == "die":
                    self._settle(event["Actor"]["ID"])
                yield RuntimeEvent("container", event["Action"], labels.get("name", ""), labels)
            elif event["Type"] == "image":
                yield RuntimeEvent("image", event["Action"], labels.get("name", ""))

    def close(self) -> None:
        _close(self._stream)


class DockerLogs:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        _close(self._stream)


def _close(stream: Any) -> None:
    # it may have ended by itself in this very moment
    with suppress(OSError, AttributeError):
        stream.close()
