"""What the cluster's policies make of new pods: priority, quotas; on memory and on real etcd."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from podlane.api.meta import utcnow_from
from podlane.api.quota import counted
from podlane.api.types import (
    Affinity,
    ConfigMap,
    Container,
    ContainerPort,
    LabelSelector,
    LabelSelectorRequirement,
    Namespace,
    ObjectMeta,
    Pod,
    PodAffinityTerm,
    PodAntiAffinity,
    PodSpec,
    PriorityClass,
    ResourceQuota,
    ResourceQuotaSpec,
    ResourceRequirements,
)
from podlane.errors import AlreadyExists, Forbidden, Invalid
from podlane.runtime.clock import FakeClock
from podlane.store.interface import Store
from podlane.store.registry import Registry

pytestmark = pytest.mark.contract


@pytest.fixture
def store(registry_store: Store) -> Store:
    return registry_store


@pytest.fixture
def registry(store: Store) -> Registry:
    made = Registry(store, clock=FakeClock(1_700_000_000.0))
    made.create(Namespace(metadata=ObjectMeta(name="prod")))
    return made


def pod(name: str = "", *, cpu: str = "", namespace: str = "prod", **spec: object) -> Pod:
    requests = {"cpu": cpu} if cpu else {}
    container = Container(name="web", image="web:1", resources=ResourceRequirements(requests=requests))
    return Pod(
        metadata=ObjectMeta(name=name, generate_name="" if name else "web-", namespace=namespace, labels={"v": "1"}),
        spec=PodSpec(**{"containers": (container,), **spec}),  # type: ignore[arg-type]
    )


def limit(registry: Registry, name: str = "few", **hard: str) -> None:
    limits = {resource.replace("_", "."): text for resource, text in hard.items()}
    registry.create(
        ResourceQuota(metadata=ObjectMeta(name=name, namespace="prod"), spec=ResourceQuotaSpec(hard=limits))
    )


def used(registry: Registry, name: str = "few") -> dict[str, str]:
    return registry.get(ResourceQuota, "prod", name).status.used


def told(answer: object) -> str:
    return str(answer) if isinstance(answer, Exception) else "created"


# --- quotas ----------------------------------------------------------------------------------------


def test_pods_are_made_until_the_quota_is_used_up(registry: Registry) -> None:
    registry.create(pod("before"))  # a quota counts what is there already
    limit(registry, pods="4")
    answers = registry.create_many([pod(f"p{n}") for n in range(4)])
    assert [told(answer) for answer in answers] == [
        "created",
        "created",
        "created",
        "create pod/p3: exceeded quota: few, requested: pods=1, used: pods=4, limited: pods=4",
    ]
    # a name that is made up is another one each time, and not said
    with pytest.raises(Forbidden, match=r"^create pod/web-\*: exceeded quota: few, requested: pods=1, used: pods=4"):
        registry.create(pod())
    registry.create(pod("elsewhere", namespace="default"))
    assert len(registry.list(Pod, "prod").items) == 4
    assert used(registry) == {"pods": "4"}


def test_what_does_not_fit_keeps_out_nothing_smaller_and_all_quotas_must_hold(registry: Registry) -> None:
    limit(registry, requests_cpu="1")
    limit(registry, "also", pods="2")
    answers = registry.create_many(
        [pod("a", cpu="600m"), pod("b", cpu="500m"), pod("c", cpu="400m"), pod("d", cpu="0")]
    )
    assert [told(answer) for answer in answers] == [
        "created",
        "create pod/b: exceeded quota: few, requested: requests.cpu=500m, used: requests.cpu=600m, "
        "limited: requests.cpu=1",
        "created",
        "create pod/d: exceeded quota: also, requested: pods=1, used: pods=2, limited: pods=2",
    ]
    assert told(registry.create_many([pod("e")])[0]) == (
        "create pod/e: exceeded quota: also, requested: pods=1, used: pods=2, limited: pods=2"
    )
    assert (used(registry), used(registry, "also")) == ({"requests.cpu": "1"}, {"pods": "2"})


def test_a_name_that_is_taken_counts_for_nothing_and_makes_room(registry: Registry) -> None:
    registry.create(pod("a"))
    limit(registry, pods="2")
    first, second = registry.create_many([pod("a"), pod("b")])
    assert isinstance(first, AlreadyExists)
    assert isinstance(second, Pod)
    assert used(registry) == {"pods": "2"}


def test_more_pods_than_one_transaction_holds(registry: Registry) -> None:
    limit(registry, pods="250")
    answers = registry.create_many([pod() for _ in range(260)])
    assert [isinstance(answer, Pod) for answer in answers] == [True] * 250 + [False] * 10
    assert used(registry) == {"pods": "250"}


def test_many_creators_at_once_make_exactly_as_many_as_are_allowed(registry: Registry) -> None:
    limit(registry, pods="20", requests_cpu="10")

    def creator(number: int) -> list[object]:
        own = Registry(registry.store, clock=registry.clock)
        singly: list[object] = []
        for n in range(3):
            try:
                singly.append(own.create(pod(f"s{number}-{n}", cpu="100m")))
            except Forbidden as error:
                singly.append(error)
        return [*singly, *own.create_many([pod(cpu="100m") for _ in range(3)])]

    with ThreadPoolExecutor(6) as pool:
        answers = [answer for part in pool.map(creator, range(6)) for answer in part]
    pods = registry.list(Pod, "prod").items
    assert len(pods) == sum(isinstance(answer, Pod) for answer in answers) == 20
    assert all(isinstance(answer, Pod | Forbidden) for answer in answers)
    quota = registry.get(ResourceQuota, "prod", "few")
    assert quota.status == counted(quota, pods, utcnow_from(registry.clock.now()))


# --- what a pod is given ---------------------------------------------------------------------------


def test_priority_is_its_classes_and_kept(registry: Registry) -> None:
    assert registry.create(pod("usual")).spec.priority == 0
    registry.create(PriorityClass(metadata=ObjectMeta(name="high"), value=1000, preemption_policy="Never"))
    registry.create(PriorityClass(metadata=ObjectMeta(name="low"), value=-5, global_default=True))
    high, low, wrong = registry.create_many(
        [pod("high", priority_class_name="high"), pod("low"), pod("wrong", priority_class_name="hgih")]
    )
    assert isinstance(high, Pod)
    assert isinstance(low, Pod)
    assert (high.spec.priority, high.spec.preemption_policy) == (1000, "Never")
    assert (low.spec.priority, low.spec.priority_class_name) == (-5, "low")
    assert told(wrong) == 'create pod/wrong: spec.priorityClassName: no priority class is named "hgih"'
    assert registry.get(Pod, "prod", "usual").spec.priority == 0


def test_there_is_one_default_class(registry: Registry) -> None:
    registry.create(PriorityClass(metadata=ObjectMeta(name="low"), value=1, global_default=True))
    other = registry.create(PriorityClass(metadata=ObjectMeta(name="other"), value=2))
    with pytest.raises(Forbidden, match="priorityclass/low is the default already"):
        registry.update(msgspec.structs.replace(other, global_default=True))
    with pytest.raises(Forbidden, match="priorityclass/low is the default already"):
        registry.create(PriorityClass(metadata=ObjectMeta(name="third"), value=3, global_default=True))


def test_class_of_service_ports_of_the_node_and_label_keys(registry: Registry) -> None:
    term = PodAffinityTerm(topology_key="zone", label_selector=LabelSelector(), match_label_keys=("v", "absent"))
    anti = PodAntiAffinity(required_during_scheduling_ignored_during_execution=(term,))
    web = Container(name="web", image="web:1", ports=(ContainerPort(container_port=80),))
    made = registry.create(pod("a", containers=(web,), host_network=True, affinity=Affinity(pod_anti_affinity=anti)))
    assert made.status.qos_class == "BestEffort"
    assert made.spec.containers[0].ports[0].host_port == 80
    assert made.spec.affinity is not None
    assert made.spec.affinity.pod_anti_affinity is not None
    (kept,) = made.spec.affinity.pod_anti_affinity.required_during_scheduling_ignored_during_execution
    assert kept.label_selector == LabelSelector(
        match_expressions=(LabelSelectorRequirement(key="v", operator="In", values=("1",)),)
    )
    assert registry.get(Pod, "prod", "a") == made


# --- what may not change ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda config: msgspec.structs.replace(config, data={"a": "y"}), id="data"),
        pytest.param(lambda config: msgspec.structs.replace(config, immutable=False), id="immutable"),
    ],
)
def test_an_immutable_config_map_stays_but_for_its_labels(
    registry: Registry, change: Callable[[ConfigMap], ConfigMap]
) -> None:
    made = registry.create(
        ConfigMap(metadata=ObjectMeta(name="web", namespace="prod"), data={"a": "x"}, immutable=True)
    )
    with pytest.raises(Invalid):
        registry.update(change(made))
    labelled = msgspec.structs.replace(made, metadata=msgspec.structs.replace(made.metadata, labels={"b": "c"}))
    assert registry.update(labelled).metadata.labels == {"b": "c"}
