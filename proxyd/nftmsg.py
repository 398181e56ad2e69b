"""nftables messages in bytes: elements, pick chains, and their listings.

Owns: the encoding of a `Transaction` and the decoding of what the kernel lists,
as far as they depend on our maps; the rest is in runtime/nftables.py. Pure: no
socket. Invariant: an encoded transaction is one nfnetlink batch, whose every
message can be traced back to the elements in it (`Encoded.blame`).

Why not libnftables: it can abort the process on some statements, segfaults on
listing some maps, and costs ten times as much; nft 1.0.6 also cannot add a rule
with `numgen` in its key to a map that another process loaded. The kernel knows
no such limits: a key is bytes in registers.
Source: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from podlane.runtime import netlink as nl
from podlane.runtime import nftables as nft
from podlane.runtime.netlink import Message
from proxyd.chains import expressions_of
from proxyd.tables import AFFINITY, FAMILIES, GOTO, MAPS, TABLE, Family, Key, MapSpec, Transaction, Value

TABLES = {family: nft.Table(family.nfproto, TABLE) for family in FAMILIES}

_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_VERDICTS = {0xFFFFFFFC: GOTO, 0xFFFFFFFD: "jump ", 0: "drop", 1: "accept"}
_VERDICT_CODES = {words: code for code, words in _VERDICTS.items()}
_ELEMENT = struct.Struct("=HH")


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
    family = transaction.family
    encoded = Encoded([nft.BEGIN])
    messages = encoded.messages
    for chain in transaction.chains:
        messages += _new_chain(family, chain)
    for name, keys in transaction.delete.items():
        head = _head(MAPS[name], family, 0)
        _change(encoded, family, nft.DELSETELEM, (name, keys, [head + _key(MAPS[name], key) for key in keys]))
    for name, added in transaction.add.items():
        _change(encoded, family, nft.NEWSETELEM, (name, list(added), _packed(MAPS[name], family, added)))
    for chain in transaction.drop_chains:
        messages.append(TABLES[family].message(nft.DELCHAIN, nl.text(nft.CHAIN_NAME, chain)))
    messages.append(nft.END)
    return encoded


def _packed(spec: MapSpec, family: Family, added: dict[Key, Value]) -> list[bytes]:
    if spec.kind == "data":
        size = 4 * sum(family.width // 4 if each == "address" else 1 for each in spec.data)
        data = struct.pack("=HHHH", size + 8, nft.ELEM_DATA | nl.NLA_F_NESTED, size + 4, nft.DATA_VALUE)
        head = _head(spec, family, size + 8)
        packed = ((key, value) for key, value in added.items() if isinstance(value, bytes))
        return [b"%b%b%b%b" % (head, key, data, value) for key, value in packed]
    if spec.kind == "verdict":
        found = []
        for key, value in added.items():
            verdict = _pack_verdict(str(value))
            found.append(_head(spec, family, len(verdict)) + key + verdict)
        return found
    head = _head(spec, family, 0)
    return [head + _key(spec, key) for key in added]


@lru_cache(maxsize=1024)
def _head(spec: MapSpec, family: Family, data_size: int) -> bytes:
    """What comes before an element's key; nothing needs padding."""
    size = spec.key_size(family)
    whole = 12 + (2 * size + 8 if spec.kind == "ranges" else size) + data_size
    return struct.pack(
        "=HHHHHH",
        whole,
        nft.LIST_ELEM | nl.NLA_F_NESTED,
        size + 8,
        nft.ELEM_KEY | nl.NLA_F_NESTED,
        size + 4,
        nft.DATA_VALUE,
    )


def _key(spec: MapSpec, key: Key) -> bytes:
    """The key as it follows `_head`; a range's end is an attribute of its own."""
    if spec.kind != "ranges":
        return key
    size = len(key) // 2
    end = struct.pack("=HHHH", size + 8, nft.ELEM_KEY_END | nl.NLA_F_NESTED, size + 4, nft.DATA_VALUE)
    return key[:size] + end + key[size:]


def _change(encoded: Encoded, family: Family, kind: int, packed: tuple[str, Sequence[Key], Sequence[bytes]]) -> None:
    """Append the messages that add or delete (map, keys, packed elements)."""
    name, keys, elements = packed
    start = 0
    for message, count in TABLES[family].change_elements(kind, name, elements):
        encoded.parts.append((len(encoded.messages), name, keys[start : start + count]))
        encoded.messages.append(message)
        start += count


def _element_offsets(body: memoryview) -> Iterable[int]:
    """Offsets, from the start of the message, of the list's elements."""
    at = 4
    while at + 4 <= len(body):
        size, kind = _ELEMENT.unpack_from(body, at)
        if kind & nl.NLA_TYPE_MASK == nft.SET_ELEMENTS:
            inner, end = at + 4, at + size
            while inner < end:
                yield 16 + inner
                inner += (_ELEMENT.unpack_from(body, inner)[0] + 3) & ~3
            return
        at += (size + 3) & ~3


def _element_size(body: memoryview, offset: int) -> int:
    return int(_ELEMENT.unpack_from(body, offset - 16)[0])


# --- verdicts -------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _pack_verdict(words: str) -> bytes:
    verb, chain = (GOTO, words[len(GOTO) :]) if words.startswith(GOTO) else (words, "")
    inner = nl.be32(_VERDICT_CODE, _VERDICT_CODES[verb]) + (nl.text(_VERDICT_CHAIN, chain) if chain else b"")
    return nl.nest(nft.ELEM_DATA, nl.nest(nft.DATA_VERDICT, inner))


@lru_cache(maxsize=4096)
def _read_verdict(attribute: bytes) -> str:
    (_, data), *_ = nl.attributes(attribute)
    verdict = nl.attribute_map(nl.attribute_map(data)[nft.DATA_VERDICT])
    code = nl.get_be32(verdict[_VERDICT_CODE])
    words = _VERDICTS.get(code, str(code))
    return words + (nl.get_text(verdict[_VERDICT_CHAIN]) if _VERDICT_CHAIN in verdict else "")


# --- listings ---------------------------------------------------------------------


def read_elements(spec: MapSpec, family: Family, body: nl.Buffer, into: dict[Key, Value]) -> None:
    """Decode one answer to a listing of the map's elements.

    The kernel writes an element as we do: key, then data. One with more in it
    (a comment, a timeout) is none of ours; its value is None, so that it is put right.
    In the affinity map each has a timeout.
    """
    listed = bytes(nft.packed_elements(body))
    size = spec.key_size(family)
    at, end, unpack = 0, len(listed), _ELEMENT.unpack_from
    while at < end:
        length, _ = unpack(listed, at)
        key, rest = listed[at + 12 : at + 12 + size], listed[at + 12 + size : at + length]
        if spec.kind == "data":
            end_of_data = unpack(rest, 0)[0]
            into[key] = rest[8:end_of_data] if len(rest) == end_of_data or spec is AFFINITY else None
        elif spec.kind == "verdict":
            into[key] = _read_verdict(rest)
        elif spec.kind == "ranges":
            into[key + rest[8 : 8 + size]] = None
        else:
            into[key] = None
        at += (length + 3) & ~3


# --- chains -----------------------------------------------------------------------


def _new_chain(family: Family, chain: str) -> list[Message]:
    """Make the chain with its rules, or make an existing one right."""
    table = TABLES[family]
    where = nl.text(nft.RULE_CHAIN, chain)
    return [
        table.message(nft.NEWCHAIN, nl.text(nft.CHAIN_NAME, chain), flags=nl.NLM_F_CREATE),
        table.message(nft.DELRULE, where),
        *(
            table.message(
                nft.NEWRULE, where, nl.nest(nft.RULE_EXPRESSIONS, expressions), flags=nl.NLM_F_CREATE | nl.NLM_F_APPEND
            )
            for expressions in expressions_of(chain, family.name)
        ),
    ]


def is_built(family: Family, chain: str, listed: Sequence[bytes]) -> bool:
    """Whether a listed chain of ours has exactly its rules."""
    wanted = expressions_of(chain, family.name)
    return len(listed) == len(wanted) and all(map(_says, listed, wanted))


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
