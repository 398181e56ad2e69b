"""Services and endpoint slices without what proxyd never reads.

Owns: which fields that is. Pure. A node holds every service and slice of the
cluster; of 10,000 with five endpoints each, two thirds of the memory are labels,
owners and the pods behind endpoints, and equal parts in copies of their own.
Invariant: what serving.py, proxymetrics.py and events read is there.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Hashable, Mapping
from functools import lru_cache
from typing import TypeVar

from msgspec.structs import replace

from podlane.api.types import (
    BALANCE_ANNOTATION,
    HEADLESS_LABEL,
    SERVICE_NAME_LABEL,
    SERVICE_PROXY_NAME_LABEL,
    Endpoint,
    EndpointSlice,
    ObjectMeta,
    Service,
)
from proxyd.proxymetrics import TRIGGER_TIME

T = TypeVar("T", bound=Hashable)


def lean_service(service: Service) -> Service:
    meta, spec = service.metadata, service.spec
    kept = ObjectMeta(
        name=meta.name,
        namespace=sys.intern(meta.namespace),
        uid=meta.uid,  # an event is about one service, not about any of that name
        labels=_only(meta.labels, (SERVICE_PROXY_NAME_LABEL, HEADLESS_LABEL)),
        annotations=_only(meta.annotations, (BALANCE_ANNOTATION,)),
    )
    lean = replace(spec, selector={}, ports=_shared(spec.ports), ip_families=_shared(spec.ip_families))
    return replace(service, metadata=kept, spec=lean)


def lean_slice(each: EndpointSlice) -> EndpointSlice:
    meta = each.metadata
    kept = ObjectMeta(
        name=meta.name,
        namespace=sys.intern(meta.namespace),
        labels=_only(meta.labels, (SERVICE_NAME_LABEL,)),
        annotations=_only(meta.annotations, (TRIGGER_TIME,)),
    )
    endpoints = tuple(map(_lean_endpoint, each.endpoints))
    return replace(each, metadata=kept, endpoints=endpoints, ports=_shared(each.ports))


def _lean_endpoint(endpoint: Endpoint) -> Endpoint:
    return Endpoint(
        addresses=endpoint.addresses,
        conditions=_shared(endpoint.conditions),
        node_name=sys.intern(endpoint.node_name),
        hints=endpoint.hints,
    )


def _only(pairs: Mapping[str, str], keys: Collection[str]) -> dict[str, str]:
    return {key: pairs[key] for key in keys if key in pairs}


@lru_cache(maxsize=4096)
def _remembered(value: Hashable) -> Hashable:
    return value


def _shared(value: T) -> T:
    """An equal value, mostly the same one for all."""
    return _remembered(value)  # type: ignore[return-value]
