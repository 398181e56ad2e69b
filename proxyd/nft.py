"""The kernel's side: load the static part, list what is there, commit changes.

Owns: the `Nft` boundary and its real implementation (fake.py has the other; one
contract suite holds both). Invariants: a commit is one kernel transaction,
done or refused whole; every call ends by a deadline; only our own tables are
written. The static part goes through the `nft` command, a child process, so a
crash in its library cannot take proxyd down; everything else is netlink
messages of our own.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

from podlane.runtime import command, nftables
from podlane.runtime import netlink as nl
from podlane.runtime.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket
from proxyd import nftmsg
from proxyd.chains import EXTERNAL_SOURCE, pick_of
from proxyd.nftmsg import TABLES
from proxyd.ruleset import POD_NETWORKS, SERVICE_RANGES, Skeleton
from proxyd.tables import AFFINITY, MAPS, TABLE, Family, Key, MapSpec, Refused, Tables, Transaction, Value

_NFT_TIMEOUT = 60.0  # seconds; nft itself needs some 20 ms, but waits for other users of the kernel's lock

_NOTICES_BUFFER = 64 << 20  # bytes; a commit of our own of 100,000 elements is told of, too
_NO_FIT = ("Could not process rule", "datatype mismatch")
"""What nft says when the kernel does not take the script, and when it finds maps there that its rules do not fit."""

_LOUD = 5000
"""Elements of a commit that costs the kernel more to tell of than to carry out; one of ours needs no telling."""
_NAME = TABLE.encode() + b"\0"
_WAIT = 1.0  # seconds a stop may go unnoticed


class Nft(Protocol):
    """Our tables in the kernel, one a family. Thread-safe; listing does not keep a commit waiting."""

    def load(self, skeleton: Skeleton) -> None:
        """Make the static part what it should be; elements and connections stay where the maps fit.

        Maps of another type (an older version's) make the table be built anew, empty.
        Raises PodlaneError.
        """
        ...

    def intact(self, family: Family) -> bool:
        """Whether the static part is as `load` left it; False before the first load."""
        ...

    def dump(self, family: Family) -> Tables:
        """List chains of ours (those whose rules are right) and elements. Raises PodlaneError."""
        ...

    def commit(self, transaction: Transaction) -> None:
        """Carry it out whole, or raise Refused, or PodlaneError when the outcome is unknown."""
        ...

    def watch(self, stop: threading.Event, changed: Callable[[], None]) -> None:
        """Call `changed` whenever somebody else touched our tables, until `stop`: the body of one thread."""
        ...

    def delete(self, family: Family) -> None:
        """Delete the family's table, if there is one."""
        ...

    def close(self) -> None: ...


class KernelNft:
    """The real thing, in the network namespace of the thread that makes it."""

    def __init__(self, *, timeout: float = 30.0) -> None:
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._writer = NetlinkSocket(NETLINK_NETFILTER, timeout=timeout)
        self._reader = NetlinkSocket(NETLINK_NETFILTER, timeout=timeout)
        self._notices = NetlinkSocket(NETLINK_NETFILTER, groups=[nftables.GROUP], receive_buffer=_NOTICES_BUFFER)
        self._own = self._writer.port
        self._missed = False
        self._loaded: dict[Family, object] = {}

    def close(self) -> None:
        with self._writing, self._reading:
            self._writer.close()
            self._reader.close()
            self._notices.close()

    def load(self, skeleton: Skeleton) -> None:
        with self._writing:
            try:
                _run(skeleton.script())
            except command.CommandError as error:
                # what is there has other types or hooks (another version's), so it cannot be kept
                if not any(words in error.stderr for words in _NO_FIT):
                    raise
                _run(skeleton.script(anew=True))
        self._loaded[skeleton.family] = self.static_part(skeleton.family)

    def intact(self, family: Family) -> bool:
        try:
            return family in self._loaded and self._loaded[family] == self.static_part(family)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:  # not even the sets are there any more
                return False
            raise

    def dump(self, family: Family) -> Tables:
        tables = Tables(family, maps={name: self._elements(family, spec) for name, spec in MAPS.items()})
        with self._reading:
            rules = nftables.rules(self._reader, TABLES[family])
            present = nftables.chains(self._reader, TABLES[family])
        tables.chains = {
            chain for chain in present if _is_ours(chain) and nftmsg.is_built(family, chain, rules.get(chain, []))
        }
        return tables

    def affinity(self, family: Family) -> dict[Key, Value]:
        """Which client (after the frontend) has which id, for people to see."""
        with self._reading:
            listed = _list_elements(self._reader, family, AFFINITY.name)
        # parsed attribute by attribute: each has its time with it
        found = [nl.attribute_map(each) for body in listed for _, each in nl.attributes(nftables.packed_elements(body))]
        return {nftables.key_of(each): bytes(each[nftables.ELEM_DATA][4:]) for each in found}

    def commit(self, transaction: Transaction) -> None:
        if not transaction:
            return
        encoded = nftmsg.encode(transaction)
        with self._writing, self._deaf() if len(transaction) > _LOUD else nullcontext():
            failures = nftables.commit(self._writer, encoded.messages)
        if failures:
            first = failures[0]
            element = encoded.blame(first.index, first.offset)
            what = "transaction"
            if element:
                what = f"{element[0]} {MAPS[element[0]].show_key(transaction.family, element[1])}"
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise Refused(f"commit {what}{more}", first.errno, element, first.text)

    def watch(self, stop: threading.Event, changed: Callable[[], None]) -> None:
        while not stop.is_set():
            try:
                datagram = self._notices.receive_datagram(_WAIT)
            except NetlinkError:
                changed()  # some were lost: perhaps one about us
                continue
            # a commit is told to its end in datagrams of its own
            if self._missed or (_NAME in bytes(datagram) and nl.sender(datagram) != self._own):
                self._missed = False
                changed()

    @contextmanager
    def _deaf(self) -> Iterator[None]:
        """Hear nothing for a while, and have looked at what was missed."""
        self._notices.leave(nftables.GROUP)
        try:
            yield
        finally:
            self._notices.join(nftables.GROUP)
            self._missed = True

    def delete(self, family: Family) -> None:
        with self._writing:
            _run(f"table {family.name} {TABLE} {{ }}\ndelete table {family.name} {TABLE}\n")
        self._loaded.pop(family, None)

    def _elements(self, family: Family, spec: MapSpec) -> dict[Key, Value]:
        with self._reading:
            listed = _list_elements(self._reader, family, spec.name)
        elements: dict[Key, Value] = {}
        for body in listed:
            nftmsg.read_elements(spec, family, body, elements)
        return elements

    def static_part(self, family: Family) -> tuple[object, object, object]:
        """Base chains with their hooks, the networks, and every rule outside our chains, to be compared in bytes."""
        with self._reading:
            chains = nftables.chains(self._reader, TABLES[family])
            rules = nftables.rules(self._reader, TABLES[family])
            networks = [
                [bytes(nftables.packed_elements(body)) for body in _list_elements(self._reader, family, name)]
                for name in (POD_NETWORKS, SERVICE_RANGES)
            ]
        return (
            {name: shape for name, shape in chains.items() if not _is_ours(name)},
            {name: listed for name, listed in rules.items() if not _is_ours(name)},
            networks,
        )


def _is_ours(chain: str) -> bool:
    """Whether the chain is built by our messages and not by the script."""
    return chain == EXTERNAL_SOURCE or pick_of(chain) is not None


def _list_elements(socket: NetlinkSocket, family: Family, name: str) -> list[bytes]:
    return nftables.listing(socket, TABLES[family].list_elements(name), empty_when_missing=False)


def _run(script: str) -> None:
    command.run(["nft", "-f", "-"], input=script, timeout=_NFT_TIMEOUT)
