"""The memory of what the kernel holds, so that a dump is not needed for every change.

Owns: when the last dump, kept up by what `apply` did since, may be used instead
of another one. Invariant: it is used only while notifications are listened to,
and none that was heard contradicts it; whatever cannot be followed exactly (a
step that failed, a link that changed, notifications that were lost, another
question) makes the next observation a dump. What is about to be done is taken
in before it is done, so that its notifications always find it.

`apply` and observations come from one thread, notifications from another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from netd import plan as p
from netd.held import ABOUT_LINKS, Asked, Held
from netd.model import Actual

_MEANWHILE = 20_000  # notifications kept while a dump is taken: a sixth of a second's worth

Event = tuple[int, bytes]
"""A notification: its type and its body."""

_NOTHING = Held(Asked(frozenset(), ()))


class Memory:
    """Empty at first; `listening` makes it usable."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: Held | None = None
        self._valid = False
        self._doubts = 0  # how often it was found wanting
        self._names: Callable[[], Collection[str]] | None = None
        self._on_change: Callable[[], None] = lambda: None
        self._meanwhile: list[Event] | None = None

    @property
    def valid(self) -> bool:
        return self._valid

    @contextmanager
    def listening(self, names: Callable[[], Collection[str]], on_change: Callable[[], None]) -> Iterator[None]:
        """For as long as `heard` is told of every notification."""
        with self._lock:
            self._names, self._on_change = names, on_change
        try:
            yield
        finally:
            self.doubt()
            with self._lock:
                self._names, self._on_change = None, lambda: None

    def doubt(self) -> None:
        """The next observation must look, also one that is under way."""
        with self._lock:
            self._valid = False
            self._doubts += 1

    def recall(self, asked: Asked, sysctls: Mapping[str, str]) -> Actual | None:
        """What the kernel holds; None when that is not known."""
        with self._lock:
            if not self._valid or self._held is None or self._held.asked != asked:
                return None
            return self._held.actual(sysctls)

    def learn(self, look: Callable[[frozenset[str]], Held], sysctls: Mapping[str, str]) -> Actual:
        """Take a dump; `look` is given the names of the links to watch.

        What is heard meanwhile is compared with the result.
        """
        names = self._names
        watched = frozenset(names()) if names is not None else frozenset[str]()
        with self._lock:
            self._valid = False
            doubts = self._doubts
            self._meanwhile = [] if names is not None else None
        try:
            held = look(watched)
        except BaseException:  # whatever ended the look, what came meanwhile must not be lost
            with self._lock:
                missed, self._meanwhile = self._meanwhile, None
            if missed:
                self._on_change()
            raise
        with self._lock:
            meanwhile, self._meanwhile = self._meanwhile, None
            if self._held is not None:
                held.reuse(self._held)
            self._held = held
            contradicted = not all(held.agrees(*event, watched) for event in meanwhile or ())
            undisturbed = meanwhile is not None and self._names is not None and doubts == self._doubts
            self._valid = undisturbed and not contradicted and not held.ambiguous
            actual = held.actual(sysctls)
        if contradicted:
            self._on_change()
        return actual

    def expect(self, steps: Sequence[p.EntryStep], indexes: Mapping[str, int]) -> None:
        """These steps are about to be carried out. `indexes` has their devices'."""
        with self._lock:
            if self._held is not None:
                for step in steps:
                    self._held.expect(step, indexes.__getitem__)

    def heard(self, events: Sequence[Event]) -> bool:
        """Take notice of notifications. Returns whether somebody should look at the kernel."""
        names = self._names
        watched = names() if names is not None and any(kind in ABOUT_LINKS for kind, _ in events) else ()
        with self._lock:
            if self._meanwhile is not None:
                if len(self._meanwhile) < _MEANWHILE:
                    self._meanwhile += events
                    return False
                self._doubts += 1
                return True
            held = self._held or _NOTHING
            # a look may have failed since it became invalid, so that it is as old as that: nothing to agree with
            if all(
                held.agrees(*event, watched) and (self._valid or _NOTHING.agrees(*event, watched)) for event in events
            ):
                return False
            self._valid = False
            return True
