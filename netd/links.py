"""Making and changing links and addresses of this network namespace.

Owns: all that changes a link or an address; a host has few of them, unlike the
routes, neighbours and FDB entries, which come in thousands. The messages are
rtlink.py's. Invariants: a `Links` lives for one operation, in one thread and
one network namespace; all it does together ends by the deadline or raises.
Errors are NetlinkError with the kernel's errno and words.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Interface
from pathlib import Path

from netd import rtlink as rl
from netd.model import Device, InterfaceAddress
from podlane.runtime.netlink import NETLINK_ROUTE, Message, NetlinkError, NetlinkSocket

_DEADLINE = 10.0
_IPV6 = Path("/proc/sys/net/ipv6/conf")


class Links:
    """Use `open_links`. Every method raises NetlinkError, or OSError (ENODEV) for a name that is not there."""

    def __init__(self, nl: NetlinkSocket, ends: float) -> None:
        self._nl = nl
        self._ends = ends  # monotonic seconds

    def add_vxlan(self, device: Device) -> None:
        """Made down and without addresses, whatever `device` says."""
        self._ask(rl.new_vxlan(device, rl.index_of(device.underlay) if device.underlay else 0))

    def delete(self, name: str) -> None:
        self._ask(rl.delete_link(rl.index_of(name)))

    def set_mac(self, name: str, mac: str) -> None:
        self._ask(rl.set_link(rl.index_of(name), mac=mac))

    def set_mtu(self, name: str, mtu: int) -> None:
        self._ask(rl.set_link(rl.index_of(name), mtu=mtu))

    def set_up(self, name: str) -> None:
        self._ask(rl.set_link(rl.index_of(name), up=True))

    def add_address(self, name: str, address: InterfaceAddress) -> None:
        """An IPv6 address is usable at once, and IPv6 is turned on where it is off on this link."""
        index = rl.index_of(name)
        if isinstance(address, IPv6Interface):
            _enable_ipv6(name)
        self._ask(rl.new_address(index, address))

    def delete_address(self, name: str, address: InterfaceAddress) -> None:
        self._ask(rl.delete_address(rl.index_of(name), address))

    def _ask(self, message: Message) -> None:
        self._nl.timeout = max(0.0, self._ends - time.monotonic())
        for failure in self._nl.batch([message]):
            raise NetlinkError(str(failure), failure.errno)


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
    ends = time.monotonic() + deadline
    try:
        nl = NetlinkSocket(NETLINK_ROUTE)
    except OSError as error:
        raise NetlinkError(f"open netlink socket: {error.strerror or error}", error.errno or 0) from error
    with nl:
        yield Links(nl, ends)
