"""What the host needs besides our table: forwarding, bridge traffic in netfilter, conntrack's tolerance, routes.

Owns: a few sysctls of this network namespace and one route a service range.
Invariant: only what is missing is set, and set again at every resync; what
fails does not keep the rest from being set.

  net.ipv4.ip_forward=1                    translated packets leave for other hosts
  net.ipv6.conf.all.forwarding=1           the same, only where there are IPv6 networks; see below
  net.bridge.bridge-nf-call-iptables=1     the answer of a pod on the same bridge passes the
  net.bridge.bridge-nf-call-ip6tables=1    translation instead of going straight to the caller
  net.netfilter.nf_conntrack_tcp_be_liberal=1
                                           segments outside the window conntrack expects are translated
                                           as well. Otherwise it calls them invalid and lets them pass as
                                           they are: the answer of a pod then reaches the client from the
                                           pod's own address, the client knows no such connection and
                                           resets it, in the middle of a transfer that only lost a packet.
                                           It is said for each network namespace, and for all its
                                           connections; `tcp_be_liberal=False` leaves it alone
  a route that covers the service range    without one, the host's own connections fail with
                                           "network is unreachable" before any hook sees them

The route goes to `lo`, which never disappears: the translation in the output
hook makes the kernel route again. Its MTU is the smallest of the host's links,
since lo's 65536 would let large datagrams be built that then do not fit.

Router advertisements: a host that forwards IPv6 ignores them, and loses the
default route it has from them, wherever accept_ra is 1, the default. So before
forwarding is turned on, accept_ra becomes 2 where it is 1 and a router may
speak: on links that have a route from an advertisement, and on hardware, VLAN
and bonding links. Not on pods' links and their bridges: a pod could make itself
the host's default router (CVE-2020-13401). Where forwarding is on already,
who turned it on has chosen.
Source: linux/Documentation/networking/ip-sysctl.rst, bridge.rst,
nf_conntrack-sysctl.rst; linux/net/ipv6/addrconf.c (addrconf_fixup_forwarding); ip-route(8).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from podlane.errors import ApplyError, PodlaneError
from podlane.runtime import command

_TIMEOUT = 10.0
ROUTE_PROTOCOL = "253"  # by which our routes are known; the low numbers are routing daemons'
_FORWARD6 = "net/ipv6/conf/all/forwarding"
_BRIDGE4, _BRIDGE6 = "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"
_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
_LEAST_MTU = {"-4": 576, "-6": 1280}
_USUAL_MTU = 1500
_LEADS_NOWHERE = {"unreachable", "blackhole", "prohibit", "throw"}
_UPLINK_KINDS = {"vlan", "bond", "team", "macvlan", "ipvlan"}
"""Kinds of links made by software that take the place of a network card; a card itself has no kind."""


class Host(Protocol):
    """The host's own settings."""

    def ensure(self, service_ranges: Sequence[str], *, ipv6: bool) -> list[str]:
        """Set what is missing and return it, one text a change.

        `service_ranges`: of both families. `ipv6`: whether pods or services have
        IPv6 addresses, so that the host must forward them. Raises PodlaneError
        when all that could be set is set.
        """
        ...


class KernelHost:
    """The real thing. `proc_sys` is where sysctls are; the kernel shows the caller's network namespace there."""

    def __init__(self, *, proc_sys: Path = Path("/proc/sys"), tcp_be_liberal: bool = True) -> None:
        self._proc_sys = proc_sys
        self._tcp_be_liberal = tcp_be_liberal
        self._module_tried = False

    def ensure(self, service_ranges: Sequence[str], *, ipv6: bool) -> list[str]:
        # a host booted without IPv6 still serves the other family
        ipv6 = ipv6 and (self._proc_sys / "net/ipv6").exists()
        steps: list[tuple[str, Callable[[], list[str]]]] = [
            _sysctl_step("net/ipv4/ip_forward", lambda: self._set("net/ipv4/ip_forward")),
            _sysctl_step(_BRIDGE4, lambda: self._set(_BRIDGE4)),
        ]
        if ipv6:
            steps += [_sysctl_step(_FORWARD6, self._forward6), _sysctl_step(_BRIDGE6, lambda: self._set(_BRIDGE6))]
        if self._tcp_be_liberal:
            steps.append(_sysctl_step(_LIBERAL, lambda: self._set(_LIBERAL)))
        for network in service_ranges:
            if ipv6 or ":" not in network:
                steps.append((f"add route to {network}", lambda network=network: self._route(network)))  # type: ignore[misc]
        return _carry_out(steps)

    def _forward6(self) -> list[str]:
        done: list[str] = []
        if self._read(_FORWARD6) != "0":
            return done
        links = _json(["ip", "-j", "-d", "link", "show"])
        heard = {route["dev"] for route in _json(["ip", "-j", "-6", "route", "show", "proto", "ra"]) if "dev" in route}
        for name in listeners(links, heard):
            # / and not . between the parts, so that a name such as eth0.5 is one
            accept = f"net/ipv6/conf/{name}/accept_ra"
            if self._read(accept) == "1":
                done += self._set(accept, "2")
        return done + self._set(_FORWARD6)

    def _read(self, name: str) -> str | None:
        """Return a sysctl's value; None when there is no such."""
        try:
            return (self._proc_sys / name).read_text().strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PodlaneError(f"read sysctl {name}: {error.strerror}") from error

    def _set(self, name: str, wanted: str = "1") -> list[str]:
        path = self._proc_sys / name
        if name.startswith("net/bridge/") and not path.exists() and not self._module_tried:
            self._module_tried = True
            # built in, or loaded by whoever makes the bridge: then this fails and is not needed
            with suppress(PodlaneError):
                command.run(["modprobe", "br_netfilter"], timeout=_TIMEOUT)
        # absent: no br_netfilter, so no bridge that pods could share; or no conntrack yet, which comes with our table
        if self._read(name) in {wanted, None}:
            return []
        try:
            path.write_text(wanted)
        except OSError as error:
            raise PodlaneError(f"write {wanted}: {error.strerror}") from error
        return [f"{_dotted(name)}={wanted}"]

    def _route(self, network: str) -> list[str]:
        family = "-6" if ":" in network else "-4"
        # "match" lists every route that covers the network, the default route too
        covering = _json(["ip", "-j", family, "route", "show", "match", network])
        if any(route.get("type", "unicast") not in _LEADS_NOWHERE for route in covering):
            return []
        command.run(["ip", "link", "set", "lo", "up"], timeout=_TIMEOUT)
        mtus = [link["mtu"] for link in _json(["ip", "-j", "link", "show"]) if link["ifname"] != "lo"]
        mtu = min((mtu for mtu in mtus if mtu >= _LEAST_MTU[family]), default=_USUAL_MTU)
        route = ["ip", family, "route", "replace", network, "dev", "lo", "proto", ROUTE_PROTOCOL, "mtu", str(mtu)]
        command.run(route, timeout=_TIMEOUT)
        return [" ".join(route[2:])]

    def remove(self) -> None:
        """Take our routes away; the sysctls stay, others rely on them too."""
        for family in _LEAST_MTU:
            command.run(["ip", family, "route", "flush", "proto", ROUTE_PROTOCOL], timeout=_TIMEOUT, check=False)


def listeners(links: Iterable[Mapping[str, Any]], heard: Collection[str]) -> list[str]:
    """On which links router advertisements may be meant for this host.

    `links` as of `ip -j -d link show`; `heard`: names of links with a route from an advertisement.
    """
    return [
        link["ifname"]
        for link in links
        if link["ifname"] != "lo"
        and (
            link["ifname"] in heard
            # a bridge's port does not listen itself
            or ("master" not in link and link.get("linkinfo", {}).get("info_kind") in {None, *_UPLINK_KINDS})
        )
    ]


def _carry_out(steps: Iterable[tuple[str, Callable[[], list[str]]]]) -> list[str]:
    done: list[str] = []
    failures: list[tuple[str, Exception]] = []
    for name, step in steps:
        try:
            done += step()
        except PodlaneError as error:
            failures.append((name, error))
    if failures:
        raise ApplyError(failures)
    return done


def _sysctl_step(name: str, step: Callable[[], list[str]]) -> tuple[str, Callable[[], list[str]]]:
    return f"set {_dotted(name)}", step


def _dotted(name: str) -> str:
    """As sysctl(8) has it: dots between the parts, a slash for a dot in a name."""
    return "sysctl " + name.replace(".", "\0").replace("/", ".").replace("\0", "/")


def _json(argv: list[str]) -> list[dict[str, Any]]:
    text = command.run(argv, timeout=_TIMEOUT).stdout.strip()
    return list(json.loads(text)) if text else []
