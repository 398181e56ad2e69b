"""The texts handed to iptables-restore and nft."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from netd.firewall import forward_restore, masquerade_script

pytestmark = pytest.mark.unit

NETWORK = IPv4Network("10.5.0.0/16")
CHAIN = """-N PODLANE-FORWARD
-A PODLANE-FORWARD -s 10.5.0.0/16 -j ACCEPT
-A PODLANE-FORWARD -d 10.5.0.0/16 -j ACCEPT
"""
JUMP = "-A FORWARD -j PODLANE-FORWARD\n"
DOCKER = "-A FORWARD -j DOCKER-ISOLATION-STAGE-1\n"
USER = "-A FORWARD -j DOCKER-USER\n"
FILL = """*filter
:PODLANE-FORWARD - [0:0]
-A PODLANE-FORWARD -s 10.5.0.0/16 -j ACCEPT
-A PODLANE-FORWARD -d 10.5.0.0/16 -j ACCEPT
"""


@pytest.mark.parametrize(
    ("listing", "script"),
    [
        ("-P FORWARD DROP\n", FILL + "-I FORWARD 1 -j PODLANE-FORWARD\nCOMMIT\n"),
        (USER + DOCKER, FILL + "-I FORWARD 2 -j PODLANE-FORWARD\nCOMMIT\n"),
        (CHAIN + JUMP, ""),
        (CHAIN + JUMP + USER + DOCKER, ""),
        (CHAIN + USER + JUMP + DOCKER, ""),
        (
            CHAIN + DOCKER + JUMP,
            "*filter\n-D FORWARD -j PODLANE-FORWARD\n-I FORWARD 1 -j PODLANE-FORWARD\nCOMMIT\n",
        ),
        (
            CHAIN + JUMP + JUMP,
            "*filter\n" + "-D FORWARD -j PODLANE-FORWARD\n" * 2 + "-I FORWARD 1 -j PODLANE-FORWARD\nCOMMIT\n",
        ),
        (CHAIN.replace("10.5", "10.6") + JUMP, FILL + "COMMIT\n"),
        ("-N PODLANE-FORWARD\n" + JUMP, FILL + "COMMIT\n"),
    ],
)
def test_forward_rules(listing: str, script: str) -> None:
    assert forward_restore(listing, NETWORK) == script


def test_forward_rules_are_removed_only_if_they_are_there() -> None:
    assert forward_restore(USER + DOCKER, None) == ""
    assert forward_restore(CHAIN + USER + JUMP, None) == (
        "*filter\n-D FORWARD -j PODLANE-FORWARD\n-F PODLANE-FORWARD\n-X PODLANE-FORWARD\nCOMMIT\n"
    )


def test_masquerade_table() -> None:
    assert masquerade_script(NETWORK) == (
        "add table ip podlane-netd\n"
        "delete table ip podlane-netd\n"
        "table ip podlane-netd {\n"
        "\tchain postrouting {\n"
        "\t\ttype nat hook postrouting priority srcnat; policy accept;\n"
        "\t\tip saddr 10.5.0.0/16 ip daddr != 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random\n"
        "\t}\n"
        "}\n"
    )
    assert "table ip podlane-netd {" not in masquerade_script(None)
