"""MAC addresses and subnets from before a restart, as earlier versions and flannel wrote them."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from netd.state import State, previous_subnets
from podlane.api.subnets import Subnets

pytestmark = pytest.mark.unit

FOUR, SIX = "c6:0a:1b:2c:3d:04", "c6:0a:1b:2c:3d:06"


def test_each_device_keeps_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "netd"
    state = State(folder)
    assert (state.mac(v6=False), state.mac(v6=True)) == ("", "")
    state.set_mac(FOUR, v6=False)
    state.set_mac(SIX, v6=True)
    assert (State(folder).mac(v6=False), State(folder).mac(v6=True)) == (FOUR, SIX)
    assert (folder / "vtep-mac").read_text() == f"{FOUR}\n", "as the version before wrote it"
    state.set_mac(SIX, v6=False)
    assert state.mac(v6=False) == SIX


def test_what_the_version_before_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "vtep-mac").write_text(FOUR.upper() + "\n")
    assert State(tmp_path).mac(v6=False) == FOUR
    assert State(tmp_path).mac(v6=True) == ""


@pytest.mark.parametrize("content", [b"", b"no\n", b"01:00:5e:00:00:01", b"\xff\xfe"])
def test_a_damaged_file_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vtep-mac-v6").write_bytes(content)
    state = State(tmp_path)
    assert state.mac(v6=True) == ""
    state.set_mac(SIX, v6=True)
    assert state.mac(v6=True) == SIX


def test_looking_writes_nothing(tmp_path: Path) -> None:
    State(tmp_path / "netd", read_only=True).set_mac(FOUR, v6=False)
    assert list(tmp_path.iterdir()) == []


SUBNET_FILE = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.34.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"


@pytest.mark.parametrize(
    ("content", "subnets"),
    [
        (SUBNET_FILE, Subnets(IPv4Network("10.5.34.0/24"))),
        (
            f"{SUBNET_FILE}FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64\n",
            Subnets(IPv4Network("10.5.34.0/24"), IPv6Network("fd00:0:0:7::/64")),
        ),
        ("FLANNEL_SUBNET=no\n", None),
        ("", None),
    ],
)
def test_the_subnets_of_an_existing_subnet_file(tmp_path: Path, content: str, subnets: Subnets | None) -> None:
    (tmp_path / "subnet.env").write_text(content)
    assert previous_subnets(tmp_path / "subnet.env") == subnets
    assert previous_subnets(tmp_path / "elsewhere") is None
