"""A container of a pod: what it runs, its environment, ports, resources and probes."""

from __future__ import annotations

from typing import Literal

from podlane.api.types.base import Protocol, Struct


class ContainerPort(Struct, frozen=True, kw_only=True):
    container_port: int
    name: str = ""
    protocol: Protocol = "TCP"


class EnvVar(Struct, frozen=True, kw_only=True):
    name: str
    value: str = ""


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


class Probe(Struct, frozen=True, kw_only=True):
    """All times in whole seconds."""

    http_get: HTTPGetAction | None = None
    tcp_socket: TCPSocketAction | None = None
    exec: ExecAction | None = None
    initial_delay_seconds: int = 0
    timeout_seconds: int = 1
    period_seconds: int = 10
    success_threshold: int = 1
    failure_threshold: int = 3


class Container(Struct, frozen=True, kw_only=True):
    name: str = ""
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[EnvVar, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    resources: ResourceRequirements = ResourceRequirements()
    readiness_probe: Probe | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never", ""] = ""
