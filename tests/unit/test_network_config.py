"""flannel's formats: what its users write, what its programs read."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.api.network import (
    Backend,
    LeaseValue,
    SubnetFile,
    config_key,
    parse_config,
    parse_subnet_key,
    subnet_key,
    subnets_prefix,
)
from podlane.errors import Invalid

pytestmark = pytest.mark.unit


def config(**fields: Any) -> Any:
    return parse_config(json.dumps({"Network": "10.5.0.0/16", **fields}))


def wrong(data: str | dict[str, Any]) -> str:
    with pytest.raises(Invalid) as caught:
        parse_config(data if isinstance(data, str) else json.dumps(data))
    return str(caught.value)


def test_defaults() -> None:
    c = config()
    assert (c.subnet_len, str(c.subnet_min), str(c.subnet_max)) == (24, "10.5.1.0", "10.5.255.0")
    assert c.backend == Backend("vxlan", 1, 8472, 0, direct_routing=False)
    assert (c.enable_ipv4, c.enable_ipv6) == (True, False)


@pytest.mark.parametrize(
    ("network", "length", "low", "high"),
    [
        ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"),
        ("10.5.0.0/23", 25, "10.5.0.128", "10.5.1.128"),
        ("10.5.0.0/28", 30, "10.5.0.4", "10.5.0.12"),
        ("10.5.3.4/16", 24, "10.5.1.0", "10.5.255.0"),
    ],
)
def test_subnet_length_follows_the_network(network: str, length: int, low: str, high: str) -> None:
    c = config(Network=network)
    assert (c.subnet_len, str(c.subnet_min), str(c.subnet_max)) == (length, low, high)


def test_ipv6_defaults() -> None:
    c = config(EnableIPv6=True, IPv6Network="fd00:10:5::/56")
    assert (c.ipv6_subnet_len, str(c.ipv6_subnet_min)) == (64, "fd00:10:5:1::")
    assert str(c.ipv6_subnet_max) == "fd00:10:5:ff::"
    assert config(EnableIPv6=True, IPv6Network="fd00::/124").ipv6_subnet_len == 126


def test_keys_in_any_case_and_unknown_keys_ignored() -> None:
    c = parse_config(
        '{"network":"10.5.0.0/16","SUBNETLEN":26,"subnetmin":"10.5.10.0","new":1,'
        '"backend":{"TYPE":"VXLAN","vni":7,"port":0,"Mtu":1400,"Directrouting":true}}'
    )
    assert (c.subnet_len, str(c.subnet_min)) == (26, "10.5.10.0")
    assert c.backend == Backend("vxlan", 7, 8472, 1400, direct_routing=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("no json", "network config: not JSON"),
        ("[]", "network config: expected a JSON object"),
        ({}, "network config: Network: required"),
        ({"Network": "10.5.0.0"}, 'Network: expected a network such as 10.5.0.0/16, got "10.5.0.0"'),
        ({"Network": "fd00::/64"}, "Network: expected a network such as"),
        ({"Network": "10.5.0.0/29"}, "Network: 10.5.0.0/29 is too small: the longest useful prefix is /28"),
        ({"Network": "10.5.0.0/16", "SubnetLen": 31}, "SubnetLen: expected at most 30, got 31"),
        ({"Network": "10.5.0.0/16", "SubnetLen": 17}, "SubnetLen: 10.5.0.0/16 must hold at least four subnets"),
        ({"Network": "10.5.0.0/16", "SubnetMin": "10.6.0.0"}, "SubnetMin: 10.6.0.0 is not in 10.5.0.0/16"),
        ({"Network": "10.5.0.0/16", "SubnetMax": "10.5.9.7"}, "SubnetMax: 10.5.9.7 is not the first address of a /24"),
        (
            {"Network": "10.5.0.0/16", "SubnetMin": "10.5.9.0", "SubnetMax": "10.5.8.0"},
            "SubnetMin: 10.5.9.0 is after SubnetMax 10.5.8.0",
        ),
        (
            {"Network": "10.5.0.0/16", "Backend": {"VNI": 1 << 24}},
            "Backend.VNI: expected an integer from 0 to",
        ),
        ({"Network": "10.5.0.0/16", "Backend": {"VNI": True}}, "Backend.VNI: expected an integer"),
        ({"Network": "10.5.0.0/16", "Backend": "vxlan"}, "Backend: expected an object"),
        ({"Network": "10.5.0.0/16", "EnableIPv4": False}, "EnableIPv4: at least one"),
        ({"Network": "10.5.0.0/16", "EnableIPv6": True}, "IPv6Network: required"),
    ],
)
def test_refused_with_the_reason(data: str | dict[str, Any], message: str) -> None:
    assert message in wrong(data)


def test_all_errors_at_once() -> None:
    text = wrong({"Network": "nonsense", "SubnetLen": "x", "Backend": {"Port": -1}})
    assert [line.split(":")[1].strip() for line in text.splitlines()] == ["Network", "SubnetLen", "Backend.Port"]


@given(
    prefix=st.integers(4, 28),
    address=st.integers(1 << 24, (224 << 24) - 1),
)
def test_every_default_is_inside_aligned_and_allowed(prefix: int, address: int) -> None:
    network = IPv4Network((address, prefix), strict=False)
    c = config(Network=str(network))
    for end in (c.subnet_min, c.subnet_max):
        subnet = IPv4Network((end, c.subnet_len))  # raises when not aligned
        assert subnet.subnet_of(network)
        assert c.allows(subnet)
    assert int(c.subnet_max) - int(c.subnet_min) >= 2 << (32 - c.subnet_len)


def test_keys() -> None:
    assert config_key("/coreos.com/network/") == "/coreos.com/network/config"
    assert subnets_prefix("/coreos.com/network") == "/coreos.com/network/subnets/"
    four, six = IPv4Network("10.5.34.0/24"), IPv6Network("fd00:12:13::/64")
    for text, parts in {"10.5.34.0-24": (four, None), "10.5.34.0-24&fd00:12:13::-64": (four, six)}.items():
        assert subnet_key(*parts) == text
        assert parse_subnet_key(text) == parts


@pytest.mark.parametrize("name", ["", "10.5.34.0", "10.5.34.1-24", "10.5.34.0-33", "x10.5.34.0-24", "10.5.34.0-24&"])
def test_garbage_keys(name: str) -> None:
    with pytest.raises(ValueError, match="lease key"):
        parse_subnet_key(name)


def test_the_lease_value_is_flannels_to_the_byte() -> None:
    value = LeaseValue.vxlan(IPv4Address("192.168.64.3"), 1, "c6:0a:1b:2c:3d:4e")
    text = (
        b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
        b'"BackendData":{"VNI":1,"VtepMAC":"c6:0a:1b:2c:3d:4e"}}'
    )
    assert value.encode() == text
    assert LeaseValue.decode(text) == value
    assert LeaseValue.decode(text).vtep_mac == "c6:0a:1b:2c:3d:4e"


def test_a_host_gw_lease_has_no_backend_data() -> None:
    value = LeaseValue(IPv4Address("192.168.64.3"), backend_type="host-gw")
    assert value.encode() == b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}'
    with pytest.raises(ValueError, match="is not vxlan"):
        _ = LeaseValue.decode(value.encode()).vtep_mac


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"PublicIP":7}',
        '{"PublicIP":"nowhere"}',
        '{"PublicIP":"192.168.64.3","BackendData":[]}',
        '{"PublicIP":"192.168.64.3","BackendType":{}}',
    ],
)
def test_garbage_values(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever json or ipaddress says
        LeaseValue.decode(text)


@pytest.mark.parametrize("mac", ["", "c6:0a", "00:00:00:00:00:00", "01:00:5e:00:00:01", "zz:0a:1b:2c:3d:4e", 7])
def test_garbage_macs(mac: object) -> None:
    data = json.dumps({"PublicIP": "1.2.3.4", "BackendType": "vxlan", "BackendData": {"VtepMAC": mac}})
    with pytest.raises(ValueError, match="MAC"):
        _ = LeaseValue.decode(data).vtep_mac


def test_subnet_file_as_flannel_writes_it() -> None:
    file = SubnetFile(IPv4Network("10.5.0.0/16"), IPv4Network("10.5.34.0/24"), 1450, ip_masq=True)
    text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.34.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    assert file.render() == text
    assert SubnetFile.parse(text) == file
    with pytest.raises(ValueError, match="FLANNEL_MTU is missing"):
        SubnetFile.parse(text.replace("FLANNEL_MTU", "X"))
