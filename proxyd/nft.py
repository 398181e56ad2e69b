"""The kernel's side: load the static part, list what is there, commit changes.

Owns: the `Nft` boundary and its real implementation (fake.py has the other; one
contract suite holds both). Invariants: a commit is one kernel transaction,
done or refused whole; every call ends by a deadline; only our own table is
written. The static part goes through the `nft` command, a child process, so a
crash in its library cannot take proxyd down; everything else is netlink
messages of our own.
"""

from __future__ import annotations

import threading
from typing import Protocol

from podlane.runtime import command, nftables
from podlane.runtime.netlink import NETLINK_NETFILTER, NetlinkSocket
from proxyd import nftmsg
from proxyd.ruleset import POD_NETWORKS, SERVICE_RANGES, Skeleton
from proxyd.tables import MAPS, TABLE, Key, Refused, Tables, Transaction, Value, picked_from

_TABLE = nftables.Table(nftables.NFPROTO_IPV4, TABLE)
_NFT_TIMEOUT = 60.0  # seconds; nft itself needs some 20 ms, but waits for other users of the kernel's lock


class Nft(Protocol):
    """The table in the kernel. Thread-safe."""

    def load(self, skeleton: Skeleton) -> None:
        """Make the static part what it should be; elements and connections stay where the maps fit.

        Maps of another type (an older version's) make the table be built anew, empty.
        Raises PodlaneError.
        """
        ...

    def intact(self) -> bool:
        """Whether the static part is as `load` left it; False before the first load."""
        ...

    def dump(self) -> Tables:
        """List pick chains (those whose rules are right) and elements. Raises PodlaneError."""
        ...

    def commit(self, transaction: Transaction) -> None:
        """Carry it out whole, or raise Refused, or PodlaneError when the outcome is unknown."""
        ...

    def generation(self) -> int:
        """A number that every change of any nftables table increases by one."""
        ...

    def delete(self) -> None:
        """Delete the table, if there is one."""
        ...

    def close(self) -> None: ...


class KernelNft:
    """The real thing, in the network namespace of the thread that makes it."""

    def __init__(self, *, timeout: float = 30.0) -> None:
        self._lock = threading.RLock()
        self._socket = NetlinkSocket(NETLINK_NETFILTER, timeout=timeout)
        self._loaded: object = None

    def close(self) -> None:
        with self._lock:
            self._socket.close()

    def load(self, skeleton: Skeleton) -> None:
        with self._lock:
            try:
                self._run(skeleton.script())
            except command.CommandError as error:
                # nft understood the script but the kernel did not take it: what is there has other types
                # or hooks (another version's), so it cannot be kept
                if "Could not process rule" not in error.stderr:
                    raise
                self._run(skeleton.script(anew=True))
            self._loaded = self._static_part()

    def intact(self) -> bool:
        with self._lock:
            return self._loaded is not None and self._loaded == self._static_part()

    def dump(self) -> Tables:
        with self._lock:
            tables = Tables()
            for name, spec in MAPS.items():
                elements: dict[Key, Value] = {}
                for body in nftables.listing(self._socket, _TABLE.list_elements(name), empty_when_missing=False):
                    nftmsg.read_elements(spec, body, elements)
                tables.maps[name] = elements
            rules = nftables.rules(self._socket, _TABLE)
            tables.chains = {
                chain
                for chain in nftables.chains(self._socket, _TABLE)
                if picked_from(chain) and nftmsg.is_pick_chain(chain, rules.get(chain, []))
            }
            return tables

    def commit(self, transaction: Transaction) -> None:
        if not transaction:
            return
        encoded = nftmsg.encode(transaction)
        with self._lock:
            failures = nftables.commit(self._socket, encoded.messages)
        if failures:
            first = failures[0]
            element = encoded.blame(first.index, first.offset)
            what = f"{element[0]} {MAPS[element[0]].show_key(element[1])}" if element else "transaction"
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise Refused(f"commit {what}{more}", first.errno, element, first.text)

    def generation(self) -> int:
        with self._lock:
            return nftables.generation(self._socket)

    def delete(self) -> None:
        with self._lock:
            self._run(f"table ip {TABLE} {{ }}\ndelete table ip {TABLE}\n")
            self._loaded = None

    def _run(self, script: str) -> None:
        command.run(["nft", "-f", "-"], input=script, timeout=_NFT_TIMEOUT)

    def _static_part(self) -> object:
        """Base chains with their hooks, the networks, and every rule outside the pick chains, byte for byte."""
        chains = nftables.chains(self._socket, _TABLE)
        rules = nftables.rules(self._socket, _TABLE)
        networks = [
            [
                bytes(nftables.packed_elements(body))
                for body in nftables.listing(self._socket, _TABLE.list_elements(name))
            ]
            for name in (POD_NETWORKS, SERVICE_RANGES)
        ]
        return (
            {name: shape for name, shape in chains.items() if not picked_from(name)},
            {name: listed for name, listed in rules.items() if not picked_from(name)},
            networks,
        )
