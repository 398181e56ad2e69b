"""What proxyd keeps in the kernel, as values: frontends, targets, maps, transactions.

Owns: the maps' names, keys and byte formats, the content of the table (`Tables`)
and the one kind of change (`Transaction`), which prints as an nft script.
Invariant: everything that may change while proxyd runs is an element of a map or
a pick chain; the rules are constant (ruleset.py). A `Tables` changes only by
`apply`, whose refusals are the kernel's: so the cache of what was applied, the
fake kernel and the kernel cannot come to mean different things.
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
from socket import AF_INET, inet_ntop, inet_pton
from typing import Any, NamedTuple

from podlane.errors import PodlaneError

FAMILY = "ip"
TABLE = "podlane"

Key = tuple[Any, ...]
Value = Any  # what the map's MapSpec says: a Target, a chain's name, or None for a set


class Frontend(NamedTuple):
    """Where clients connect to. `protocol` is "TCP" or "UDP"."""

    address: str
    protocol: str
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}/{self.protocol.lower()}"


class Target(NamedTuple):
    """Where a connection is sent to: a pod's address and port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


class Refused(PodlaneError):
    """The kernel refused a transaction; nothing of it was done.

    `errno` as the kernel gave it; `element` is the map and key at fault where that is known.
    """

    def __init__(self, what: str, number: int, element: tuple[str, Key] | None = None, text: str = "") -> None:
        self.errno = number
        self.element = element
        cause = os.strerror(number).lower() + (f" ({text})" if text else "")
        super().__init__(f"{what}: {cause}")


def pick_chain(count: int) -> str:
    """The name of the chain that picks one of `count` targets."""
    return f"lb{count}"


def picked_from(chain: str) -> int:
    """The number of targets the chain picks from; 0 when it is not a pick chain."""
    digits = chain.removeprefix("lb")
    return int(digits) if chain.startswith("lb") and digits.isascii() and digits.isdigit() else 0


# --- byte formats: every field of a concatenation takes four bytes -------------------

_PROTOCOL_NUMBER = {"TCP": 6, "UDP": 17}
_PROTOCOL_NAME = {6: "TCP", 17: "UDP"}
_FRONTEND = struct.Struct("=4sB3x2s2x")
_SLOT = struct.Struct("=4sB3x2s2xI")
_TARGET = struct.Struct("=4s2s2x")


@lru_cache(maxsize=65536)
def _pack_address(address: str) -> bytes:
    return inet_pton(AF_INET, address)


@lru_cache(maxsize=65536)
def _show_packed(packed: bytes) -> str:
    return inet_ntop(AF_INET, packed)


def _pack_frontend(key: Key) -> bytes:
    address, protocol, port = key
    return _FRONTEND.pack(_pack_address(address), _protocol_number(protocol), port.to_bytes(2))


def _unpack_frontend(data: bytes) -> Key:
    address, protocol, port = _FRONTEND.unpack(data)
    return Frontend(_show_packed(address), _protocol_name(protocol), int.from_bytes(port))


def _pack_slot(key: Key) -> bytes:
    address, protocol, port, slot = key
    return _SLOT.pack(_pack_address(address), _protocol_number(protocol), port.to_bytes(2), slot)


def _unpack_slot(data: bytes) -> Key:
    address, protocol, port, slot = _SLOT.unpack(data)
    return _show_packed(address), _protocol_name(protocol), int.from_bytes(port), slot


def _pack_target(value: Target) -> bytes:
    return _TARGET.pack(_pack_address(value[0]), value[1].to_bytes(2))


def _unpack_target(data: bytes) -> Target:
    address, port = _TARGET.unpack(data)
    return Target(_show_packed(address), int.from_bytes(port))


def _protocol_name(number: int) -> str:
    # a number we do not know can only come from someone else's hand; it must still have a key, to be deleted
    return _PROTOCOL_NAME.get(number) or str(number)


def _protocol_number(name: str) -> int:
    return _PROTOCOL_NUMBER.get(name) or int(name)


def _pack_addresses(key: Key) -> bytes:
    return b"".join(map(_pack_address, key))


def _unpack_addresses(data: bytes) -> Key:
    return tuple(_show_packed(data[at : at + 4]) for at in range(0, len(data), 4))


def _show_frontend(key: Key) -> str:
    return f"{key[0]} . {key[1].lower()} . {key[2]}"


def _show_slot(key: Key) -> str:
    return f"{_show_frontend(key)} . {key[3]:#010x}"


def _show_addresses(key: Key) -> str:
    return " . ".join(key)


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map (or set): how it is declared and how its keys and values are packed and shown.

    `kind`: "data" maps to a Target, "verdict" to the chain to go to, "set" to nothing.
    """

    name: str
    kind: str
    type: str
    pack_key: Callable[[Key], bytes]
    unpack_key: Callable[[bytes], Key]
    show_key: Callable[[Key], str]

    def show(self, key: Key, value: Value) -> str:
        """The element as nft writes it."""
        if self.kind == "set":
            return self.show_key(key)
        return f"{self.show_key(key)} : {f'goto {value}' if self.kind == 'verdict' else f'{value[0]} . {value[1]}'}"


pack_target = _pack_target
unpack_target = _unpack_target

SERVICES = "services"
ENDPOINTS = "endpoints"
CLUSTER_IPS = "cluster_ips"
HAIRPIN = "hairpin"

MAPS: Mapping[str, MapSpec] = {
    spec.name: spec
    for spec in (
        MapSpec(
            SERVICES,
            "verdict",
            "ipv4_addr . inet_proto . inet_service : verdict",
            _pack_frontend,
            _unpack_frontend,
            _show_frontend,
        ),
        # The slot's type is `mark`: an integer in host order, which is what numgen leaves in its
        # register. A `typeof … numgen` key would load once, but nft 1.0.6 cannot add to it later.
        MapSpec(
            ENDPOINTS,
            "data",
            "ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service",
            _pack_slot,
            _unpack_slot,
            _show_slot,
        ),
        MapSpec(CLUSTER_IPS, "set", "ipv4_addr", _pack_addresses, _unpack_addresses, _show_addresses),
        MapSpec(HAIRPIN, "set", "ipv4_addr . ipv4_addr", _pack_addresses, _unpack_addresses, _show_addresses),
    )
}


# --- changes -------------------------------------------------------------------------


@dataclass(slots=True)
class Transaction:
    """Changes the kernel makes all at once, or not at all.

    They are carried out in this order: chains made, elements deleted, elements
    added, chains dropped. So a key in both `delete` and `add` gets a new value.
    """

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
        where = f"{FAMILY} {TABLE}"
        for chain in self.chains:
            yield f"add chain {where} {chain}"
            for rule in pick_rules(chain):
                yield f"add rule {where} {chain} {rule}"
        for name, keys in self.delete.items():
            yield from (f"delete element {where} {name} {{ {MAPS[name].show_key(key)} }}" for key in keys)
        for name, elements in self.add.items():
            yield from (
                f"add element {where} {name} {{ {MAPS[name].show(key, value)} }}" for key, value in elements.items()
            )
        for chain in self.drop_chains:
            yield f"delete chain {where} {chain}"


def pick_rules(chain: str) -> tuple[str, str]:
    """The two rules of a pick chain: pick, and (a slot was missing) drop.

    Without the drop a miss would be remembered by conntrack as "no translation".
    """
    key = f"ip daddr . meta l4proto . th dport . numgen random mod {picked_from(chain)}"
    return f"dnat ip to {key} map @{ENDPOINTS}", "drop"


@dataclass(slots=True)
class Tables:
    """The content of the table: pick chains and the elements of each map."""

    chains: set[str] = field(default_factory=set)
    maps: dict[str, dict[Key, Value]] = field(default_factory=lambda: {name: {} for name in MAPS})

    def __getitem__(self, name: str) -> dict[Key, Value]:
        return self.maps[name]

    def count(self, frontend: Frontend) -> int:
        """How many slots new connections to the frontend are spread over."""
        return picked_from(self.maps[SERVICES].get(frontend, ""))

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
                    raise Refused(f"delete {name} {MAPS[name].show_key(key)}", errno.ENOENT, (name, key))
                seen.add(key)
            self._check_added(name, transaction.add[name], seen, chains)
            if size is not None and len((present.keys() - seen) | transaction.add[name].keys()) > size:
                raise Refused(f"add to {name}", errno.ENFILE)
        for chain in transaction.drop_chains:
            if chain not in chains:
                raise Refused(f"delete chain {chain}", errno.ENOENT)
            if any(value == chain for value in self._verdicts_after(transaction)):
                raise Refused(f"delete chain {chain}", errno.EBUSY)

    def _check_added(self, name: str, added: Mapping[Key, Value], deleted: set[Key], chains: Iterable[str]) -> None:
        present = self.maps[name]
        spec = MAPS[name]
        for key, value in added.items():
            if key in present and key not in deleted and present[key] != value:
                raise Refused(f"add {name} {spec.show(key, value)}", errno.EEXIST, (name, key))
            if spec.kind == "verdict" and value not in chains:
                raise Refused(f"add {name} {spec.show(key, value)}", errno.ENOENT, (name, key))

    def _verdicts_after(self, transaction: Transaction) -> Iterator[str]:
        gone = set(transaction.delete[SERVICES])
        yield from (value for key, value in self.maps[SERVICES].items() if key not in gone)
        yield from transaction.add[SERVICES].values()
