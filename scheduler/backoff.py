"""What single objects were refused, and when each is tried again.

Owns: a doubling pause for each key, apart from the loop's own: one object's
trouble keeps no other waiting. A change of the object may hold the cure and is
not waited for; it does not reset the doubling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

SECONDS = (0.5, 60.0)
"""First and longest pause."""


@dataclass(frozen=True, slots=True)
class _Refusal(Generic[T]):
    reason: T
    pause: float
    again: float


class Backoff(Generic[T]):
    """Refusals by key; times in seconds on one clock."""

    def __init__(self) -> None:
        self._refusals: dict[str, _Refusal[T]] = {}

    def refused(self, key: str, reason: T, now: float) -> float:
        """Note it and return the pause until it is tried again."""
        known = self._refusals.get(key)
        pause = SECONDS[0] if known is None else min(SECONDS[1], known.pause * 2)
        self._refusals[key] = _Refusal(reason, pause, now + pause)
        return pause

    def over(self, key: str) -> None:
        self._refusals.pop(key, None)

    def reason(self, key: str) -> T | None:
        known = self._refusals.get(key)
        return None if known is None else known.reason

    def __iter__(self) -> Iterator[str]:
        """The keys that were refused."""
        return iter(list(self._refusals))

    def due(self, now: float) -> set[str]:
        return {key for key, known in self._refusals.items() if known.again <= now}

    def next(self) -> float | None:
        return min((known.again for known in self._refusals.values()), default=None)

    def keep(self, wanted: Callable[[str], bool]) -> None:
        """Forget the others."""
        self._refusals = {key: known for key, known in self._refusals.items() if wanted(key)}
