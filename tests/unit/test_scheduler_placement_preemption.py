"""Who has to go for whom."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from placement_objects import Told, apart, container, decide, host_port, near, node, pod, spread

pytestmark = pytest.mark.unit


def small(name: str, on: str = "n1", priority: int = 0, memory: str = "4Gi", **options):
    return pod(name, {"containers": [container(memory=memory)]}, node=on, priority=priority, **options)


def urgent(name: str = "urgent", memory: str = "4Gi", priority: int = 100, **spec):
    return pod(name, {"containers": [container(memory=memory)], **spec}, priority=priority)


def nominated(waiting, on: str):
    return replace(waiting, status=replace(waiting.status, nominated_node_name=on))


def text(plan) -> str:
    return "\n".join(line for line in plan.lines() if not line.startswith("unschedulable"))


def test_the_least_important_goes_and_no_more_than_needed():
    pods = [small("a", priority=5), small("b", priority=1)]
    assert text(decide([node("n1")], *pods, urgent())) == "preempt pod default/b on n1 for default/urgent"


def test_nobody_goes_where_there_is_room():
    assert text(decide([node("n1"), node("n2")], small("a"), small("b"), urgent())) == "bind pod default/urgent to n2"


def test_equals_and_betters_stay():
    assert text(decide([node("n1")], small("a", priority=100), small("b", priority=101), urgent())) == ""


def test_never_means_never():
    assert text(decide([node("n1")], small("a"), small("b"), urgent(preemptionPolicy="Never"))) == ""


def test_nobody_goes_in_vain():
    assert text(decide([node("n1")], small("a"), small("b"), urgent(memory="16Gi"))) == ""
    assert text(decide([node("n1")], small("a"), small("b"), urgent(nodeSelector={"disk": "ssd"}))) == ""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([small("a", "n1", 9, "8Gi")], [small("b", "n2", 1), small("c", "n2", 1)]),  # the lowest highest priority
        ([small("a", "n1", 1, "5Gi"), small("b", "n1", 1, "3Gi")], [small("c", "n2", 1, "8Gi")]),  # the fewest
        ([small("a", "n1", 1, "8Gi", created=1)], [small("c", "n2", 1, "8Gi", created=2)]),  # the youngest
    ],
)
def test_the_node_whose_victims_matter_least(first, second):
    plan = decide([node("n1"), node("n2")], *first, *second, urgent(memory="8Gi"))
    assert [p.node for p in plan.preempt] == ["n2"]


def test_a_port_and_anti_affinity_are_reasons_to_go_too():
    taken = pod("x", host_port(80), node="n1")
    assert text(decide([node("n1")], taken, pod("p", host_port(80), priority=1))) == (
        "preempt pod default/x on n1 for default/p"
    )
    beside = [pod("x", node="n1"), pod("y", app="db", node="n1")]
    assert text(decide([node("n1")], *beside, pod("p", apart("web"), priority=1))) == (
        "preempt pod default/x on n1 for default/p"
    )


def test_who_keeps_it_away_goes():
    shy = pod("x", apart("web"), app="db", node="n1")
    assert text(decide([node("n1")], shy, pod("p", priority=1))) == "preempt pod default/x on n1 for default/p"


def test_who_makes_the_skew_goes():
    nodes = [node("n1", zone="east"), node("n2", zone="west", pods="1")]
    others = [pod("x", node="n1"), pod("z", app="db", node="n2", priority=9)]
    assert text(decide(nodes, *others, pod("p", spread(), priority=1))) == "preempt pod default/x on n1 for default/p"


def test_several_make_room_on_several_nodes():
    nodes = [node("n1"), node("n2")]
    pods = [small("a", "n1"), small("b", "n1"), small("c", "n2", 5, "8Gi")]
    plan = decide(nodes, *pods, *(urgent(f"u{i}") for i in range(4)))
    assert sorted(v.metadata.name for p in plan.preempt for v in p.victims) == ["a", "b", "c"]
    assert sorted(p.node for p in plan.preempt) == ["n1", "n1", "n2"]
    assert sorted(u.nominated for u in plan.unschedulable) == ["n1", "n1", "n2", "n2"]


class TestRoomInTheMaking:
    """n1 is full of what ends for `urgent`."""

    def setup_method(self):
        self.leaving = small("a", memory="8Gi", terminating=True)
        self.pod = nominated(urgent(memory="8Gi"), "n1")

    def test_is_waited_for(self):
        plan = decide([node("n1")], self.leaving, self.pod)
        assert text(plan) == ""
        assert [u.nominated for u in plan.unschedulable] == ["n1"]

    def test_is_not_given_to_others_of_no_higher_priority(self):
        told = Told([node("n1")], self.leaving, self.pod, urgent("later", "1Gi", 50))
        assert text(told.plan()) == ""
        told.gone(self.leaving)
        assert text(told.plan()) == "bind pod default/urgent to n1"

    def test_is_given_to_a_higher_priority(self):
        told = Told([node("n1")], self.leaving, self.pod, urgent("king", "8Gi", 1000))
        told.gone(self.leaving)
        assert text(told.plan()).splitlines()[0] == "bind pod default/king to n1"

    def test_is_not_waited_for_when_there_is_room_elsewhere(self):
        assert text(decide([node("n1"), node("n2")], self.leaving, self.pod)) == "bind pod default/urgent to n2"

    def test_is_not_given_to_an_older_one_of_its_kind(self):
        older = urgent("older", "8Gi")
        younger = nominated(pod("urgent", {"containers": [container(memory="8Gi")]}, priority=100, created=9), "n1")
        told = Told([node("n1")], self.leaving, older, younger)
        for tried in (1, 0, 0):
            plan = told.plan()
            assert plan.tried == tried
            assert {u.pod.metadata.name: u.nominated for u in plan.unschedulable} == {"older": "", "urgent": "n1"}

    def test_who_wants_to_be_near_it_waits_until_it_is_there(self):
        leaving = small("a", memory="8Gi", terminating=True, app="old")
        told = Told([node("n1", zone="east")], leaving, self.pod, pod("p", near("web"), app="db", priority=1))
        assert text(told.plan()) == ""
        told.gone(leaving)
        assert text(told.plan()).splitlines() == ["bind pod default/urgent to n1", "bind pod default/p to n1"]

    def test_is_no_more_when_nobody_leaves(self):
        betters = small("a", memory="8Gi", priority=1000)
        plan = decide([node("n1")], betters, self.pod)
        assert [u.nominated for u in plan.unschedulable] == [""]

    def test_a_second_look_asks_for_nobody_else(self):
        told = Told([node("n1")], self.leaving, self.pod, small("b", memory="0"))
        assert [text(told.plan()) for _ in range(3)] == ["", "", ""]


def test_preemption_is_tried_again_when_somebody_of_lower_priority_comes():
    betters = small("a", memory="8Gi", priority=1000)
    told = Told([node("n1")], betters, urgent(memory="8Gi"))
    assert told.plan().tried == 1
    assert told.plan().tried == 0
    told.gone(betters)
    told.put(small("low", memory="8Gi"))
    assert text(told.plan()) == "preempt pod default/low on n1 for default/urgent"
