"""Ending containers: their preStop hook, SIGTERM, the rest of the grace period, SIGKILL. Pure.

Owns: how one container is ended and in which order a pod's are. Invariants:
hook and signals share one grace period, counted from the beginning of the end,
but who had a hook has two seconds for its SIGTERM whatever it took; sidecars
are told to end when the containers they serve have ended, the last to start
first; a grace period of 0 is SIGKILL at once. Source: killContainer and
terminationOrdering (pkg/kubelet/kuberuntime).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from podlane.api.types import Container, LifecycleHandler, Pod
from scheduler.agent import containers as c
from scheduler.agent.actions import Action, RunHook, Signal
from scheduler.agent.history import all_containers, is_sidecar
from scheduler.agent.model import Observed
from scheduler.agent.runtime import Record

MINIMUM_GRACE = 2
"""Seconds between SIGTERM and SIGKILL for who had a preStop hook."""


@dataclass(slots=True)
class Stops:
    """Collects what is to be done next for those that end, and when to look again."""

    seen: Observed
    pod: Pod | None
    ip: str = ""
    steps: list[Action] = field(default_factory=list)
    hooks: list[RunHook] = field(default_factory=list)
    wake_at: float | None = None

    def stop(self, record: Record, *, begun: float, grace: float, why: str, its_turn: bool = True) -> None:
        """Bring a running container nearer to its end, which has `grace` seconds from `begun` on."""
        now, deadline = self.seen.now, begun + grace
        failure = self.seen.failures.get((c.pod_uid(record), c.container_name(record)))
        if failure is not None and failure.until > now:  # the engine would not signal it
            self._wake(failure.until)
            return
        if grace <= 0:
            self._signal(record, "SIGKILL", why)
            return
        known = self.seen.stops.get(record.id)
        if known is not None and known.signalled is not None:
            self._kill_at(record, self._last_moment(record, deadline, known.signalled))
        elif not self._hook_is_over(record, deadline, why):
            return
        elif now < deadline and not its_turn:
            self._wake(deadline)
        elif now >= deadline and self._pre_stop(record) is None:
            self._signal(record, "SIGKILL")
        else:
            self._signal(record, "SIGTERM", why)
            self._wake(self._last_moment(record, deadline, now))

    def stop_all(self, records: Iterable[Record], *, grace: float, begun: float | None = None) -> None:
        """End a pod's containers in their order; without `begun` the period of each began when it was first told."""
        running = [r for r in records if r.running and c.container_name(r) != c.INFRA]
        order = {ct.name: number for number, ct in enumerate(all_containers(self.pod))} if self.pod else {}
        sidecars = {ct.name for ct in self.pod.spec.init_containers if is_sidecar(ct)} if self.pod else set()
        for record in sorted(running, key=lambda r: order.get(c.container_name(r), 0)):
            name = c.container_name(record)
            waits = name in sidecars and any(
                c.container_name(other) not in sidecars or order[c.container_name(other)] > order[name]
                for other in running
            )
            known = self.seen.stops.get(record.id)
            since = begun if begun is not None else known.begun if known is not None else self.seen.now
            self.stop(record, begun=since, grace=grace, why=f"Stopping container {name}", its_turn=not waits)

    def _last_moment(self, record: Record, deadline: float, signalled: float) -> float:
        return max(deadline, signalled + MINIMUM_GRACE) if self._pre_stop(record) is not None else deadline

    def _kill_at(self, record: Record, at: float) -> None:
        if self.seen.now >= at:
            self._signal(record, "SIGKILL")
        else:
            self._wake(at)

    def _hook_is_over(self, record: Record, deadline: float, why: str) -> bool:
        """Also when there is none, or no time for it any more."""
        now, run, ct = self.seen.now, self.seen.hooks.get((record.id, "PreStop")), self._spec(record)
        hook = self._pre_stop(record)
        if ct is None or hook is None or now >= deadline or (run is not None and run.is_over(now)):
            return True
        if run is None:
            step = RunHook(ct.name, record.name, record.id, "PreStop", hook, ct, self.ip, deadline - now, why)
            self.hooks.append(step)
        self._wake(deadline if run is None or run.over_at is None else min(deadline, run.over_at))
        return False

    def _pre_stop(self, record: Record) -> LifecycleHandler | None:
        ct = self._spec(record)
        return ct.lifecycle.pre_stop if ct is not None and ct.lifecycle is not None else None

    def _signal(self, record: Record, signal: str, why: str = "") -> None:
        self.steps.append(Signal(c.container_name(record), record.name, record.id, signal, why))

    def _spec(self, record: Record) -> Container | None:
        name = c.container_name(record)
        return next((ct for ct in all_containers(self.pod) if ct.name == name), None) if self.pod else None

    def _wake(self, at: float) -> None:
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)
