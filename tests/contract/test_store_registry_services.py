"""Addresses and node ports of services, on memory and on real etcd: everybody gets his own, nothing is left behind."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from podlane.api.types import ClusterConfig, Pod, Service, ServiceStatus
from podlane.errors import AlreadyExists, Conflict, Invalid, NotFound, PodlaneError
from podlane.store import keys
from podlane.store.claims import claims_of
from podlane.store.interface import Store, TxnResult
from podlane.store.pools import RangeFull
from podlane.store.registry import Registry

pytestmark = pytest.mark.contract

BOTH = "10.96.0.0/24,fd00:10:96::/120"
NODE_PORT = {"type": "NodePort"}
BALANCER = {"type": "LoadBalancer"}
LOCAL = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
NAMED = {"type": "ExternalName", "externalName": "db.example.com"}
DNS = [{"name": "a", "port": 53, "protocol": "UDP"}, {"name": "b", "port": 53}, {"name": "c", "port": 9153}]


@pytest.fixture
def store(registry_store: Store) -> Store:
    return registry_store


@pytest.fixture
def cluster(store: Store) -> Callable[..., Registry]:
    def made(cidr: str = BOTH, ports: str = "30000-32767", *, again: bool = False) -> Registry:
        registry = Registry(store, rng=random.Random(7))
        registry.init_cluster(ClusterConfig(service_cidr=cidr, service_node_port_range=ports), overwrite=again)
        return registry

    return made


@pytest.fixture
def registry(cluster: Callable[..., Registry]) -> Registry:
    return cluster()


def service(name: str = "web", **spec: Any) -> Service:
    """`spec` as in a manifest."""
    plain = {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], "selector": {"app": "web"}, **spec}}
    return msgspec.convert(plain, Service)


def resaid(old: Service, **spec: Any) -> Service:
    """What a user says next about a service."""
    return msgspec.structs.replace(service(old.metadata.name, **spec), metadata=old.metadata)


def node_ports(made: Service) -> list[int]:
    return [port.node_port for port in made.spec.ports]


def claimed(registry: Registry) -> set[str]:
    return {
        kv.key for prefix in (keys.SERVICE_IPS, keys.SERVICE_NODE_PORTS) for kv in registry.store.list(prefix).items
    }


def books_balance(registry: Registry) -> None:
    """The keys are those of the services stored, and no key is two services'."""
    held = [key for made in registry.list(Service).items for key in claims_of(made)]
    assert len(held) == len(set(held))
    assert set(held) == claimed(registry)


# --- families ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cidr", "spec", "families", "policy"),
    [
        (BOTH, {}, "IPv4", "SingleStack"),
        ("fd00:10:96::/120,10.96.0.0/24", {}, "IPv6", "SingleStack"),
        (BOTH, {"ipFamilies": ["IPv6"]}, "IPv6", "SingleStack"),
        (BOTH, {"ipFamilyPolicy": "PreferDualStack"}, "IPv4 IPv6", "PreferDualStack"),
        (BOTH, {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]}, "IPv6 IPv4", "PreferDualStack"),
        (BOTH, {"ipFamilyPolicy": "RequireDualStack"}, "IPv4 IPv6", "RequireDualStack"),
        (BOTH, {"clusterIP": "fd00:10:96::9"}, "IPv6", "SingleStack"),
        (
            BOTH,
            {"clusterIP": "fd00:10:96::9", "ipFamilyPolicy": "PreferDualStack"},
            "IPv6 IPv4",
            "PreferDualStack",
        ),
        ("10.96.0.0/24", {"ipFamilyPolicy": "PreferDualStack"}, "IPv4", "PreferDualStack"),
        ("10.96.0.0/24", {"clusterIP": "None"}, "IPv4", "SingleStack"),
        (BOTH, {"clusterIP": "None", "ipFamilyPolicy": "PreferDualStack"}, "IPv4 IPv6", "PreferDualStack"),
        # nobody but who writes the endpoints knows their families
        ("10.96.0.0/24", {"clusterIP": "None", "selector": {}}, "IPv4 IPv6", "RequireDualStack"),
    ],
)
def test_families(
    cluster: Callable[..., Registry], cidr: str, spec: dict[str, Any], families: str, policy: str
) -> None:
    registry = cluster(cidr)
    made = registry.create(service(**spec))
    assert (" ".join(made.spec.ip_families), made.spec.ip_family_policy) == (families, policy)
    if spec.get("clusterIP") == "None":
        assert made.spec.cluster_ips == ("None",)
    else:
        assert ["IPv6" if ":" in ip else "IPv4" for ip in made.spec.cluster_ips] == families.split()
        assert made.spec.cluster_ip == made.spec.cluster_ips[0]
    assert registry.get(Service, "default", "web") == made
    books_balance(registry)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"ipFamilyPolicy": "RequireDualStack"}, "spec.ipFamilyPolicy: RequireDualStack: the cluster has one service"),
        ({"ipFamilies": ["IPv6"]}, "spec.ipFamilies[0]: the cluster has no IPv6 services"),
        ({"clusterIP": "fd00::9"}, "spec.clusterIP: fd00::9: the cluster has no IPv6 services"),
        (
            {"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack"},
            "spec.ipFamilies[1]: the cluster has no IPv6 services",
        ),
        ({"clusterIP": "10.96.1.9"}, "spec.clusterIP: 10.96.1.9 is not a usable address of the service range"),
    ],
)
def test_what_the_cluster_does_not_have(cluster: Callable[..., Registry], spec: dict[str, Any], error: str) -> None:
    registry = cluster("10.96.0.0/24")
    with pytest.raises(Invalid) as caught:
        registry.create(service(**spec))
    assert f"service/web: {error}" in str(caught.value)
    assert claimed(registry) == set()


def test_a_second_family_comes_and_goes_with_the_policy(registry: Registry) -> None:
    one = registry.create(service())
    two = registry.update(resaid(one, ipFamilyPolicy="PreferDualStack"))
    assert (two.spec.cluster_ips[0], len(two.spec.cluster_ips), two.metadata.generation) == (one.spec.cluster_ip, 2, 2)
    books_balance(registry)
    assert registry.update(resaid(two)) == two
    with pytest.raises(Invalid, match=r"spec\.ipFamilyPolicy: expected \"SingleStack\", for clusterIPs loses"):
        registry.update(resaid(two, clusterIP=one.spec.cluster_ip, clusterIPs=[one.spec.cluster_ip]))
    back = registry.update(resaid(two, ipFamilyPolicy="SingleStack"))
    assert (back.spec.cluster_ips, back.spec.ip_families) == (one.spec.cluster_ips, ("IPv4",))
    books_balance(registry)
    for change in ({"clusterIP": "10.96.0.3"}, {"ipFamilies": ["IPv6"]}, {"clusterIP": "None"}):
        with pytest.raises(Invalid, match=r"immutable|expected an IPv6"):
            registry.update(resaid(back, **change))


def test_a_service_that_prefers_two_keeps_one_when_the_cluster_gets_two(cluster: Callable[..., Registry]) -> None:
    made = cluster("10.96.0.0/24").create(service(ipFamilyPolicy="PreferDualStack"))
    registry = cluster(BOTH, again=True)
    kept = registry.update(resaid(made, selector={"app": "other"}))
    assert kept.spec.cluster_ips == made.spec.cluster_ips
    asked = registry.update(resaid(kept, ipFamilyPolicy="RequireDualStack"))
    assert len(asked.spec.cluster_ips) == 2
    books_balance(registry)


def test_one_address_however_it_is_spelt(registry: Registry) -> None:
    registry.create(service("a", clusterIP="fd00:10:96::a"))
    with pytest.raises(Invalid, match=r"spec\.clusterIP: fd00:10:96::a is allocated already"):
        registry.create(service("b", clusterIP="FD00:10:96:0::A"))
    registry.delete(Service, "default", "a")
    assert claimed(registry) == set()


# --- node ports --------------------------------------------------------------------------


def test_every_port_gets_a_node_port(registry: Registry) -> None:
    made = registry.create(service(**NODE_PORT, ports=DNS))
    udp, tcp, metrics = node_ports(made)
    assert udp == tcp != metrics
    assert all(port in range(30086, 32768) for port in (tcp, metrics))
    assert made.spec.external_traffic_policy == "Cluster"
    books_balance(registry)
    registry.delete(Service, "default", "web")
    assert claimed(registry) == set()


def test_a_node_port_asked_for(registry: Registry) -> None:
    made = registry.create(service(**NODE_PORT, ports=[{"port": 80, "nodePort": 30080}]))
    assert node_ports(made) == [30080]
    for port, why in (
        (30080, "30080 is allocated already"),
        (29999, "29999 is not in the node port range 30000-32767"),
    ):
        with pytest.raises(Invalid) as caught:
            registry.create(service("b", **NODE_PORT, ports=[{"port": 80, "protocol": "UDP", "nodePort": port}]))
        assert str(caught.value) == f"service/b: spec.ports[0].nodePort: {why}"
    with pytest.raises(AlreadyExists):
        registry.create(service(**NODE_PORT, ports=[{"port": 80, "nodePort": 30080}]))
    books_balance(registry)


def test_what_was_allocated_stays(registry: Registry) -> None:
    made = registry.create(service(**NODE_PORT, ports=DNS))
    kept = registry.update(resaid(made, **NODE_PORT, ports=[DNS[2], {**DNS[1], "port": 5353}, DNS[0]]))
    assert node_ports(kept)[0] == node_ports(made)[2]
    assert set(node_ports(kept)[1:]) >= {node_ports(made)[0]}
    books_balance(registry)
    assert registry.update(resaid(kept, **NODE_PORT, ports=[DNS[2], {**DNS[1], "port": 5353}, DNS[0]])) == kept
    moved = registry.update(resaid(kept, **NODE_PORT, ports=[{**DNS[2], "nodePort": 30001}]))
    assert node_ports(moved) == [30001]
    books_balance(registry)


def test_types_change_and_nothing_is_left(registry: Registry) -> None:
    made = registry.create(service(**LOCAL, ports=DNS))
    assert made.spec.health_check_node_port
    assert len(claimed(registry)) == 4
    balanced = registry.update(resaid(made, **BALANCER, externalTrafficPolicy="Cluster", ports=DNS))
    assert balanced.spec.health_check_node_port == 0
    assert node_ports(balanced) == node_ports(made)
    inside = registry.update(resaid(balanced, ports=DNS))
    assert (node_ports(inside), inside.spec.external_traffic_policy) == ([0, 0, 0], "")
    assert len(claimed(registry)) == 1
    named = registry.update(resaid(inside, **NAMED, ports=DNS))
    assert (named.spec.cluster_ip, named.spec.cluster_ips, named.spec.ip_families) == ("", (), ())
    assert claimed(registry) == set()
    again = registry.update(resaid(named, **NODE_PORT, ports=DNS))
    assert again.spec.cluster_ip
    assert all(node_ports(again))
    books_balance(registry)


def test_a_load_balancer_without_node_ports(registry: Registry) -> None:
    made = registry.create(service(**BALANCER, allocateLoadBalancerNodePorts=False, ports=[{"port": 80}]))
    assert node_ports(made) == [0]
    asked = registry.update(
        resaid(made, **BALANCER, allocateLoadBalancerNodePorts=False, ports=[{"port": 80, "nodePort": 30080}])
    )
    assert node_ports(asked) == [30080]
    given = registry.update(resaid(asked, **BALANCER, ports=[{"port": 80}]))
    assert node_ports(given) == [30080]
    books_balance(registry)
    returned = registry.update(resaid(given, **BALANCER, allocateLoadBalancerNodePorts=False, ports=[{"port": 80}]))
    assert node_ports(returned) == [0]
    books_balance(registry)


def test_the_health_check_has_a_port_of_its_own(registry: Registry) -> None:
    made = registry.create(service(**LOCAL, healthCheckNodePort=31000))
    assert made.spec.health_check_node_port == 31000
    with pytest.raises(Invalid, match=r"spec\.healthCheckNodePort: 31000 is allocated already"):
        registry.create(service("b", **LOCAL, healthCheckNodePort=31000))
    with pytest.raises(Invalid, match=r"spec\.healthCheckNodePort: immutable"):
        registry.update(resaid(made, **LOCAL, healthCheckNodePort=31001))
    with pytest.raises(Invalid, match=r"spec\.ports\[0\]\.nodePort: 31000 is allocated already"):
        registry.create(service("c", **NODE_PORT, ports=[{"port": 80, "nodePort": 31000}]))
    assert registry.update(resaid(made, **LOCAL)).spec.health_check_node_port == 31000
    books_balance(registry)


def test_the_port_range_can_be_filled_and_used_again(cluster: Callable[..., Registry]) -> None:
    registry = cluster(ports="30000-30019")
    made = [registry.create(service(f"s{n}", **NODE_PORT)) for n in range(20)]
    assert sorted(node_ports(one)[0] for one in made) == list(range(30000, 30020))
    with pytest.raises(RangeFull, match="allocate node port in 30000-30019: range full"):
        registry.create(service("one-too-many", **NODE_PORT))
    books_balance(registry)
    registry.delete(Service, "default", "s3")
    assert node_ports(registry.create(service("again", **NODE_PORT))) == node_ports(made[3])


def test_more_ports_than_fit_into_a_transaction_are_refused(registry: Registry) -> None:
    many = [{"name": f"p{n}", "port": n} for n in range(1, 131)]
    with pytest.raises(Invalid, match=r"spec\.ports: expected fewer node ports: at most 120 keys change at once"):
        registry.create(service(**NODE_PORT, ports=many))
    made = registry.create(service(ports=many))
    assert len(made.spec.ports) == 130
    most = registry.update(resaid(made, **NODE_PORT, ports=many[:118]))
    assert len(set(node_ports(most))) == 118
    registry.delete_many([most])
    assert claimed(registry) == set()


# --- many writers ------------------------------------------------------------------------


def test_services_made_at_once_never_share_a_port(cluster: Callable[..., Registry]) -> None:
    """40 ports, 6 writers of 10 services with a port each: 40 get one, 20 hear that the range is full."""
    store = cluster(ports="30000-30039").store
    made: list[int] = []
    full: list[str] = []
    start = threading.Barrier(6)

    def work(worker: int) -> None:
        registry = Registry(store, rng=random.Random(worker))
        start.wait()
        for n in range(10):
            try:
                made.extend(node_ports(registry.create(service(f"s{worker}-{n}", **NODE_PORT))))
            except RangeFull:
                full.append(f"s{worker}-{n}")

    _run(work, 6)
    assert sorted(made) == list(range(30000, 30040))
    assert len(full) == 20
    books_balance(Registry(store))


def test_of_many_that_ask_for_one_port_one_gets_it(registry: Registry) -> None:
    outcomes: list[str] = []
    start = threading.Barrier(6)

    def work(worker: int) -> None:
        mine = Registry(registry.store)
        start.wait()
        try:
            mine.create(service(f"s{worker}", **NODE_PORT, ports=[{"port": 80, "nodePort": 30080}]))
            outcomes.append("made")
        except Invalid as error:
            outcomes.append(error.errors[0].message)

    _run(work, 6)
    assert sorted(outcomes) == ["30080 is allocated already"] * 5 + ["made"]
    books_balance(registry)


def test_writers_at_random_leave_the_books_in_order(cluster: Callable[..., Registry]) -> None:
    """Creation, change of type, ports and families, and deletion of the same few services by four writers."""
    store = cluster("10.96.0.0/27,fd00:10:96::/123", "30000-30024").store
    start = threading.Barrier(4)
    wrong: list[Exception] = []

    def work(worker: int) -> None:
        rng = random.Random(worker)
        registry = Registry(store, rng=rng)
        start.wait()
        for _ in range(60):
            name = f"s{rng.randrange(6)}"
            try:
                _step(registry, name, rng)
            except (NotFound, Conflict, AlreadyExists, Invalid, RangeFull):
                pass  # another was faster, or has what this one asks for
            except Exception as error:
                wrong.append(error)
                raise

    _run(work, 4)
    assert wrong == []
    registry = Registry(store)
    books_balance(registry)
    registry.delete_many(registry.list(Service).items)
    assert claimed(registry) == set()


def _step(registry: Registry, name: str, rng: random.Random) -> None:
    said: dict[str, Any] = rng.choice([{}, NODE_PORT, BALANCER, LOCAL, NAMED, {"ipFamilyPolicy": "PreferDualStack"}])
    ports: list[dict[str, Any]] = [dict(port) for port in DNS[: rng.randrange(1, 4)]]
    if said.get("type") in {"NodePort", "LoadBalancer"} and rng.random() < 0.3:
        ports[0]["nodePort"] = rng.randrange(30000, 30025)
    match rng.randrange(4):
        case 0:
            registry.create(service(name, **said, ports=ports))
        case 1:
            registry.delete(Service, "default", name)
        case _:
            registry.modify(Service, "default", name, lambda live: resaid(live, **said, ports=ports))


def _run(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Once:
    """A store on which somebody else takes something right before the first transaction."""

    def __init__(self, store: Store, first: Callable[[], object]) -> None:
        self._store = store
        self._first: Callable[[], object] | None = first

    def txn(self, compare: Any, success: Any, failure: Any = ()) -> TxnResult:
        first, self._first = self._first, None
        if first is not None:
            first()
        return self._store.txn(compare, success, failure)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_change_overtaken_by_another_is_a_conflict_and_takes_nothing(registry: Registry) -> None:
    made = registry.create(service())
    late = Registry(Once(registry.store, lambda: registry.update(resaid(made, selector={"v": "2"}))))  # type: ignore[arg-type]
    with pytest.raises(Conflict, match="update service/web: it has changed since it was read"):
        late.update(resaid(made, **NODE_PORT))
    assert len(claimed(registry)) == 1
    gone = Registry(Once(registry.store, lambda: registry.delete(Service, "default", "web")))  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="update service/web: not found"):
        gone.modify(Service, "default", "web", lambda live: resaid(live, **NODE_PORT))
    assert claimed(registry) == set()


def test_a_port_taken_in_the_meantime_is_refused_by_name(registry: Registry) -> None:
    made = registry.create(service())
    asked = [{"port": 80, "nodePort": 30080}]
    late = Registry(Once(registry.store, lambda: registry.create(service("b", **NODE_PORT, ports=asked))))  # type: ignore[arg-type]
    with pytest.raises(Invalid, match=r"service/web: spec\.ports\[0\]\.nodePort: 30080 is allocated already"):
        late.update(resaid(made, **NODE_PORT, ports=asked))
    assert registry.get(Service, "default", "web") == made
    books_balance(registry)


# --- status ------------------------------------------------------------------------------


def ingress(made: Service) -> list[str]:
    return [one.ip or one.hostname for one in made.status.load_balancer.ingress]


def with_status(made: Service, *ips: str) -> Service:
    status = msgspec.convert({"loadBalancer": {"ingress": [{"ip": ip} for ip in ips]}}, ServiceStatus)
    return msgspec.structs.replace(made, status=status)


def test_a_load_balancer_serves_at_its_address(registry: Registry) -> None:
    made = registry.create(service(**BALANCER, loadBalancerIP="192.0.2.9"))
    assert ingress(made) == ["192.0.2.9"]
    assert made.status.load_balancer.ingress[0].ip_mode == "VIP"
    moved = registry.modify(Service, "default", "web", lambda live: with_spec(live, load_balancer_ip="192.0.2.10"))
    assert ingress(moved) == ["192.0.2.10"]
    assert ingress(registry.modify(Service, "default", "web", lambda live: with_spec(live, load_balancer_ip=""))) == []
    assert registry.create(service("elsewhere", loadBalancerIP="192.0.2.9")).status == ServiceStatus()


def with_spec(live: Service, **changes: Any) -> Service:
    return msgspec.structs.replace(live, spec=msgspec.structs.replace(live.spec, **changes))


def test_what_another_controller_wrote_stays(registry: Registry) -> None:
    made = registry.create(service(**BALANCER, loadBalancerIP="192.0.2.9"))
    theirs = registry.update(with_status(made, "198.51.100.1", "198.51.100.2"))
    moved = registry.update(with_spec(theirs, load_balancer_ip="192.0.2.10", selector={"app": "b"}))
    assert ingress(moved) == ["198.51.100.1", "198.51.100.2"]
    assert ingress(registry.update(with_spec(moved, type="NodePort"))) == []


def test_a_class_of_load_balancers_is_not_ours(registry: Registry) -> None:
    made = registry.create(service(**BALANCER, loadBalancerIP="192.0.2.9", loadBalancerClass="example.com/metal"))
    assert ingress(made) == []
    assert ingress(registry.update(with_status(made, "192.0.2.9"))) == ["192.0.2.9"]


def test_many_at_once(registry: Registry) -> None:
    asked = [{"port": 80, "nodePort": 30080}]
    objs: list[Any] = [
        service("a", **NODE_PORT, ports=asked),
        Pod(metadata=service("p").metadata),
        service("b", **NODE_PORT, ports=asked),
        service("c", **LOCAL),
    ]
    answers: list[PodlaneError | Any] = list(registry.create_many(objs))
    assert [type(answer) for answer in answers] == [Service, Pod, Invalid, Service]
    books_balance(registry)
