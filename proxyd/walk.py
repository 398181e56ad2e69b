"""A packet's way through the table, told by the model: what the rules would do with it.

Owns: the meaning of ruleset.py's rules over `Tables`. It is the tests' oracle
(also between two commits: the two look-ups may see different states) and says
why, rule by rule. Pure. Invariant: it knows the rules only as ruleset.py and
tables.py state them; kernel tests hold the same packets against the kernel.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from proxyd.ruleset import Skeleton
from proxyd.tables import CLUSTER_IPS, ENDPOINTS, HAIRPIN, SERVICES, Frontend, Tables, Target, pick_chain


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection. `protocol` is "TCP" or "UDP"."""

    source: str
    destination: str
    port: int
    protocol: str = "TCP"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`action`: "translate" (to `target`), "pass" (not ours), "reset", "unreachable" or "drop"."""

    action: str
    target: Target | None = None
    masquerade: bool = False
    steps: tuple[str, ...] = ()


def choices(tables: Tables, packet: Packet) -> int:
    """Among how many slots the packet's connection is spread; 0 when it is not translated."""
    return tables.count(Frontend(packet.destination, packet.protocol, packet.port))


def walk(
    packet: Packet, tables: Tables, skeleton: Skeleton, *, pick: int = 0, committed: Tables | None = None
) -> Verdict:
    """Follow the packet. `pick` is the random number, from 0 to `choices() - 1`.

    `committed`: the tables from the second look-up on, where a commit fell in between.
    """
    frontend = Frontend(packet.destination, packet.protocol, packet.port)
    later = committed or tables
    chain = tables[SERVICES].get(frontend)
    if chain is None:
        return _untranslated(packet, later, skeleton, (f"{SERVICES}: no {frontend}",))
    steps = [f"{SERVICES}: {frontend} goto {chain}"]
    if chain not in tables.chains:
        raise ValueError(f"walk {frontend}: chain {chain} does not exist, which the kernel rules out")
    target = later[ENDPOINTS].get((*frontend, pick))
    if target is None:
        return Verdict("drop", steps=(*steps, f"{chain}: slot {pick} is missing", f"{chain}: drop"))
    steps.append(f"{chain}: slot {pick} is {target}")
    masquerade = _masquerade(packet, target, later, skeleton, steps)
    return Verdict("translate", target, masquerade, tuple(steps))


def every_outcome(packet: Packet, tables: Tables, skeleton: Skeleton) -> Iterable[Verdict]:
    """The verdict for each pick the kernel may make."""
    for pick in range(max(1, choices(tables, packet))):
        yield walk(packet, tables, skeleton, pick=pick)


def _masquerade(packet: Packet, target: Target, tables: Tables, skeleton: Skeleton, steps: list[str]) -> bool:
    if (packet.destination,) not in tables[CLUSTER_IPS]:
        steps.append(f"postrouting: {packet.destination} is no service's")
        return False
    if not _within(packet.source, skeleton.pod_networks):
        steps.append(f"postrouting: {packet.source} is outside the pod networks, masquerade")
        return True
    if (packet.source, target.address) in tables[HAIRPIN]:
        steps.append(f"postrouting: {packet.source} was sent to itself, masquerade")
        return True
    return False


def _untranslated(packet: Packet, tables: Tables, skeleton: Skeleton, steps: tuple[str, ...]) -> Verdict:
    if (packet.destination,) in tables[CLUSTER_IPS]:
        action = "reset" if packet.protocol == "TCP" else "unreachable"
        return Verdict(action, steps=(*steps, f"{CLUSTER_IPS}: {packet.destination}, refuse"))
    if _within(packet.destination, skeleton.service_ranges):
        return Verdict("drop", steps=(*steps, f"service_ranges: {packet.destination} belongs to no service, drop"))
    return Verdict("pass", steps=steps)


def _within(address: str, networks: Iterable[str]) -> bool:
    return any(ipaddress.IPv4Address(address) in ipaddress.IPv4Network(network) for network in networks)


def consistent(tables: Tables) -> list[str]:
    """What is wrong with the tables by themselves: a count without its slots, a chain that is missing."""
    problems = []
    for frontend, chain in tables[SERVICES].items():
        if chain not in tables.chains:
            problems.append(f"{frontend}: no chain {chain}")
        count = tables.count(Frontend(*frontend))
        if count == 0 or chain != pick_chain(count):
            problems.append(f"{frontend}: {chain} is no pick chain")
        problems += [
            f"{frontend}: no slot {slot}" for slot in range(count) if (*frontend, slot) not in tables[ENDPOINTS]
        ]
        if (frontend[0],) not in tables[CLUSTER_IPS]:
            problems.append(f"{frontend}: address is not in {CLUSTER_IPS}")
    return problems
