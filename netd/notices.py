"""Which of the kernel's nftables notifications are about what netd keeps.

Owns: `Notices`, which reads them as they come; pure. They are our own table's,
and those of the chains FORWARD and PODLANE-FORWARD, where iptables-nft keeps
its rules: Docker changes other chains for each port it publishes. Invariant:
what is not ours costs a search for two names in a datagram; proxyd may commit
100,000 elements at once.

A commit is told as one message for each thing it changed, many to a datagram,
and at its end the new generation.
"""

from __future__ import annotations

from netd.ruleset import FORWARD_CHAIN, TABLE
from podlane.runtime import netlink as nl
from podlane.runtime import nftables as nft

_MARKS = (TABLE.encode() + b"\0", b"FORWARD\0")  # the second ends the name of either chain
_NAME_OF_CHAIN = {
    nft.NEWCHAIN: nft.CHAIN_NAME,
    nft.DELCHAIN: nft.CHAIN_NAME,
    nft.NEWRULE: nft.RULE_CHAIN,
    nft.DELRULE: nft.RULE_CHAIN,
}


class Notices:
    """Not thread-safe."""

    def __init__(self) -> None:
        self._touched = False

    def read(self, datagram: memoryview) -> list[int]:
        """The generations that changed something of concern, as far as this datagram ends them."""
        data = bytes(datagram)
        if not self._touched and not any(mark in data for mark in _MARKS):
            return []
        ended = []
        for kind, _, _, body in nl.messages(datagram):
            if kind == nft.SUBSYSTEM | nft.NEWGEN:
                if self._touched:
                    self._touched = False
                    ended.append(nft.read_generation(body))
            elif not self._touched:
                self._touched = _concerns(kind, body)
        return ended


def _concerns(kind: int, body: memoryview) -> bool:
    if kind & 0xFF00 != nft.SUBSYSTEM:
        return False
    family, given = body[0], nl.attribute_map(body[4:])
    table = nl.get_text(given.get(nft.TABLE_NAME, b""))
    if table == TABLE:
        return family == nft.NFPROTO_INET
    if table != "filter" or family not in (nft.NFPROTO_IPV4, nft.NFPROTO_IPV6):
        return False
    chain = given.get(_NAME_OF_CHAIN.get(kind & 0xFF, -1), b"")
    return nl.get_text(chain) in ("FORWARD", FORWARD_CHAIN)
