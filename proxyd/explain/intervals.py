"""A set of networks as the kernel lists it: the first address of each, and the first one after it.

Owns: reading that back. Source: linux/net/netfilter/nft_set_rbtree.c; uapi's NFT_SET_ELEM_INTERVAL_END.
"""

from __future__ import annotations

import ipaddress

from podlane.runtime import netlink as nl
from podlane.runtime import nftables
from podlane.runtime.netlink import NetlinkSocket
from proxyd.nftmsg import TABLES
from proxyd.tables import Family

_FLAGS, _INTERVAL_END = 3, 1


def read_networks(socket: NetlinkSocket, family: Family, name: str) -> tuple[str, ...]:
    """The networks in a set of ours, in CIDR form, sorted. Raises NetlinkError."""
    ends: list[tuple[int, bool]] = []
    for body in nftables.listing(socket, TABLES[family].list_elements(name), empty_when_missing=False):
        for _, each in nl.attributes(nftables.packed_elements(body)):
            given = nl.attribute_map(each)
            flags = nl.get_be32(given[_FLAGS]) if _FLAGS in given else 0
            ends.append((int.from_bytes(nftables.key_of(given)), bool(flags & _INTERVAL_END)))
    return networks_between(ends, family)


def networks_between(ends: list[tuple[int, bool]], family: Family) -> tuple[str, ...]:
    """From (address, whether it is the first one that is not in any more); nothing after the last means all."""
    of = ipaddress.IPv4Address if family.width == 4 else ipaddress.IPv6Address
    top = (1 << family.width * 8) - 1
    found: list[str] = []
    # where one ends and the next begins, the end comes first
    start: int | None = None
    for address, is_end in sorted(ends, key=lambda each: (each[0], not each[1])):
        if not is_end:
            start = address
        elif start is not None:
            found += map(str, ipaddress.summarize_address_range(of(start), of(address - 1)))
            start = None
    if start is not None:
        found += map(str, ipaddress.summarize_address_range(of(start), of(top)))
    return tuple(sorted(found))
