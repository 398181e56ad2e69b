"""The static part of a family's table: maps, base chains and rules, as one nft script.

Owns: which hooks are used and why (README.md has the picture). Invariant: the
script is idempotent and atomic: loading it over itself, or over another
version of the same maps, keeps every element and every connection. The number
of rules does not depend on the number of services.

Priorities: translation at dstnat, as every DNAT. Reject and drop run after it
and before filter, because a stock dockerd's FORWARD policy at filter drops
what it does not know, and a caller should get a refusal at once, not a timeout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from proxyd.chains import EXTERNAL_SOURCE
from proxyd.tables import (
    ADMITTED,
    AFFINITY,
    CLUSTER_IPS,
    HAIRPIN,
    IPV4,
    MAPS,
    MASQUERADE_ALL,
    MASQUERADE_OWN,
    RANGED,
    REFUSED,
    SERVICES,
    SOURCE_RANGES,
    TABLE,
    Family,
    MapSpec,
)

POD_NETWORKS = "pod_networks"
SERVICE_RANGES = "service_ranges"
REFUSE = "refuse"
CLUSTER_SOURCE = "cluster-source"

AFFINITY_SIZE = 1 << 20
"""Clients of all services with affinity together; beyond it, new ones are spread without being remembered."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What the static part depends on: networks in CIDR form, sorted and not overlapping.

    `pod_networks`: whose clients keep their address. `service_ranges`: where an
    address that no service has is dropped. `size`: elements a map may have, None for no limit.
    """

    pod_networks: tuple[str, ...] = ()
    service_ranges: tuple[str, ...] = ()
    size: int | None = None
    family: Family = IPV4

    def script(self, *, anew: bool = False) -> str:
        """The script for `nft -f`. With `anew` the table is deleted first, with all it holds."""
        return "\n".join(_lines(self, anew)) + "\n"


@dataclass(frozen=True, slots=True)
class Chain:
    """`hook` is "" for a chain that others go to."""

    name: str
    hook: str
    rules: tuple[str, ...]


def chains_of(family: Family) -> tuple[Chain, ...]:
    """Every chain with rules that never change."""
    ip = family.name
    frontend = f"{ip} daddr . meta l4proto . th dport"
    dispatch = (f"{frontend} vmap @{SERVICES}",)
    refuse_frontend = f"{frontend} @{REFUSED} goto {REFUSE}"
    # with the port it has, which is this host's to give: at a port of another client's a pod may remember a
    # connection with later timestamps, and the client's first SYN is lost (RFC 6191; 1 in 100 under load)
    own = "fib saddr type local masquerade"
    # only what begins a connection, or belongs to none, can be for an address that is not served
    known = "ct state established,related accept"
    unserved = (
        known,
        refuse_frontend,
        # a service's address, but no endpoint or no such port: refuse at once
        f"{ip} daddr @{CLUSTER_IPS} goto {REFUSE}",
        # an address no service has must not leave for the default gateway: conntrack would remember it
        # untranslated, and a service that gets the address later would not be seen
        f"{ip} daddr @{SERVICE_RANGES} drop",
    )
    return (
        # TCP by reset: the ICMP answer is rate limited, and some of a burst would time out (30 of 30 against 10)
        Chain(REFUSE, "", ("meta l4proto tcp reject with tcp reset", f"reject with {_ICMP[ip]} type port-unreachable")),
        # before the translation: afterwards nobody knows which service was meant
        Chain(RANGED, "", (f"{frontend} . {ip} saddr @{SOURCE_RANGES} {frontend} vmap @{ADMITTED}", "drop")),
        Chain(MASQUERADE_ALL, "", (own, "masquerade fully-random")),
        # to a cluster IP: what comes from outside the pod networks must come back through this node
        Chain(CLUSTER_SOURCE, "", (f"{ip} saddr @{POD_NETWORKS} accept", f"goto {MASQUERADE_ALL}")),
        Chain(MASQUERADE_OWN, "", (own,)),
        Chain("prerouting", "type nat hook prerouting priority dstnat; policy accept;", dispatch),
        Chain("output", "type nat hook output priority -100; policy accept;", dispatch),
        Chain(
            "postrouting",
            "type nat hook postrouting priority srcnat; policy accept;",
            (
                # a pod that was sent to itself would answer itself directly
                f"ct status dnat {ip} saddr . {ip} daddr @{HAIRPIN} masquerade fully-random",
                f"ct original {ip} daddr @{CLUSTER_IPS} goto {CLUSTER_SOURCE}",
                f"ct status dnat goto {EXTERNAL_SOURCE}",
            ),
        ),
        Chain("filter-input", "type filter hook input priority filter - 10; policy accept;", (known, refuse_frontend)),
        Chain(*_FORWARDED[ip], unserved),
        Chain("filter-output", "type filter hook output priority filter - 10; policy accept;", unserved),
    )


_ICMP = {"ip": "icmp", "ip6": "icmpv6"}
_FORWARDED = {
    "ip": ("filter-forward", "type filter hook forward priority filter - 10; policy accept;"),
    # a host without a default route has one to the service range at lo (host.py), which IPv6 takes for an
    # unreachable one when it forwards: what is not translated would be gone before the forward hook
    "ip6": ("filter-prerouting", "type filter hook prerouting priority dstnat + 10; policy accept;"),
}
"""The chain for packets of others, and its hook."""


def _lines(skeleton: Skeleton, anew: bool) -> Iterator[str]:
    family = skeleton.family
    where = f"{family.name} {TABLE}"
    chains = chains_of(family)
    if anew:
        yield f"table {where} {{ }}"
        yield f"delete table {where}"
    yield f"table {where} {{"
    for spec in MAPS.values():
        yield f"  {_declaration(spec, skeleton)}"
    yield (
        f"  map {AFFINITY.name} {{ type {AFFINITY.declaration(family)}; flags dynamic,timeout; size {AFFINITY_SIZE}; }}"
    )
    for name in (POD_NETWORKS, SERVICE_RANGES):
        yield f"  set {name} {{ type {family.address_type}; flags interval; }}"
    yield f"  chain {EXTERNAL_SOURCE} {{ }}"
    for chain in chains:
        yield f"  chain {chain.name} {{ {chain.hook} }}"
    yield "}"
    for name, networks in ((POD_NETWORKS, skeleton.pod_networks), (SERVICE_RANGES, skeleton.service_ranges)):
        yield f"flush set {where} {name}"
        if networks:
            yield f"add element {where} {name} {{ {', '.join(networks)} }}"
    for chain in chains:
        yield f"flush chain {where} {chain.name}"
        for rule in chain.rules:
            yield f"add rule {where} {chain.name} {rule}"


def _declaration(spec: MapSpec, skeleton: Skeleton) -> str:
    size = f" size {skeleton.size};" if skeleton.size is not None else ""
    flags = " flags interval;" if spec.kind == "ranges" else ""
    return f"{'map' if spec.is_map else 'set'} {spec.name} {{ type {spec.declaration(skeleton.family)};{flags}{size} }}"
