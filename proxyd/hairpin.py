"""Bridge ports that must be able to give a packet back to the pod it came from.

Owns: the hairpin flag of the ports of bridges that have an address, of either
family, in the pod networks. Invariant: only such ports are changed, and only to on.

Why: with bridge traffic in netfilter, a pod's packet to a service is translated
in the bridge itself; when the pick is a pod on the same bridge it is bridged
on, and a bridge does not send a packet out of the port it came in by. So a pod
that is sent to itself would hear nothing, with or without the masquerade.
Docker sets the flag only when its userland proxy is off. Ports come with each
pod, so links are watched.
Source: linux/net/bridge/br_netfilter_hooks.c (br_nf_pre_routing_finish),
br_forward.c (should_deliver); kubelet's --hairpin-mode=hairpin-veth.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
import threading
from collections.abc import Callable, Sequence

from podlane.runtime import netlink as nl
from podlane.runtime.log import get_logger
from podlane.runtime.netlink import NETLINK_ROUTE, Message, NetlinkError, NetlinkSocket

_RTM_GETLINK, _RTM_SETLINK, _RTM_GETADDR = 18, 19, 22
_GROUP_LINK = 1
_AF_UNSPEC, _AF_BRIDGE = 0, 7
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_IFLA_MASTER, _IFLA_PROTINFO, _BRPORT_MODE = 10, 12, 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2  # IPv6 has the first only; where both are, the second is this host's
_WAIT = 1.0  # seconds a stop may go unnoticed


class Hairpin:
    """For the network namespace of the thread that makes it. `sync` belongs to a Runner.

    `pod_networks` gives the networks of both families in CIDR form, or raises NotReady.
    """

    def __init__(self, pod_networks: Callable[[], Sequence[str]], *, timeout: float = 10.0) -> None:
        self._pod_networks = pod_networks
        self._socket = NetlinkSocket(NETLINK_ROUTE, timeout=timeout)
        self._events = NetlinkSocket(NETLINK_ROUTE, groups=[_GROUP_LINK])
        self._log = get_logger("proxyd")

    def close(self) -> None:
        self._socket.close()
        self._events.close()

    def sync(self) -> None:
        """Set the flag where it is missing. Raises NetlinkError, NotReady."""
        bridges = self._bridges([ipaddress.ip_network(each) for each in self._pod_networks()])
        ports = [index for index, master, on in self._ports() if master in bridges and not on]
        failures = self._socket.batch([_turn_on(index) for index in ports])
        # a port that left meanwhile needs nothing
        real = [failure for failure in failures if failure.errno not in {errno.ENODEV, errno.EOPNOTSUPP}]
        if real:
            raise NetlinkError(f"set hairpin on port {ports[real[0].index]}: {real[0]}", real[0].errno)
        if len(ports) > len(failures):
            self._log.info("hairpin set on bridge ports", ports=len(ports) - len(failures))

    def watch(self, stop: threading.Event, trigger: Callable[[], None]) -> None:
        """Call `trigger` when a link changes: the body of one thread."""
        while not stop.is_set():
            try:
                changed = bool(self._events.receive(_WAIT))
            except NetlinkError:
                changed = True  # some notices were lost: look at all
            if changed:
                trigger()

    def _bridges(self, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> set[int]:
        """Links with an address in the networks. That they are bridges shows in their having ports."""
        found = set()
        request = Message(_RTM_GETADDR, 0, _IFADDR.pack(_AF_UNSPEC, 0, 0, 0, 0))
        for _, body in self._socket.dump(request):
            attributes = nl.attribute_map(body[8:])
            packed = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))
            if packed is None:
                continue
            address = ipaddress.ip_address(bytes(packed))
            if any(address in network for network in networks):  # never in one of the other family
                found.add(int(_IFADDR.unpack_from(body)[4]))
        return found

    def _ports(self) -> list[tuple[int, int, bool]]:
        """(port, its bridge, whether the flag is on) of each bridge port."""
        found = []
        for _, body in self._socket.dump(Message(_RTM_GETLINK, 0, _IFINFO.pack(_AF_BRIDGE, 0, 0, 0, 0))):
            attributes = nl.attribute_map(body[16:])
            if _IFLA_MASTER not in attributes or _IFLA_PROTINFO not in attributes:
                continue
            mode = nl.attribute_map(attributes[_IFLA_PROTINFO]).get(_BRPORT_MODE)
            index = int(_IFINFO.unpack_from(body)[2])
            found.append((index, nl.get_u32(attributes[_IFLA_MASTER]), mode is not None and mode[0] == 1))
        return found


def _turn_on(index: int) -> Message:
    return Message(
        _RTM_SETLINK, 0, _IFINFO.pack(_AF_BRIDGE, 0, index, 0, 0) + nl.nest(_IFLA_PROTINFO, nl.u8(_BRPORT_MODE, 1))
    )
