"""What the agent tells of its pods after each look: probes to the prober, statuses to the store, events to people.

Owns: what was told already, so that it is told once. Invariant: nothing here
changes what runs. What a status says is status.py's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Literal

import msgspec

from podlane.api.meta import is_pod_ready
from podlane.api.types import Container, ContainerStatus, Pod, Probe
from podlane.runtime import metrics
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from scheduler.agent import containers as c
from scheduler.agent import status
from scheduler.agent.admission import REJECTED
from scheduler.agent.history import all_containers, attempts, is_sidecar, live_infra
from scheduler.agent.lastwords import LastWords
from scheduler.agent.model import Observed, Plan, PodPlan
from scheduler.agent.plan import DEADLINE, FAILED_MOUNT, NETWORK_LOST, NO_ADDRESS
from scheduler.agent.planstart import CONFIG_ERROR, NEVER_PULL, is_held
from scheduler.agent.probes import Prober
from scheduler.agent.probestate import ProbeKind, Target
from scheduler.agent.runtime import Record
from scheduler.agent.statuswriter import StatusWriter
from scheduler.agent.steps import Events

_PODS = metrics.gauge("podlane_agent_pods", "Pods bound to this node.")
_RUNNING = metrics.gauge("podlane_agent_containers_running", "Containers of pods that run.")
_START = metrics.histogram(
    "podlane_agent_pod_start_seconds",
    "From the moment the agent first saw a pod to its being ready.",
    buckets=(0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)


class Reporter:
    def __init__(
        self,
        *,
        prober: Prober,
        words: LastWords,
        statuses: StatusWriter,
        events: Events,
        node_ip: str,
        clock: Clock,
    ) -> None:
        self._words = words
        self._prober = prober
        self._statuses = statuses
        self._events = events
        self._node_ip = node_ip
        self._clock = clock
        self._began = clock.now()
        self._backed_off: set[str] = set()
        self._failed: set[str] = set()
        self._undrained: set[str] = set()
        self._lacking: dict[str, frozenset[str]] = {}
        self._first_seen: dict[str, float] = {}
        self._log = get_logger("agent")

    def report(self, seen: Observed, planned: Plan, working: Collection[str]) -> None:
        """`working` are the pods (UIDs) that are being worked on now."""
        by_pod: dict[str, list[Record]] = {}
        for record in seen.records:
            by_pod.setdefault(c.pod_uid(record), []).append(record)
        self._prober.set(
            target for uid, pod in seen.pods.items() for target in self._targets(seen, pod, by_pod.get(uid, []))
        )
        started, ready = self._prober.started(), self._prober.ready()
        for pod_plan in planned.pods:
            pod = seen.pods.get(pod_plan.uid)
            if pod is None:
                continue
            records = by_pod.get(pod_plan.uid, [])
            self._tell(pod, pod_plan, records)
            health = health_of(seen, pod_plan, records, started=started, ready=ready)
            health = replace(health, messages=self._words.look(pod, records))
            new = status.compute(pod, records, health, node_ip=self._node_ip, now=seen.now, failed=pod_plan.failed)
            self._measure(pod, ready=is_pod_ready(msgspec.structs.replace(pod, status=new)))
            # while it is being worked on, a status nobody acts on is only one write more
            if pod_plan.uid in working and not status.is_urgent(pod.status, new):
                continue
            self._statuses.offer(pod, new)
        self._statuses.flush()
        _PODS.set(len(seen.pods))
        _RUNNING.set(sum(r.running and c.container_name(r) != c.INFRA for r in seen.records))
        self._forget(seen)

    def answered(self, target: Target, ok: bool, message: str) -> None:
        """A probe failed, or warned of something."""
        if target.pod.metadata.deletion_timestamp is not None:
            return  # it was told to end
        text = f"{target.kind.capitalize()} probe {'warning' if ok else 'failed'}: {message}"
        self._events.event(target.pod, "Warning", "ProbeWarning" if ok else "Unhealthy", text)

    # --- probes ------------------------------------------------------------------------------

    def _targets(self, seen: Observed, pod: Pod, records: list[Record]) -> Iterable[Target]:
        """The probes that are due to containers that run, those a startup probe gates after it has passed."""
        infra = live_infra(records)
        if infra is None or not infra.ip:
            return
        ends = pod.metadata.deletion_timestamp is not None
        reported = {s.container_id: s for s in (*pod.status.init_container_statuses, *pod.status.container_statuses)}
        for ct in _probed(pod):
            last = next(iter(attempts(records, ct.name)), None)
            if last is None or not last.running or is_held(seen, pod, ct, last):
                continue
            known = reported.get(f"docker://{last.id}")
            started = ct.startup_probe is None or last.id in seen.started or (known is not None and known.started)
            kinds: tuple[tuple[ProbeKind, Probe | None, bool], ...] = (
                ("startup", ct.startup_probe, started or not ends),  # one that has passed is only remembered
                ("liveness", ct.liveness_probe, started and not ends),
                ("readiness", ct.readiness_probe, started),
            )
            for kind, probe, wanted in kinds:
                if probe is not None and wanted:
                    yield Target(
                        id=last.id,
                        pod=pod,
                        container=ct,
                        probe=probe,
                        ip=infra.ip,
                        running_for=seen.now - (last.started_at or seen.now),
                        was_ready=_passed(kind, known),
                        kind=kind,
                        adopted=self._is_adopted(seen, last, probe),
                    )

    def _is_adopted(self, seen: Observed, record: Record, probe: Probe) -> bool:
        """It ran already when the agent started, a moment ago."""
        return (record.started_at or seen.now) < self._began and seen.now < self._began + probe.period_seconds

    # --- events ------------------------------------------------------------------------------

    def _tell(self, pod: Pod, planned: PodPlan, records: list[Record]) -> None:
        self._tell_backoff(pod, planned, records)
        self._tell_missing(pod, planned)
        if planned.failed is not None and planned.uid not in self._failed:
            self._failed.add(planned.uid)
            reason, message = planned.failed
            kind: Literal["Normal", "Warning"] = "Normal" if planned.failed in {DEADLINE, NETWORK_LOST} else "Warning"
            self._events.event(pod, kind, reason, message.removeprefix(REJECTED))
        if planned.undrained and planned.uid not in self._undrained:
            self._undrained.add(planned.uid)
            self._log.warning("ended undrained", pod=planned.ref, not_acknowledged=planned.undrained)

    def _tell_backoff(self, pod: Pod, planned: PodPlan, records: list[Record]) -> None:
        """One event for each attempt that is waited for."""
        for name, (reason, _) in planned.waiting.items():
            last = next(iter(attempts(records, name)), None)
            if reason != "CrashLoopBackOff" or last is None or last.id in self._backed_off:
                continue
            self._backed_off.add(last.id)
            meta = pod.metadata
            text = f"Back-off restarting failed container {name} in pod {meta.name}_{meta.namespace}({meta.uid})"
            self._events.event(pod, "Warning", "BackOff", text)

    def _tell_missing(self, pod: Pod, planned: PodPlan) -> None:
        """One event for each thing a pod begins to wait for: an address, a volume, a variable, an image."""
        if planned.bucket == "busy":
            return  # nothing was concluded
        lacks = {planned.why} if planned.why.startswith((NO_ADDRESS, FAILED_MOUNT)) else set()
        lacks |= {f"Failed: Error: {why}" for reason, why in planned.waiting.values() if reason == CONFIG_ERROR}
        lacks |= {f"{NEVER_PULL}: {why}" for reason, why in planned.waiting.values() if reason == NEVER_PULL}
        for each in sorted(lacks - self._lacking.get(planned.uid, frozenset())):
            self._events.event(pod, "Warning", *each.split(": ", 1))
            self._log.warning("pod waits", pod=planned.ref, reason=each)
        self._lacking[planned.uid] = frozenset(lacks)

    def _measure(self, pod: Pod, *, ready: bool) -> None:
        uid = pod.metadata.uid
        if not ready:
            self._first_seen.setdefault(uid, self._clock.monotonic())
        elif self._first_seen.get(uid):
            _START.observe(self._clock.monotonic() - self._first_seen[uid])
            self._first_seen[uid] = 0.0

    def _forget(self, seen: Observed) -> None:
        pods = seen.pods
        self._words.keep({r.id for r in seen.records})
        self._backed_off &= {r.id for r in seen.records}
        self._failed &= pods.keys()
        self._undrained &= pods.keys()
        self._lacking = {uid: lacks for uid, lacks in self._lacking.items() if uid in pods}
        self._first_seen = {uid: at for uid, at in self._first_seen.items() if uid in pods}


def _probed(pod: Pod) -> Iterable[Container]:
    """The containers that may have probes."""
    return (ct for ct in all_containers(pod) if ct in pod.spec.containers or is_sidecar(ct))


def _passed(kind: ProbeKind, known: ContainerStatus | None) -> bool:
    """As last reported, a probe of this very container passed."""
    if known is None or kind == "liveness":
        return False
    return known.started if kind == "startup" else known.ready


def health_of(
    seen: Observed, planned: PodPlan, records: Iterable[Record], *, started: Collection[str], ready: Collection[str]
) -> status.Health:
    """What a status is made from beside the records; `started` and `ready` as the prober has them."""
    pod = planned.pod
    assert pod is not None
    specs: Mapping[str, Container] = {ct.name: ct for ct in all_containers(pod)}
    running = [(specs[c.container_name(r)], r) for r in records if r.running and c.container_name(r) in specs]
    held = {r.id for ct, r in running if is_held(seen, pod, ct, r)}
    return status.Health(
        ready={r.id for ct, r in running if ct.readiness_probe is None or r.id in ready},
        started={r.id for ct, r in running if r.id not in held and (ct.startup_probe is None or r.id in started)},
        held=held,
        waiting=planned.waiting,
    )
