"""Kubernetes' rules for the addresses of services.

Owns: cluster IPs and their families, external IPs, a load balancer's address,
source ranges and ingress. Invariant: as in validation.py. Source:
ValidateServiceClusterIPsRelatedFields, ValidateNonSpecialIP and
ValidateLoadBalancerStatus in pkg/apis/core/validation of Kubernetes.
"""

from __future__ import annotations

from ipaddress import ip_network

from podlane.api import names, services, types
from podlane.api.fields import Errors, join
from podlane.api.services import HEADLESS, Address

_BOTH = 2


def check_addresses(spec: types.ServiceSpec, path: str, errors: Errors) -> None:
    """`clusterIP`, `clusterIPs`, `ipFamilies`, `ipFamilyPolicy`, `externalIPs`, `loadBalancerIP`."""
    if spec.type == "ExternalName":
        for name, said in (
            ("clusterIP", bool(spec.cluster_ip)),
            ("clusterIPs", bool(spec.cluster_ips)),
            ("ipFamilies", bool(spec.ip_families)),
            ("ipFamilyPolicy", bool(spec.ip_family_policy)),
        ):
            if said:
                errors.add(join(path, name), 'not where type is "ExternalName"')
    else:
        _check_cluster_ips(spec, path, errors)
        _check_families(spec, path, errors)
    for index, text in enumerate(spec.external_ips):
        errors.check(f"{join(path, 'externalIPs')}[{index}]", special_address_error(text))
    if spec.load_balancer_ip and services.address_of(spec.load_balancer_ip) is None:
        errors.add(join(path, "loadBalancerIP"), f'expected an IP address, got "{spec.load_balancer_ip}"')


def _check_cluster_ips(spec: types.ServiceSpec, path: str, errors: Errors) -> None:
    place = join(path, "clusterIPs")
    if spec.cluster_ip not in {"", HEADLESS} and services.address_of(spec.cluster_ip) is None:
        errors.add(join(path, "clusterIP"), f'expected an IP address, "{HEADLESS}" or nothing, got "{spec.cluster_ip}"')
    if not spec.cluster_ips:
        return
    if spec.cluster_ips[0] != spec.cluster_ip:
        errors.add(f"{place}[0]", f'expected the same as clusterIP, "{spec.cluster_ip}", got "{spec.cluster_ips[0]}"')
    for index, text in enumerate(spec.cluster_ips[1:], start=1):
        if text == HEADLESS or services.address_of(text) is None:
            errors.add(f"{place}[{index}]", f'expected an IP address, got "{text}"')
    if HEADLESS in spec.cluster_ips and len(spec.cluster_ips) > 1:
        errors.add(place, f'expected nothing beside "{HEADLESS}", got {len(spec.cluster_ips)} entries')
    families = [family for family in map(services.family_of, spec.cluster_ips) if family]
    if len(spec.cluster_ips) > _BOTH or len(set(families)) < len(families):
        listed = ", ".join(spec.cluster_ips)
        errors.add(place, f"expected at most one address of each family, got {listed}")
    for index, (text, family) in enumerate(zip(spec.cluster_ips, spec.ip_families, strict=False)):
        if services.family_of(text) not in {None, family}:
            errors.add(f"{place}[{index}]", f"expected an {family} address, as ipFamilies[{index}] says, got {text}")


def _check_families(spec: types.ServiceSpec, path: str, errors: Errors) -> None:
    families = spec.ip_families
    if len(set(families)) < len(families):
        errors.add(join(path, "ipFamilies"), f"expected each family once, got {', '.join(families)}")
    # without a policy a service has one family, unless it leaves them to its endpoints
    single = spec.ip_family_policy == "SingleStack" or not (spec.ip_family_policy or services.has_free_families(spec))
    for name, count in (("clusterIPs", len(spec.cluster_ips)), ("ipFamilies", len(families))):
        if single and count >= _BOTH:
            errors.add(
                join(path, "ipFamilyPolicy"),
                f'expected "PreferDualStack" or "RequireDualStack", for {name} has {count} entries, '
                f'got "{spec.ip_family_policy or "SingleStack"}"',
            )


def check_source_ranges(ranges: tuple[str, ...], path: str, errors: Errors) -> None:
    for index, text in enumerate(ranges):
        try:
            # as in Kubernetes, blanks around it and host bits are forgiven
            address, slash, _ = text.strip().partition("/")
            if not slash or services.address_of(address) is None:
                raise ValueError
            ip_network(text.strip(), strict=False)
        except ValueError:
            errors.add(f"{path}[{index}]", f'expected a range such as "10.0.0.0/8", got "{text}"')


def check_ingress(status: types.LoadBalancerStatus, path: str, errors: Errors) -> None:
    for index, ingress in enumerate(status.ingress):
        place = f"{path}[{index}]"
        if ingress.ip and services.address_of(ingress.ip) is None:
            errors.add(f"{place}.ip", f'expected an IP address, got "{ingress.ip}"')
        if ingress.ip_mode and not ingress.ip:
            errors.add(f"{place}.ipMode", "only together with an ip")
        if ingress.hostname:
            if services.address_of(ingress.hostname) is not None:
                errors.add(f"{place}.hostname", f'expected a DNS name, got the address "{ingress.hostname}"')
            else:
                errors.check(f"{place}.hostname", names.dns_subdomain_error(ingress.hostname))


def special_address_error(text: str, family: types.IPFamily | None = None) -> str | None:
    """Addresses that mean something else on every host (loopback, link-local) serve nobody elsewhere."""
    address: Address | None = services.address_of(text)
    if address is None or family not in {None, services.family_of(text)}:
        return f'expected an {family or "IP"} address, got "{text}"'
    for kind in ("unspecified", "loopback", "link_local", "multicast"):
        if getattr(address, f"is_{kind}"):
            return f"expected an address that can be reached from elsewhere, got {text} ({kind.replace('_', '-')})"
    return None
