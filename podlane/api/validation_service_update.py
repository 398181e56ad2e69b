"""What may not change in a service that exists.

Owns: the rules of addresses, families and what is allocated. Invariant: as in
validation_update.py; `carry_over` (service_update.py) was applied. Source:
validateUpgradeDowngradeClusterIPs and the like in Kubernetes' pkg/apis/core/
validation, and the update of its service storage.
"""

from __future__ import annotations

from podlane.api import services, types
from podlane.api.fields import Errors


def check_service_update(old: types.Service, new: types.Service, errors: Errors) -> None:
    before, after = old.spec, new.spec
    if services.has_cluster_ip(before) and services.has_cluster_ip(after):
        _check_addresses(before, after, errors)
        if not services.has_free_families(after):
            _check_families(before, after, errors)
        _check_reduction(before, after, errors)
    if before.type == after.type == "LoadBalancer" and before.load_balancer_class != after.load_balancer_class:
        errors.add("spec.loadBalancerClass", _immutable(before.load_balancer_class, after.load_balancer_class))
    if services.has_health_check(before) and services.has_health_check(after):
        was, wanted = before.health_check_node_port, after.health_check_node_port
        if was not in {0, wanted}:
            errors.add("spec.healthCheckNodePort", f"immutable: it is {was}, got {wanted or 'nothing'}")


def _check_addresses(before: types.ServiceSpec, after: types.ServiceSpec, errors: Errors) -> None:
    if before.cluster_ip not in {"", after.cluster_ip}:
        errors.add("spec.clusterIP", _immutable(before.cluster_ip, after.cluster_ip))
    for was, wanted in zip(before.cluster_ips[1:], after.cluster_ips[1:], strict=False):
        if was != wanted:
            errors.add("spec.clusterIPs[1]", _immutable(was, wanted))


def _check_families(before: types.ServiceSpec, after: types.ServiceSpec, errors: Errors) -> None:
    for index, (was, wanted) in enumerate(zip(before.ip_families, after.ip_families, strict=False)):
        if was != wanted:
            errors.add(f"spec.ipFamilies[{index}]", _immutable(was, wanted))


def _check_reduction(before: types.ServiceSpec, after: types.ServiceSpec, errors: Errors) -> None:
    """The second of two goes only with the policy that says so."""
    if after.ip_family_policy == "SingleStack":
        return
    for name, was, wanted in (
        ("clusterIPs", before.cluster_ips, after.cluster_ips),
        ("ipFamilies", before.ip_families, after.ip_families),
    ):
        if 0 < len(wanted) < len(was):
            errors.add(
                "spec.ipFamilyPolicy",
                f'expected "SingleStack", for {name} loses {was[-1]}, got "{after.ip_family_policy}"',
            )


def _immutable(was: str, wanted: str) -> str:
    return f'immutable: it is "{was}", got "{wanted}"'
