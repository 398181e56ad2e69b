"""A ruleset of the shape that kube-proxy's nftables mode makes (as of 1.36), for the same services.

Pure: text for `nft -f -`. Owns: the peer of the service proxy's benchmarks.
Invariants: it works (a kernel test sends packets through it), and is neither
better nor worse for the kernel than kube-proxy's: a chain for each service port
and for each endpoint, an anonymous map in each service's chain, verdict maps
that dispatch to them, masquerading by a mark. What kube-proxy's process does
besides (its own bookkeeping, listing chains and sets before each transaction)
is not in it, so the comparison is in kube-proxy's favour. Facts from
pkg/proxy/nftables (README.md, proxier.go); cluster addresses only, no node
ports, source ranges or affinity, which the benchmarks' services do not use.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from podlane.api.types import SERVICE_NAME_LABEL, EndpointSlice, Service

TABLE = "ip kube-proxy"
MASQUERADE_MARK = 0x4000

_SERVICE_KEY = "ipv4_addr . inet_proto . inet_service : verdict"
_NODE_PORT_KEY = "inet_proto . inet_service : verdict"
_MAPS = (
    ("firewall-ips", _SERVICE_KEY),
    ("no-endpoint-services", _SERVICE_KEY),
    ("no-endpoint-nodeports", _NODE_PORT_KEY),
    ("service-ips", _SERVICE_KEY),
    ("service-nodeports", _NODE_PORT_KEY),
)
_BASE_CHAINS = (
    ("filter-prerouting-pre-dnat", "type filter hook prerouting priority -110;"),
    ("filter-output-pre-dnat", "type filter hook output priority -110;"),
    ("filter-input", "type filter hook input priority 0;"),
    ("filter-forward", "type filter hook forward priority 0;"),
    ("filter-output", "type filter hook output priority 0;"),
    ("nat-prerouting", "type nat hook prerouting priority -100;"),
    ("nat-output", "type nat hook output priority -100;"),
    ("nat-postrouting", "type nat hook postrouting priority 100;"),
)
_DISPATCH = "ip daddr . meta l4proto . th dport vmap"
_LOCAL_DISPATCH = "ip daddr @nodeport-ips meta l4proto . th dport vmap"


@dataclass(frozen=True, slots=True)
class Port:
    """One port of a service and where its connections go: (address, port) of each ready endpoint."""

    name: str  # namespace/service/protocol/port name: what the chain's name ends in
    address: str
    protocol: str
    port: int
    endpoints: tuple[tuple[str, int], ...]

    @property
    def key(self) -> str:
        return f"{self.address} . {self.protocol} . {self.port}"

    @property
    def chain(self) -> str:
        return f"service-{_hash(self.name)}-{self.name}"

    def endpoint_chain(self, endpoint: tuple[str, int]) -> str:
        where = f"{self.name}__{endpoint[0]}/{endpoint[1]}"
        return f"endpoint-{_hash(where)}-{where}"

    @property
    def endpoint_chains(self) -> dict[str, tuple[str, int]]:
        return {self.endpoint_chain(endpoint): endpoint for endpoint in self.endpoints}


def _hash(text: str) -> str:
    """Eight letters that keep names unique when they must be cut short."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest())[:8].decode()


def ports(service: Service, slices: Iterable[EndpointSlice]) -> list[Port]:
    """What to proxy of a service. Takes the ready endpoints of its slices, by port name and protocol."""
    found: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for each in slices:
        if each.metadata.labels.get(SERVICE_NAME_LABEL) != service.metadata.name:
            raise ValueError(f"slice {each.metadata.name}: not of service {service.metadata.name}")
        ready = [e.addresses[0] for e in each.endpoints if e.conditions.ready]
        for port in each.ports:
            found.setdefault((port.name, port.protocol), []).extend((address, port.port) for address in ready)
    prefix = f"{service.metadata.namespace}/{service.metadata.name}"
    return [
        Port(
            f"{prefix}/{port.protocol.lower()}/{port.name}",
            service.spec.cluster_ip,
            port.protocol.lower(),
            port.port,
            tuple(found.get((port.name, port.protocol), ())),
        )
        for port in service.spec.ports
    ]


def full(all_ports: Sequence[Port], *, pod_network: str, service_range: str) -> str:
    """All there is, from nothing, in one transaction."""
    return _text((*_base(service_range), *(line for port in all_ports for line in _port(port, pod_network))))


def parts(all_ports: Sequence[Port], size: int, *, pod_network: str, service_range: str) -> Iterator[str]:
    """The same in transactions of `size` ports: not kube-proxy's way, but the only one that grows about linearly.

    For each anonymous map the kernel goes through all of the transaction so
    far (__nft_set_trans_bind in nf_tables_api.c, seen on 6.18).
    """
    yield full(all_ports[:size], pod_network=pod_network, service_range=service_range)
    for first in range(size, len(all_ports), size):
        yield _text(line for port in all_ports[first : first + size] for line in _port(port, pod_network))


def change(pairs: Iterable[tuple[Port, Port]], *, pod_network: str, service_range: str) -> str:
    """What a sync writes when only these ports' endpoints changed (old, new): the base again, and their chains.

    Chains of endpoints that went are emptied; they are deleted by a later one (`delete`).
    """
    lines = [*_base(service_range)]
    for old, new in pairs:
        lines += _chains(new, pod_network)
        lines += [f"flush chain {TABLE} {chain}" for chain in old.endpoint_chains if chain not in new.endpoint_chains]
        if bool(old.endpoints) != bool(new.endpoints):
            lines += [*_elements("delete", old), *_elements("add", new)]
            if not new.endpoints:
                lines.append(f"flush chain {TABLE} {old.chain}")
    return _text(lines)


def delete_service(port: Port, *, service_range: str) -> str:
    """What a sync writes when a service's only port is gone. The chains are emptied; see `delete`."""
    lines = [
        *_base(service_range),
        *_elements("delete", port),
        f"delete element {TABLE} cluster-ips {{ {port.address} }}",
    ]
    lines += [f"flush chain {TABLE} {chain}" for chain in (port.chain, *port.endpoint_chains)]
    return _text(lines)


def delete(chains: Iterable[str]) -> str:
    """Delete chains that nothing leads to any more, as a sync a second or more later does."""
    return _text(f"delete chain {TABLE} {chain}" for chain in chains)


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _base(service_range: str) -> Iterator[str]:
    """What every sync writes first: tables, sets, base chains, the jumps between them."""
    yield f'add table {TABLE} {{ comment "rules for kube-proxy"; }}'
    yield f'add set {TABLE} cluster-ips {{ type ipv4_addr; comment "Active ClusterIPs"; }}'
    yield f'add set {TABLE} nodeport-ips {{ type ipv4_addr; comment "IPs that accept NodePort traffic"; }}'
    for name, key in _MAPS:
        yield f"add map {TABLE} {name} {{ type {key}; }}"
    for name, hook in _BASE_CHAINS:
        yield f"add chain {TABLE} {name} {{ {hook} }}"
        yield f"flush chain {TABLE} {name}"
    base_chains = {base for base, _ in _BASE_CHAINS}
    for name in _RULES:
        if name not in base_chains:
            yield f"add chain {TABLE} {name}"
            yield f"flush chain {TABLE} {name}"
    for name, rules in _RULES.items():
        yield from (f"add rule {TABLE} {name} {rule}" for rule in rules)
    yield f"add rule {TABLE} cluster-ips-check ip daddr {{ {service_range} }} drop"


_RULES = {
    "filter-prerouting-pre-dnat": ("ct state new jump firewall-check",),
    "filter-output-pre-dnat": ("ct state new jump firewall-check",),
    "filter-input": ("ct state new jump nodeport-endpoints-check", "ct state new jump service-endpoints-check"),
    "filter-forward": ("ct state new jump service-endpoints-check", "ct state new jump cluster-ips-check"),
    "filter-output": ("ct state new jump service-endpoints-check", "ct state new jump cluster-ips-check"),
    "nat-prerouting": ("jump services",),
    "nat-output": ("jump services",),
    "nat-postrouting": ("jump masquerading",),
    "firewall-check": (f"{_DISPATCH} @firewall-ips",),
    "nodeport-endpoints-check": (f"{_LOCAL_DISPATCH} @no-endpoint-nodeports",),
    "service-endpoints-check": (f"{_DISPATCH} @no-endpoint-services",),
    "services": (f"{_DISPATCH} @service-ips", f"{_LOCAL_DISPATCH} @service-nodeports"),
    "cluster-ips-check": ("ip daddr @cluster-ips reject",),
    "reject-chain": ("reject",),
    "mark-for-masquerade": (f"meta mark set meta mark or {MASQUERADE_MARK:#x}",),
    "masquerading": (
        f"meta mark and {MASQUERADE_MARK:#x} == 0 return",
        f"meta mark set meta mark xor {MASQUERADE_MARK:#x}",
        "masquerade fully-random",
    ),
}


def _port(port: Port, pod_network: str) -> Iterator[str]:
    yield f"add element {TABLE} cluster-ips {{ {port.address} }}"
    yield from _chains(port, pod_network)
    yield from _elements("add", port)


def _elements(verb: str, port: Port) -> list[str]:
    if port.endpoints:
        return [f"{verb} element {TABLE} service-ips {{ {port.key} : goto {port.chain} }}"]
    return [f"{verb} element {TABLE} no-endpoint-services {{ {port.key} : goto reject-chain }}"]


def _chains(port: Port, pod_network: str) -> Iterator[str]:
    if not port.endpoints:
        return
    chains = port.endpoint_chains
    for chain in (port.chain, *chains):
        yield f"add chain {TABLE} {chain}"
        yield f"flush chain {TABLE} {chain}"
    from_outside = f"ip daddr {port.address} ip saddr != {pod_network}"
    yield f"add rule {TABLE} {port.chain} {from_outside} jump mark-for-masquerade"
    picks = ", ".join(f"{i} : goto {chain}" for i, chain in enumerate(chains))
    yield f"add rule {TABLE} {port.chain} numgen random mod {len(chains)} vmap {{ {picks} }}"
    for chain, (address, number) in chains.items():
        yield f"add rule {TABLE} {chain} ip saddr {address} jump mark-for-masquerade"
        yield f"add rule {TABLE} {chain} meta l4proto {port.protocol} dnat to {address}:{number}"
