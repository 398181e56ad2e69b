"""What the host needs besides our table: forwarding, bridge traffic in netfilter, a route.

Owns: three sysctls of this network namespace and one route. Invariant: only
what is missing is set, and set again at every resync.

  net.ipv4.ip_forward=1                    translated packets leave for other hosts
  net.bridge.bridge-nf-call-iptables=1     the answer of a pod on the same bridge passes the
                                           translation instead of going straight to the caller
  a route that covers the service range    without one, the host's own connections fail with
                                           "network is unreachable" before any hook sees them
The route goes to `lo`, which never disappears: the translation in the output
hook makes the kernel route again. Its MTU is the smallest of the host's links,
since lo's 65536 would let large datagrams be built that then do not fit.
Source: linux/Documentation/networking/ip-sysctl.rst, bridge.rst; ip-route(8).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from podlane.errors import PodlaneError
from podlane.runtime import command

_TIMEOUT = 10.0
_ROUTE_PROTOCOL = "253"  # by which our routes are known; the low numbers are routing daemons'
_SYSCTLS = (("net/ipv4/ip_forward", "1"), ("net/bridge/bridge-nf-call-iptables", "1"))


class Host(Protocol):
    """The host's own settings."""

    def ensure(self, service_ranges: Sequence[str]) -> list[str]:
        """Set what is missing and return it, one text a change. Raises PodlaneError."""
        ...


class KernelHost:
    """The real thing. `proc_sys` is where sysctls are; the kernel shows the caller's network namespace there."""

    def __init__(self, *, proc_sys: Path = Path("/proc/sys")) -> None:
        self._proc_sys = proc_sys
        self._module_tried = False

    def ensure(self, service_ranges: Sequence[str]) -> list[str]:
        done = []
        for name, wanted in _SYSCTLS:
            done += self._set(name, wanted)
        for network in service_ranges:
            done += self._route(network)
        return done

    def _set(self, name: str, wanted: str) -> list[str]:
        path = self._proc_sys / name
        if not path.exists() and not self._module_tried:
            self._module_tried = True
            # built in, or loaded by whoever makes the bridge: then this fails and is not needed
            with suppress(PodlaneError):
                command.run(["modprobe", "br_netfilter"], timeout=_TIMEOUT)
        try:
            if path.read_text().strip() == wanted:
                return []
            path.write_text(wanted)
        except FileNotFoundError:
            return []  # no br_netfilter, so no bridge that pods could share
        except OSError as error:
            raise PodlaneError(f"set sysctl {name.replace('/', '.')}={wanted}: {error.strerror}") from error
        return [f"sysctl {name.replace('/', '.')}={wanted}"]

    def _route(self, network: str) -> list[str]:
        # "match" lists every route that covers the network, the default route too
        if _json(["ip", "-j", "-4", "route", "show", "match", network]):
            return []
        command.run(["ip", "link", "set", "lo", "up"], timeout=_TIMEOUT)
        mtus = [link["mtu"] for link in _json(["ip", "-j", "link", "show"]) if link["ifname"] != "lo"]
        mtu = min((mtu for mtu in mtus if mtu >= 576), default=1500)
        route = ["ip", "route", "replace", network, "dev", "lo", "proto", _ROUTE_PROTOCOL, "mtu", str(mtu)]
        command.run(route, timeout=_TIMEOUT)
        return [" ".join(route[1:])]

    def remove(self) -> None:
        """Take our routes away; the sysctls stay, others rely on them too."""
        command.run(["ip", "route", "flush", "proto", _ROUTE_PROTOCOL], timeout=_TIMEOUT, check=False)


def _json(argv: list[str]) -> list[dict[str, Any]]:
    text = command.run(argv, timeout=_TIMEOUT).stdout.strip()
    return list(json.loads(text)) if text else []
