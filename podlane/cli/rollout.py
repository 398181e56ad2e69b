"""A rolling update, decided: from two controllers as they are to the next step.

Owns: how far one side may grow and the other shrink, what the controller of a
new image looks like, and the annotations by which an update that was broken off
is found again. Pure. Invariants: at no time are there more pods than the target
and the surge, nor fewer available ones than `least`, as far as the controllers'
status tells; a step is taken only when both statuses are those of the specs.
Source: kubectl's rolling_updater.go (removed in kubectl 1.18), annotations and
all; but the old controller keeps its name by taking over the new one's spec.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from podlane.api.codec import encode
from podlane.api.selectors import selects
from podlane.api.types import ObjectMeta, ReplicationController
from podlane.errors import UsageError

SOURCE = "kubectl.kubernetes.io/update-source-id"  # at the new one: whom it replaces
DESIRED = "kubectl.kubernetes.io/desired-replicas"  # at the new one
ORIGINAL = "kubectl.kubernetes.io/original-replicas"  # at the old one
NEXT = "kubectl.kubernetes.io/next-controller-id"  # at the old one: who replaces it
KEEP_NAME = "podlane.io/update-keeps-name"  # at the new one: the old one takes over its spec in the end
TAKES_OVER = "podlane.io/update-takes-over"  # at the old one, in the very end: that spec
ANNOTATIONS = (SOURCE, DESIRED, ORIGINAL, NEXT, KEEP_NAME, TAKES_OVER)

DEPLOYMENT_KEY = "deployment"
HASH_LENGTH = 10


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two controllers. `settled`: its pods are as many as are wanted, and its status of this spec."""

    wanted: int
    pods: int
    available: int
    settled: bool

    @classmethod
    def of(cls, rc: ReplicationController) -> Side:
        status = rc.status
        current = status.observed_generation >= rc.metadata.generation
        settled = current and status.replicas == rc.spec.replicas
        return cls(rc.spec.replicas, status.replicas, status.available_replicas, settled)


@dataclass(frozen=True, slots=True)
class Limits:
    """`target` pods in the end, at most `most` on the way, at least `least` of them available."""

    target: int
    most: int
    least: int

    @classmethod
    def of(cls, target: int, original: int, surge: str, unavailable: str) -> Limits:
        """Of numbers or percentages of the target. Raises UsageError."""
        more = amount("--max-surge", surge, target, math.ceil)
        fewer = amount("--max-unavailable", unavailable, target, math.floor)
        if not more and not fewer:
            if "%" not in unavailable and unavailable.strip("0") == surge.strip("0") == "":
                raise UsageError("--max-unavailable: expected more than 0 where --max-surge is 0")
            fewer = 1  # as Deployments do where both percentages come to nothing
        return cls(target, target + more, max(0, min(target, original) - fewer))


@dataclass(frozen=True, slots=True)
class Step:
    """Set one side's replicas; neither: wait for pods, unless `done`."""

    grow: int | None = None
    shrink: int | None = None
    done: bool = False


def step(growing: Side, shrinking: Side, limits: Limits) -> Step:
    """The next one."""
    if not (growing.settled and shrinking.settled):
        return Step()
    room = min(limits.most - growing.wanted - shrinking.wanted, limits.target - growing.wanted)
    if room > 0:
        return Step(grow=growing.wanted + room)
    spare = max(0, growing.available + shrinking.available - limits.least)
    idle = shrinking.wanted - shrinking.available  # they go first, and are missed by nobody
    less = min(shrinking.wanted, spare + idle)
    if less > 0:
        return Step(shrink=shrinking.wanted - less)
    return Step(done=shrinking.wanted == 0 and growing.available >= limits.target)


def foreseen(growing: int, shrinking: int, limits: Limits) -> list[Step]:
    """The steps, if every pod becomes available."""
    steps: list[Step] = []
    while True:
        following = step(Side(growing, growing, growing, True), Side(shrinking, shrinking, shrinking, True), limits)
        steps.append(following)
        if following.grow is not None:
            growing = following.grow
        elif following.shrink is not None:
            shrinking = following.shrink
        else:
            return steps


def amount(option: str, text: str, of: int, rounded: Callable[[float], int]) -> int:
    """`2` or `25%` of a number. Raises UsageError."""
    number, percent = text.removesuffix("%"), text.endswith("%")
    if not (number.isascii() and number.isdigit()) or (percent and int(number) > 100):
        raise UsageError(f'{option}: expected a number or a percentage up to 100%, got "{text}"')
    if not percent:
        return int(number)
    return rounded(of * int(number) / 100)


def check_apart(old: ReplicationController, new: ReplicationController) -> None:
    """Raises UsageError unless each selects its own pods only."""
    if old.metadata.name == new.metadata.name:
        raise UsageError(f'metadata.name: expected another than the old controller\'s, got "{new.metadata.name}"')
    labels, selector = new.spec.template.metadata.labels, new.spec.selector
    if selects(old.spec.selector, labels) or selects(selector, old.spec.template.metadata.labels):
        raise UsageError(
            "spec.selector: expected a label whose value differs from the old controller's "
            f"({_labels(old.spec.selector)}), got {_labels(selector)}"
        )


def template_hash(rc: ReplicationController, key: str) -> str:
    """Of the template without the label `key`."""
    return hashlib.sha256(encode(_with_label(rc, key, None).spec.template)).hexdigest()[:HASH_LENGTH]


def with_image(old: ReplicationController, image: str, container: str, key: str, name: str) -> ReplicationController:
    """The controller of the new image, without a pod yet. `container` "" is the only one there is.

    Raises UsageError.
    """
    containers = old.spec.template.spec.containers
    names = [c.name for c in containers]
    if container and container not in names:
        raise UsageError(f'--container: expected one of {", ".join(names)}, got "{container}"')
    if not container and len(containers) > 1:
        raise UsageError(f"--image: the pods have several containers; say which with --container: {', '.join(names)}")
    wanted = container or names[0]
    if all(c.image == image for c in containers if c.name == wanted):
        raise UsageError(f'--image: expected another than the present one, got "{image}"')
    changed = tuple(replace(c, image=image) if c.name == wanted else c for c in containers)
    template = replace(old.spec.template, spec=replace(old.spec.template.spec, containers=changed))
    new = replace(old, spec=replace(old.spec, template=template))
    digest = template_hash(new, key)
    new = _with_label(new, key, digest)
    selector = {**old.spec.selector, key: digest}
    meta = ObjectMeta(
        name=name or f"{old.metadata.name}-{digest}",
        namespace=old.metadata.namespace,
        labels=old.metadata.labels,
        annotations={} if name else {KEEP_NAME: "true"},
    )
    return ReplicationController(metadata=meta, spec=replace(new.spec, selector=selector))


def begun(new: ReplicationController, old: ReplicationController) -> ReplicationController:
    """The new one as it is created: without pods, with what it is to become."""
    annotations = {
        **new.metadata.annotations,
        SOURCE: old.metadata.name,
        DESIRED: str(new.spec.replicas),
    }
    meta = replace(new.metadata, annotations=annotations)
    return replace(new, metadata=meta, spec=replace(new.spec, replicas=0))


def labelled(rc: ReplicationController, key: str, value: str) -> ReplicationController:
    """With the label on its template only: pods made from now on have it."""
    return _with_label(rc, key, value)


def selecting(rc: ReplicationController, key: str, value: str) -> ReplicationController:
    return replace(rc, spec=replace(rc.spec, selector={**rc.spec.selector, key: value}))


def annotated(rc: ReplicationController, values: dict[str, str]) -> ReplicationController:
    """With these besides what it has."""
    return replace(rc, metadata=replace(rc.metadata, annotations={**rc.metadata.annotations, **values}))


def cleaned(rc: ReplicationController) -> ReplicationController:
    """Without a trace of the update."""
    kept = {key: value for key, value in rc.metadata.annotations.items() if key not in ANNOTATIONS}
    return replace(rc, metadata=replace(rc.metadata, annotations=kept))


def _with_label(rc: ReplicationController, key: str, value: str | None) -> ReplicationController:
    template = rc.spec.template
    labels = {name: of for name, of in template.metadata.labels.items() if name != key}
    if value is not None:
        labels[key] = value
    template = replace(template, metadata=replace(template.metadata, labels=labels))
    return replace(rc, spec=replace(rc.spec, template=template))


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())
