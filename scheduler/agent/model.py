"""What a plan is made from, and what it is: values. Pure.

Owns: `Observed` (a node at one moment) and `Plan` (what to do about each of its
pods, in named buckets). Both are frozen, so a plan rests on one look only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from podlane.api.types import Pod
from scheduler.agent.actions import Action, HookKind, Pull, RunHook
from scheduler.agent.addresses import Addresses
from scheduler.agent.downward import NodeFacts
from scheduler.agent.podpaths import Paths
from scheduler.agent.probestate import Target
from scheduler.agent.references import Known
from scheduler.agent.runtime import Record
from scheduler.agent.volumes import Stamp

Bucket = Literal["start", "restart", "rebuild", "pull", "stop", "orphan", "wait", "keep", "busy"]
BUCKETS: tuple[Bucket, ...] = ("start", "restart", "rebuild", "pull", "stop", "orphan", "wait", "keep", "busy")


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that did not work and is tried again at `until` (Unix seconds). Reasons are the kubelet's."""

    reason: str
    message: str
    count: int
    until: float


@dataclass(frozen=True, slots=True)
class Ending:
    """What is remembered of a pod that must go: since when (Unix seconds), and whether it was ready when this
    was first seen, so that connections may still come.
    """

    since: float
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Stopping:
    """What is remembered of a container that is to end: since when, and when it had its SIGTERM (Unix seconds)."""

    begun: float
    signalled: float | None = None


@dataclass(frozen=True, slots=True)
class HookRun:
    """A hook of a container that was begun: `over_at` (Unix seconds) may be to come, None is not known yet."""

    over_at: float | None = None
    error: str = ""

    def is_over(self, now: float) -> bool:
        return self.over_at is not None and self.over_at <= now


@dataclass(frozen=True, slots=True)
class Drain:
    """How far a pod is out of its services. `quiet_at`: from when on (Unix seconds) no node sends it a new
    connection, None while `waits_for` is missing; `served`: some service selects it.
    """

    quiet_at: float | None = None
    served: bool = True
    waits_for: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """A node at one moment.

    `pods` by UID; `images` has the id, or None if absent, of each image any
    pod might start; `failures` by (UID, container name), the infra container
    under INFRA; `pulled` are the (UID, container, attempt) whose image was
    fetched for that very attempt; `busy` are pods an earlier plan is being
    carried out for; `network` is "" when the pod network is usable, else why
    not, and then `addresses` may be None; `stale` are ids of infra containers
    whose address is of a network that must go. A running infra container with
    no `ip` is not attached. `stops` (by container id) are containers told to end,
    `hooks` (by container id and kind) those begun, `started` the ids of containers
    whose startup probe has passed, `unhealthy` the startup or liveness probe that
    has failed for good, by container id. `drains` has the pods that are to be taken out of
    their services before they are ended; `drain_delay` and `drain_timeout` are
    seconds: after that, and for all of it. `known` is what the store says of the
    objects pods name; `users` has whom images run as, where that matters;
    `set_up` by UID what a pod's volumes were made from last; `evicted` by UID why
    (reason, message) a pod must go for the node's sake, or may not be here at all.
    """

    now: float
    pods: Mapping[str, Pod]
    records: Collection[Record]
    images: Mapping[str, str | None] = field(default_factory=dict)
    failures: Mapping[tuple[str, str], Failure] = field(default_factory=dict)
    pulled: frozenset[tuple[str, str, int]] = frozenset()
    endings: Mapping[str, Ending] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()
    network: str = ""
    addresses: Addresses | None = None
    stale: frozenset[str] = frozenset()
    files: Paths = field(default_factory=Paths)
    stops: Mapping[str, Stopping] = field(default_factory=dict)
    hooks: Mapping[tuple[str, HookKind], HookRun] = field(default_factory=dict)
    started: frozenset[str] = frozenset()
    unhealthy: Mapping[str, Target] = field(default_factory=dict)
    drains: Mapping[str, Drain] = field(default_factory=dict)
    drain_delay: float = 1.0
    drain_timeout: float = 10.0
    known: Known = field(default_factory=Known)
    node: NodeFacts = field(default_factory=NodeFacts)
    users: Mapping[str, str] = field(default_factory=dict)
    set_up: Mapping[str, Stamp] = field(default_factory=dict)
    evicted: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PodPlan:
    """`waiting` has a (reason, message) for each container that should run and does not, `wants_services` is that
    one of them lacks nothing but `Observed.known.services`; `pulls` and `hooks` go
    beside the steps, since they may take minutes; `wake_at` is when to look again if nothing happens before;
    `undrained` is what was waited for in vain before a pod is told to end; `failed` is why (reason, message) a pod
    fails for another cause than its containers.
    """

    uid: str
    pod: Pod | None
    bucket: Bucket
    why: str = ""
    steps: tuple[Action, ...] = ()
    pulls: tuple[Pull, ...] = ()
    hooks: tuple[RunHook, ...] = ()
    waiting: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    wants_services: bool = False
    wake_at: float | None = None
    undrained: str = ""
    failed: tuple[str, str] | None = None

    @property
    def acts(self) -> bool:
        """Something is to be done."""
        return bool(self.steps or self.pulls or self.hooks)

    @property
    def ref(self) -> str:
        return f"{self.pod.metadata.namespace}/{self.pod.metadata.name}" if self.pod else self.uid


@dataclass(frozen=True, slots=True)
class Plan:
    pods: tuple[PodPlan, ...]

    def bucket(self, name: Bucket) -> tuple[PodPlan, ...]:
        return tuple(p for p in self.pods if p.bucket == name)

    @property
    def wake_at(self) -> float | None:
        return min((p.wake_at for p in self.pods if p.wake_at is not None), default=None)

    def summary(self) -> str:
        """`start=2 keep=5`: the buckets that are not empty."""
        counts = ((name, len(self.bucket(name))) for name in BUCKETS)
        return " ".join(f"{name}={count}" for name, count in counts if count)

    def why(self) -> str:
        """What is done to which pods, for the log: `default/web-1: web ended with 1`."""
        return ", ".join(f"{p.ref}: {p.why}" for p in self.pods if p.why and p.acts)

    def __str__(self) -> str:
        lines: list[str] = []
        for p in self.pods:
            if p.acts:
                lines.append(f"# {p.bucket} {p.ref}" + (f": {p.why}" if p.why else ""))
                lines += [str(step) for step in (*p.pulls, *p.hooks, *p.steps)]
        return "\n".join(lines)
