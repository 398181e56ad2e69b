"""Docker's JSON and ours, both ways. Pure.

Owns: how a configuration is said to Docker, and how its words and times are
read. Source: Docker Engine API 1.41.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from scheduler.agent.runtime import ContainerConfig, ContainerState, NetworkSpec

_BRIDGE_OPTION = "com.docker.network.bridge.name"
_MASQUERADE_OPTION = "com.docker.network.bridge.enable_ip_masquerade"
_MTU_OPTION = "com.docker.network.driver.mtu"
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


def network_options(spec: NetworkSpec) -> dict[str, str]:
    """The bridge driver's options of the pod network."""
    return {_BRIDGE_OPTION: spec.bridge, _MASQUERADE_OPTION: "false", _MTU_OPTION: str(spec.mtu)}


def network_matches(network: Mapping[str, Any], spec: NetworkSpec) -> bool:
    """Whether a network as Docker lists it is the one wanted."""
    configs = (network.get("IPAM") or {}).get("Config") or [{}]
    options = network.get("Options") or {}
    return (
        configs[0].get("Subnet") == spec.subnet
        and configs[0].get("Gateway") == spec.gateway
        and all(options.get(key) == value for key, value in network_options(spec).items())
    )


def container_body(config: ContainerConfig) -> dict[str, Any]:
    """The body of a request to create a container."""
    host: dict[str, Any] = {
        "NetworkMode": config.network,
        "CpuShares": config.limits.cpu_shares,
        "LogConfig": _LOGS,
        "RestartPolicy": {"Name": "no"},
    }
    if config.limits.cpu_quota:
        host |= {"CpuPeriod": 100_000, "CpuQuota": config.limits.cpu_quota}
    if config.limits.memory:
        # as much with swap as without: no swap, which is the kubelet's rule
        host |= {"Memory": config.limits.memory, "MemorySwap": config.limits.memory}
    body: dict[str, Any] = {
        "Image": config.image,
        "Labels": dict(config.labels),
        "Env": list(config.env),
        "HostConfig": host,
    }
    if config.entrypoint:
        body["Entrypoint"] = list(config.entrypoint)
    if config.cmd:
        body["Cmd"] = list(config.cmd)
    if config.working_dir:
        body["WorkingDir"] = config.working_dir
    if config.hostname:
        body["Hostname"] = config.hostname
    return body
