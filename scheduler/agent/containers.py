"""From a pod to the containers that make it up: names, labels, configurations. Pure.

Owns: the labels by which a restarted agent knows what runs, and the
translation of a container's specification into the engine's terms. Invariant:
the name of a container follows from pod, container and attempt alone, so a
step that was carried out twice collides instead of doubling. Source:
Kubernetes' dockershim naming (k8s_NAME_POD_NS_UID_ATTEMPT), its cpu shares and
quota (pkg/kubelet/cm/helpers_linux.go) and its scores for the kernel's choice
when memory is short (pkg/kubelet/qos/policy.go).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec

from podlane.api import quantity
from podlane.api.podresources import qos_class
from podlane.api.types import Container, Pod
from scheduler.agent.environment import NO_VARIABLES, Environment, expand
from scheduler.agent.runtime import (
    HOST_NETWORK,
    INFRA_IMAGE,
    NO_NETWORK,
    ContainerConfig,
    Limits,
    Mount,
    Record,
    Security,
)

POD_UID = "podlane.io/pod-uid"
POD_NAMESPACE = "podlane.io/pod-namespace"
POD_NAME = "podlane.io/pod-name"
CONTAINER_NAME = "podlane.io/container-name"
SPEC_HASH = "podlane.io/spec-hash"
RESTART_COUNT = "podlane.io/restart-count"
BACKOFF = "podlane.io/backoff-seconds"
GRACE = "podlane.io/termination-grace-period-seconds"
POD_IP = "podlane.io/pod-ip"
"""On the infra container: the address it is to be attached with."""
ON_HOST = "podlane.io/host-network"
"""On an infra container that uses the node's network: "true"."""

INFRA = "POD"
"""The infra container's container-name; upper case, so no container of a pod can have it."""
VOLUMES = "VOLUMES"
"""Stands for the pod's volumes where steps and failures name containers."""

_QUOTA_PERIOD_US = 100_000
_MIN_QUOTA_US = 1_000
_MIN_SHARES, _MAX_SHARES = 2, 262_144
# by which the kernel chooses whom it ends when memory is short: see oom_score_adj
_INFRA_SCORE, _GUARANTEED_SCORE, _BEST_EFFORT_SCORE = -998, -997, 1000


def pod_uid(record: Record) -> str:
    return record.labels.get(POD_UID, "")


def container_name(record: Record) -> str:
    return record.labels.get(CONTAINER_NAME, "")


def attempt(record: Record) -> int:
    """How many times the container was started before, as its pod's restartCount counts."""
    return _number(record.labels.get(RESTART_COUNT))


def backoff(record: Record) -> int:
    """Seconds to wait when this one ends, had it not run long enough to be forgiven; 0 for the first."""
    return _number(record.labels.get(BACKOFF))


def grace_period(record: Record) -> int:
    return _number(record.labels.get(GRACE), default=30)


def pod_ip(record: Record) -> str:
    """The address an infra container was made for, attached or not."""
    return record.labels.get(POD_IP, "")


def is_on_host(record: Record) -> bool:
    """Whether an infra container uses the node's network, so that nothing is to be attached."""
    return ON_HOST in record.labels


def _number(text: str | None, default: int = 0) -> int:
    return int(text) if text and text.isdecimal() else default


def name_of(pod: Pod, container: str, number: int) -> str:
    meta = pod.metadata
    return f"podlane_{container}_{meta.name}_{meta.namespace}_{meta.uid}_{number}"


def spec_hash(container: Container) -> str:
    """Changes when the container must be made anew; a changed probe needs no new container.

    A field that has its default value is not in it, so that a version that knows
    more fields finds the same hash, and what runs goes on running.
    """
    static = msgspec.structs.replace(
        container, startup_probe=None, liveness_probe=None, readiness_probe=None, image_pull_policy=""
    )
    return hashlib.sha256(msgspec.json.encode(static)).hexdigest()[:16]


def hostname_of(pod: Pod) -> str:
    return (pod.spec.hostname or pod.metadata.name)[:63].rstrip("-.")


def infra_config(pod: Pod, number: int, ip: str) -> ContainerConfig:
    """The container that holds the pod's network namespace, which is to have the address `ip`, or is the node's."""
    on_host = pod.spec.host_network
    return ContainerConfig(
        name=name_of(pod, INFRA, number),
        image=INFRA_IMAGE,
        labels={**_labels(pod, INFRA, "", number, 0), **({ON_HOST: "true"} if on_host else {POD_IP: ip})},
        network=HOST_NETWORK if on_host else NO_NETWORK,
        hostname="" if on_host else hostname_of(pod),
        limits=Limits(cpu_shares=_MIN_SHARES, oom_score_adj=_INFRA_SCORE),
    )


def container_config(
    pod: Pod,
    container: Container,
    infra: str,
    number: int,
    wait: int,
    *,
    env: Environment = NO_VARIABLES,
    mounts: tuple[Mount, ...] = (),
    security: Security = Security(),
    node_memory: int = 0,
) -> ContainerConfig:
    """One container of a pod; `infra` names the container whose network it joins, `wait` its back-off label."""
    variables = env.variables
    return ContainerConfig(
        name=name_of(pod, container.name, number),
        image=container.image,
        labels=_labels(pod, container.name, spec_hash(container), number, wait),
        network=f"container:{infra}",
        entrypoint=tuple(expand(part, variables) for part in container.command),
        cmd=tuple(expand(part, variables) for part in container.args),
        env=tuple(f"{name}={value}" for name, value in variables.items()),
        working_dir=container.working_dir,
        limits=replace(limits(container), oom_score_adj=oom_score_adj(pod, container, node_memory)),
        mounts=mounts,
        security=security,
        hidden=env.hidden,
        stdin=container.stdin,
        stdin_once=container.stdin_once,
        tty=container.tty,
    )


def limits(container: Container) -> Limits:
    """Limits as a CPU quota and a memory limit, the CPU request (or else limit) as shares."""
    given = container.resources
    request = given.requests.get("cpu", given.limits.get("cpu", "0"))
    quota = quantity.milli_cpu(given.limits.get("cpu", "0")) * _QUOTA_PERIOD_US // 1000
    return Limits(
        cpu_shares=min(_MAX_SHARES, max(_MIN_SHARES, quantity.milli_cpu(request) * 1024 // 1000)),
        cpu_quota=max(_MIN_QUOTA_US, quota) if quota else 0,
        memory=quantity.bytes_(given.limits.get("memory", "0")),
    )


def oom_score_adj(pod: Pod, container: Container, node_memory: int) -> int:
    """`node_memory` in bytes; 0: not known, and then a burstable container counts as one that asked for nothing."""
    match qos_class(pod.spec):
        case "Guaranteed":
            return _GUARANTEED_SCORE
        case "BestEffort":
            return _BEST_EFFORT_SCORE
    asked = quantity.bytes_(container.resources.requests.get("memory", "0"))
    score = 1000 - 1000 * asked // node_memory if node_memory else 1000
    return min(_BEST_EFFORT_SCORE - 1, max(1000 + _GUARANTEED_SCORE, score))


def _labels(pod: Pod, container: str, digest: str, number: int, wait: int) -> dict[str, str]:
    labels = {
        POD_UID: pod.metadata.uid,
        POD_NAMESPACE: pod.metadata.namespace,
        POD_NAME: pod.metadata.name,
        CONTAINER_NAME: container,
        RESTART_COUNT: str(number),
        GRACE: str(pod.spec.termination_grace_period_seconds),
    }
    if digest:
        labels[SPEC_HASH] = digest
    if wait:
        labels[BACKOFF] = str(wait)
    return labels
