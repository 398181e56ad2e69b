"""Host settings on a directory that stands for /proc/sys; tests/kernel/test_proxyd_host.py has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from podlane.errors import ApplyError
from proxyd.host import KernelHost, listeners

pytestmark = pytest.mark.unit

FORWARD4, FORWARD6 = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"
BRIDGE4, BRIDGE6 = "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"
LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    # forwarding of IPv6 is on already: what turning it on takes, only a kernel shows
    for name, value in {FORWARD4: 0, FORWARD6: 1, BRIDGE4: 0, BRIDGE6: 0, LIBERAL: 0}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    return tmp_path


def test_what_is_missing_is_set_once(proc: Path) -> None:
    host = KernelHost(proc_sys=proc)
    assert host.ensure((), ipv6=True) == [
        "sysctl net.ipv4.ip_forward=1",
        "sysctl net.bridge.bridge-nf-call-iptables=1",
        "sysctl net.bridge.bridge-nf-call-ip6tables=1",
        "sysctl net.netfilter.nf_conntrack_tcp_be_liberal=1",
    ]
    assert host.ensure((), ipv6=True) == []
    (proc / LIBERAL).write_text("0\n")
    assert host.ensure((), ipv6=True) == ["sysctl net.netfilter.nf_conntrack_tcp_be_liberal=1"]


def test_without_ipv6_networks_its_settings_are_left_alone(proc: Path) -> None:
    (proc / FORWARD6).write_text("0\n")
    KernelHost(proc_sys=proc).ensure((), ipv6=False)
    assert (proc / FORWARD6).read_text() == "0\n"
    assert (proc / BRIDGE6).read_text() == "0\n"


def test_conntracks_strictness_can_be_left_alone(proc: Path) -> None:
    host = KernelHost(proc_sys=proc, tcp_be_liberal=False)
    assert "sysctl net.netfilter.nf_conntrack_tcp_be_liberal=1" not in host.ensure((), ipv6=False)
    assert (proc / LIBERAL).read_text() == "0\n"


def test_a_host_without_bridge_filter_conntrack_or_ipv6_is_served_as_far_as_it_goes(proc: Path) -> None:
    for name in (BRIDGE4, BRIDGE6, LIBERAL):
        (proc / name).unlink()
    (proc / FORWARD6).unlink()
    for directory in ("net/ipv6/conf/all", "net/ipv6/conf", "net/ipv6"):
        (proc / directory).rmdir()
    assert KernelHost(proc_sys=proc).ensure(["fd00:96::/112"], ipv6=True) == ["sysctl net.ipv4.ip_forward=1"]


def test_what_fails_does_not_keep_the_rest_from_being_set(proc: Path) -> None:
    (proc / FORWARD4).unlink()
    (proc / FORWARD4).mkdir()  # reading it fails
    with pytest.raises(ApplyError, match=r"^set sysctl net.ipv4.ip_forward: read sysctl net/ipv4/ip_forward: Is a dir"):
        KernelHost(proc_sys=proc).ensure((), ipv6=True)
    assert (proc / LIBERAL).read_text() == "1"


def link(name: str, kind: str | None = None, master: str | None = None) -> dict[str, object]:
    made: dict[str, object] = {"ifname": name}
    if kind:
        made["linkinfo"] = {"info_kind": kind}
    if master:
        made["master"] = master
    return made


def test_routers_are_heard_on_uplinks_and_never_on_pods_links() -> None:
    links = [
        link("lo"),
        link("eth0"),
        link("eth1", master="bond0"),
        link("bond0", "bond"),
        link("eth0.5", "vlan"),
        link("cbr0", "bridge"),
        link("veth1", "veth", "cbr0"),
        link("veth2", "veth"),
        link("br0", "bridge"),
        link("flannel.1", "vxlan"),
    ]
    assert listeners(links, ()) == ["eth0", "bond0", "eth0.5"]
    # a bridge that is the uplink, as of virtual machines' hosts, shows by the route it has
    assert listeners(links, {"br0"}) == ["eth0", "bond0", "eth0.5", "br0"]
