"""netd's own probing while it runs: do peers answer over the overlay, and would they without it.

Owns: the probing thread, its sockets and its metrics. Invariants: a probe that
fails changes nothing in the kernel and holds nobody up; nothing but its own
thread's sockets is touched, and nothing is raised out of it; what it costs
depends on how many probes a second were asked for, not on the number of peers.
What the paths found mean for routes is others' to decide: `direct` changes,
`on_change` is called, that is all.
"""

from __future__ import annotations

import itertools
import math
import secrets
import select
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from netd.desired import Family, Lease, Underlay
from netd.directprobe import Complain, DirectProbe, strict_filter
from netd.icmp import TOKEN, Echo, EchoSocket, Reply
from netd.paths import Timing, candidates
from netd.reachability import Reachability, Silent, Target
from podlane.api.subnets import Address, Subnets
from podlane.runtime import metrics
from podlane.runtime.log import get_logger

INTERVAL = 10.0
PER_ROUND = 32

_TICK = 0.1  # seconds between two looks while there is something to look at: many probes are one wake-up
_IDLE = 1.0  # at most, so that `stop` and new peers are seen
_LISTEN = 0.2  # seconds after a round in which each answer wakes the thread, so that its time is known
_TIMEOUT = 2.0
_RECHECK = 10.0
_RETRY = 1.0
_SAY_AGAIN = 600.0

_SENT = metrics.counter("netd_probes_total", "Probes sent to peers over the overlay.")
_LOST = metrics.counter("netd_probes_lost_total", "Probes over the overlay that were not answered.")
_RTT = metrics.histogram(
    "netd_probe_rtt_seconds",
    "Round trips over the overlay.",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)
_UNREACHABLE = metrics.gauge("netd_peers_unreachable", "Peers that answered none of their last three probes.")
_DIRECT = metrics.gauge("netd_direct_paths", "Peers found to be reachable without encapsulation.")


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    own: Subnets
    leases: tuple[Lease, ...]
    underlay: Underlay
    auto: bool
    devices: frozenset[str]

    @property
    def context(self) -> tuple[Subnets, Underlay, bool]:
        """When this changes, nothing that was found before holds."""
        return self.own, self.underlay, self.auto


class _OverlayProbe:
    """Probes peers' VTEPs as pods' packets travel, a few at a time."""

    def __init__(self, interval: float, per_round: int, ident: int, complain: Complain) -> None:
        self.token = secrets.token_bytes(TOKEN)
        self.peers = Reachability()
        self.next_round = math.inf
        self.interval = interval
        self._per_round = per_round
        self._ident = ident
        self._complain = complain
        self._pending: dict[int, tuple[Target, float]] = {}  # with the time it was sent
        self._sequence = itertools.count()

    def send(self, sockets: dict[Family, EchoSocket], hear: Callable[[], None], now: float) -> None:
        """Ask a round of peers. `hear` is called after each, so that answers are timed as they come."""
        self.next_round = now + self.interval
        for target in self.peers.round(self._per_round):
            out = sockets[4 if target.address.version == 4 else 6]
            sequence = next(self._sequence) & 0xFFFF
            echo = Echo.between(out.source, target.address, self._ident, self.token)
            _SENT.inc()
            self._pending[sequence] = target, time.monotonic()
            try:
                out.send(echo.message(sequence), target.address)
            except OSError as error:  # no route: as good as lost
                self._complain("send a probe over the overlay", error)
            hear()

    def answered(self, reply: Reply, now: float) -> None:
        target, sent = self._pending.get(reply.sequence, (None, 0.0))
        if target is not None and target.address.packed == reply.source:
            del self._pending[reply.sequence]
            _RTT.observe(now - sent)
            self.peers.answered(target)

    def expire(self, now: float) -> None:
        while self._pending and self.deadline() <= now:
            target, _ = self._pending.pop(next(iter(self._pending)))
            _LOST.inc()
            self.peers.lost(target)

    def deadline(self) -> float:
        """When the oldest probe counts as lost: before its peer could be asked again."""
        oldest = next(iter(self._pending.values()), (None, math.inf))[1]
        return oldest + min(_TIMEOUT, self.interval / 2)

    def listening(self, now: float) -> float:
        """Seconds for which answers are still worth waking up for."""
        newest = next(reversed(self._pending.values()), (None, -math.inf))[1]
        return max(0.0, newest + _LISTEN - now)


class Prober:
    """`run` is a thread's body; everything else may be called from any thread.

    `on_change` is called, from the probing thread or by `set_peers`, when `direct`
    has changed; it should only trigger. `interval`: seconds between two rounds over the overlay,
    0 for none; `per_round`: addresses asked in one.
    """

    def __init__(
        self,
        on_change: Callable[[], object],
        *,
        interval: float = INTERVAL,
        per_round: int = PER_ROUND,
        timing: Timing | None = None,
    ) -> None:
        self._on_change = on_change
        self._log = get_logger("netd")
        self._lock = threading.Lock()
        self._wanted: _Wanted | None = None
        self._direct: frozenset[Address] = frozenset()
        self._silent = Silent()
        # from here on the probing thread's alone
        self._ident = secrets.randbits(16)
        self._overlay = _OverlayProbe(interval, per_round, self._ident, self._complain)
        self._without = DirectProbe(timing or Timing(), self._ident, self._complain)
        self._sockets: dict[Family, EchoSocket] = {}
        self._taken: _Wanted | None = None
        self._applied: object = None
        self._recheck = -math.inf
        self._said: dict[str, float] = {}

    @property
    def direct(self) -> frozenset[Address]:
        """Public addresses of peers that pod packets are known to reach without encapsulation."""
        return self._direct

    def unreachable(self) -> Silent:
        """Peers that do not answer over the overlay."""
        return self._silent

    def set_peers(
        self,
        own: Subnets,
        leases: Iterable[Lease],
        underlay: Underlay,
        *,
        auto: bool,
        devices: Collection[str] = (),
    ) -> None:
        """Probe these peers; this host's own lease may be among them.

        `auto`: find direct paths, too. `devices` are the VXLAN devices peers
        may send through meanwhile. Harmless when nothing has changed.
        """
        wanted = _Wanted(own, tuple(leases), underlay, auto, frozenset(devices))
        with self._lock:
            before, withdrawn = self._wanted, False
            if before is None or before.context != wanted.context:
                withdrawn, self._direct = bool(self._direct), frozenset()
            elif before.leases == wanted.leases and before.devices == wanted.devices:
                return
            self._wanted = wanted
        if withdrawn:
            self._on_change()

    def run(self, stop: threading.Event) -> None:
        """Probe until `stop`, which is seen within a second."""
        pause = 0.0
        while not self._wait(stop, pause):
            try:
                pause = self._tick(time.monotonic())
            except Exception as error:  # whatever it is, pods' packets do not depend on it
                self._complain("probe peers", error)
                self._close()
                pause = _RETRY
        self._close()

    def _wait(self, stop: threading.Event, seconds: float) -> bool:
        listen = self._overlay.listening(time.monotonic())
        if not listen or not self._sockets:
            return stop.wait(seconds)
        poll = select.poll()
        for each in self._sockets.values():
            poll.register(each.fileno(), select.POLLIN)
        poll.poll(min(listen, seconds) * 1000)
        return stop.is_set()

    def _tick(self, now: float) -> float:
        """Do what is due and return the seconds until something will be."""
        self._hear()  # first: what has come in time is no loss, however late it is looked at
        self._overlay.expire(now)
        if self._taken is not None:
            self._without.expire(self._taken.underlay.name, now)
        if self._wanted is not self._taken or now >= self._recheck:
            self._take(now)
        if self._taken is None:
            return _IDLE
        if now >= self._overlay.next_round:
            self._overlay.send(self._sockets, self._hear, now)
        sent = self._without.send(self._taken.underlay.name, now)
        self._report()
        self._announce(self._taken, now)
        event = min(self._overlay.next_round, self._overlay.deadline(), self._without.next_event())
        return _TICK if sent else min(max(event - now, _TICK), _IDLE)

    def _hear(self) -> None:
        for each in self._sockets.values():
            for reply in each.replies():
                if reply.token == self._without.token:
                    self._without.answered(reply, time.monotonic())
                elif reply.token == self._overlay.token:
                    self._overlay.answered(reply, time.monotonic())

    def _take(self, now: float) -> None:
        """Adopt what was last asked for, as far as the host is ready for it."""
        wanted = self._wanted
        if wanted is None:
            return
        if self._taken is None or self._taken.context != wanted.context:
            self._close()
            self._without.reset()
            _DIRECT.set(0)
            self._overlay.next_round = now + self._overlay.interval if self._overlay.interval else math.inf
        self._taken = wanted
        self._open(wanted.own)
        self._recheck = now + (_RECHECK if len(self._sockets) == len(list(wanted.own)) else _RETRY)
        hindrance = strict_filter(wanted.devices) if wanted.auto else ""
        if hindrance:
            self._say(f"find direct paths over IPv4: {hindrance}")
        state = (wanted, tuple(self._sockets), hindrance)
        if state == self._applied:
            return
        self._applied = state
        self._overlay.peers.replace(
            tuple(lease for lease in wanted.leases if lease.subnets != wanted.own), tuple(self._sockets)
        )
        pairs = candidates(wanted.own, wanted.leases, wanted.underlay) if wanted.auto else {}
        families = [family for family in self._sockets if family == 6 or not hindrance]
        probed = {gateway: vtep for gateway, vtep in pairs.items() if gateway.version in families}
        self._without.replace(wanted.own, probed, now)

    def _open(self, own: Subnets) -> None:
        for subnet in own:
            family: Family = 4 if subnet.version == 4 else 6
            if family in self._sockets:
                continue
            try:
                self._sockets[family] = EchoSocket(subnet.network_address, self._ident)
            except OSError as error:
                self._complain(f"open a socket at {subnet.network_address}", error)

    def _close(self) -> None:
        for each in self._sockets.values():
            each.close()
        self._sockets.clear()
        self._without.close()
        self._applied, self._recheck = None, -math.inf

    def _report(self) -> None:
        silent = self._overlay.peers.silent()
        if silent == self._silent:
            return
        if silent.count and not self._silent.count:
            self._log.warning("peers do not answer over the overlay", count=silent.count, peers=silent.peers)
        elif not silent.count:
            self._log.info("all probed peers answer over the overlay again")
        self._silent = silent
        _UNREACHABLE.set(silent.count)

    def _announce(self, taken: _Wanted, now: float) -> None:
        if not self._without.paths.announce(now):
            return
        found = self._without.paths.direct
        with self._lock:
            if self._wanted is None or self._wanted.context != taken.context:
                return  # found for another underlay than is wanted by now
            before, self._direct = self._direct, found
        _DIRECT.set(len(found))
        self._log.info(
            "direct paths changed", total=len(found), added=_some(found - before), lost=_some(before - found)
        )
        self._on_change()

    def _complain(self, action: str, error: Exception) -> None:
        cause = (error.strerror or "").lower() if isinstance(error, OSError) else ""
        self._say(f"{action}: {cause or str(error) or type(error).__name__}")

    def _say(self, text: str) -> None:
        """Now and then: a fault that lasts would otherwise be said with every probe."""
        now = time.monotonic()
        if now < self._said.get(text, -math.inf) + _SAY_AGAIN:
            return
        if len(self._said) >= 100:
            self._said.clear()
        self._said[text] = now
        self._log.warning("probing hindered, will retry", error=text)


def _some(addresses: frozenset[Address]) -> str:
    names = sorted(map(str, addresses))
    return ",".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
