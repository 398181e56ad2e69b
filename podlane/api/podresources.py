"""What a pod asks of a node, in all.

Owns: the sums over its containers, and the quality-of-service class that
follows. Pure. Invariant: init containers run one after another, so only the
largest counts, beside the sidecars started before it; sidecars run on beside
the containers. Source: Kubernetes' component-helpers/resource (PodRequests,
PodLimits) and pkg/apis/core/v1/helper/qos (ComputePodQOS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Literal

from podlane.api import quantity
from podlane.api.types import Container, PodSpec

QOSClass = Literal["Guaranteed", "Burstable", "BestEffort"]
Amounts = dict[str, Decimal]
"""In base units (CPUs, bytes) by resource."""

_ASSURED = ("cpu", "memory")


def requests_of(spec: PodSpec) -> Amounts:
    """What must be free for the pod to run at any moment of its life. A limit without a request is a request."""
    return _total(spec, lambda container: {**container.resources.limits, **container.resources.requests})


def limits_of(spec: PodSpec) -> Amounts:
    return _total(spec, lambda container: container.resources.limits)


def qos_class(spec: PodSpec) -> QOSClass:
    """Guaranteed: all containers limit cpu and memory and request just that; BestEffort: none says anything."""
    containers = (*spec.init_containers, *spec.containers)
    said = [(_set(c.resources.requests), _set(c.resources.limits)) for c in containers]
    if not any(requests or limits for requests, limits in said):
        return "BestEffort"
    limited = all(limits.keys() == set(_ASSURED) for _, limits in said)
    return (
        "Guaranteed" if limited and all({**limits, **requests} == limits for requests, limits in said) else "Burstable"
    )


def is_sidecar(container: Container) -> bool:
    """Whether an init container goes on running beside the others."""
    return container.restart_policy == "Always"


def _total(spec: PodSpec, of: Callable[[Container], Mapping[str, str]]) -> Amounts:
    peak: Amounts = {}
    running: Amounts = {}
    for container in spec.init_containers:
        if is_sidecar(container):
            running = _sum(running, _amounts(of(container)))
            peak = _largest(peak, running)
        else:
            peak = _largest(peak, _sum(running, _amounts(of(container))))
    for container in spec.containers:
        running = _sum(running, _amounts(of(container)))
    return _largest(peak, running)


def _amounts(quantities: Mapping[str, str]) -> Amounts:
    return {name: quantity.parse(text) for name, text in quantities.items()}


def _set(quantities: Mapping[str, str]) -> Amounts:
    return {name: value for name, value in _amounts(quantities).items() if name in _ASSURED and value}


def _sum(one: Amounts, other: Amounts) -> Amounts:
    return {name: one.get(name, Decimal(0)) + other.get(name, Decimal(0)) for name in {**one, **other}}


def _largest(one: Amounts, other: Amounts) -> Amounts:
    return {name: max(one.get(name, Decimal(0)), other.get(name, Decimal(0))) for name in {**one, **other}}
