"""Whose turn it is to start: init containers one after the other, then the others. Pure.

Owns: that order. Invariants: no container begins before every regular init
container before it has succeeded, and every sidecar before it has started, in
this very network namespace (in a new one they all run again); what has begun
once is not taken back. Source: computeInitContainerActions
(pkg/kubelet/kuberuntime/kuberuntime_container.go).
"""

from __future__ import annotations

from collections.abc import Callable

from podlane.api.types import Container, Pod
from scheduler.agent.history import Latest, is_sidecar
from scheduler.agent.runtime import Record


def whose_turn(
    pod: Pod, latest: Latest, infra_id: str, is_started: Callable[[Container, Record], bool]
) -> tuple[Container, ...]:
    """The containers that may run now, in order; those of them that do run, or are done, need nothing."""
    here = {name: r for name, r in latest.items() if r is not None and infra_id and r.joined == infra_id}
    init, main = pod.spec.init_containers, pod.spec.containers
    if any(ct.name in here for ct in main):
        return (*filter(is_sidecar, init), *main)
    begun = max((number for number, ct in enumerate(init) if ct.name in here), default=-1)
    allowed: list[Container] = []
    for number, ct in enumerate(init):
        last = here.get(ct.name)
        if is_sidecar(ct):
            allowed.append(ct)
            if number >= begun and not (last is not None and last.running and is_started(ct, last)):
                return tuple(allowed)
        elif number >= begun and not (last is not None and last.state == "exited" and last.exit_code == 0):
            return (*allowed, ct)
    return (*allowed, *main)
