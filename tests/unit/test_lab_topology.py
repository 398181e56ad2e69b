"""What a lab is made of, and its picture: pure."""

from __future__ import annotations

import pytest

from podlane.api.types import (
    Condition,
    Node,
    NodeAddress,
    NodeStatus,
    ObjectMeta,
    Pod,
    PodSpec,
    PodStatus,
    Service,
    ServicePort,
    ServiceSpec,
)
from podlane.errors import UsageError
from podlane.lab.daemons import specs
from podlane.lab.enrolment import hollow_role
from podlane.lab.picture import draw
from podlane.lab.topology import Topology, decode
from podlane.lab.traffic import Answer, summarize

pytestmark = pytest.mark.unit


def test_every_host_has_an_address_of_its_own() -> None:
    lab = Topology("lab", nodes=100, servers=3)
    addresses = [h.address for h in lab.hosts]
    assert len(set(addresses)) == len(addresses) == 103
    assert lab.endpoints == tuple(f"https://192.168.64.{n}:2379" for n in (11, 12, 13))


def test_a_lab_of_both_families() -> None:
    lab = Topology("lab", dual_stack=True)
    assert [lab.host(name).address6 for name in ("server1", "node3")] == ["fd00:64::11", "fd00:64::103"]
    assert lab.init_arguments == (
        "--network=10.244.0.0/16,fd00:10:244::/48",
        "--service-cidr=10.96.0.0/16,fd00:10:96::/112",
    )
    assert Topology("lab").init_arguments == ()
    assert decode(lab.encode()) == lab
    assert decode(b'{"name": "old", "nodes": 2, "servers": 1}') == Topology("old", 2)


def test_some_servers_run_no_scheduler() -> None:
    def scheduling(lab: Topology) -> list[str]:
        return [h.name for h in lab.hosts if any(s.name == "scheduler" for s in specs(lab, h))]

    assert scheduling(Topology("lab", servers=3)) == ["server1", "server2", "server3"]
    assert scheduling(Topology("lab", servers=3, schedulers=2)) == ["server1", "server2"]
    assert str(Topology("lab", servers=3, schedulers=2)) == "3 hosts, 3 etcd, 2 schedulers"


def test_hollow_nodes_share_hosts_each_with_numbers_of_its_own() -> None:
    lab = Topology("lab", nodes=0, hollow=600)
    assert [h.name for h in lab.hosts] == ["server1", "hollow1", "hollow2", "hollow3"]
    numbers = [lab.hollow_nodes(h) for h in lab.hosts if h.role == "hollow"]
    assert numbers == [range(1, 251), range(251, 501), range(501, 601)]
    (daemon,) = specs(lab, lab.host("hollow3"))
    assert {"--nodes=100", "--first=501"} <= set(daemon.argv)
    assert str(lab) == "0 hosts, 1 etcd, 600 hollow nodes"
    assert decode(lab.encode()) == lab


def test_hollow_nodes_together_may_do_what_any_agent_may_and_no_more() -> None:
    assert [str(permission) for permission in hollow_role().permissions] == [
        "read /podlane/config*",
        "read /podlane/proxies/*",
        "read /registry/services/specs/*",
        "read /registry/endpointslices/*",
        "read /registry/configmaps/*",
        "read /registry/secrets/*",
        "readwrite /registry/leases/kube-node-lease/*",
        "readwrite /registry/minions/*",
        "read /podlane-admin/revocation-list*",
        "read /podlane/bindings/*",
        "readwrite /podlane/reports/*",
    ]


def test_two_labs_share_no_name() -> None:
    def names(lab: Topology) -> set[str]:
        return {lab.cgroup, str(lab.run_dir), lab.underlay, *(lab.netns(h) for h in lab.hosts)}

    assert not names(Topology("a")) & names(Topology("b"))
    assert not Topology("ab").netns("node1").startswith(Topology("a").prefix)


@pytest.mark.parametrize(
    ("name", "nodes", "servers", "said"),
    [
        ("Lab", 3, 1, "--name: expected 1 to 12"),
        ("a-b", 3, 1, "--name: expected 1 to 12"),
        ("", 3, 1, "--name: expected 1 to 12"),
        ("lab", 0, 1, "--hosts: expected 1 to 100, got 0"),
        ("lab", 101, 1, "--hosts: expected 1 to 100, got 101"),
        ("lab", 3, 2, "--etcd: expected 1 or 3 members, got 2"),
    ],
)
def test_what_cannot_be_built_is_refused_by_option(name: str, nodes: int, servers: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Topology(name, nodes, servers)


def test_what_does_not_fit_together_is_refused_by_option() -> None:
    with pytest.raises(UsageError, match="--schedulers: expected 1 to 1, one at most for each etcd member, got 2"):
        Topology("lab", schedulers=2)
    with pytest.raises(UsageError, match="--hollow: expected 0 to 5000, got 5001"):
        Topology("lab", hollow=5001)


def test_a_topology_is_read_back_as_it_was_written() -> None:
    lab = Topology("x1", 5, 3)
    assert decode(lab.encode()) == lab


def test_an_unknown_host_is_refused_naming_those_there_are() -> None:
    with pytest.raises(UsageError, match="server1, node1, node2"):
        Topology("lab", 2).host("node3")


def test_each_daemon_gets_paths_of_its_own_host() -> None:
    lab = Topology("lab", nodes=2)
    first, second = (" ".join(a for s in specs(lab, lab.host(n)) for a in s.argv) for n in ("node1", "node2"))
    assert "/run/podlane/lab/lab/node1/" in first
    assert "/run/podlane/lab/lab/pki/node1/netd.pem" in first
    assert "node2" not in first
    assert "node1" not in second


def test_the_summary_tells_a_late_answer_from_none() -> None:
    answers = [
        Answer("h", "web-a", 1, 0.0, 0.1),
        Answer("h", "web-b", 3, 0.2, 0.9, "timed out"),
        Answer("h", "", 10, 0.3, 5.0, "refused"),
    ]
    summary = summarize(answers)
    assert str(summary) == "3 requests, 1 answered at a later try, 1 not answered"
    assert summary.backends == {"web-a": 1, "web-b": 1}
    assert summary.errors == {"timed out": 1, "refused": 1}
    assert summary.slowest == 5.0
    assert summary.late == (
        "h at 0.2 s: timed out, then web-b after 0.9 s",
        "h at 0.3 s: refused, then nothing after 5.0 s",
    )


def test_the_picture() -> None:
    def node(name: str, address: str) -> Node:
        status = NodeStatus(addresses=(NodeAddress(type="InternalIP", address=address),))
        return Node(metadata=ObjectMeta(name=name), status=status)

    def pod(name: str, on: str, ip: str, ready: bool) -> Pod:
        condition = Condition(type="Ready", status="True" if ready else "False")
        return Pod(
            metadata=ObjectMeta(name=name, namespace="default"),
            spec=PodSpec(node_name=on),
            status=PodStatus(pod_ip=ip, conditions=(condition,)),
        )

    service = Service(
        metadata=ObjectMeta(name="web"),
        spec=ServiceSpec(
            cluster_ip="10.96.1.2", ports=(ServicePort(port=80, target_port="http"),), selector={"app": "web"}
        ),
    )
    drawn = draw(
        [node("node2", "192.168.64.102"), node("node1", "192.168.64.101")],
        [pod("web-a", "node1", "10.244.7.2", True), pod("web-b", "node1", "10.244.7.3", False)],
        [service],
        {"node1": "10.244.7.0/24"},
    )
    assert drawn.splitlines() == [
        "  service web  10.96.1.2  80/TCP → http  (pods with app=web)",
        "  ┌─ node1 ────────────────────┐ ┌─ node2 ────────────────────┐",
        "  │ 192.168.64.101             │ │ 192.168.64.102             │",
        "  │ subnet 10.244.7.0/24       │ │ subnet none                │",
        "  │                            │ │                            │",
        "  │ ● web-a                    │ │ no pods                    │",
        "  │     10.244.7.2             │ │                            │",
        "  │ ○ web-b                    │ │                            │",
        "  │     10.244.7.3             │ │                            │",
        "  └────────────────────────────┘ └────────────────────────────┘",
    ]
