"""From what is in the kernel and what is wanted to the transactions between them.

Owns: the order in which things change. Pure: no I/O, no clock, no randomness.

A new connection makes two look-ups: `services` says among how many targets to
pick, `endpoints` what is in the picked slot. A commit may fall between them, so:

1. Slots are dense, 0 to k-1; who stays keeps its slot, and a hole is filled by
   the last slot. The first transaction (`now`) switches count and slots.
2. A slot beyond the new count is left for look-ups already on their way and
   deleted by a transaction (`retire`) that must begin later. Measured without
   this: 6,451 of 6.8 million new flows missed.

Growing, and another target in a slot that stays in use, are safe in one.

Invariant: whatever subset of these transactions was carried out, in order,
planning again from the kernel's state leads to the same end, and no state on
the way has a count whose slots are not all there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from proxyd.desired import Index, Touched
from proxyd.tables import (
    CLUSTER_IPS,
    ENDPOINTS,
    HAIRPIN,
    SERVICES,
    Frontend,
    Key,
    Tables,
    Target,
    Transaction,
    pick_chain,
    picked_from,
)


@dataclass(slots=True)
class Plan:
    """What to do at once, and what is left for a later transaction.

    `retire`: slots no count covers any more. `clean`: frontends whose conntrack
    entries must be looked at once `now` is committed, with the targets that serve.
    """

    now: Transaction = field(default_factory=Transaction)
    retire: list[Key] = field(default_factory=list)
    clean: dict[Frontend, frozenset[Target]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.now or self.retire)

    def __str__(self) -> str:
        lines = list(self.now.lines())
        if self.retire:
            later = Transaction()
            later.delete[ENDPOINTS] = self.retire
            lines += ["# later", *later.lines()]
        if self.clean:
            lines += ["# conntrack", *map(_clean_line, sorted(self.clean))]
        return "\n".join(lines)


def _clean_line(frontend: Frontend) -> str:
    return f"conntrack -D -p {frontend.protocol.lower()} --orig-dst {frontend.address} --dport {frontend.port} # stale"


def assign_slots(old: Sequence[Target | None], wanted: Collection[Target]) -> list[Target]:
    """Put the wanted targets into slots 0 to k-1, moving as few as possible.

    `old`: what slots 0 to k-1 hold now, None for an empty one.
    """
    free = set(wanted)
    slots: list[Target | None] = []
    for target in old:
        if target in free:
            free.remove(target)
            slots.append(target)
        else:
            slots.append(None)
    # any order of the others is right; a fixed one makes equal states equal plans
    incoming = iter(sorted(free))
    return [target or next(incoming) for target in slots]


def plan_all(tables: Tables, index: Index) -> Plan:
    """Compare everything: at the start, after an error, at every resync."""
    plan = Plan()
    strays: dict[Frontend, list[int]] = {}
    for address, protocol, port, slot in tables[ENDPOINTS]:
        strays.setdefault(Frontend(address, protocol, port), []).append(slot)
    for frontend in sorted({*tables[SERVICES], *strays, *index.frontends}):
        _plan_frontend(plan, tables, index, Frontend(*frontend), strays.get(Frontend(*frontend), ()))
    _plan_set(plan, tables, CLUSTER_IPS, index.addresses, {k[0] for k in tables[CLUSTER_IPS]} | index.addresses.keys())
    for pair in sorted(tables[HAIRPIN]):
        if pair[0] != pair[1]:
            plan.now.delete[HAIRPIN].append(pair)
    own = {pair[0] for pair in tables[HAIRPIN] if pair[0] == pair[1]}
    _plan_set(plan, tables, HAIRPIN, index.hairpin, own | index.hairpin.keys())
    return plan


def plan_changes(tables: Tables, index: Index, touched: Touched) -> Plan:
    """Compare what an update touched. `tables` must be what the kernel has."""
    plan = Plan()
    for frontend in sorted(touched.frontends):
        _plan_frontend(plan, tables, index, frontend, ())
    _plan_set(plan, tables, CLUSTER_IPS, index.addresses, touched.addresses)
    _plan_set(plan, tables, HAIRPIN, index.hairpin, touched.hairpin)
    return plan


def plan_retire(tables: Tables, retired: Iterable[Key]) -> Transaction:
    """Delete those of the retired slots that are still there and still unused."""
    transaction = Transaction()
    for key in dict.fromkeys(retired):
        address, protocol, port, slot = key
        if key in tables[ENDPOINTS] and slot >= tables.count(Frontend(address, protocol, port)):
            transaction.delete[ENDPOINTS].append(key)
    return transaction


def unused_chains(tables: Tables) -> list[str]:
    """Pick chains no service goes to. Deleting them is safe: nothing can be on its way there but through a map."""
    used = set(tables[SERVICES].values())
    return sorted((chain for chain in tables.chains if chain not in used), key=picked_from)


def _plan_frontend(plan: Plan, tables: Tables, index: Index, frontend: Frontend, known: Iterable[int]) -> None:
    """Plan one frontend. `known`: slots the kernel has, where some may come after a hole (not by our hand)."""
    services, endpoints = tables[SERVICES], tables[ENDPOINTS]
    wanted = index.targets(frontend)
    old_chain = services.get(frontend)
    count = len(wanted)
    length = 0
    while (*frontend, length) in endpoints:
        length += 1
    changed = False
    old = [endpoints.get((*frontend, slot)) for slot in range(count)]
    for slot, target in enumerate(assign_slots(old, wanted)):
        key = (*frontend, slot)
        if endpoints.get(key) != target:
            plan.now.put(ENDPOINTS, key, target, replaces=key in endpoints)
            changed = True
    chain = pick_chain(count) if count else None
    if chain is not None and chain not in tables.chains and chain not in plan.now.chains:
        plan.now.chains.append(chain)
    if chain != old_chain:
        changed = True
        if chain is None:
            plan.now.delete[SERVICES].append(frontend)
        else:
            plan.now.put(SERVICES, frontend, chain, replaces=old_chain is not None)
    beyond = {*range(count, length), *(slot for slot in known if slot >= count)}
    plan.retire += [(*frontend, slot) for slot in sorted(beyond)]
    # A flow to a target that went would stay with it: UDP has no end of connection, and a TCP client
    # that has no answer yet tries the same again. A flow of either protocol that began when nothing
    # was served was left untranslated, and conntrack remembers that.
    lost = any(endpoints[(*frontend, slot)] not in wanted for slot in range(length))
    if changed and (lost or old_chain is None):
        plan.clean[frontend] = wanted


def _plan_set(plan: Plan, tables: Tables, name: str, wanted: Collection[str], addresses: Iterable[str]) -> None:
    width = 2 if name == HAIRPIN else 1  # a hairpin is a connection from a pod to itself
    for address in sorted(addresses):
        key = (address,) * width
        if address in wanted and key not in tables[name]:
            plan.now.put(name, key, None, replaces=False)
        elif address not in wanted and key in tables[name]:
            plan.now.delete[name].append(key)
