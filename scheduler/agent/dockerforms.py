"""Docker's JSON and ours, both ways. Pure.

Owns: how a configuration is said to Docker, and how its words and times are
read. Source: Docker Engine API 1.41.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from scheduler.agent.runtime import NO_NETWORK, ContainerConfig, ContainerState

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


def container_body(config: ContainerConfig) -> dict[str, Any]:
    """The body of a request to create a container."""
    host: dict[str, Any] = {
        "CpuShares": config.limits.cpu_shares,
        "LogConfig": _LOGS,
        "RestartPolicy": {"Name": "no"},
    }
    if config.limits.cpu_quota:
        host |= {"CpuPeriod": 100_000, "CpuQuota": config.limits.cpu_quota}
    if config.limits.memory:
        # as much with swap as without: no swap, which is the kubelet's rule
        host |= {"Memory": config.limits.memory, "MemorySwap": config.limits.memory}
    if config.mounts:
        # not "Binds", for which dockerd makes a folder where a file is missing
        host["Mounts"] = [
            {"Type": "bind", "Source": m.source, "Target": m.target, "ReadOnly": m.read_only} for m in config.mounts
        ]
    body: dict[str, Any] = {
        "Image": config.image,
        "Labels": dict(config.labels),
        "Env": list(config.env),
        "HostConfig": host,
    }
    if config.network == NO_NETWORK:
        # Docker's network "none" gives the same empty namespace, and executes dockerd anew to make it
        body["NetworkDisabled"] = True
        host |= _BARE
    else:
        host["NetworkMode"] = config.network
    if config.entrypoint:
        body["Entrypoint"] = list(config.entrypoint)
    if config.cmd:
        body["Cmd"] = list(config.cmd)
    if config.working_dir:
        body["WorkingDir"] = config.working_dir
    if config.hostname:
        body["Hostname"] = config.hostname
    return body
