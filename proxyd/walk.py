"""A packet's way through the table, told by the model: what the rules would do with it.

Owns: the meaning of the rules of ruleset.py and chains.py over `Tables`. It is
the tests' oracle (also between two commits: the two look-ups may see different
states) and the first half of `proxyd trace`; it says why, rule by rule. Pure.
Invariant: it knows the rules only as ruleset.py and chains.py state them; kernel
tests hold the same packets against the kernel.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from proxyd import hashing
from proxyd.chains import HASH_SEED, OUTSIDE_SLOTS, Pick, pick_of
from proxyd.ruleset import Skeleton
from proxyd.tables import (
    ADDRESSES,
    ADMITTED,
    CLUSTER_IPS,
    DROP,
    ENDPOINTS,
    EXTERNAL,
    GOTO,
    HAIRPIN,
    INSIDE,
    MASQUERADE_ALL,
    PICKS,
    RANGED,
    REFUSED,
    SERVICES,
    SOURCE_RANGES,
    Frontend,
    Key,
    Tables,
    Target,
    Value,
    chain_of,
    pack_address,
    pack_frontend,
    pack_mark,
    unpack_mark,
    unpack_target,
)


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection. `protocol` is "TCP", "UDP" or "SCTP"."""

    source: str
    destination: str
    port: int
    protocol: str = "TCP"

    @property
    def frontend(self) -> Frontend:
        return Frontend(self.destination, self.protocol, self.port)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`action`: "translate" (to `target`), "pass" (not ours), "reset", "unreachable" or "drop".

    `steps`: what decided, one line for each look-up.
    """

    action: str
    target: Target | None = None
    masquerade: bool = False
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a packet meets. `local`: addresses of this host; `affinity`: (frontend, client) to id.

    `later`: the tables from the second look-up on, where a commit fell in between.
    """

    tables: Tables
    skeleton: Skeleton
    local: Collection[str] = ()
    affinity: Mapping[Key, Value] = field(default_factory=dict)
    later: Tables | None = None


def choices(packet: Packet, kernel: Kernel) -> int:
    """Among how many slots chance spreads the packet's connection; 0 when it is not translated, 1 if hashed."""
    walk = _Walk(packet, kernel, 0)
    pick = walk.dispatch()
    return 0 if pick is None else 1 if pick.hashed else pick.slots


def walk(packet: Packet, kernel: Kernel, *, pick: int = 0) -> Verdict:
    """Follow the packet. `pick` is the random number, from 0 to `choices() - 1`."""
    return _Walk(packet, kernel, pick).verdict()


def every_outcome(packet: Packet, kernel: Kernel) -> Iterable[Verdict]:
    """The verdict for each pick the kernel may make."""
    for pick in range(max(1, choices(packet, kernel))):
        yield walk(packet, kernel, pick=pick)


class _Walk:
    def __init__(self, packet: Packet, kernel: Kernel, number: int) -> None:
        self._packet, self._number = packet, number
        self._kernel = kernel
        self._tables, self._later = kernel.tables, kernel.later or kernel.tables
        self._frontend = pack_frontend(packet.frontend)
        self._client = pack_address(packet.source)
        self._steps: list[str] = []
        self._dropped = False

    def verdict(self) -> Verdict:
        pick = self.dispatch()
        if self._dropped:
            return self._end("drop")
        if pick is None:
            return self._untranslated()
        target = self._target(pick)
        if target is None:
            self._steps.append(f"{pick.chain}: drop")
            return self._end("drop")
        return Verdict("translate", target, self._masquerade(target), tuple(self._steps))

    # --- who picks ----------------------------------------------------------------------

    def dispatch(self) -> Pick | None:
        """The pick that decides; None when there is none, and then `_dropped` tells which way it ended."""
        verdict = self._look(SERVICES)
        if verdict == GOTO + RANGED:
            if not self._admitted():
                self._steps.append(f"{RANGED}: {self._packet.source} is in none of the source ranges, drop")
                self._dropped = True
                return None
            verdict = self._look(ADMITTED)
        if verdict == DROP:
            self._dropped = True
        pick = self._chain(verdict)
        if pick is None or not pick.outside or not (why := self._is_inside()):
            return pick
        self._steps.append(f"{pick.chain}: {why}, so all endpoints are open to it")
        return self._chain(self._look(INSIDE)) or pick

    def _look(self, name: str) -> Value:
        verdict = self._tables[name].get(self._frontend)
        shown = verdict if isinstance(verdict, str) else "is not there"
        self._steps.append(f"{name}: {self._packet.frontend} {shown}")
        return verdict

    def _chain(self, verdict: Value) -> Pick | None:
        chain = chain_of(verdict)
        if chain and chain != RANGED and chain not in self._tables.chains:
            raise ValueError(f"walk {self._packet.frontend}: chain {chain} does not exist, which the kernel rules out")
        return pick_of(chain)

    def _admitted(self) -> bool:
        size, width = len(self._frontend), self._tables.family.width
        return any(
            key[size : size + width] <= self._client <= key[-width:]
            for key in self._tables[SOURCE_RANGES]
            if key[:size] == self._frontend
        )

    def _is_inside(self) -> str:
        """Why the client does not count as one from outside, or ""."""
        if _within(self._packet.source, self._kernel.skeleton.pod_networks):
            return f"{self._packet.source} is a pod's address"
        return f"{self._packet.source} is this host" if self._packet.source in self._kernel.local else ""

    # --- who is picked ------------------------------------------------------------------

    def _target(self, pick: Pick) -> Target | None:
        if not pick.slots:
            self._steps.append(f"{pick.chain}: no endpoint on this node for clients outside")
            return None
        if pick.affinity and (known := self._kernel.affinity.get(self._frontend + self._client)):
            if target := self._address(pick, known):
                self._steps[-1] += f", to which {self._packet.source} was sent before"
                return target
            self._steps.append(f"{pick.chain}: {self._packet.source} was sent to an endpoint that is gone, pick anew")
        slot, how = self._number, "at random"
        if pick.hashed:
            slot = hashing.slot_of(self._client, pick.slots, HASH_SEED)
            how = f"by the hash of {self._packet.source}"
        name = PICKS if pick.affinity else ENDPOINTS
        value = self._later[name].get(self._frontend + pack_mark(slot + (OUTSIDE_SLOTS if pick.outside else 0)))
        if not isinstance(value, bytes):
            self._steps.append(f"{pick.chain}: slot {slot} is missing")
            return None
        if pick.affinity:
            return self._address(pick, value)
        target = unpack_target(value)
        self._steps.append(f"{pick.chain}: slot {slot} of {pick.slots}, {how}, is {target}")
        return target

    def _address(self, pick: Pick, number: Value) -> Target | None:
        assert isinstance(number, bytes)
        value = self._later[ADDRESSES].get(number)
        if not isinstance(value, bytes):
            return None
        target = unpack_target(value)
        self._steps.append(f"{pick.chain}: id {unpack_mark(number):#010x} is {target}")
        return target

    # --- what else happens to it --------------------------------------------------------

    def _masquerade(self, target: Target) -> bool:
        source = self._packet.source
        if self._client + pack_address(target.address) in self._later[HAIRPIN]:
            self._steps.append(f"postrouting: {source} was sent to itself, masquerade")
            return True
        if pack_address(self._packet.destination) in self._later[CLUSTER_IPS]:
            if _within(source, self._kernel.skeleton.pod_networks):
                return False
            self._steps.append(f"postrouting: {source} is outside the pod networks, masquerade")
            return True
        chain = chain_of(self._later[EXTERNAL].get(self._frontend))
        if chain == MASQUERADE_ALL:
            self._steps.append("postrouting: the service's traffic policy is Cluster, masquerade")
            return True
        if chain and source in self._kernel.local:
            self._steps.append(f"postrouting: {source} is this host, masquerade")
            return True
        return False

    def _untranslated(self) -> Verdict:
        packet, destination = self._packet, pack_address(self._packet.destination)
        if self._frontend in self._later[REFUSED]:
            self._steps.append(f"{REFUSED}: {packet.frontend} has no endpoint, refuse")
        elif packet.destination in self._kernel.local:
            return self._end("pass")
        elif destination in self._later[CLUSTER_IPS]:
            self._steps.append(f"{CLUSTER_IPS}: {packet.destination} is a service's, refuse")
        elif _within(packet.destination, self._kernel.skeleton.service_ranges):
            self._steps.append(f"service_ranges: {packet.destination} belongs to no service, drop")
            return self._end("drop")
        else:
            return self._end("pass")
        return self._end("reset" if packet.protocol == "TCP" else "unreachable")

    def _end(self, action: str) -> Verdict:
        return Verdict(action, steps=tuple(self._steps))


@lru_cache(maxsize=1024)
def _networks(networks: tuple[str, ...]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(network) for network in networks)


def _within(address: str, networks: tuple[str, ...]) -> bool:
    return any(ipaddress.ip_address(address) in network for network in _networks(networks))


def consistent(tables: Tables) -> list[str]:
    """What is wrong with the tables by themselves: a count without its slots, a chain that is missing."""
    problems = []
    for frontend in tables[SERVICES]:
        inside, outside = tables.picks(frontend)
        if outside is not None and outside.outside and inside is None:
            problems.append(f"{frontend.hex()}: nobody for clients inside")
        for pick, base in ((inside, 0), (outside, OUTSIDE_SLOTS)):
            if pick is None or (base and not pick.outside):
                continue
            if pick.chain not in tables.chains:
                problems.append(f"{frontend.hex()}: no chain {pick.chain}")
            name = PICKS if pick.affinity else ENDPOINTS
            for slot in range(pick.slots):
                if frontend + pack_mark(base + slot) not in tables[name]:
                    problems.append(f"{frontend.hex()}: no slot {slot} in {name}")
        if frontend not in tables[EXTERNAL] and frontend[:-8] not in tables[CLUSTER_IPS]:
            problems.append(f"{frontend.hex()}: address is not in {CLUSTER_IPS}")
    return problems
