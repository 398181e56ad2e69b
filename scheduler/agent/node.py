"""The Node object: what this machine is, and whether it can run pods.

Owns: the fields of the Node that the agent reports (`describe` is pure), and the
heartbeat. Invariants: what an operator set (labels, annotations, taints,
spec.unschedulable) stays; the object is written only when something changed, and
read when somebody else did (nodewatch.py tells, `READ_EVERY` covers the rest);
the heartbeat does not wait for the container engine, so a hanging engine makes a
node not ready, not dead. The node is alive while its etcd lease is and the
heartbeat is written again (ADR 24): when the lease is lost another one is taken
and the pods go on running. Source: Kubernetes' node registration
(pkg/kubelet/kubelet_node_status.go) and node leases.
"""

from __future__ import annotations

import math
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import msgspec

import podlane
from podlane.api import quantity
from podlane.api.meta import set_condition, utcnow_from
from podlane.api.types import (
    AGENT_CERTIFICATE_ANNOTATION,
    HOSTNAME_LABEL,
    LEASE_RENEWALS,
    Condition,
    ConditionStatus,
    ContainerImage,
    DaemonEndpoint,
    Lease,
    Node,
    NodeAddress,
    NodeDaemonEndpoints,
    NodeStatus,
    NodeSystemInfo,
    ObjectMeta,
)
from podlane.errors import AlreadyExists, NotFound, PodlaneError
from podlane.runtime import metrics
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from podlane.runtime.runner import Runner
from podlane.store.interface import LeaseNotFound
from podlane.store.lease import KeepAlive
from podlane.store.registry import Registry
from scheduler.agent.capacity import Measures
from scheduler.agent.downward import NodeFacts
from scheduler.agent.pressure import Pressure, State, Verdict, judge
from scheduler.agent.runtime import Image, Runtime, RuntimeInfo

RESYNC = 5.0
"""Seconds between looks at whether the engine answers, and at what is left of memory and disk."""
READ_EVERY = 60.0
"""Seconds between reads of a stored Node of which no change was heard."""
IMAGES_EVERY = 30.0
"""Seconds between looks at the images."""
MOST_IMAGES = 50
"""The largest are reported, as many as the kubelet does."""

_AVAILABLE = metrics.gauge("podlane_agent_available_ratio", "What is left of it on this machine, 0 to 1.", ["signal"])
_PRESSURE = metrics.gauge("podlane_agent_pressure", "1 while the node says that it is short of it.", ["condition"])

_STORE_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What the agent knows of its node.

    `problem` is why it cannot run pods, "" if it can; `network` why the pod
    network is not there. `allocatable` None is all of the capacity; `images`
    None is not known now.
    """

    name: str
    ip: str
    port: int
    capacity: Mapping[str, str]
    allocatable: Mapping[str, str] | None = None
    info: RuntimeInfo | None = None
    pod_cidrs: tuple[str, ...] = ()
    problem: str = ""
    reason: str = ""
    network: str = ""
    pressure: tuple[Verdict, ...] = ()
    images: tuple[ContainerImage, ...] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    certificate: str = ""
    """Fingerprint of what the agent's port shows, when no authority has signed it."""


def node_facts(facts: Facts) -> NodeFacts:
    """What pods may learn of the node."""
    offered = facts.capacity if facts.allocatable is None else facts.allocatable
    return NodeFacts((facts.ip,), offered, quantity.bytes_(facts.capacity.get("memory", "0")))


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
    annotations.pop(AGENT_CERTIFICATE_ANNOTATION, None)
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
    conditions = node.status.conditions
    for condition in _conditions(facts, utcnow_from(now)):
        conditions = set_condition(conditions, condition)
    cidrs = facts.pod_cidrs or node.spec.pod_cidrs
    return msgspec.structs.replace(
        node,
        metadata=msgspec.structs.replace(node.metadata, labels=labels, annotations=annotations),
        spec=msgspec.structs.replace(node.spec, pod_cidr=cidrs[0] if cidrs else node.spec.pod_cidr, pod_cidrs=cidrs),
        status=NodeStatus(
            capacity=dict(facts.capacity),
            allocatable=dict(facts.capacity if facts.allocatable is None else facts.allocatable),
            conditions=conditions,
            addresses=(
                NodeAddress(type="InternalIP", address=facts.ip),
                NodeAddress(type="Hostname", address=facts.name),
            ),
            daemon_endpoints=NodeDaemonEndpoints(kubelet_endpoint=DaemonEndpoint(port=facts.port)),
            node_info=system,
            images=node.status.images if facts.images is None else facts.images,
        ),
    )


def _conditions(facts: Facts, now: datetime) -> Iterator[Condition]:
    def condition(kind: str, holds: bool, reason: str, message: str) -> Condition:
        status: ConditionStatus = "True" if holds else "False"
        return Condition(type=kind, status=status, reason=reason, message=message, last_transition_time=now)

    if facts.network:
        yield condition("NetworkUnavailable", True, "PodNetworkIsDown", facts.network)
    else:
        yield condition("NetworkUnavailable", False, "PodNetworkIsUp", "the node has its subnet and its bridge")
    for verdict in facts.pressure:
        yield condition(verdict.type, verdict.pressed, verdict.reason, verdict.message)
    well = "the agent runs, the container engine answers, the pod network is there"
    yield condition("Ready", not facts.problem, facts.reason or "KubeletReady", facts.problem or well)


def largest(images: Iterable[Image]) -> tuple[ContainerImage, ...]:
    """What is reported of the images: those with a name, the largest first."""
    named = sorted((image for image in images if image.names), key=lambda image: (-image.size, image.names))
    return tuple(ContainerImage(names=image.names, size_bytes=image.size) for image in named[:MOST_IMAGES])


class Registrar:
    """Keeps the Node object true.

    `network` gives (pod CIDRs, why they are not usable or ""); without `measures`
    nothing is short and all of the capacity is the pods'. `on_little_memory`
    is called at each look that finds too little, `on_read` with the Node each
    time it was read, and a moment (monotonic) after which that was.
    """

    def __init__(
        self,
        facts: Facts,
        *,
        registry: Registry,
        runtime: Runtime,
        network: Callable[[], tuple[tuple[str, ...], str]],
        clock: Clock,
        measures: Measures | None = None,
        on_little_memory: Callable[[], None] = lambda: None,
        on_read: Callable[[Node, float], object] = lambda _node, _as_of: None,
    ) -> None:
        self._facts = facts
        self._registry = registry
        self._runtime = runtime
        self._network = network
        self._clock = clock
        self._measures = measures
        self._on_little_memory = on_little_memory
        self._on_read = on_read
        self._pressures: Mapping[Pressure, State] = {}
        self._root = ""
        self._images_due = clock.monotonic()
        self._stored: Node | None = None  # as it was last read or written; None: not known
        self._read_due = -math.inf
        self._problem = "not looked yet"
        self.runner = Runner(self.sync, name="node", clock=clock, resync=RESYNC, backoff=(0.5, 5.0))
        self._log = get_logger("node")

    def problem(self) -> str | None:
        """Why the node is not ready, as a ready check wants it."""
        return self._problem or None

    def changed(self, revision: float = math.inf) -> None:
        """The stored Node may be another, since this revision of the store. From any thread."""
        stored = self._stored
        if stored is None or revision > int(stored.metadata.resource_version):
            self._read_due = -math.inf
            self.runner.trigger()

    def sync(self) -> None:
        """Look, and write the Node if it is not so already. Raises StoreUnavailable."""
        facts = self._look()
        if facts.problem != self._problem:
            self._log.info("node condition", ready=not facts.problem, problem=facts.problem)
        self._problem = facts.problem
        now, as_of = self._clock.now(), self._clock.monotonic()
        stored = self._stored
        if stored is not None and as_of < self._read_due and describe(stored, facts, now) == stored:
            return
        # before it is read, so that a change of this very moment counts, and a failure leaves it unknown
        self._stored, self._read_due = None, as_of + READ_EVERY
        try:
            node = self._registry.modify(Node, "", facts.name, lambda old: describe(old, facts, now))
        except NotFound:
            try:
                node = self._registry.create(describe(None, facts, now))
            except AlreadyExists:
                self.runner.trigger()
                return
            self._log.info("node registered", node=facts.name, ip=facts.ip, capacity=dict(facts.capacity))
        self._stored = node
        self._on_read(node, as_of)

    def _look(self) -> Facts:
        cidrs, network = self._network()
        facts = replace(self._facts, pod_cidrs=cidrs, network=network)
        try:
            info = self._runtime.info()
        except PodlaneError as error:
            return self._measured(replace(facts, problem=str(error), reason="ContainerRuntimeNotReady"))
        facts = self._measured(replace(facts, info=info, images=self._look_at_images()))
        return replace(facts, problem=network, reason="NetworkPluginNotReady") if network else facts

    def _look_at_images(self) -> tuple[ContainerImage, ...] | None:
        """Now and then; an engine that is slow to list them can run pods all the same."""
        now = self._clock.monotonic()
        if now < self._images_due:
            return None
        self._images_due = now + IMAGES_EVERY
        try:
            return largest(self._runtime.list_images())
        except PodlaneError as error:
            self._log.warning("images not listed", error=str(error), retry_in=IMAGES_EVERY)
            return None

    def _measured(self, facts: Facts) -> Facts:
        """The facts with what this machine has and lacks."""
        measures = self._measures
        # the disk is there while the engine does not answer
        self._root = facts.info.root if facts.info else self._root
        usage = measures.measure(self._root) if measures is not None else {}
        thresholds = measures.thresholds if measures is not None else {}
        now = self._clock.monotonic()
        judgement = judge(usage, thresholds, self._pressures, now)
        for signal, amount in usage.items():
            _AVAILABLE.labels(signal).set(amount.available / amount.capacity if amount.capacity else 1.0)
        for verdict in judgement.verdicts:
            _PRESSURE.labels(verdict.type).set(verdict.pressed)
            if verdict.pressed != (verdict.type in self._pressures):
                say = self._log.warning if verdict.pressed else self._log.info
                say("node pressure", condition=verdict.type, holds=verdict.pressed, why=verdict.message)
        self._pressures = judgement.states
        if (memory := self._pressures.get("MemoryPressure")) is not None and memory.last == now:
            self._on_little_memory()
        if measures is None:
            return replace(facts, pressure=judgement.verdicts)
        return replace(
            facts,
            capacity=measures.capacity(usage),
            allocatable=measures.allocatable(usage),
            pressure=judgement.verdicts,
        )


class Heartbeat:
    """Holds the node's etcd lease for as long as it runs, writes its heartbeat, and takes a new one when it was lost.

    The lease is left to run out at the end: a restarted agent takes over
    before that, and nobody takes the node for dead in between. `on_held` is
    called whenever there is a lease anew: the scheduler waits for what the node
    says of itself.
    """

    def __init__(
        self,
        node: str,
        seconds: int,
        *,
        registry: Registry,
        clock: Clock,
        on_held: Callable[[], None] = lambda: None,
    ) -> None:
        self._node = node
        self._on_held = on_held
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
                lease = self._registry.put_node_lease(self._node, keep.lease_id, self._seconds)
            except PodlaneError as error:
                self._log.warning("heartbeat failed", error=str(error), retry_in=_STORE_PAUSE)
                keep.stop(revoke=True)
                self._clock.wait(stop, _STORE_PAUSE)
                continue
            self._alive = True
            self._log.info("lease held", node=self._node, seconds=self._seconds)
            self._on_held()
            self._hold(lease, keep.lease_id, stop)
            self._alive = False
            keep.stop(revoke=False)

    def _hold(self, lease: Lease, lease_id: int, stop: threading.Event) -> None:
        """Write it again in time, until the lease is lost or `stop` set: that is what nobody else can do."""
        due = self._clock.monotonic() + LEASE_RENEWALS * self._seconds
        while not stop.is_set() and not self._lost.is_set():
            self._clock.wait(self._lost, 0.5)
            if (now := self._clock.monotonic()) < due:
                continue
            due = now + _STORE_PAUSE
            try:
                lease = self._registry.put_node_lease(self._node, lease_id, self._seconds, lease)
                due = now + LEASE_RENEWALS * self._seconds
            except LeaseNotFound:
                self._on_lost()
            except PodlaneError as error:
                self._log.debug("heartbeat not written", error=str(error), retry_in=_STORE_PAUSE)

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
