"""The chains that are built by messages of our own: their names, their rules, their expressions.

Owns: the pick chains, the one kind that comes and goes, and `external-source`,
whose rule nft 1.0.6 can list but not read. A pick chain depends on numbers
only (how many endpoints, which timeout), never on a service, so services share
them; its name says all of it, so that what the kernel has can be read back.
Invariants: every chain ends in a drop (conntrack would remember a miss as "no
translation"); no rule feeds a map's value into another map's key, which nft
1.0.6 cannot list (it aborts, and with it everybody's `nft list ruleset`).

The affinity chains need a map's value as a key: which client has which id, and
which address has the id. The value passes through `meta priority`, the packet's
queueing priority, which is 0 on arrival and set by the kernel when the packet is
forwarded, and which they set to 0 again: only the first packet of a connection
to a service with affinity is touched, and no mark of anybody's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from podlane.runtime import nftables as nft
from proxyd import expressions as x

EXTERNAL_SOURCE = "external-source"
"""Looks up whether a connection from outside keeps its client's address."""

OUTSIDE_SLOTS = 0x80000000
"""Slots from here on are for clients outside, where those are sent to local endpoints only."""

HASH_SEED = 0x506F646C
"""The same on every node: one client goes to one pod from wherever it comes."""

_NAME = re.compile(r"(outside-)?(lb|hash)(\d+)(?:-aff(\d+))?")


class Pick(NamedTuple):
    """One of `slots` slots: at random, or (`hashed`) by the client's address.

    `affinity`: seconds an idle client stays with its endpoint, 0 for none.
    `outside`: clients inside are sent elsewhere, and the slots are those for clients outside.
    """

    slots: int
    hashed: bool = False
    affinity: int = 0
    outside: bool = False

    @property
    def chain(self) -> str:
        return _name_of(self)


@lru_cache(maxsize=4096)
def _name_of(pick: Pick) -> str:
    name = f"{'hash' if pick.hashed else 'lb'}{pick.slots}"
    return f"{'outside-' if pick.outside else ''}{name}{f'-aff{pick.affinity}' if pick.affinity else ''}"


@lru_cache(maxsize=4096)
def pick_of(chain: str) -> Pick | None:
    """What the chain of that name does; None when it is no pick chain."""
    found = _NAME.fullmatch(chain)
    if found is None:
        return None
    pick = Pick(int(found[3]), found[2] == "hash", int(found[4] or 0), bool(found[1]))
    return pick if pick.chain == chain and (pick.slots or pick.outside) else None


# --- as nft writes them ----------------------------------------------------------


def rules_of(chain: str, family: str) -> list[str]:
    """The chain's rules in the table of family "ip" or "ip6", as nft lists them."""
    if chain == EXTERNAL_SOURCE:
        return [f"ct original {family} daddr . meta l4proto . ct original proto-dst vmap @external"]
    pick = _pick(chain)
    frontend = f"{family} daddr . meta l4proto . th dport"
    client = f"{frontend} . {family} saddr"
    rules = []
    if pick.outside:
        rules += [
            f"{family} saddr @pod_networks {frontend} vmap @inside",
            f"fib saddr type local {frontend} vmap @inside",
        ]
    if not pick.slots:
        return [*rules, "drop"]
    offset = f" offset {OUTSIDE_SLOTS}" if pick.outside else ""
    number = (
        f"jhash {family} saddr mod {pick.slots} seed {HASH_SEED:#x}{offset}"
        if pick.hashed
        else f"numgen random mod {pick.slots}{offset}"
    )
    slot = f"{frontend} . {number}"
    if not pick.affinity:
        return [*rules, f"dnat {family} to {slot} map @endpoints", "drop"]
    end = f"meta priority set none dnat {family} to meta priority map @addresses"
    kept = f"{client} timeout {pick.affinity}s : meta priority"
    return [
        *rules,
        f"meta priority set {client} map @affinity update @affinity {{ {kept} }} {end}",
        f"meta priority set {slot} map @picks delete @affinity {{ {client} : meta priority }} "
        f"add @affinity {{ {kept} }} {end}",
        f"meta priority set {slot} map @picks {end}",
        "drop",
    ]


# --- as the kernel takes them ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Registers:
    """Where a family's values are: address . port, then frontend . (slot or client), then the id.

    32-bit registers are numbered from 8; an IPv6 address takes four.
    """

    nfproto: int
    width: int

    @property
    def words(self) -> int:
        return self.width // 4

    @property
    def target(self) -> int:
        return 8

    @property
    def frontend(self) -> int:
        return self.target + self.words + 1

    @property
    def last(self) -> int:
        """The slot, or the client's address."""
        return self.frontend + self.words + 2

    @property
    def id(self) -> int:
        return self.last + self.words

    def source(self, register: int) -> bytes:
        return x.payload(x.NETWORK_HEADER, 8 if self.width == 16 else 12, self.width, register)

    def load_frontend(self) -> list[bytes]:
        destination = 24 if self.width == 16 else 16
        return [
            x.payload(x.NETWORK_HEADER, destination, self.width, self.frontend),
            x.meta(x.META_L4PROTO, self.frontend + self.words),
            x.payload(x.TRANSPORT_HEADER, 2, 2, self.frontend + self.words + 1),
        ]


_REGISTERS = {"ip": _Registers(nft.NFPROTO_IPV4, 4), "ip6": _Registers(nft.NFPROTO_IPV6, 16)}


@lru_cache(maxsize=1024)
def expressions_of(chain: str, family: str) -> tuple[bytes, ...]:
    """The packed expressions of each of the chain's rules."""
    r = _REGISTERS[family]
    if chain == EXTERNAL_SOURCE:
        return (b"".join(_external_source(r)),)
    pick = _pick(chain)
    rules: list[list[bytes]] = []
    if pick.outside:
        inside = [*r.load_frontend(), x.lookup("inside", r.frontend, x.VERDICT)]
        rules += [
            [r.source(r.last), x.lookup("pod_networks", r.last), *inside],
            [*x.from_this_host(r.last), *inside],
        ]
    if pick.slots:
        rules += _kept(pick, r) if pick.affinity else [_picked(pick, r)]
    return tuple(b"".join(rule) for rule in [*rules, [x.drop()]])


def _picked(pick: Pick, r: _Registers) -> list[bytes]:
    return [*_slot(pick, r), x.lookup("endpoints", r.frontend, r.target), _dnat(r)]


def _kept(pick: Pick, r: _Registers) -> list[list[bytes]]:
    through = [x.set_meta(x.META_PRIORITY, r.id), x.meta(x.META_PRIORITY, r.id), x.lookup("addresses", r.id, r.target)]
    known = [*r.load_frontend(), r.source(r.last), x.lookup("affinity", r.frontend, r.id), *through]
    picked = [*_slot(pick, r), x.lookup("picks", r.frontend, r.id), *through]
    # `update` leaves an element's data as it is, so a stale one is deleted first
    keep = [
        r.source(r.last),
        x.dynset("affinity", x.DYNSET_DELETE, r.frontend, r.id),
        x.dynset("affinity", x.DYNSET_ADD, r.frontend, r.id, pick.affinity),
    ]
    end = [x.zero(r.id), x.set_meta(x.META_PRIORITY, r.id), _dnat(r)]
    return [
        [*known, x.dynset("affinity", x.DYNSET_UPDATE, r.frontend, r.id, pick.affinity), *end],
        [*picked, *keep, *end],
        [*picked, *end],  # the affinity map is full
    ]


def _slot(pick: Pick, r: _Registers) -> list[bytes]:
    offset = OUTSIDE_SLOTS if pick.outside else 0
    if pick.hashed:
        hashed = x.jhash(r.last, r.width, slots=pick.slots, seed=HASH_SEED, offset=offset)
        return [*r.load_frontend(), r.source(r.last), hashed]
    return [*r.load_frontend(), x.numgen(pick.slots, offset, r.last)]


def _dnat(r: _Registers) -> bytes:
    return x.dnat(r.nfproto, r.target, r.target + r.words)


def _external_source(r: _Registers) -> list[bytes]:
    first = r.target
    return [
        x.ct_original(x.CT_DESTINATION[r.width], first),
        x.meta(x.META_L4PROTO, first + r.words),
        x.ct_original(x.CT_PROTO_DST, first + r.words + 1),
        x.lookup("external", first, x.VERDICT),
    ]


def _pick(chain: str) -> Pick:
    pick = pick_of(chain)
    if pick is None:
        raise ValueError(f"build chain {chain}: no chain of ours has such a name")
    return pick
