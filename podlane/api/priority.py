"""Priority: what a pod's class says, worked out once, when the pod is created.

Owns: the classes that are always there, and the choice of the class that
counts. Pure. Source: Kubernetes' plugin/pkg/admission/priority and
pkg/apis/scheduling/types.go.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from podlane.api.types import ObjectMeta, PodSpec, PriorityClass
from podlane.errors import FieldError

HIGHEST_USER_PRIORITY = 1_000_000_000
SYSTEM_PREFIX = "system-"
SYSTEM_CLASSES: dict[str, PriorityClass] = {
    name: PriorityClass(metadata=ObjectMeta(name=name), value=value, description=description)
    for name, value, description in (
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, "
            "but can be moved to another node if necessary.",
        ),
    )
}


def prioritized(spec: PodSpec, stored: Iterable[PriorityClass]) -> PodSpec | FieldError:
    """The spec with priority and preemption policy of its class, or of the default class; 0 if there is none.

    Of several default classes the lowest counts, as in Kubernetes. An error if
    the class does not exist, or the spec says something else than the class.
    """
    chosen = PriorityClass()
    if spec.priority_class_name:
        classes = {**SYSTEM_CLASSES, **{c.metadata.name: c for c in stored}}
        found = classes.get(spec.priority_class_name)
        if found is None:
            return FieldError("spec.priorityClassName", f'no priority class is named "{spec.priority_class_name}"')
        chosen = found
    else:
        default = min((c for c in stored if c.global_default), key=lambda c: c.value, default=None)
        chosen = default or chosen
    if spec.priority not in {None, chosen.value}:
        return FieldError("spec.priority", f"expected {chosen.value}, as its priority class says, got {spec.priority}")
    if spec.preemption_policy not in {None, chosen.preemption_policy}:
        return FieldError(
            "spec.preemptionPolicy",
            f'expected "{chosen.preemption_policy}", as its priority class says, got "{spec.preemption_policy}"',
        )
    return msgspec.structs.replace(
        spec,
        priority=chosen.value,
        preemption_policy=chosen.preemption_policy,
        priority_class_name=chosen.metadata.name or spec.priority_class_name,
    )
