"""Conntrack entries that would keep flows away from where they now belong, and what entries say of the flows.

Owns: which entries are stale, and their deletion; the count of flows for each
frontend and target. Invariant: an entry is deleted only when its original
destination is a frontend of ours, and
  - it was never translated (its replies come from the service address itself):
    it began while nothing was served, and conntrack remembers "no translation"; or
  - its replies would come from an address and port that no longer serve;
and it is UDP, or TCP or SCTP that was never answered or was reset: a client whose
pod or host died under its SYN reaches another pod with the next one (after 1 s), and
a source port is not poisoned for the two minutes, after a reset 10 s, that conntrack
keeps such an entry and sends a new SYN from it where the old ones went.
Every other connection is left to end by itself: the pod may still be draining, and
what is connected to an address that has become a node port's or an external one was
not made by us. One that ended in order needs nothing (conntrack makes a new entry
for a SYN at its port).

An answer may come between the look and the deletion, and who answered would wait for
ever, untranslated (13 of 228,384 requests hung in a rollout before this was found).
So an entry of a connection is looked at once more just before it is deleted: what is
left is the time between two messages, and not that of listing and reading all of them.

What is asked of the kernel (`requests`): a change touches few frontends, so the
kernel selects by them and user space sees only their entries: of 200,000 entries
one frontend's are found in 0.05 s, where reading a protocol's takes 1.9 s. Each
such dump walks the kernel's whole hash table, though, so of a table with few
entries, or for many frontends, one dump a protocol is cheaper. The kernel's
filter has gaps (ctmsg.py), so every entry is judged again by what it says.
A kernel without the filter lists everything, which is slower but not wrong.

Why not pyroute2: importing it costs 10 MB, and its decoder some 60 µs an
entry; the few messages needed here are short on runtime.netlink.
Source: kube-proxy's pkg/proxy/conntrack/cleanup.go.
"""

from __future__ import annotations

import errno
import ipaddress
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from socket import AF_INET, AF_INET6
from typing import Protocol

from podlane.api.types import IPFamily
from podlane.runtime import netlink as nl
from podlane.runtime.netlink import DumpInterrupted, Message, NetlinkError, NetlinkSocket
from proxyd import proxymetrics
from proxyd.ctmsg import (
    DST_NAT,
    PROTOCOLS,
    Flow,
    Request,
    again_message,
    delete_message,
    entries_message,
    list_message,
    read_counters,
    read_entries,
    read_flow,
)
from proxyd.tables import Frontend, Target

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_WALK, _PASS, _READ = 7000.0, 0.25, 8.0
"""Microseconds: a walk through the usual 262,144 buckets; for each entry in them; to read an entry here.

The last is halved, because what would be listed is only a part of the entries counted.
"""

_MANY = 1000
"""Frontends of which it is not worth while to ask which are of what kind."""

_FAMILIES: tuple[tuple[int, IPFamily], ...] = ((AF_INET, "IPv4"), (AF_INET6, "IPv6"))


@dataclass(frozen=True, slots=True)
class Flows:
    """Open flows of one kind. Bytes and packets of both directions; None unless nf_conntrack_acct is on."""

    connections: int
    bytes: int | None
    packets: int | None


class Conntrack(Protocol):
    """The namespace's connection tracking table. Thread-safe."""

    def clean(self, wanted: Mapping[Frontend, Collection[Target]], ranges: Sequence[str] = ()) -> int:
        """Delete the stale entries of these frontends and return how many there were.

        `ranges`: networks in CIDR form, of either family, in which an address
        and port that is not in `wanted` is served by nobody, so its UDP
        entries are stale too. Raises PodlaneError.
        """
        ...

    def counts(self) -> dict[tuple[Frontend, Target], Flows]:
        """Count the translated flows by where they were meant to go and where they go. Raises PodlaneError."""
        ...

    def close(self) -> None: ...


# --- pure ------------------------------------------------------------------------------


def is_stale(flow: Flow, wanted: Mapping[Frontend, Collection[Target]], ranges: Sequence[Network] = ()) -> bool:
    """Whether the entry leads new packets astray."""
    targets = wanted.get(flow.frontend)
    if targets is None:
        if flow.frontend.protocol != "UDP" or not ranges:
            return False
        address = ipaddress.ip_address(flow.frontend.address)
        return any(address in network for network in ranges)
    untranslated = flow.replies_from == (flow.frontend.address, flow.frontend.port)
    dispensable = flow.frontend.protocol == "UDP" or not flow.answered or flow.reset
    return dispensable and (untranslated or flow.replies_from not in targets)


def requests(frontends: Collection[Frontend], ranges: Sequence[Network], entries: int) -> list[Request]:
    """Which dumps show every entry of the frontends, and of UDP in the ranges, at the least cost.

    `entries`: how many entries of any kind the kernel has.
    """
    if len(frontends) > _MANY:
        return sorted(Request(family, protocol) for family, _ in _FAMILIES for protocol in PROTOCOLS)
    whole = {Request(_family_of(each), "UDP") for each in ranges}
    single: dict[Request, set[Request]] = {}
    for frontend in frontends:
        family = AF_INET6 if ":" in frontend.address else AF_INET
        kind = Request(family, frontend.protocol)
        if kind not in whole:
            single.setdefault(kind, set()).add(_narrow(family, frontend))
    found = [each for narrow in single.values() for each in narrow]
    if len(found) - len(single) > entries * _READ / (_WALK + entries * _PASS):
        found = list(single)
    return sorted([*whole, *found])


def _narrow(family: int, frontend: Frontend) -> Request:
    """The narrowest dump the kernel does right; see the module's docstring."""
    if frontend.protocol == "SCTP":
        # without its port: what the kernel ignores today it may look at tomorrow, so all of a kind are one request
        return Request(family, "SCTP", 0, frontend.address if family == AF_INET else "")
    return Request(family, frontend.protocol, frontend.port, frontend.address if family == AF_INET else "")


def _family_of(network: Network) -> int:
    return AF_INET if network.version == 4 else AF_INET6


# --- the kernel ------------------------------------------------------------------------


class KernelConntrack:
    """The real thing, in the network namespace of the thread that makes it."""

    def __init__(self, *, timeout: float = 10.0) -> None:
        self._lock = threading.Lock()
        self._socket = NetlinkSocket(nl.NETLINK_NETFILTER, timeout=timeout)

    def close(self) -> None:
        with self._lock:
            self._socket.close()

    def clean(self, wanted: Mapping[Frontend, Collection[Target]], ranges: Sequence[str] = ()) -> int:
        networks = [ipaddress.ip_network(each) for each in ranges]

        def stale(body: memoryview) -> bool:
            flow = read_flow(body)
            return flow is not None and is_stale(flow, wanted, networks)

        with self._lock:
            listed = [
                (request.protocol, memoryview(bytes(body)))
                for request in requests(wanted, networks, self._entries())
                for body in self._list(list_message(request))
                if stale(body)
            ]
            deleted = [entry for protocol, entry in listed if protocol == "UDP"]
            failures = self._socket.batch([delete_message(entry) for entry in deleted])
            for protocol, entry in listed:
                if protocol != "UDP" and self._still(entry, stale):
                    failures += self._socket.batch([delete_message(entry)])
                    deleted.append(entry)
        # an entry that ended by itself meanwhile is as good as deleted
        failures = [f for f in failures if f.errno != errno.ENOENT]
        if failures:
            raise NetlinkError(f"delete {len(failures)} conntrack entries: {failures[0]}", failures[0].errno)
        for family, name in _FAMILIES:
            proxymetrics.conntrack_deleted(name, sum(entry[0] == family for entry in deleted))
        return len(deleted)

    def counts(self) -> dict[tuple[Frontend, Target], Flows]:
        connections: dict[tuple[Frontend, Target], int] = {}
        traffic: dict[tuple[Frontend, Target], list[int]] = {}
        with self._lock:
            for family, _ in _FAMILIES:
                for protocol in PROTOCOLS:
                    for body in self._list(list_message(Request(family, protocol), status=DST_NAT)):
                        flow = read_flow(body)
                        # a kernel that does not select by status lists the untranslated too
                        if flow is None or flow.replies_from == (flow.frontend.address, flow.frontend.port):
                            continue
                        key = flow.frontend, flow.replies_from
                        connections[key] = connections.get(key, 0) + 1
                        if (seen := read_counters(body)) is not None:
                            sums = traffic.setdefault(key, [0, 0])
                            sums[0] += seen[0]
                            sums[1] += seen[1]
        return {key: Flows(number, *traffic.get(key, (None, None))) for key, number in connections.items()}

    def flows(self, protocol: str, family: int = AF_INET) -> list[Flow]:
        """Every entry of the protocol ("TCP", "UDP" or "SCTP") and address family."""
        with self._lock:
            found = [read_flow(body) for body in self._list(list_message(Request(family, protocol)))]
        return [flow for flow in found if flow is not None]

    def _still(self, entry: memoryview, stale: Callable[[memoryview], bool]) -> bool:
        try:
            return stale(memoryview(self._socket.ask(again_message(entry))))
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return False
            raise

    def _entries(self) -> int:
        """How many entries this namespace has."""
        return read_entries(self._socket.ask(entries_message()))

    def _list(self, message: Message) -> Iterator[memoryview]:
        try:
            for _, body in self._socket.dump(message):
                yield body
        except DumpInterrupted:
            # the table is never still; what it had when we began was listed
            return
