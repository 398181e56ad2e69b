"""What `install` refuses before it looks at anything, and how it chooses an address."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_interface
from typing import Any

import pytest

from netd.model import Interface
from podlane.errors import Invalid, UsageError
from podlane.host.machine import choose_address
from podlane.host.options import InstallOptions, check

pytestmark = pytest.mark.unit

TLS: dict[str, Any] = {"etcd": ("https://192.0.2.1:2379",), "ca": "ca.pem"}


@pytest.mark.parametrize(
    ("given", "token", "message"),
    [
        ({"role": "node"}, "", "--join: a node needs --join URL --token TOKEN, or --etcd URL with --ca and --cert-dir"),
        ({"role": "all", "name": "Host_1"}, "", "--name: expected a DNS name"),
        ({"role": "all", "name": "h" * 54}, "", "--name: expected at most 53 characters, got 54"),
        ({"role": "all", "addresses": ("one",)}, "", '--address: expected an IP address, got "one"'),
        ({"role": "all", "addresses": ("192.0.2.1", "192.0.2.2")}, "", "--address: expected one address, or one of"),
        ({"role": "all", "etcd": ("ftp://x",)}, "", "--etcd: expected scheme http or https"),
        ({"role": "all", "etcd": ("https://x",)}, "", "--ca: expected the file of the authority"),
        ({"role": "all", "ca": "ca.pem"}, "", "--etcd: expected etcd's URLs, with --ca"),
        ({"role": "node", **TLS}, "", "--cert-dir: with --ca: expected --cert-dir DIR"),
        ({"role": "node", **TLS, "cert": "a.pem"}, "", "--cert: a certificate and its key: expected both"),
        ({"role": "node", **TLS, "cert": "a", "key": "b", "cert_dir": "d"}, "", "--cert-dir: expected --cert and"),
        ({"role": "node", "join": "https://192.0.2.1:10261"}, "", "--token: expected the token"),
        ({"role": "node", "join": "http://192.0.2.1:10261"}, "t", "--join: expected https://HOST:PORT"),
        ({"role": "all"}, "t", "--join: expected the URL of a join service, with --token"),
        ({"role": "all", "join": "https://192.0.2.1:1"}, "t", "--etcd-join: a further server needs it"),
        ({"role": "node", "join": "https://192.0.2.1:1", **TLS}, "t", "--etcd: --join tells where etcd is"),
        (
            {"role": "node", "join": "https://192.0.2.1:1", "init": ("--network=10.0.0.0/8",)},
            "t",
            "--network: these are settings of the cluster",
        ),
        (
            {"role": "all", "join": "https://192.0.2.1:1", "etcd_join": ("server1",)},
            "t",
            '--etcd-join: expected NAME=https://ADDRESS:2380,…, got "server1"',
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, Any], token: str, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        check(InstallOptions(**given), token=token)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "daemons"),
    [
        ({"role": "all"}, "etcd join scheduler netd proxyd agent"),
        ({"role": "server"}, "etcd join scheduler"),
        ({"role": "node", **TLS, "cert_dir": "d"}, "netd proxyd agent"),
        ({"role": "all", "etcd": ("http://192.0.2.1:2379",)}, "scheduler netd proxyd agent"),
    ],
)
def test_who_runs(given: dict[str, Any], daemons: str) -> None:
    options = InstallOptions(**given)
    check(options)
    assert " ".join(options.daemons) == daemons


LINK: dict[str, Any] = {"index": 2, "mtu": 1500, "up": True, "loopback": False, "kind": ""}


class Links:
    """Two links of a machine under Vagrant: the NAT that all have, and the network between them."""

    def interfaces(self) -> Sequence[Interface]:
        nat, private = (ip_interface("10.0.2.15/24"),), (ip_interface("192.168.56.11/24"),)
        return (
            Interface(name="eth0", addresses=nat, default_metric=100, **LINK),
            Interface(name="eth1", addresses=private, **LINK),
        )

    def route_to(self, address: object) -> str:
        return "eth1" if str(address).startswith("192.168.56.") else "eth0"


def test_the_nat_is_not_taken_though_the_default_route_is_there() -> None:
    join = InstallOptions(role="node", join="https://192.168.56.10:10261")
    assert choose_address(join, Links()) == (("192.168.56.11",), "eth1", "leads to 192.168.56.10")  # type: ignore[arg-type]
    assert choose_address(InstallOptions(role="all"), Links())[:2] == (("192.168.56.11",), "eth1")  # type: ignore[arg-type]


def test_what_the_operator_names_is_taken_or_refused() -> None:
    named = InstallOptions(role="all", iface="eth0")
    assert choose_address(named, Links()) == (("10.0.2.15",), "eth0", "--iface")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"--address: 192\.0\.2\.9 is none of this host's; it has 10\.0\.2\.15, 192"):
        choose_address(InstallOptions(role="all", addresses=("192.0.2.9",)), Links())  # type: ignore[arg-type]
