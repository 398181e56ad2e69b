"""Links and IPv4 addresses of this network namespace, through pyroute2.

Owns: every message about a link or an address; a host has few of them, unlike
the routes, neighbours and FDB entries, which come in thousands and go by
rtnetlink.py. Invariants: a `Links` lives for one operation, in one thread and
one network namespace, and leaves no socket and no event loop behind (pyroute2
0.9 runs an asyncio loop of its own in every socket, so the loop is made and
closed here); all it does together ends by the deadline or raises, which
pyroute2 alone does not see to. Errors are podlane's NetlinkError with the
kernel's errno, as from the bulk socket.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkDecodeError
from pyroute2.netlink.exceptions import NetlinkError as IPRouteError

from netd.model import Device
from podlane.runtime.netlink import NLM_F_DUMP_INTR, DumpInterrupted, NetlinkError

_DEADLINE = 10.0
_DUMP_ATTEMPTS = 5
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_RT_SCOPE_UNIVERSE = 0
_RTEXT_FILTER_SKIP_STATS = 1 << 3  # a link's counters are most of its description


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the kernel describes it; `data` is what its kind adds (for VXLAN: IFLA_VXLAN_…)."""

    index: int
    name: str
    flags: int
    mtu: int
    mac: str
    kind: str
    data: Any

    @property
    def up(self) -> bool:
        return bool(self.flags & _IFF_UP)

    @property
    def loopback(self) -> bool:
        return bool(self.flags & _IFF_LOOPBACK)

    def vxlan(self, addresses: frozenset[IPv4Interface]) -> Device:
        """The VXLAN device this link is."""
        local = self.data.get("IFLA_VXLAN_LOCAL")
        return Device(
            name=self.name,
            vni=self.data.get("IFLA_VXLAN_ID"),
            port=self.data.get("IFLA_VXLAN_PORT"),
            local=IPv4Address(local) if local else None,
            underlay=name_of(self.data.get("IFLA_VXLAN_LINK") or 0),
            mtu=self.mtu,
            mac=self.mac,
            learning=bool(self.data.get("IFLA_VXLAN_LEARNING")),
            gbp=bool(self.data.get("IFLA_VXLAN_GBP")),
            up=self.up,
            addresses=addresses,
        )


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address; `usable` from other hosts when its scope is global."""

    index: int
    address: IPv4Interface
    usable: bool


class Links:
    """Use `open_links`. Every method raises NetlinkError."""

    def __init__(self, ipr: Any) -> None:
        self._ipr = ipr

    def find(self, name: str) -> Link | None:
        try:
            (found,) = self._ipr.link("get", ifname=name, ext_mask=_RTEXT_FILTER_SKIP_STATS)
        except IPRouteError as error:
            if error.code == errno.ENODEV:
                return None
            raise
        return _link(found)

    def all(self) -> list[Link]:
        return [_link(each) for each in self._dump("link", ext_mask=_RTEXT_FILTER_SKIP_STATS)]

    def addresses(self) -> list[Address]:
        return [_address(each) for each in self._dump("addr", family=socket.AF_INET)]

    def add_vxlan(self, device: Device) -> None:
        """Made down and without addresses, whatever `device` says."""
        data: dict[str, object] = {
            "vxlan_id": device.vni,
            "vxlan_port": device.port,
            "vxlan_learning": int(device.learning),
        }
        if device.underlay:
            data["vxlan_link"] = index_of(device.underlay)
        if device.local is not None:
            data["vxlan_local"] = str(device.local)
        if device.gbp:
            data["vxlan_gbp"] = True
        self._ipr.link("add", ifname=device.name, kind="vxlan", address=device.mac, mtu=device.mtu, **data)

    def delete(self, name: str) -> None:
        self._ipr.link("del", index=index_of(name))

    def set_mac(self, name: str, mac: str) -> None:
        self._ipr.link("set", index=index_of(name), address=mac)

    def set_mtu(self, name: str, mtu: int) -> None:
        self._ipr.link("set", index=index_of(name), mtu=mtu)

    def set_up(self, name: str) -> None:
        self._ipr.link("set", index=index_of(name), state="up")

    def add_address(self, name: str, address: IPv4Interface) -> None:
        self._ipr.addr("add", index=index_of(name), address=str(address.ip), prefixlen=address.network.prefixlen)

    def delete_address(self, name: str, address: IPv4Interface) -> None:
        self._ipr.addr("del", index=index_of(name), address=str(address.ip), prefixlen=address.network.prefixlen)

    def _dump(self, what: str, **request: object) -> list[Any]:
        for _ in range(_DUMP_ATTEMPTS):
            found = list(getattr(self._ipr, what)("dump", **request))
            # pyroute2 0.9 knows this flag and does not look at it
            if not any(each["header"]["flags"] & NLM_F_DUMP_INTR for each in found):
                return found
        raise DumpInterrupted(f"netlink dump of {what}: changed while it was read")


@contextmanager
def open_links(deadline: float = _DEADLINE) -> Iterator[Links]:
    """Links of the namespace this thread is in; `deadline` in seconds for all that is done with them."""
    try:
        loop = asyncio.new_event_loop()
    except OSError as error:
        raise _cannot_open(error) from error
    try:
        try:
            ipr = IPRoute(use_event_loop=loop, ext_ack=True, strict_check=True)
        except OSError as error:
            raise _cannot_open(error) from error
        with ipr:
            expiry = _Deadline(loop, deadline)
            try:
                yield Links(ipr)
            finally:
                expiry.cancel()
    except asyncio.CancelledError as error:
        raise NetlinkError("wait for netlink answer: deadline passed") from error
    except IPRouteError as error:
        raise NetlinkError(_words(error), error.code) from error
    except NetlinkDecodeError as error:
        raise NetlinkError(f"read netlink answer: {error}") from error
    finally:
        # closing the socket leaves its transport's last callback to the loop
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def name_of(index: int) -> str:
    """An interface's name; empty for index 0, `if7` for one that is gone."""
    if not index:
        return ""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"


def index_of(name: str) -> int:
    """Raises OSError (ENODEV)."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise OSError(errno.ENODEV, f"no interface {name}") from None


class _Deadline:
    """Cancels what the loop is waiting for once `seconds` are over, and whatever it is given after that."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._timer: asyncio.Handle = loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        # a task that ends in this very turn is followed by one for the next part of its dump
        self._timer = self._loop.call_soon(self._expire)

    def cancel(self) -> None:
        self._timer.cancel()


def _cannot_open(error: OSError) -> NetlinkError:
    return NetlinkError(f"open netlink socket: {error.strerror or error}", error.errno or 0)


def _words(error: IPRouteError) -> str:
    """The errno's text and, where the kernel gives one, its own reason."""
    general, reason = os.strerror(error.code), error.args[1]
    return general.lower() if reason == general else f"{general.lower()} ({reason})"


def _link(found: Any) -> Link:
    info = found.get_attr("IFLA_LINKINFO")
    return Link(
        index=found["index"],
        name=found.get_attr("IFLA_IFNAME"),
        flags=found["flags"],
        mtu=found.get_attr("IFLA_MTU") or 0,
        mac=found.get_attr("IFLA_ADDRESS") or "",
        kind=(info and info.get_attr("IFLA_INFO_KIND")) or "",
        data=(info and info.get_attr("IFLA_INFO_DATA")) or {},
    )


def _address(found: Any) -> Address:
    # IFA_ADDRESS is the other end's on a point-to-point link
    own = found.get_attr("IFA_LOCAL") or found.get_attr("IFA_ADDRESS")
    return Address(
        found["index"], IPv4Interface((own, found["prefixlen"])), usable=found["scope"] == _RT_SCOPE_UNIVERSE
    )
