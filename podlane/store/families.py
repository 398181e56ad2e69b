"""Which address families a service gets in a cluster with these service ranges.

Owns: policy, families and the error that names the field when the cluster
cannot do what is asked. Pure. Invariant: a service that prefers two families
keeps what it has when the cluster's ranges change; only its own change makes it
more or less. Source: initIPFamilyFields of Kubernetes' service storage.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from podlane.api import services
from podlane.api.fields import Errors
from podlane.api.ranges import Network
from podlane.api.types import IPFamily, ServiceSpec
from podlane.api.validation_addresses import check_addresses
from podlane.errors import FieldError

_BOTH: tuple[IPFamily, IPFamily] = ("IPv4", "IPv6")


def family_of(network: Network) -> IPFamily:
    return "IPv4" if network.version == 4 else "IPv6"


def with_families(
    spec: ServiceSpec, before: ServiceSpec | None, networks: Sequence[Network]
) -> tuple[ServiceSpec, list[FieldError]]:
    """The spec with its families, and what is wrong with it: if anything, the spec is as it was.

    `before` is what an update replaces; `carry_over` was applied.
    """
    errors = Errors()
    check_addresses(spec, "spec", errors)
    if errors.found or not services.has_cluster_ip(spec) or _still_prefers(before, spec):
        return spec, errors.found
    free = services.has_free_families(spec)
    policy = spec.ip_family_policy or ("RequireDualStack" if free else "SingleStack")
    configured = [family_of(network) for network in networks]
    listed = ", ".join(map(str, networks))
    families = list(spec.ip_families)
    for index, address in list(enumerate(services.cluster_ips(spec)))[len(families) :]:
        family = services.family_of(address)
        if family in configured:
            families.append(family)
        else:
            field = f"spec.clusterIPs[{index}]" if index else "spec.clusterIP"
            errors.add(field, f"{address}: the cluster has no {family} services, its range is {listed}")
    if not free:
        if policy == "RequireDualStack" and len(configured) < len(_BOTH):
            errors.add("spec.ipFamilyPolicy", f"RequireDualStack: the cluster has one service range, {listed}")
        for index, family in enumerate(spec.ip_families):
            if family not in configured:
                errors.add(f"spec.ipFamilies[{index}]", f"the cluster has no {family} services, its range is {listed}")
    if errors.found:
        return spec, errors.found
    families = families or [configured[0]]
    if policy != "SingleStack" and len(families) == 1 and (free or len(configured) == len(_BOTH)):
        families += [family for family in _BOTH if family not in families]
    return msgspec.structs.replace(spec, ip_family_policy=policy, ip_families=tuple(families)), []


def _still_prefers(before: ServiceSpec | None, spec: ServiceSpec) -> bool:
    return (
        before is not None
        and before.ip_family_policy == spec.ip_family_policy == "PreferDualStack"
        and before.type != "ExternalName"
        and (before.cluster_ips, before.ip_families) == (spec.cluster_ips, spec.ip_families)
    )
