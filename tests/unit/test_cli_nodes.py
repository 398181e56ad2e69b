from __future__ import annotations

import pytest
from cli_shell import Shell

from podlane.api.taints import spelled
from podlane.api.types import Node, ObjectMeta

pytestmark = pytest.mark.unit


@pytest.fixture
def shell() -> Shell:
    shell = Shell()
    shell.add(
        Node(metadata=ObjectMeta(name="node1", labels={"rack": "a"})),
        Node(metadata=ObjectMeta(name="node2", labels={"rack": "b"})),
    )
    return shell


def unschedulable(shell: Shell) -> list[bool]:
    return [node.spec.unschedulable for node in shell.registry.list(Node).items]


def taints(shell: Shell, name: str = "node1") -> list[str]:
    return [spelled(taint) for taint in shell.registry.get(Node, "", name).spec.taints]


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


# --- taints -----------------------------------------------------------------------------------


def test_taint_and_untaint(shell):
    assert shell.ok("taint", "nodes", "node1", "dedicated=db:NoSchedule", "spot:NoExecute") == "node/node1 tainted\n"
    assert taints(shell) == ["dedicated=db:NoSchedule", "spot:NoExecute"]
    assert shell.ok("taint", "node", "node1", "dedicated:NoSchedule-") == "node/node1 untainted\n"
    assert taints(shell) == ["spot:NoExecute"]
    done = shell.ok("taint", "node/node1", "spot-", "dedicated=db:PreferNoSchedule", "dedicated=db:NoExecute")
    assert done == "node/node1 modified\n"
    assert taints(shell) == ["dedicated=db:PreferNoSchedule", "dedicated=db:NoExecute"]
    assert shell.ok("taint", "nodes", "node1", "dedicated-") == "node/node1 untainted\n"
    assert taints(shell) == []


def test_a_taint_is_changed_with_overwrite_only(shell):
    shell.ok("taint", "nodes", "node1", "dedicated=db:NoSchedule")
    before = shell.revision()
    assert shell.ok("taint", "nodes", "node1", "dedicated=db:NoSchedule") == "node/node1 not changed\n"
    errors = shell.fails("taint", "nodes", "node1", "dedicated=web:NoSchedule")
    assert errors == "error: taint node/node1: it has dedicated=db:NoSchedule already; --overwrite changes it\n"
    assert shell.revision() == before
    shell.ok("taint", "nodes", "node1", "dedicated=web:NoSchedule", "--overwrite")
    assert taints(shell) == ["dedicated=web:NoSchedule"]


def test_a_taint_that_is_not_there_is_not_removed(shell):
    shell.ok("taint", "nodes", "node1", "dedicated=db:NoSchedule")
    errors = shell.fails("taint", "nodes", "node1", "dedicated:NoExecute-", "spot-")
    assert errors == "error: taint node/node1: it has no taint dedicated:NoExecute, spot\n"


def test_taints_by_label_of_all_and_dry(shell):
    assert shell.ok("taint", "nodes", "-l", "rack=b", "a:NoSchedule", "--dry-run") == "node/node2 tainted (dry run)\n"
    assert taints(shell, "node2") == []
    assert shell.ok("taint", "nodes", "--all", "a:NoSchedule") == "node/node1 tainted\nnode/node2 tainted\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("node1", "a=b"), 'taint "a=b": expected an effect of NoSchedule, PreferNoSchedule, NoExecute'),
        (("node1", "a=b:Never"),
         'taint "a=b:Never": expected an effect of NoSchedule, PreferNoSchedule, NoExecute, got "Never"'),
        (("node1", "-a:NoSchedule"), None),
        (("node1", "a/b/c:NoSchedule"), 'taint "a/b/c:NoSchedule": expected a DNS name before the "/" of the key'),
        (("node1", "a:NoSchedule", "a-"), 'taint "a": expected to set it or to remove it, got both'),
        (("node1", "a:NoSchedule", "a=x:NoSchedule"), 'taint "a:NoSchedule": given twice'),
        (("node1",), "taint: missing; expected KEY=VALUE:EFFECT to set or KEY:EFFECT- to remove"),
        (("a:NoSchedule",), "nodes: expected names or --selector"),
        (("node1", "--all", "a:NoSchedule"), "--all: expected no names and no --selector with it"),
    ],
)  # fmt: skip
def test_taints_that_make_no_sense(shell, arguments, error):
    before = shell.revision()
    assert (error or "") in shell.fails("taint", "nodes", *arguments, code=2)
    assert shell.revision() == before
