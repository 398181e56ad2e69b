"""The steps a plan is made of, each of which prints as the command an operator would type. Pure.

Owns: the closed set of things the agent may do to the container engine.
Invariant: a step names containers by name, never by an id not known yet, so a
whole pod is one list of steps that can be printed, tested and repeated.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from scheduler.agent.containers import SPEC_HASH
from scheduler.agent.runtime import ContainerConfig


@dataclass(frozen=True, slots=True)
class Create:
    """`container` is the name within the pod; the infra container's is INFRA."""

    container: str
    config: ContainerConfig

    def __str__(self) -> str:
        c = self.config
        words = ["docker", "create", "--name", c.name, "--network", c.network]
        if c.hostname:
            words += ["--hostname", c.hostname]
        if digest := c.labels.get(SPEC_HASH):
            words += ["--label", f"{SPEC_HASH}={digest}"]
        if c.limits.cpu_shares:
            words += ["--cpu-shares", str(c.limits.cpu_shares)]
        if c.limits.cpu_quota:
            words += ["--cpu-quota", str(c.limits.cpu_quota)]
        if c.limits.memory:
            words += ["--memory", str(c.limits.memory)]
        if c.working_dir:
            words += ["--workdir", c.working_dir]
        for variable in c.env:
            words += ["--env", variable]
        if c.entrypoint:
            words += ["--entrypoint", c.entrypoint[0]]
        return shlex.join([*words, c.image, *c.entrypoint[1:], *c.cmd])


@dataclass(frozen=True, slots=True)
class Start:
    container: str
    name: str

    def __str__(self) -> str:
        return f"docker start {self.name}"


@dataclass(frozen=True, slots=True)
class Signal:
    container: str
    name: str
    id: str
    signal: str

    def __str__(self) -> str:
        return f"docker kill --signal {self.signal} {self.name}"


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM, and SIGKILL `grace` seconds later; the step lasts until the container has ended."""

    container: str
    name: str
    grace: int

    def __str__(self) -> str:
        return f"docker stop --time {self.grace} {self.name}"


@dataclass(frozen=True, slots=True)
class Remove:
    container: str
    name: str

    def __str__(self) -> str:
        return f"docker rm --force {self.name}"


@dataclass(frozen=True, slots=True)
class Pull:
    """`attempt` is that of the container it is for."""

    container: str
    image: str
    attempt: int

    def __str__(self) -> str:
        return f"docker pull {self.image}"


@dataclass(frozen=True, slots=True)
class Release:
    """The pod is gone from this node: delete it and its binding from the store."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"podlane delete pod {self.name} --namespace {self.namespace} --force"


Action = Create | Start | Signal | Stop | Remove | Pull | Release
