"""The container engine as it is: Docker's API behind the `Runtime` protocol.

Owns: what each call says, and what its answer means (dockerapi.py makes the
calls). Invariants: a stream ends when closed; an inspection is remembered for
as long as its answer cannot change, so listing a quiet node is one request. Notes on dockerd 20.10: a
container that could not be started stays "created" with an exit code and an
error; `State.StartedAt` of a very short-lived one may be after its FinishedAt;
the `names` filter of networks matches parts of names. Source: Docker Engine
API 1.41.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import docker.utils

from scheduler.agent import containers as c
from scheduler.agent import selinux
from scheduler.agent.dockerapi import WORK_TIMEOUT, DockerApi, Stream, in_pieces, without_deadline
from scheduler.agent.dockerexec import DockerExec, run_to_end
from scheduler.agent.dockerforms import container_body, state_of, time_of
from scheduler.agent.infra import image_archive
from scheduler.agent.runtime import (
    INFRA_IMAGE,
    QUICK_TIMEOUT,
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

_CAP_SYS_RESOURCE = 24
# create and start are our own doing (the worker says when it is done), exec_* are the probes'
_EVENTS = ["die", "destroy", "oom", "pull", "import", "load", "tag", "untag", "delete"]


class DockerRuntime:
    """`base_url` as in `unix:///run/docker.sock`. Nothing is sent before the first call."""

    def __init__(self, base_url: str, *, quick: float = QUICK_TIMEOUT, work: float = WORK_TIMEOUT) -> None:
        self._api = DockerApi(base_url, quick=quick, work=work)
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[str, Mapping[str, Any]]] = {}  # id -> (state, inspected State)

    # --- what is there ---------------------------------------------------------

    def info(self) -> RuntimeInfo:
        told = self._api.ask("inspect engine", lambda api: api.info())
        return RuntimeInfo(
            name="docker",
            version=told.get("ServerVersion", ""),
            kernel=told.get("KernelVersion", ""),
            os_image=told.get("OperatingSystem", ""),
            architecture=told.get("Architecture", ""),
            cpus=int(told.get("NCPU", 0)),
            memory=int(told.get("MemTotal", 0)),
            root=told.get("DockerRootDir", ""),
        )

    def list(self) -> tuple[Record, ...]:
        items = self._api.ask("list containers", lambda api: api.containers(all=True, filters={"label": c.POD_UID}))
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
        told = self._api.ask(
            f"inspect container {identity[:12]}", lambda api: api.inspect_container(identity), NoSuchContainer
        )
        details: Mapping[str, Any] = told["State"]
        with self._lock:
            self._seen[identity] = (str(details.get("Status", state)), details)
        return details

    def events(self) -> DockerEvents:
        filters = {"type": ["container", "image"], "event": _EVENTS}
        stream = self._api.ask(
            "follow events", lambda api: without_deadline(api, api.events(filters=filters, decode=True))
        )
        return DockerEvents(stream, self._settle)

    def _settle(self, identity: str) -> None:
        """Wait until `list` shows that a container died.

        dockerd 20.10 says "die" before it updates what its list is made from; an
        inspection waits for the container's lock, which is held until then.
        """
        with suppress(NoSuchContainer, RuntimeRefused, RuntimeUnavailable):
            self._api.ask("inspect container", lambda api: api.inspect_container(identity), NoSuchContainer)

    # --- images -----------------------------------------------------------------

    def ensure_infra_image(self) -> None:
        if self.image(INFRA_IMAGE) is not None:
            return
        archive, command = image_archive()
        name, tag = INFRA_IMAGE.split(":")
        words = ", ".join(f'"{word}"' for word in command)
        self._api.do(
            f"build image {INFRA_IMAGE}",
            lambda api: api.import_image_from_data(archive, repository=name, tag=tag, changes=[f"CMD [{words}]"]),
        )

    def image(self, name: str) -> str | None:
        try:
            told = self._api.ask(f"inspect image {name}", lambda api: api.inspect_image(name), NoSuchImage)
        except NoSuchImage:
            return None
        return str(told["Id"])

    def image_user(self, name: str) -> str:
        told = self._api.ask(f"inspect image {name}", lambda api: api.inspect_image(name), NoSuchImage)
        return str((told.get("Config") or {}).get("User") or "")

    def list_images(self) -> tuple[Image, ...]:
        found = self._api.ask("list images", lambda api: api.images())
        used = {item["ImageID"] for item in self._api.ask("list containers", lambda api: api.containers(all=True))}
        return tuple(
            # 20.10 calls an image that has lost its names <none>:<none>, later ones give it none
            Image(i["Id"], tuple(n for n in i.get("RepoTags") or () if "<none>" not in n), i["Size"], i["Id"] in used)
            for i in found
        )

    def remove_image(self, image: str) -> None:
        told: Any = {}
        with suppress(NoSuchImage):
            told = self._api.ask(f"inspect image {image}", lambda api: api.inspect_image(image), NoSuchImage)
        # by its id it goes only when it has one name
        names = [*(told.get("RepoTags") or ()), *(told.get("RepoDigests") or ())]
        for name in told and (names or [image]):
            with suppress(NoSuchImage):
                self._api.do(f"remove image {name}", partial(_remove_image, name), NoSuchImage)

    def pull(self, name: str) -> str:
        repository, tag = docker.utils.parse_repository_tag(name)

        def fetch(api: Any) -> None:
            for line in api.pull(repository, tag=tag or "latest", stream=True, decode=True):
                if "error" in line:
                    raise RuntimeRefused(f"pull image {name}: {line['error']}")

        self._api.fetch(f"pull image {name}", fetch)
        identity = self.image(name)
        if identity is None:
            raise RuntimeRefused(f"pull image {name}: fetched, and not there afterwards")
        return identity

    # --- containers -----------------------------------------------------------------

    def create(self, config: ContainerConfig) -> str:
        score = max(config.limits.oom_score_adj, lowest_oom_score_adj())
        config = replace(config, limits=replace(config.limits, oom_score_adj=score))
        level = selinux.level(config.labels.get(c.POD_UID, "")) if selinux.is_on() else ""
        told = self._api.do(
            f"create container {config.name}",
            lambda api: api.create_container_from_config(container_body(config, level=level), config.name),
            NoSuchImage,
            NameInUse,
        )
        return str(told["Id"])

    def start(self, container: str) -> None:
        try:
            self._api.do(f"start container {container}", lambda api: api.start(container), NoSuchContainer)
        except RuntimeRefused:
            with self._lock:  # what was inspected of it before is not so any more
                self._seen = {i: seen for i, seen in self._seen.items() if seen[0] != "created"}
            raise

    def process(self, container: str) -> tuple[str, int]:
        told = self._api.ask(
            f"inspect container {container}", lambda api: api.inspect_container(container), NoSuchContainer
        )
        pid = int(told["State"].get("Pid", 0))
        if not pid:
            raise NotRunning(f"find process of container {container}: it is not running")
        return str(told["Id"]), pid

    def signal(self, container: str, name: str) -> None:
        if name == "SIGTERM":
            told = self._api.ask(
                f"inspect container {container}", lambda api: api.inspect_container(container), NoSuchContainer
            )
            name = (told.get("Config") or {}).get("StopSignal") or name
        self._api.do(
            f"signal container {container}", lambda api: api.kill(container, name), NoSuchContainer, NotRunning
        )

    def stop(self, container: str, grace: float) -> None:
        self._api.do(
            f"stop container {container}", lambda api: api.stop(container, timeout=int(grace)), NoSuchContainer
        )

    def remove(self, container: str) -> None:
        with suppress(NoSuchContainer, NameInUse):
            self._api.do(
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
        made = self._api.ask(
            f"exec in {container}",
            lambda api: api.exec_create(container, [*command], tty=tty, stdin=stdin),
            NoSuchContainer,
            NotRunning,
        )
        identity = made["Id"]
        channel = self._api.ask(
            f"exec in {container}",
            lambda api: api.exec_start(identity, tty=tty, socket=True),
            NoSuchContainer,
            NotRunning,
        )

        def resize(height: int, width: int) -> None:
            with suppress(RuntimeRefused):  # the command ended meanwhile
                self._api.ask("resize terminal", lambda api: api.exec_resize(identity, height, width))

        def exit_code() -> int | None:
            code = self._api.ask("inspect exec", lambda api: api.exec_inspect(identity))["ExitCode"]
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
    ) -> Stream:
        wanted: dict[str, Any] = {"follow": follow, "tail": "all" if tail is None else tail, "timestamps": timestamps}
        if since is not None and since > 0:
            wanted["since"] = since
        stream = self._api.ask(
            f"read logs of {container}",
            lambda api: without_deadline(api, in_pieces(api, container, api.logs(container, stream=True, **wanted))),
            NoSuchContainer,
        )
        return Stream(stream)

    def close(self) -> None:
        self._api.close()


@cache
def lowest_oom_score_adj() -> int:
    """What a container may be given: below our own score only with CAP_SYS_RESOURCE, which a machine may not have.

    runc says nothing better than "can't get final child's PID from pipe" then.
    """
    status = Path("/proc/self/status").read_text()
    held = int(status.split("CapEff:")[1].split()[0], 16)
    return -1000 if held >> _CAP_SYS_RESOURCE & 1 else int(Path("/proc/self/oom_score_adj").read_text())


def _remove_image(name: str, api: Any) -> None:
    api.remove_image(name)


class DockerEvents(Stream):
    """What dockerd says happened, reduced to our own containers and to images."""

    def __init__(self, stream: Any, settle: Callable[[str], None]) -> None:
        super().__init__(stream)
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
