"""Sending the probes, in rounds, and writing down what comes back.

Owns: which probes are sent when, and to which the answers belong. Invariants:
nothing needs to run on the peer but its kernel; a round asks of a peer only
what the rounds before left open, so that a healthy one costs one; all peers of
a batch go through a round together; ICMP errors, of which Linux sends a host
six and then one a second (icmp_ratelimit), are asked for at most seven times.
"""

from __future__ import annotations

import errno
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from netd.doctor import probe
from netd.doctor.facts import reverse_path_drops
from netd.doctor.seen import Answer, Hop, Kind, Seen, Target
from netd.doctor.wire import Heard, Place, Sending, Wire, arp_exchange, open_wire
from podlane.api.subnets import Address
from podlane.errors import PodlaneError
from podlane.runtime.command import CommandError, run

BATCH = 16
"""Peers that are probed at the same time."""

_FEW = 3
_RUNGS = 16  # sizes tried at once when the path MTU is looked for
_MIN_MTU = {4: 576, 6: 1280}


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is sent, and how long answers are waited for, in seconds."""

    count: int = 20
    interval: float = 0.008
    linger: float = 1.0


@dataclass(slots=True)
class _Sent:
    """A probe. `inner` is its inner packet if an answer quotes it; `awaited` is where an answer is waited for."""

    seen: Seen
    kind: Kind
    number: int
    size: int
    inner: bytes
    awaited: frozenset[Place]
    at: float = 0.0


def examine(targets: Sequence[Target], pace: Pace) -> list[Seen]:
    """Probe them all together. Raises PodlaneError when no probe can be sent at all."""
    if not targets:
        return []
    first = targets[0]
    try:
        with open_wire(first.underlay, sorted({t.device for t in targets if t.device}), first.port) as wire:
            return _Batch(wire, targets, pace).run()
    except OSError as error:
        why = "must be run as root" if error.errno == errno.EPERM else (error.strerror or str(error)).lower()
        raise PodlaneError(f"open sockets for probes: {why}") from error


def others_with(interface: str, addresses: Iterable[Address]) -> dict[str, set[str]]:
    """The MAC addresses that answer ARP for each of these addresses on the interface; none for nobody."""
    found: dict[str, set[str]] = {str(address): set() for address in addresses if address.version == 4}
    with suppress(OSError):  # not an Ethernet interface
        for frame in arp_exchange(interface, lambda mac: [probe.who_has(mac, address) for address in found]):
            answer = probe.read_arp(frame)
            if answer is not None and answer[0] in found:
                found[answer[0]].add(answer[1])
    return found


@dataclass(slots=True)
class _Batch:
    wire: Wire
    targets: Sequence[Target]
    pace: Pace
    seen: list[Seen] = field(init=False)
    _ident: int = field(default_factory=lambda: random.randrange(1, 1 << 16))
    _sent: dict[int, _Sent] = field(default_factory=dict)
    _open: set[tuple[int, Place]] = field(default_factory=set)
    """Answers that are waited for: which probe's, and where."""

    def run(self) -> list[Seen]:
        self.seen = [Seen(target, places=self._places(target)) for target in self.targets]
        before = reverse_path_drops()
        self._round((s, list(self._first(s.target))) for s in self.seen)
        silent = [s for s in self.seen if not s.target.direct and not s.answered(Kind.VXLAN)]
        for each in self.seen:
            if not each.answered(Kind.PLAIN) or each in silent:
                each.hop = next_hop(each.target.remote, each.target.underlay)
        self._round((s, list(self._which_way(s))) for s in silent)
        self._find_sizes([s for s in self.seen if _too_big_for_something(s)])
        drops = reverse_path_drops() - before
        for each in self.seen:
            each.rp_drops = drops
        return self.seen

    def _places(self, target: Target) -> frozenset[Place]:
        places = {Place.UNDERLAY}
        if target.device in self.wire.devices and not target.direct:
            places.add(Place.DEVICE)
        with suppress(OSError):  # this host does not have its VTEP address
            self.wire.listen_at(target.family, target.own_vtep)
            places.add(Place.SOCKET)
        return frozenset(places)

    def _first(self, target: Target) -> Iterator[tuple[Kind, int]]:
        """All that a healthy peer is asked. Kinds are mixed, so that a burst of loss does not fall on one only."""
        if target.direct:
            for i in range(self.pace.count):
                yield from ((Kind.KERNEL, 0), (Kind.PLAIN, 0), *([(Kind.FULL, target.mtu)] if i < _FEW else []))
            return
        for i in range(self.pace.count):
            yield from ((Kind.VXLAN, 0), (Kind.PLAIN, 0))
            if i % 2:
                yield Kind.KERNEL, 0
            if i < _FEW:
                yield from ((Kind.FULL, target.mtu), (Kind.FORWARDED, 0))
        # in this order: that the last one is answered shows that the ones between were not held back
        if target.family == 4:
            yield from ((Kind.BARE, 0), (Kind.SUMMED, 0), (Kind.SUMMED, 0), (Kind.BARE, 0))

    def _which_way(self, seen: Seen) -> Iterator[tuple[Kind, int]]:
        """What tells why a peer whose VTEP does not answer does not."""
        target = seen.target
        for _ in range(_FEW):
            yield Kind.BROADCAST, 0
            if target.family == 4:
                yield Kind.ARP, 0
            if target.own_public is not None:
                yield Kind.BACK_PLAIN, 0
            if target.public is not None and seen.hop is not None and seen.hop.mac:
                yield Kind.BACK_VXLAN, 0

    def _find_sizes(self, open_: list[Seen]) -> None:
        """Close in on the largest packet that passes; many sizes at a time, because every silence costs a wait."""
        for each in open_:
            # the full size is tried again: three lost ones may have been chance
            each.passed, each.lost = 0, each.target.mtu + 1
        if any(each.target.family == 4 and not each.target.direct for each in open_):
            kinds = [(Kind.BARE_FULL, 0), (Kind.BARE_FULL, 0), (Kind.BARE, 0)]
            self._round((s, kinds) for s in open_ if s.target.family == 4 and not s.target.direct)
        while open_:
            rungs = {id(s): ladder(s.passed, s.lost, _MIN_MTU[s.target.family]) for s in open_}
            # twice each, so that one lost packet does not count as a limit
            self._round(((s, [(Kind.SIZED, size) for size in rungs[id(s)] * 2]) for s in open_), quick=True)
            for each in open_:
                tried, heard = rungs[id(each)], self._sizes_heard(each)
                each.passed = max([each.passed, *(size for size in tried if size in heard)])
                each.lost = min([each.lost, *(size for size in tried if size > each.passed)])
            open_ = [s for s in open_ if s.passed and s.lost - s.passed > 1]

    def _sizes_heard(self, seen: Seen) -> set[int]:
        heard = set().union(*seen.tally(Kind.SIZED).heard.values())
        return {self._sent[number].size for number in heard}

    def _round(self, wanted: Iterable[tuple[Seen, list[tuple[Kind, int]]]], *, quick: bool = False) -> None:
        self._open.clear()
        sendings: list[Sending] = []
        interval = self.pace.interval / 5 if quick else self.pace.interval
        for seen, kinds in wanted:
            shift = random.random() * interval
            for i, (kind, size) in enumerate(kinds):
                sendings.append(Sending(shift + i * interval, self._prepare(seen, kind, size)))
        if not sendings:
            return
        for heard in self.wire.exchange(sendings, lambda: not self._open, self.pace.linger / (2 if quick else 1)):
            self._hear(heard)

    def _prepare(self, seen: Seen, kind: Kind, size: int) -> Callable[[], None]:
        """Build a probe now, so that sending it later takes no time."""
        number = len(self._sent)
        send, inner = self._sender(seen, kind, number, size)
        sent = _Sent(seen, kind, number, size, inner, self._awaited(seen, kind))
        open_ = {(number, place) for place in sent.awaited}
        self._sent[number] = sent
        self._open |= open_
        tally = seen.tally(kind)
        tally.sent += 1

        def go() -> None:
            sent.at = time.time()
            try:
                send()
            except OSError as error:
                tally.refused = error.strerror or str(error)
                self._open.difference_update(open_)

        return go

    def _sender(self, seen: Seen, kind: Kind, number: int, size: int) -> tuple[Callable[[], None], bytes]:
        """What sends the probe, and its inner packet if an answer quotes that."""
        target, ident, wire = seen.target, self._ident, self.wire
        if kind is Kind.PLAIN:
            packet = probe.outer_plain(target, ident, number)
            return lambda: wire.send(packet, target.remote), b""
        if kind is Kind.KERNEL or target.direct:
            message = probe.echo_message(target, ident, number, *([size] if size else []))
            return lambda: wire.send_echo(message, target.own_vtep, target.vtep), b""
        if kind is Kind.SUMMED:
            data = probe.payload(ident, number, 64)
            return lambda: wire.send_datagram(data, target.own_vtep, target.vtep, probe.CLOSED_PORT), b""
        if kind is Kind.BACK_VXLAN:
            assert target.public is not None
            assert seen.hop is not None
            packet, mac = probe.plain(target, target.own_vtep, target.public, ident, number), seen.hop.mac
            return lambda: wire.send_frame(packet, target.underlay, mac), b""
        size = target.mtu if kind is Kind.BARE_FULL else size
        packet = probe.encapsulated(target, kind, ident, number, *([size] if size else []))
        inner = probe.inner_of(packet, target) if kind in {Kind.BARE, Kind.BARE_FULL} else b""
        return lambda: wire.send(packet, target.remote), inner

    @staticmethod
    def _awaited(seen: Seen, kind: Kind) -> frozenset[Place]:
        if seen.target.direct and kind is not Kind.PLAIN:
            return frozenset({Place.SOCKET})
        if kind in {Kind.VXLAN, Kind.FULL, Kind.KERNEL}:
            return seen.places
        return frozenset({Place.UNDERLAY})

    def _hear(self, heard: Heard) -> None:
        answer = probe.read(heard.place, heard.data, self._ident, self.targets[0].port)
        if answer is None:
            return
        if heard.place is Place.UNDERLAY and answer.quote and self._complaint(answer):
            return
        sent = self._sent.get(answer.number) if answer.number is not None else None
        if sent is not None:
            self._count(sent, answer, heard)
        elif answer.what == "arp" or not answer.sound:
            for each in self.seen:
                if answer.source == str(each.target.vtep):
                    self._note(each, answer)
                    self._count_arp(each, answer)

    def _count(self, sent: _Sent, answer: Answer, heard: Heard) -> None:
        seen, tally = sent.seen, sent.seen.tally(sent.kind)
        if (answer.what == "forwarded") != (sent.kind is Kind.FORWARDED):
            return
        self._open.discard((sent.number, heard.place))
        if heard.place is Place.UNDERLAY:
            self._note(seen, answer)
            if answer.sound and sent.kind in {Kind.VXLAN, Kind.FULL} and not answer.encapsulated:
                seen.plainly += 1
        if not answer.sound:
            return
        if answer.what in {"unreachable", "too-big"} or (
            answer.what == "closed" and sent.kind not in _UNREACHABLE_WANTED
        ):
            seen.refusals.add(f"{answer.source}: destination unreachable, code {answer.code}")
            return
        if sent.inner and answer.quote:
            seen.altered = seen.altered or probe.altered(sent.inner, answer.quote)
        numbers = tally.heard.setdefault(heard.place, set())
        if sent.number not in numbers and heard.place is min(sent.awaited, default=heard.place):
            tally.rtts.append(max(0.0, heard.at - sent.at))
        numbers.add(sent.number)

    def _count_arp(self, seen: Seen, answer: Answer) -> None:
        tally = seen.tally(Kind.ARP)
        if answer.what == "arp" and tally.sent:
            tally.heard.setdefault(Place.UNDERLAY, set()).add(tally.count())
            waiting = next(
                (n for n, _ in self._open if self._sent[n].seen is seen and self._sent[n].kind is Kind.ARP), -1
            )
            self._open.discard((waiting, Place.UNDERLAY))

    @staticmethod
    def _note(seen: Seen, answer: Answer) -> None:
        """What an encapsulated answer tells besides that it came."""
        if not answer.sound and answer.what != "forwarded":  # which may have been spoiled on either way
            seen.spoiled += 1
        if not answer.encapsulated:
            return
        if answer.mac_from and answer.mac_from != seen.target.mac:
            seen.macs.add(answer.mac_from)
        if answer.mac_to and answer.mac_to not in {seen.target.own_mac, probe.BROADCAST}:
            seen.misled.add(answer.mac_to)
        if answer.vni != seen.target.vni:
            seen.vnis.add(answer.vni)

    def _complaint(self, answer: Answer) -> bool:
        """Whether it is an ICMP error about a packet of ours itself, and not about one within: from whoever met it."""
        quoted = probe.quoted_destination(answer.quote)
        about = [each for each in self.seen if str(each.target.remote) == quoted]
        for each in about:
            if answer.what == "too-big":
                each.too_big = f"{answer.source} says that {answer.mtu} bytes fit"
            elif answer.what == "closed" and probe.quoted_port(answer.quote) == each.target.port:
                each.closed = answer.source
            else:
                each.refusals.add(f"{answer.source}: destination unreachable, code {answer.code}")
        return bool(about)


_UNREACHABLE_WANTED = frozenset({Kind.BARE, Kind.BARE_FULL, Kind.SUMMED})


def _too_big_for_something(seen: Seen) -> bool:
    """Small packets pass and full ones do not."""
    small = seen.answered(Kind.KERNEL if seen.target.direct else Kind.VXLAN)
    return bool(small and seen.sent(Kind.FULL) and not seen.answered(Kind.FULL))


def ladder(passed: int, lost: int, least: int) -> list[int]:
    """Sizes to try next between one that passes, 0 if none is known, and one that does not: `least` first of all."""
    low = passed or least
    gap = lost - low
    sizes = {low + gap * i // (_RUNGS + 1) for i in range(_RUNGS + 1)} | {lost - 1}
    return sorted(size for size in sizes if max(passed, least - 1) < size < lost)


def next_hop(address: Address, interface: str) -> Hop | None:
    """The neighbour by which this host sends there; None when that cannot be told."""
    family = "-4" if address.version == 4 else "-6"
    try:
        found = json.loads(run(["ip", "-j", family, "route", "get", str(address), "oif", interface], timeout=5).stdout)
        gateway = found[0].get("gateway") or str(address)
        argv = ["ip", "-j", family, "neigh", "show", "to", gateway, "dev", interface]
        entries = json.loads(run(argv, timeout=5).stdout or "[]")
    except (CommandError, ValueError, LookupError):
        return None
    if not entries:
        return Hop(gateway, "", "unknown")
    entry = entries[0]
    return Hop(gateway, entry.get("lladdr", ""), "/".join(entry.get("state", [])) or "unknown")
