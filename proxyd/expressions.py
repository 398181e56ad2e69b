"""nftables expressions in bytes, as far as our own chains need them.

Pure. A register is a number from 8, each of 32 bits; 0 is the verdict. Every fourth
is told by its older name, 1 to 4, as the kernel lists it, so that what is listed
can be compared with what was said.
Source: linux/netfilter/nf_tables.h; what `nft --debug=netlink` shows for the rules in chains.py.
"""

from __future__ import annotations

import struct

from podlane.runtime import netlink as nl
from podlane.runtime import nftables as nft

VERDICT = 0
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
META_PRIORITY, META_L4PROTO = 2, 16
CT_PROTO_DST = 12
CT_DESTINATION = {4: 20, 16: 22}
"""The original destination address, by its width in bytes."""

DYNSET_ADD, DYNSET_UPDATE, DYNSET_DELETE = 0, 1, 2
_FIB_ADDRTYPE, _FIB_SOURCE, _RTN_LOCAL = 3, 1, 2
_RANDOM, _JENKINS = 1, 0
_EQUAL, _ORIGINAL, _DNAT = 0, 0, 1


def payload(base: int, offset: int, size: int, register: int) -> bytes:
    return _expression("payload", _register(1, register), nl.be32(2, base), nl.be32(3, offset), nl.be32(4, size))


def meta(key: int, register: int) -> bytes:
    return _expression("meta", nl.be32(2, key), _register(1, register))


def set_meta(key: int, register: int) -> bytes:
    return _expression("meta", nl.be32(2, key), _register(3, register))


def ct_original(key: int, register: int) -> bytes:
    return _expression("ct", nl.be32(2, key), _register(1, register), nl.u8(3, _ORIGINAL))


def lookup(name: str, key: int, register: int | None = None) -> bytes:
    into = [] if register is None else [_register(3, register)]
    return _expression("lookup", nl.text(1, name), _register(2, key), *into)


def dynset(name: str, operation: int, key: int, data: int, timeout: float = 0) -> bytes:
    """`timeout` in seconds; 0 is the map's own."""
    expiry = [nl.attr(6, struct.pack(">Q", round(timeout * 1000)))] if timeout else []
    return _expression(
        "dynset", nl.text(1, name), nl.be32(3, operation), _register(4, key), _register(5, data), *expiry
    )


def zero(register: int) -> bytes:
    return _expression("immediate", _register(1, register), nl.nest(2, nl.attr(nft.DATA_VALUE, bytes(4))))


def numgen(slots: int, offset: int, register: int) -> bytes:
    """A random number from `offset` on."""
    return _expression("numgen", _register(1, register), nl.be32(2, slots), nl.be32(3, _RANDOM), nl.be32(4, offset))


def jhash(register: int, size: int, *, slots: int, seed: int, offset: int) -> bytes:
    """`offset` plus the hash of the register's `size` bytes, scaled to `slots` (hashing.py has the same in Python)."""
    return _expression(
        "hash",
        _register(1, register),
        _register(2, register),
        nl.be32(3, size),
        nl.be32(4, slots),
        nl.be32(5, seed),
        nl.be32(6, offset) if offset else b"",  # not listed when 0
        nl.be32(7, _JENKINS),
    )


def from_this_host(register: int) -> list[bytes]:
    """Only packets whose source is an address of this host go on."""
    fib = _expression("fib", _register(1, register), nl.be32(2, _FIB_ADDRTYPE), nl.be32(3, _FIB_SOURCE))
    local = nl.nest(3, nl.attr(nft.DATA_VALUE, struct.pack("=I", _RTN_LOCAL)))
    return [fib, _expression("cmp", _register(1, register), nl.be32(2, _EQUAL), local)]


def dnat(nfproto: int, address: int, port: int) -> bytes:
    return _expression("nat", nl.be32(1, _DNAT), nl.be32(2, nfproto), _register(3, address), _register(5, port))


def drop() -> bytes:
    verdict = nl.nest(nft.DATA_VERDICT, nl.be32(1, 0))
    return _expression("immediate", _register(1, VERDICT), nl.nest(2, verdict))


def _register(kind: int, number: int) -> bytes:
    return nl.be32(kind, number // 4 - 1 if number and number % 4 == 0 else number)


def _expression(name: str, *attributes: bytes) -> bytes:
    return nl.nest(nft.LIST_ELEM, nl.text(1, name), nl.nest(2, *attributes))


def equal(register: int, data: bytes) -> bytes:
    """Only packets for which the register holds these bytes go on."""
    value = nl.nest(3, nl.attr(nft.DATA_VALUE, data))
    return _expression("cmp", _register(1, register), nl.be32(2, _EQUAL), value)


def constant(register: int, data: bytes) -> bytes:
    """Put these bytes, up to 16, into the register."""
    return _expression("immediate", _register(1, register), nl.nest(2, nl.attr(nft.DATA_VALUE, data)))
