from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_objects import node, pod

from scheduler.placement import planner
from scheduler.placement.demand import demand_of

pytestmark = pytest.mark.unit

THREE = [node("n1"), node("n2"), node("n3")]


def plan(nodes, pods, dead=()):
    return planner.plan(nodes, pods, {n.metadata.name for n in nodes} - set(dead))


def why(nodes, waiting, *others, dead=()) -> str:
    (unplaced,) = plan(nodes, [waiting, *others], dead).unschedulable
    return unplaced.why


def test_siblings_are_spread():
    pods = [pod(f"web-{i}", owner="web", created=i) for i in range(6)]
    assert str(plan(THREE, pods)) == "\n".join(f"bind pod default/web-{i} to n{i % 3 + 1}" for i in range(6))


def test_spread_counts_what_runs_already():
    running = [pod("web-a", owner="web", node="n1"), pod("web-b", owner="web", node="n3")]
    assert str(plan(THREE, [*running, pod("web-c", owner="web")])) == "bind pod default/web-c to n2"


def test_a_sibling_that_leaves_does_not_count_but_still_takes_room():
    leaving = pod("web-a", owner="web", node="n1", terminating=True, memory="7Gi")
    others = [pod("web-b", owner="web", node="n2"), pod("web-c", owner="web", node="n3")]
    assert str(plan(THREE, [leaving, *others, pod("web-d", owner="web", memory="1Gi")])).endswith("to n1")
    assert str(plan(THREE, [leaving, *others, pod("web-d", owner="web", memory="2Gi")])).endswith("to n2")


def test_least_requested_decides_between_equals():
    pods = [pod("a", node="n1", cpu="1"), pod("b", node="n2"), pod("c", node="n3", cpu="2"), pod("new")]
    assert str(plan(THREE, pods)) == "bind pod default/new to n2"


def test_pods_without_requests_spread_too():
    result = plan(THREE, [pod(f"p{i}") for i in range(9)])
    assert Counter(p.node for p in result.bind) == {"n1": 3, "n2": 3, "n3": 3}


def test_a_finished_pod_takes_no_room():
    full = pod("done", node="n1", phase="Succeeded", memory="8Gi")
    assert str(plan([node("n1")], [full, pod("new", memory="8Gi")])) == "bind pod default/new to n1"


def test_an_exact_fit_fits():
    assert plan([node("n1", cpu="1", memory="1Gi", pods="1")], [pod("a", cpu="1", memory="1Gi")]).bind


def test_only_nodes_that_match_the_selector():
    nodes = [node("n1"), node("n2", labels={"disk": "ssd", "zone": "a"})]
    pods = [pod(f"p{i}", selector={"disk": "ssd"}) for i in range(3)]
    assert {p.node for p in plan(nodes, pods).bind} == {"n2"}


def test_the_oldest_comes_first():
    result = plan([node("n1", pods="1")], [pod("young", created=2), pod("old", created=1)])
    assert str(result) == (
        "bind pod default/old to n1\nunschedulable pod default/young: 0/1 nodes fit: 1 full (1 pods)"
    )


def test_what_needs_no_node_is_left_alone():
    pods = [pod("bound", node="n9"), pod("done", phase="Failed"), pod("leaving", terminating=True)]
    assert plan(THREE, pods).empty


class TestReasons:
    def test_every_node_is_accounted_for(self):
        nodes = [node("n1", memory="2Gi"), node("n2", memory="2Gi"), node("n3", cordoned=True)]
        taken = [pod("x", node="n1", memory="820Mi"), pod("y", node="n2", memory="1Gi")]
        assert why(nodes, pod("new", memory="2Gi"), *taken) == (
            "0/3 nodes fit: 2 too little memory (need 2Gi, 1.1Gi free), 1 cordoned"
        )

    def test_cpu(self):
        assert why([node("n1", cpu="500m")], pod("new", cpu="2")) == (
            "0/1 nodes fit: 1 too little cpu (need 2, 500m free)"
        )

    def test_selector(self):
        assert why(THREE, pod("new", selector={"disk": "ssd"})) == "0/3 nodes fit: 3 without label disk=ssd"

    def test_gone_not_ready_and_starting(self):
        nodes = [node("n1"), node("n2", ready="False", reason="NetworkNotReady"), node("n3", ready="")]
        assert why(nodes, pod("new"), dead=["n1"]) == (
            "0/3 nodes fit: 1 gone, 1 not ready, 1 not ready (NetworkNotReady)"
        )

    def test_no_nodes(self):
        assert why([], pod("new")) == "0/0 nodes fit: no node has registered"

    def test_a_node_that_has_not_said_what_it_has(self):
        silent = node("n1", cpu="0", memory="0", pods="0")
        assert why([silent], pod("new")) == "0/1 nodes fit: 1 full (0 pods)"


sizes = st.sampled_from(["", "100m", "500m", "1"])
memories = st.sampled_from(["", "64Mi", "512Mi", "1Gi"])


@given(
    st.lists(st.tuples(st.sampled_from(["1", "2"]), st.sampled_from(["1Gi", "2Gi"]), st.integers(0, 5)), max_size=6),
    st.lists(st.tuples(sizes, memories, st.sampled_from(["", "a", "b"])), max_size=25),
)
def test_nothing_is_overcommitted_and_nothing_that_fits_is_refused(shapes, wanted):
    nodes = [node(f"n{i}", cpu=c, memory=m, pods=str(p)) for i, (c, m, p) in enumerate(shapes)]
    pods = [pod(f"p{i}", cpu=c, memory=m, owner=o, created=i) for i, (c, m, o) in enumerate(wanted)]
    result = plan(nodes, pods)
    assert len(result.bind) + len(result.unschedulable) == len(pods)

    used: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for placed in result.bind:
        demand = demand_of(placed.pod)
        for index, amount in enumerate((demand.cpu, demand.memory, 1)):
            used[placed.node][index] += amount
    room = {}
    for n, (c, m, p) in zip(nodes, shapes, strict=True):
        cpu, memory, count = used[n.metadata.name]
        room[n.metadata.name] = (int(c) * 1000 - cpu, int(m[0]) * 2**30 - memory, p - count)
        assert min(room[n.metadata.name]) >= 0
    for unplaced in result.unschedulable:
        demand = demand_of(unplaced.pod)
        for cpu, memory, count in room.values():
            assert cpu < demand.cpu or memory < demand.memory or count < 1
