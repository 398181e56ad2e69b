"""The steps a plan is made of, each of which prints as the command an operator would type. Pure.

Owns: the closed set of things the agent may do to a pod.
Invariant: a step names containers by name, never by an id not known yet, so a
whole pod is one list of steps that can be printed, tested and repeated.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from scheduler.agent.containers import POD_IP, SPEC_HASH
from scheduler.agent.network import NetworkSpec
from scheduler.agent.podnet import BRIDGE, INSIDE, Plug
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
        if ip := c.labels.get(POD_IP):
            words += ["--label", f"{POD_IP}={ip}"]
        if c.limits.cpu_shares:
            words += ["--cpu-shares", str(c.limits.cpu_shares)]
        if c.limits.cpu_quota:
            words += ["--cpu-quota", str(c.limits.cpu_quota)]
        if c.limits.memory:
            words += ["--memory", str(c.limits.memory)]
        if c.working_dir:
            words += ["--workdir", c.working_dir]
        for mount in c.mounts:
            given = f"type=bind,source={mount.source},target={mount.target}"
            words += ["--mount", f"{given},readonly" if mount.read_only else given]
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
class Attach:
    """Join an infra container to the pod network. Prints for a namespace named after it (`ip netns attach`)."""

    container: str
    name: str
    ip: str
    network: NetworkSpec

    def __str__(self) -> str:
        pod = f"ip -n {self.name}"
        commands = [f"ip link add master {BRIDGE} type veth peer name {INSIDE} netns {self.name}"]
        for interface, gateway in Plug("", self.ip, self.network).routes:
            commands.append(f"{pod} address add {interface} dev {INSIDE}")
            commands.append(f"{pod} route add default via {gateway}")
        return " && ".join(commands)


@dataclass(frozen=True, slots=True)
class WriteHosts:
    """Write what the pod's containers have as /etc/hosts, unless it is there."""

    container: str
    path: str
    hostname: str
    ips: tuple[str, ...]

    def __str__(self) -> str:
        return " && ".join(shlex.join(["echo", f"{ip} {self.hostname}"]) + f" >> {self.path}" for ip in self.ips)


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


Action = Create | Start | Attach | WriteHosts | Signal | Stop | Remove | Pull | Release
