"""Whose clients should use which endpoint: the hints of a service's trafficDistribution. Pure.

Owns: the hints of our slices. Invariant: either every ready endpoint of a
service and address family has its hints or none has, for a proxy that found
only some would send everything to those. Source: Kubernetes'
endpointslice/trafficdist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from msgspec.structs import replace

from podlane.api.types import Endpoint, EndpointHints, ForNode, ForZone

K = TypeVar("K")

_SAME_ZONE = {"PreferClose", "PreferSameZone"}  # the first is the older name of the second


def hinted(distribution: str, endpoints: Mapping[K, Endpoint]) -> dict[K, Endpoint]:
    """The endpoints of one service and family with their hints.

    For the zone: none if any ready endpoint lacks one. For the node: the zone
    is the second choice, where all have one.
    """
    ready = [e for e in endpoints.values() if e.conditions.ready]
    zoned = all(e.zone for e in ready)
    if distribution in _SAME_ZONE and zoned:
        return {key: _with(e, zone=True, node=False) for key, e in endpoints.items()}
    if distribution == "PreferSameNode" and all(e.node_name for e in ready):
        return {key: _with(e, zone=zoned, node=True) for key, e in endpoints.items()}
    return dict(endpoints)


def _with(endpoint: Endpoint, *, zone: bool, node: bool) -> Endpoint:
    if not endpoint.conditions.ready:
        return endpoint
    hints = EndpointHints(
        for_zones=(ForZone(name=endpoint.zone),) if zone else (),
        for_nodes=(ForNode(name=endpoint.node_name),) if node else (),
    )
    return replace(endpoint, hints=hints)
