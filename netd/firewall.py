"""Letting pod traffic through the host's firewall and out of the pod network, and VXLAN packets in from peers only.

Owns: `Firewall`, which keeps the nft table `inet podlane-netd` and the iptables
chains PODLANE-FORWARD as the rules say. Invariants: each is written as a
whole, in one transaction; nothing else in any table is read for change or
touched; what was written is looked at again before it is believed.

Why iptables for forwarding and nft for the rest: see ruleset.py. What is known
to be right is known at one generation of nftables: while that number stands
still nothing can have changed, and a sync costs one netlink question. The
notifications of a commit end with its generation, so `listen` can tell news
from what a sync wrote or saw.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from netd.forward import Forward
from netd.nfttable import NftTable
from netd.notices import Notices
from netd.ruleset import NOTHING, FirewallRules, VxlanGuard
from podlane.errors import PodlaneError
from podlane.runtime import nftables
from podlane.runtime.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket

__all__ = ["Firewall", "FirewallRules", "VxlanGuard"]

_ROUNDS = 5
_LISTEN = 1.0  # seconds until `stop` is looked at again


class Firewall:
    """The packet filters of the network namespace the calling thread is in. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._table = NftTable()
        self._forwards = {4: Forward("iptables"), 6: Forward("ip6tables")}
        self._right_at: int | None = None
        """The generation at which everything was as last asked for; None when that is not known."""
        self._seen = 0
        """Changes up to this generation are no news: a sync looked after them, or made them."""

    def sync(self, rules: FirewallRules) -> None:
        """Make everything as `rules` say; free when it is. Raises PodlaneError naming what failed, after trying all."""
        self._keep(rules)

    def remove(self) -> bool:
        """Take away all that `sync` ever wrote, by this process or an earlier one; whether there was any.

        Raises PodlaneError.
        """
        return self._keep(NOTHING)

    def _keep(self, rules: FirewallRules) -> bool:
        """Whether anything was written."""
        with self._lock, _open() as socket:
            try:
                for rounds in range(_ROUNDS):
                    if self._settle(socket, rules):
                        return rounds > 0
                raise PodlaneError(f"write firewall rules: changed by others {_ROUNDS} times in a row, or not kept")
            except PodlaneError:
                self._seen = nftables.generation(socket)  # what was written in part must not wake us
                raise

    def dropped(self) -> int:
        """VXLAN packets from unknown sources dropped since the table was last written."""
        with _open() as socket:
            return self._table.dropped(socket)

    def listen(self, on_change: Callable[[], None], stop: threading.Event) -> None:
        """Call `on_change` whenever somebody else may have changed what we keep, until `stop`.

        iptables-legacy makes no notifications.
        """
        with _open(nftables.GROUP) as socket:
            on_change()  # what happened before the socket was there
            notices = Notices()
            while not stop.is_set():
                try:
                    datagram = socket.receive_datagram(_LISTEN)
                except NetlinkError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    notices = Notices()
                    on_change()  # some were lost: look at everything
                    continue
                if any(map(self._is_news, notices.read(datagram))):
                    on_change()

    def _settle(self, socket: NetlinkSocket, rules: FirewallRules) -> bool:
        """Look, write what is missing, and return whether nothing was."""
        generation = nftables.generation(socket)
        trusted = generation == self._right_at
        self._right_at = None
        if not self._write(socket, rules, trusted=trusted):
            self._right_at = self._seen = generation
            return True
        if trusted and nftables.generation(socket) == nftables.after(generation):
            # the one transaction since was ours: what was right before is right but for what it wrote
            self._right_at = nftables.after(generation)
        return False

    def _write(self, socket: NetlinkSocket, rules: FirewallRules, *, trusted: bool) -> bool:
        wrote = False
        errors: list[str] = []
        try:
            wrote |= self._table.sync(socket, rules, trusted=trusted)
        except PodlaneError as error:
            errors.append(str(error))
        for version, forward in self._forwards.items():
            networks = tuple(n for n in rules.networks if n.version == version) if rules.forward else ()
            try:
                wrote |= forward.sync(networks, trusted=trusted)
            except PodlaneError as error:
                errors.append(str(error))
        if errors:
            raise PodlaneError("; ".join(errors))
        return wrote

    def _is_news(self, generation: int) -> bool:
        with self._lock:  # a sync that runs now may be its maker
            return 0 < (generation - self._seen) & 0xFFFFFFFF < 1 << 31


@contextmanager
def _open(*groups: int) -> Iterator[NetlinkSocket]:
    try:
        socket = NetlinkSocket(NETLINK_NETFILTER, groups=groups)
    except OSError as error:
        raise PodlaneError(f"open netfilter socket: {error.strerror or error}") from error
    with socket:
        yield socket
