"""Conntrack entries that would keep flows away from where they now belong.

Owns: which entries are stale, and their deletion. Invariant: an entry is
deleted only when its original destination is a frontend of ours and
  - it was never translated (its replies come from the service address itself):
    it began while nothing was served, and conntrack remembers "no translation"; or
  - its replies would come from an address and port that no longer serve, and it is
    UDP, or TCP that was never answered: a client whose pod or host died under its SYN
    reaches another pod with the next one (after 1 s), and a source port is not
    poisoned for the two minutes conntrack keeps such an entry.
Established TCP is left to end by itself: the pod may still be draining.

Why not pyroute2: importing it costs 10 MB, and its decoder some 60 µs an
entry; the two messages needed here are forty lines on runtime.netlink. The
kernel selects by protocol before it answers.
Source: linux/net/netfilter/nf_conntrack_netlink.c; kube-proxy's
pkg/proxy/conntrack/cleanup.go.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from socket import AF_INET, inet_ntop
from typing import NamedTuple, Protocol

from podlane.runtime import netlink as nl
from podlane.runtime.netlink import DumpInterrupted, Message, NetlinkError, NetlinkSocket
from proxyd.tables import Frontend, Target

_SUBSYSTEM = 1 << 8
_GET, _DELETE = 1, 2
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _FILTER = 1, 2, 3, 12, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SRC, _IP_DST = 1, 2
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_FILTER_PROTO_NUM = 1 << 3  # CTA_FILTER_F_CTA_PROTO_NUM
_SEEN_REPLY = 1 << 1  # IPS_SEEN_REPLY
_GENMSG = struct.pack(">BBH", AF_INET, 0, 0)
_PROTOCOLS = {6: "TCP", 17: "UDP"}
_NUMBERS = {"TCP": 6, "UDP": 17}


class Flow(NamedTuple):
    """One conntrack entry: where the client meant to go, where replies come from, whether one came."""

    frontend: Frontend
    replies_from: Target
    answered: bool


class Conntrack(Protocol):
    """The namespace's connection tracking table. Thread-safe."""

    def clean(self, wanted: Mapping[Frontend, Collection[Target]], ranges: Sequence[str] = ()) -> int:
        """Delete the stale entries of these frontends and return how many there were.

        `ranges`: networks in CIDR form in which an address and port that is
        not in `wanted` is served by nobody, so its UDP entries are stale too.
        Raises PodlaneError.
        """
        ...

    def close(self) -> None: ...


def is_stale(
    flow: Flow, wanted: Mapping[Frontend, Collection[Target]], ranges: Sequence[ipaddress.IPv4Network] = ()
) -> bool:
    """Whether the entry leads new packets astray."""
    targets = wanted.get(flow.frontend)
    if targets is None:
        address = ipaddress.IPv4Address(flow.frontend.address)
        return flow.frontend.protocol == "UDP" and any(address in network for network in ranges)
    untranslated = flow.replies_from == (flow.frontend.address, flow.frontend.port)
    endless = flow.frontend.protocol == "UDP" or not flow.answered
    return untranslated or (endless and flow.replies_from not in targets)


class KernelConntrack:
    """The real thing, in the network namespace of the thread that makes it."""

    def __init__(self, *, timeout: float = 10.0) -> None:
        self._lock = threading.Lock()
        self._socket = NetlinkSocket(nl.NETLINK_NETFILTER, timeout=timeout)

    def close(self) -> None:
        with self._lock:
            self._socket.close()

    def clean(self, wanted: Mapping[Frontend, Collection[Target]], ranges: Sequence[str] = ()) -> int:
        protocols = {frontend.protocol for frontend in wanted} | ({"UDP"} if ranges else set())
        networks = [ipaddress.IPv4Network(each) for each in ranges]
        with self._lock:
            stale: list[Message] = []
            for protocol in sorted(protocols):
                for body in self._list(_NUMBERS[protocol]):
                    flow = read_flow(body)
                    if flow is not None and is_stale(flow, wanted, networks):
                        stale.append(delete_message(body))
            # an entry that ended by itself meanwhile is as good as deleted
            failures = [f for f in self._socket.batch(stale) if f.errno != errno.ENOENT]
        if failures:
            raise NetlinkError(f"delete {len(failures)} conntrack entries: {failures[0]}", failures[0].errno)
        return len(stale)

    def flows(self, protocol: str) -> list[Flow]:
        """Every IPv4 entry of the protocol ("TCP" or "UDP")."""
        with self._lock:
            found = [read_flow(body) for body in self._list(_NUMBERS[protocol])]
        return [flow for flow in found if flow is not None]

    def _list(self, protocol: int) -> Iterator[memoryview]:
        try:
            for _, body in self._socket.dump(list_message(protocol)):
                yield body
        except DumpInterrupted:
            # the table is never still; what it had when we began was listed
            return


def list_message(protocol: int) -> Message:
    """List the IPv4 entries of one protocol (Linux 5.8 and later select in the kernel)."""
    selected = nl.nest(_TUPLE_ORIG, nl.nest(_TUPLE_IP), nl.nest(_TUPLE_PROTO, nl.u8(_PROTO_NUM, protocol)))
    flags = nl.nest(_FILTER, nl.u32(_FILTER_ORIG_FLAGS, _FILTER_PROTO_NUM), nl.u32(_FILTER_REPLY_FLAGS, 0))
    return Message(_SUBSYSTEM | _GET, 0, _GENMSG + selected + flags)


def delete_message(body: memoryview) -> Message:
    """Delete exactly the listed entry: by its tuple and its id, lest a successor be hit."""
    found = nl.attribute_map(body[4:])
    named = nl.attr(_TUPLE_ORIG | nl.NLA_F_NESTED, found[_TUPLE_ORIG])
    return Message(_SUBSYSTEM | _DELETE, 0, _GENMSG + named + nl.attr(_ID, found[_ID]))


def read_flow(body: memoryview) -> Flow | None:
    """Decode a listed entry; None when it is neither TCP nor UDP over IPv4."""
    found = nl.attribute_map(body[4:])
    if _TUPLE_ORIG not in found or _TUPLE_REPLY not in found:
        return None
    original, reply = nl.attribute_map(found[_TUPLE_ORIG]), nl.attribute_map(found[_TUPLE_REPLY])
    addresses, ports = nl.attribute_map(original[_TUPLE_IP]), nl.attribute_map(original[_TUPLE_PROTO])
    protocol = _PROTOCOLS.get(ports[_PROTO_NUM][0])
    if protocol is None or _IP_DST not in addresses:
        return None
    source = nl.attribute_map(reply[_TUPLE_IP])[_IP_SRC]
    return Flow(
        Frontend(inet_ntop(AF_INET, addresses[_IP_DST]), protocol, nl.get_be16(ports[_PROTO_DST_PORT])),
        Target(inet_ntop(AF_INET, source), nl.get_be16(nl.attribute_map(reply[_TUPLE_PROTO])[_PROTO_SRC_PORT])),
        answered=bool(nl.get_be32(found[_STATUS]) & _SEEN_REPLY),
    )
