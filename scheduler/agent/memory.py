"""What the agent remembers between two looks at its node.

Owns: failures being slept off, images fetched, the ends of pods and containers,
hooks begun, and which images are there. Invariant: losing all of it (the agent restarts) costs a
repeated attempt or a longer wait, never a wrong action: what must survive is in
the containers' labels. Thread-safe: workers write, the sync reads.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from podlane.runtime.clock import Clock
from scheduler.agent import containers as c
from scheduler.agent.actions import HookKind
from scheduler.agent.history import INITIAL_BACKOFF, MAX_BACKOFF
from scheduler.agent.model import Ending, Failure, HookRun, Stopping
from scheduler.agent.runtime import NoSuchImage, Runtime
from scheduler.agent.volumes import Stamp

SANDBOX_BACKOFF = (1, 60)
"""Seconds before a pod's network (or its release) is tried again: first and longest; doubling between."""


class Memory:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[tuple[str, str], Failure] = {}
        self._pulled: set[tuple[str, str, int]] = set()
        self._endings: dict[str, Ending] = {}
        self._stops: dict[str, Stopping] = {}
        self._hooks: dict[tuple[str, HookKind], HookRun] = {}
        self._images: dict[str, str | None] = {}
        self._image_changes = 0
        self._users: dict[str, str] = {}
        self._set_up: dict[str, Stamp] = {}

    def now(self) -> float:
        """The clock its times are by, in Unix seconds."""
        return self._clock.now()

    # --- failures --------------------------------------------------------------------

    def failed(self, uid: str, container: str, reason: str, message: str, *, again: str = "") -> Failure:
        """Note a failure of a container (or INFRA); `again` is the reason when it is not the first."""
        with self._lock:
            before = self._failures.get((uid, container))
            count = before.count + 1 if before else 1
            first, longest = SANDBOX_BACKOFF if container in {c.INFRA, c.VOLUMES} else (INITIAL_BACKOFF, MAX_BACKOFF)
            pause = min(longest, first * 2 ** min(count - 1, 16))
            failure = Failure(again if again and before else reason, message, count, self._clock.now() + pause)
            self._failures[(uid, container)] = failure
            return failure

    def succeeded(self, uid: str, container: str) -> None:
        with self._lock:
            self._failures.pop((uid, container), None)

    def failures(self) -> dict[tuple[str, str], Failure]:
        with self._lock:
            return dict(self._failures)

    # --- images -------------------------------------------------------------------------

    def images(self, runtime: Runtime, wanted: Iterable[str]) -> dict[str, str | None]:
        """The id of each image, None if absent; asks the engine only for those not known."""
        with self._lock:
            known, changes = dict(self._images), self._image_changes
        unknown = {name for name in wanted if name not in known}
        for name in unknown:
            known[name] = runtime.image(name)
        with self._lock:
            if unknown and changes == self._image_changes:
                self._images = known
        return known

    def image_users(self, runtime: Runtime, wanted: Iterable[str]) -> dict[str, str]:
        """Whom each image runs as that is here; asks the engine only for those not known."""
        with self._lock:
            known, changes = dict(self._users), self._image_changes
        for name in set(wanted) - known.keys():
            with suppress(NoSuchImage):
                known[name] = runtime.image_user(name)
        with self._lock:
            if changes == self._image_changes:
                self._users = known
        return known

    def forget_images(self) -> None:
        """Something happened to an image: ask again."""
        with self._lock:
            self._images.clear()
            self._users.clear()
            self._image_changes += 1

    def fetched(self, uid: str, container: str, attempt: int) -> None:
        with self._lock:
            self._pulled.add((uid, container, attempt))

    def pulled(self) -> frozenset[tuple[str, str, int]]:
        with self._lock:
            return frozenset(self._pulled)

    # --- volumes --------------------------------------------------------------------------

    def note_volumes(self, uid: str, stamp: Stamp) -> None:
        """A pod's volumes are as they should be, made from this."""
        with self._lock:
            self._set_up[uid] = stamp

    def volumes(self) -> dict[str, Stamp]:
        with self._lock:
            return dict(self._set_up)

    # --- ends -----------------------------------------------------------------------------

    def note_endings(self, pods: Mapping[str, bool]) -> dict[str, Ending]:
        """These pods (UID: ready) are to end; those not seen before end from now on."""
        now = self._clock.now()
        with self._lock:
            self._endings = {uid: self._endings.get(uid, Ending(now, ready=ready)) for uid, ready in pods.items()}
            return dict(self._endings)

    def stop_begins(self, container_id: str) -> bool:
        """A container is to end: whether that is news."""
        with self._lock:
            if container_id in self._stops:
                return False
            self._stops[container_id] = Stopping(self._clock.now())
            return True

    def signalled(self, container_id: str) -> None:
        """A container had its SIGTERM."""
        now = self._clock.now()
        with self._lock:
            stopping = self._stops.get(container_id, Stopping(now))
            self._stops[container_id] = replace(stopping, signalled=now)

    def stops(self) -> dict[str, Stopping]:
        with self._lock:
            return dict(self._stops)

    # --- hooks ----------------------------------------------------------------------------

    def hook_begins(self, container_id: str, kind: HookKind) -> bool:
        """A hook of a container is to run: whether that is news."""
        with self._lock:
            if (container_id, kind) in self._hooks:
                return False
            self._hooks[(container_id, kind)] = HookRun()
            return True

    def hook_ends(self, container_id: str, kind: HookKind, *, in_seconds: float = 0.0, error: str = "") -> None:
        """It has ended, or will in so many seconds."""
        with self._lock:
            self._hooks[(container_id, kind)] = HookRun(self._clock.now() + in_seconds, error)

    def hooks(self) -> dict[tuple[str, HookKind], HookRun]:
        with self._lock:
            return dict(self._hooks)

    def keep(self, uids: Collection[str], container_ids: Collection[str]) -> None:
        """Forget every pod and container but these."""
        with self._lock:
            self._stops = {key: value for key, value in self._stops.items() if key in container_ids}
            self._hooks = {key: value for key, value in self._hooks.items() if key[0] in container_ids}
            self._failures = {key: value for key, value in self._failures.items() if key[0] in uids}
            self._pulled = {key for key in self._pulled if key[0] in uids}
            self._set_up = {uid: stamp for uid, stamp in self._set_up.items() if uid in uids}
