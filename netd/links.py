"""Making and changing links and addresses of this network namespace, through pyroute2.

Owns: every message that changes a link or an address; a host has few of them,
unlike the routes, neighbours and FDB entries, which come in thousands and go
by rtnetlink.py. Reading is rtlink.py's. Invariants: a `Links` lives for one
operation, in one thread and one network namespace, and leaves no socket and no
event loop behind (pyroute2 0.9 runs an asyncio loop of its own in every
socket, so the loop is made and closed here); all it does together ends by the
deadline or raises, which pyroute2 alone does not see to. Errors are podlane's
NetlinkError with the kernel's errno, as from the bulk socket.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Interface
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkDecodeError
from pyroute2.netlink.exceptions import NetlinkError as IPRouteError

from netd.model import Device, InterfaceAddress
from netd.rtlink import index_of
from podlane.runtime.netlink import NetlinkError

_DEADLINE = 10.0
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_IPV6 = Path("/proc/sys/net/ipv6/conf")


class Links:
    """Use `open_links`. Every method raises NetlinkError, or OSError (ENODEV) for a name that is not there."""

    def __init__(self, ipr: Any) -> None:
        self._ipr = ipr

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
            data["vxlan_local" if device.local.version == 4 else "vxlan_local6"] = str(device.local)
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

    def add_address(self, name: str, address: InterfaceAddress) -> None:
        """An IPv6 address is usable at once, and IPv6 is turned on where it is off on this link."""
        index = index_of(name)
        flags = {}
        if isinstance(address, IPv6Interface):
            _enable_ipv6(name)
            # duplicates cannot be detected where nobody is asked; the prefix's route is netd's own business
            flags = {"flags": _IFA_F_NODAD | _IFA_F_NOPREFIXROUTE}
        self._ipr.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **flags)

    def delete_address(self, name: str, address: InterfaceAddress) -> None:
        self._ipr.addr("del", index=index_of(name), address=str(address.ip), prefixlen=address.network.prefixlen)


def _enable_ipv6(name: str) -> None:
    disabled = _IPV6 / name / "disable_ipv6"
    try:
        if disabled.read_text().strip() != "0":
            disabled.write_text("0\n")
    except OSError as error:
        # adding the address will tell what is wrong, if anything is
        if error.errno != errno.ENOENT:
            raise


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
