"""The loop that gives disk back: look, plan (prune.py), remove.

Owns: when it looks. How full the disk is costs one system call and is looked at
every few seconds, so a full disk does not last; which images are there is asked
only when it is full, and now and then to know how old they are. Invariants: it has
a thread of its own and waits for nothing of the agent's; what cannot be removed is
told and does not keep the rest from going.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable
from typing import Literal, Protocol

from podlane.api.types import ObjectReference, Pod
from podlane.errors import PodlaneError
from podlane.runtime import metrics
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from podlane.runtime.runner import NotReady, Runner
from scheduler.agent.prune import Age, Disk, Limits, Prune, Seen, is_full, note, plan
from scheduler.agent.runtime import Runtime, RuntimeRefused

RESYNC = 10.0
IMAGES_EVERY = 300.0
"""Seconds between looks at the images while there is room, as with the kubelet."""

_PRUNED = metrics.counter("podlane_agent_pruned_total", "What was removed to give disk back.", ["kind"])


class Events(Protocol):
    """podlane.store.events.EventRecorder, as far as it is used here."""

    def event(
        self,
        about: ObjectReference,
        type: Literal["Normal", "Warning"],  # noqa: A002 - the field's name
        reason: str,
        message: str,
    ) -> None: ...


def disk_of(folder: str) -> Disk | None:
    """The file system a folder is on; None when that cannot be told (the engine is on another machine)."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return Disk(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


class Pruner:
    """`pods` gives those bound here, and raises PodlaneError while they are not known; `busy` the UIDs worked on."""

    def __init__(
        self,
        node: str,
        *,
        runtime: Runtime,
        pods: Callable[[], Iterable[Pod]],
        busy: Callable[[], Collection[str]],
        events: Events,
        clock: Clock,
        limits: Limits = Limits(),
        disk: Callable[[str], Disk | None] = disk_of,
    ) -> None:
        self._about = ObjectReference(kind="Node", api_version="v1", name=node, uid=node)
        self._runtime, self._pods, self._busy = runtime, pods, busy
        self._events = events
        self._clock = clock
        self._limits = limits
        self._disk = disk
        self._root = ""
        self._ages: dict[str, Age] = {}
        self._images_due = -math.inf
        self._missed = False
        self._log = get_logger("prune")
        self.runner = Runner(self.sync, name="prune", clock=clock, resync=RESYNC, backoff=(1.0, RESYNC))

    def sync(self) -> None:
        """Look once, and remove what may go. Raises RuntimeUnavailable, NotReady."""
        due = self._clock.monotonic() >= self._images_due
        if due or not self._root:
            self._root = self._runtime.info().root
        disk = self._disk(self._root)
        full = disk is not None and is_full(disk, self._limits)
        if not full:
            self._missed = False
            if not due:
                return
        try:
            pods = list(self._pods())
        except PodlaneError as error:
            raise NotReady(f"list pods to keep their images: {error}") from error
        self._images_due = self._clock.monotonic() + IMAGES_EVERY
        busy = self._busy()  # before looking: what is being made then is not in the list
        images, now = self._runtime.list_images(), self._clock.now()
        self._ages = note(self._ages, images, now)
        seen = Seen(
            now=now,
            records=self._runtime.list(),
            busy=busy,
            images=images,
            ages=self._ages,
            wanted=self._wanted(pods) if full else (),
            disk=disk,
        )
        self._apply(plan(seen, self._limits), disk)

    def _wanted(self, pods: Iterable[Pod]) -> frozenset[str]:
        names = {ct.image for pod in pods for ct in (*pod.spec.init_containers, *pod.spec.containers)}
        return frozenset(identity for name in names if (identity := self._runtime.image(name)) is not None)

    def _apply(self, planned: Prune, disk: Disk | None) -> None:
        for record in planned.containers:
            self._remove("container", record.name, lambda name=record.name: self._runtime.remove(name))  # type: ignore[misc]
        for image in planned.images:
            title = " ".join(image.names) or image.id
            self._remove("image", title, lambda identity=image.id: self._runtime.remove_image(identity))  # type: ignore[misc]
        if planned.found < planned.asked and not self._missed:
            self._missed = True
            text = (
                "Failed to garbage collect required amount of images. "
                f"Attempted to free {planned.asked} bytes, but only found {planned.found} bytes eligible to free."
            )
            self._events.event(self._about, "Warning", "FreeDiskSpaceFailed", text)
            self._log.warning("disk stays full", used=disk and disk.used, wanted=planned.asked, found=planned.found)

    def _remove(self, kind: str, name: str, remove: Callable[[], None]) -> None:
        try:
            remove()
        except RuntimeRefused as error:
            self._log.warning("not pruned", kind=kind, name=name, error=str(error), retry_in=RESYNC)
            return
        _PRUNED.labels(kind).inc()
        self._log.info("pruned", kind=kind, name=name)
