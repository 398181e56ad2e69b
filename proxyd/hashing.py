"""Tables that give a client the same pod from every node, without state.

Owns: the content of a hashed frontend's slots. Pure. The kernel hashes the
client's address to a slot; who has the slot follows from the set of targets
alone, so every node, at any time, fills the same table. Two ways to fill it:

- rendezvous (`affinity-hash`): each slot goes to the target with the highest
  weight for it. When a target goes, exactly its slots move, 1/k of the clients.
- Maglev: the targets take turns, each along a permutation of its own. Shares
  are equal to within one slot; when a target goes, 2 to 4 % of the other clients move, too.

The size of a table depends on the number of targets only in wide steps: at a
step (8, 512) the slots are dealt anew and most clients move, once.
Source: Thaler and Ravishankar, "Using name-based mappings to increase hit
rates" (1998); Eisenbud and others, "Maglev" (NSDI 2016), section 3.4;
linux/include/linux/jhash.h (Jenkins' lookup3), reciprocal_scale in kernel.h.
"""

from __future__ import annotations

import hashlib
from array import array
from functools import lru_cache

_SIZES = ((8, 1021), (512, 8191))
_LARGEST = 65521
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = 0xBF58476D1CE4E5B9
_WORD = (1 << 64) - 1
_NAME = (1 << 28) - 1
"""28 bits: of 500 targets two have the same name once in two thousand, and then one gets the other's slots."""


def table_size(targets: int) -> int:
    """Slots of a table for so many targets: a prime, at least 16 slots a target up to 4,096 targets."""
    return next((size for most, size in _SIZES if targets <= most), _LARGEST)


@lru_cache(maxsize=64)  # a service's frontends mostly have the same targets
def rendezvous(targets: tuple[bytes, ...], slots: int) -> tuple[bytes, ...]:
    """Who has each slot: the target with the highest weight there."""
    owners = {_digest(target) & _NAME: target for target in targets}
    if len(targets) == 1 or not targets:
        return targets * slots
    # the weights' lowest bits say whose they are, so the highest names its owner
    return tuple(owners[highest & _NAME] for highest in map(max, *(_weights(target, slots) for target in targets)))


@lru_cache(maxsize=256)  # of 64 KiB, mostly: when a target comes or goes, those of the others are known
def _weights(target: bytes, slots: int) -> array[int]:
    """A target's weight for each slot, with its name in the lowest bits."""
    seed = _digest(target)
    name = seed & _NAME
    weights = array("Q", bytes(8 * slots))
    for slot in range(slots):
        weight = (seed ^ (slot + 1) * _GOLDEN) * _MIX & _WORD
        weights[slot] = (weight ^ weight >> 31) * _GOLDEN & _WORD & ~_NAME | name
    return weights


@lru_cache(maxsize=64)
def maglev(targets: tuple[bytes, ...], slots: int) -> tuple[bytes, ...]:
    """Who has each slot, shares equal to within one. `slots` must be prime and no less than the targets."""
    digests = [_digest(target) for target in targets]
    places = [digest % slots for digest in digests]
    skips = [(digest >> 32) % (slots - 1) + 1 for digest in digests]
    table: list[bytes | None] = [None] * slots
    filled = 0
    while True:
        for number, target in enumerate(targets):
            place = places[number]
            while table[place] is not None:
                place = (place + skips[number]) % slots
            table[place] = target
            places[number] = (place + skips[number]) % slots
            filled += 1
            if filled == slots:
                return tuple(owner for owner in table if owner is not None)


def _digest(target: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(target, digest_size=8).digest())


def slot_of(client: bytes, slots: int, seed: int) -> int:
    """The slot the kernel picks for a client's packed address, as nft's `jhash … mod slots seed …` does."""
    return jhash(client, seed) * slots >> 32


def jhash(data: bytes, seed: int) -> int:
    """Hash as the kernel's function of that name on a little-endian machine; `data` has any length."""
    size = len(data)
    a = b = c = (0xDEADBEEF + size + seed) & 0xFFFFFFFF
    while size > 12:
        a, b, c = (_add(value, data, at) for value, at in ((a, 0), (b, 4), (c, 8)))
        a, b, c = _mixed(a, b, c)
        data = data[12:]
        size -= 12
    if not size:
        return c
    data = data.ljust(12, b"\0")
    a, b, c = (_add(value, data, at) for value, at in ((a, 0), (b, 4), (c, 8)))
    return _final(a, b, c)


def _add(value: int, data: bytes, at: int) -> int:
    return value + int.from_bytes(data[at : at + 4], "little") & 0xFFFFFFFF


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & 0xFFFFFFFF


def _mixed(a: int, b: int, c: int) -> tuple[int, int, int]:
    for bits in (4, 6, 8, 16, 19, 4):
        a = (a - c & 0xFFFFFFFF) ^ _rotate(c, bits)
        c = c + b & 0xFFFFFFFF
        a, b, c = b, c, a
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _rotate(b, bits) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b
