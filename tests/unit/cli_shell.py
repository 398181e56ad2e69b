"""The podlane command over a store in memory, and the objects its tests show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from click.testing import CliRunner, Result
from msgspec.structs import replace

from podlane.api.defaults import apply_defaults
from podlane.api.types import (
    ClusterConfig,
    Condition,
    Container,
    ContainerState,
    ContainerStateRunning,
    ContainerStateTerminated,
    ContainerStateWaiting,
    ContainerStatus,
    Object,
    ObjectMeta,
    OwnerReference,
    Pod,
    PodSpec,
    PodStatus,
    PodTemplateSpec,
    ReplicationController,
    ReplicationControllerSpec,
)
from podlane.cli.main import cli
from podlane.cli.session import Session
from podlane.runtime.clock import Clock, ScriptedClock
from podlane.store.config import StoreConfig
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def ago(**parts: float) -> datetime:
    return NOW - timedelta(**parts)


class Shell:
    """`run` is one invocation; the store and the clock stay between them."""

    def __init__(self, clock: Clock | None = None, *, init: bool = True) -> None:
        self.clock = clock or ScriptedClock(NOW.timestamp())
        self.etcd = StoreConfig()
        self.store = MemoryStore(self.clock)
        self.registry = Registry(self.store, clock=self.clock)
        if init:
            self.registry.init_cluster(ClusterConfig(agent_token="secret"))

    def session(self) -> Session:
        return Session(connect=lambda _: self.store, clock=self.clock, etcd=self.etcd)

    def run(self, *args: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
        result = CliRunner().invoke(cli, args, obj=self.session(), input=stdin, env=env, prog_name="podlane")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def ok(self, *args: str, stdin: str | None = None, env: dict[str, str] | None = None) -> str:
        """Standard output of a command that must succeed."""
        result = self.run(*args, stdin=stdin, env=env)
        assert result.exit_code == 0, f"exit {result.exit_code}\n{result.stdout}{result.stderr}"
        return result.stdout

    def fails(self, *args: str, code: int = 1, stdin: str | None = None) -> str:
        """Standard error of a command that must fail with that exit code."""
        result = self.run(*args, stdin=stdin)
        assert result.exit_code == code, f"exit {result.exit_code}\n{result.stdout}{result.stderr}"
        return result.stderr

    def add(self, *objects: Object) -> None:
        for obj in objects:
            self.registry.create(obj)

    def revision(self) -> int:
        """Grows with every write: the same number means that nothing was changed."""
        return self.store.list("/").revision


def lines(text: str) -> list[str]:
    return text.strip("\n").split("\n")


def running(name: str = "web", *, ready: bool = True, restarts: int = 0, last: ContainerState | None = None):
    return ContainerStatus(
        name=name,
        state=ContainerState(running=ContainerStateRunning(started_at=ago(minutes=5))),
        ready=ready,
        restart_count=restarts,
        last_state=last or ContainerState(),
    )


def waiting(reason: str, name: str = "web", *, restarts: int = 0, last: ContainerState | None = None):
    return ContainerStatus(
        name=name,
        state=ContainerState(waiting=ContainerStateWaiting(reason=reason)),
        restart_count=restarts,
        last_state=last or ContainerState(),
    )


def terminated(name: str = "web", *, reason: str = "", exit_code: int = 0, signal: int = 0, finished=None):
    return ContainerState(
        terminated=ContainerStateTerminated(reason=reason, exit_code=exit_code, signal=signal, finished_at=finished)
    )


def pod(
    name: str = "web-1",
    *statuses: ContainerStatus,
    phase: str = "Running",
    node: str = "node1",
    ip: str = "10.244.1.2",
    labels: dict[str, str] | None = None,
    owner: OwnerReference | None = None,
    namespace: str = "default",
    ready: bool = True,
    containers: int = 1,
    deleting: datetime | None = None,
    reason: str = "",
) -> Pod:
    names = ["web", "log", "third"][:containers]
    return apply_defaults(
        Pod(
            metadata=ObjectMeta(
                name=name,
                namespace=namespace,
                uid=f"uid-{name}",
                labels=labels if labels is not None else {"app": "web"},
                creation_timestamp=ago(minutes=5, seconds=3),
                deletion_timestamp=deleting,
                deletion_grace_period_seconds=30 if deleting else None,
                owner_references=(owner,) if owner else (),
            ),
            spec=PodSpec(containers=tuple(Container(name=n, image=f"{n}:1") for n in names), node_name=node),
            status=PodStatus(
                phase=phase,  # type: ignore[arg-type]
                reason=reason,
                pod_ip=ip,
                host_ip="192.168.64.11" if node else "",
                container_statuses=statuses or tuple(running(n, ready=ready) for n in names),
                conditions=(Condition(type="Ready", status="True" if ready else "False"),),
            ),
        )
    )


def rc(name: str = "web", replicas: int = 4) -> ReplicationController:
    return apply_defaults(
        ReplicationController(
            metadata=ObjectMeta(name=name, namespace="default"),
            spec=ReplicationControllerSpec(
                replicas=replicas,
                selector={"app": name},
                template=PodTemplateSpec(
                    metadata=ObjectMeta(labels={"app": name}),
                    spec=PodSpec(containers=(Container(name=name, image=f"{name}:1"),)),
                ),
            ),
        )
    )


def owner(controller: Object) -> OwnerReference:
    return OwnerReference(
        api_version="v1",
        kind="ReplicationController",
        name=controller.metadata.name,
        uid=controller.metadata.uid,
        controller=True,
    )


def with_meta(obj, **changes):
    return replace(obj, metadata=replace(obj.metadata, **changes))
