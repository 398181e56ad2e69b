"""Draining nodes: what may be moved, and at what pace."""

from __future__ import annotations

import pytest
from cli_shell import Shell, lines, owner, pod, rc
from msgspec.structs import replace

from podlane.api.types import (
    Condition,
    EmptyDirVolumeSource,
    Node,
    ObjectMeta,
    OwnerReference,
    Pod,
    ReplicationController,
    Volume,
)
from podlane.cli.drainplan import Share, parse_share

pytestmark = pytest.mark.unit


class Cluster(Shell):
    """A controller with three pods on node1 and one on node2, and what would go on around a drain."""

    def __init__(self) -> None:
        super().__init__()
        self.add(Node(metadata=ObjectMeta(name="node1")), Node(metadata=ObjectMeta(name="node2")), rc(replicas=4))
        self.controller = self.registry.get(ReplicationController, "default", "web")
        for number, node in enumerate(("node1", "node1", "node1", "node2"), 1):
            self.add(self.member(f"web-{number}", node=node))
        self.made = 4
        self.fewest = 4

    def member(self, name: str, **fields: object) -> Pod:
        return pod(name, owner=owner(self.controller), **fields)  # type: ignore[arg-type]

    def live(self) -> list[Pod]:
        return [p for p in self.registry.list(Pod).items if p.metadata.deletion_timestamp is None]

    def ready(self) -> int:
        return sum(any(c.status == "True" for c in p.status.conditions) for p in self.live())

    def goes_on(self, *, replaced: bool = True, seconds: int = 60) -> None:
        """Each second the agents end what is ending, what was made is ready, and what is missing is made."""

        def second() -> None:
            for item in self.registry.list(Pod).items:
                if item.metadata.deletion_timestamp is not None:
                    self.registry.delete_many([item], grace_seconds=0)
                elif not item.spec.node_name:
                    placed = replace(item, spec=replace(item.spec, node_name="node2"))
                    ready = (Condition(type="Ready", status="True"),)
                    self.registry.update(replace(placed, status=replace(placed.status, conditions=ready)))
            self.fewest = min(self.fewest, self.ready())
            while replaced and len(self.live()) < 4:
                self.made += 1
                self.add(self.member(f"web-{self.made}", node="", ready=False))

        for at in range(1, seconds):
            self.clock.at(self.clock.monotonic() + at, second)

    def names(self) -> list[str]:
        return [item.metadata.name for item in self.registry.list(Pod).items]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_drain_moves_the_pods_one_at_a_time_and_waits_for_their_replacements(cluster):
    cluster.goes_on()
    assert lines(cluster.ok("drain", "node1")) == [
        "node/node1 cordoned",
        "evicting pod default/web-1",
        "waiting: replicationcontroller default/web has 3 of 4 ready",
        "pod/web-1 evicted",
        "evicting pod default/web-2",
        "pod/web-2 evicted",
        "evicting pod default/web-3",
        "pod/web-3 evicted",
        "node/node1 drained",
    ]
    assert cluster.fewest == 3
    assert cluster.names() == ["web-4", "web-5", "web-6", "web-7"]
    assert cluster.registry.get(Node, "", "node1").spec.unschedulable


def test_several_at_a_time(cluster):
    cluster.goes_on()
    cluster.ok("drain", "node1", "--max-unavailable", "50%")
    assert cluster.fewest == 2


def test_what_is_not_ready_costs_nothing_and_goes_first(cluster):
    cluster.add(cluster.member("web-0", ready=False))
    output = cluster.run("drain", "node1", "--timeout=1s").stdout
    assert lines(output)[1:3] == ["evicting pod default/web-0", "evicting pod default/web-1"]


def test_a_replacement_that_finds_no_node_is_waited_for_and_named(cluster):
    cluster.registry.delete_many([cluster.registry.get(Pod, "default", "web-3")], grace_seconds=0)
    why = Condition(type="PodScheduled", status="False", message="0/2 nodes fit: 1 cordoned, 1 too little memory")
    stuck = cluster.member("web-9", node="", ready=False)
    cluster.add(replace(stuck, status=replace(stuck.status, conditions=(why,))))
    errors = cluster.fails("drain", "node1", "--timeout=10s")
    assert lines(errors) == [
        "error: drain: not finished after 10 s; the same command goes on where it was",
        *(
            f"error: pod default/{name} waits: replicationcontroller default/web has 3 of 4 ready: "
            "web-9 is pending: 0/2 nodes fit: 1 cordoned, 1 too little memory"
            for name in ("web-1", "web-2")
        ),
    ]
    # nothing was evicted that could not be spared, and the same command goes on when there is room
    assert cluster.ready() == 3
    cluster.goes_on()
    assert lines(cluster.ok("drain", "node1"))[-1] == "node/node1 drained"
    assert cluster.fewest == 3


def test_drain_gives_up(cluster):
    errors = cluster.fails("drain", "node1", "--timeout=10s", "--max-unavailable=3")
    assert lines(errors)[1:] == [f"error: pod default/web-{number} is ending" for number in (1, 2, 3)]


def test_what_would_be_lost_is_refused_all_at_once(cluster):
    scratch = Volume(name="scratch", empty_dir=EmptyDirVolumeSource())
    local = cluster.member("local")
    daemon = OwnerReference(api_version="apps/v1", kind="DaemonSet", name="log", uid="uid-log", controller=True)
    cluster.add(pod("alone"), replace(local, spec=replace(local.spec, volumes=(scratch,))), pod("log-1", owner=daemon))
    cluster.add(pod("done", phase="Succeeded"))
    before = cluster.names()
    assert lines(cluster.fails("drain", "node1")) == [
        "error: drain: pods without a controller would be lost: default/alone; --force deletes them",
        "error: drain: emptyDir volumes would be lost: default/local; --delete-emptydir-data lets them go",
        "error: drain: a DaemonSet would put them back: default/log-1; --ignore-daemonsets leaves them",
    ]
    assert cluster.names() == before
    cluster.goes_on(replaced=False)
    result = cluster.run(
        "drain", "node1", "--force", "--delete-emptydir-data", "--ignore-daemonsets", "--max-unavailable=100%"
    )
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "warning: pods without a controller will be lost: default/alone",
        "warning: emptyDir volumes will be lost: default/local",
    ]
    assert cluster.names() == ["log-1", "web-4"]


def test_drain_of_some_pods_with_a_grace_of_its_own(cluster):
    cluster.add(cluster.member("db-1", labels={"app": "db"}))
    cluster.goes_on(replaced=False)
    cluster.ok("drain", "node1", "--pod-selector", "app=db", "--grace-period=2")
    assert cluster.names() == ["web-1", "web-2", "web-3", "web-4"]


def test_a_pod_that_was_placed_at_the_moment_of_the_cordon_goes_too(cluster):
    cluster.goes_on()
    cluster.clock.at(cluster.clock.monotonic() + 0.2, lambda: cluster.add(cluster.member("web-0")))
    cluster.ok("drain", "node1")
    assert not [p for p in cluster.live() if p.spec.node_name == "node1"]


def test_pods_of_a_controller_that_is_gone_are_not_waited_for(cluster):
    cluster.registry.delete(ReplicationController, "default", "web")
    cluster.goes_on(replaced=False)
    cluster.ok("drain", "node1", "--max-unavailable=10%")
    assert cluster.names() == ["web-4"]


def test_drain_dry_run(cluster):
    before = cluster.revision()
    assert lines(cluster.ok("drain", "node1", "--dry-run")) == [
        "node/node1 cordoned (dry run)",
        "evicting pod default/web-1 (dry run)",
        "evicting pod default/web-2 (dry run)",
        "evicting pod default/web-3 (dry run)",
        "node/node1 drained (dry run)",
    ]
    assert cluster.revision() == before


def test_an_empty_node_is_drained_at_once(cluster):
    cluster.add(Node(metadata=ObjectMeta(name="node3")))
    assert cluster.ok("drain", "node3") == "node/node3 cordoned\nnode/node3 drained\n"


def test_shares():
    assert parse_share("2") == Share(number=2)
    assert [parse_share("25%").of(n) for n in (0, 1, 4, 5)] == [1, 1, 1, 2]


@pytest.mark.parametrize("text", ["0", "-1", "0%", "x", "", "1.5", "²"])
def test_shares_that_make_no_sense(cluster, text):
    assert "expected a number from 1 on or a percentage from 1%" in cluster.fails(
        "drain", "node1", "--max-unavailable", text, code=2
    )
