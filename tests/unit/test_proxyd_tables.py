"""Bytes and their text, and that tables refuse what the kernel refuses."""

from __future__ import annotations

import errno
from socket import AF_INET, AF_INET6, inet_ntop

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxyd_objects import VIP, applied, frontend, service, slice_of, target
from proxyd_random import copied

from proxyd.chains import EXTERNAL_SOURCE, Pick, expressions_of, pick_of, rules_of
from proxyd.tables import (
    ENDPOINTS,
    HAIRPIN,
    IPV4,
    IPV6,
    MAPS,
    PROTOCOL_NUMBERS,
    SERVICES,
    SOURCE_RANGES,
    Frontend,
    Refused,
    Target,
    Transaction,
    family_of,
    pack_address,
    pack_frontend,
    pack_mark,
    pack_target,
    unpack_frontend,
    unpack_target,
)

pytestmark = pytest.mark.unit

WEB = frontend(f"{VIP}:80")
IPS = st.ip_addresses().map(lambda each: inet_ntop(AF_INET if each.version == 4 else AF_INET6, each.packed))
PORTS = st.integers(0, 65535)


@given(IPS, st.sampled_from(sorted(PROTOCOL_NUMBERS)), PORTS)
def test_a_frontend_is_the_same_after_packing(address, protocol, port):
    key = pack_frontend(Frontend(address, protocol, port))
    assert unpack_frontend(key) == Frontend(address, protocol, port)
    assert family_of(key) is (IPV6 if ":" in address else IPV4)
    assert len(key) == family_of(key).width + 8


@given(IPS, PORTS)
def test_a_target_is_the_same_after_packing(address, port):
    assert unpack_target(pack_target(Target(address, port))) == Target(address, port)


@pytest.mark.parametrize("text", ["", "10.5.1", "10.5.1.256", "fd00::1::2", "web"])
def test_what_is_no_address(text):
    with pytest.raises(ValueError, match="expected an IP address, got"):
        pack_address(text)


def test_elements_as_nft_writes_them():
    six = frontend("[fd00:96::1]:53/UDP")
    assert MAPS[SERVICES].show(IPV6, six, "goto lb2") == "fd00:96::1 . udp . 53 : goto lb2"
    assert MAPS[ENDPOINTS].show(IPV6, six + pack_mark(0x80000001), target("[fd00:5::2]:5353")) == (
        "fd00:96::1 . udp . 53 . 0x80000001 : fd00:5::2 . 5353"
    )
    assert MAPS[HAIRPIN].show(IPV4, pack_address("10.5.1.2") * 2, None) == "10.5.1.2 . 10.5.1.2"
    ends = WEB + pack_address("192.0.2.0") + WEB + pack_address("192.0.2.255")
    assert MAPS[SOURCE_RANGES].show(IPV4, ends, None) == "10.96.0.1 . tcp . 80 . 192.0.2.0-192.0.2.255"


def test_text_for_people():
    assert str(unpack_frontend(frontend("[fd00:96::1]:53/UDP"))) == "[fd00:96::1]:53/udp"
    assert str(unpack_target(target("[fd00:5::2]:80"))) == "[fd00:5::2]:80"
    odd = WEB[:4] + bytes((47, 0, 0, 0)) + WEB[8:]
    assert str(unpack_frontend(odd)) == "10.96.0.1:80/47"


# --- chains ------------------------------------------------------------------------------


@given(st.builds(Pick, st.integers(1, 70_000), st.booleans(), st.integers(0, 86_400), st.booleans()))
def test_a_chains_name_says_all_of_it(pick):
    assert pick_of(pick.chain) == pick
    for family in ("ip", "ip6"):
        assert len(rules_of(pick.chain, family)) == len(expressions_of(pick.chain, family))
        assert rules_of(pick.chain, family)[-1] == "drop"


@pytest.mark.parametrize(
    "name", ["", "lb", "lb0", "hash0", "lb01", "lb1-aff0", "lb1-aff", "outside-", "LB1", "lb1x", "refuse", "xlb1"]
)
def test_what_is_no_pick_chain(name):
    assert pick_of(name) is None


def test_the_chain_for_nobody_outside():
    assert pick_of("outside-lb0") == Pick(0, outside=True)
    assert rules_of("outside-lb0", "ip") == [
        "ip saddr @pod_networks ip daddr . meta l4proto . th dport vmap @inside",
        "fib saddr type local ip daddr . meta l4proto . th dport vmap @inside",
        "drop",
    ]


def test_a_chain_of_another_name_is_not_built():
    with pytest.raises(ValueError, match="build chain refuse: no chain of ours has such a name"):
        rules_of("refuse", "ip")


# --- what the kernel refuses -----------------------------------------------------------------


def refused(tables, change, **how):
    before = copied(tables)
    transaction = Transaction(tables.family)
    change(transaction)
    with pytest.raises(Refused) as caught:
        tables.apply(transaction, **how)
    assert tables == before
    return caught.value


@pytest.fixture
def tables():
    return applied(service("web", VIP), slice_of("web", ["10.5.1.2"]))


def test_another_value_for_a_key_that_is_there(tables):
    error = refused(tables, lambda t: t.put(ENDPOINTS, WEB + pack_mark(0), target("10.5.1.3:8080"), replaces=False))
    assert str(error) == "add endpoints 10.96.0.1 . tcp . 80 . 0x00000000: file exists"
    assert (error.errno, error.element) == (errno.EEXIST, (ENDPOINTS, WEB + pack_mark(0)))


def test_the_same_value_again_is_nothing(tables):
    before = copied(tables)
    transaction = Transaction(IPV4)
    transaction.put(ENDPOINTS, WEB + pack_mark(0), target("10.5.1.2:8080"), replaces=False)
    tables.apply(transaction)
    assert tables == before


def test_deleting_what_is_not_there(tables):
    missing = frontend(f"{VIP}:81")
    error = refused(tables, lambda t: t.delete[SERVICES].append(missing))
    assert str(error) == "delete services 10.96.0.1 . tcp . 81: no such file or directory"
    assert error.element == (SERVICES, missing)


def test_deleting_twice(tables):
    assert refused(tables, lambda t: t.delete[SERVICES].extend([WEB, WEB])).errno == errno.ENOENT


def test_a_verdict_without_its_chain(tables):
    other = frontend(f"{VIP}:81")
    error = refused(tables, lambda t: t.put(SERVICES, other, "goto lb9", replaces=False))
    assert str(error) == "add services 10.96.0.1 . tcp . 81: no such file or directory"


def test_a_chain_that_is_used(tables):
    assert str(refused(tables, lambda t: t.drop_chains.append("lb1"))) == "delete chain lb1: device or resource busy"
    assert refused(tables, lambda t: t.drop_chains.append("lb7")).errno == errno.ENOENT

    def with_its_last_use(t):
        t.delete[SERVICES].append(WEB)
        t.drop_chains.append("lb1")

    transaction = Transaction(IPV4)
    with_its_last_use(transaction)
    tables.apply(transaction)
    assert tables.chains == {EXTERNAL_SOURCE}


def test_more_than_fit(tables):
    def add(t):
        t.put(ENDPOINTS, WEB + pack_mark(1), target("10.5.1.3:8080"), replaces=False)

    assert refused(tables, add, size=1).errno == errno.ENFILE
    replacing = Transaction(IPV4)
    replacing.put(ENDPOINTS, WEB + pack_mark(0), target("10.5.1.3:8080"), replaces=True)
    tables.apply(replacing, size=1)
