"""nftables in netlink messages: what every table of ours needs, whoever owns it.

Owns: the message formats that do not depend on a table's content, and three
conversations with the kernel: `generation`, `listing`, `commit`. Invariants: a
commit is one transaction, done or refused whole; a listing is of one moment.

The generation is a number of the network namespace that every committed change
of any nftables table increases by one: as long as it stands still, what was
listed is what is there. iptables-nft's rules are nftables too, iptables-legacy's are not.
Source: linux/netfilter/nf_tables.h, nfnetlink.h; net/netfilter/nf_tables_api.c
(nf_tables_commit), nfnetlink.c (nfnetlink_rcv_batch).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from podlane.runtime import netlink as nl
from podlane.runtime.netlink import DumpInterrupted, Failure, Message, NetlinkError, NetlinkSocket

NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6 = 1, 2, 10
GROUP = 7
"""The multicast group (of NETLINK_NETFILTER) that is told of every commit."""

SUBSYSTEM = 10 << 8
NEWTABLE, GETTABLE = 0, 1
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
NEWGEN, GETGEN = 15, 16
GETOBJ = 19

# each message about something in a table has the table's name in attribute 1
TABLE_NAME = 1
CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE = 3, 4, 5, 7
RULE_CHAIN, RULE_EXPRESSIONS = 2, 4
SET_NAME, SET_ELEMENTS = 2, 3
ELEM_KEY, ELEM_DATA, ELEM_KEY_END = 1, 2, 10
LIST_ELEM = 1
DATA_VALUE, DATA_VERDICT = 1, 2
_OBJ_NAME, _OBJ_TYPE, _OBJ_DATA = 2, 3, 4
_OBJ_COUNTER = 1
_COUNTER_PACKETS = 2
_GEN_ID = 1

_BATCH_BEGIN, _BATCH_END = 16, 17
_LISTING_ATTEMPTS = 5
_GENMSG = struct.Struct(">BBH")
_BATCH = _GENMSG.pack(0, 0, 10)
_BE64 = struct.Struct(">Q")

BEGIN, END = Message(_BATCH_BEGIN, 0, _BATCH), Message(_BATCH_END, 0, _BATCH)
"""The first and the last message of a transaction."""


@dataclass(frozen=True, slots=True)
class Table:
    """Names a table, and makes messages about what is in it."""

    family: int
    name: str

    def message(self, kind: int, *attributes: bytes, flags: int = 0) -> Message:
        head = _GENMSG.pack(self.family, 0, 0) + nl.text(TABLE_NAME, self.name)
        return Message(SUBSYSTEM | kind, flags, head + b"".join(attributes))

    def list_elements(self, name: str) -> Message:
        return self.message(GETSETELEM, nl.text(SET_NAME, name))

    def change_elements(self, kind: int, name: str, packed: Sequence[bytes]) -> Iterator[tuple[Message, int]]:
        """Messages that add (NEWSETELEM) or delete (DELSETELEM) elements, and how many are in each."""
        flags = nl.NLM_F_CREATE if kind == NEWSETELEM else 0
        for listed, count in nl.lists(SET_ELEMENTS, packed):
            yield self.message(kind, nl.text(SET_NAME, name), listed, flags=flags), count


# --- conversations -----------------------------------------------------------------


def generation(socket: NetlinkSocket) -> int:
    body = socket.ask(Message(SUBSYSTEM | GETGEN, 0, _GENMSG.pack(0, 0, 0)))
    return read_generation(body)


def after(number: int) -> int:
    """The generation that follows; 0 is none."""
    return (number + 1) & 0xFFFFFFFF or 1


def commit(socket: NetlinkSocket, messages: Sequence[Message]) -> list[Failure]:
    """Send a transaction, from BEGIN to END. Empty means done; otherwise nothing was.

    Raises NetlinkError when the outcome is unknown.
    """
    # the last message that is answered is the one before the end; a failed commit is answered at the beginning
    return socket.batch(messages, datagram=None, first_is_envelope=True, ack_index=-2)


def listing(socket: NetlinkSocket, message: Message, *, empty_when_missing: bool = True) -> list[bytes]:
    """All answers of a listing that nothing disturbed. Raises NetlinkError."""
    for _ in range(_LISTING_ATTEMPTS - 1):
        try:
            return _listing(socket, message, empty_when_missing)
        except DumpInterrupted:
            continue
    return _listing(socket, message, empty_when_missing)


def _listing(socket: NetlinkSocket, message: Message, empty_when_missing: bool) -> list[bytes]:
    try:
        return [bytes(body) for _, body in socket.dump(message)]
    except NetlinkError as error:
        if error.errno == errno.ENOENT and empty_when_missing:
            return []
        raise


def exists(socket: NetlinkSocket, table: Table) -> bool:
    try:
        socket.ask(table.message(GETTABLE))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def chains(socket: NetlinkSocket, table: Table) -> dict[str, bytes]:
    """Each chain's hook, policy and type, in bytes to be compared."""
    found = {}
    # of all tables of the family: the kernel does not filter these
    for body in listing(socket, table.message(GETCHAIN)):
        given = nl.attribute_map(memoryview(body)[4:])
        if nl.get_text(given[TABLE_NAME]) == table.name:
            shape = (bytes(given.get(kind, b"-")) for kind in (CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE))
            found[nl.get_text(given[CHAIN_NAME])] = b"".join(shape)
    return found


def rules(socket: NetlinkSocket, table: Table) -> dict[str, list[bytes]]:
    """The expressions of each chain's rules, in bytes; a chain without rules is left out."""
    found: dict[str, list[bytes]] = {}
    for body in listing(socket, table.message(GETRULE)):
        given = nl.attribute_map(memoryview(body)[4:])
        if nl.get_text(given[TABLE_NAME]) == table.name:
            found.setdefault(nl.get_text(given[RULE_CHAIN]), []).append(bytes(given.get(RULE_EXPRESSIONS, b"")))
    return found


def counter(socket: NetlinkSocket, table: Table, name: str) -> int:
    """The packets a named counter has seen; 0 when there is none of that name."""
    try:
        body = socket.ask(table.message(GETOBJ, nl.text(_OBJ_NAME, name), nl.be32(_OBJ_TYPE, _OBJ_COUNTER)))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return 0
        raise
    data = nl.attribute_map(nl.attribute_map(memoryview(body)[4:])[_OBJ_DATA])
    return int(_BE64.unpack(data[_COUNTER_PACKETS])[0])


def read_generation(body: nl.Buffer) -> int:
    """The number in a NEWGEN message."""
    return nl.get_be32(nl.attribute_map(memoryview(body)[4:])[_GEN_ID])


# --- elements ------------------------------------------------------------------------

_KEY_HEADERS = {
    size: struct.pack("=HHHH", size + 8, ELEM_KEY | nl.NLA_F_NESTED, size + 4, DATA_VALUE) for size in (4, 8, 12, 16)
}
_ELEMENT_HEADER = struct.Struct("=HH")


def element(key: bytes, data: bytes = b"") -> bytes:
    """One list entry. `key` has 4, 8, 12 or 16 bytes, `data` is a packed attribute: nothing needs padding."""
    header = _ELEMENT_HEADER.pack(12 + len(key) + len(data), LIST_ELEM | nl.NLA_F_NESTED)
    return b"%b%b%b%b" % (header, _KEY_HEADERS[len(key)], key, data)


def packed_elements(body: nl.Buffer) -> memoryview:
    """The elements in one answer to `list_elements`, still packed. (The answer's head has the generation in it.)"""
    return nl.attribute_map(memoryview(body)[4:]).get(SET_ELEMENTS, memoryview(b""))


def keys(packed: nl.Buffer) -> Iterator[bytes]:
    """The key of each packed element."""
    for _, each in nl.attributes(packed):
        yield key_of(nl.attribute_map(each))


def key_of(attributes: dict[int, memoryview]) -> bytes:
    return bytes(attributes[ELEM_KEY][4:])  # one DATA_VALUE attribute inside
