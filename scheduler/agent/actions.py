"""The steps a plan is made of, each of which prints as the command an operator would type. Pure.

Owns: the closed set of things the agent may do to a pod.
Invariant: a step names containers by name, never by an id not known yet, so a
whole pod is one list of steps that can be printed, tested and repeated.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

from podlane.api.types import Container, LifecycleHandler
from scheduler.agent.containers import POD_IP, SPEC_HASH, VOLUMES
from scheduler.agent.network import NetworkSpec
from scheduler.agent.podnet import BRIDGE, INSIDE, Plug
from scheduler.agent.runtime import ContainerConfig
from scheduler.agent.volumes import Stamp, SubPath, VolumeSetUp

HookKind = Literal["PostStart", "PreStop"]


@dataclass(frozen=True, slots=True)
class Create:
    """`container` is the name within the pod; the infra container's is INFRA. `skipped`: see Environment."""

    container: str
    config: ContainerConfig
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        c = self.config
        secret = {name: value for name, _, value in (v.partition("=") for v in c.env) if name in c.hidden}
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
        words += _rights(c)
        for variable in c.env:  # `--env NAME` takes the value from where the command is typed
            name = variable.partition("=")[0]
            words += ["--env", name if name in secret else variable]
        said = [*c.entrypoint, *c.cmd]
        for value in filter(None, secret.values()):
            said = [word.replace(value, "…") for word in said]
        if c.entrypoint:
            words += ["--entrypoint", said[0]]
            said = said[1:]
        return shlex.join([*words, c.image, *said])


def _rights(config: ContainerConfig) -> list[str]:
    rights = config.security
    words = ["--user", rights.user] if rights.user else []
    for option, values in (("group", rights.groups), ("cap", rights.cap_add)):
        words += [word for value in values for word in (f"--{option}-add", value)]
    for value in rights.cap_drop:
        words += ["--cap-drop", value]
    flags = {
        "--privileged": rights.privileged,
        "--read-only": rights.read_only_root,
        "--security-opt=no-new-privileges": rights.no_new_privileges,
        "--interactive": config.stdin,
        "--tty": config.tty,
    }
    return words + [flag for flag, wanted in flags.items() if wanted]


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
    aliases: tuple[str, ...] = ()
    on_host: bool = False

    def __str__(self) -> str:
        lines = [] if self.on_host else [f"{ip} {self.hostname}" for ip in self.ips]
        copied = [f"cp /etc/hosts {self.path}"] if self.on_host else []
        told = [shlex.join(["echo", line]) + f" >> {self.path}" for line in (*lines, *self.aliases)]
        return " && ".join(copied + told)


@dataclass(frozen=True, slots=True)
class MakeEmpty:
    """Make the file of a container's last words."""

    container: str
    path: str

    def __str__(self) -> str:
        return f"install -m 666 /dev/null {self.path}"


@dataclass(frozen=True, slots=True)
class SetUpVolumes:
    """Make the pod's volumes be as they should; `stamp` is what they are made from."""

    volumes: tuple[VolumeSetUp, ...]
    stamp: Stamp
    container: str = VOLUMES

    def __str__(self) -> str:
        return " && ".join(map(str, self.volumes))


@dataclass(frozen=True, slots=True)
class BindParts:
    """Bind the parts of volumes (subPath) that a container mounts."""

    container: str
    parts: tuple[SubPath, ...]

    def __str__(self) -> str:
        return " && ".join(map(str, self.parts))


@dataclass(frozen=True, slots=True)
class Signal:
    """`why` is told when the container's end begins with it: "Stopping container web"."""

    container: str
    name: str
    id: str
    signal: str
    why: str = ""

    def __str__(self) -> str:
        return f"docker kill --signal {self.signal} {self.name}"


@dataclass(frozen=True, slots=True)
class RunHook:
    """A lifecycle hook of a running container, beside the steps; `timeout` in seconds, `why` as in Signal."""

    container: str
    name: str
    id: str
    kind: HookKind
    hook: LifecycleHandler
    spec: Container
    ip: str
    timeout: float
    why: str = ""

    def __str__(self) -> str:
        hook = self.hook
        if hook.exec is not None:
            return shlex.join(["docker", "exec", self.name, *hook.exec.command])
        if hook.http_get is not None:
            get = hook.http_get
            return f"curl {get.scheme.lower()}://{get.host or self.ip}:{get.port}{get.path}"
        if hook.tcp_socket is not None:
            return f"nc -z {hook.tcp_socket.host or self.ip} {hook.tcp_socket.port}"
        return f"sleep {hook.sleep.seconds if hook.sleep is not None else 0}"


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


Files = WriteHosts | MakeEmpty | SetUpVolumes | BindParts
Action = Create | Start | Attach | Files | Signal | RunHook | Remove | Pull | Release
