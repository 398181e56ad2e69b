"""Kubernetes' rules for resource quotas and priority classes, new and changed.

Owns: which resources a quota may limit, scopes, the priorities a user may
give. Invariant: as in validation.py. Source: ValidateResourceQuota in
Kubernetes' pkg/apis/core/validation/validation.go, ValidatePriorityClass in
pkg/apis/scheduling/validation.
"""

from __future__ import annotations

from podlane.api import quantity, types
from podlane.api.fields import Errors, join
from podlane.api.priority import HIGHEST_USER_PRIORITY, SYSTEM_CLASSES, SYSTEM_PREFIX

COUNTED = ("pods", "count/pods")
COMPUTE = ("cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory")
_CONFLICTING = (("Terminating", "NotTerminating"), ("BestEffort", "NotBestEffort"))


def check_quota(quota: types.ResourceQuota, path: str, errors: Errors) -> None:
    spec = join(path, "spec")
    for name, text in quota.spec.hard.items():
        place = f"{join(spec, 'hard')}[{name}]"
        if name not in (*COUNTED, *COMPUTE):
            errors.add(place, f"not supported by Podlane (supported: {', '.join((*COUNTED, *COMPUTE))})")
            continue
        try:
            value = quantity.parse(text)
        except ValueError as error:
            errors.add(place, str(error))
            continue
        if value < 0:
            errors.add(place, f"expected a quantity ≥ 0, got {text}")
        elif name in COUNTED and value != value.to_integral_value():
            errors.add(place, f"expected a whole number, got {text}")
        if name in COMPUTE and "BestEffort" in quota.spec.scopes:
            errors.add(place, 'not where scopes has "BestEffort", whose pods request nothing')
    for first, second in _CONFLICTING:
        if first in quota.spec.scopes and second in quota.spec.scopes:
            errors.add(join(spec, "scopes"), f'expected "{first}" or "{second}", got both')
    for index, scope in enumerate(quota.spec.scopes):
        if scope in quota.spec.scopes[:index]:
            errors.add(f"{join(spec, 'scopes')}[{index}]", f'duplicate scope "{scope}"')


def check_quota_update(old: types.ResourceQuota, new: types.ResourceQuota, errors: Errors) -> None:
    if set(old.spec.scopes) != set(new.spec.scopes):
        listed = ", ".join(old.spec.scopes) or "nothing"
        errors.add("spec.scopes", f"immutable: it is {listed}, got {', '.join(new.spec.scopes) or 'nothing'}")


def check_priority_class(priority: types.PriorityClass, path: str, errors: Errors) -> None:
    name, value = priority.metadata.name, priority.value
    if name.startswith(SYSTEM_PREFIX):
        known = SYSTEM_CLASSES.get(name)
        if known is None:
            errors.add(
                join(path, "metadata.name"),
                f'expected a name without "{SYSTEM_PREFIX}", which is the system\'s, got "{name}"',
            )
        elif value != known.value:
            errors.add(join(path, "value"), f"expected {known.value}, as the system has it, got {value}")
    elif value > HIGHEST_USER_PRIORITY:
        errors.add(join(path, "value"), f"expected at most {HIGHEST_USER_PRIORITY}, got {value}")


def check_priority_class_update(old: types.PriorityClass, new: types.PriorityClass, errors: Errors) -> None:
    if old.value != new.value:
        errors.add("value", f"immutable: it is {old.value}, got {new.value}")
    if old.preemption_policy != new.preemption_policy:
        errors.add("preemptionPolicy", f'immutable: it is "{old.preemption_policy}", got "{new.preemption_policy}"')
