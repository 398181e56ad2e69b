"""What the pods of hollow nodes name in the store.

Owns: one reader of config maps and secrets for all nodes of a process, where
real agents have one each. Invariant: an object is followed while any node's pod
names it. Services are not read: no container is there to be given variables.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from podlane.api.types import Pod
from podlane.runtime.clock import Clock
from podlane.store.interface import Store
from scheduler.agent.references import Followed, Ref, References, Services, refs_of
from scheduler.agent.storeview import StoreView


class SharedReferences:
    """`view` gives each node its own; `run` is the body of one thread."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._references = References(store, self._changed, clock)
        self._lock = threading.Lock()
        self._naming: dict[str, tuple[Pod, ...]] = {}
        self._on_change: dict[str, Callable[[], None]] = {}

    def view(self, node: str, on_change: Callable[[], None]) -> StoreView:
        """For a node's agent; `on_change` is called when something known changed."""
        self._on_change[node] = on_change
        return StoreView(_OfNode(self, node), _NoVariables())

    def run(self, stop: threading.Event) -> None:
        self._references.run(stop)

    def look(self, node: str, pods: Iterable[Pod]) -> dict[Ref, Followed | None]:
        """What is known of the objects that a node's pods name, and of others'."""
        naming = tuple(pod for pod in pods if refs_of(pod))
        with self._lock:
            if not naming and node not in self._naming:
                return {}
            self._naming[node] = naming
            if not naming:
                del self._naming[node]
            return self._references.look([pod for each in self._naming.values() for pod in each])

    def _changed(self) -> None:
        with self._lock:
            concerned = [self._on_change[node] for node in self._naming]
        for on_change in concerned:
            on_change()


@dataclass(frozen=True, slots=True)
class _OfNode:
    shared: SharedReferences
    node: str

    def look(self, pods: Iterable[Pod]) -> dict[Ref, Followed | None]:
        return self.shared.look(self.node, pods)


class _NoVariables:
    def look(self, needed: Mapping[str, int], namespaces: Collection[str]) -> dict[str, Services]:
        del namespaces
        return dict.fromkeys(needed, Services())
