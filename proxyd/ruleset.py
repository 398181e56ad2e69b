"""The static part of the table: maps, base chains and rules, as one nft script.

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

from proxyd.tables import CLUSTER_IPS, FAMILY, HAIRPIN, MAPS, SERVICES, TABLE

POD_NETWORKS = "pod_networks"
SERVICE_RANGES = "service_ranges"


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What the static part depends on: networks in CIDR form, sorted and not overlapping.

    `pod_networks`: whose clients keep their address. `service_ranges`: where an
    address that no service has is dropped. `size`: elements a map may have, None for no limit.
    """

    pod_networks: tuple[str, ...] = ()
    service_ranges: tuple[str, ...] = ()
    size: int | None = None

    def script(self, *, anew: bool = False) -> str:
        """The script for `nft -f`. With `anew` the table is deleted first, with all it holds."""
        return "\n".join(_lines(self, anew)) + "\n"


@dataclass(frozen=True, slots=True)
class BaseChain:
    name: str
    hook: str
    rules: tuple[str, ...]


_TO_SERVICE = f"ct original ip daddr @{CLUSTER_IPS}"
_DISPATCH = f"ip daddr . meta l4proto . th dport vmap @{SERVICES}"
_UNSERVED = (
    # known address, but no endpoint or no such port: refuse at once
    f"ip daddr @{CLUSTER_IPS} goto refuse",
    # an address no service has must not leave for the default gateway: conntrack would remember it
    # untranslated, and a service that gets the address later would not be seen
    f"ip daddr @{SERVICE_RANGES} drop",
)

CHAINS = (
    BaseChain("prerouting", "type nat hook prerouting priority dstnat; policy accept;", (_DISPATCH,)),
    BaseChain("output", "type nat hook output priority -100; policy accept;", (_DISPATCH,)),
    BaseChain(
        "postrouting",
        "type nat hook postrouting priority srcnat; policy accept;",
        (
            # the reply must come back through this node to be translated
            f"{_TO_SERVICE} ip saddr != @{POD_NETWORKS} masquerade fully-random",
            # a pod that was sent to itself would answer itself directly
            f"{_TO_SERVICE} ip saddr . ip daddr @{HAIRPIN} masquerade fully-random",
        ),
    ),
    BaseChain("filter-forward", "type filter hook forward priority filter - 10; policy accept;", _UNSERVED),
    BaseChain(
        "filter-output",
        "type filter hook output priority filter - 10; policy accept;",
        _UNSERVED,
    ),
)

# TCP by reset: the ICMP answer is rate limited, and some of a burst would time out (30 of 30 against 10 of 30)
REFUSE = ("meta l4proto tcp reject with tcp reset", "reject with icmp type port-unreachable")


def _lines(skeleton: Skeleton, anew: bool) -> Iterator[str]:
    where = f"{FAMILY} {TABLE}"
    if anew:
        yield f"table {where} {{ }}"
        yield f"delete table {where}"
    yield f"table {where} {{"
    size = f" size {skeleton.size};" if skeleton.size is not None else ""
    for spec in MAPS.values():
        yield f"  {'set' if spec.kind == 'set' else 'map'} {spec.name} {{ type {spec.type};{size} }}"
    for name in (POD_NETWORKS, SERVICE_RANGES):
        yield f"  set {name} {{ type ipv4_addr; flags interval; }}"
    yield "  chain refuse { }"
    for chain in CHAINS:
        yield f"  chain {chain.name} {{ {chain.hook} }}"
    yield "}"
    for name, networks in ((POD_NETWORKS, skeleton.pod_networks), (SERVICE_RANGES, skeleton.service_ranges)):
        yield f"flush set {where} {name}"
        if networks:
            yield f"add element {where} {name} {{ {', '.join(networks)} }}"
    for chain_name, rules in (("refuse", REFUSE), *((chain.name, chain.rules) for chain in CHAINS)):
        yield f"flush chain {where} {chain_name}"
        for rule in rules:
            yield f"add rule {where} {chain_name} {rule}"
