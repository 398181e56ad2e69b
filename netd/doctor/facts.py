"""What the doctor reads of this host. The only part besides the probes that looks outside.

Owns: collecting. Invariants: nothing is changed; what cannot be read is left
out and named in `unread`, and stops nothing else. The network namespace is the
calling thread's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

from netd.desired import Lease, Underlay
from netd.doctor.offload import features
from netd.doctor.ruleset import Ruleset, SetKey
from netd.model import Actual, Desired
from podlane.api.network import NetworkConfig
from podlane.api.subnets import Address, Network, Subnets
from podlane.runtime.command import CommandError, run

_TIMEOUT = 10.0
_PROC_SYS = Path("/proc/sys")
_PROC_NET = Path("/proc/thread-self/net")  # /proc/net is the process's, which may be in another namespace

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class DoctorContext:
    """What netd knows and wants on this host.

    `own` is None, and `desired` nearly empty, while this host has no lease.
    `leases` are all that can be read, this host's included; `undecodable` says
    why others cannot, by key.
    """

    config: NetworkConfig
    underlay: Underlay
    own: Subnets | None
    leases: tuple[Lease, ...]
    undecodable: Mapping[str, str]
    actual: Actual
    desired: Desired

    @property
    def own_lease(self) -> Lease | None:
        return next((lease for lease in self.leases if lease.subnets == self.own), None)

    @property
    def peers(self) -> tuple[Lease, ...]:
        """Other hosts' leases."""
        return tuple(lease for lease in self.leases if lease.subnets != self.own)


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A route of the main table. `kind` is unicast, blackhole, unreachable or prohibit."""

    destination: Network
    device: str
    gateway: Address | None = None
    protocol: str = ""
    kind: str = "unicast"
    metric: int = 0


@dataclass(frozen=True, slots=True)
class HostFacts:
    """`sysctls` by path below /proc/sys; `features` by interface; `ruleset` None when it could not be read."""

    sysctls: Mapping[str, str] = field(default_factory=dict)
    routes: tuple[HostRoute, ...] = ()
    ruleset: Ruleset | None = None
    legacy_rules: str = ""
    features: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)

    def strict_rp_filter(self, interface: str) -> bool:
        """Whether the kernel drops what arrives there from addresses it would not send there. IPv4 only."""
        # the kernel takes the higher of the two (ip-sysctl, rp_filter); 1 is strict, 2 loose
        values = [self.sysctls.get(f"net/ipv4/conf/{each}/rp_filter", "0") for each in ("all", interface)]
        return max(values) == "1"

    def route_to(self, address: Address) -> HostRoute | None:
        """The main table's best route; rules and other tables are not looked at."""
        best = None
        for route in self.routes:
            if route.destination.version != address.version or address not in route.destination:
                continue
            if best is None or (route.destination.prefixlen, -route.metric) > (
                best.destination.prefixlen,
                -best.metric,
            ):
                best = route
        return best


def collect(context: DoctorContext) -> HostFacts:
    unread: dict[str, str] = {}
    devices = [context.underlay.name, *context.desired.devices]
    ruleset = _attempt("nft ruleset", unread, _ruleset)
    return HostFacts(
        sysctls=_sysctls(devices),
        routes=_attempt("routes", unread, _routes) or (),
        ruleset=ruleset,
        legacy_rules=_legacy_rules(),
        features={name: known for name in devices if (known := features(name)) is not None},
        unread=unread,
    )


def reverse_path_drops() -> int:
    """How many packets rp_filter has dropped in this namespace; 0 when the kernel does not tell."""
    try:
        lines = (_PROC_NET / "netstat").read_text().splitlines()
    except OSError:
        return 0
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if "IPReversePathFilter" in names.split():
            return int(values.split()[names.split().index("IPReversePathFilter")])
    return 0


def _attempt(what: str, unread: dict[str, str], read: Callable[[], _T]) -> _T | None:
    try:
        return read()
    except (CommandError, ValueError, KeyError) as error:
        unread[what] = str(error)
        return None


def _sysctls(devices: Iterable[str]) -> dict[str, str]:
    paths = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]
    for name in ("all", "default", *devices):
        paths += [f"net/ipv4/conf/{name}/rp_filter", f"net/ipv4/conf/{name}/forwarding"]
    found = {}
    for path in paths:
        try:
            found[path] = (_PROC_SYS / path).read_text().strip()
        except OSError:
            continue
    return found


def _routes() -> tuple[HostRoute, ...]:
    found: list[HostRoute] = []
    for family in ("-4", "-6"):
        listed = run(["ip", "-j", family, "route", "show", "table", "main"], timeout=_TIMEOUT).stdout
        found += [_route(each, family) for each in json.loads(listed or "[]")]
    return tuple(found)


def _route(raw: Mapping[str, Any], family: str) -> HostRoute:
    everything = "0.0.0.0/0" if family == "-4" else "::/0"
    destination = everything if raw["dst"] == "default" else raw["dst"]
    gateway = raw.get("gateway") or raw.get("via", {}).get("host")
    return HostRoute(
        ip_network(destination),
        raw.get("dev", ""),
        ip_address(gateway) if gateway else None,
        str(raw.get("protocol", "")),
        raw.get("type", "unicast"),
        int(raw.get("metric", 0)),
    )


def _ruleset() -> Ruleset:
    # without the sets' elements: a proxy's have tens of thousands, and nft 1.0.6 crashes listing some maps
    listed = json.loads(run(["nft", "-j", "-t", "list", "ruleset"], timeout=_TIMEOUT).stdout)["nftables"]
    named = Ruleset(listed, {}).named_sets()
    sets = {key: elements for key in sorted(named) if (elements := _elements(key)) is not None}
    return Ruleset(listed, sets)


def _elements(key: SetKey) -> Sequence[Any] | None:
    done = run(["nft", "-j", "list", "set", *key], timeout=_TIMEOUT, check=False)
    if done.returncode:
        return None  # a map, or gone by now
    for each in json.loads(done.stdout)["nftables"]:
        if "set" in each:
            elements: Sequence[Any] = each["set"].get("elem", ())
            return elements
    return None


def _legacy_rules() -> str:
    """What iptables' older backend holds, which nft does not list; empty where there is none."""
    try:
        if "filter" not in (_PROC_NET / "ip_tables_names").read_text().split():
            return ""  # asking would make the table
        return run(["iptables-legacy-save", "-t", "filter"], timeout=_TIMEOUT).stdout
    except (OSError, CommandError):
        return ""
