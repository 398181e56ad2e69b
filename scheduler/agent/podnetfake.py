"""A pod network in memory that refuses what the kernel would refuse.

Owns: a bridge, its ports and what the pods' sides look like, for tests.
Invariants: those of `PodNet`; a port goes when the process whose namespace its
other side is in ends. tests/kernel/test_agent_podnet.py holds it and the
kernel to one suite. What is done by hand there are the methods in the middle.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface

from scheduler.agent.network import NetworkSpec
from scheduler.agent.podnet import BRIDGE, Bridge, Change, Plug, PodNetError, Port, mac_of, plan_bridge


@dataclass(frozen=True, slots=True)
class Inside:
    """A pod's side: `ip address` and `ip route` of its eth0; `gateway6` is IPv6's where there are both."""

    addresses: frozenset[str]
    mac: str
    mtu: int
    gateway: str
    gateway6: str = ""


@dataclass(slots=True)
class _Pair:
    port: Port
    joined: bool
    pid: int
    inside: Inside = field(default_factory=lambda: Inside(frozenset(), "", 0, ""))


class FakePodNet:
    """`alive`: whether a process exists. `refusal`, when set, is what every attachment fails with."""

    def __init__(self, alive: Callable[[int], bool]) -> None:
        self._alive = alive
        self._lock = threading.RLock()
        self._pairs: dict[str, _Pair] = {}
        self.bridge: Bridge | None = None
        self.refusal = ""
        self.calls: list[str] = []
        self._watchers: list[Callable[[str], None]] = []

    # --- PodNet -----------------------------------------------------------------------

    def ensure(self, network: NetworkSpec) -> tuple[Change, ...]:
        with self._lock:
            changes = plan_bridge(network, self.bridge)
            for change in changes:
                self.bridge = _changed(self.bridge, change)
                self.calls.append(str(change))
            return changes

    def ports(self) -> dict[str, Port]:
        with self._lock:
            self._bury()
            return {link: pair.port for link, pair in self._pairs.items() if pair.joined and self.bridge}

    def plugs(self) -> frozenset[str]:
        with self._lock:
            self._bury()
            return frozenset(self._pairs)

    def attach(self, plug: Plug, pid: int) -> None:
        with self._lock:
            self._bury()
            what = f"attach {plug.container[:12]} to {BRIDGE}"
            self.calls.append(f"attach {plug.container[:12]} {plug.alias}")
            if self.refusal:
                raise PodNetError(f"{what}: {self.refusal}")
            if not self._alive(pid):
                raise PodNetError(f"{what}: enter namespace /proc/{pid}/ns/net: No such file or directory")
            if self.bridge is None:
                raise PodNetError(f"{what}: no such bridge")
            if any(pair.pid == pid and link != plug.link for link, pair in self._pairs.items()):
                raise PodNetError(f"{what}: its namespace has an eth0 of another's making")
            mtu = plug.network.mtu
            addresses = frozenset(str(interface) for interface, _ in plug.routes)
            inside = Inside(addresses, mac_of(plug.ip), mtu, *(gateway for _, gateway in plug.routes))
            port = Port(plug.link, plug.alias, mtu, up=True, hairpin=True)
            self._pairs[plug.link] = _Pair(port, joined=True, pid=pid, inside=inside)

    def detach(self, links: Collection[str]) -> None:
        with self._lock:
            for link in links:
                if self._pairs.pop(link, None) is not None:
                    self.calls.append(f"ip link delete {link}")
                    self._tell(link)

    def watch(self, stop: threading.Event, gone: Callable[[str], None]) -> None:
        with self._lock:
            self._watchers.append(gone)
        stop.wait()
        with self._lock:
            self._watchers.remove(gone)

    # --- by hand ------------------------------------------------------------------------

    def look(self, pid: int) -> Inside | None:
        """What a process's namespace has for an eth0."""
        with self._lock:
            return next((pair.inside for pair in self._pairs.values() if pair.pid == pid), None)

    def delete_bridge(self) -> None:
        with self._lock:
            self.bridge = None
            for pair in self._pairs.values():
                pair.joined = False
                pair.port = replace(pair.port, hairpin=False)
            self._tell(BRIDGE)

    def set_bridge(self, *, mtu: int, address: str, mac: str) -> None:
        """Another MTU and MAC, and one more address."""
        with self._lock:
            assert self.bridge is not None
            addresses = self.bridge.addresses | {ip_interface(address)}
            self.bridge = replace(self.bridge, mtu=mtu, mac=mac, addresses=addresses, up=False)

    def occupy(self) -> None:
        """Something that is no bridge takes its name."""
        with self._lock:
            self.bridge = Bridge("dummy", "02:00:00:00:00:01", 1500, up=False, addresses=frozenset())

    def unplug(self, link: str) -> None:
        """Take a port off the bridge."""
        with self._lock:
            self._pairs[link].joined = False
            self._tell(link)

    def set_down(self, link: str) -> None:
        with self._lock:
            pair = self._pairs[link]
            pair.port = replace(pair.port, up=False)

    def _tell(self, link: str) -> None:
        for watcher in self._watchers:
            watcher(link)

    def _bury(self) -> None:
        gone = [link for link, pair in self._pairs.items() if not self._alive(pair.pid)]
        for link in gone:
            del self._pairs[link]


def _changed(bridge: Bridge | None, change: Change) -> Bridge:
    if change.verb == "create":
        assert bridge is None, "the kernel would say: file exists"
        mac, mtu = change.value.split()
        return Bridge("bridge", mac, int(mtu), up=False, addresses=frozenset())
    assert bridge is not None, "the kernel would say: no such device"
    match change.verb:
        case "set mac":
            return replace(bridge, mac=change.value)
        case "set mtu":
            return replace(bridge, mtu=int(change.value))
        case "set up":
            return replace(bridge, up=True)
        case "delete address":
            assert ip_interface(change.value) in bridge.addresses, "cannot assign requested address"
            return replace(bridge, addresses=bridge.addresses - {ip_interface(change.value)})
        case _:
            return replace(bridge, addresses=bridge.addresses | {ip_interface(change.value)})
