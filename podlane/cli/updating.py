"""The course of a rolling update: what is under way is found, gone on with, finished.

Owns: the writes. Invariants: all that must be remembered is in annotations of
the two controllers before anything depends on it, so whoever comes next finds
an update broken off at any point; a controller is scaled only from the number
that was seen. rollout.py decides the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from podlane.api.codec import encode
from podlane.api.meta import controller_of
from podlane.api.selectors import selects
from podlane.api.types import Pod, ReplicationController, ReplicationControllerSpec
from podlane.cli import rollout
from podlane.cli.command import note
from podlane.cli.rollout import DESIRED, KEEP_NAME, NEXT, ORIGINAL, SOURCE, TAKES_OVER, Limits, Side
from podlane.cli.session import Session
from podlane.cli.trouble import Watch
from podlane.cli.waiting import wait_gone
from podlane.errors import NotFound, PodlaneError, UsageError

POLL = 0.25  # seconds between two looks at the controllers


class Progress:
    """What is shown of it: a line for each step; more than that is for others to make of it."""

    def say(self, line: str) -> None:
        note(line)

    def look(self, growing: ReplicationController, shrinking: ReplicationController) -> None:
        """The two controllers as they are now."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for. `new` is the new controller's name, "" for one that is made up and not kept."""

    old: str
    new: str = ""
    image: str = ""
    container: str = ""
    label: str = rollout.DEPLOYMENT_KEY
    surge: str = "1"
    unavailable: str = "0"


@dataclass(frozen=True, slots=True)
class Course:
    """From `shrinking` to `growing`, as far as they are there yet or still.

    `create`: the growing one is not stored; `label` is what the old one's pods
    must get first, "" for nothing; `back`: it is taken back.
    """

    growing: ReplicationController
    shrinking: ReplicationController | None
    limits: Limits
    original: int
    create: bool = False
    label: str = ""
    back: bool = False

    def lines(self) -> Iterator[str]:
        """What will be done, if every pod becomes available."""
        grows, shrinks = self.growing.metadata.name, self.shrinking and self.shrinking.metadata.name
        if self.label:
            yield f"label pods of replicationcontroller/{shrinks} {self.label}"
        if self.create:
            yield f"create replicationcontroller/{grows}"
        have = 0 if self.create else self.growing.spec.replicas
        for step in rollout.foreseen(have, self.shrinking.spec.replicas if self.shrinking else 0, self.limits):
            if step.grow is not None:
                yield f"scale replicationcontroller/{grows} {step.grow}"
            elif step.shrink is not None:
                yield f"scale replicationcontroller/{shrinks} {step.shrink}"
        if KEEP_NAME in self.growing.metadata.annotations:
            yield f"replace replicationcontroller/{shrinks} by replicationcontroller/{grows}"
        elif shrinks:
            yield f"delete replicationcontroller/{shrinks}"


class Update:
    """One run of the command. `period` and `timeout` in seconds."""

    def __init__(
        self,
        session: Session,
        wanted: Wanted,
        *,
        period: float,
        timeout: float,
        progress: Progress,
    ) -> None:
        self._session = session
        self._registry = session.registry
        self._wanted = wanted
        self._period = period
        self._timeout = timeout
        self._progress = progress

    # --- finding out what is to be done ----------------------------------------------

    def course(self, manifest: ReplicationController | None, *, counted: bool = True) -> Course:
        """Forward, begun already or not. `counted`: the manifest says how many replicas.

        Raises UsageError for what contradicts the controllers there are, NotFound.
        """
        old = self._find(self._wanted.old)
        if old is None:
            return self._last_step(manifest.metadata.name if manifest else self._wanted.new)
        under_way = old.metadata.annotations.get(NEXT, "")
        new = self._candidate(old, manifest, under_way)
        if under_way not in {"", new.metadata.name}:
            raise UsageError(
                f"rolling update of {self._wanted.old}: it is being updated to {under_way}; go on with that by "
                f"podlane rolling-update {self._wanted.old}, or take it back with --rollback"
            )
        original = int(old.metadata.annotations.get(ORIGINAL, old.spec.replicas))
        if not counted or manifest is None:
            new = replace(new, spec=replace(new.spec, replicas=original))
        stored = self._find(new.metadata.name)
        if stored is not None:
            self._check_stored(stored, new)
            new = stored
        target = int(new.metadata.annotations.get(DESIRED, new.spec.replicas))
        limits = Limits.of(target, original, self._wanted.surge, self._wanted.unavailable)
        key = self._wanted.label
        labels = "" if manifest or key in old.spec.selector else f"{key}={rollout.template_hash(old, key)}"
        return Course(new, old, limits, original, stored is None, labels)

    def _candidate(
        self, old: ReplicationController, manifest: ReplicationController | None, under_way: str
    ) -> ReplicationController:
        wanted = self._wanted
        if manifest is not None:
            rollout.check_apart(old, manifest)
            return manifest
        if wanted.image:
            return rollout.with_image(old, wanted.image, wanted.container, wanted.label, wanted.new)
        if not under_way:
            raise UsageError(f"-f or --image: expected one of them: no update of {wanted.old} is under way")
        found = self._find(under_way)
        if found is not None:
            return found
        if TAKES_OVER in old.metadata.annotations:  # the new one is gone, the old one has its spec to take over
            return replace(old, metadata=replace(old.metadata, name=under_way, annotations={KEEP_NAME: "true"}))
        raise NotFound(f"rolling update of {wanted.old}: {under_way} is not there any more; go back with --rollback")

    def _last_step(self, name: str) -> Course:
        """The old one is deleted already: the new one is all that is left of the update."""
        found = self._find(name) if name else None
        if found is None or found.metadata.annotations.get(SOURCE) != self._wanted.old:
            raise NotFound(f'replicationcontrollers "{self._wanted.old}" not found')
        replicas = found.spec.replicas
        return Course(found, None, Limits(replicas, replicas, 0), replicas)

    def _check_stored(self, stored: ReplicationController, new: ReplicationController) -> None:
        if stored.metadata.annotations.get(SOURCE) != self._wanted.old:
            raise UsageError(f"replicationcontroller/{stored.metadata.name}: there is one, of no update of this one's")
        if stored.spec.template != new.spec.template:
            raise UsageError(
                f"rolling update of {self._wanted.old}: what is under way has another template; "
                "take it back with --rollback first"
            )

    def rollback_course(self, name: str = "") -> Course:
        """Back to the old one. `name`: the new one's, where it is known."""
        old = self._find(self._wanted.old)
        if old is None:
            raise NotFound(f'replicationcontrollers "{self._wanted.old}" not found')
        if TAKES_OVER in old.metadata.annotations:
            raise PodlaneError(f"roll back {self._wanted.old}: the update is over but for its name; run it without")
        name = name or self._wanted.new or old.metadata.annotations.get(NEXT, "")
        new = self._find(name) if name else None
        if new is not None and new.metadata.annotations.get(SOURCE) != self._wanted.old:
            raise UsageError(f"replicationcontroller/{name}: it is no update of {self._wanted.old}")
        if new is None and ORIGINAL not in old.metadata.annotations:
            raise UsageError(f"--rollback: no update of {self._wanted.old} is under way")
        original = int(old.metadata.annotations.get(ORIGINAL, old.spec.replicas))
        limits = Limits.of(original, original, self._wanted.surge, self._wanted.unavailable)
        return Course(old, new, limits, original, back=True)

    # --- doing it ----------------------------------------------------------------------

    def run(self, course: Course) -> ReplicationController:
        """To the end. Returns the controller that is left. Raises PodlaneError when it pauses."""
        if course.shrinking is None:
            return self._finish(course)
        takes_over = TAKES_OVER in course.shrinking.metadata.annotations
        if not takes_over:
            if not course.back:
                self._begin(course, course.shrinking)
            self._proceed(course.growing.metadata.name, course.shrinking.metadata.name, course.limits)
        return self._finish(course)

    def _begin(self, course: Course, old: ReplicationController) -> None:
        name = old.metadata.name
        if course.label:
            self._label_pods(name, *course.label.split("="))
        if course.create:
            self._registry.create(rollout.begun(course.growing, old))
            self._progress.say(f"Created {course.growing.metadata.name}")
        remembered = {ORIGINAL: str(course.original), NEXT: course.growing.metadata.name}
        self._modify(name, lambda live: rollout.annotated(live, remembered))
        target, limits = course.limits.target, course.limits
        self._progress.say(
            f"Scaling up {course.growing.metadata.name} from {0 if course.create else course.growing.spec.replicas} "
            f"to {target}, scaling down {name} from {old.spec.replicas} to 0 "
            f"(keep {limits.least} pods available, don't exceed {limits.most} pods)"
        )

    def _label_pods(self, name: str, key: str, value: str) -> None:
        """Give the old controller's pods a label of their own and have it select that, losing none."""
        old = self._modify(name, lambda live: rollout.labelled(live, key, value))

        def unlabelled(pod: Pod) -> bool:
            owner = controller_of(pod)
            mine = owner is None or owner.uid == old.metadata.uid
            return mine and key not in pod.metadata.labels and selects(old.spec.selector, pod.metadata.labels)

        def give(pod: Pod) -> Pod | None:
            labels = {**pod.metadata.labels, key: value}
            return replace(pod, metadata=replace(pod.metadata, labels=labels)) if unlabelled(pod) else None

        # pods may still be made without it until the template is known everywhere, also while the selector changes
        for selecting in (False, True):
            for pod in filter(unlabelled, self._registry.list(Pod, self._session.namespace).items):
                try:
                    self._registry.modify(Pod, pod.metadata.namespace, pod.metadata.name, give)
                except NotFound:
                    continue
            if not selecting:
                self._modify(name, lambda live: rollout.selecting(live, key, value))

    def _proceed(self, growing: str, shrinking: str, limits: Limits) -> None:
        clock = self._session.wall
        watch = Watch(self._session)
        seen: tuple[Side, Side] | None = None
        since = clock.monotonic()
        while True:
            grows, shrinks = self._live(growing), self._live(shrinking)
            self._progress.look(grows, shrinks)
            sides = (Side.of(grows), Side.of(shrinks))
            step = rollout.step(*sides, limits)
            if step.done:
                return
            if step.grow is not None:
                self._scale(grows, step.grow, "up")
            elif step.shrink is not None:
                self._scale(shrinks, step.shrink, "down")
            if step.grow is not None or step.shrink is not None:
                seen, since = None, clock.monotonic()
                self._pause(self._period)
                continue
            if sides != seen:
                seen, since = sides, clock.monotonic()
            waited = clock.monotonic() - since
            trouble = watch.trouble(grows, waited)
            if trouble or waited >= self._timeout:
                raise self._paused(grows, limits, trouble or watch.reason(grows) or f"no progress in {waited:g} s")
            self._pause(POLL)

    def _paused(self, growing: ReplicationController, limits: Limits, why: str) -> PodlaneError:
        return PodlaneError(
            f"rolling update of {self._wanted.old}: paused with {growing.status.available_replicas} of {limits.target} "
            f"pods of {growing.metadata.name} available: {why}; the same command goes on, with --rollback it goes back"
        )

    def _pause(self, seconds: float) -> None:
        if seconds and self._session.wall.wait(self._session.stop, seconds):
            raise PodlaneError(f"rolling update of {self._wanted.old}: stopped")

    def _scale(self, seen: ReplicationController, replicas: int, way: str) -> None:
        def change(live: ReplicationController) -> ReplicationController | None:
            if live.spec.replicas != seen.spec.replicas:
                return None  # somebody else was here: look again
            return replace(live, spec=replace(live.spec, replicas=replicas))

        self._modify(seen.metadata.name, change)
        self._progress.say(f"Scaling {seen.metadata.name} {way} to {replicas}")

    # --- the end -----------------------------------------------------------------------

    def _finish(self, course: Course) -> ReplicationController:
        old, new = self._wanted.old, course.growing.metadata.name
        if course.back:
            if course.shrinking is not None:
                self._progress.say(f"Rolled back. Deleting {course.shrinking.metadata.name}")
                self._delete(course.shrinking)
            return self._modify(old, rollout.cleaned)
        if course.shrinking is None or KEEP_NAME not in course.growing.metadata.annotations:
            if course.shrinking is not None:
                self._progress.say(f"Update succeeded. Deleting {old}")
                self._delete(course.shrinking)
            return self._modify(new, rollout.cleaned)
        return self._take_over(old, new)

    def _take_over(self, old: str, new: str) -> ReplicationController:
        """The old controller, which has no pods any more, becomes the new one and adopts its pods.

        Between the new one's end and that they are nobody's: what serves goes on serving.
        """
        self._progress.say(f"Update succeeded. {old} takes over from {new}")
        found = self._find(new)
        if found is not None:
            spec = encode(found.spec).decode()
            self._modify(old, lambda live: rollout.annotated(live, {TAKES_OVER: spec}))
            self._registry.delete(
                ReplicationController, self._session.namespace, new, uid=found.metadata.uid, propagation="Orphan"
            )
            wait_gone(self._session, [found], timeout=0 if math.isinf(self._timeout) else self._timeout)

        def becomes(live: ReplicationController) -> ReplicationController | None:
            spec = live.metadata.annotations.get(TAKES_OVER)
            if spec is None:
                return None
            return rollout.cleaned(replace(live, spec=msgspec.json.decode(spec, type=ReplicationControllerSpec)))

        return self._modify(old, becomes)

    def _delete(self, rc: ReplicationController) -> None:
        try:
            self._registry.delete(
                ReplicationController,
                rc.metadata.namespace,
                rc.metadata.name,
                uid=rc.metadata.uid,
                propagation="Background",
            )
        except NotFound:
            return

    # --- inside ------------------------------------------------------------------------

    def _find(self, name: str) -> ReplicationController | None:
        try:
            return self._live(name)
        except NotFound:
            return None

    def _live(self, name: str) -> ReplicationController:
        return self._registry.get(ReplicationController, self._session.namespace, name)

    def _modify(
        self, name: str, change: Callable[[ReplicationController], ReplicationController | None]
    ) -> ReplicationController:
        return self._registry.modify(ReplicationController, self._session.namespace, name, change)
