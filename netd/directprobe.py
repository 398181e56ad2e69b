"""Probes that travel as a pod's packet would without encapsulation.

Owns: asking each path of DirectPaths. A probe is an echo request from the own
VTEP's address to the peer's, a pod-network packet like any other, in a plain
frame on the underlay to the peer's MAC address. So whatever drops pod packets
there (a cloud that knows every machine's addresses, a strict rp_filter at the
peer, a firewall) drops the probe too. The answer may come back as it likes,
encapsulated or not. Invariant: no probe changes a route, and one that cannot
be sent counts as lost.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import NamedTuple

from netd.icmp import TOKEN, Echo, Reply
from netd.paths import DirectPaths, Path, Timing
from netd.segment import Segment
from podlane.api.subnets import Address, Subnets
from podlane.errors import PodlaneError
from podlane.runtime import metrics

Complain = Callable[[str, Exception], None]
"""Told of an action that failed, and of the error."""

_MAC_AGE = 30.0  # seconds a neighbour's MAC address is used before the kernel is asked again
_RESOLUTIONS = 100  # neighbours a second the kernel is asked to find: all of a segment may fail at once
_CONF = FilePath("/proc/sys/net/ipv4/conf")

_SENT = metrics.counter("netd_direct_probes_total", "Probes sent without encapsulation.")
_LOST = metrics.counter("netd_direct_probes_lost_total", "Probes without encapsulation that were not answered.")
_CANDIDATES = metrics.gauge("netd_direct_candidates", "Peers on the own segment that are probed for direct routing.")


@dataclass(slots=True)
class _Way:
    """How to put a probe on the wire."""

    echo: Echo
    mac: bytes | None = None
    known: float = -math.inf


class _Asked(NamedTuple):
    path: Path
    deadline: float
    sent: bool


def strict_filter(devices: Collection[str]) -> str:
    """Why this host may not send directly: it would then drop what peers still send through these devices.

    With rp_filter 1, a packet must come in by the interface its answer would
    leave by. Empty when nothing is in the way. Source: Linux ip-sysctl: the
    higher value of `all` and the interface counts; 2 is loose.
    """
    for device in devices:
        values = [_value(_CONF / name / "rp_filter") for name in ("all", device)]
        if max(values) == 1:
            return f"rp_filter is strict on {device}; set net.ipv4.conf.all.rp_filter=2"
    return ""


def _value(path: FilePath) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such device (yet)
        return 0


class DirectProbe:
    """Probes the candidates' paths. For one thread, in the network namespace of which its sockets are."""

    def __init__(self, timing: Timing, ident: int, complain: Complain) -> None:
        self.token = secrets.token_bytes(TOKEN)
        self.paths = DirectPaths(timing)
        self._timing = timing
        self._ident = ident
        self._complain = complain
        self._segment: Segment | None = None
        self._own: dict[int, Address] = {}
        self._ways: dict[Path, _Way] = {}
        self._pending: dict[int, _Asked] = {}  # in the order of their deadlines
        self._sequence = itertools.count()
        self._resolved = -math.inf

    def reset(self) -> None:
        """Forget everything: this host's addresses or the underlay have changed."""
        self.close()
        self.paths = DirectPaths(self._timing)
        self._ways.clear()
        self._pending.clear()

    def close(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def replace(self, own: Subnets, wanted: Mapping[Address, Address], now: float) -> None:
        """Take other candidates. `own` stays the same between two resets."""
        self._own = {subnet.version: subnet.network_address for subnet in own}
        self.paths.replace(wanted, now)
        self._ways = {path: way for path, way in self._ways.items() if not path.gone}
        _CANDIDATES.set(len(self.paths))

    def send(self, interface: str, now: float) -> bool:
        """Probe whom it is time for, through that interface. Says whether there was anybody."""
        due = self.paths.due(now)
        if due:
            _SENT.inc(len(due))
            self._resolve(interface, [path for path in due if not self._ask(interface, path, now)], now)
        return bool(due)

    def answered(self, reply: Reply, now: float) -> None:
        asked = self._pending.get(reply.sequence)
        if asked is not None and asked.path.vtep.packed == reply.source:
            del self._pending[reply.sequence]
            self.paths.answered(asked.path, now)

    def expire(self, interface: str, now: float) -> None:
        """Count as lost what was not answered in time."""
        lost: list[Path] = []
        while self._pending and (asked := next(iter(self._pending.values()))).deadline <= now:
            del self._pending[next(iter(self._pending))]
            # while its address was not known, the probe could not leave: it does now, or is lost
            if asked.sent or not self._ask(interface, asked.path, now, again=True):
                lost.append(asked.path)
        for path in lost:
            self.paths.lost(path, now)
            if (way := self._ways.get(path)) is not None:
                way.known = -math.inf
        if lost:
            _LOST.inc(len(lost))
            self._resolve(interface, [path for path in lost if not path.gone], now)

    def next_event(self) -> float:
        """When there is something to do for `send` or `expire`."""
        deadline = next(iter(self._pending.values())).deadline if self._pending else math.inf
        return min(self.paths.next_due(), deadline)

    def _ask(self, interface: str, path: Path, now: float, *, again: bool = False) -> bool:
        """Put a probe on the wire. Without a MAC address it is only noted, unless this is the second attempt."""
        sequence = self._free_sequence()
        sent = False
        try:
            sent = self._transmit(interface, path, sequence, now)
        except (OSError, PodlaneError) as error:
            self._complain("send a probe without encapsulation", error)
        if sent or not again:
            self._pending[sequence] = _Asked(path, now + self._timing.timeout, sent)
        return sent

    def _transmit(self, interface: str, path: Path, sequence: int, now: float) -> bool:
        way = self._ways.get(path)
        if way is None:
            source = self._own[path.vtep.version]
            way = self._ways[path] = _Way(Echo.between(source, path.vtep, self._ident, self.token))
        segment = self._opened(interface)
        if way.mac is None or now > way.known + _MAC_AGE:
            # the kernel forgets neighbours nobody sends to; that alone is no reason to stop
            way.mac, way.known = segment.mac(path.gateway) or way.mac, now
        if way.mac is None:
            return False
        segment.send(way.echo.packet(sequence), path.vtep.version, way.mac)
        return True

    def _resolve(self, interface: str, paths: list[Path], now: float) -> None:
        """Have the kernel look for some of these; for all, when they are not too many at a time."""
        self._resolved = max(self._resolved, now - 1)
        paths = paths[: int((now - self._resolved) * _RESOLUTIONS)]
        self._resolved += len(paths) / _RESOLUTIONS
        if not paths:
            return
        try:
            self._opened(interface).resolve([path.gateway for path in paths])
        except (OSError, PodlaneError) as error:
            self._complain(f"resolve neighbours on {interface}", error)

    def _opened(self, interface: str) -> Segment:
        if self._segment is None:
            self._segment = Segment(interface)
        return self._segment

    def _free_sequence(self) -> int:
        while (sequence := next(self._sequence) & 0xFFFF) in self._pending:
            pass
        return sequence
