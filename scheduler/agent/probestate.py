"""What a probe's answers mean, and when to ask next. Pure.

Owns: the thresholds of startup, liveness and readiness probes. Invariants: a
liveness probe passes until it has failed, the others do not until they have
passed, unless it was reported so before the agent restarted; what has failed
for good, or has started, is not asked again. Times are monotonic seconds.

Start latency: the first probe comes at once when initialDelaySeconds is 0, and
until the first success within the first periodSeconds a startup or readiness
probe is repeated every 50 ms (doubling to 0.4 s; exec, which costs dockerd a
process, from 0.25 s). These extra probes do not count as failures. A pod is
thus ready within tens of milliseconds of its server listening, where the
kubelet's next probe comes a whole period later. After a restart of the agent
the first probes are spread over their periods, each at a moment that its
container's id decides. Source: Kubernetes' pkg/kubelet/prober/worker.go.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

from podlane.api.types import Container, Pod, Probe

ProbeKind = Literal["startup", "liveness", "readiness"]
_FAST = 0.05
_FAST_EXEC = 0.25
_SLOWEST_FAST = 0.4


@dataclass(frozen=True, slots=True)
class Target:
    """A probe of a running container. `running_for` is seconds; `was_ready`: it passed, as last reported;
    `adopted`: the container was already there when the agent started.
    """

    id: str
    pod: Pod
    container: Container
    probe: Probe
    ip: str
    running_for: float = 0.0
    was_ready: bool = False
    kind: ProbeKind = "readiness"
    adopted: bool = False

    @property
    def grace(self) -> int:
        """Seconds the container gets to end when this probe has failed for good."""
        own = self.probe.termination_grace_period_seconds
        return own if own is not None else self.pod.spec.termination_grace_period_seconds


class ProbeState:
    """The answers to one probe so far. `passing` is its result; `over`: it is not asked any more."""

    def __init__(
        self,
        probe: Probe,
        now: float,
        *,
        kind: ProbeKind = "readiness",
        running_for: float = 0.0,
        was_ready: bool = False,
        spread: str = "",
    ) -> None:
        self.probe = probe
        self.kind: ProbeKind = kind
        self.passing = was_ready or kind == "liveness"
        self.over = was_ready and kind == "startup"
        self.due = now + max(0.0, probe.initial_delay_seconds - running_for)
        if spread:
            self.due += probe.period_seconds * (zlib.crc32(spread.encode()) % 1000) / 1000
        self._fast_until = self.due + probe.period_seconds
        self._fast = _FAST_EXEC if probe.exec is not None else _FAST
        self._hurries = not self.passing  # until a first success was seen
        self._successes = self._failures = 0

    @property
    def failed(self) -> bool:
        """The container is to be ended."""
        return self.over and not self.passing

    def answer(self, ok: bool, now: float) -> bool:
        """Take an answer in and set `due`; True when it was a failure that counts."""
        if ok:
            self._hurries = False
            self._failures = 0
            self._successes += 1
            if self._successes >= self.probe.success_threshold:
                self.passing = True
                self.over = self.kind == "startup"
        elif self._hurries and now + self._fast < self._fast_until:
            self.due = now + self._fast
            self._fast = min(2 * self._fast, _SLOWEST_FAST)
            return False
        else:
            self._successes = 0
            self._failures += 1
            if self._failures >= self.probe.failure_threshold:
                self.passing = False
                self.over = self.kind != "readiness"
        self.due = now + self.probe.period_seconds
        return not ok
