"""Keys both ways, and addresses."""

from __future__ import annotations

import random
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.api.types import KINDS, Lease, Node, Object, Pod, Service
from podlane.errors import UsageError
from podlane.store import addresses, keys

pytestmark = pytest.mark.unit

NAMES = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=20)


def test_the_public_layout() -> None:
    assert keys.pod_key("default", "a") == "/registry/pods/default/a"
    assert keys.key_for(Service, "default", "a") == "/registry/services/specs/default/a"
    assert keys.key_for(Node, "ignored", "a") == "/registry/minions/a"
    assert keys.key_for(Lease, "kube-node-lease", "n1") == "/registry/leases/kube-node-lease/n1"
    assert keys.prefix_for(Pod) == "/registry/pods/"
    assert keys.prefix_for(Pod, "a") == "/registry/pods/a/"
    assert keys.prefix_for(Node, "a") == "/registry/minions/"
    assert keys.binding_key("n1", "default", "a") == "/podlane/bindings/n1/default/a"
    assert keys.proxy_key("n1") == "/podlane/proxies/n1"
    assert keys.service_ip_key("10.96.0.1") == "/registry/ranges/serviceips/10.96.0.1"


@given(cls=st.sampled_from(sorted(KINDS.values(), key=lambda c: c.KIND)), namespace=NAMES, name=NAMES)
def test_keys_there_and_back(cls: type[Object], namespace: str, name: str) -> None:
    key = keys.key_for(cls, namespace, name)
    assert key.startswith(keys.prefix_for(cls, namespace))
    assert keys.parse_key(key) == keys.ObjectKey(cls, namespace if cls.NAMESPACED else "", name)


@pytest.mark.parametrize(
    "key", ["/registry/pods/a", "/registry/pods/a/b/c", "/registry/pods//b", "/registry/minions/a/b", "/other"]
)
def test_what_is_no_objects_key(key: str) -> None:
    with pytest.raises(ValueError, match="no object has the key"):
        keys.parse_key(key)


@pytest.mark.parametrize("name", ["", "a/b", "/"])
def test_a_name_never_leads_elsewhere(name: str) -> None:
    with pytest.raises(UsageError):
        keys.pod_key("default", name)
    with pytest.raises(UsageError):
        keys.binding_key(name, "default", "a")


@given(prefix=st.integers(20, 32), seed=st.integers(), share=st.floats(0, 1))
def test_a_free_address_is_found_if_there_is_one(prefix: int, seed: int, share: float) -> None:
    network = ip_network(f"10.96.0.0/{prefix}")
    usable = [str(host) for host in network.hosts()] if prefix < 31 else [str(a) for a in network]
    rng = random.Random(seed)
    taken = frozenset(rng.sample(usable, int(len(usable) * share)))
    address = addresses.free_address(network, taken, rng)
    if len(taken) == len(usable):
        assert address is None
    else:
        assert address in set(usable) - taken
    assert addresses.random_address(network, rng) in usable
    assert all(addresses.problem_of(a, network) == "" for a in usable[:3] + usable[-3:])


def test_large_and_ipv6_ranges() -> None:
    rng = random.Random(1)
    for cidr in ("10.0.0.0/8", "fd00:96::/108", "::/64"):
        network = ip_network(cidr)
        address = addresses.random_address(network, rng)
        assert addresses.problem_of(address, network) == ""
        assert addresses.free_address(network, frozenset({address}), rng) not in {None, address}
