"""The typed registry's rules, on memory and on real etcd."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable

import msgspec
import pytest

from podlane.api.meta import get_condition
from podlane.api.types import (
    ClusterConfig,
    Container,
    EndpointSlice,
    Event,
    Lease,
    Namespace,
    Node,
    NodeSpec,
    Object,
    ObjectMeta,
    Pod,
    PodSpec,
    PodStatus,
    ReplicationController,
    ReplicationControllerSpec,
    ReplicationControllerStatus,
    Service,
    ServiceSpec,
)
from podlane.errors import (
    AlreadyExists,
    Conflict,
    Fenced,
    Invalid,
    NotFound,
    PodlaneError,
    StoreUnavailable,
    UsageError,
)
from podlane.runtime.clock import FakeClock
from podlane.store import keys
from podlane.store.bulk import Binding
from podlane.store.events import EventRecorder
from podlane.store.interface import Compare, Delete, Put, Store
from podlane.store.memory import MemoryStore
from podlane.store.pools import RangeFull
from podlane.store.registry import Registry

pytestmark = pytest.mark.contract

WAIT = 20.0


@pytest.fixture
def store(registry_store: Store) -> Store:
    return registry_store


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_700_000_000.0)


@pytest.fixture
def registry(store: Store, clock: FakeClock) -> Registry:
    made = Registry(store, clock=clock)
    made.init_cluster(ClusterConfig(service_cidr="10.96.0.0/28"))
    return made


def meta(name: str = "", **fields: object) -> ObjectMeta:
    return ObjectMeta(name=name, **fields)  # type: ignore[arg-type]


def make_namespaces(registry: Registry, *names: str) -> None:
    for name in names:
        registry.create(Namespace(metadata=meta(name)))


def pod(name: str, *, node: str = "", grace: int = 30) -> Pod:
    spec = PodSpec(containers=(Container(name="c", image="i"),), node_name=node, termination_grace_period_seconds=grace)
    return Pod(metadata=meta(name), spec=spec)


def service(name: str, ip: str = "") -> Service:
    return Service(metadata=meta(name), spec=ServiceSpec(cluster_ip=ip))


def with_replicas(rc: ReplicationController, replicas: int) -> ReplicationController:
    return msgspec.structs.replace(rc, spec=msgspec.structs.replace(rc.spec, replicas=replicas))


def labelled(obj: Pod, value: str) -> Pod:
    metadata = msgspec.structs.replace(obj.metadata, labels={"v": value})
    return msgspec.structs.replace(obj, metadata=metadata)


def running(obj: Pod, phase: str = "Running") -> Pod:
    return msgspec.structs.replace(obj, status=PodStatus(phase=phase))  # type: ignore[arg-type]


def binding_revision(registry: Registry, node: str, name: str) -> str:
    """The mod_revision of the pod's copy below its node; "" if there is none."""
    kv = registry.store.get(keys.binding_key(node, "default", name))
    return str(kv.mod_revision) if kv else ""


# --- create, read --------------------------------------------------------------------


def test_create_completes_the_metadata(registry: Registry, clock: FakeClock) -> None:
    made = registry.create(Pod(metadata=meta("a", uid="mine", resource_version="7", generation=9)))
    assert (made.kind, made.api_version, made.metadata.namespace) == ("Pod", "v1", "default")
    assert made.metadata.uid not in {"", "mine"}
    assert made.metadata.generation == 1
    assert made.metadata.creation_timestamp is not None
    assert made.metadata.creation_timestamp.timestamp() == clock.now()
    assert registry.get(Pod, "default", "a") == made
    assert registry.get(Pod, "", "a") == made


def test_create_refuses_a_second_of_the_name(registry: Registry) -> None:
    registry.create(pod("a"))
    with pytest.raises(AlreadyExists, match="create pod/a: already exists"):
        registry.create(pod("a"))
    make_namespaces(registry, "other")
    other = Pod(metadata=meta("a", namespace="other"))
    assert registry.create(other).metadata.namespace == "other"


def test_generate_name(registry: Registry) -> None:
    made = [registry.create(Pod(metadata=meta(generate_name="web-"))) for _ in range(5)]
    names = {obj.metadata.name for obj in made}
    assert len(names) == 5
    assert all(name.startswith("web-") and len(name) == 9 for name in names)


def test_kinds_without_namespace(registry: Registry) -> None:
    made = registry.create(Node(metadata=meta("n1", namespace="ignored")))
    assert made.metadata.namespace == ""
    assert registry.store.get("/registry/minions/n1") is not None
    assert registry.list(Node, "any").items == (made,)


def test_list_by_namespace(registry: Registry) -> None:
    names = [("a", "x"), ("a", "y"), ("ab", "z"), ("b", "x")]
    make_namespaces(registry, "a", "ab", "b")
    for namespace, name in names:
        last = registry.create(Pod(metadata=meta(name, namespace=namespace)))
    everything = registry.list(Pod)
    assert [(p.metadata.namespace, p.metadata.name) for p in everything.items] == names
    assert everything.revision == int(last.metadata.resource_version)
    assert [p.metadata.name for p in registry.list(Pod, "a").items] == ["x", "y"]


def test_list_says_what_it_cannot_read(registry: Registry) -> None:
    registry.create(pod("a"))
    registry.store.txn([], [Put("/registry/pods/default/bad", b'{"spec": 7}')])
    listing = registry.list(Pod)
    assert [p.metadata.name for p in listing.items] == ["a"]
    assert listing.undecodable == ("/registry/pods/default/bad",)
    with pytest.raises(PodlaneError, match="decode Pod"):
        registry.get(Pod, "default", "bad")


def test_what_is_not_there(registry: Registry) -> None:
    for attempt in (
        lambda: registry.get(Pod, "default", "none"),
        lambda: registry.update(pod("none")),
        lambda: registry.delete(Pod, "default", "none"),
        lambda: registry.modify(Pod, "default", "none", lambda p: p),
    ):
        with pytest.raises(NotFound, match="pod/none: not found"):
            attempt()


def test_a_name_with_a_slash_is_refused(registry: Registry) -> None:
    with pytest.raises(UsageError):
        registry.get(Pod, "default", "a/b")


# --- update --------------------------------------------------------------------------


def test_update_is_compare_and_swap(registry: Registry) -> None:
    first = registry.create(ReplicationController(metadata=meta("web")))
    second = registry.update(with_replicas(first, 3))
    assert int(second.metadata.resource_version) > int(first.metadata.resource_version)
    with pytest.raises(Conflict):
        registry.update(with_replicas(first, 4))
    unconditional = msgspec.structs.replace(
        with_replicas(first, 5), metadata=msgspec.structs.replace(first.metadata, resource_version="")
    )
    assert registry.update(unconditional).spec.replicas == 5


def test_generation_counts_changes_of_the_spec_only(registry: Registry) -> None:
    rc = registry.create(ReplicationController(metadata=meta("web")))
    rc = registry.update(msgspec.structs.replace(rc, status=ReplicationControllerStatus(replicas=1)))
    assert rc.metadata.generation == 1
    rc = registry.update(with_replicas(rc, 3))
    assert rc.metadata.generation == 2


def test_writing_what_is_there_writes_nothing(registry: Registry) -> None:
    made = registry.create(ReplicationController(metadata=meta("web"), spec=ReplicationControllerSpec(replicas=2)))
    assert registry.update(made) == made
    bare = ReplicationController(metadata=meta("web"), spec=ReplicationControllerSpec(replicas=2))
    assert registry.update(bare) == made


def test_update_keeps_what_is_not_the_writers(registry: Registry) -> None:
    made = registry.create(Pod(metadata=meta("a")))
    forged = msgspec.structs.replace(made.metadata, creation_timestamp=None, generation=40, labels={"a": "b"})
    changed = registry.update(msgspec.structs.replace(made, metadata=forged))
    assert changed.metadata.creation_timestamp == made.metadata.creation_timestamp
    assert changed.metadata.generation == 1
    assert changed.metadata.labels == {"a": "b"}
    other = msgspec.structs.replace(changed.metadata, uid="another")
    with pytest.raises(Conflict, match="uid"):
        registry.update(msgspec.structs.replace(changed, metadata=other))


def test_modify_repeats_when_another_was_faster(registry: Registry) -> None:
    registry.create(ReplicationController(metadata=meta("web")))
    calls = 0

    def change(rc: ReplicationController) -> ReplicationController:
        nonlocal calls
        calls += 1
        if calls == 1:
            registry.update(msgspec.structs.replace(rc, status=ReplicationControllerStatus(replicas=9)))
        return with_replicas(rc, 7)

    result = registry.modify(ReplicationController, "default", "web", change)
    assert calls == 2
    assert (result.spec.replicas, result.status.replicas) == (7, 9)
    assert registry.modify(ReplicationController, "default", "web", lambda _: None) == result


# --- pods and their nodes -------------------------------------------------------------


def test_every_write_of_a_bound_pod_keeps_its_copy_and_its_removal_takes_what_is_its(registry: Registry) -> None:
    made = registry.create(pod("a", node="n1"))
    assert binding_revision(registry, "n1", "a") == made.metadata.resource_version
    changed = registry.update(running(made))
    assert binding_revision(registry, "n1", "a") == changed.metadata.resource_version
    ending = registry.delete(Pod, "default", "a")
    assert binding_revision(registry, "n1", "a") == ending.metadata.resource_version
    report = keys.pod_report_key("n1", "default", "a")
    registry.store.txn([], [Put(report, b"x"), Put(f"{report}b", b"another's")])
    registry.delete_many([ending], grace_seconds=0)
    assert registry.store.list("/podlane/bindings/").items == ()
    assert [kv.key for kv in registry.store.list(keys.REPORTS).items] == [f"{report}b"]
    assert registry.list(Pod).items == ()
    (again,) = registry.delete_many([ending], grace_seconds=0)
    assert isinstance(again, NotFound)


def test_a_pod_stays_on_its_node(registry: Registry) -> None:
    made = registry.create(pod("a", node="n1"))
    moved = msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, node_name="n2"))
    with pytest.raises(Invalid, match=r"spec\.nodeName"):
        registry.update(moved)


def test_bind(registry: Registry) -> None:
    made = registry.create(pod("a"))
    (answer,) = registry.bind([Binding("default", "a", "n1", made.metadata.resource_version)])
    assert answer is None
    bound = registry.get(Pod, "default", "a")
    assert bound.spec.node_name == "n1"
    scheduled = get_condition(bound.status.conditions, "PodScheduled")
    assert scheduled is not None
    assert scheduled.status == "True"
    assert binding_revision(registry, "n1", "a") == bound.metadata.resource_version


@pytest.mark.parametrize("with_pod", [False, True])
def test_bind_many_and_tell_the_losers(registry: Registry, with_pod: bool) -> None:
    made = registry.create_many([pod(f"p{n:03}") for n in range(130)])
    pods = [p for p in made if isinstance(p, Pod)]
    assert len(pods) == 130
    registry.update(labelled(pods[3], "changed"))
    registry.delete(Pod, "default", "p060")
    registry.update(msgspec.structs.replace(pods[129], spec=pod("x", node="elsewhere").spec))
    bindings = [
        Binding("default", p.metadata.name, f"n{n % 3}", p.metadata.resource_version, p if with_pod else None)
        for n, p in enumerate(pods)
    ]
    answers = registry.bind(bindings)
    assert {n: type(a) for n, a in enumerate(answers) if a} == {3: Conflict, 60: NotFound, 129: Conflict}
    nodes = {p.metadata.name: p.spec.node_name for p in registry.list(Pod).items}
    assert nodes == {f"p{n:03}": {3: "", 129: "elsewhere"}.get(n, f"n{n % 3}") for n in range(130) if n != 60}
    assert len(registry.store.list(keys.bindings_prefix("n1")).items) == 43


def test_bind_leaves_pods_that_end(registry: Registry) -> None:
    made = registry.create(pod("a", node="n1"))
    ending = registry.delete(Pod, "default", "a")
    for p in (made, ending):
        (answer,) = registry.bind([Binding("default", "a", "n2", p.metadata.resource_version, p)])
        assert isinstance(answer, Conflict)


def test_graceful_deletion(registry: Registry, clock: FakeClock) -> None:
    made = registry.create(pod("a", node="n1", grace=30))
    ending = registry.delete(Pod, "default", "a")
    assert ending.metadata.deletion_timestamp is not None
    assert ending.metadata.deletion_timestamp.timestamp() == clock.now() + 30
    assert ending.metadata.deletion_grace_period_seconds == 30
    assert registry.delete(Pod, "default", "a", grace_seconds=60) == ending  # an end only comes nearer
    sooner = registry.delete(Pod, "default", "a", grace_seconds=5)
    assert sooner.metadata.deletion_grace_period_seconds == 5
    kept = registry.update(msgspec.structs.replace(running(made), metadata=meta("a", uid=made.metadata.uid)))
    assert kept.metadata.deletion_timestamp == sooner.metadata.deletion_timestamp
    registry.delete(Pod, "default", "a", grace_seconds=0)
    assert registry.list(Pod).items == ()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda r: r.create(pod("a")), id="unbound"),
        pytest.param(lambda r: r.create(pod("a", node="n1", grace=0)), id="no-grace"),
        pytest.param(lambda r: r.update(running(r.create(pod("a", node="n1")), "Failed")), id="finished"),
    ],
)
def test_pods_that_nobody_must_end_go_at_once(registry: Registry, make: Callable[[Registry], Pod]) -> None:
    made = make(registry)
    assert registry.delete(Pod, "default", "a") == made
    assert registry.list(Pod).items == ()
    assert registry.store.list("/podlane/bindings/").items == ()


def test_deletion_by_uid(registry: Registry) -> None:
    old = registry.create(pod("a"))
    registry.delete(Pod, "default", "a", uid=old.metadata.uid)
    new = registry.create(pod("a"))
    with pytest.raises(Conflict, match="uid"):
        registry.delete(Pod, "default", "a", uid=old.metadata.uid)
    (answer,) = registry.delete_many([old], grace_seconds=0)
    assert isinstance(answer, Conflict), "a new pod of the name is not the one meant"
    assert registry.get(Pod, "default", "a") == new


def test_delete_many(registry: Registry) -> None:
    made = registry.create_many([*(pod(f"u{n}") for n in range(60)), *(pod(f"b{n}", node="n1") for n in range(60))])
    pods = [p for p in made if isinstance(p, Pod)]
    registry.update(running(pods[5]))  # changed since it was read: deleted all the same
    registry.delete(Pod, "default", "u7")
    answers = registry.delete_many(pods)
    assert [n for n, a in enumerate(answers) if isinstance(a, Exception)] == [7]
    assert isinstance(answers[7], NotFound)
    left = registry.list(Pod).items
    assert {p.metadata.name for p in left} == {f"b{n}" for n in range(60)}
    assert all(p.metadata.deletion_timestamp for p in left)
    assert registry.delete_many(left) == list(left)
    registry.delete_many(left, grace_seconds=0)
    assert registry.store.list("/registry/pods/").items == registry.store.list("/podlane/bindings/").items == ()


def test_create_many_answers_in_order(registry: Registry) -> None:
    registry.create(pod("taken"))
    objs: list[Object] = [pod("a"), pod("taken"), service("s"), Pod(metadata=meta(generate_name="g-")), service("s")]
    answers = registry.create_many(objs)
    assert [type(a) for a in answers] == [Pod, AlreadyExists, Service, Pod, AlreadyExists]
    assert registry.list(EndpointSlice).items == ()


# --- services ----------------------------------------------------------------------------


def test_a_service_gets_an_address_and_returns_it(registry: Registry) -> None:
    made = registry.create(service("web"))
    ip = made.spec.cluster_ip
    assert ip.startswith("10.96.0.")
    assert made.spec.cluster_ips == (ip,)
    assert registry.store.get(keys.service_ip_key(ip)) is not None
    blank = registry.update(msgspec.structs.replace(made, spec=ServiceSpec(selector={"a": "b"})))
    assert blank.spec.cluster_ip == ip
    with pytest.raises(Invalid, match=r"spec\.clusterIP"):
        registry.update(msgspec.structs.replace(blank, spec=ServiceSpec(cluster_ip="10.99.0.9")))
    registry.delete(Service, "default", "web")
    assert registry.store.list(keys.SERVICE_IPS).items == ()


def test_an_address_asked_for(registry: Registry) -> None:
    assert registry.create(service("a", "10.96.0.9")).spec.cluster_ip == "10.96.0.9"
    for ip, why in [
        ("10.96.0.9", "allocated already"),
        ("10.97.0.1", "not a usable address of the service range"),
        ("10.96.0.0", "not a usable address"),
        ("10.96.0.15", "not a usable address"),
        ("fd00::1", "the cluster has no IPv6 services"),
        ("nonsense", "expected an IP address"),
    ]:
        with pytest.raises(Invalid, match=rf"spec\.clusterIP: .*{why}"):
            registry.create(service("b", ip))
    with pytest.raises(AlreadyExists):
        registry.create(service("a", "10.96.0.10"))
    assert len(registry.store.list(keys.SERVICE_IPS).items) == 1


def test_a_headless_service_has_none(registry: Registry) -> None:
    made = registry.create(service("web", "None"))
    assert made.spec.cluster_ips == ("None",)
    assert registry.store.list(keys.SERVICE_IPS).items == ()
    registry.delete(Service, "default", "web")


def test_the_range_can_be_filled_to_the_last_address(registry: Registry) -> None:
    made = [registry.create(service(f"s{n}")).spec.cluster_ip for n in range(14)]
    assert sorted(int(ip.rpartition(".")[2]) for ip in made) == list(range(1, 15))
    with pytest.raises(RangeFull, match="range full"):
        registry.create(service("one-too-many"))
    registry.delete(Service, "default", "s3")
    assert registry.create(service("again")).spec.cluster_ip == made[3]


def test_services_made_at_once_never_share_an_address(registry: Registry) -> None:
    """14 addresses, 24 services, 6 writers: 14 get one each, and 10 hear that the range is full."""
    made: list[str] = []
    full: list[str] = []
    start = threading.Barrier(6)

    def work(worker: int) -> None:
        start.wait()
        for n in range(4):
            try:
                made.append(registry.create(service(f"s{worker}-{n}")).spec.cluster_ip)
            except RangeFull:
                full.append(f"s{worker}-{n}")

    threads = [threading.Thread(target=work, args=(w,)) for w in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(set(made)) == 14
    assert len(full) == 10
    stored = {s.spec.cluster_ip for s in registry.list(Service).items}
    assert stored == set(made)


def test_no_service_before_the_cluster_is_initialised(store: Store) -> None:
    with pytest.raises(NotFound, match="podlane init"):
        Registry(store).create(service("web"))


# --- leaders, heartbeats, configuration -----------------------------------------------------


def test_a_fenced_registry_writes_nothing_when_it_leads_no_more(registry: Registry) -> None:
    made = registry.create(pod("a"))
    created = registry.store.txn([], [Put("/podlane/election/x", b"me")]).revision
    leader = registry.fenced(Compare.created_at("/podlane/election/x", created))
    assert leader.update(labelled(made, "1")).metadata.labels == {"v": "1"}
    registry.store.txn([], [Delete("/podlane/election/x")])
    registry.store.txn([], [Put("/podlane/election/x", b"another")])
    before = registry.store.list("/registry/")
    attempts: list[Callable[[], object]] = [
        lambda: leader.create(pod("b")),
        lambda: leader.create(service("s")),
        lambda: leader.modify(Pod, "default", "a", lambda p: labelled(p, "2")),
        lambda: leader.delete(Pod, "default", "a"),
        lambda: leader.create_many([pod("c")]),
        lambda: leader.delete_many([leader.get(Pod, "default", "a")]),
        lambda: leader.bind([Binding("default", "a", "n1", leader.get(Pod, "default", "a").metadata.resource_version)]),
    ]
    for attempt in attempts:
        with pytest.raises(Fenced):
            attempt()
    assert registry.store.list("/registry/").items == before.items


def test_a_heartbeat_ends_with_its_lease(registry: Registry) -> None:
    lease = registry.store.grant(60)
    registry.put_node_lease("n1", lease, 60)
    registry.put_node_lease("n1", lease, 60)
    found = registry.get(Lease, "kube-node-lease", "n1")
    assert found.spec.holder_identity == "n1"
    with pytest.raises(UsageError):
        registry.update(msgspec.structs.replace(found, metadata=meta("n1", namespace="kube-node-lease")))
    registry.store.revoke(lease)
    assert registry.list(Lease).items == ()


def test_cluster_config(store: Store) -> None:
    registry = Registry(store)
    with pytest.raises(NotFound):
        registry.cluster_config()
    config = ClusterConfig(service_cidr="10.1.0.0/24", agent_token=uuid.uuid4().hex)
    registry.init_cluster(config)
    assert registry.cluster_config() == config
    with pytest.raises(AlreadyExists):
        registry.init_cluster(ClusterConfig())
    registry.init_cluster(ClusterConfig(), overwrite=True)
    assert registry.cluster_config() == ClusterConfig()
    with pytest.raises(Invalid, match="serviceCIDR"):
        registry.init_cluster(ClusterConfig(service_cidr="10.1.0.1/24"), overwrite=True)


# --- mirrors and events ------------------------------------------------------------------------


def test_mirrors_are_keyed_by_namespace_and_name(registry: Registry) -> None:
    make_namespaces(registry, "x", "y")
    made = registry.create(Pod(metadata=meta("a", namespace="x"), spec=PodSpec(node_name="n1")))
    registry.create(Pod(metadata=meta("b", namespace="y"), spec=PodSpec(node_name="n2")))
    registry.create(Node(metadata=meta("n1"), spec=NodeSpec()))
    changed = threading.Event()
    mirrors = {
        "pods": registry.mirror(Pod, changed.set),
        "x": registry.mirror(Pod, changed.set, namespace="x"),
        "n1": registry.bindings("n1", changed.set),
        "nodes": registry.mirror(Node, changed.set),
    }
    stop = threading.Event()
    threads = [threading.Thread(target=m.run, args=(stop,)) for m in mirrors.values()]
    for thread in threads:
        thread.start()
    try:
        for mirror in mirrors.values():
            while not mirror.synced:
                changed.wait(0.01)
        assert {name: set(m.snapshot()) for name, m in mirrors.items()} == {
            "pods": {"x/a", "y/b"},
            "x": {"x/a"},
            "n1": {"x/a"},
            "nodes": {"n1"},
        }
        assert mirrors["n1"].get("x/a") == mirrors["pods"].get("x/a") == made
    finally:
        stop.set()
        for thread in threads:
            thread.join(WAIT)


def test_events_are_counted_and_never_in_the_way(registry: Registry, clock: FakeClock) -> None:
    made = registry.create(pod("a"))
    recorder = EventRecorder(registry, "scheduler", "host1", clock)
    for _ in range(3):
        recorder.event(made, "Normal", "Scheduled", "assigned to n1")
    recorder.event(made, "Warning", "Failed", "no image")
    recorder.close(WAIT)
    events = {e.reason: e for e in registry.list(Event, "default").items}
    assert {reason: (e.count, e.type) for reason, e in events.items()} == {
        "Scheduled": (3, "Normal"),
        "Failed": (1, "Warning"),
    }
    scheduled = events["Scheduled"]
    assert scheduled.involved_object.uid == made.metadata.uid
    assert (scheduled.source.component, scheduled.source.host) == ("scheduler", "host1")
    kv = registry.store.get(keys.key_for(Event, "default", scheduled.metadata.name))
    assert kv is not None
    assert registry.store.time_to_live(kv.lease) > 3600 - 60


def test_events_that_wait_are_written_together(registry: Registry, clock: FakeClock) -> None:
    recorder = EventRecorder(registry, "agent", "n1", clock, threaded=False)
    assert recorder.write_waiting()  # nothing waits
    for n in range(30):
        recorder.event(pod(f"{n % 10}"), "Normal", "Started", "Started container main")
    assert recorder.write_waiting()
    listed = registry.list(Event, "default").items
    assert sorted(e.count for e in listed) == [3] * 10
    assert len({e.metadata.resource_version for e in listed}) == 1
    recorder.event(pod("0"), "Normal", "Started", "Started container main")
    recorder.close(0)
    assert not recorder.write_waiting()
    assert max(e.count for e in registry.list(Event, "default").items) == 4


def test_events_are_lost_in_silence_when_the_store_is_away(clock: FakeClock) -> None:
    memory = MemoryStore()
    registry = Registry(memory, clock=clock)
    recorder = EventRecorder(registry, "agent", "n1", clock)
    memory.faults.set_down(True)
    for n in range(2000):
        recorder.event(pod("a"), "Normal", "Pulled", f"{n}")
    memory.faults.set_down(False)
    recorder.close(WAIT)


def test_a_bulk_write_costs_one_deadline_when_the_store_is_away(clock: FakeClock) -> None:
    memory = MemoryStore()
    registry = Registry(memory, clock=clock)
    made = [p for p in registry.create_many([pod(f"{n}") for n in range(300)]) if isinstance(p, Pod)]
    memory.faults.fail_next(1)
    answers = registry.delete_many(made)
    assert all(isinstance(a, StoreUnavailable) for a in answers)
    memory.faults.fail_next(1)
    bindings = [Binding("default", p.metadata.name, "n1", p.metadata.resource_version) for p in made]
    assert all(isinstance(a, StoreUnavailable) for a in registry.bind(bindings))
    assert registry.bind(bindings) == [None] * 300
