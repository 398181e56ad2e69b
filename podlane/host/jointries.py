"""Who has shown wrong tokens, and how long he has to wait. Pure: the time is passed in.

Owns: the counts. Invariant: it never holds more than MAX_SOURCES of them, whoever asks from
wherever; one source that is held up holds up no other. Secrets have 128 random bits, so
this is not what makes guessing hopeless: it keeps etcd and the log from being flooded.
"""

from __future__ import annotations

import threading
from ipaddress import IPv6Address, IPv6Network, ip_address

TRIES = 10
"""Wrong tokens in a row from one source before it has to wait, and"""
SECONDS = 30.0
"""seconds until it may try once more."""
MAX_SOURCES = 4096


class Tries:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._debts: dict[str, tuple[float, float]] = {}
        """Of each source: tries it still owes, as of a time."""

    def __len__(self) -> int:
        """How many sources it remembers."""
        return len(self._debts)

    def wait(self, peer: str, now: float) -> float:
        """Seconds until the next try is listened to; 0: at once."""
        with self._lock:
            return max(0.0, (self._debt(_source(peer), now) - (TRIES - 1)) * SECONDS)

    def failed(self, peer: str, now: float) -> None:
        source = _source(peer)
        with self._lock:
            debt = self._debt(source, now) + 1
            self._debts.pop(source, None)
            if len(self._debts) >= MAX_SOURCES:
                del self._debts[next(iter(self._debts))]  # the one that has been quiet longest
            self._debts[source] = (debt, now)

    def _debt(self, source: str, now: float) -> float:
        debt, since = self._debts.get(source, (0.0, now))
        return max(0.0, debt - (now - since) / SECONDS)


def _source(peer: str) -> str:
    """The address, or of IPv6 the /64, which is one customer's."""
    address = ip_address(peer.partition("%")[0])
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(IPv6Network((address, 64), strict=False))
    return str(address)
