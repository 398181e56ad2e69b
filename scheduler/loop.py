"""The leader's loops: take a snapshot, ask the pure planner, carry the plan out.

Owns: how plans are carried out and what is done when a write fails. Each loop
has one runner and one thread, so that a long placement never keeps an endpoint
waiting; they share the `Snapshot`, so each sees at once what another wrote.

Invariants: every write is fenced and compared with what the plan saw; a write
that loses (Conflict) is no fault, the change that beat it brings the next
sync; independent writes go on past a failure and one ApplyError ends the sync.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from podlane.api.types import Object, ObjectReference, Pod, Struct
from podlane.errors import ApplyError, Conflict, Fenced, NamespaceTerminating, NotFound
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from podlane.store.registry import Registry
from scheduler.cluster import Snapshot

LINES_AT_INFO = 20
"""Steps of one plan that are logged one by one; of a longer plan only the summary is."""


class Recorder(Protocol):
    """What the loops need of an EventRecorder."""

    def event(
        self,
        about: Object | ObjectReference,
        type: Literal["Normal", "Warning"],  # noqa: A002 - the field's name
        reason: str,
        message: str,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Context:
    """What every loop works with; `registry` is the leader's fenced one."""

    registry: Registry
    snapshot: Snapshot
    events: Recorder
    clock: Clock
    rng: random.Random
    wake: Callable[[str, float], None]
    """Sync the loop of this name in so many seconds."""


class Loop(ABC):
    """One controller. `watches`: the kinds whose changes make it sync; `min_interval` in seconds.

    `rest`: how much longer it pauses after a sync than that took. For loops that look at the whole cluster and
    can wait: in a large one they would leave little of the processor to those that cannot.
    """

    name: ClassVar[str]
    watches: ClassVar[tuple[type[Struct], ...]]
    min_interval: ClassVar[float] = 0.0
    rest: ClassVar[float] = 0.0

    def __init__(self, context: Context) -> None:
        self.context = context
        self.registry = context.registry
        self.snapshot = context.snapshot
        self.log = get_logger(self.name)
        self._failures: list[tuple[str, Exception]] = []

    def sync(self) -> None:
        """Decide and carry out once. Raises Fenced, or ApplyError with all that went wrong."""
        self._failures = []
        self.decide()
        if self._failures:
            raise ApplyError(self._failures)

    @abstractmethod
    def decide(self) -> None: ...

    def failed(self, step: str, error: Exception) -> None:
        """Note a failed write. A lost race is none: what won it is a change that makes us sync again.

        Nor is that a namespace ends while we still see what is in it.
        """
        if isinstance(error, Fenced):
            raise error
        if isinstance(error, Conflict | NotFound | NamespaceTerminating):
            self.log.debug("lost a race", step=step, cause=str(error))
            return
        self._failures.append((step, error))

    def wake_at(self, moment: float | None) -> None:
        if moment is not None:
            self.context.wake(self.name, max(0.0, moment - self.context.clock.now()))

    def tell(self, lines: Iterable[str], sizes: Mapping[str, int]) -> None:
        """Log what a plan does: one summary, and each step while they are few."""
        steps = list(lines)
        for step in steps:
            (self.log.info if len(steps) <= LINES_AT_INFO else self.log.debug)(step)
        self.log.info("decided", **sizes)


def delete_pods(
    registry: Registry, snapshot: Snapshot, pods: Sequence[Pod], grace_seconds: int | None = None
) -> list[Exception | None]:
    """Delete pods, if they are still the ones meant, and show it in the snapshot; None for each that is done."""
    errors: list[Exception | None] = []
    outcomes = registry.delete_many(pods, grace_seconds=grace_seconds)
    for pod, outcome in zip(pods, outcomes, strict=True):
        errors.append(None)
        if isinstance(outcome, NotFound | Conflict):
            # gone, or another pod has the name now: either way this one is no more
            snapshot.pods.deleted(pod)
        elif isinstance(outcome, Exception):
            errors[-1] = outcome
        elif outcome.metadata.deletion_timestamp is None or grace_seconds == 0:
            snapshot.pods.deleted(pod)
        else:
            snapshot.pods.wrote(outcome)
    return errors
