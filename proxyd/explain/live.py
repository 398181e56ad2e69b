"""One real packet, sent to see what becomes of it.

Owns: the order of things: choose a source port nobody uses, have that one
connection traced, let the packet take its way (inject.py), read what the rules did
to it (nftrace.py) and where conntrack has it go. Invariant: afterwards nothing
is left of it: the table is gone, the conntrack entry and the memory of an affinity
that was not there before are deleted; also when interrupted.

What cannot be taken back: the endpoint has seen a SYN (or an empty datagram, or an
SCTP INIT). Its answer goes to the source, which knows of no such connection and
resets it.
"""

from __future__ import annotations

import errno
import random
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

from podlane.errors import PodlaneError
from podlane.runtime.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket
from proxyd import ctmsg
from proxyd.explain import inject, remembered
from proxyd.explain.frames import Ends
from proxyd.explain.inject import Entry
from proxyd.explain.nftrace import Event, Tracer
from proxyd.explain.trace import LOST, SEEN_NOTHING, Outcome
from proxyd.ruleset import REFUSE
from proxyd.tables import FAMILIES, Family, Frontend, Key, Target
from proxyd.walk import Packet

QUIET = 0.25
"""Seconds without a further message after which the packet's way is over. It ends before `inject` returns."""

_BIRTHS, _NO_MORE = 1.0, 0.05  # seconds to read of new entries, at most, and after the last; many wait by now
_TRIES = 32
_KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of the packet. `source_port`: the one it was sent from; `shown_as`: whom the endpoint sees."""

    entry: Entry
    source_port: int
    outcome: Outcome
    events: Sequence[Event] = ()
    rules: dict[tuple[str, str, str, int], str] = field(default_factory=dict)
    shown_as: Target | None = None

    def text(self, event: Event) -> str:
        """The event's rule."""
        if event.kind != "rule":
            return event.kind
        return self.rules.get((event.family, event.table, event.chain, event.handle), f"rule handle {event.handle}")


def send(packet: Packet) -> Seen:
    """Send the packet and follow it. Needs root. Raises PodlaneError."""
    entry = inject.entry_of(packet.source)
    with ExitStack() as left:
        left.enter_context(_orderly_end())
        try:
            tracer = Tracer()
            left.callback(tracer.close)
            netfilter = left.enter_context(NetlinkSocket(NETLINK_NETFILTER))
            births = left.enter_context(NetlinkSocket(NETLINK_NETFILTER, groups=[ctmsg.GROUP_BORN]))
        except OSError as error:
            raise PodlaneError(f"trace a packet: {(error.strerror or str(error)).lower()} (needs root)") from error
        ends = left.enter_context(_reserved(packet, entry, netfilter))
        family = FAMILIES[ends.width == 16]
        client = remembered.key_of(packet.frontend, packet.source)
        is_new = remembered.endpoint_id(netfilter, family, client) is None
        left.callback(_forget, netfilter, ends, family, client if is_new else None)
        with tracer.marking(ends):
            inject.inject(ends, entry)
            events = tracer.events(ends, QUIET)
            body = _born(births, ends)
        rules = tracer.rules(events)
    shown_as = None
    if body is not None:
        replies_from, shown_as = ctmsg.read_replies(memoryview(body))
        outcome = _connected(packet, ends, replies_from, shown_as)
    else:
        outcome = Outcome(_ended(packet, events))
    return Seen(entry, ends.source_port, outcome, events, rules, shown_as)


def _connected(packet: Packet, ends: Ends, replies_from: Target, replies_to: Target) -> Outcome:
    if replies_from == (packet.destination, packet.port):
        return Outcome("pass")
    return Outcome("translate", replies_from, replies_to.address != ends.source)


def _ended(packet: Packet, events: Sequence[Event]) -> str:
    """What became of a packet that conntrack does not know: it did not get through."""
    if not events:
        return SEEN_NOTHING
    last = events[-1]
    if last.verdict != "drop":
        return LOST
    if last.is_ours and last.chain == REFUSE:
        return "reset" if packet.protocol == "TCP" else "unreachable"
    return "drop"


# --- beforehand ----------------------------------------------------------------------


@contextmanager
def _reserved(packet: Packet, entry: Entry, netfilter: NetlinkSocket) -> Iterator[Ends]:
    """The connection, with a source port that is in nobody's use, and stays so if the source is this host."""
    with ExitStack() as held:
        for _ in range(_TRIES):
            port = random.randint(32768, 60999)  # where Linux takes them from
            if not entry.link and packet.protocol in _KINDS:
                port = held.enter_context(_bound(packet)).getsockname()[1]
            ends = Ends(packet.source, port, packet.destination, packet.port, packet.protocol)
            if _entry(netfilter, ends) is None:
                yield ends
                return
    raise PodlaneError(f"trace a packet from {packet.source}: each of {_TRIES} source ports tried is in use")


def _bound(packet: Packet) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in packet.source else socket.AF_INET, _KINDS[packet.protocol])
    try:
        made.bind((packet.source, 0))
    except OSError as error:
        made.close()
        raise PodlaneError(f"take a port of {packet.source}: {(error.strerror or str(error)).lower()}") from error
    return made


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, as Ctrl-C does."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


# --- afterwards ----------------------------------------------------------------------


def _born(births: NetlinkSocket, ends: Ends) -> bytes | None:
    """The conntrack entry as it was when the packet had got through; None when it never did.

    By now it may be gone: an endpoint that refuses ends it at once.
    """
    deadline = time.monotonic() + _BIRTHS
    while time.monotonic() < deadline and (heard := births.receive(_NO_MORE)):
        for kind, body in heard:
            if kind == ctmsg.BORN and ctmsg.is_of(memoryview(body), *_conntracked(ends)):
                return body
    return None


def _conntracked(ends: Ends) -> tuple[Target, Frontend]:
    return Target(ends.source, ends.source_port), Frontend(ends.destination, ends.protocol, ends.port)


def _entry(netfilter: NetlinkSocket, ends: Ends) -> bytes | None:
    """The connection's conntrack entry, if it has one now."""
    try:
        return netfilter.ask(ctmsg.ask_message(*_conntracked(ends)))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def _forget(netfilter: NetlinkSocket, ends: Ends, family: Family, client: Key | None) -> None:
    body = _entry(netfilter, ends)
    if body is not None:
        # it may have ended by itself, which is as good
        netfilter.batch([ctmsg.delete_message(memoryview(body))])
    if client is not None and remembered.endpoint_id(netfilter, family, client) is not None:
        remembered.forget(netfilter, family, client)
