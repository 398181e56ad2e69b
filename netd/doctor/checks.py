"""What can be told wrong without sending anything: leases, sysctls, MTU, routes, firewall. Pure.

Owns: these checks, each from the context and the host's facts to findings; a
check that finds nothing wrong says so in one ok. Where the kernel differs from
what netd wants is drift.py's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import replace

from netd.desired import Lease, carriers, lease_value
from netd.doctor.facts import DoctorContext, HostFacts, HostRoute
from netd.doctor.finding import Finding, error, ok, some, warning
from netd.doctor.offload import CHECKSUM, TUNNEL_CHECKSUM
from netd.model import ROUTE_PROTOCOLS
from podlane.api.network import VXLAN6_OVERHEAD, VXLAN_OVERHEAD
from podlane.api.subnets import Address, Network

_MIN_IPV6_MTU = 1280  # RFC 8200, section 5

_OURS = frozenset(map(str, ROUTE_PROTOCOLS))


def peer_name(lease: Lease) -> str:
    """What a peer is called: its public address, as operators know it."""
    return str(lease.value.addresses[0]) if lease.value.addresses else lease.key


def names(leases: Collection[Lease]) -> dict[Address | Network | str, str]:
    """Each peer's name by its subnets, VTEP addresses, VTEP MAC addresses and public addresses."""
    found: dict[Address | Network | str, str] = {}
    for lease in leases:
        name = peer_name(lease)
        for subnet in lease.subnets:
            found[subnet] = found[subnet.network_address] = name
        for mac in vtep_macs(lease).values():
            found[mac] = name
        for address in lease.value.addresses:
            found[address] = name
    return found


def vtep_macs(lease: Lease) -> dict[int, str]:
    """By family; without those the lease does not have or that are malformed."""
    found: dict[int, str] = {}
    for subnet in lease.subnets:
        try:
            found[subnet.version] = lease.value.vtep_mac(4 if subnet.version == 4 else 6)
        except ValueError:
            continue
    return found


def own_lease(context: DoctorContext) -> list[Finding]:
    """Whether peers are told the truth about this host."""
    service = "systemctl status netd"
    if context.own is None:
        evidence = f"none of {len(context.leases)} leases is this host's ({context.underlay.public_ip})"
        return [error("lease", "this host has no lease", evidence=evidence, fix=f"{service}; netd leases")]
    lease = context.own_lease
    if lease is None:
        what, evidence = "this host's lease is not in etcd", f"no key subnets/{context.own.key}"
        fix = f"a running netd registers it again within 5 s: {service}"
        return [error("lease", what, evidence=evidence, fix=fix)]
    found: list[Finding] = []
    if not context.config.allows(context.own):
        what, evidence = "this host's subnet is not one the network config allows", f"{context.own}"
        fix = "put the network config right, or restart netd so that it takes another subnet"
        found.append(error("lease", what, evidence=evidence, fix=fix))
    macs = {d.name: d.mac for d in (*context.desired.devices.values(), *context.actual.devices.values())}
    should = lease_value(context.config, context.underlay, macs)
    if lease.value.addresses != should.addresses:
        said, real = some(lease.value.addresses) or "none", some(should.addresses)
        what, evidence = "the lease has another public address than this host", f"lease: {said}; host: {real}"
        fix = f"a running netd corrects it: {service}; if {real} is not what peers reach: set --iface or --public-ip"
        found.append(error("lease", what, evidence=evidence, fix=fix))
    if lease.value.backend_type != should.backend_type:
        what = f"the lease is for {lease.value.backend_type}, the network config for {should.backend_type}"
        found.append(error("lease", what, evidence=lease.value.encode().decode(), fix="systemctl restart netd"))
    elif (have := vtep_macs(lease)) != (want := vtep_macs(Lease(lease.key, lease.subnets, should))):
        what, evidence = "the lease has another VtepMAC than this host's device", f"lease: {have}; device: {want}"
        found.append(error("lease", what, evidence=evidence, fix=f"a running netd corrects it: {service}"))
    return found or [ok("lease", f"{context.own} is this host's, and the lease says so")]


def lease_table(context: DoctorContext) -> list[Finding]:
    """Leases that cannot be read or used, that two hosts share, or that overlap."""
    found = [_unreadable(key, reason) for key, reason in sorted(context.undecodable.items())]
    named: set[str] = set()
    for finding, leases in (*_same_address(context), *_same_mac(context), *_overlapping(context)):
        found.append(finding)
        named |= {lease.key for lease in leases}
    for lease in context.peers:
        reason = context.desired.problems.get(lease.key, "")
        if reason and lease.key not in named:
            found.append(_unusable(lease, reason))
    wrong = {each.check for each in found}
    sound = [
        ok("leases", f"{len(context.leases)} leases, all usable"),
        ok("public-address", "every lease has its own"),
        ok("vtep-mac", "every lease has its own"),
    ]
    return found + [each for each in sound if each.check not in wrong]


def _unreadable(key: str, reason: str) -> Finding:
    what, evidence = f"the lease {key} cannot be read, so its host is not in the overlay", reason
    fix = f"restart netd or flanneld on that host, which writes it anew; if there is none: etcdctl del {key}"
    return error("leases", what, evidence=evidence, fix=fix)


def _unusable(lease: Lease, reason: str) -> Finding:
    peer = peer_name(lease)
    what, fix = f"the lease {lease.key} is not used", f"netd release {lease.key} if its host is gone; else restart it"
    if "is not in the network" in reason or "the network has no" in reason:
        return warning("leases", f"{what}: it is of another network", evidence=reason, fix=fix, peer=peer)
    return error("leases", what, evidence=reason, fix=fix, peer=peer)


def _same_address(context: DoctorContext) -> Iterator[tuple[Finding, list[Lease]]]:
    holders: defaultdict[Address, list[Lease]] = defaultdict(list)
    for lease in context.leases:
        for address in lease.value.addresses:
            holders[address].append(lease)
    for address, leases in holders.items():
        if len(leases) < 2:
            continue
        keys = [lease.key for lease in leases]
        evidence = f"leases {some(keys, 5)} name it"
        if len({tuple(vtep_macs(lease).values()) for lease in leases}) == 1:
            old = min(leases, key=lambda lease: lease.age)
            what, fix = f"one host, {address}, has {len(leases)} leases", f"netd release {old.key} if it is not in use"
            yield warning("public-address", what, evidence=evidence, fix=fix, peer=str(address)), leases
            continue
        what = f"{len(leases)} hosts have the public address {address}; only one can be reached"
        fix = "on each of them: ip -br address; then start netd with --iface NAME (or --public-ip) of what peers reach"
        yield error("public-address", what, evidence=evidence, fix=fix, peer=str(address)), leases


def _same_mac(context: DoctorContext) -> Iterator[tuple[Finding, list[Lease]]]:
    holders: defaultdict[tuple[int, str], list[Lease]] = defaultdict(list)
    for lease in context.leases:
        for family, mac in vtep_macs(lease).items():
            holders[family, mac].append(lease)
    for (_, mac), leases in holders.items():
        if len({peer_name(lease) for lease in leases}) < 2:
            continue
        hosts = some([peer_name(lease) for lease in leases], 5)
        what = f"{len(leases)} hosts have the VtepMAC {mac}; packets reach only one of them"
        evidence = f"the leases of {hosts}: clones of one machine"
        fix = "on all but one: systemctl stop netd; rm /var/lib/netd/vtep-mac; ip link delete "
        fix += f"{next(iter(context.desired.devices), 'flannel.1')}; systemctl start netd"
        newest = max(leases, key=lambda lease: lease.age)
        yield error("vtep-mac", what, evidence=evidence, fix=fix, peer=peer_name(newest)), leases


def _overlapping(context: DoctorContext) -> Iterator[tuple[Finding, list[Lease]]]:
    for version in (4, 6):
        subnets = [(s, lease) for lease in context.leases for s in lease.subnets if s.version == version]
        subnets.sort(key=lambda each: (int(each[0].network_address), each[0].prefixlen))
        widest: tuple[Network, Lease] | None = None
        for subnet, lease in subnets:
            if widest is not None and int(subnet.network_address) <= int(widest[0].broadcast_address):
                both = [widest[1], lease]
                what = f"the subnets {widest[0]} and {subnet} overlap"
                evidence = f"leases {widest[1].key} of {peer_name(widest[1])} and {lease.key} of {peer_name(lease)}"
                younger = max(both, key=lambda each: each.age)
                fix = f"on {peer_name(younger)}, whose lease is the newer one: systemctl stop netd; then here: "
                fix += f"netd release {younger.key}; then there: systemctl start netd"
                yield error("leases", what, evidence=evidence, fix=fix, peer=peer_name(younger)), both
            if widest is None or int(subnet.broadcast_address) > int(widest[0].broadcast_address):
                widest = subnet, lease


def forwarding(context: DoctorContext, facts: HostFacts) -> list[Finding]:
    found: list[Finding] = []
    wanted = ["net/ipv4/ip_forward"] if context.config.enable_ipv4 else []
    wanted += ["net/ipv6/conf/all/forwarding"] if context.config.enable_ipv6 else []
    if context.config.enable_ipv4 and facts.sysctls.get("net/ipv4/ip_forward") == "1":
        # a single interface can be switched off under a switched on ip_forward
        wanted += [f"net/ipv4/conf/{name}/forwarding" for name in context.desired.devices]
    for path in wanted:
        if facts.sysctls.get(path, "1") != "0":
            continue
        dotted = path.replace("/", ".")
        short = "ip_forward" if path == "net/ipv4/ip_forward" else dotted
        what = f"{short} is off: this host passes nothing on to or from its pods"
        fix = f"sysctl -w {path}=1; and see what sets it: grep -rs forward /etc/sysctl.conf /etc/sysctl.d"
        found.append(error("forwarding", what, evidence=f"{dotted} = 0", fix=fix))
    return found or [ok("forwarding", "on")]


def reverse_path(context: DoctorContext, facts: HostFacts) -> list[Finding]:
    """Strict rp_filter drops only what comes back another way than this host would send it."""
    underlay, found = context.underlay.name, []
    # thousands of routes to peers' pods lead to no peer's public address
    others = replace(facts, routes=tuple(route for route in facts.routes if route.protocol not in _OURS))
    carried = {c.name: c for c in carriers(context.config, context.underlay)}
    strict = [name for name in (underlay, *context.desired.devices) if facts.strict_rp_filter(name)]
    if underlay in strict:
        elsewhere: dict[str, str] = {}
        for lease in context.peers:
            for address in lease.value.addresses:
                route = others.route_to(address) if address.version == 4 else None
                if route is not None and route.device != underlay:
                    elsewhere[str(address)] = route.device
        if elsewhere:
            what = f"rp_filter is strict on {underlay}, and drops what {some(elsewhere)} sends"
            ways = some([f"{address} is routed by {device}" for address, device in elsewhere.items()])
            evidence = f"{_rp_values(facts, underlay)}; {ways}, but arrives on {underlay}"
            fix = f"sysctl -w net/ipv4/conf/all/rp_filter=2 net/ipv4/conf/{underlay}/rp_filter=2 (loose)"
            found.append(error("rp-filter", what, evidence=evidence, fix=fix, peer=next(iter(elsewhere))))
    for name in strict:
        if name not in carried:
            continue
        astray = [
            (destination, have.device)
            for destination, wanted in context.desired.routes.items()
            if wanted.device == name and destination.version == 4
            if (have := context.actual.routes.get(destination)) is not None and have.device != name
        ]
        if astray:
            what = f"rp_filter is strict on {name}, and drops what comes from {some([d for d, _ in astray])}"
            ways = some([f"{destination} is routed by {device}" for destination, device in astray])
            fix = f"sysctl -w net/ipv4/conf/all/rp_filter=2 net/ipv4/conf/{name}/rp_filter=2 (loose); and the route"
            found.append(error("rp-filter", what, evidence=f"{_rp_values(facts, name)}; {ways}", fix=fix))
    if strict and not found and context.config.backend.direct_routing == "auto":
        what = f"rp_filter is strict on {some(strict)}: packets are lost while only one of two hosts routes directly"
        fix = " ".join([f"sysctl -w net/ipv4/conf/{name}/rp_filter=2" for name in ("all", *strict)])
        found.append(warning("rp-filter", what, evidence=_rp_values(facts, strict[0]), fix=fix))
    if found:
        return found
    why = f"strict on {some(strict)}, and every peer's packets come back the way they go" if strict else "not strict"
    return [ok("rp-filter", why)]


def _rp_values(facts: HostFacts, name: str) -> str:
    paths = [f"net/ipv4/conf/{each}/rp_filter" for each in ("all", name)]
    return ", ".join(f"{path.replace('/', '.')} = {facts.sysctls.get(path, '?')}" for path in paths)


def mtu(context: DoctorContext) -> list[Finding]:
    found, underlay = [], context.underlay
    for carrier in carriers(context.config, underlay):
        have = context.actual.devices.get(carrier.name) or context.desired.devices.get(carrier.name)
        if have is None:
            continue
        overhead = VXLAN_OVERHEAD if carrier.over == 4 else VXLAN6_OVERHEAD
        if have.mtu + overhead > underlay.mtu:
            what = f"{have.name} takes packets that do not fit {underlay.name}"
            evidence = f"{have.mtu} + {overhead} for VXLAN is more than {underlay.name}'s MTU of {underlay.mtu}"
            fix = f"set Backend.MTU to {underlay.mtu} or less in the network config, then: systemctl restart netd"
            found.append(error("mtu", what, evidence=evidence, fix=fix))
        if 6 in carrier.families and have.mtu < _MIN_IPV6_MTU:
            what = f"{have.name} cannot carry IPv6: its MTU is {have.mtu}"
            fix = f"give {underlay.name} an MTU of at least {_MIN_IPV6_MTU + overhead}, or set EnableIPv6 to false"
            found.append(error("mtu", what, evidence=f"IPv6 needs {_MIN_IPV6_MTU}", fix=fix))
    return found or [ok("mtu", f"fits {underlay.name}'s {underlay.mtu}")]


def overlap(context: DoctorContext, facts: HostFacts) -> list[Finding]:
    """Routes of this host into the pod network that are neither netd's nor this host's own subnet."""
    found: list[Finding] = []
    for network in context.config.networks:
        for route in facts.routes:
            if route.destination.version != network.version or not route.destination.overlaps(network):
                continue
            if _harmless(route, context):
                continue
            where = f"ip route: {route.destination} dev {route.device or route.kind}"
            fix = "give that network, or the pod network in the network config, other addresses"
            if route.destination.prefixlen < network.prefixlen:
                what = f"the route {route.destination} covers the pod network {network}"
                why = f"{where}; hosts behind it with an address in {network} cannot be reached"
                found.append(warning("route-overlap", what, evidence=why, fix=fix))
            else:
                what = f"the route {route.destination} takes a part of the pod network {network} elsewhere"
                fix = f"ip route delete {route.destination} dev {route.device}; else {fix}"
                found.append(error("route-overlap", what, evidence=where, fix=fix))
    return found or [ok("route-overlap", "no other route leads into the pod network")]


def _harmless(route: HostRoute, context: DoctorContext) -> bool:
    there = route.destination
    inside_own = any(
        own.version == there.version and own.prefixlen <= there.prefixlen and there.network_address in own
        for own in context.own or ()
    )
    return (
        there.prefixlen == 0
        or inside_own
        or route.protocol in _OURS
        or there in context.desired.routes
        or route.device in context.desired.devices
        or there.is_link_local
        or there.is_multicast
    )


def offload(facts: HostFacts) -> list[Finding]:
    """Only told: whether checksums really arrive spoiled is the probes' to say."""
    told = []
    for interface, known in facts.features.items():
        on = [name for name in (CHECKSUM, TUNNEL_CHECKSUM) if known.get(name)]
        told.append(f"{interface}: {' and '.join(on) if on else 'none'}")
    return [ok("offload", "checksum offload: " + ("; ".join(told) or "no interface tells"))]


def unread(facts: HostFacts) -> list[Finding]:
    fix = "run as root, with the packages iproute2 and nftables installed"
    return [warning("facts", f"{what} could not be read", evidence=why, fix=fix) for what, why in facts.unread.items()]
