"""Docker's JSON and ours, both ways. Pure.

Owns: how a configuration is said to Docker, and how its words and times are
read. Source: Docker Engine API 1.41.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from scheduler.agent.runtime import HOST_NETWORK, NO_NETWORK, ContainerConfig, ContainerState, Security

# What holds a network namespace runs pause(2) and nothing else: all it can do without is time saved at its start.
_BARE = {
    "CapDrop": ["ALL"],
    "IpcMode": "none",
    "LogConfig": {"Type": "none"},
    "ReadonlyRootfs": True,
    "SecurityOpt": ["no-new-privileges", "seccomp=unconfined"],  # a filter takes 5 ms to compile
}
_LOGS = {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}}


def state_of(word: str) -> ContainerState:
    """A container's state by Docker's word for it."""
    if word == "created":
        return "created"
    return "running" if word in {"running", "paused", "restarting"} else "exited"


def time_of(text: str | None) -> float | None:
    """Unix seconds of a time as Go prints it; None for its zero time."""
    if not text or text.startswith("0001-"):
        return None
    # nanoseconds are more than datetime takes
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(whole + "+00:00").timestamp() + float(f"0.{fraction or 0}")


def container_body(config: ContainerConfig, *, level: str = "") -> dict[str, Any]:
    """The body of a request to create a container; `level` as selinux.py has it, where SELinux is on."""
    body: dict[str, Any] = {
        "Image": config.image,
        "Labels": dict(config.labels),
        "Env": list(config.env),
        "HostConfig": _host_config(config, level),
    }
    optional = {
        # Docker's network "none" gives the same empty namespace, and executes dockerd anew to make it
        "NetworkDisabled": config.network == NO_NETWORK,
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.cmd),
        "WorkingDir": config.working_dir,
        "Hostname": config.hostname,
        "User": config.security.user,
        "OpenStdin": config.stdin,
        "StdinOnce": config.stdin_once,
        "Tty": config.tty,
    }
    return body | {name: value for name, value in optional.items() if value}


def _host_config(config: ContainerConfig, level: str) -> dict[str, Any]:
    limits = config.limits
    host: dict[str, Any] = {
        "CpuShares": limits.cpu_shares,
        "LogConfig": _LOGS,
        "RestartPolicy": {"Name": "no"},
    }
    if limits.oom_score_adj:
        host["OomScoreAdj"] = limits.oom_score_adj
    if limits.cpu_quota:
        host |= {"CpuPeriod": 100_000, "CpuQuota": limits.cpu_quota}
    if limits.memory:
        # as much with swap as without: no swap, which is the kubelet's rule
        host |= {"Memory": limits.memory, "MemorySwap": limits.memory}
    if config.mounts:
        # not "Binds", for which dockerd makes a folder where a file is missing
        host["Mounts"] = [
            {"Type": "bind", "Source": m.source, "Target": m.target, "ReadOnly": m.read_only} for m in config.mounts
        ]
    if config.network != NO_NETWORK:
        host["NetworkMode"] = config.network
    return host | (_BARE if config.network in {NO_NETWORK, HOST_NETWORK} else _rights(config.security, level))


def _rights(security: Security, level: str) -> dict[str, Any]:
    """What is asked for beyond Docker's defaults."""
    # a privileged container is not confined, unless an option for its label is given
    confined = [f"label=level:{level}"] if level and not security.privileged else []
    asked: dict[str, Any] = {
        "Privileged": security.privileged,
        "ReadonlyRootfs": security.read_only_root,
        "CapAdd": list(security.cap_add),
        "CapDrop": list(security.cap_drop),
        "GroupAdd": list(security.groups),
        "SecurityOpt": [*confined, *(["no-new-privileges"] if security.no_new_privileges else [])],
    }
    return {name: value for name, value in asked.items() if value}
