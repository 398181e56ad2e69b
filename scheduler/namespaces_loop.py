"""Carries out the end of namespaces.

Invariant: what is in a namespace that ends is read from the store itself, for
the mirrors may not show the last that was made in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from podlane.api.meta import namespaced_name
from podlane.api.types import KINDS, Event, Lease, Namespace, Object, Pod
from podlane.errors import NotFound, PodlaneError
from scheduler import namespaces
from scheduler.loop import Context, Loop

CONTENTS = tuple(cls for cls in KINDS.values() if cls.NAMESPACED and cls not in {Event, Lease})
"""What a namespace waits for; events and leases end by themselves."""

LOOK_AGAIN = 1.0
"""Seconds between two looks at a namespace that waits for what is in it."""


class NamespacesLoop(Loop):
    """Empties namespaces that are being deleted and lets them go."""

    name = "namespaces"
    watches = (Namespace, Pod)
    min_interval = 0.1

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._view = self.snapshot.of_kind(Namespace)
        self._feed = self._view.feed()
        self._ending: dict[str, Namespace] = {}

    def decide(self) -> None:
        changes = self._feed.take()
        if changes.complete:
            self._ending.clear()
        for name, namespace in changes.objects.items():
            self._ending.pop(name, None)
            if namespace is not None and namespace.metadata.deletion_timestamp is not None:
                self._ending[name] = namespace
        for namespace in list(self._ending.values()):
            try:
                self._end(namespace)
            except PodlaneError as error:
                self.failed(f"delete namespace {namespace.metadata.name}", error)
        if self._ending:
            self.wake_at(self.context.clock.now() + LOOK_AGAIN)

    def _end(self, namespace: Namespace) -> None:
        name = namespace.metadata.name
        contents: dict[type[Object], Sequence[Object]] = {cls: self.registry.list(cls, name).items for cls in CONTENTS}
        plan = namespaces.plan(namespace, contents, self.context.clock.now())
        if lines := str(plan).splitlines():
            self.tell(lines, {"delete": len(plan.delete), "finalize": int(not any(contents.values()))})
        for obj, outcome in zip(plan.delete, self.registry.delete_many(plan.delete), strict=True):
            if isinstance(outcome, Exception):
                self.failed(f"delete {type(obj).KIND.lower()} {namespaced_name(obj)}", outcome)
        if plan.update is not None:
            try:
                self._view.wrote(self.registry.update(plan.update))
            except NotFound:
                self._view.deleted(plan.update)
