from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_objects import T0, node, pod

from scheduler import nodes
from scheduler.nodes import UNKNOWN_REASON

pytestmark = pytest.mark.unit

GRACE = 5.0


class Cluster:
    """Feeds one plan's memory to the next, as the leader does."""

    def __init__(self, *names: str) -> None:
        self.nodes = [node(name) for name in names]
        self.alive = set(names)
        self.pods = [pod(f"on-{name}", node=name) for name in names]
        self.seen: dict = {}

    def at(self, seconds: float) -> str:
        return str(self.plan(seconds))

    def plan(self, seconds: float):
        self.last = nodes.plan(self.nodes, self.alive, self.pods, self.seen, now=T0 + seconds, grace=GRACE)
        self.seen = dict(self.last.seen)
        return self.last

    def marked(self, name: str) -> None:
        """The store has the Unknown condition now."""
        self.nodes = [
            node(n.metadata.name, ready="Unknown", reason=UNKNOWN_REASON) if n.metadata.name == name else n
            for n in self.nodes
        ]


def test_nothing_to_do():
    assert Cluster("n1", "n2", "n3").at(0) == ""


def test_a_node_that_goes_is_marked_at_once_and_its_pods_given_up_after_the_grace():
    c = Cluster("n1", "n2", "n3")
    c.at(0)
    c.alive.remove("n2")
    assert c.at(10) == "mark node n2 unknown"
    assert c.last.next_at == T0 + 15
    c.marked("n2")
    assert c.at(14.9) == ""
    assert c.at(15) == "evict pod default/on-n2: node n2 is gone"


def test_pods_being_deleted_are_given_up_too():
    c = Cluster("n1", "n2", "n3")
    c.pods = [pod("leaving", node="n2", terminating=True)]
    c.at(0)
    c.alive.remove("n2")
    c.at(1)
    assert "evict pod default/leaving" in c.at(6)


def test_a_node_that_comes_back_in_time_keeps_its_pods():
    c = Cluster("n1", "n2", "n3")
    c.at(0)
    c.alive.remove("n2")
    c.at(10)
    c.marked("n2")
    c.alive.add("n2")
    assert c.at(12) == ""
    # its agent has the first word; when it says nothing, the heartbeat is believed
    assert c.last.next_at == T0 + 14
    assert c.at(14) == "mark node n2 ready"
    c.nodes = [node("n1"), node("n2"), node("n3")]
    assert c.at(100) == ""


def test_what_the_agent_says_of_itself_stands():
    c = Cluster("n1")
    c.nodes = [node("n1", ready="False", reason="NetworkNotReady")]
    assert (c.at(0), c.at(100)) == ("", "")


def test_a_new_leader_counts_from_what_it_sees_itself():
    c = Cluster("n1", "n2", "n3")
    c.alive.remove("n2")
    assert c.at(100) == ""
    assert c.at(102) == "mark node n2 unknown"
    c.marked("n2")
    assert c.at(104) == ""
    assert c.at(105) == "evict pod default/on-n2: node n2 is gone"


def test_a_node_that_registers_before_its_heartbeat_is_not_marked():
    c = Cluster("n1")
    c.at(0)
    c.nodes.append(node("n2", ready="True"))
    assert c.at(1) == ""
    c.alive.add("n2")
    assert c.at(1.1) == ""


def test_most_of_the_cluster_gone_gives_up_nothing():
    c = Cluster("n1", "n2", "n3")
    c.at(0)
    c.alive -= {"n2", "n3"}
    assert c.at(1) == "mark node n2 unknown\nmark node n3 unknown\nhold 2/3 nodes gone: n2 n3"
    c.marked("n2")
    c.marked("n3")
    assert c.at(1000) == "hold 2/3 nodes gone: n2 n3"
    # one is back: the other gets the whole grace period again, for it may be on its way
    c.alive.add("n2")
    c.at(1001)
    assert "evict" not in c.at(1004.9)
    assert "evict pod default/on-n3" in c.at(1005)


def test_exactly_half_is_not_most():
    c = Cluster("n1", "n2", "n3", "n4")
    c.at(0)
    c.alive -= {"n3", "n4"}
    c.at(1)
    assert len(c.plan(6).evict) == 2


def test_of_two_nodes_one_may_be_given_up():
    c = Cluster("n1", "n2")
    c.at(0)
    c.alive.remove("n2")
    c.at(1)
    assert "evict pod default/on-n2" in c.at(6)


def test_nothing_is_given_up_when_there_is_nowhere_to_go():
    c = Cluster("n1")
    c.at(0)
    c.alive.clear()
    c.at(1)
    assert "evict" not in c.at(1000)


def test_pods_of_a_node_that_does_not_exist():
    c = Cluster("n1", "n2")
    c.pods.append(pod("lost", node="n9"))
    assert c.at(0) == ""
    assert c.last.next_at == T0 + 5
    assert c.at(5) == "evict pod default/lost: node n9 does not exist"
    assert c.last.evict[0].missing


def test_unreachable():
    members = [node("n1"), node("n2")]
    assert nodes.unreachable(members, {"n1", "n2"}) == frozenset()
    assert nodes.unreachable(members, {"n1"}) == {"n2"}
    # with nobody left to tell, what is known stands
    assert nodes.unreachable(members, set()) == frozenset()


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.floats(0.1, 4), st.sets(st.integers(0, 4))), min_size=1, max_size=25),
)
def test_no_pod_is_given_up_without_a_whole_grace_period_of_silence(size, history):
    c = Cluster(*(f"n{i}" for i in range(size)))
    now, silent_since = 0.0, {}
    for step, alive in history:
        now += step
        c.alive = {f"n{i}" for i in alive}
        for n in c.nodes:
            name = n.metadata.name
            if name in c.alive:
                silent_since.pop(name, None)
            else:
                silent_since.setdefault(name, now)
        result = c.plan(now)
        for eviction in result.evict:
            assert now - silent_since[eviction.node] >= GRACE - 1e-6
        if size >= 3 and len(silent_since) * 2 > size:
            assert not result.evict
            assert len(result.held) == len(silent_since)
        assert result.next_at is None or result.next_at > T0 + now
