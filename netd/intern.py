"""One object for networks that are equal, whether a lease or the kernel spoke of them.

Owns nothing but a bounded table. Making an IPv4Network takes 1 µs and comparing
two 0.3 µs, looking one up and comparing it with itself next to nothing; and a
dump has thousands.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from podlane.api.subnets import Network

_LIMIT = 1 << 16

_networks: dict[tuple[bytes, int], Network] = {}


def network(packed: bytes, prefixlen: int) -> Network:
    """The network of these 4 or 16 bytes, which must have no host bits set."""
    found = _networks.get((packed, prefixlen))
    if found is None:
        of = IPv4Network if len(packed) == 4 else IPv6Network
        found = interned(of((packed, prefixlen)))
    return found


def interned(one: Network) -> Network:
    """`one`, or an equal one that was there before."""
    if len(_networks) >= _LIMIT:
        _networks.clear()
    return _networks.setdefault((one.network_address.packed, one.prefixlen), one)
