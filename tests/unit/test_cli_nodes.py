from __future__ import annotations

import pytest
from cli_shell import Shell, lines, owner, pod, rc

from podlane.api.types import Node, ObjectMeta, Pod

pytestmark = pytest.mark.unit


@pytest.fixture
def shell() -> Shell:
    shell = Shell()
    controller = rc()
    shell.add(
        Node(metadata=ObjectMeta(name="node1", labels={"rack": "a"})),
        Node(metadata=ObjectMeta(name="node2", labels={"rack": "b"})),
        pod("web-1", owner=owner(controller)),
        pod("web-2", owner=owner(controller), labels={"app": "db"}),
        pod("web-3", node="node2", owner=owner(controller)),
    )
    return shell


def unschedulable(shell: Shell) -> list[bool]:
    return [node.spec.unschedulable for node in shell.registry.list(Node).items]


def agents_end_pods(shell: Shell, after: float) -> None:
    """Every agent removes, at that moment, the pods that are ending."""

    def remove() -> None:
        for item in shell.registry.list(Pod).items:
            if item.metadata.deletion_timestamp is not None:
                shell.registry.remove(item)

    shell.clock.at(shell.clock.monotonic() + after, remove)


def names(shell: Shell) -> list[str]:
    return [item.metadata.name for item in shell.registry.list(Pod).items]


def test_cordon_and_uncordon(shell):
    assert shell.ok("cordon", "node1") == "node/node1 cordoned\n"
    assert unschedulable(shell) == [True, False]
    before = shell.revision()
    assert shell.ok("cordon", "node/node1") == "node/node1 already cordoned\n"
    assert shell.revision() == before
    assert shell.ok("uncordon", "node1", "node2") == "node/node1 uncordoned\nnode/node2 already uncordoned\n"
    assert unschedulable(shell) == [False, False]


def test_by_label(shell):
    assert shell.ok("cordon", "-l", "rack=b") == "node/node2 cordoned\n"


def test_a_node_that_is_not_there_stops_all(shell):
    assert shell.fails("cordon", "node1", "nope") == 'error: nodes "nope" not found\n'
    assert unschedulable(shell) == [False, False]
    assert shell.fails("cordon", code=2).startswith("error: nodes: expected names or --selector")


def test_drain_moves_the_pods_and_waits(shell):
    agents_end_pods(shell, after=6)
    assert lines(shell.ok("drain", "node1")) == [
        "node/node1 cordoned",
        "evicting pod default/web-1",
        "evicting pod default/web-2",
        "pod/web-1 evicted",
        "pod/web-2 evicted",
        "node/node1 drained",
    ]
    assert 6 <= shell.clock.monotonic() < 8
    assert names(shell) == ["web-3"]
    assert unschedulable(shell) == [True, False]


def test_drain_refuses_what_nothing_would_make_anew(shell):
    shell.add(pod("alone"))
    before = names(shell)
    errors = shell.fails("drain", "node1")
    assert errors == ("error: drain: pods without a controller would be lost: default/alone; --force deletes them\n")
    assert names(shell) == before
    agents_end_pods(shell, after=1)
    result = shell.run("drain", "node1", "--force")
    assert result.exit_code == 0
    assert result.stderr == "warning: deleting pods that have no controller: default/alone\n"
    assert names(shell) == ["web-3"]


def test_drain_of_some_pods_with_a_grace_of_its_own(shell):
    agents_end_pods(shell, after=1)
    shell.ok("drain", "node1", "--pod-selector", "app=db", "--grace-period=2")
    assert names(shell) == ["web-1", "web-3"]


def test_drain_gives_up(shell):
    errors = shell.fails("drain", "node1", "--timeout=10s")
    assert errors == "error: wait for deletion of pod/web-1, pod/web-2: still there after 10 s\n"


def test_drain_dry_run(shell):
    before = shell.revision()
    assert lines(shell.ok("drain", "node1", "--dry-run")) == [
        "node/node1 cordoned (dry run)",
        "evicting pod default/web-1 (dry run)",
        "evicting pod default/web-2 (dry run)",
        "node/node1 drained (dry run)",
    ]
    assert shell.revision() == before


def test_an_empty_node_is_drained_at_once(shell):
    shell.add(Node(metadata=ObjectMeta(name="node3")))
    assert shell.ok("drain", "node3") == "node/node3 cordoned\nnode/node3 drained\n"
