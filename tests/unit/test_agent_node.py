"""The Node object, the heartbeat, and the subnet file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from agent_objects import SPEC

from podlane.api.meta import get_condition
from podlane.api.types import Lease, Node, Taint
from podlane.errors import NotFound
from podlane.runtime import metrics
from podlane.runtime.clock import SystemClock
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.agent.capacity import Measures
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.network import NetworkSpec, NoSubnet, Segment, contains, parse, read_subnet_file
from scheduler.agent.node import Facts, Heartbeat, Registrar, describe, largest
from scheduler.agent.pressure import Amount, judge, parse_thresholds
from scheduler.agent.runtime import Image

pytestmark = pytest.mark.unit

CAPACITY = {"cpu": "2", "memory": "4Gi", "pods": "110"}
INFO = FakeRuntime().info()
FACTS = Facts(
    name="n1", ip="192.168.64.11", port=10250, capacity=CAPACITY, info=INFO, pod_cidrs=("10.5.3.0/24", "fd00:5:3::/64")
)


def test_a_new_node() -> None:
    node = describe(None, FACTS, 1000.0)
    assert node.metadata.name == "n1"
    assert node.metadata.labels["kubernetes.io/hostname"] == "n1"
    assert (node.status.capacity, node.status.allocatable) == (CAPACITY, CAPACITY)
    assert [(a.type, a.address) for a in node.status.addresses] == [
        ("InternalIP", "192.168.64.11"),
        ("Hostname", "n1"),
    ]
    assert node.status.daemon_endpoints.kubelet_endpoint.port == 10250
    assert (node.spec.pod_cidr, node.spec.pod_cidrs) == ("10.5.3.0/24", ("10.5.3.0/24", "fd00:5:3::/64"))
    assert node.status.node_info.container_runtime_version == "fake://1"
    ready = get_condition(node.status.conditions, "Ready")
    assert ready is not None
    assert (ready.status, ready.reason) == ("True", "KubeletReady")


def test_what_an_operator_set_stays() -> None:
    node = describe(None, FACTS, 1000.0)
    labels = {**node.metadata.labels, "zone": "a", "disk": "slow"}
    node = msgspec.structs.replace(
        node,
        metadata=msgspec.structs.replace(node.metadata, labels=labels),
        spec=msgspec.structs.replace(node.spec, unschedulable=True, taints=(Taint(key="gpu", effect="NoSchedule"),)),
    )
    facts = facts_with(labels={"disk": "fast", "rack": "7"})
    again = describe(node, facts, 2000.0)
    assert again.spec.unschedulable
    assert again.spec.taints == (Taint(key="gpu", effect="NoSchedule"),)
    assert (again.metadata.labels["zone"], again.metadata.labels["disk"]) == ("a", "slow")
    assert again.metadata.labels["rack"] == "7"


def facts_with(**changes: object) -> Facts:
    from dataclasses import replace

    return replace(FACTS, **changes)  # type: ignore[arg-type]


def test_looking_again_changes_nothing() -> None:
    node = describe(None, FACTS, 1000.0)
    assert describe(node, FACTS, 2000.0) == node


def test_a_problem_makes_the_node_not_ready_and_keeps_what_is_known() -> None:
    node = describe(None, FACTS, 1000.0)
    down = describe(node, facts_with(info=None, pod_cidrs=(), problem="no answer", reason="Away"), 2000.0)
    ready = get_condition(down.status.conditions, "Ready")
    assert ready is not None
    assert (ready.status, ready.reason, ready.message) == ("False", "Away", "no answer")
    assert down.spec == node.spec
    assert down.status.node_info == node.status.node_info


def test_conditions_of_the_machine_and_the_network() -> None:
    short = judge({"memory.available": Amount(1, 8 << 30)}, parse_thresholds(""), {}, 0.0)
    node = describe(None, facts_with(network="no subnet.env", pressure=short.verdicts), 1000.0)
    assert [(c.type, c.status, c.reason) for c in node.status.conditions] == [
        ("NetworkUnavailable", "True", "PodNetworkIsDown"),
        ("MemoryPressure", "True", "KubeletHasInsufficientMemory"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID"),
        ("Ready", "True", "KubeletReady"),
    ]
    enough = describe(node, facts_with(pressure=judge({}, {}, {}, 0.0).verdicts), 2000.0)
    assert {c.type for c in enough.status.conditions if c.status == "True"} == {"Ready"}


def test_the_largest_images_are_reported() -> None:
    images = [Image(f"sha256:{n}", (f"web:{n}",), n, in_use=False) for n in range(60)]
    reported = largest([*images, Image("sha256:x", (), 10**9, in_use=True)])
    assert (len(reported), reported[0].names, reported[-1].size_bytes) == (50, ("web:59",), 10)


class Beating:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.registry = Registry(self.store)
        self.runtime = FakeRuntime()
        self.network = (("10.5.3.0/24",), "")
        self.told: list[str] = []
        self.usage = {"memory.available": Amount(4 << 30, 8 << 30), "imagefs.available": Amount(50 << 30, 100 << 30)}
        measures = Measures(lambda _: self.usage, {}, {"cpu": "1"}, parse_thresholds(""))
        self.registrar = Registrar(
            facts_with(info=None),
            registry=self.registry,
            runtime=self.runtime,
            network=lambda: self.network,
            clock=SystemClock(),
            measures=measures,
            on_little_memory=lambda: self.told.append("little memory"),
        )

    def node(self) -> Node:
        return self.registry.get(Node, "", "n1")

    def alive(self) -> bool:
        try:
            self.registry.get(Lease, "kube-node-lease", "n1")
        except NotFound:
            return False
        return True


def test_the_node_is_registered_and_written_only_when_something_changed() -> None:
    b = Beating()
    b.registrar.sync()
    first = b.node()
    b.registrar.sync()
    assert b.node() == first
    b.network = (("10.5.3.0/24",), "no subnet")
    b.registrar.sync()
    ready = get_condition(b.node().status.conditions, "Ready")
    assert ready is not None
    assert (ready.status, ready.reason, b.registrar.problem()) == ("False", "NetworkPluginNotReady", "no subnet")
    b.network = (("10.5.3.0/24",), "")
    b.runtime.down = True
    b.registrar.sync()
    ready = get_condition(b.node().status.conditions, "Ready")
    assert ready is not None
    assert ready.reason == "ContainerRuntimeNotReady"
    # a hanging engine takes no disk away
    assert b.node().status.capacity == first.status.capacity
    assert first.status.capacity["ephemeral-storage"] == f"{100 << 20}Ki"
    assert first.status.images == b.node().status.images


def test_a_machine_that_runs_short_says_so() -> None:
    b = Beating()
    b.runtime.images["web:1"] = "sha256:web"
    b.registrar.sync()
    assert [image.names for image in b.node().status.images] == [("web:1",)]
    pressed = lambda: get_condition(b.node().status.conditions, "DiskPressure")  # noqa: E731
    assert pressed().status == "False"
    b.usage["imagefs.available"] = Amount(1 << 30, 100 << 30)
    b.registrar.sync()
    assert (pressed().status, pressed().message) == ("True", "imagefs.available is less than 15%")
    assert metrics.value("podlane_agent_pressure", condition="DiskPressure") == 1
    assert metrics.value("podlane_agent_available_ratio", signal="imagefs.available") == 0.01
    b.usage["imagefs.available"] = Amount(50 << 30, 100 << 30)
    b.registrar.sync()
    assert pressed().status == "True"  # not so soon
    assert b.told == []
    # too little memory is told of for as long as it is so, and not for as long as the condition is kept
    for available, told in ((1 << 20, 1), (1 << 20, 2), (4 << 30, 2)):
        b.usage["memory.available"] = Amount(available, 8 << 30)
        b.registrar.sync()
        assert len(b.told) == told


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "did not become true"
        time.sleep(0.01)


def test_a_lost_lease_is_replaced_and_the_last_one_runs_out_by_itself() -> None:
    b = Beating()
    held: list[bool] = []
    heart = Heartbeat("n1", 2, registry=b.registry, clock=SystemClock(), on_held=lambda: held.append(True))
    assert heart.problem() is not None
    stop = threading.Event()
    thread = threading.Thread(target=heart.run, args=(stop,))
    thread.start()
    try:
        eventually(b.alive)
        eventually(lambda: heart.problem() is None)
        lease = b.store.get("/registry/leases/kube-node-lease/n1")
        assert lease is not None
        b.store.revoke(lease.lease)
        assert not b.alive()
        eventually(b.alive)
        eventually(lambda: len(held) == 2)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    assert b.alive()


# --- the subnet file ------------------------------------------------------------------------------


ENV = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"


def test_the_subnet_file(tmp_path: Path) -> None:
    assert parse(ENV) == SPEC
    with pytest.raises(NoSubnet, match="No such file"):
        read_subnet_file(tmp_path / "none")
    (tmp_path / "subnet.env").write_text(ENV.replace("10.5.3.1/24", "10.5.3.0/24"))
    assert read_subnet_file(tmp_path / "subnet.env") == NetworkSpec("10.5.3.0/24", "10.5.3.1", 1450)


@pytest.mark.parametrize(
    "text",
    ["", "FLANNEL_SUBNET=10.5.3.1/24", "FLANNEL_MTU=1450", ENV.replace("/24", ""), ENV.replace("1450", "12"),
     ENV.replace("1450", "big"), ENV.replace("10.5.3.1", "10.5.3")],
)  # fmt: skip
def test_half_a_subnet_file_is_none(text: str) -> None:
    with pytest.raises(NoSubnet):
        parse(text)


ENV6 = "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:3::1/64\n"
DUAL = NetworkSpec("10.5.3.0/24", "10.5.3.1", 1450, Segment("fd00:5:0:3::/64", "fd00:5:0:3::1"))


def test_a_subnet_file_with_ipv6() -> None:
    assert parse(ENV + ENV6) == DUAL
    assert parse(ENV.replace("FLANNEL_SUBNET=10.5.3.1/24\n", "") + ENV6) == NetworkSpec(
        "fd00:5:0:3::/64", "fd00:5:0:3::1", 1450
    )
    with pytest.raises(NoSubnet, match="MTU from 1280"):
        parse(ENV.replace("1450", "1279") + ENV6)
    with pytest.raises(NoSubnet):
        parse(ENV + ENV6.replace("/64", ""))
    with pytest.raises(NoSubnet):
        parse(ENV + ENV6.replace("fd00:5:0:3::1/64", "10.6.3.1/24"))


@pytest.mark.parametrize(
    ("network", "ip", "expected"),
    [
        (SPEC, "10.5.3.9", ("10.5.3.9",)),
        (DUAL, "10.5.3.9", ("10.5.3.9", "fd00:5:0:3::9")),
        (DUAL, "10.5.3.254", ("10.5.3.254", "fd00:5:0:3::fe")),
        (DUAL, "10.5.4.9", ("10.5.4.9",)),  # of an earlier subnet
        (replace(DUAL, second=Segment("fd00:5:0:3::/124", "fd00:5:0:3::1")), "10.5.3.15",
         ("10.5.3.15", "fd00:5:0:3::f")),
        (replace(DUAL, second=Segment("fd00:5:0:3::/124", "fd00:5:0:3::1")), "10.5.3.16", ("10.5.3.16",)),
        (replace(DUAL, second=Segment("fd00:5:0:3::/64", "fd00:5:0:3::9")), "10.5.3.9", ("10.5.3.9",)),
    ],
)  # fmt: skip
def test_a_pod_has_the_same_number_in_both_subnets(network: NetworkSpec, ip: str, expected: tuple[str, ...]) -> None:
    assert network.ips(ip) == expected


def test_belonging_to_the_network() -> None:
    assert contains(SPEC, "10.5.3.9")
    assert not contains(SPEC, "10.5.4.9")
    assert not contains(SPEC, "")
