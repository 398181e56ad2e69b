"""Slots: where a frontend's targets stand in a row, and when a place in it may be given up.

Owns: who gets which slot, and what of `endpoints`, `picks` and `addresses` goes
once no look-up can be on its way to it. Pure. See plan.py for why slots are
dense and outlive their use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from proxyd.chains import OUTSIDE_SLOTS
from proxyd.tables import ADDRESSES, ENDPOINTS, PICKS, Key, Tables, Transaction, pack_mark, unpack_mark

Slot = tuple[str, Key]
"""A slot's map, `endpoints` or `picks`, and its key."""

MARKS = [pack_mark(number) for number in range(1024)]


class Region(NamedTuple):
    """A run of slots: a frontend's in one map, from `base` on."""

    map: str
    frontend: Key
    base: int

    def key(self, number: int) -> Key:
        return self.frontend + pack_mark(self.base + number)

    def keys(self, count: int) -> list[Key]:
        if count > len(MARKS) or self.base:
            return [self.key(number) for number in range(count)]
        frontend = self.frontend
        return [frontend + mark for mark in MARKS[:count]]

    def consecutive(self, present: Collection[Key]) -> Iterator[Key]:
        """The keys that are there, from the first on, up to a hole."""
        number = 0
        while (key := self.key(number)) in present:
            yield key
            number += 1


def assign_slots(old: Sequence[bytes | None], wanted: Collection[bytes]) -> list[bytes]:
    """Put the wanted targets into slots 0 to k-1, moving as few as possible.

    `old`: what slots 0 to k-1 hold now, None for an empty one.
    """
    free = set(wanted)
    slots: list[bytes | None] = []
    for target in old:
        if target in free:
            free.remove(target)
            slots.append(target)
        else:
            slots.append(None)
    # any order of the others is right; a fixed one makes equal states equal plans
    incoming = iter(sorted(free))
    return [target or next(incoming) for target in slots]


def plan_retire(tables: Tables, retired: Iterable[Slot]) -> Transaction:
    """Delete those of the retired slots that are still there and still unused."""
    transaction = Transaction(tables.family)
    for name, key in dict.fromkeys(retired):
        if key in tables[name] and not in_use(tables, (name, key)):
            transaction.delete[name].append(key)
    transaction.delete[ADDRESSES] += _ids_only_in(tables, set(transaction.delete[PICKS]))
    return transaction


def _ids_only_in(tables: Tables, slots: Collection[Key]) -> list[Key]:
    """The ids that nobody has any more once these slots of `picks` are gone. No two frontends share one."""
    picks, addresses = tables[PICKS], tables[ADDRESSES]
    regions = {Region(PICKS, key[:-4], unpack_mark(key[-4:]) & OUTSIDE_SLOTS) for key in slots}
    kept = {picks[key] for region in regions for key in region.consecutive(picks) if key not in slots}
    return sorted({number for key in slots if isinstance(number := picks[key], bytes)} & addresses.keys() - kept)


def in_use(tables: Tables, slot: Slot) -> bool:
    """Whether a connection may be sent to the slot, as the tables are."""
    name, key = slot
    inside, outside = tables.picks(key[:-4])
    number = unpack_mark(key[-4:])
    pick = outside if number >= OUTSIDE_SLOTS else inside
    if pick is None or pick.outside != (number >= OUTSIDE_SLOTS):
        return False
    return number & ~OUTSIDE_SLOTS < pick.slots and name == (PICKS if pick.affinity else ENDPOINTS)
