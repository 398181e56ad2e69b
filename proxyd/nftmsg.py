"""nftables messages in bytes: elements, pick chains, and their listings.

Owns: the encoding of a `Transaction` and the decoding of what the kernel lists,
as far as they depend on our maps; the rest is in runtime/nftables.py. Pure: no
socket. Invariant: an encoded transaction is one nfnetlink batch, whose every
message can be traced back to the elements in it (`Encoded.blame`).

Why not libnftables: it can abort the process on some statements, segfaults on
listing some maps, and costs ten times as much; nft 1.0.6 also cannot add a rule
with `numgen` in its key to a map that another process loaded. The kernel knows
no such limits: a key is bytes in registers.
Source: linux/netfilter/nf_tables.h; the expressions are what
`nft --debug=netlink` shows for the rules in `tables.pick_rules`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from podlane.runtime import netlink as nl
from podlane.runtime import nftables as nft
from podlane.runtime.netlink import Message
from proxyd.tables import (
    ENDPOINTS,
    MAPS,
    TABLE,
    Key,
    MapSpec,
    Transaction,
    Value,
    pack_target,
    picked_from,
    unpack_target,
)

_TABLE = nft.Table(nft.NFPROTO_IPV4, TABLE)
_AF_INET = 2

_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_GOTO = 0xFFFFFFFC  # -4
_NF_DROP = 0


@dataclass(slots=True)
class Encoded:
    """A transaction as messages, with what is in each: (message index, map, keys)."""

    messages: list[Message]
    parts: list[tuple[int, str, Sequence[Key]]] = field(default_factory=list)

    def blame(self, index: int, offset: int | None) -> tuple[str, Key] | None:
        """The element the kernel blames, from its message and the attribute's offset in it."""
        for at, name, keys in self.parts:
            if at != index:
                continue
            if len(keys) == 1:
                return name, keys[0]
            if offset is None:
                return None
            body = memoryview(self.messages[index].body)
            for position, key in zip(_element_offsets(body), keys, strict=False):
                if position <= offset < position + _element_size(body, position):
                    return name, key
        return None


def encode(transaction: Transaction) -> Encoded:
    """Pack it as one batch. The message before the batch's end is the one to be acknowledged."""
    encoded = Encoded([nft.BEGIN])
    messages = encoded.messages
    for chain in transaction.chains:
        messages += _new_chain(chain)
    for name, keys in transaction.delete.items():
        spec = MAPS[name]
        _change(encoded, nft.DELSETELEM, spec, keys, [nft.element(spec.pack_key(key)) for key in keys])
    for name, added in transaction.add.items():
        spec = MAPS[name]
        packed = [nft.element(spec.pack_key(key), _data(spec.kind, value)) for key, value in added.items()]
        _change(encoded, nft.NEWSETELEM, spec, list(added), packed)
    for chain in transaction.drop_chains:
        messages.append(_TABLE.message(nft.DELCHAIN, nl.text(nft.CHAIN_NAME, chain)))
    messages.append(nft.END)
    return encoded


def read_elements(spec: MapSpec, body: nl.Buffer, into: dict[Key, Value]) -> None:
    """Decode one answer to a listing of the map's elements."""
    for _, element in nl.attributes(nft.packed_elements(body)):
        found = nl.attribute_map(element)
        key = spec.unpack_key(nft.key_of(found))
        into[key] = None if spec.kind == "set" else _read_data(spec.kind, found[nft.ELEM_DATA])


def is_pick_chain(name: str, rules: Sequence[bytes]) -> bool:
    """Whether a listed chain has exactly the two rules of a pick chain of that name."""
    wanted = _pick_expressions(picked_from(name))
    return len(rules) == 2 and all(_says(listed, packed) for listed, packed in zip(rules, wanted, strict=True))


# --- elements -------------------------------------------------------------------

_TARGET_HEADER = struct.pack("=HHHH", 16, nft.ELEM_DATA | nl.NLA_F_NESTED, 12, nft.DATA_VALUE)
_ELEMENT_HEADER = struct.Struct("=HH")


def _data(kind: str, value: Value) -> bytes:
    if kind == "data":
        return _TARGET_HEADER + pack_target(value)
    return _goto(value) if kind == "verdict" else b""


@lru_cache(maxsize=4096)
def _goto(chain: str) -> bytes:
    verdict = nl.nest(nft.DATA_VERDICT, nl.be32(_VERDICT_CODE, _GOTO), nl.text(_VERDICT_CHAIN, chain))
    return nl.nest(nft.ELEM_DATA, verdict)


def _read_data(kind: str, data: memoryview) -> Value:
    if kind == "data":
        return unpack_target(bytes(data[4:]))
    verdict = nl.attribute_map(nl.attribute_map(data)[nft.DATA_VERDICT])
    chain = verdict.get(_VERDICT_CHAIN)
    return nl.get_text(chain) if chain is not None and nl.get_be32(verdict[_VERDICT_CODE]) == _GOTO else ""


def _change(encoded: Encoded, kind: int, spec: MapSpec, keys: Sequence[Key], packed: Sequence[bytes]) -> None:
    start = 0
    for message, count in _TABLE.change_elements(kind, spec.name, packed):
        encoded.parts.append((len(encoded.messages), spec.name, keys[start : start + count]))
        encoded.messages.append(message)
        start += count


def _element_offsets(body: memoryview) -> Iterable[int]:
    """Offsets, from the start of the message, of the list's elements."""
    at = 4
    while at + 4 <= len(body):
        size, kind = _ELEMENT_HEADER.unpack_from(body, at)
        if kind & nl.NLA_TYPE_MASK == nft.SET_ELEMENTS:
            inner, end = at + 4, at + size
            while inner < end:
                yield 16 + inner
                inner += (_ELEMENT_HEADER.unpack_from(body, inner)[0] + 3) & ~3
            return
        at += (size + 3) & ~3


def _element_size(body: memoryview, offset: int) -> int:
    return int(_ELEMENT_HEADER.unpack_from(body, offset - 16)[0])


# --- pick chains ----------------------------------------------------------------

_REG_1, _REG32_01, _REG32_02, _REG32_03 = 1, 9, 10, 11  # register 1 is the four words 8 to 11


def _new_chain(chain: str) -> list[Message]:
    """Make the chain with its rules, or make an existing one right."""
    where = nl.text(nft.RULE_CHAIN, chain)
    return [
        _TABLE.message(nft.NEWCHAIN, nl.text(nft.CHAIN_NAME, chain), flags=nl.NLM_F_CREATE),
        _TABLE.message(nft.DELRULE, where),
        *(
            _TABLE.message(
                nft.NEWRULE, where, nl.nest(nft.RULE_EXPRESSIONS, expressions), flags=nl.NLM_F_CREATE | nl.NLM_F_APPEND
            )
            for expressions in _pick_expressions(picked_from(chain))
        ),
    ]


def _pick_expressions(count: int) -> tuple[bytes, bytes]:
    """`dnat ip to ip daddr . meta l4proto . th dport . numgen random mod <count> map @endpoints`; `drop`."""
    pick = (
        _expression("payload", nl.be32(1, _REG_1), nl.be32(2, 1), nl.be32(3, 16), nl.be32(4, 4)),
        _expression("meta", nl.be32(2, 16), nl.be32(1, _REG32_01)),
        _expression("payload", nl.be32(1, _REG32_02), nl.be32(2, 2), nl.be32(3, 2), nl.be32(4, 2)),
        _expression("numgen", nl.be32(1, _REG32_03), nl.be32(2, count), nl.be32(3, 1)),
        _expression("lookup", nl.text(1, ENDPOINTS), nl.be32(2, _REG_1), nl.be32(3, _REG_1)),
        _expression("nat", nl.be32(1, 1), nl.be32(2, _AF_INET), nl.be32(3, _REG_1), nl.be32(5, _REG32_01)),
    )
    drop = _expression(
        "immediate", nl.be32(1, 0), nl.nest(2, nl.nest(nft.DATA_VERDICT, nl.be32(_VERDICT_CODE, _NF_DROP)))
    )
    return b"".join(pick), drop


def _expression(name: str, *attributes: bytes) -> bytes:
    return nl.nest(nft.LIST_ELEM, nl.text(1, name), nl.nest(2, *attributes))


def _says(listed: bytes, packed: bytes) -> bool:
    """Whether listed expressions have every attribute of the packed ones; the kernel lists more than it was told."""
    theirs, ours = list(nl.attributes(listed)), list(nl.attributes(packed))
    if len(theirs) != len(ours):
        return False
    for (_, left), (_, right) in zip(theirs, ours, strict=True):
        there, here = nl.attribute_map(left), nl.attribute_map(right)
        if bytes(there[1]) != bytes(here[1]):  # the expression's name
            return False
        values = nl.attribute_map(there[2])
        if any(_plain(values.get(kind, b"")) != _plain(value) for kind, value in nl.attribute_map(here[2]).items()):
            return False
    return True


def _plain(value: bytes | memoryview) -> bytes:
    """The bytes without the "nested" flag, which the kernel sets on some attributes and not on others."""
    data = bytearray(value)
    if len(data) > 8:  # nested: type fields at 2 and 6
        data[3] &= 0x7F
        data[7] &= 0x7F
    return bytes(data)
