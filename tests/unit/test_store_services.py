"""Whatever is done to services in whatever order: each has what it needs, no two have the same, nothing is left."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from podlane.api import services, types
from podlane.api.codec import encode
from podlane.api.defaults import apply_defaults
from podlane.api.ranges import parse_networks
from podlane.api.types import ClusterConfig, Service
from podlane.api.validation import validate
from podlane.errors import AlreadyExists, Invalid, NotFound, StoreUnavailable
from podlane.store import keys
from podlane.store.claims import claims_of
from podlane.store.families import with_families
from podlane.store.interface import Put
from podlane.store.memory import MemoryStore
from podlane.store.pools import RangeFull
from podlane.store.registry import Registry
from podlane.store.services import Placement, Ranges

pytestmark = pytest.mark.unit

ONE, BOTH = "10.96.0.0/28", "10.96.0.0/28,fd00:10:96::/124"
PORTS = range(30000, 30020)
NAMES = st.sampled_from(["a", "b", "c", "d"])


def said(name: str = "web", **spec: Any) -> Service:
    """A service as a user writes it, with its defaults."""
    plain = {"metadata": {"name": name, "namespace": "default"}, "spec": {"ports": [{"port": 80}], **spec}}
    return apply_defaults(msgspec.convert(plain, Service))


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """What a user may say: without contradictions, but not always to be had."""
    kind = draw(st.sampled_from(["ClusterIP", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]))
    spec: dict[str, Any] = {"type": kind, "selector": draw(st.sampled_from([{}, {"app": "web"}]))}
    numbers = draw(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["TCP", "UDP"])), max_size=4, unique=True))
    numbers = numbers or [(80, "TCP")]
    spec["ports"] = [{"name": f"p{n}-{p.lower()}", "port": n, "protocol": p} for n, p in numbers]
    if kind == "ExternalName":
        return {**spec, "externalName": "db.example.com"}
    policy = draw(st.sampled_from(["", "", "SingleStack", "PreferDualStack", "RequireDualStack"]))
    if policy:
        spec["ipFamilyPolicy"] = policy
    if kind == "ClusterIP":
        if draw(st.integers(0, 4)) == 0:
            spec["clusterIP"] = "None"
        return spec
    if draw(st.booleans()):
        spec["ports"][0]["nodePort"] = draw(st.integers(29999, PORTS[-1]))
    if kind == "LoadBalancer":
        spec["externalTrafficPolicy"] = draw(st.sampled_from(["Cluster", "Local"]))
        spec["allocateLoadBalancerNodePorts"] = draw(st.booleans())
        spec["loadBalancerIP"] = draw(st.sampled_from(["", "192.0.2.1", "192.0.2.2"]))
    return spec


class Services(RuleBasedStateMachine):
    @initialize(cidr=st.sampled_from([ONE, BOTH]), seed=st.integers(0, 2**32))
    def begin(self, cidr: str, seed: int) -> None:
        self.registry = Registry(MemoryStore(), rng=random.Random(seed))
        self.registry.init_cluster(ClusterConfig(service_cidr=cidr, service_node_port_range=f"{PORTS[0]}-{PORTS[-1]}"))

    @rule(name=NAMES, spec=specs())
    def create(self, name: str, spec: dict[str, Any]) -> None:
        with contextlib.suppress(AlreadyExists, Invalid, RangeFull):
            self.registry.create(said(name, **spec))

    @rule(name=NAMES, spec=specs())
    def update(self, name: str, spec: dict[str, Any]) -> None:
        try:
            made = self.registry.update(said(name, **spec))
        except (NotFound, Invalid, RangeFull):
            return
        assert self.registry.update(said(name, **spec)) == made

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            self.registry.delete(Service, "default", name)

    @rule(cidr=st.sampled_from([ONE, BOTH]))
    def reconfigure(self, cidr: str) -> None:
        config = msgspec.structs.replace(self.registry.cluster_config(), service_cidr=cidr)
        self.registry.init_cluster(config, overwrite=True)

    @invariant()
    def each_has_its_own_and_nothing_is_left(self) -> None:
        if not hasattr(self, "registry"):
            return
        made = self.registry.list(Service).items
        held = [key for one in made for key in claims_of(one)]
        assert len(held) == len(set(held))
        found = {
            kv.key
            for prefix in (keys.SERVICE_IPS, keys.SERVICE_NODE_PORTS)
            for kv in self.registry.store.list(prefix).items
        }
        assert set(held) == found

    @invariant()
    def each_is_complete_and_valid(self) -> None:
        if not hasattr(self, "registry"):
            return
        for one in self.registry.list(Service).items:
            spec = one.spec
            assert validate(one) == []
            if not services.has_cluster_ip(spec):
                assert (spec.cluster_ips, spec.ip_families) == ((), ())
                continue
            assert spec.ip_family_policy
            if not services.is_headless(spec):
                assert tuple(map(services.family_of, spec.cluster_ips)) == spec.ip_families
            if services.wants_node_ports(spec):
                assert all(port.node_port in PORTS for port in spec.ports)
            assert bool(spec.health_check_node_port) == services.has_health_check(spec)
            ingress = [ingress.ip for ingress in one.status.load_balancer.ingress]
            assert ingress == ([spec.load_balancer_ip] if spec.type == "LoadBalancer" and spec.load_balancer_ip else [])


TestServices = Services.TestCase
TestServices.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestServices.pytestmark = [pytest.mark.unit]  # type: ignore[attr-defined]


# --- one at a time -----------------------------------------------------------------------


def limits(cidr: str = BOTH) -> Ranges:
    return Ranges(parse_networks(cidr), range(30000, 30002))


def test_what_is_known_to_be_taken_is_not_tried() -> None:
    placement = Placement(None, said(type="NodePort"), limits(), random.Random(1))
    placement.taken = {keys.service_node_port_key(30000)}
    assert {placement.attempt(listed=True).spec.ports[0].node_port for _ in range(20)} == {30001}
    placement.learn({keys.service_node_port_key(30001)})
    with pytest.raises(RangeFull, match="allocate node port in 30000-30001: range full"):
        placement.attempt(listed=True)


def test_all_that_is_wrong_is_said_at_once() -> None:
    ports = [{"name": "a", "port": 1, "nodePort": 1}, {"name": "b", "port": 2, "nodePort": 30000}]
    wanted = said(type="NodePort", ports=[*ports, {"name": "c", "port": 3, "nodePort": 3}], clusterIP="10.97.0.1")
    with pytest.raises(Invalid) as caught:
        Placement(None, wanted, limits(), random.Random(1))
    assert [str(error) for error in caught.value.errors] == [
        "spec.clusterIP: 10.97.0.1 is not a usable address of the service range 10.96.0.0/28",
        "spec.ports[0].nodePort: 1 is not in the node port range 30000-30001",
        "spec.ports[2].nodePort: 3 is not in the node port range 30000-30001",
    ]
    placement = Placement(None, said(type="NodePort", ports=ports[1:]), limits(), random.Random(1))
    with pytest.raises(Invalid, match=r"spec\.ports\[0\]\.nodePort: 30000 is allocated already"):
        placement.learn({keys.service_node_port_key(30000)})


def test_families_of_what_is_wrong_are_left_alone() -> None:
    spec = types.ServiceSpec(cluster_ip="nonsense")
    same, errors = with_families(spec, None, parse_networks(BOTH))
    assert same == spec
    assert [str(error) for error in errors] == [
        'spec.clusterIP: expected an IP address, "None" or nothing, got "nonsense"'
    ]


def test_a_service_from_before_there_were_families() -> None:
    """An earlier Podlane stored an address only; the first change of the spec fills in the rest."""
    registry = Registry(MemoryStore())
    registry.init_cluster(ClusterConfig(service_cidr=ONE))
    old = said()
    spec = msgspec.structs.replace(old.spec, cluster_ip="10.96.0.9", cluster_ips=("10.96.0.9",))
    key = keys.key_for(Service, "default", "web")
    registry.store.txn(
        [],
        [Put(key, encode(msgspec.structs.replace(old, spec=spec))), Put(keys.service_ip_key("10.96.0.9"), b"{}")],
    )
    same = registry.update(said())
    assert (same.spec, same.metadata.generation) == (spec, 0)
    changed = registry.update(said(type="NodePort"))
    assert (changed.spec.cluster_ips, changed.spec.ip_families) == (("10.96.0.9",), ("IPv4",))
    assert changed.spec.ports[0].node_port
    registry.delete(Service, "default", "web")
    assert registry.store.list("/registry/ranges/").items == ()


def test_an_answer_that_got_lost_leaves_no_port_behind() -> None:
    """The write was done, its writer does not know: when it comes again it finds what it got."""
    registry = Registry(MemoryStore())
    registry.init_cluster(ClusterConfig(service_cidr=BOTH))
    made = registry.create(said())
    store = registry.store
    assert isinstance(store, MemoryStore)
    store.faults.drop_after_apply()
    with pytest.raises(StoreUnavailable):
        registry.update(msgspec.structs.replace(said(type="NodePort"), metadata=made.metadata))
    kept = registry.get(Service, "default", "web")
    assert kept.spec.ports[0].node_port
    assert registry.modify(Service, "default", "web", lambda _: said(type="NodePort")) == kept
    assert set(claims_of(kept)) == {kv.key for kv in store.list("/registry/ranges/").items}
