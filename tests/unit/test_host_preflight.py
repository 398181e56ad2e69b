"""What preflight says of hosts that lack something."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from podlane.host.options import InstallOptions
from podlane.host.preflight import Survey, judge, missing

pytestmark = pytest.mark.unit

GOOD: dict[str, Any] = {
    "name": "host1",
    "kernel": "6.1.0",
    "python": "3.11.2",
    "systemd": "systemd 252 (252.38)",
    "nft": "nftables v1.0.6 (Lester)",
    "iptables": "iptables v1.8.9 (nf_tables)",
    "conntrack": "conntrack v1.4.7",
    "docker": "20.10.24+dfsg1",
    "etcd": "etcd Version: 3.4.23",
    "network": "192.0.2.7 on eth0 (has the default route)",
    "machine_id": "1",
    "clock_synchronized": True,
}


def told(role: str = "all", **changes: Any) -> list[str]:
    options = msgspec.convert({"role": role}, InstallOptions)
    checks = judge(options, Survey(**{**GOOD, **changes}))
    return [f"{c.name}: {c.state}: {c.detail}" for c in checks if c.state != "ok"]


def test_a_good_host() -> None:
    assert told() == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"systemd": ""}, "systemd: missing: not found"),
        ({"systemd": "systemd 241 (241)"}, "systemd: missing: 241, needs 247"),
        ({"kernel_lacks": ("VXLAN (CONFIG_VXLAN)",)}, "kernel: missing: 6.1.0 lacks VXLAN (CONFIG_VXLAN)"),
        ({"nft": "nftables v0.9.8 (E.D.S.)"}, "nft: missing: 0.9.8, needs 1.0"),
        ({"iptables": ""}, "iptables: missing: not found"),
        ({"conntrack": ""}, "conntrack: warning: not found"),
        ({"docker": "19.03.15"}, "docker: missing: 19.3.15, needs 20.10"),
        ({"docker": "", "docker_error": "not found"}, "docker: missing: not found"),
        (
            {"apparmor_parser": False},
            "docker: missing: the kernel has AppArmor and apparmor_parser is not found: Docker starts no container so",
        ),
        ({"etcd": ""}, "etcd: missing: not found"),
        ({"network_error": "choose interface: none fits"}, "network: missing: choose interface: none fits"),
        ({"busy": ("2379/tcp (etcd)",)}, "ports: missing: 2379/tcp (etcd) is taken"),
        (
            {"name": "Host_1"},
            "name: missing: expected a DNS name (labels of lower case letters, digits and '-', "
            "beginning and ending with a letter or digit, joined by '.'), got \"Host_1\"",
        ),
        ({"machine_id": ""}, "machine id: warning: /etc/machine-id is empty"),
        ({"clock_synchronized": False}, "time: warning: not synchronized"),
        ({"room": {"/opt": 1 << 20}}, "disk /opt: missing: 1 MB free, needs 400"),
        ({"swap": 2 << 30}, "swap: warning: 2048 MB"),
        ({"firewalld": True}, "firewalld: warning: active"),
        (
            {"selinux": "enforcing", "restorecon": False},
            "SELinux: missing: enforcing, and restorecon is not found: what is unpacked would have labels of /var/tmp",
        ),
        ({"read_only": ("/opt",)}, "/opt: missing: read-only"),
        (
            {"network": "10.0.2.15 on eth0 (--iface)", "default_address": "10.0.2.15"},
            "NAT: missing: the default route's interface has 10.0.2.15, as every such virtual machine has",
        ),
    ],
)
def test_what_is_wrong_is_told(changes: dict[str, Any], expected: str) -> None:
    assert told(**changes) == [expected]


def test_everything_that_is_wrong_has_a_remedy() -> None:
    options = InstallOptions(role="all")
    assert all(
        check.remedy
        for check in judge(options, Survey(kernel_lacks=("x",), swap=1, firewalld=True))
        if check.state != "ok"
    )


def test_a_server_needs_no_docker_and_a_node_no_etcd() -> None:
    assert told("server", docker="", nft="", iptables="", kernel_lacks=("x",)) == []
    assert told("node", etcd="") == []


def test_an_etcd_in_the_bundle_will_do() -> None:
    assert told(etcd="", bundled_etcd=True) == []


def test_the_nat_is_told_of_and_no_hindrance_where_another_link_is_used() -> None:
    checks = judge(InstallOptions(role="all"), Survey(**{**GOOD, "default_address": "10.0.2.15"}))
    assert [c.state for c in checks if c.name == "NAT"] == ["ok"]
    assert missing(checks) == []
