"""A pod that fits nowhere is looked at again when something happens that could help it, and not otherwise."""

from __future__ import annotations

import pytest
from placement_objects import Told, apart, container, host_port, near, node, pod, spread

from podlane.api.types import ZONE_LABEL
from scheduler.view import Changes

pytestmark = pytest.mark.unit

BIG = {"containers": [container(memory="6Gi")]}


def nodes(*names: str, **options):
    return [node(name, memory="8Gi", **options) for name in names]


def tried(told: Told, *changes) -> tuple[int, list[str]]:
    """After these changes: how many classes were looked at, and where pods went."""
    told.put(*changes)
    plan = told.plan()
    return plan.tried, [p.node for p in plan.bind]


class TestResources:
    def setup_method(self):
        self.x = pod("x", node="n1", memory="4Gi")
        self.told = Told(nodes("n1"), self.x, pod("big", BIG))
        assert self.told.plan().tried == 1

    def test_nothing_happens(self):
        assert tried(self.told) == (0, [])

    def test_what_does_not_help_is_not_looked_at(self):
        changed = [
            pod("x", node="n1", memory="4Gi", ready=True),  # it runs now
            pod("y", node="n1", memory="1Gi"),  # another comes
            node("n1", memory="8Gi", labels={"disk": "ssd"}),
            node("n2", memory="4Gi"),
            node("n3", memory="8Gi", cordoned=True),
            node("n4", memory="8Gi", taints="a:NoSchedule"),
        ]
        for change in changed:
            assert tried(self.told, change) == (0, []), change

    def test_another_of_its_kind_is_told_the_same_without_a_look(self):
        self.told.put(pod("big2", BIG, created=1))
        plan = self.told.plan()
        assert plan.tried == 0
        assert len({u.why for u in plan.unschedulable}) == 1
        assert len(plan.unschedulable) == 2

    def test_a_pod_that_leaves(self):
        self.told.gone(self.x)
        assert tried(self.told) == (1, ["n1"])

    def test_a_pod_that_is_over(self):
        assert tried(self.told, pod("x", node="n1", memory="4Gi", phase="Succeeded")) == (1, ["n1"])

    def test_a_node_that_grows_or_comes(self):
        assert tried(self.told, node("n1", memory="16Gi")) == (1, ["n1"])

    def test_a_node_that_comes(self):
        assert tried(self.told, node("n2", memory="8Gi")) == (1, ["n2"])

    def test_the_numbers_are_renewed_when_asked(self):
        self.told.put(pod("y", node="n1", memory="1Gi"))
        (left,) = self.told.plan().unschedulable
        assert left.outdated
        assert left.why.endswith("(need 6Gi, 4Gi free)")
        assert self.told.planner.explain(left.pod).endswith("(need 6Gi, 3Gi free)")
        assert not self.told.plan().unschedulable[0].outdated


class TestNodesThatRefuse:
    def test_a_taint_that_goes(self):
        told = Told([node("n1", taints="a:NoSchedule")], pod("p"))
        assert told.plan().tried == 1
        assert tried(told, node("n1", taints="b:NoSchedule")) == (0, [])
        assert tried(told, node("n1")) == (1, ["n1"])

    def test_a_label_that_comes(self):
        told = Told([node("n1")], pod("p", {"nodeSelector": {"disk": "ssd"}}))
        assert told.plan().tried == 1
        assert tried(told, pod("x", node="n1")) == (0, [])
        assert tried(told, node("n1", labels={"disk": "ssd"})) == (1, ["n1"])

    def test_a_heartbeat_that_comes_back(self):
        told = Told([node("n1"), node("n2", pods="0")], pod("p"))
        told.planner.update(alive=["n2"])
        assert told.plan().tried == 1
        told.planner.update(alive=["n1", "n2"])
        assert tried(told) == (1, ["n1"])

    def test_a_host_port_that_is_free_again(self):
        x = pod("x", host_port(80), node="n1")
        told = Told([node("n1")], x, pod("p", host_port(80)))
        assert told.plan().tried == 1
        told.gone(x)
        assert tried(told) == (1, ["n1"])


class TestPodsAround:
    ZONES = (node("n1", zone="east"), node("n2", zone="west"))

    def test_affinity_waits_for_such_a_pod(self):
        told = Told([*self.ZONES], pod("p", near("db")))
        assert told.plan().tried == 1
        assert tried(told, pod("x", app="other", node="n1")) == (0, [])
        assert tried(told, pod("y", app="db")) == (1, ["n2"])  # y itself; p's turn was before
        assert tried(told) == (1, ["n2"])

    def test_anti_affinity_waits_for_such_a_pod_to_go(self):
        x, other = pod("x", node="n1"), pod("other", app="db", node="n1")
        told = Told([self.ZONES[0]], x, other, pod("p", apart("web")))
        assert told.plan().tried == 1
        told.gone(other)
        assert tried(told) == (0, [])
        told.gone(x)
        assert tried(told) == (1, ["n1"])

    def test_a_pod_that_keeps_others_away_goes(self):
        x = pod("x", apart("web", ZONE_LABEL), app="db", node="n1")
        told = Told([self.ZONES[0]], x, pod("p"))
        assert told.plan().tried == 1
        told.gone(x)
        assert tried(told) == (1, ["n1"])

    def test_spread_waits_for_its_own_in_the_emptiest_zone(self):
        full = node("n2", zone="west", pods="1")
        told = Told([self.ZONES[0], full], pod("x", node="n1"), pod("y", app="db", node="n2"), pod("p", spread()))
        assert told.plan().tried == 1
        assert tried(told, pod("z", app="db", node="n1")) == (0, [])
        assert tried(told, pod("z2", node="n2")) == (1, ["n1"])

    def test_spread_waits_for_the_emptiest_zone_to_go(self):
        told = Told([self.ZONES[0], node("n2", zone="west", pods="0")], pod("x", node="n1"), pod("p", spread()))
        assert told.plan().tried == 1
        told.planner.update(nodes=Changes({"n2": None}))
        assert tried(told) == (1, ["n1"])

    def test_room_that_is_made_for_another_does_not_help(self):
        told = Told([self.ZONES[0]], pod("x", node="n1", memory="8Gi"), pod("p", apart("web")))
        assert told.plan().tried == 1
        told.put(pod("boss", app="db", memory="8Gi", priority=1))
        plan = told.plan()
        assert (plan.tried, len(plan.preempt)) == (1, 1)
