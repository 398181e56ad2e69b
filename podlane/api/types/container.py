"""A container of a pod: what it runs, its environment, ports, resources and probes."""

from __future__ import annotations

from typing import Literal

import msgspec

from podlane.api.types.base import Protocol, Struct
from podlane.api.types.reference import EnvFromSource, EnvVar
from podlane.api.types.volume import VolumeMount


class ContainerPort(Struct, frozen=True, kw_only=True):
    """`host_port` 0 is none; with one, the node's port (at `host_ip`, "" any address) leads to the container."""

    container_port: int
    name: str = ""
    protocol: Protocol = "TCP"
    host_port: int = 0
    host_ip: str = msgspec.field(default="", name="hostIP")


class ResourceRequirements(Struct, frozen=True, kw_only=True):
    """Quantities by resource name: cpu, memory (bytes). See quantity.py."""

    requests: dict[str, str] = {}
    limits: dict[str, str] = {}


class HTTPHeader(Struct, frozen=True, kw_only=True):
    name: str
    value: str = ""


class HTTPGetAction(Struct, frozen=True, kw_only=True):
    port: int | str
    path: str = "/"
    host: str = ""
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"
    http_headers: tuple[HTTPHeader, ...] = ()


class TCPSocketAction(Struct, frozen=True, kw_only=True):
    port: int | str
    host: str = ""


class ExecAction(Struct, frozen=True, kw_only=True):
    command: tuple[str, ...] = ()


class GRPCAction(Struct, frozen=True, kw_only=True):
    """grpc.health.v1.Health/Check of `service`."""

    port: int
    service: str = ""


class SleepAction(Struct, frozen=True, kw_only=True):
    seconds: int


class Probe(Struct, frozen=True, kw_only=True):
    """All times in whole seconds; `termination_grace_period_seconds` None is the pod's."""

    http_get: HTTPGetAction | None = None
    tcp_socket: TCPSocketAction | None = None
    exec: ExecAction | None = None
    grpc: GRPCAction | None = None
    initial_delay_seconds: int = 0
    timeout_seconds: int = 1
    period_seconds: int = 10
    success_threshold: int = 1
    failure_threshold: int = 3
    termination_grace_period_seconds: int | None = None


class LifecycleHandler(Struct, frozen=True, kw_only=True):
    """Exactly one of them."""

    exec: ExecAction | None = None
    http_get: HTTPGetAction | None = None
    tcp_socket: TCPSocketAction | None = None
    sleep: SleepAction | None = None


class Lifecycle(Struct, frozen=True, kw_only=True):
    post_start: LifecycleHandler | None = None
    pre_stop: LifecycleHandler | None = None


class Capabilities(Struct, frozen=True, kw_only=True):
    """Without their "CAP_"; "ALL" is all of them."""

    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


class SecurityContext(Struct, frozen=True, kw_only=True):
    """None is what the pod's context says, or else the image and Docker."""

    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    read_only_root_filesystem: bool = False
    privileged: bool = False
    allow_privilege_escalation: bool | None = None
    capabilities: Capabilities | None = None


class Container(Struct, frozen=True, kw_only=True):
    """`restart_policy` Always, on an init container only, makes it a sidecar: it runs for as long as the pod does."""

    name: str = ""
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[EnvFromSource, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    resources: ResourceRequirements = ResourceRequirements()
    volume_mounts: tuple[VolumeMount, ...] = ()
    startup_probe: Probe | None = None
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    lifecycle: Lifecycle | None = None
    restart_policy: Literal["", "Always"] = ""
    security_context: SecurityContext | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never", ""] = ""
    termination_message_path: str = "/dev/termination-log"
    termination_message_policy: Literal["File", "FallbackToLogsOnError"] = "File"
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
