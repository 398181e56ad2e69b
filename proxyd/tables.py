"""What proxyd keeps in the kernel, as values: frontends, targets, maps, transactions.

Owns: the maps' names, keys and byte formats, the content of a table (`Tables`)
and the one kind of change (`Transaction`), which prints as an nft script. There
is one table a family, `ip podlane` and `ip6 podlane`, of the same shape.
Invariants: everything that may change while proxyd runs is an element of a map
or a pick chain; the rules are constant (ruleset.py). Keys and values are the
kernel's own bytes, so that writing, listing and comparing tens of thousands of
elements costs no translation; people see them through `MapSpec.show`. A
`Tables` changes only by `apply`, whose refusals are the kernel's: so the cache
of what was applied, the fake kernel and the kernel cannot come to mean
different things.
Source: linux/net/netfilter/nf_tables_api.c, nft_set_hash.c (EEXIST for a key
with other data, ENOENT for a missing one, ENFILE beyond `size`, EBUSY for a
chain that is still a verdict).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

from podlane.api.types import IPFamily
from podlane.errors import PodlaneError
from proxyd.chains import Pick, pick_of, rules_of

TABLE = "podlane"

Key = bytes
Value = bytes | str | None
"""What the map's MapSpec says: packed data, a verdict in nft's words, or None for a set."""


@dataclass(frozen=True, slots=True)
class Family:
    """An address family as nftables and the socket library name it; `width`: bytes of an address."""

    name: str
    af: int
    width: int
    nfproto: int
    title: IPFamily

    @property
    def address_type(self) -> str:
        return f"{self.title.lower()}_addr"

    def __str__(self) -> str:
        return self.title


IPV4 = Family("ip", AF_INET, 4, 2, "IPv4")
IPV6 = Family("ip6", AF_INET6, 16, 10, "IPv6")
FAMILIES = (IPV4, IPV6)


class Frontend(NamedTuple):
    """Where clients connect to. `protocol` is "TCP", "UDP" or "SCTP"."""

    address: str
    protocol: str
    port: int

    def __str__(self) -> str:
        return f"{bracketed(self.address)}:{self.port}/{self.protocol.lower()}"


class Target(NamedTuple):
    """Where a connection is sent to: a pod's address and port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"{bracketed(self.address)}:{self.port}"


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


class Refused(PodlaneError):
    """The kernel refused a transaction; nothing of it was done.

    `errno` as the kernel gave it; `element` is the map and key at fault where that is known.
    """

    def __init__(self, what: str, number: int, element: tuple[str, Key] | None = None, text: str = "") -> None:
        self.errno = number
        self.element = element
        cause = os.strerror(number).lower() + (f" ({text})" if text else "")
        super().__init__(f"{what}: {cause}")


# --- byte formats: every field of a concatenation takes a multiple of four bytes -----

PROTOCOL_NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOL_NUMBERS.items()}
PROTOCOL_BYTES = {name: bytes((number, 0, 0, 0)) for name, number in PROTOCOL_NUMBERS.items()}
_MARK = struct.Struct("=I")


def pack_address(address: str) -> bytes:
    """Raises ValueError for what is no address."""
    try:
        return inet_pton(AF_INET6 if ":" in address else AF_INET, address)
    except OSError:
        raise ValueError(f'expected an IP address, got "{address}"') from None


def show_address(packed: bytes) -> str:
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


@lru_cache(maxsize=4096)
def pack_port(port: int) -> bytes:
    return port.to_bytes(2) + b"\0\0"


def pack_frontend(frontend: Frontend) -> Key:
    return pack_address(frontend[0]) + PROTOCOL_BYTES[frontend[1]] + pack_port(frontend[2])


def unpack_frontend(key: Key) -> Frontend:
    address, number = key[:-8], key[-8]
    # a number we do not know can only come from someone else's hand
    return Frontend(show_address(address), _PROTOCOL_NAMES.get(number, str(number)), int.from_bytes(key[-4:-2]))


def pack_target(target: Target) -> bytes:
    return pack_address(target[0]) + pack_port(target[1])


def unpack_target(value: bytes) -> Target:
    return Target(show_address(value[:-4]), int.from_bytes(value[-4:-2]))


pack_mark = _MARK.pack
"""A number in host byte order: a slot or an id, as numgen and jhash leave it in a register."""


def unpack_mark(data: bytes) -> int:
    return int(_MARK.unpack(data)[0])


def family_of(frontend_key: Key) -> Family:
    return IPV4 if len(frontend_key) == 12 else IPV6


_FIELDS: Mapping[str, tuple[str, Callable[[bytes], str]]] = {
    "proto": ("inet_proto", lambda data: _PROTOCOL_NAMES.get(data[0], str(data[0])).lower()),
    "port": ("inet_service", lambda data: str(int.from_bytes(data[:2]))),
    "mark": ("mark", lambda data: f"{unpack_mark(data):#010x}"),
}
_FRONTEND = ("address", "proto", "port")


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map (or set): its fields and what its values are.

    `kind`: "data" maps to `data`'s fields, "verdict" to a verdict, "set" to nothing,
    "ranges" is a set whose last field is a range: its key is the range's first key and then its last.
    """

    name: str
    kind: str
    key: tuple[str, ...]
    data: tuple[str, ...] = ()

    def key_size(self, family: Family) -> int:
        """Bytes of a key; of a range, of each end."""
        return sum(family.width if field == "address" else 4 for field in self.key)

    def declaration(self, family: Family) -> str:
        """The type, as nft declares it."""
        named = _types(family, self.key)
        return (
            f"{named} : {'verdict' if self.kind == 'verdict' else _types(family, self.data)}" if self.is_map else named
        )

    @property
    def is_map(self) -> bool:
        return self.kind in {"data", "verdict"}

    def show_key(self, family: Family, key: Key) -> str:
        if self.kind != "ranges":
            return _show(family, self.key, key)
        size = len(key) // 2
        return f"{_show(family, self.key, key[:size])}-{show_address(key[-family.width :])}"

    def show(self, family: Family, key: Key, value: Value) -> str:
        """The element as nft writes it."""
        shown = self.show_key(family, key)
        if isinstance(value, bytes):
            return f"{shown} : {_show(family, self.data, value)}"
        return shown if value is None else f"{shown} : {value}"


def _types(family: Family, fields: tuple[str, ...]) -> str:
    return " . ".join(family.address_type if field == "address" else _FIELDS[field][0] for field in fields)


def _show(family: Family, fields: tuple[str, ...], data: bytes) -> str:
    parts, at = [], 0
    for name in fields:
        size = family.width if name == "address" else 4
        piece = data[at : at + size]
        parts.append(show_address(piece) if name == "address" else _FIELDS[name][1](piece))
        at += size
    return " . ".join(parts)


SERVICES = "services"
INSIDE = "inside"
ADMITTED = "admitted"
ENDPOINTS = "endpoints"
PICKS = "picks"
ADDRESSES = "addresses"
EXTERNAL = "external"
REFUSED = "refused"
SOURCE_RANGES = "source_ranges"
CLUSTER_IPS = "cluster_ips"
HAIRPIN = "hairpin"

MAPS: Mapping[str, MapSpec] = {
    spec.name: spec
    for spec in (
        MapSpec(SERVICES, "verdict", _FRONTEND),
        MapSpec(INSIDE, "verdict", _FRONTEND),
        MapSpec(ADMITTED, "verdict", _FRONTEND),
        # The slot's type is `mark`: an integer in host order, which is what numgen leaves in its
        # register. A `typeof … numgen` key would load once, but nft 1.0.6 cannot add to it later.
        MapSpec(ENDPOINTS, "data", (*_FRONTEND, "mark"), ("address", "port")),
        MapSpec(PICKS, "data", (*_FRONTEND, "mark"), ("mark",)),
        MapSpec(ADDRESSES, "data", ("mark",), ("address", "port")),
        MapSpec(EXTERNAL, "verdict", _FRONTEND),
        MapSpec(REFUSED, "set", _FRONTEND),
        MapSpec(SOURCE_RANGES, "ranges", (*_FRONTEND, "address")),
        MapSpec(CLUSTER_IPS, "set", ("address",)),
        MapSpec(HAIRPIN, "set", ("address", "address")),
    )
}

AFFINITY = MapSpec("affinity", "data", (*_FRONTEND, "address"), ("mark",))
"""Which client goes to which id. Packets fill it, and time empties it; proxyd only reads it, for people."""

GOTO = "goto "
DROP = "drop"
MASQUERADE_ALL, MASQUERADE_OWN, RANGED = "masquerade-all", "masquerade-own", "ranged"


def chain_of(verdict: Value) -> str:
    """The chain a verdict goes to, or ""."""
    return verdict[len(GOTO) :] if isinstance(verdict, str) and verdict.startswith(GOTO) else ""


# --- changes -------------------------------------------------------------------------


@dataclass(slots=True)
class Transaction:
    """Changes the kernel makes all at once, or not at all.

    They are carried out in this order: chains made, elements deleted, elements
    added, chains dropped. So a key in both `delete` and `add` gets a new value.
    """

    family: Family
    chains: list[str] = field(default_factory=list)
    delete: dict[str, list[Key]] = field(default_factory=lambda: {name: [] for name in MAPS})
    add: dict[str, dict[Key, Value]] = field(default_factory=lambda: {name: {} for name in MAPS})
    drop_chains: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.chains or self.drop_chains or any(self.delete.values()) or any(self.add.values()))

    def __len__(self) -> int:
        """How many elements it touches, a replaced one counted twice."""
        return sum(map(len, self.delete.values())) + sum(map(len, self.add.values()))

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def put(self, name: str, key: Key, value: Value, *, replaces: bool) -> None:
        if replaces:
            self.delete[name].append(key)
        self.add[name][key] = value

    def lines(self) -> Iterator[str]:
        """What an operator would give to nft."""
        family = self.family
        where = f"{family.name} {TABLE}"
        for chain in self.chains:
            yield f"add chain {where} {chain}"
            for rule in rules_of(chain, family.name):
                yield f"add rule {where} {chain} {rule}"
        for name, keys in self.delete.items():
            yield from (f"delete element {where} {name} {{ {MAPS[name].show_key(family, key)} }}" for key in keys)
        for name, elements in self.add.items():
            show = MAPS[name].show
            yield from (f"add element {where} {name} {{ {show(family, *each)} }}" for each in elements.items())
        for chain in self.drop_chains:
            yield f"delete chain {where} {chain}"


@dataclass(slots=True)
class Tables:
    """The content of one family's table: pick chains and the elements of each map."""

    family: Family
    chains: set[str] = field(default_factory=set)
    maps: dict[str, dict[Key, Value]] = field(default_factory=lambda: {name: {} for name in MAPS})

    def __getitem__(self, name: str) -> dict[Key, Value]:
        return self.maps[name]

    def picks(self, frontend: Key) -> tuple[Pick | None, Pick | None]:
        """How connections to the frontend are spread: those from inside (pods, this host), those from outside.

        None: they are not. Where both are treated alike, both are the same.
        """
        verdict = self.maps[SERVICES].get(frontend)
        if verdict is not None and chain_of(verdict) == RANGED:
            verdict = self.maps[ADMITTED].get(frontend)
        outside = pick_of(chain_of(verdict))
        if outside is None or not outside.outside:
            return outside, outside
        return pick_of(chain_of(self.maps[INSIDE].get(frontend))), outside

    def apply(self, transaction: Transaction, *, size: int | None = None) -> None:
        """Carry it out, or raise Refused and be left as before. `size` limits each map's elements."""
        self._check(transaction, size)
        self.chains.update(transaction.chains)
        for name, keys in transaction.delete.items():
            elements = self.maps[name]
            for key in keys:
                del elements[key]
        for name, added in transaction.add.items():
            self.maps[name].update(added)
        self.chains.difference_update(transaction.drop_chains)

    def _check(self, transaction: Transaction, size: int | None) -> None:
        chains = self.chains.union(transaction.chains)
        for name, keys in transaction.delete.items():
            present = self.maps[name]
            seen: set[Key] = set()
            for key in keys:
                if key not in present or key in seen:
                    raise self._refused("delete", name, key, errno.ENOENT)
                seen.add(key)
            self._check_added(name, transaction.add[name], seen, chains)
            if (
                size is not None
                and len(present) - len(seen) + len(transaction.add[name].keys() - (present.keys() - seen)) > size
            ):
                raise Refused(f"add to {name}", errno.ENFILE)
        for chain in transaction.drop_chains:
            if chain not in chains:
                raise Refused(f"delete chain {chain}", errno.ENOENT)
            if any(chain_of(value) == chain for value in self._verdicts_after(transaction)):
                raise Refused(f"delete chain {chain}", errno.EBUSY)

    def _check_added(self, name: str, added: Mapping[Key, Value], deleted: set[Key], chains: Iterable[str]) -> None:
        present = self.maps[name]
        for key in added.keys() & present.keys():
            if key not in deleted and present[key] != added[key]:
                raise self._refused("add", name, key, errno.EEXIST)
        if MAPS[name].kind == "verdict":
            missing = {
                value for value in set(added.values()) if pick_of(chain_of(value)) and chain_of(value) not in chains
            }
            for key, value in added.items() if missing else ():
                if value in missing:
                    raise self._refused("add", name, key, errno.ENOENT)

    def _refused(self, verb: str, name: str, key: Key, number: int) -> Refused:
        return Refused(f"{verb} {name} {MAPS[name].show_key(self.family, key)}", number, (name, key))

    def _verdicts_after(self, transaction: Transaction) -> Iterator[Value]:
        for name, spec in MAPS.items():
            if spec.kind == "verdict":
                gone = set(transaction.delete[name])
                yield from (value for key, value in self.maps[name].items() if key not in gone)
                yield from transaction.add[name].values()
