"""Ports of the node that lead to a port of a pod: hostPort.

Owns: the nft table `inet podlane-hostports` (and no other), and what is in it:
one map element for each port of each pod that is attached here. Invariants: the
table is loaded as a whole in one transaction, so nobody meets half of it; it
goes with the last pod that has such a port; where someone deleted it, it is made
again at the next look. A pod on the node's own network needs none of this.
127.0.0.1 leads to pods too, for the node itself: that takes `route_localnet` on
the bridge, which is on only while the table is there, and the table keeps pods
from the node's loopback meanwhile. Whoever is on the same bridge is answered
through netfilter only with bridge-nf-call-iptables, which proxyd sets. Source:
the portmap plugin of CNI.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from podlane.api.podresources import is_sidecar
from podlane.api.types import Pod
from podlane.errors import PodlaneError
from podlane.runtime import command, nftables
from podlane.runtime.log import get_logger
from podlane.runtime.netlink import NETLINK_NETFILTER, NetlinkSocket
from scheduler.agent.podnet import BRIDGE

TABLE = "podlane-hostports"
_OURS = nftables.Table(nftables.NFPROTO_INET, TABLE)
_ROUTE_LOCALNET = Path(f"/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet")
_TIMEOUT = 15.0
_RETRY = 5.0
_ANY = {"", "0.0.0.0", "::"}
_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}


@dataclass(frozen=True, slots=True, order=True)
class HostPort:
    """`node_ip` "" is every address of the node of the pod address's family. Protocols in lower case."""

    protocol: str
    node_ip: str
    port: int
    pod_ip: str
    pod_port: int

    @property
    def version(self) -> int:
        return ip_address(self.pod_ip).version


def host_ports(pods: Iterable[Pod], ips: Mapping[str, Collection[str]]) -> frozenset[HostPort]:
    """The node's ports that lead to pods; `ips` has the addresses of those attached here, by UID. Pure.

    Where two pods ask for the same port, the one that was created first has it.
    """
    found: dict[tuple[str, str, int, int], HostPort] = {}
    for pod in sorted(pods, key=lambda p: (str(p.metadata.creation_timestamp), p.metadata.uid)):
        if pod.spec.host_network:
            continue
        for each in _of_pod(pod, ips.get(pod.metadata.uid, ())):
            found.setdefault((each.protocol, each.node_ip, each.port, each.version), each)
    return frozenset(found.values())


def _of_pod(pod: Pod, ips: Collection[str]) -> Iterable[HostPort]:
    sidecars = [container for container in pod.spec.init_containers if is_sidecar(container)]
    for port in (port for container in (*pod.spec.containers, *sidecars) for port in container.ports):
        if not port.host_port:
            continue
        node_ip = "" if port.host_ip in _ANY else port.host_ip
        for ip in ips:
            if not port.host_ip or ip_address(port.host_ip).version == ip_address(ip).version:
                yield HostPort(port.protocol.lower(), node_ip, port.host_port, ip, port.container_port)


def script(ports: Collection[HostPort]) -> str:
    """What `nft -f` makes the table of; without ports, what removes it. Pure."""
    begin = f"add table inet {TABLE}\ndelete table inet {TABLE}\n"
    if not ports:
        return begin
    lines = [f"table inet {TABLE} {{"]
    rules = ["    ip6 daddr ::1 return"]
    for version, family in ((4, "ip"), (6, "ip6")):
        mine = sorted(port for port in ports if port.version == version)
        lines += _sets(mine, version)
        rules += [
            f"    dnat {family} to {family} daddr . meta l4proto . th dport map @one{version}",
            f"    meta nfproto ipv{version} dnat {family} to meta l4proto . th dport map @any{version}",
        ]
    lines += ["  chain ports {", *rules, "  }"]
    for hook in ("prerouting", "output"):
        priority = "dstnat" if hook == "prerouting" else "-100"
        lines += [
            f"  chain {hook} {{",
            f"    type nat hook {hook} priority {priority}; policy accept;",
            "    fib daddr type local jump ports",
            "  }",
        ]
    lines += [
        "  chain guard {",
        "    type filter hook prerouting priority raw; policy accept;",
        f'    iifname "{BRIDGE}" ip daddr 127.0.0.0/8 drop',
        "  }",
        "  chain postrouting {",
        "    type nat hook postrouting priority srcnat; policy accept;",
        f'    ct status dnat oifname "{BRIDGE}" ip saddr 127.0.0.0/8 masquerade',
        "    ct status dnat ip saddr . ip daddr @self4 masquerade",
        "    ct status dnat ip6 saddr . ip6 daddr @self6 masquerade",
        "  }",
        "}",
    ]
    return begin + "\n".join(lines) + "\n"


def _sets(ports: Collection[HostPort], version: int) -> list[str]:
    kind = _TYPES[version]
    one = [f"{p.node_ip} . {p.protocol} . {p.port} : {p.pod_ip} . {p.pod_port}" for p in ports if p.node_ip]
    every = [f"{p.protocol} . {p.port} : {p.pod_ip} . {p.pod_port}" for p in ports if not p.node_ip]
    own = sorted({f"{p.pod_ip} . {p.pod_ip}" for p in ports})
    return [
        *_set("map", f"one{version}", f"{kind} . inet_proto . inet_service : {kind} . inet_service", one),
        *_set("map", f"any{version}", f"inet_proto . inet_service : {kind} . inet_service", every),
        *_set("set", f"self{version}", f"{kind} . {kind}", own),
    ]


def _set(what: str, name: str, types: str, elements: list[str]) -> list[str]:
    body = [f"    elements = {{ {', '.join(elements)} }}"] if elements else []
    return [f"  {what} {name} {{", f"    type {types}", *body, "  }"]


class HostPorts:
    """The table in the kernel of the network namespace we are in. For one thread."""

    def __init__(self) -> None:
        self._loaded: frozenset[HostPort] | None = None
        """What is in the table as far as we know; None: that is not known."""
        self._log = get_logger("hostports")

    def sync(self, wanted: frozenset[HostPort]) -> float | None:
        """Make the table right; returns in how many seconds to try again after a failure, None when all is well."""
        if not wanted and self._loaded == wanted:
            return None
        try:
            if not _exists():
                self._loaded = frozenset()
            if not wanted:
                _set_route_localnet(on=False)
            if wanted != self._loaded:
                command.run(["nft", "-f", "-"], input=script(wanted), timeout=_TIMEOUT)
                self._log.info("host ports written", ports=len(wanted))
            if wanted:
                _set_route_localnet(on=True)
            self._loaded = wanted
        except (PodlaneError, OSError) as error:
            self._loaded = None
            self._log.warning("host ports not written", error=str(error), retry_in=_RETRY)
            return _RETRY
        return None


def _exists() -> bool:
    with NetlinkSocket(NETLINK_NETFILTER) as socket:
        return nftables.exists(socket, _OURS)


def _set_route_localnet(*, on: bool) -> None:
    wanted = "1" if on else "0"
    try:
        if _ROUTE_LOCALNET.read_text().strip() != wanted:
            _ROUTE_LOCALNET.write_text(wanted)
    except FileNotFoundError:
        return  # no bridge (any more): whoever makes it anew looks again
