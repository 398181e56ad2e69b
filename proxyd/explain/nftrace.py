"""The kernel's own account of a packet's way through every nftables rule.

Owns: a table `podlane-trace` whose one rule a family marks exactly one
connection's packets to be traced, and the reading of the traces. Invariants:
the table belongs to the socket that made it, so the kernel itself takes it away
when the process ends, in whatever way (NFT_TABLE_F_OWNER, Linux 5.12): a killed
run leaves nothing; we listen before anything is sent; what others trace at the
same time is left out.

Why not `nft monitor trace`: nobody can tell when it has begun to listen, and
its words would have to be parsed back. The same messages are read here, with
each hook's packet in bytes. Rules of ours are told from ruleset.py and chains.py
by their place in the chain; of others `nft -a list chain` is asked, for people to read only.
Source: linux/netfilter/nf_tables.h (nft_trace_attributes), nf_tables_trace.c.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from podlane.errors import PodlaneError
from podlane.runtime import command, nftables
from podlane.runtime import netlink as nl
from podlane.runtime.netlink import NETLINK_NETFILTER, Message, NetlinkSocket
from proxyd import expressions as x
from proxyd.chains import rules_of
from proxyd.explain import frames
from proxyd.explain.frames import Ends
from proxyd.nftmsg import TABLES
from proxyd.ruleset import chains_of
from proxyd.tables import FAMILIES, PROTOCOL_NUMBERS, TABLE, Family, pack_address

NAME = "podlane-trace"
_GROUP = 9  # NFNLGRP_NFTRACE
_TRACE = nftables.SUBSYSTEM | 17
_TABLE_FLAGS, _OWNER = 2, 2
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_PREROUTING, _OUTPUT = 0, 3
_BEFORE_ALL = -400 & 0xFFFFFFFF  # of `raw` and of connection tracking
_META_TRACE = 12
_RULE_HANDLE = 3
_AT_TABLE, _AT_CHAIN, _AT_RULE, _AT_TYPE, _AT_VERDICT, _AT_ID = 1, 2, 3, 4, 5, 6
_AT_NETWORK, _AT_TRANSPORT, _AT_POLICY = 8, 9, 16
_KINDS = {1: "policy", 2: "return", 3: "rule"}
_CODES = {
    0: "drop",
    1: "accept",
    2: "stolen",
    3: "queue",
    0xFFFFFFFF: "continue",
    0xFFFFFFFE: "continue",
    0xFFFFFFFD: "jump",
    0xFFFFFFFC: "goto",
    0xFFFFFFFB: "return",
}
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_NFT_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to the packet. `kind`: "rule", "policy" or "return".

    `verdict`: "drop", "accept", "continue", "goto lb3" and so on. `ends`: whom the packet was for on
    entering the hook, said once a hook. `handle`: which rule of the chain.
    """

    family: str
    table: str
    chain: str
    kind: str
    verdict: str
    handle: int = 0
    ends: Ends | None = None

    @property
    def is_ours(self) -> bool:
        return self.table == TABLE and self.family in {"ip", "ip6"}

    @property
    def is_end_of_chain(self) -> bool:
        """No rule decided; what becomes of the packet is the next event."""
        return self.kind == "rule" and not self.handle


class Tracer:
    """Listens from construction on, in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._traces = NetlinkSocket(NETLINK_NETFILTER, groups=[_GROUP])
        self._socket = NetlinkSocket(NETLINK_NETFILTER)

    def close(self) -> None:
        """The table goes with the socket."""
        self._traces.close()
        self._socket.close()

    @contextmanager
    def marking(self, ends: Ends) -> Iterator[None]:
        """Have this connection's packets traced meanwhile. Raises PodlaneError."""
        family = next(each for each in FAMILIES if each.width == ends.width)
        failures = nftables.commit(self._socket, list(_table(family, ends)))
        if failures:
            why = "another trace is running" if failures[0].errno == errno.EPERM else str(failures[0])
            raise PodlaneError(f"make table {family.name} {NAME}: {why}")
        try:
            yield
        finally:
            table = nftables.Table(family.nfproto, NAME)
            nftables.commit(self._socket, [nftables.BEGIN, table.message(_DELETE_TABLE), nftables.END])

    def events(self, ends: Ends, quiet: float) -> list[Event]:
        """What happened to the connection's first packet, once `quiet` seconds brought nothing more.

        A packet that goes on from a bridge's port to the bridge has another number from there on, and is known
        by its sender. What follows, such as the source's reset, comes by our own rule again.
        """
        found: list[Event] = []
        numbers: set[int] = set()
        whom: Ends | None = None
        while heard := self._traces.receive(quiet):
            for kind, body in heard:
                if kind != _TRACE:
                    continue
                given = nl.attribute_map(memoryview(body)[4:])
                event, number = read_event(body[0], given), nl.get_be32(given[_AT_ID])
                if event.table == NAME:
                    if numbers and event.kind == "rule" and event.handle:
                        return found
                    numbers.add(number)
                elif numbers and (number in numbers or _is_from(event, ends)):
                    numbers.add(number)
                    whom = event.ends or whom
                    if not event.is_end_of_chain:
                        # the kernel says it once a hook, perhaps with what is left out
                        found.append(replace(event, ends=whom))
                        whom = None
        return found

    def rules(self, events: Iterable[Event]) -> dict[tuple[str, str, str, int], str]:
        """The text of each rule in the events, by family, table, chain and handle, as far as it can be had."""
        found: dict[tuple[str, str, str, int], str] = {}
        for family in FAMILIES:
            found |= self._our_rules(family)
        foreign = {(e.family, e.table, e.chain) for e in events if e.handle and not e.is_ours}
        for family_name, table, chain in sorted(foreign):
            with suppress(PodlaneError):
                listed = command.run(
                    ["nft", "-s", "-a", "list", "chain", family_name, table, chain], timeout=_NFT_TIMEOUT
                ).stdout
                for line in listed.splitlines():
                    text, _, handle = line.strip().rpartition(" # handle ")
                    if text and handle.isdigit():
                        found[family_name, table, chain, int(handle)] = text
        return found

    def _our_rules(self, family: Family) -> dict[tuple[str, str, str, int], str]:
        handles: dict[str, list[int]] = {}
        for body in nftables.listing(self._socket, TABLES[family].message(nftables.GETRULE)):
            given = nl.attribute_map(memoryview(body)[4:])
            if nl.get_text(given[nftables.TABLE_NAME]) == TABLE:
                handle = int.from_bytes(given[_RULE_HANDLE])
                handles.setdefault(nl.get_text(given[nftables.RULE_CHAIN]), []).append(handle)
        found = {}
        for chain, listed in handles.items():
            texts = rule_texts(family, chain)
            if len(texts) == len(listed):  # otherwise it is not as this version has it
                found.update(
                    {(family.name, TABLE, chain, each): text for each, text in zip(listed, texts, strict=True)}
                )
        return found


def _is_from(event: Event, ends: Ends) -> bool:
    there = event.ends
    return there is not None and (there.source, there.source_port, there.protocol) == (
        ends.source,
        ends.source_port,
        ends.protocol,
    )


def rule_texts(family: Family, chain: str) -> list[str]:
    """The rules of a chain of ours; none for a chain that is not."""
    for each in chains_of(family):
        if each.name == chain:
            return list(each.rules)
    with suppress(ValueError):
        return rules_of(chain, family.name)
    return []


def read_event(family: int, given: dict[int, memoryview]) -> Event:
    """Decode one trace message's attributes."""
    kind = _KINDS.get(nl.get_be32(given[_AT_TYPE]), "?") if _AT_TYPE in given else "?"
    verdict = ""
    if _AT_VERDICT in given:
        inner = nl.attribute_map(given[_AT_VERDICT])
        verdict = _CODES.get(nl.get_be32(inner[1]) if 1 in inner else 0, "?")
        if 2 in inner:
            verdict += f" {nl.get_text(inner[2])}"
    elif _AT_POLICY in given:
        verdict = _CODES.get(nl.get_be32(given[_AT_POLICY]), "?")
    ends = None
    if _AT_NETWORK in given:
        ends = frames.read_ends(bytes(given[_AT_NETWORK]), bytes(given.get(_AT_TRANSPORT, b"")))
    return Event(
        _FAMILIES.get(family, str(family)),
        nl.get_text(given.get(_AT_TABLE, b"")),
        nl.get_text(given.get(_AT_CHAIN, b"")),
        kind,
        verdict,
        int.from_bytes(given[_AT_RULE]) if _AT_RULE in given else 0,
        ends,
    )


_DELETE_TABLE = 2
_FIRST, _SECOND = 8, 12  # registers


def _table(family: Family, ends: Ends) -> Iterator[Message]:
    table = nftables.Table(family.nfproto, NAME)
    yield nftables.BEGIN
    yield table.message(nftables.NEWTABLE, nl.be32(_TABLE_FLAGS, _OWNER), flags=nl.NLM_F_CREATE | nl.NLM_F_EXCL)
    for chain, hook in (("prerouting", _PREROUTING), ("output", _OUTPUT)):
        placed = nl.nest(nftables.CHAIN_HOOK, nl.be32(_HOOK_NUMBER, hook), nl.be32(_HOOK_PRIORITY, _BEFORE_ALL))
        name, kind = nl.text(nftables.CHAIN_NAME, chain), nl.text(nftables.CHAIN_TYPE, "filter")
        yield table.message(nftables.NEWCHAIN, name, placed, kind, flags=nl.NLM_F_CREATE)
        yield table.message(
            nftables.NEWRULE,
            nl.text(nftables.RULE_CHAIN, chain),
            nl.nest(nftables.RULE_EXPRESSIONS, *_matching(family, ends)),
            flags=nl.NLM_F_CREATE | nl.NLM_F_APPEND,
        )
    yield nftables.END


def _matching(family: Family, ends: Ends) -> list[bytes]:
    width = family.width
    first = 8 if width == 16 else 12
    return [
        x.meta(x.META_L4PROTO, _FIRST),
        x.equal(_FIRST, bytes([PROTOCOL_NUMBERS[ends.protocol]])),
        x.payload(x.NETWORK_HEADER, first, width, _FIRST),
        x.equal(_FIRST, pack_address(ends.source)),
        x.payload(x.NETWORK_HEADER, first + width, width, _SECOND),
        x.equal(_SECOND, pack_address(ends.destination)),
        x.payload(x.TRANSPORT_HEADER, 0, 4, _FIRST),
        x.equal(_FIRST, struct.pack("!HH", ends.source_port, ends.port)),
        x.constant(_FIRST, b"\x01"),
        x.set_meta(_META_TRACE, _FIRST),
    ]
