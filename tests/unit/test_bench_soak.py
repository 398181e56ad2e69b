"""The soak: what it calls wrong, what it draws, what it prints. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from bench.soak import Result, Step, table
from bench.soak_faults import KINDS, draw
from bench.soak_seen import Box, HostSeen, LeaseSeen, Seen, shared_addresses, violations
from podlane.api.types import (
    SERVICE_NAME_LABEL,
    Condition,
    Container,
    Endpoint,
    EndpointConditions,
    EndpointSlice,
    Node,
    NodeStatus,
    ObjectMeta,
    OwnerReference,
    Pod,
    PodSpec,
    PodStatus,
    ReplicationController,
    ReplicationControllerSpec,
    ReplicationControllerStatus,
    Service,
    ServiceSpec,
)
from podlane.lab.cluster import DaemonStatus

pytestmark = pytest.mark.unit

READY = (Condition(type="Ready", status="True"),)


def pod(name: str, ip: str) -> Pod:
    owner = OwnerReference(api_version="v1", kind="ReplicationController", name="web", uid="rc-web", controller=True)
    return Pod(
        metadata=ObjectMeta(
            name=name, namespace="default", uid=f"uid-{name}", labels={"app": "web"}, owner_references=(owner,)
        ),
        spec=PodSpec(node_name="node1", containers=(Container(name="web", image="i"),)),
        status=PodStatus(phase="Running", pod_ip=ip, conditions=READY),
    )


def endpoint(ip: str) -> Endpoint:
    return Endpoint(addresses=(ip,), conditions=EndpointConditions(ready=True))


def well() -> Seen:
    """Two pods on one node behind one service."""
    boxes = [Box(f"{name}-{ct}", f"uid-{name}", ct, True) for name in ("a", "b") for ct in ("POD", "web")]
    boxes.append(Box("a-earlier", "uid-a", "web", False))
    ids = frozenset(box.id for box in boxes if box.running)
    slice_ = EndpointSlice(
        metadata=ObjectMeta(name="web-1", labels={SERVICE_NAME_LABEL: "web"}),
        endpoints=(endpoint("10.1.0.2"), endpoint("10.1.0.3")),
    )
    return Seen(
        pods=(pod("a", "10.1.0.2"), pod("b", "10.1.0.3")),
        controllers=(
            ReplicationController(
                metadata=ObjectMeta(name="web", uid="rc-web"),
                spec=ReplicationControllerSpec(replicas=2),
                status=ReplicationControllerStatus(replicas=2, ready_replicas=2),
            ),
        ),
        services=(
            Service(
                metadata=ObjectMeta(name="web"),
                spec=ServiceSpec(selector={"app": "web"}, cluster_ip="10.9.0.1", cluster_ips=("10.9.0.1",)),
            ),
        ),
        slices=(slice_,),
        nodes=(Node(metadata=ObjectMeta(name="node1"), status=NodeStatus(conditions=READY)),),
        bindings={"default/a": ("node1",), "default/b": ("node1",)},
        service_ips=frozenset({"10.9.0.1"}),
        leases=(LeaseSeen("1", 10, ("/registry/leases/kube-node-lease/node1",)), LeaseSeen("2", 3600)),
        hosts={"node1": HostSeen(tuple(boxes), veths=2, netns=2, cgroups=ids, shims=ids)},
        daemons=(DaemonStatus("node1", "agent", "running"),),
    )


def test_a_cluster_that_is_well_has_no_violations() -> None:
    assert violations(well()) == []


def on_host(**changes: object) -> Callable[[Seen], Seen]:
    return lambda seen: replace(seen, hosts={"node1": replace(seen.hosts["node1"], **changes)})  # type: ignore[arg-type]


def without_pod_b(seen: Seen) -> Seen:
    return replace(seen, pods=seen.pods[:1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            without_pod_b,
            [
                "binding of default/b on node1 has no pod",
                "node1: containers of no pod here (uid-b): POD, web",
                "rc web: 2 wanted, 1 active, 1 ready",
                "service web: pods ['10.1.0.2'], endpoints ['10.1.0.2', '10.1.0.3']",
            ],
        ),
        (
            lambda seen: replace(seen, bindings={**seen.bindings, "default/a": ("node1", "node2")}),
            ["pod a (uid-a) is on node1, its bindings on node1, node2"],
        ),
        (on_host(veths=3), ["node1: 3 veths for 2 pods"]),
        (on_host(netns=1), ["node1: 1 network namespaces for 2 pods"]),
        (on_host(shims=frozenset({"gone"})), ["node1: shim of gone, which does not run"]),
        (on_host(cgroups=frozenset({"gone"})), ["node1: cgroup of gone, which does not run"]),
        (
            lambda seen: replace(seen, service_ips=frozenset({"10.9.0.1", "10.9.0.2"})),
            ["allocated service addresses ['10.9.0.1', '10.9.0.2'], used ['10.9.0.1']"],
        ),
        (
            lambda seen: replace(seen, leases=(*seen.leases, LeaseSeen("3", 10))),
            ["lease 3 of 10 s holds nothing"],
        ),
        (lambda seen: replace(seen, leases=seen.leases[1:]), ["heartbeats of [], nodes ['node1']"]),
        (
            lambda seen: replace(seen, daemons=(DaemonStatus("node1", "agent", "dead", detail="it ended"),)),
            ["node1: agent is dead: it ended"],
        ),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[Seen], Seen], said: list[str]) -> None:
    assert violations(change(well())) == said


def test_a_pod_that_lost_a_container_or_runs_it_twice_is_named() -> None:
    boxes = well().hosts["node1"].boxes
    lost = on_host(boxes=tuple(b for b in boxes if b.id != "a-web"), cgroups=frozenset(), shims=frozenset())
    assert violations(lost(well())) == ["node1: pod a (uid-a) runs POD, not POD, web"]
    doubled = on_host(boxes=(*boxes, Box("again", "uid-a", "web", True)))
    assert violations(doubled(well())) == ["node1: pod a (uid-a) runs POD, web×2, not POD, web"]


def test_an_address_is_shared_by_live_pods_only() -> None:
    one, other = pod("a", "10.1.0.2"), pod("b", "10.1.0.2")
    assert shared_addresses([one, other]) == ["address 10.1.0.2 is shared by a (uid-a), b (uid-b)"]
    failed = msgspec.structs.replace(other, status=msgspec.structs.replace(other.status, phase="Failed"))
    assert shared_addresses([one, failed]) == []


def test_the_same_seed_draws_the_same_faults() -> None:
    def drawn(seed: int) -> list[object]:
        rng = random.Random(seed)
        return [draw(rng) for _ in range(200)]

    assert drawn(7) == drawn(7) != drawn(8)
    faults = [fault for step in drawn(7) for fault in step]  # type: ignore[attr-defined]
    assert {fault.kind for fault in faults} == KINDS.keys()
    assert all(KINDS[f.kind][1] <= f.hold <= KINDS[f.kind][2] for f in faults)


def test_the_report() -> None:
    result = Result(
        seed=7,
        seconds=61.2,
        steps=[
            Step(("agent",), "agent: agent of node1", 2.0),
            Step(("agent", "etcd"), "agent: …; etcd: …", 5.5),
            Step(("etcd",), "etcd: …", None, ("rc web: 2 wanted, 1 active, 1 ready",)),
        ],
        unsafe=["address 10.1.0.2 is shared by a, b"],
        long_leases=12,
    )
    assert table(result).splitlines() == [
        "KIND               STEPS  QUIET MEDIAN    WORST",
        "agent                  2         3.8 s    5.5 s",
        "etcd                   2         5.5 s    5.5 s",
        "all                    3         3.8 s    5.5 s",
        "",
        "seed 7, 61 s, 2 violations, 12 leases of events and mirrors that run out by themselves",
        "VIOLATION address 10.1.0.2 is shared by a, b",
        "VIOLATION step 3: rc web: 2 wanted, 1 active, 1 ready",
    ]
