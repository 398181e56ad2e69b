"""flannel's formats: what its users write, what its programs read."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.api.network import Backend, parse_config
from podlane.api.subnets import LeaseValue, SubnetFile, Subnets, config_key, subnets_prefix
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
    assert c.networks == (IPv4Network("10.5.0.0/16"),)


def test_the_example_in_flannels_documentation() -> None:
    c = parse_config(
        """
        {
            "Network": "10.0.0.0/8",
            "SubnetLen": 20,
            "SubnetMin": "10.10.0.0",
            "SubnetMax": "10.99.0.0",
            "Backend": {
                "Type": "udp",
                "Port": 7890
            }
        }
        """
    )
    assert (str(c.network), c.subnet_len, str(c.subnet_min), str(c.subnet_max)) == (
        "10.0.0.0/8",
        20,
        "10.10.0.0",
        "10.99.0.0",
    )
    assert (c.backend.type, c.backend.port) == ("udp", 7890)


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


@pytest.mark.parametrize(
    ("network", "length", "low", "high"),
    [
        ("fd00:10:5::/56", 64, "fd00:10:5:1::", "fd00:10:5:ff::"),
        ("2001:cafe:42::/62", 64, "2001:cafe:42:1::", "2001:cafe:42:3::"),
        ("fd00:10:5::/63", 65, "fd00:10:5:0:8000::", "fd00:10:5:1:8000::"),
        ("fd00::/124", 126, "fd00::4", "fd00::c"),
    ],
)
def test_ipv6_defaults(network: str, length: int, low: str, high: str) -> None:
    c = config(EnableIPv6=True, IPv6Network=network)
    assert (c.ipv6_subnet_len, str(c.ipv6_subnet_min), str(c.ipv6_subnet_max)) == (length, low, high)
    assert c.networks == (IPv4Network("10.5.0.0/16"), IPv6Network(network))


def test_ipv6_alone() -> None:
    c = parse_config('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:5::/56","IPv6SubnetLen":72}')
    assert (c.network, c.subnet_len, c.subnet_min, c.subnet_max) == (None, 0, None, None)
    assert c.networks == (IPv6Network("fd00:10:5::/56"),)
    assert str(c.ipv6_subnet_min) == "fd00:10:5:0:100::"
    assert c.allows(Subnets.parse_key("0.0.0.0-0&fd00:10:5:0:100::-72"))


@pytest.mark.parametrize(("value", "direct"), [(True, True), (False, False), ("auto", "auto"), (None, False)])
def test_direct_routing(value: Any, direct: Any) -> None:
    assert config(Backend={"DirectRouting": value}).backend.direct_routing == direct


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
        ({"Network": "10.5.0.0/16", "Backend": {"DirectRouting": "yes"}}, 'true, false or "auto", got "yes"'),
        ("[" * 100_000, "network config: not JSON: nested too deep"),
        ({"Network": "10.5.0.0/255.255.0.0"}, "Network: expected a network such as"),
        (
            {"Network": "10.5.0.0/16", "EnableIPv6": True, "IPv6Network": "fe80::%1/56"},
            "IPv6Network: expected a network such as fd00:10:5::/56",
        ),
        (
            {"Network": "10.5.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00::/125"},
            "IPv6Network: fd00::/125 is too small: the longest useful prefix is /124",
        ),
        (
            {"Network": "10.5.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00::/56", "IPv6SubnetMin": "fd00::%1"},
            "IPv6SubnetMin: expected an IPv6 address",
        ),
        (
            {"Network": "10.5.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00::/56", "IPv6SubnetLen": 127},
            "IPv6SubnetLen: expected at most 126, got 127",
        ),
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
        assert c.allows(Subnets(subnet))
    assert int(c.subnet_max) - int(c.subnet_min) >= 2 << (32 - c.subnet_len)


def test_a_lease_must_be_of_the_networks_families_lengths_and_ranges() -> None:
    four = config(SubnetMin="10.5.10.0", SubnetMax="10.5.20.0")
    both = config(EnableIPv6=True, IPv6Network="fd00:10:5::/56")
    for key, in_four, in_both in [
        ("10.5.10.0-24", True, False),
        ("10.5.20.0-24", True, False),
        ("10.5.9.0-24", False, False),
        ("10.5.21.0-24", False, False),
        ("10.5.10.0-25", False, False),
        ("10.6.10.0-24", False, False),
        ("10.5.10.0-24&fd00:10:5:7::-64", False, True),
        ("10.5.10.0-24&fd00:10:5::-64", False, False),  # the first one is not used
        ("10.5.10.0-24&fd00:10:6:7::-64", False, False),
        ("10.5.10.0-24&fd00:10:5:7::-65", False, False),
        ("0.0.0.0-0&fd00:10:5:7::-64", False, False),
    ]:
        assert (four.allows(Subnets.parse_key(key)), both.allows(Subnets.parse_key(key))) == (in_four, in_both), key


# ---- keys -----------------------------------------------------------------------------------------

FOUR, SIX = IPv4Network("10.5.34.0/24"), IPv6Network("fd00:12:13::/64")


def test_prefixes() -> None:
    assert config_key("/coreos.com/network/") == "/coreos.com/network/config"
    assert subnets_prefix("/coreos.com/network") == "/coreos.com/network/subnets/"


@pytest.mark.parametrize(
    ("key", "subnets", "text"),
    [
        ("10.5.34.0-24", Subnets(FOUR), "10.5.34.0/24"),
        ("10.5.34.0-24&fd00:12:13::-64", Subnets(FOUR, SIX), "10.5.34.0/24,fd00:12:13::/64"),
        ("0.0.0.0-0&fd00:12:13::-64", Subnets(None, SIX), "fd00:12:13::/64"),
        (
            "10.5.34.0-24&fd00:0:1:0:1::-80",
            Subnets(FOUR, IPv6Network("fd00:0:1:0:1::/80")),
            "10.5.34.0/24,fd00:0:1:0:1::/80",
        ),
    ],
)
def test_keys(key: str, subnets: Subnets, text: str) -> None:
    assert subnets.key == key
    assert Subnets.parse_key(key) == subnets
    assert str(subnets) == text
    assert list(subnets) == [each for each in (subnets.v4, subnets.v6) if each is not None]


@given(
    v4=st.none()
    | st.builds(lambda a, n: IPv4Network((a, n), strict=False), st.integers(0, 2**32 - 1), st.integers(1, 32)),
    v6=st.none()
    | st.builds(lambda a, n: IPv6Network((a, n), strict=False), st.integers(0, 2**128 - 1), st.integers(1, 128)),
)
def test_every_key_reads_back(v4: IPv4Network | None, v6: IPv6Network | None) -> None:
    if v4 is not None or v6 is not None:
        assert Subnets.parse_key(Subnets(v4, v6).key) == Subnets(v4, v6)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "10.5.34.0",
        "10.5.34.1-24",
        "10.5.34.0-33",
        "x10.5.34.0-24",
        "10.5.34.0-24\n",
        "10.5.34.0-24&",
        "10.5.34.0-24&fd00:12:13::",
        "10.5.34.0-24&fd00:12:13::1-64",
        "10.5.34.0-24&fd00:12:13::-129",
        "10.5.34.0-24&fd00::13::-64",
        "10.5.34.0-24&::-0",
        "0.0.0.0-0",
        "0.0.0.0-8&fd00:12:13::1-64",
        "10.5.34.0-٢٤",
        "10.5.34.0-" + "9" * 5000,
    ],
)
def test_garbage_keys(name: str) -> None:
    with pytest.raises(ValueError, match="lease key"):
        Subnets.parse_key(name)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("10.5.34.0-24", "10.5.34.0-24", True),
        ("10.5.34.0-24", "10.5.34.128-25", True),
        ("10.5.34.0-24", "10.5.35.0-24", False),
        ("10.5.34.0-24&fd00:12:13::-64", "10.5.35.0-24&fd00:12:13::-64", True),
        ("10.5.34.0-24&fd00:12:13::-64", "10.5.34.0-24&fd00:12:14::-64", True),
        ("10.5.34.0-24&fd00:12:13::-64", "10.5.35.0-24&fd00:12:14::-64", False),
        ("10.5.34.0-24", "0.0.0.0-0&fd00:12:13::-64", False),
        ("0.0.0.0-0&fd00:12:13::-64", "10.5.34.0-24&fd00:12:13::-64", True),
    ],
)
def test_overlaps_in_either_family(one: str, other: str, overlap: bool) -> None:
    assert Subnets.parse_key(one).overlaps(Subnets.parse_key(other)) == overlap
    assert Subnets.parse_key(other).overlaps(Subnets.parse_key(one)) == overlap


# ---- lease values ---------------------------------------------------------------------------------

MAC, MAC6 = "c6:0a:1b:2c:3d:4e", "c6:0a:1b:2c:3d:66"
HOST, HOST6 = IPv4Address("192.168.64.3"), IPv6Address("fd00:64::3")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            LeaseValue.vxlan(HOST, 1, MAC),
            '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
            '"BackendData":{"VNI":1,"VtepMAC":"c6:0a:1b:2c:3d:4e"}}',
        ),
        (
            LeaseValue.vxlan(HOST, 1, MAC, public_ipv6=HOST6, mac6=MAC6),
            '{"PublicIP":"192.168.64.3","PublicIPv6":"fd00:64::3","BackendType":"vxlan",'
            '"BackendData":{"VNI":1,"VtepMAC":"c6:0a:1b:2c:3d:4e"},'
            '"BackendV6Data":{"VNI":1,"VtepMAC":"c6:0a:1b:2c:3d:66"}}',
        ),
        (
            LeaseValue.vxlan(None, 7, public_ipv6=HOST6, mac6=MAC6),
            '{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:64::3","BackendType":"vxlan",'
            '"BackendV6Data":{"VNI":7,"VtepMAC":"c6:0a:1b:2c:3d:66"}}',
        ),
        (
            LeaseValue(HOST, backend_type="host-gw"),
            '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}',
        ),
        (
            LeaseValue(HOST, HOST6, backend_type="host-gw"),
            '{"PublicIP":"192.168.64.3","PublicIPv6":"fd00:64::3","BackendType":"host-gw"}',
        ),
        (LeaseValue(HOST, backend_type=""), '{"PublicIP":"192.168.64.3","PublicIPv6":null}'),
    ],
)
def test_lease_values_are_flannels_to_the_byte(value: LeaseValue, text: str) -> None:
    assert value.encode() == text.encode()
    assert LeaseValue.decode(text) == value
    assert value.addresses == tuple(each for each in (value.public_ip, value.public_ipv6) if each is not None)


def test_the_mac_address_of_each_family() -> None:
    both = LeaseValue.vxlan(HOST, 1, MAC.upper(), public_ipv6=HOST6, mac6=MAC6)
    assert (both.vtep_mac(), both.vtep_mac(4), both.vtep_mac(6)) == (MAC, MAC, MAC6)
    with pytest.raises(ValueError, match=r"BackendV6Data\.VtepMAC: required"):
        LeaseValue.vxlan(HOST, 1, MAC).vtep_mac(6)
    with pytest.raises(ValueError, match=r"BackendData\.VtepMAC: required"):
        LeaseValue.vxlan(None, 1, public_ipv6=HOST6, mac6=MAC6).vtep_mac(4)
    with pytest.raises(ValueError, match="is not vxlan"):
        LeaseValue(HOST, backend_type="host-gw").vtep_mac()


def test_values_are_read_as_go_reads_them() -> None:
    """Keys in any case, unknown ones ignored, null as if it were not there, older flannels without a VNI."""
    text = '{"publicip":"192.168.64.3","BACKENDTYPE":"vxlan","new":[1],"BackendData":{"vtepmac":"C6:0A:1B:2C:3D:4E"}}'
    assert LeaseValue.decode(text).vtep_mac() == MAC
    bare = LeaseValue.decode('{"PublicIP":"192.168.64.3","BackendType":null,"BackendData":null,"BackendV6Data":null}')
    assert bare == LeaseValue(HOST, backend_type="")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "[" * 100_000,
        "\udcff",
        '{"PublicIP":7}',
        '{"PublicIP":"nowhere"}',
        '{"PublicIP":"fd00::3"}',
        '{"PublicIP":"192.168.64.3","PublicIPv6":7}',
        '{"PublicIP":"192.168.64.3","PublicIPv6":"192.168.64.3"}',
        '{"PublicIP":"192.168.64.3","PublicIPv6":"fe80::3%eth0"}',
        '{"PublicIP":"192.168.64.3","BackendData":[]}',
        '{"PublicIP":"192.168.64.3","BackendV6Data":""}',
        '{"PublicIP":"192.168.64.3","BackendType":{}}',
    ],
)
def test_garbage_values(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever json or ipaddress says
        LeaseValue.decode(text.encode(errors="surrogateescape"))


@given(st.binary() | st.text() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_whatever_is_in_the_store_is_a_value_or_a_value_error(data: bytes | str) -> None:
    try:
        LeaseValue.decode(data)
    except ValueError:
        return


@pytest.mark.parametrize("mac", ["", "c6:0a", "00:00:00:00:00:00", "01:00:5e:00:00:01", "zz:0a:1b:2c:3d:4e", 7])
def test_garbage_macs(mac: object) -> None:
    data = json.dumps({"PublicIP": "1.2.3.4", "BackendType": "vxlan", "BackendData": {"VtepMAC": mac}})
    with pytest.raises(ValueError, match="MAC"):
        LeaseValue.decode(data).vtep_mac()


# ---- the subnet file ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            SubnetFile((IPv4Network("10.5.0.0/16"),), Subnets(IPv4Network("10.5.72.0/24")), 1450, ip_masq=False),
            # as in flannel's Documentation/running.md
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
        ),
        (
            SubnetFile(
                (IPv4Network("10.42.0.0/16"), IPv6Network("2001:cafe:42::/56")),
                Subnets(IPv4Network("10.42.0.0/24"), IPv6Network("2001:cafe:42::/64")),
                1450,
                ip_masq=True,
            ),
            # as in flannel's Documentation/configuration.md, on dual-stack
            "FLANNEL_NETWORK=10.42.0.0/16\n"
            "FLANNEL_SUBNET=10.42.0.1/24\n"
            "FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\n"
            "FLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\n"
            "FLANNEL_MTU=1450\n"
            "FLANNEL_IPMASQ=true\n",
        ),
        (
            SubnetFile((IPv6Network("fd00:12::/48"),), Subnets(None, SIX), 1430, ip_masq=False),
            "FLANNEL_IPV6_NETWORK=fd00:12::/48\n"
            "FLANNEL_IPV6_SUBNET=fd00:12:13::1/64\n"
            "FLANNEL_MTU=1430\n"
            "FLANNEL_IPMASQ=false\n",
        ),
    ],
)
def test_subnet_files_as_flannel_writes_them(file: SubnetFile, text: str) -> None:
    assert file.render() == text
    assert SubnetFile.parse(text) == file
    assert SubnetFile.parse(f"# by hand\n\nOTHER=1\n{text}") == file


def test_the_gateway_is_the_first_ipv4_address() -> None:
    file = SubnetFile((IPv4Network("10.5.0.0/16"),), Subnets(FOUR), 1450, ip_masq=True)
    assert str(file.gateway) == "10.5.34.1"
    with pytest.raises(ValueError, match="FLANNEL_SUBNET is missing"):
        _ = SubnetFile((IPv6Network("fd00:12::/48"),), Subnets(None, SIX), 1430, ip_masq=True).gateway


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("FLANNEL_NETWORK", "OTHER", "FLANNEL_NETWORK is missing"),
        ("FLANNEL_SUBNET", "OTHER", "FLANNEL_SUBNET is missing"),
        ("FLANNEL_MTU", "OTHER", "FLANNEL_MTU is missing"),
        ("1450", "many", "invalid literal for int"),
        ("10.5.34.1/24", "10.5.34", "Expected 4 octets"),
        ("10.5.0.0/16", "10.5.0.1/16", "has host bits set"),
    ],
)
def test_subnet_files_that_are_none(old: str, new: str, message: str) -> None:
    text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.34.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    with pytest.raises(ValueError, match=f"subnet file: .*{message}"):
        SubnetFile.parse(text.replace(old, new))
