"""What an update of a service leaves unsaid, and therefore keeps or drops.

Owns: how the old service completes the new one. Invariants: what the user
changed is never touched; what was allocated stays as long as the new type
still has such a thing, else it goes, if the user did not change it too. Pure,
and applying it twice changes nothing. Source: patchAllocatedValues and
dropTypeDependentFields of Kubernetes' service strategy, normalizeClusterIPs and
initIPFamilyFields of its storage.
"""

from __future__ import annotations

from typing import Any

import msgspec

from podlane.api import services
from podlane.api.types import Service, ServicePort, ServiceSpec, ServiceStatus


def carry_over(old: Service, new: Service) -> Service:
    """`new` with what it gets from the service it replaces."""
    spec = _with_old_addresses(old.spec, new.spec)
    spec = _with_old_ports(old.spec, spec)
    spec = _without_what_no_longer_applies(old.spec, spec)
    status = new.status if spec.type == "LoadBalancer" else ServiceStatus()
    return msgspec.structs.replace(new, spec=spec, status=status)


def _with_old_addresses(old: ServiceSpec, new: ServiceSpec) -> ServiceSpec:
    if not (services.has_cluster_ip(old) and services.has_cluster_ip(new)):
        return new
    address, addresses = new.cluster_ip, new.cluster_ips
    if not address and addresses in {(), old.cluster_ips}:
        address, addresses = old.cluster_ip, old.cluster_ips
    elif addresses in {(), old.cluster_ips}:
        # an old client knows the first address only: it means the others too, or to change the first
        addresses = old.cluster_ips if address == old.cluster_ip else (address,)
    policy = new.ip_family_policy or old.ip_family_policy
    families = new.ip_families or old.ip_families
    if policy == "SingleStack":
        # that nothing else was changed makes the intent clear: the second family goes
        if addresses == old.cluster_ips:
            addresses = addresses[:1]
        if families == old.ip_families:
            families = families[:1]
    return msgspec.structs.replace(
        new, cluster_ip=address, cluster_ips=addresses, ip_family_policy=policy, ip_families=families
    )


def _with_old_ports(old: ServiceSpec, new: ServiceSpec) -> ServiceSpec:
    """Node ports that were allocated, by the ports' names; a port without one has the name ""."""
    changes: dict[str, Any] = {}
    if services.may_have_node_ports(old) and services.wants_node_ports(new):
        # two protocols may share a number, and are to keep it (Kubernetes gives the second another one)
        used = {(port.node_port, port.protocol) for port in new.ports}
        by_name = {port.name: port.node_port for port in old.ports}
        ports: list[ServicePort] = []
        for port in new.ports:
            known = by_name.get(port.name, 0)
            if not port.node_port and known and (known, port.protocol) not in used:
                used.add((known, port.protocol))
                ports.append(msgspec.structs.replace(port, node_port=known))
            else:
                ports.append(port)
        changes["ports"] = tuple(ports)
    if services.has_health_check(old) and services.has_health_check(new) and not new.health_check_node_port:
        changes["health_check_node_port"] = old.health_check_node_port
    return msgspec.structs.replace(new, **changes) if changes else new


def _without_what_no_longer_applies(old: ServiceSpec, new: ServiceSpec) -> ServiceSpec:
    changes: dict[str, Any] = {}

    def drop(field: str, empty: object) -> None:
        if getattr(old, field) == getattr(new, field):
            changes[field] = empty

    if services.has_cluster_ip(old) and not services.has_cluster_ip(new):
        if (new.cluster_ip, new.cluster_ips) == (old.cluster_ip, old.cluster_ips):
            changes.update(cluster_ip="", cluster_ips=())
        drop("ip_families", ())
        drop("ip_family_policy", "")
    if services.may_have_node_ports(old) and not services.may_have_node_ports(new):
        before = {port.node_port for port in old.ports}
        if all(port.node_port in before for port in new.ports if port.node_port):
            changes["ports"] = tuple(msgspec.structs.replace(port, node_port=0) for port in new.ports)
    if services.has_health_check(old) and not services.has_health_check(new):
        drop("health_check_node_port", 0)
    if old.type == "LoadBalancer" and new.type != "LoadBalancer":
        drop("allocate_load_balancer_node_ports", True)
        drop("load_balancer_class", "")
    if services.is_external(old) and not services.is_external(new):
        drop("external_traffic_policy", "")
    if new.session_affinity == "None" and new.session_affinity_config is not None:
        drop("session_affinity_config", None)
    return msgspec.structs.replace(new, **changes) if changes else new
