"""The Node object: what this machine is, and whether it can run pods.

Owns: the fields of the Node that the agent reports (`describe` is pure), and the
heartbeat. Invariants: what an operator set (labels, annotations,
spec.unschedulable) stays; the object is written only when something changed;
the heartbeat does not wait for the container engine, so a hanging engine makes a
node not ready, not dead. The node is alive while its etcd lease is: when the
lease is lost another one is taken and the pods go on running. Source:
Kubernetes' node registration (pkg/kubelet/kubelet_node_status.go) and node leases.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

import podlane
from podlane.api import quantity
from podlane.api.meta import set_condition, utcnow_from
from podlane.api.types import (
    AGENT_CERTIFICATE_ANNOTATION,
    HOSTNAME_LABEL,
    Condition,
    DaemonEndpoint,
    Node,
    NodeAddress,
    NodeDaemonEndpoints,
    NodeStatus,
    NodeSystemInfo,
    ObjectMeta,
)
from podlane.errors import AlreadyExists, NotFound, PodlaneError
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from podlane.runtime.runner import Runner
from podlane.store.lease import KeepAlive
from podlane.store.registry import Registry
from scheduler.agent.downward import NodeFacts
from scheduler.agent.runtime import Runtime, RuntimeInfo

MAX_PODS = 110
RESYNC = 5.0
"""Seconds between looks at whether the engine answers."""
_STORE_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What the agent knows of its node. `problem` is why it cannot run pods, "" if it can."""

    name: str
    ip: str
    port: int
    capacity: Mapping[str, str]
    info: RuntimeInfo | None = None
    pod_cidr: str = ""
    problem: str = ""
    reason: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    certificate: str = ""
    """Fingerprint of what the agent's port shows."""


def machine_capacity(given: Mapping[str, str]) -> dict[str, str]:
    """CPUs, memory and pods of this machine, replaced by what the operator gave."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    machine = {
        "cpu": str(os.cpu_count() or 1),
        "memory": f"{pages * size // 1024}Ki",
        "pods": str(MAX_PODS),
    }
    return machine | dict(given)


def node_facts(facts: Facts) -> NodeFacts:
    """What pods may learn of the node."""
    return NodeFacts((facts.ip,), facts.capacity, quantity.bytes_(facts.capacity.get("memory", "0")))


def parse_capacity(text: str) -> dict[str, str]:
    """`cpu=4,memory=8Gi` as a mapping. Raises ValueError, naming the part that is wrong."""
    parsed: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name not in {"cpu", "memory", "pods"}:
            raise ValueError(f'expected cpu=…, memory=… or pods=…, got "{part}"')
        if quantity.parse(value) <= 0:
            raise ValueError(f"{name}: expected more than 0, got {value}")
        parsed[name] = value
    return parsed


def describe(old: Node | None, facts: Facts, now: float) -> Node:
    """The Node as it should be stored, given what is stored. `now` in Unix seconds."""
    node = old or Node(metadata=ObjectMeta(name=facts.name))
    labels = {
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": _architecture(),
        **facts.labels,
        **node.metadata.labels,
        HOSTNAME_LABEL: facts.name,
    }
    annotations = {**node.metadata.annotations}
    if facts.certificate:
        annotations[AGENT_CERTIFICATE_ANNOTATION] = facts.certificate
    info = facts.info
    before = node.status.node_info
    system = NodeSystemInfo(
        machine_id=_machine_id(),
        kernel_version=platform.release(),
        os_image=info.os_image if info else before.os_image,
        container_runtime_version=f"{info.name}://{info.version}" if info else before.container_runtime_version,
        kubelet_version=f"podlane {podlane.__version__}",
        architecture=_architecture(),
    )
    ready = Condition(
        type="Ready",
        status="False" if facts.problem else "True",
        reason=facts.reason if facts.problem else "KubeletReady",
        message=facts.problem or "the agent runs, the container engine answers, the pod network is there",
        last_transition_time=utcnow_from(now),
    )
    cidr = facts.pod_cidr or node.spec.pod_cidr
    return msgspec.structs.replace(
        node,
        metadata=msgspec.structs.replace(node.metadata, labels=labels, annotations=annotations),
        spec=msgspec.structs.replace(node.spec, pod_cidr=cidr),
        status=NodeStatus(
            capacity=dict(facts.capacity),
            allocatable=dict(facts.capacity),
            conditions=set_condition(node.status.conditions, ready),
            addresses=(
                NodeAddress(type="InternalIP", address=facts.ip),
                NodeAddress(type="Hostname", address=facts.name),
            ),
            daemon_endpoints=NodeDaemonEndpoints(kubelet_endpoint=DaemonEndpoint(port=facts.port)),
            node_info=system,
        ),
    )


class Registrar:
    """Keeps the Node object true. `network` gives (pod CIDR, why it is not usable or "")."""

    def __init__(
        self,
        facts: Facts,
        *,
        registry: Registry,
        runtime: Runtime,
        network: Callable[[], tuple[str, str]],
        clock: Clock,
    ) -> None:
        self._facts = facts
        self._registry = registry
        self._runtime = runtime
        self._network = network
        self._clock = clock
        self._problem = "not looked yet"
        self.runner = Runner(self.sync, name="node", clock=clock, resync=RESYNC, backoff=(0.5, 5.0))
        self._log = get_logger("node")

    def problem(self) -> str | None:
        """Why the node is not ready, as a ready check wants it."""
        return self._problem or None

    def sync(self) -> None:
        """Look, and write the Node if it is not so already. Raises StoreUnavailable."""
        facts = self._look()
        if facts.problem != self._problem:
            self._log.info("node condition", ready=not facts.problem, problem=facts.problem)
        self._problem = facts.problem
        now = self._clock.now()
        try:
            self._registry.modify(Node, "", facts.name, lambda old: describe(old, facts, now))
        except NotFound:
            try:
                self._registry.create(describe(None, facts, now))
            except AlreadyExists:
                self.runner.trigger()
                return
            self._log.info("node registered", node=facts.name, ip=facts.ip, capacity=dict(facts.capacity))

    def _look(self) -> Facts:
        cidr, network = self._network()
        try:
            info = self._runtime.info()
        except PodlaneError as error:
            return replace(self._facts, pod_cidr=cidr, problem=str(error), reason="ContainerRuntimeNotReady")
        if network:
            return replace(self._facts, info=info, pod_cidr=cidr, problem=network, reason="NetworkPluginNotReady")
        return replace(self._facts, info=info, pod_cidr=cidr)


class Heartbeat:
    """Holds the node's etcd lease for as long as it runs, and takes a new one when it was lost.

    The lease is left to run out at the end: a restarted agent takes over
    before that, and nobody takes the node for dead in between.
    """

    def __init__(self, node: str, seconds: int, *, registry: Registry, clock: Clock) -> None:
        self._node = node
        self._seconds = seconds
        self._registry = registry
        self._clock = clock
        self._lost = threading.Event()
        self._alive = False
        self._log = get_logger("heartbeat")

    def problem(self) -> str | None:
        return None if self._alive else "the node's lease is not held"

    def run(self, stop: threading.Event) -> None:
        """The body of one thread."""
        while not stop.is_set():
            keep = KeepAlive(self._registry.store, self._seconds, clock=self._clock, on_lost=self._on_lost)
            self._lost.clear()
            try:
                keep.start()
                self._registry.put_node_lease(self._node, keep.lease_id, self._seconds)
            except PodlaneError as error:
                self._log.warning("heartbeat failed", error=str(error), retry_in=_STORE_PAUSE)
                keep.stop(revoke=True)
                self._clock.wait(stop, _STORE_PAUSE)
                continue
            self._alive = True
            self._log.info("lease held", node=self._node, seconds=self._seconds)
            while not stop.is_set() and not self._lost.is_set():
                self._clock.wait(self._lost, 0.5)
            self._alive = False
            keep.stop(revoke=False)

    def _on_lost(self) -> None:
        self._alive = False
        self._log.warning("lease lost, taking another")
        self._lost.set()


def _architecture() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""
