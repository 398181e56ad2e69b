"""What netd asks of the host's packet filters, as the texts that nft and iptables-restore read.

Owns: the nft table `inet podlane-netd` and the iptables chain PODLANE-FORWARD,
as text; pure. Invariant: the same rules give the same text. What masquerading
does and leaves alone is what flannel's chain FLANNEL-POSTRTG does, in its order:

  1. what kube-proxy marked for its own masquerading is left alone
  2. from the pod network to the pod network: never (the host's own packets to
     other hosts' pods have the VTEP's address, which is inside)
  3. from the pod network to elsewhere, but not multicast: masqueraded
  4. from outside to this host's pods: never, they see who called
  5. from outside to other hosts' pods: masqueraded, so that the answer comes
     back this way, where the connection is known

proxyd masquerades calls to a service's address in a chain of its own at the
same priority. Both may decide about a packet in either order: rules 2 and 4
return, so that proxyd still sees what it is to masquerade, and 5 asks for the
same as proxyd does.

The VXLAN guard stands in the input hook: there fragments are put together, and
packets on their way to other hosts do not come by.
Source: flannel pkg/trafficmngr/iptables (masqRules); nft(8); iptables(8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from podlane.api.subnets import Address, Network, Subnets

FORWARD_CHAIN = "PODLANE-FORWARD"
TABLE = "podlane-netd"
"""Of the family inet. The first version had one of the family ip."""
SOURCES = {4: "vxlan-sources", 6: "vxlan-sources6"}
DROPPED = "vxlan-dropped"

_KUBE_PROXY_MARK = "0x4000"
_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
_FAMILY = {4: "ip", 6: "ip6"}
_ABSENT = f"add table {{}} {TABLE}\ndelete table {{}} {TABLE}\n"  # adding it first makes deleting it legal


@dataclass(frozen=True, slots=True)
class VxlanGuard:
    """Admit VXLAN packets to UDP port `port` from `sources` only."""

    port: int
    sources: frozenset[Address]


@dataclass(frozen=True, slots=True)
class FirewallRules:
    """All that netd wants of the packet filters. `own`: this host's part of `networks`."""

    networks: tuple[Network, ...]
    own: Subnets
    forward: bool
    masquerade: bool
    random_fully: bool = True
    guard: VxlanGuard | None = None

    @property
    def sources(self) -> frozenset[Address]:
        return self.guard.sources if self.guard is not None else frozenset()

    @property
    def skeleton(self) -> FirewallRules:
        """The same without what is not in the table, and without what can change in it piece by piece."""
        guard = replace(self.guard, sources=frozenset()) if self.guard is not None else None
        return replace(self, forward=False, guard=guard)


NOTHING = FirewallRules((), Subnets(), forward=False, masquerade=False)


def table_chains(rules: FirewallRules) -> dict[str, tuple[str, ...]]:
    """The table's chains: how each begins, and its rules. Empty when no table is needed."""
    chains: dict[str, tuple[str, ...]] = {}
    if rules.guard is not None:
        chains["input"] = (
            "type filter hook input priority raw; policy accept;",
            *(
                f'iif != "lo" udp dport {rules.guard.port} {_FAMILY[version]} saddr != @{name} '
                f"counter name {DROPPED} drop"
                for version, name in SOURCES.items()
            ),
        )
    if rules.masquerade and rules.networks:
        chains["postrouting"] = (
            "type nat hook postrouting priority srcnat; policy accept;",
            f"meta mark & {_KUBE_PROXY_MARK} == {_KUBE_PROXY_MARK} return",
            *(rule for network in rules.networks for rule in _masquerade(rules, network)),
        )
    return chains


def _masquerade(rules: FirewallRules, network: Network) -> Iterator[str]:
    family = _FAMILY[network.version]
    masquerade = "masquerade fully-random" if rules.random_fully else "masquerade"
    inside, outside = f"{family} saddr {network}", f"{family} saddr != {network}"
    yield f"{inside} {family} daddr {network} return"
    yield f"{inside} {family} daddr != {_MULTICAST[network.version]} {masquerade}"
    yield from (f"{outside} {family} daddr {own} return" for own in rules.own if own.version == network.version)
    yield f"{outside} {family} daddr {network} {masquerade}"


def table_script(rules: FirewallRules) -> str:
    """A script for nft that replaces the table by what the rules ask for, in one transaction."""
    return _ABSENT.format("ip", "ip") + _ABSENT.format("inet", "inet") + table_text(rules)


def table_text(rules: FirewallRules) -> str:
    """The table as `nft list table` shows it, more or less; empty when none is needed."""
    chains = table_chains(rules)
    if not chains:
        return ""
    lines = [f"table inet {TABLE} {{"]
    if rules.guard is not None:
        lines.append(f"\tcounter {DROPPED} {{ }}")
        lines += [f"\tset {name} {{ {_set(version, rules.guard)} }}" for version, name in SOURCES.items()]
    for name, rows in chains.items():
        lines += [f"\tchain {name} {{", *(f"\t\t{row}" for row in rows), "\t}"]
    return "\n".join([*lines, "}", ""])


def _set(version: int, guard: VxlanGuard) -> str:
    kind = f"type ipv{version}_addr;"
    elements = [str(source) for source in sorted_sources(guard.sources) if source.version == version]
    return f"{kind} elements = {{ {', '.join(elements)} }}" if elements else kind


def sorted_sources(sources: frozenset[Address]) -> list[Address]:
    """IPv4 first."""
    return sorted(sources, key=lambda source: (source.version, int(source)))


def forward_restore(forward: list[str], chain: list[str] | None, networks: tuple[Network, ...]) -> str:
    """What to feed to `iptables-restore --noflush`; empty when all is well.

    `forward` and `chain` are what `iptables -S` says of FORWARD and of our
    chain, None when there is none. Without networks the chain and the jumps to it go.

    The accepts must stand in that very chain: a stock dockerd sets FORWARD's
    policy to DROP, and an accept in another table cannot overrule a drop. They
    stand at the top, but behind jumps to DOCKER-USER, where administrators put
    rules that are to come first.
    """
    jump = f"-A FORWARD -j {FORWARD_CHAIN}"
    rules = [line for line in forward if line.startswith("-A FORWARD ")]
    others = [line for line in rules if line != jump]
    away = ["-D" + jump[2:]] * (len(rules) - len(others))
    if not networks:
        gone = [] if chain is None else [f"-F {FORWARD_CHAIN}", f"-X {FORWARD_CHAIN}"]
        return _restore([*away, *gone])
    want = [f"-A {FORWARD_CHAIN} {end} {network} -j ACCEPT" for network in networks for end in ("-s", "-d")]
    out: list[str] = []
    if chain is None or [line for line in chain if line.startswith("-A ")] != want:
        out += [f":{FORWARD_CHAIN} - [0:0]", *want]
    place = 0
    while place < len(others) and others[place] == "-A FORWARD -j DOCKER-USER":
        place += 1
    if len(away) != 1 or rules.index(jump) != place:
        out += [*away, f"-I FORWARD {place + 1} -j {FORWARD_CHAIN}"]
    return _restore(out)


def _restore(lines: list[str]) -> str:
    return "\n".join(["*filter", *lines, "COMMIT", ""]) if lines else ""
