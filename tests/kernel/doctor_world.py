"""Hosts joined by an overlay as netd builds it, without netd: what the doctor's tests break.

Owns: leases, desired state and devices of a few hosts, made through netd's own
planner and kernel adapter. Nothing runs on a host but its kernel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from netd.desired import Lease, Peers, Underlay, carriers, lease_value
from netd.doctor.diagnosis import diagnose
from netd.doctor.facts import DoctorContext
from netd.doctor.finding import Finding, exit_code
from netd.kernel import LinuxKernel
from netd.model import Actual, Desired
from netd.plan import plan
from podlane.api.network import NetworkConfig, parse_config
from podlane.api.subnets import Subnets
from tests.kernel.conftest import Netns, NetnsMaker, inside


@dataclass
class Host:
    """One host. `public` is what its lease says, its own underlay address unless told otherwise."""

    number: int
    ns: Netns
    config: NetworkConfig
    v4: bool = True
    v6: bool = False
    mtu: int = 1500
    public: str = ""

    @property
    def underlay(self) -> Underlay:
        v4 = IPv4Interface(f"{self.ns.address}/24") if self.v4 else None
        v6 = IPv6Interface(f"{self.address6}/64") if self.v6 else None
        public = IPv4Address(self.public or self.ns.address) if self.v4 else None
        return Underlay("eth0", self.mtu, v4, v6, public, v6.ip if v6 is not None else None)

    @property
    def address6(self) -> str:
        return f"fd00:64::{self.number}"

    @property
    def own(self) -> Subnets:
        v4 = IPv4Network(f"10.5.{self.number}.0/24") if self.config.network else None
        v6 = IPv6Network(f"fd00:5:0:{self.number}::/64") if self.config.ipv6_network else None
        return Subnets(v4, v6)

    @property
    def macs(self) -> dict[str, str]:
        return {
            c.name: f"02:00:00:00:0{i}:{self.number:02x}" for i, c in enumerate(carriers(self.config, self.underlay))
        }

    @property
    def vtep(self) -> str:
        return f"10.5.{self.number}.0"

    @property
    def mac(self) -> str:
        return self.macs["flannel.1"]

    @property
    def lease(self) -> Lease:
        return Lease(self.own.key, self.own, lease_value(self.config, self.underlay, self.macs), self.number)


@dataclass
class Overlay:
    """Some hosts, the leases they all read, and the bridge between them."""

    netns: NetnsMaker
    config: NetworkConfig
    hosts: list[Host] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)

    def desired(self, host: Host, leases: Sequence[Lease] | None = None) -> Desired:
        return Peers().desired(self.config, host.underlay, host.own, host.macs, leases or self.leases)

    def observe(self, host: Host) -> Actual:
        desired = self.desired(host)
        with inside(host.ns):
            return LinuxKernel().observe(desired.watched, self.config.networks, list(desired.sysctls))

    def build(self, host: Host, leases: Sequence[Lease] | None = None) -> None:
        """Program a host's kernel as netd does, for these leases."""
        wanted, have = self.desired(host, leases), self.observe(host)
        with inside(host.ns):
            LinuxKernel().apply(plan(wanted, have))

    def context(self, host: Host) -> DoctorContext:
        desired, actual = self.desired(host), self.observe(host)
        return DoctorContext(self.config, host.underlay, host.own, tuple(self.leases), {}, actual, desired)

    def diagnose(self, host: Host, peer: str | None = None) -> list[Finding]:
        context = self.context(host)
        with inside(host.ns):
            return diagnose(context, peer)

    def between(self, rule: str) -> None:
        """An nft rule for what the underlay's bridge forwards."""
        script = "add table bridge fault\nadd chain bridge fault forward { type filter hook forward priority 0; }\n"
        self.netns.underlay.run(["nft", "-f", "-"], stdin=f"{script}add rule bridge fault forward {rule}\n")

    def relabel(self, host: Host, lease: Lease) -> None:
        """What everybody reads of a host from now on."""
        self.leases = [lease if each.key == host.lease.key else each for each in self.leases]


def make_overlay(
    netns: NetnsMaker, backend: str = "{}", *, hosts: int = 2, v6: bool = False, v4: bool = True
) -> Overlay:
    """`v6`: an IPv6 pod network over an IPv6 underlay; `v4` likewise; both for dual-stack."""
    families = [f'"EnableIPv4":{json.dumps(v4)},"EnableIPv6":{json.dumps(v6)}']
    families += ['"Network":"10.5.0.0/16"'] if v4 else []
    families += ['"IPv6Network":"fd00:5::/48"'] if v6 else []
    config = parse_config(f'{{{",".join(families)},"Backend":{backend}}}')
    overlay = Overlay(netns, config)
    for number in range(1, hosts + 1):
        host = Host(number, netns.host(f"host{number}"), config, v4=v4, v6=v6)
        if v6:
            host.ns.run(f"ip address add {host.address6}/64 dev eth0 nodad")
        overlay.hosts.append(host)
    overlay.leases = [host.lease for host in overlay.hosts]
    for host in overlay.hosts:
        overlay.build(host)
    return overlay


def far_host(overlay: Overlay, *, mtu: int) -> Host:
    """One more host, behind a router, over a link with this MTU."""
    router, far = overlay.netns.host("router"), overlay.netns.add("far")
    overlay.netns.link(router, "eth1", far, "eth0", mtu=mtu)
    router.run("ip address add 192.168.65.1/24 dev eth1")
    router.run("sysctl -qw net.ipv4.ip_forward=1")
    far.address = "192.168.65.11"
    far.run(f"ip address add {far.address}/24 dev eth0")
    far.run("ip route add default via 192.168.65.1")
    for host in overlay.hosts:
        host.ns.run(f"ip route add 192.168.65.0/24 via {router.address}")
    overlay.hosts.append(Host(9, far, overlay.config))
    overlay.leases = [host.lease for host in overlay.hosts]
    for host in overlay.hosts:
        overlay.build(host)
    return overlay.hosts[-1]


def errors(overlay: Overlay) -> dict[str, Finding]:
    """What the first host's doctor calls errors, by check; there is at least one."""
    found = overlay.diagnose(overlay.hosts[0])
    assert exit_code(found) == 1
    return {each.check: each for each in found if each.severity == "error"}


def with_mac(lease: Lease, mac: str) -> Lease:
    return replace(lease, value=replace(lease.value, backend_data={"VNI": 1, "VtepMAC": mac}))


def with_address(lease: Lease, address: str) -> Lease:
    return replace(lease, value=replace(lease.value, public_ip=IPv4Address(address)))
