"""Hears that a node's own Node was changed, so that nobody has to ask for it again and again.

Owns: one watch on the keys of a few Nodes. Invariants: it says no more than up
to which revision something is new, and who is told reads the Node himself; all
are told whenever a watch has begun, for what happened before it is not known,
nor whether the store is the same. Single keys are watched, not a prefix: an
agent may read its own Node only, and `n1` must not hear of `n10`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping

from podlane.api.types import Node
from podlane.errors import PodlaneError
from podlane.runtime.clock import Clock
from podlane.runtime.log import Repetition, get_logger
from podlane.store import keys
from podlane.store.interface import Store

PAUSES = (0.2, 2.0)
"""Seconds before the watch is begun again: first, longest."""
_POLL = 1.0


class NodeWatch:
    """`changed` has, by node, who is told the revision of a change, infinity for one that is not known."""

    def __init__(self, store: Store, changed: Mapping[str, Callable[[float], None]], clock: Clock) -> None:
        self._store = store
        self._changed = {keys.key_for(Node, "", node): tell for node, tell in changed.items()}
        self._clock = clock
        self._repetition = Repetition()
        self._log = get_logger("nodewatch")

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop`: the body of one thread."""
        pause = PAUSES[0]
        while not stop.is_set():
            try:
                revision = self._store.txn([], []).revision
                with self._store.watch_many(dict.fromkeys(self._changed, revision), exact=True) as watch:
                    for tell in self._changed.values():
                        tell(math.inf)
                    while not stop.is_set():
                        if (batch := watch.next(_POLL)) is not None:
                            self._repetition.over()
                            pause = PAUSES[0]
                            for event in batch.events:
                                self._changed[event.kv.key](event.kv.mod_revision)
            except PodlaneError as error:
                if stop.is_set():
                    return  # the store may be closed by now
                news = self._repetition.is_news(str(error), self._clock.monotonic())
                (self._log.warning if news else self._log.debug)("watch of node lost", error=str(error), retry_in=pause)
                self._clock.wait(stop, pause)
                pause = min(PAUSES[1], 2 * pause)
