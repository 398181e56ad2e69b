"""Pods for the agent's tests, and a short notation for plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from podlane.api.meta import is_pod_ready
from podlane.api.types import Condition, Container, ObjectMeta, Pod, PodSpec, PodStatus
from podlane.runtime.clock import FakeClock
from scheduler.agent import containers as c
from scheduler.agent.addresses import Addresses
from scheduler.agent.downward import NodeFacts
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.memory import Memory
from scheduler.agent.model import Drain, Observed, Plan
from scheduler.agent.network import NetworkSpec
from scheduler.agent.plan import plan, wanted_images, wanted_users
from scheduler.agent.planend import to_drain
from scheduler.agent.podnet import Plug, is_attached
from scheduler.agent.podnetfake import FakePodNet
from scheduler.agent.probestate import Target
from scheduler.agent.references import Known
from scheduler.agent.report import health_of
from scheduler.agent.runtime import Record
from scheduler.agent.status import compute
from scheduler.agent.steps import Steps
from scheduler.agent.volumefiles import MountFailed
from scheduler.agent.volumes import SubPath, VolumeSetUp

SPEC = NetworkSpec(subnet="10.5.3.0/24", gateway="10.5.3.1", mtu=1450)
IMAGE = "web:1"


def container(name: str = "web", **changes: Any) -> Container:
    return Container(**{"name": name, "image": IMAGE, "image_pull_policy": "IfNotPresent", **changes})


def pod(name: str = "p", *containers: Container, **spec: Any) -> Pod:
    return Pod(
        metadata=ObjectMeta(name=name, namespace="default", uid=f"uid-{name}", resource_version="1"),
        spec=PodSpec(containers=containers or (container(),), node_name="n1", **spec),
    )


def ready(obj: Pod) -> Pod:
    status = PodStatus(phase="Running", conditions=(Condition(type="Ready", status="True"),), pod_ip="10.5.3.2")
    return msgspec.structs.replace(obj, status=status)


def deleted(obj: Pod, grace: int = 30) -> Pod:
    metadata = msgspec.structs.replace(
        obj.metadata,
        deletion_timestamp=datetime(2026, 1, 1, tzinfo=UTC),
        deletion_grace_period_seconds=grace,
    )
    return msgspec.structs.replace(obj, metadata=metadata)


class Told:
    """Collects events as "Reason message"."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def event(self, obj: Pod, kind: str, reason: str, message: str) -> None:
        assert kind in {"Normal", "Warning"}
        self.events.append(f"{obj.metadata.name}: {reason} {message}")

    def reasons(self) -> list[str]:
        return [text.split()[1] for text in self.events]


class HostsFiles:
    """Remembers instead of writing."""

    def __init__(self) -> None:
        self.written: dict[str, str] = {}
        self.made: set[str] = set()
        self.unmountable: dict[str, str] = {}

    def write_hosts(
        self, path: str, hostname: str, ips: Sequence[str], *, aliases: Sequence[str] = (), on_host: bool = False
    ) -> None:
        del on_host
        self.written[path] = " ".join([*ips, hostname, *aliases])

    def make_empty(self, path: str) -> None:
        self.made.add(path)

    def set_up(self, volume: VolumeSetUp) -> None:
        if error := self.unmountable.get(volume.name):
            raise MountFailed(f'MountVolume.SetUp failed for volume "{volume.name}" : {error}')
        self.written[volume.path] = str(volume)

    def bind(self, part: SubPath) -> None:
        self.written[part.target] = str(part)


class Host:
    """A node without threads: what is bound to it, an engine, and a memory that a restart loses."""

    def __init__(
        self, *pods: Pod, images: tuple[str, ...] = (IMAGE,), engine: Callable[[FakeClock], FakeRuntime] = FakeRuntime
    ) -> None:
        self.clock = FakeClock()
        self.runtime = engine(self.clock)
        self.runtime.ensure_infra_image()
        self.podnet = FakePodNet(self.runtime.alive)
        self.spec = SPEC
        self.podnet.ensure(self.spec)
        self.files = HostsFiles()
        for image in images:
            self.runtime.add_image(image)
        self.pods = {p.metadata.uid: p for p in pods}
        self.network = ""
        self.known = Known()
        self.node = NodeFacts(("192.168.64.11",), {"cpu": "4", "memory": "8Gi"}, 8 * 1024**3)
        self.drains: dict[str, Drain] = {}
        self.started: set[str] = set()
        self.unhealthy: dict[str, Target] = {}
        self.told = Told()
        self.restart_agent()

    def restart_agent(self) -> None:
        self.memory = Memory(self.clock)
        self.steps = Steps(
            self.runtime,
            podnet=self.podnet,
            files=self.files,
            memory=self.memory,
            events=self.told,
            release=self.release,
        )

    def release(self, gone: Pod) -> None:
        self.pods.pop(gone.metadata.uid, None)

    def records(self) -> tuple[Record, ...]:
        """What the engine lists, with the addresses of those that are attached."""
        ports = self.podnet.ports()

        def attached(record: Record) -> bool:
            return bool(c.pod_ip(record)) and is_attached(Plug(record.id, c.pod_ip(record), self.spec), ports)

        return tuple(
            replace(r, ip=c.pod_ip(r), ips=self.spec.ips(c.pod_ip(r))) if r.running and attached(r) else r
            for r in self.runtime.list()
        )

    def look(self, **changes: Any) -> Plan:
        records = self.records()
        ending = {u: is_pod_ready(p) for u, p in self.pods.items() if p.metadata.deletion_timestamp is not None}
        ending |= {u: False for u in map(c.pod_uid, records) if u not in self.pods}
        endings = self.memory.note_endings(ending)
        draining = to_drain(self.pods, records, endings, self.memory.stops())
        given: dict[str, Any] = {
            "now": self.clock.now(),
            "pods": dict(self.pods),
            "records": records,
            "images": self.memory.images(self.runtime, wanted_images(self.pods.values())),
            "failures": self.memory.failures(),
            "pulled": self.memory.pulled(),
            "endings": endings,
            "stops": self.memory.stops(),
            "hooks": self.memory.hooks(),
            "started": frozenset(self.started),
            "unhealthy": dict(self.unhealthy),
            "drains": {uid: self.drains.get(uid, Drain(waits_for="the store")) for uid in draining},
            "users": self.memory.image_users(self.runtime, wanted_users(self.pods.values())),
            "set_up": self.memory.volumes(),
            "known": self.known,
            "node": self.node,
            "network": self.network,
            "addresses": Addresses(self.spec, frozenset(map(c.pod_ip, records)) - {""}),
        }
        self.seen = Observed(**{**given, **changes})
        return plan(self.seen)

    def sync(self) -> Plan:
        """Look, plan, and carry out everything, pulls first."""
        planned = self.look()
        for p in planned.pods:
            for step in p.pulls:
                self.steps.pull(p, step)
            for hook in p.hooks:
                if self.memory.hook_begins(hook.id, hook.kind):
                    self.steps.run_hook(p, hook)
            self.steps.carry_out(p)
        return planned

    def report_all(self) -> None:
        """Write what the agent would report of its pods."""
        planned, records = self.look(), self.records()
        for p in planned.pods:
            if p.pod is None:
                continue
            mine = [r for r in records if c.pod_uid(r) == p.uid]
            health = health_of(self.seen, p, mine, started=self.started, ready={r.id for r in mine})
            new = compute(p.pod, mine, health, node_ip="192.168.64.11", now=self.clock.now(), failed=p.failed)
            self.pods[p.uid] = msgspec.structs.replace(p.pod, status=new)

    def settle(self, times: int = 6) -> None:
        for _ in range(times):
            self.sync()

    def running(self) -> list[str]:
        """`web/p#0` for each running container, without the infra containers."""
        return [x for x in self.all_running() if not x.startswith("POD")]

    def all_running(self) -> list[str]:
        return sorted(_short(name) for name in self.runtime.running())


def _short(name: str) -> str:
    _, ct, p, _, _, number = name.split("_")
    return f"{ct}/{p}#{number}"


def name(ct: str, p: str, number: int = 0) -> str:
    return f"podlane_{ct}_{p}_default_uid-{p}_{number}"
