"""What netd remembers of the network: written, damaged, read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.cache import FILE, INTERVAL, REFRESH, NetworkCache, Remembered
from netd.desired import Lease
from podlane.api.subnets import LeaseValue, Subnets
from podlane.runtime.clock import FakeClock

pytestmark = pytest.mark.unit

CONFIG = b'{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'
OWN = Subnets(IPv4Network("10.5.1.0/24"), IPv6Network("fd00:10:5:1::/64"))


def lease(n: int, age: int = 7) -> Lease:
    subnets = Subnets(IPv4Network(f"10.5.{n}.0/24"))
    value = LeaseValue.vxlan(IPv4Address(f"192.168.64.{n}"), 1, f"c6:0a:1b:2c:3d:{n:02x}")
    return Lease(subnets.key, subnets, value, age)


def by_key(*leases: Lease) -> dict[str, Lease]:
    return {each.key: each for each in leases}


V6 = Subnets(None, IPv6Network("fd00:10:5:9::/64"))
DUAL = Lease(OWN.key, OWN, LeaseValue(IPv4Address("192.168.64.1"), IPv6Address("fd01::1"), "host-gw"), 2)
ONLY_V6 = Lease(V6.key, V6, LeaseValue.vxlan(None, 1, public_ipv6=IPv6Address("fd01::9"), mac6="c6:0a:1b:2c:3d:09"), 3)

NETWORK = Remembered(
    config=CONFIG,
    own=OWN,
    interface="eth0",
    devices=("flannel-v6.1", "flannel.1"),
    witness=0x70CC_0000_0000_0001,
    revision=1234,
    leases=by_key(lease(2), lease(3, age=1 << 63), DUAL, ONLY_V6),
    kept={lease(3).key: 86000.5},
    saved=1_790_000_000.25,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cache(tmp_path: Path, clock: FakeClock) -> NetworkCache:
    return NetworkCache(tmp_path / "netd", clock=clock)


def read(folder: Path) -> Remembered | None:
    return NetworkCache(folder / "netd").load()


def file(folder: Path) -> Path:
    return folder / "netd" / FILE


def test_there_is_nothing_at_first(cache: NetworkCache) -> None:
    assert cache.load() is None


def test_everything_is_remembered(cache: NetworkCache, tmp_path: Path) -> None:
    cache.save(NETWORK)
    again = read(tmp_path)
    assert again == NETWORK
    assert again is not None
    assert {type(each) for each in again.leases.values()} == {Lease}


def test_a_config_is_kept_byte_by_byte(cache: NetworkCache, tmp_path: Path) -> None:
    odd = '{"Network": "10.5.0.0/16",\n "Comment": "Grüße"}'.encode("latin-1")
    cache.save(replace(NETWORK, config=odd))
    again = read(tmp_path)
    assert again is not None
    assert again.config == odd


def test_what_was_loaded_can_be_saved(cache: NetworkCache, tmp_path: Path) -> None:
    cache.save(NETWORK)
    loaded = read(tmp_path)
    assert loaded is not None
    file(tmp_path).unlink()
    NetworkCache(tmp_path / "netd").save(loaded)
    assert read(tmp_path) == NETWORK


# --- when it writes -----------------------------------------------------------------------------

CHANGES = [
    {"config": b"{}"},
    {"own": Subnets(IPv4Network("10.5.8.0/24"))},
    {"interface": "eth1"},
    {"devices": ()},
    {"witness": 5},
    {"leases": by_key(lease(2))},
    {"leases": {**NETWORK.leases, **by_key(lease(2, age=99))}},
    {"leases": {**NETWORK.leases, lease(2).key: replace(lease(2), value=lease(4).value)}},
    {"kept": {}},
    {"saved": NETWORK.saved + REFRESH},
    {"saved": NETWORK.saved - 1},
]
PASSING = [
    {},
    {"saved": NETWORK.saved + REFRESH - 1},
    {"revision": 2000},
    {"kept": {lease(3).key: 5.0}},
    {"leases": {key: replace(each) for key, each in NETWORK.leases.items()}},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("loaded", [False, True])
def test_a_change_is_written(
    cache: NetworkCache, tmp_path: Path, clock: FakeClock, change: dict[str, Any], loaded: bool
) -> None:
    cache.save(NETWORK)
    if loaded:
        cache = NetworkCache(tmp_path / "netd", clock=clock)
        cache.load()
    clock.advance(INTERVAL)
    changed = replace(NETWORK, **change)
    cache.save(changed)
    assert read(tmp_path) == changed


@pytest.mark.parametrize("change", PASSING, ids=str)
@pytest.mark.parametrize("loaded", [False, True])
def test_the_mere_passing_of_time_is_not(
    cache: NetworkCache, tmp_path: Path, clock: FakeClock, change: dict[str, Any], loaded: bool
) -> None:
    cache.save(NETWORK)
    if loaded:
        cache = NetworkCache(tmp_path / "netd", clock=clock)
        cache.load()
    clock.advance(INTERVAL)
    cache.save(replace(NETWORK, **change))
    assert read(tmp_path) == NETWORK


@pytest.mark.parametrize("change", [each for each in PASSING if each.keys() & {"saved", "revision", "kept"}], ids=str)
def test_the_last_word_before_a_stop_is_exact(cache: NetworkCache, tmp_path: Path, change: dict[str, Any]) -> None:
    cache.save(NETWORK)
    last = replace(NETWORK, **change)
    cache.save(last, force=True)
    assert read(tmp_path) == last


def test_what_comes_too_soon_is_written_later(cache: NetworkCache, tmp_path: Path, clock: FakeClock) -> None:
    cache.save(NETWORK)
    moved = replace(NETWORK, interface="eth1")
    cache.save(moved)
    clock.advance(INTERVAL - 1)
    cache.save(moved)
    assert read(tmp_path) == NETWORK
    clock.advance(1)
    cache.save(moved)
    assert read(tmp_path) == moved
    cache.save(NETWORK, force=True)
    assert read(tmp_path) == NETWORK


def test_that_it_cannot_be_written_costs_nothing_else(cache: NetworkCache, tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "netd").write_text("a file where the folder should be")
    cache.save(NETWORK)
    (tmp_path / "netd").unlink()
    clock.advance(INTERVAL)
    cache.save(NETWORK)
    assert read(tmp_path) == NETWORK


# --- what it makes of damage ----------------------------------------------------------------------


def test_a_file_of_a_later_version_is_left_alone_until_there_is_something_to_write(
    cache: NetworkCache, tmp_path: Path
) -> None:
    cache.save(NETWORK)
    later = {**json.loads(file(tmp_path).read_text()), "version": 2}
    file(tmp_path).write_text(json.dumps(later))
    assert read(tmp_path) is None
    assert json.loads(file(tmp_path).read_text()) == later
    NetworkCache(tmp_path / "netd").save(NETWORK)
    assert read(tmp_path) == NETWORK


def damaged(content: Mapping[str, Any], name: str, value: object) -> str:
    return json.dumps({**content, name: value})


@pytest.mark.parametrize("name", ["saved", "config", "own", "interface", "devices", "witness", "kept", "leases"])
@pytest.mark.parametrize(
    "value", [None, "", {}, [1], {"a": 1}, {"a": [1]}, {"a": ["1", "x"]}, {"a": -1}, {"a": float("nan")}, float("nan")]
)
def test_a_damaged_part_costs_the_memory_or_does_not_matter(
    cache: NetworkCache, tmp_path: Path, name: str, value: object
) -> None:
    cache.save(NETWORK)
    content = json.loads(file(tmp_path).read_text())
    file(tmp_path).write_text(damaged(content, name, value))
    usable = {"config": [""], "interface": [""], "kept": [{}, {"a": 1}], "leases": [{}]}
    found = read(tmp_path)
    assert (found is not None) == (value in usable.get(name, []))


def test_a_damaged_lease_is_left_out(cache: NetworkCache, tmp_path: Path) -> None:
    cache.save(NETWORK)
    content = json.loads(file(tmp_path).read_text())
    content["leases"] |= {"10.5.77.0-24": [1, "[[["], "garbage": [1, lease(2).value.encode().decode()]}
    file(tmp_path).write_text(json.dumps(content))
    assert read(tmp_path) == NETWORK


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_damage_keeps_netd_from_starting(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damage")
    NetworkCache(folder / "netd").save(NETWORK)
    content = bytearray(file(folder).read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    file(folder).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    found = read(folder)
    assert found is None or all(key == each.subnets.key for key, each in found.leases.items())


def test_nesting_without_end_is_damage_too(tmp_path: Path) -> None:
    (tmp_path / "netd").mkdir()
    file(tmp_path).write_text("[" * 100_000)
    assert read(tmp_path) is None
