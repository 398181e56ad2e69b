"""Kubernetes' rules for services.

Owns: types, ports, policies, selectors of services; their addresses are
checked in validation_addresses.py. Invariant: as in validation.py. Whether an
address or a node port lies in its range and is free is the registry's to
decide, in the transaction that stores the service. Source: ValidateService in
pkg/apis/core/validation of Kubernetes.
"""

from __future__ import annotations

from podlane.api import names, services, types
from podlane.api.fields import Errors, join
from podlane.api.services import HEADLESS
from podlane.api.validation_addresses import check_addresses, check_ingress, check_source_ranges

KUBELET_PORT = 10250
TOPOLOGY_ANNOTATIONS = ("service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints")
BALANCES = ("random", "affinity-hash", "maglev")


def check_service(service: types.Service, path: str, errors: Errors) -> None:
    spec, at = service.spec, join(path, "spec")
    _check_annotations(service, path, errors)
    if not spec.ports and not services.is_headless(spec) and spec.type != "ExternalName":
        errors.add(join(at, "ports"), "required: at least one port, unless clusterIP is None")
    _check_ports(spec.ports, join(at, "ports"), errors)
    check_reach(spec, at, errors)
    for key, value in spec.selector.items():
        errors.check(f"{join(at, 'selector')}[{key}]", names.label_key_error(key) or names.label_value_error(value))
    check_addresses(spec, at, errors)
    _check_affinity(spec, at, errors)
    check_ingress(service.status.load_balancer, join(path, "status.loadBalancer.ingress"), errors)


def check_reach(spec: types.ServiceSpec, path: str, errors: Errors) -> None:
    """What has to hold before a service is given addresses and node ports, whoever writes it."""
    _check_type(spec, path, errors)
    _check_node_ports(spec, path, errors)
    _check_external(spec, path, errors)


def _check_annotations(service: types.Service, path: str, errors: Errors) -> None:
    annotations = service.metadata.annotations
    balance = annotations.get(types.BALANCE_ANNOTATION)
    if balance is not None and balance not in BALANCES:
        expected = " or ".join(f'"{word}"' for word in BALANCES)
        errors.add(
            join(path, f"metadata.annotations[{types.BALANCE_ANNOTATION}]"), f'expected {expected}, got "{balance}"'
        )
    distribution = service.spec.traffic_distribution
    for key in TOPOLOGY_ANNOTATIONS:
        if distribution and annotations.get(key, "").lower() == "auto":
            errors.add(join(path, "spec.trafficDistribution"), f"not together with the annotation {key}")


def _check_type(spec: types.ServiceSpec, path: str, errors: Errors) -> None:
    if spec.type == "ExternalName":
        # the dot at the end of a name that is complete is allowed
        name = spec.external_name.removesuffix(".")
        errors.check(
            join(path, "externalName"),
            names.dns_subdomain_error(name) if name else 'required: a DNS name, where type is "ExternalName"',
        )
    elif services.is_headless(spec) and services.may_have_node_ports(spec):
        errors.add(join(path, "clusterIP"), f'expected an address, for type is "{spec.type}", got "{HEADLESS}"')
    if spec.type != "LoadBalancer":
        for name, said in (
            ("loadBalancerSourceRanges", bool(spec.load_balancer_source_ranges)),
            ("loadBalancerClass", bool(spec.load_balancer_class)),
            ("allocateLoadBalancerNodePorts", not spec.allocate_load_balancer_node_ports),
        ):
            if said:
                errors.add(join(path, name), f'only where type is "LoadBalancer", it is "{spec.type}"')
        return
    for index, port in enumerate(spec.ports):
        if port.port == KUBELET_PORT:
            errors.add(f"{join(path, 'ports')}[{index}].port", f"the nodes' own port {KUBELET_PORT} is not for outside")
    if spec.load_balancer_class:
        errors.check(join(path, "loadBalancerClass"), names.label_key_error(spec.load_balancer_class))


def _check_ports(ports: tuple[types.ServicePort, ...], path: str, errors: Errors) -> None:
    by_name: dict[str, int] = {}
    by_port: dict[tuple[int, str], int] = {}
    for index, port in enumerate(ports):
        place = f"{path}[{index}]"
        errors.check(f"{place}.port", names.port_number_error(port.port))
        if port.name:
            errors.check(f"{place}.name", names.dns_label_error(port.name))
            if port.name in by_name:
                errors.add(f"{place}.name", f'duplicate name "{port.name}", also of ports[{by_name[port.name]}]')
            by_name.setdefault(port.name, index)
        elif len(ports) > 1:
            errors.add(f"{place}.name", "required where a service has several ports")
        target = port.target_port
        if target != port.port:  # a wrong port it was defaulted from has been reported
            errors.check(
                f"{place}.targetPort",
                names.port_number_error(target) if isinstance(target, int) else names.port_name_error(target),
            )
        if port.app_protocol:
            errors.check(f"{place}.appProtocol", names.label_key_error(port.app_protocol))
        key = (port.port, port.protocol)
        if key in by_port:
            errors.add(f"{place}.port", f"duplicate port {port.port}/{port.protocol}, also ports[{by_port[key]}]")
        by_port.setdefault(key, index)


def _check_node_ports(spec: types.ServiceSpec, path: str, errors: Errors) -> None:
    by_port: dict[tuple[int, str], int] = {}
    for index, port in enumerate(spec.ports):
        if not port.node_port:
            continue
        place = f"{join(path, 'ports')}[{index}].nodePort"
        errors.check(place, names.port_number_error(port.node_port))
        if not services.may_have_node_ports(spec):
            errors.add(place, f'only where type is "NodePort" or "LoadBalancer", it is "{spec.type}"')
        key = (port.node_port, port.protocol)
        if key in by_port:
            errors.add(place, f"duplicate node port {port.node_port}/{port.protocol}, also ports[{by_port[key]}]")
        by_port.setdefault(key, index)


def _check_affinity(spec: types.ServiceSpec, path: str, errors: Errors) -> None:
    place, config = join(path, "sessionAffinityConfig"), spec.session_affinity_config
    if spec.session_affinity == "None":
        if config is not None:
            errors.add(place, 'only where sessionAffinity is "ClientIP", it is "None"')
    elif config is None or config.client_ip is None:
        errors.add(f"{place}.clientIP", 'required where sessionAffinity is "ClientIP"')
    else:
        errors.integer(
            types.ClientIPConfig,
            "timeout_seconds",
            config.client_ip.timeout_seconds,
            f"{place}.clientIP.timeoutSeconds",
        )


def _check_external(spec: types.ServiceSpec, path: str, errors: Errors) -> None:
    policy = spec.external_traffic_policy
    if policy and not services.is_external(spec):
        errors.add(
            join(path, "externalTrafficPolicy"),
            'only where traffic comes from outside: type "NodePort" or "LoadBalancer", or with externalIPs',
        )
    elif not policy and services.is_external(spec):
        errors.add(join(path, "externalTrafficPolicy"), 'required: "Cluster" or "Local"')
    health = spec.health_check_node_port
    if health:
        place = join(path, "healthCheckNodePort")
        errors.check(place, names.port_number_error(health))
        if not services.has_health_check(spec):
            errors.add(place, 'only where type is "LoadBalancer" and externalTrafficPolicy is "Local"')
        taken = [index for index, port in enumerate(spec.ports) if port.node_port == health]
        if taken:
            errors.add(place, f"duplicate node port {health}, also of ports[{taken[0]}]")
    check_source_ranges(spec.load_balancer_source_ranges, join(path, "loadBalancerSourceRanges"), errors)
